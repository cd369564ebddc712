//! How much is read from a client at once: little from one that says little, much from one that says much.

use bytes::BytesMut;
use gemba_shared::gate::packet;

const BYTES_MIN: usize = 4 * 1_024;
const BYTES_MAX: usize = 64 * 1_024;

#[derive(Debug)]
pub(super) struct Chunk(usize);

impl Default for Chunk {
    fn default() -> Self {
        Self(BYTES_MIN)
    }
}

impl Chunk {
    /// Room for the next read: a chunk, or the rest of a large packet that has begun. That is believed as it
    /// arrives, not as it is announced.
    pub(super) fn make_room(&self, buffer: &mut BytesMut, packet_bytes_max: usize) {
        if buffer.is_empty() {
            if self.0 == BYTES_MIN && buffer.capacity() > BYTES_MIN {
                // It was busy once.
                *buffer = BytesMut::new();
            }
            buffer.reserve(self.0);
        } else if buffer.capacity() - buffer.len() < self.0 / 2 {
            let packet = packet::length(buffer).unwrap_or(0).min(packet_bytes_max);
            buffer.reserve(packet.saturating_sub(buffer.len()).clamp(self.0, BYTES_MAX));
        }
    }

    /// The last read brought this much.
    pub(super) fn learn(&mut self, count: usize) {
        if count >= self.0 {
            self.0 = (self.0 * 2).min(BYTES_MAX);
        } else if count < self.0 / 4 {
            self.0 = (self.0 / 2).max(BYTES_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_what_comes_and_shrinks_again() {
        let mut chunk = Chunk::default();
        let mut buffer = BytesMut::new();
        for _ in 0..10 {
            chunk.learn(BYTES_MAX);
        }
        chunk.make_room(&mut buffer, 1 << 20);
        assert!(buffer.capacity() >= BYTES_MAX);
        for _ in 0..10 {
            chunk.learn(10);
        }
        chunk.make_room(&mut buffer, 1 << 20);
        assert_eq!(buffer.capacity(), BYTES_MIN);
    }

    #[test]
    fn a_header_alone_gets_no_large_buffer() {
        let mut buffer = BytesMut::from(&b"\x30\xff\xff\xff\x7f"[..]);
        Chunk::default().make_room(&mut buffer, 1 << 30);
        assert!(buffer.capacity() <= 2 * BYTES_MAX);
    }
}

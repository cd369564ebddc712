//! A frame: what is published on a topic, one message in it, signed by its sender.
//!
//! | bytes | what |
//! |---|---|
//! | 3 | magic `GMB` |
//! | 1 | version |
//! | 1 | flags: bit 0, the body is compressed (LZ4 block, behind its length as u32) |
//! | 1 | direction: 0 up, 1 down |
//! | 16 | the gateway that it is from (up) or for (down) |
//! | 4 | length of the body, little-endian as all numbers here |
//! | n | body: the message in postcard |
//! | 4 | CRC-32C of all before it |
//! | 64 | Ed25519 signature of a fixed prefix and all before it |
//!
//! The gateway signs what goes up, the cloud what goes down, at the moment of sending. The CRC tells damage
//! from forgery: a broken disk and a stranger want different answers.
//!
//! Decoding never panics and never allocates more than [`BODY_BYTES_MAX`] for the body.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    ids::GatewayId,
    message::{Downlink, Uplink},
};

/// The version that this code writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// The largest body before compression.
pub const BODY_BYTES_MAX: usize = 512 * 1_024;
/// The largest frame.
pub const FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + OVERHEAD_BYTES;
/// What a frame adds to its body.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + CRC_BYTES + SIGNATURE_BYTES;

const MAGIC: &[u8; 3] = b"GMB";
const HEADER_BYTES: usize = 26;
const CRC_BYTES: usize = 4;
const SIGNATURE_BYTES: usize = 64;
const COMPRESSED: u8 = 1;
/// A body below this size is sent as it is.
const COMPRESS_BYTES_MIN: usize = 256;
/// Signed in front of the frame, so that no other use of the key can be passed off as one.
const SIGNING_PREFIX: &[u8] = b"gemba frame\0";

/// A message that knows which way it goes.
pub trait Message: Serialize + DeserializeOwned {
    const DIRECTION: u8;
}

impl Message for Uplink {
    const DIRECTION: u8 = 0;
}

impl Message for Downlink {
    const DIRECTION: u8 = 1;
}

/// Why a message could not be made into a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the message has {0} bytes, the limit is {BODY_BYTES_MAX}")]
    TooLarge(usize),
    #[error("the message cannot be encoded")]
    Encode,
}

/// Why a frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FrameError {
    #[error("it is larger than {FRAME_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is cut short")]
    Truncated,
    #[error("it does not begin as a frame does")]
    Magic,
    #[error("it is of version {0}, this program reads {VERSION}")]
    Version(u8),
    #[error("it has flags that version {VERSION} does not know")]
    Flags,
    #[error("it goes the other way")]
    Direction,
    #[error("it is of another gateway")]
    Gateway,
    #[error("its length is not what its header says")]
    Length,
    #[error("its checksum is wrong: it was damaged on the way")]
    Checksum,
    #[error("its signature is not of the key that was enrolled")]
    Signature,
    #[error("its body cannot be decompressed")]
    Compression,
    #[error("its body is no message")]
    Body,
}

impl FrameError {
    /// A short, fixed word for counters.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Truncated => "truncated",
            Self::Magic => "magic",
            Self::Version(_) => "version",
            Self::Flags => "flags",
            Self::Direction => "direction",
            Self::Gateway => "gateway",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::Signature => "signature",
            Self::Compression => "compression",
            Self::Body => "body",
        }
    }
}

/// Makes the frame of a message, signed with the sender's key.
///
/// # Errors
/// If the message is larger than a frame may be.
pub fn seal<M: Message>(message: &M, gateway: GatewayId, key: &SigningKey) -> Result<Vec<u8>, SealError> {
    let plain = postcard::to_stdvec(message).map_err(|_| SealError::Encode)?;
    if plain.len() > BODY_BYTES_MAX {
        return Err(SealError::TooLarge(plain.len()));
    }
    let (flags, body) = compress(plain);
    let length = u32::try_from(body.len()).map_err(|_| SealError::TooLarge(body.len()))?;

    let mut frame = Vec::with_capacity(OVERHEAD_BYTES + body.len());
    frame.extend_from_slice(MAGIC);
    frame.extend_from_slice(&[VERSION, flags, M::DIRECTION]);
    frame.extend_from_slice(gateway.as_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    frame.extend_from_slice(&crc32c::crc32c(&frame).to_le_bytes());
    frame.extend_from_slice(&key.sign(&to_sign(&frame)).to_bytes());
    Ok(frame)
}

/// Reads the message of a frame that `gateway` sent (up) or that was sent to it (down), if `key` signed it.
///
/// # Errors
/// If the frame is damaged, forged, of another gateway or version, or no frame at all.
pub fn open<M: Message>(frame: &[u8], gateway: GatewayId, key: &VerifyingKey) -> Result<M, FrameError> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge);
    }
    let (header, rest) = frame.split_at_checked(HEADER_BYTES).ok_or(FrameError::Truncated)?;
    if &header[..3] != MAGIC {
        return Err(FrameError::Magic);
    }
    if header[3] != VERSION {
        return Err(FrameError::Version(header[3]));
    }
    let length = u32::from_le_bytes([header[22], header[23], header[24], header[25]]) as usize;
    let expected = length.checked_add(CRC_BYTES + SIGNATURE_BYTES).ok_or(FrameError::Length)?;
    match rest.len() {
        n if n < expected => return Err(FrameError::Truncated),
        n if n > expected => return Err(FrameError::Length),
        _ => {}
    }
    let (sealed, signature) = frame.split_at(frame.len() - SIGNATURE_BYTES);
    let (checked, crc) = sealed.split_at(sealed.len() - CRC_BYTES);
    if crc32c::crc32c(checked).to_le_bytes() != crc {
        return Err(FrameError::Checksum);
    }
    if header[4] & !COMPRESSED != 0 {
        return Err(FrameError::Flags);
    }
    if header[5] != M::DIRECTION {
        return Err(FrameError::Direction);
    }
    if &header[6..22] != gateway.as_bytes() {
        return Err(FrameError::Gateway);
    }
    let signature = Signature::from_slice(signature).map_err(|_| FrameError::Signature)?;
    key.verify_strict(&to_sign(sealed), &signature).map_err(|_| FrameError::Signature)?;

    let body = &checked[HEADER_BYTES..];
    let plain;
    let body = if header[4] & COMPRESSED == 0 {
        body
    } else {
        plain = decompress(body)?;
        &plain
    };
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Body),
    }
}

fn to_sign(sealed: &[u8]) -> Vec<u8> {
    [SIGNING_PREFIX, sealed].concat()
}

/// The body as it is sent: compressed only where that makes it smaller.
fn compress(plain: Vec<u8>) -> (u8, Vec<u8>) {
    if plain.len() < COMPRESS_BYTES_MIN {
        return (0, plain);
    }
    let packed = lz4_flex::block::compress_prepend_size(&plain);
    if packed.len() < plain.len() { (COMPRESSED, packed) } else { (0, plain) }
}

fn decompress(body: &[u8]) -> Result<Vec<u8>, FrameError> {
    let (size, packed) = lz4_flex::block::uncompressed_size(body).map_err(|_| FrameError::Compression)?;
    if size > BODY_BYTES_MAX {
        return Err(FrameError::TooLarge);
    }
    let plain = lz4_flex::block::decompress(packed, size).map_err(|_| FrameError::Compression)?;
    if plain.len() == size { Ok(plain) } else { Err(FrameError::Compression) }
}

#[cfg(test)]
mod tests;

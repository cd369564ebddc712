//! A client's own connection to the embedded broker, for what it subscribes to.

use std::{io, time::Duration};

use bytes::BytesMut;
use gemba_shared::gate::packet::{self, Packet};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::broker::Broker;

/// Told to the broker, and kept by half of it.
pub(crate) const KEEP_ALIVE_S: u16 = 60;
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 4 * 1_024;
/// The broker's answers while a connection is opened are short.
const ANSWER_BYTES_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: BytesMut,
    /// The broker knew this client.
    pub(crate) session_present: bool,
    /// When the next PINGREQ is due.
    pub(crate) ping_at: Instant,
}

impl Backend {
    pub(crate) async fn open(broker: &Broker, client_id: &str, clean_session: bool) -> io::Result<Self> {
        timeout(OPEN_TIMEOUT, Self::connect(broker, client_id, clean_session)).await?
    }

    async fn connect(broker: &Broker, client_id: &str, clean_session: bool) -> io::Result<Self> {
        let stream = TcpStream::connect(broker.address()).await?;
        stream.set_nodelay(true)?;
        let ping_at = next_ping();
        let mut backend = Self { stream, buffer: BytesMut::new(), session_present: false, ping_at };
        let mut bytes = BytesMut::new();
        broker.connect_packet(client_id, clean_session).write(&mut bytes);
        backend.stream.write_all(&bytes).await?;
        match backend.answer().await? {
            Packet::ConnAck { session_present, code: 0 } => backend.session_present = session_present,
            _ => return Err(io::Error::other("the broker refused the connection")),
        }
        Ok(backend)
    }

    /// The next packet, which must be a short one.
    async fn answer(&mut self) -> io::Result<Packet> {
        loop {
            if let Some(packet) = packet::parse(&mut self.buffer, ANSWER_BYTES_MAX).map_err(io::Error::other)? {
                return Ok(packet);
            }
            self.read().await?;
        }
    }

    /// Reads some bytes into the buffer. May be dropped and called again.
    pub(crate) async fn read(&mut self) -> io::Result<()> {
        self.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    pub(crate) async fn ping(&mut self) -> io::Result<()> {
        self.stream.write_all(&[0xc0, 0]).await?;
        match self.answer().await? {
            Packet::PingResp => Ok(()),
            _ => Err(io::Error::other("the broker answered something else")),
        }
    }

    /// Says good-bye and waits until the broker has let go; true if it has. A client identifier must not be
    /// used again before that: the broker would take the old connection's end for the new one's.
    pub(crate) async fn close(mut self) -> bool {
        let leave = async {
            self.stream.write_all(&[0xe0, 0]).await?;
            loop {
                self.buffer.clear();
                self.buffer.reserve(READ_BYTES);
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    return io::Result::Ok(());
                }
            }
        };
        match timeout(CLOSE_TIMEOUT, leave).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionReset,
            Err(_) => false,
        }
    }
}

pub(crate) fn next_ping() -> Instant {
    Instant::now() + Duration::from_secs(u64::from(KEEP_ALIVE_S) / 2)
}

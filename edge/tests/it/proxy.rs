//! A TCP proxy between two real processes, which a test can make as bad as a network is.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

/// What is read at once, and how many of these are under way on a slow link.
const CHUNK_BYTES: usize = 16 * 1_024;
const CHUNKS_MAX: usize = 256;

/// What happens to what is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Open,
    /// Connections end, and new ones end at once.
    Cut,
    /// Connections stay, new ones are accepted, and nothing passes.
    Stall,
    /// What the client sends passes; the answers do not.
    AnswersStall,
    /// Each byte comes so much later, and not more than so many in a second.
    Slow {
        delay: Duration,
        bytes_per_s: u64,
    },
}

#[derive(Debug, Clone, Copy)]
struct Link {
    mode: Mode,
    /// Connections of an earlier age are dead: nobody tells either end.
    age: u64,
}

/// Forwards connections to an address, as well or badly as it is told.
pub struct Proxy {
    pub address: SocketAddr,
    link: watch::Sender<Link>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (link, seen) = watch::channel(Link { mode: Mode::Open, age: 0 });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                client.set_nodelay(true).ok();
                tokio::spawn(connection(client, TcpStream::connect(target), seen.clone()));
            }
        });
        Self { address, link }
    }

    /// Between the sockets of two paths. Its `address` means nothing.
    pub fn start_unix(listen: &Path, target: PathBuf) -> Self {
        let listener = UnixListener::bind(listen).unwrap();
        let (link, seen) = watch::channel(Link { mode: Mode::Open, age: 0 });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, UnixStream::connect(target.clone()), seen.clone()));
            }
        });
        Self { address: ([127, 0, 0, 1], 0).into(), link }
    }

    pub fn set(&self, mode: Mode) {
        self.link.send_modify(|link| link.mode = mode);
    }

    /// Breaks every connection, and refuses new ones.
    pub fn cut(&self) {
        self.set(Mode::Cut);
    }

    pub fn mend(&self) {
        self.set(Mode::Open);
    }

    /// Nothing passes on the present connections any more, which stay; new ones work. So does a router that forgot them.
    pub fn forget_connections(&self) {
        self.link.send_modify(|link| link.age += 1);
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    client: S,
    server: impl Future<Output = std::io::Result<S>>,
    mut link: watch::Receiver<Link>,
) {
    let Link { mode, age } = *link.borrow_and_update();
    if mode == Mode::Cut {
        return;
    }
    let Ok(server) = server.await else { return };
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    let (up, down) = (link.clone(), link.clone());
    tokio::select! {
        // The one side's end is passed on at once: nobody here half-closes.
        () = pump(from_client, to_server, up, age, false) => {}
        () = pump(from_server, to_client, down, age, true) => {}
        _ = link.wait_for(|link| link.mode == Mode::Cut) => {}
    }
}

/// Moves bytes in one direction until it ends.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut link: watch::Receiver<Link>,
    age: u64,
    is_answer: bool,
) {
    let (chunks, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let seen = link.clone();
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let delay = if let Mode::Slow { delay, .. } = seen.borrow().mode { delay } else { Duration::ZERO };
            if chunks.send((Instant::now() + delay, buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let passes = |link: &Link| {
        let stalls = link.mode == Mode::Stall || (is_answer && link.mode == Mode::AnswersStall);
        link.age == age && !stalls
    };
    let writing = async move {
        while let Some((due, chunk)) = arriving.recv().await {
            sleep_until(due).await;
            let Ok(now) = link.wait_for(passes).await.map(|link| *link) else { return };
            if to.write_all(&chunk).await.is_err() {
                return;
            }
            if let Mode::Slow { bytes_per_s, .. } = now.mode {
                sleep(Duration::from_secs_f64(chunk.len() as f64 / bytes_per_s as f64)).await;
            }
        }
    };
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const A_MOMENT: Duration = Duration::from_millis(100);

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await
                });
            }
        });
        address
    }

    async fn answers(stream: &mut TcpStream) -> bool {
        let mut byte = [0];
        stream.write_all(b"x").await.is_ok() && matches!(timeout(A_MOMENT, stream.read(&mut byte)).await, Ok(Ok(1)))
    }

    #[tokio::test]
    async fn it_is_as_bad_as_it_is_told() {
        let proxy = Proxy::start(echo().await).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert!(answers(&mut stream).await);
        for mode in [Mode::Stall, Mode::AnswersStall] {
            proxy.set(mode);
            assert!(!answers(&mut stream).await, "{mode:?}");
            proxy.mend();
            let mut held = [0];
            timeout(10 * A_MOMENT, stream.read_exact(&mut held)).await.expect("what was held comes").unwrap();
        }
        proxy.set(Mode::Slow { delay: A_MOMENT, bytes_per_s: 1_000_000 });
        let begun = Instant::now();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        assert!(begun.elapsed() >= 2 * A_MOMENT, "there and back");
        proxy.mend();
        proxy.forget_connections();
        assert!(!answers(&mut stream).await);
        let mut other = TcpStream::connect(proxy.address).await.unwrap();
        assert!(answers(&mut other).await, "a new connection works");
        proxy.cut();
        assert!(timeout(10 * A_MOMENT, other.read(&mut [0])).await.is_ok_and(|read| !matches!(read, Ok(1..))));
        let mut refused = TcpStream::connect(proxy.address).await.unwrap();
        assert!(!answers(&mut refused).await);
    }
}

//! A TCP proxy between two real processes that a test can cut.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Forwards connections to an address that may change, until it is cut.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    open: bool,
    target: SocketAddr,
    connections: JoinSet<()>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { open: true, target, connections: JoinSet::new() }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut state = shared.lock().unwrap();
                if state.open {
                    let target = state.target;
                    state.connections.spawn(forward(client, target));
                }
            }
        });
        Self { address, state }
    }

    /// Breaks every connection, and refuses new ones.
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.open = false;
        state.connections.abort_all();
    }

    pub fn mend(&self) {
        self.state.lock().unwrap().open = true;
    }
}

async fn forward(mut client: TcpStream, target: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        copy_bidirectional(&mut client, &mut server).await.ok();
    }
}

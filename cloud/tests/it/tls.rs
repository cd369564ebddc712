//! A PostgreSQL behind TLS: `sslmode=require`.

use std::sync::Arc;

use gemba_cloud::{keys::Keys, store::Store};
use gemba_mqtt::tls::{ClientCertificates, Identity, Pem, Trust, server_config};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, UnixStream},
};
use tokio_postgres::config::{Host, SslMode};

use crate::database;

/// What a client sends to ask for TLS: its length and the code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A port that speaks PostgreSQL's TLS in front of the socket of a real server.
async fn front(socket: std::path::PathBuf, identity: Identity) -> u16 {
    let config = server_config(&identity, &ClientCertificates::NotAsked).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&config));
        while let Ok((mut client, _)) = listener.accept().await {
            let (acceptor, socket) = (acceptor.clone(), socket.clone());
            tokio::spawn(async move {
                let mut asked = [0; 8];
                client.read_exact(&mut asked).await.ok()?;
                assert_eq!(asked, SSL_REQUEST, "nothing is sent in the clear");
                client.write_all(b"S").await.ok()?;
                let mut client = acceptor.accept(client).await.ok()?;
                let mut server = UnixStream::connect(socket).await.ok()?;
                copy_bidirectional(&mut client, &mut server).await.ok()
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_encrypted_and_the_certificate_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let made = Keys::open(directory.path()).unwrap().certificate(&["127.0.0.1".to_owned()]).unwrap();
    let identity =
        Identity { certificate: Pem::text(&made.chain_pem, "the test"), key: Pem::text(&made.key_pem, "the test") };
    let real = database::config().await;
    let Some(Host::Unix(sockets)) = real.get_hosts().first() else { panic!("the private cluster has a socket") };
    let socket = sockets.join(format!(".s.PGSQL.{}", real.get_ports().first().unwrap_or(&5432)));
    let port = front(socket, identity).await;

    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user(real.get_user().unwrap()).dbname(real.get_dbname().unwrap());
    config.password(real.get_password().unwrap()).ssl_mode(SslMode::Require);
    let ours = Trust::Only(Pem::text(&made.authority_pem, "the test"));
    let store = Store::trusting(config.clone(), 2, &ours).unwrap();
    store.ping().await.expect("it answers, through TLS");
    store.check_schema().await.expect("it is the database");

    let other = tempfile::tempdir().unwrap();
    let stranger = Keys::open(other.path()).unwrap().certificate(&["127.0.0.1".to_owned()]).unwrap();
    let theirs = Trust::Only(Pem::text(&stranger.authority_pem, "the test"));
    let refused = Store::trusting(config, 2, &theirs).unwrap().ping().await.expect_err("another authority's");
    assert!(refused.is_transient(), "{refused:?}");
}

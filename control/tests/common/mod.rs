//! A real server on a free port of the loopback, and clients for it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

pub mod directory;
pub mod process;
pub mod proxy;
pub mod scripted;

use std::net::SocketAddr;
use std::time::Duration;

use ringwire::dmsg::{Listener, ServerAddress, Session, SessionConfig, Stream};
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::{DriverChoice, Server, ServerConfig};
use ringwire_proto::identity::{Address, SecretKey};
use ringwire_proto::noise::Hybrid;

/// Ends a test that hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn server(hybrid: Hybrid) -> Server {
    server_with(hybrid, DriverChoice::Auto)
}

pub fn server_with(hybrid: Hybrid, driver: DriverChoice) -> Server {
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let config = ServerConfig {
        hybrid,
        driver,
        ..ServerConfig::new(SecretKey::generate(&mut OsEntropy), vec![listen])
    };
    Server::start(config).unwrap()
}

pub fn address(server: &Server) -> ServerAddress {
    ServerAddress { key: server.public_key(), address: server.addresses()[0].to_string() }
}

pub fn config(server: &Server) -> SessionConfig {
    let secret_key = SecretKey::generate(&mut OsEntropy);
    let mut config = SessionConfig::new(secret_key, address(server));
    config.first_frame_pause = Duration::ZERO;
    config
}

pub async fn session(server: &Server) -> Session {
    connect(config(server)).await
}

/// A session that the server has filed: it does so a moment after the client's side of the handshake is done.
pub async fn connect(config: SessionConfig) -> Session {
    let session = Session::connect(config).await.unwrap();
    session.ping().await.unwrap();
    session
}

/// The two ends of a stream from `from` to the listener's port of `to`.
pub async fn pair(from: &Session, to: &Session, listener: &mut Listener) -> (Stream, Stream) {
    let destination = Address { key: to.public_key(), port: listener.port() };
    let (dialled, accepted) = tokio::join!(from.dial(destination), listener.accept());
    (dialled.unwrap(), accepted.unwrap())
}

pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("the test hangs")
}

/// Waits until `holds`; a minute without it fails the test.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < patience, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

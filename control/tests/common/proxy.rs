//! A TCP proxy whose connections can freeze: both ends stay open, and nothing passes any more. So a link looks whose
//! packets are dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct Proxy {
    pub address: SocketAddr,
    /// Connections below this number are frozen.
    frozen: watch::Sender<usize>,
    /// Connections below this number are closed.
    cut: watch::Sender<usize>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (frozen, accepted) = (watch::Sender::new(0), Arc::new(AtomicUsize::new(0)));
        let cut = watch::Sender::new(0);
        let (watched, cutting, count) = (frozen.clone(), cut.clone(), Arc::clone(&accepted));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(target).await else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let ways = [watched.subscribe(), watched.subscribe()];
                let mut cut = cutting.subscribe();
                tokio::spawn(async move {
                    let [forth, back] = ways;
                    tokio::select! {
                        _ = cut.wait_for(|below| number < *below) => {}
                        _ = async {
                            tokio::join!(
                                carry(from_client, to_server, number, forth),
                                carry(from_server, to_client, number, back),
                            )
                        } => {}
                    }
                });
            }
        });
        Self { address, frozen, cut, accepted, task }
    }

    /// Freezes every connection there is; later ones pass.
    pub fn freeze(&self) {
        self.frozen.send_replace(self.accepted.load(Ordering::SeqCst));
    }

    /// Closes every connection there is; later ones pass.
    pub fn cut(&self) {
        self.cut.send_replace(self.accepted.load(Ordering::SeqCst));
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: usize,
    mut frozen: watch::Receiver<usize>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        tokio::select! {
            biased;
            gone = async { frozen.wait_for(|below| number < *below).await.is_ok() } => {
                // The sockets stay open as long as the proxy does.
                while gone && frozen.changed().await.is_ok() {}
                return;
            }
            read = from.read(&mut buffer) => match read {
                Ok(length) if length > 0 => {
                    if to.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
                _ => {
                    to.shutdown().await.ok();
                    return;
                }
            },
        }
    }
}

//! The frame itself: accepts connections, serves one router on them, and stops in order.
//!
//! One task accepts per listener and one serves per connection; the accepting one owns the others, so that nothing is
//! left behind when a server is dropped.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::serve::Listener;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use prometheus_client::metrics::counter::Counter;
use ringwire_dataplane::families::ipv4_instead;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::lingering::Lingering;
use super::places::{Place, Places};
use super::proxied::{Fronted, Head, HeaderFault, ProxyNetworks, is_believed, read_head};
use super::unread::Unread;
use super::{Caller, HttpCounters, Limits, Reply};
use crate::throttle::Throttle;

/// Connections that the kernel completes before they are accepted; it clamps the number to `somaxconn`.
const BACKLOG: u32 = 1024;

/// Why a listener could not be had.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}{}", bind_cure(source))]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// The answer of the operating system.
    pub source: io::Error,
}

fn bind_cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there: stop it, or choose another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose another",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        _ => "",
    }
}

/// Opens a TCP listener; port 0 takes a free one, [`TcpListener::local_addr`] says which. Every IPv6 address (`[::]`) is every IPv4
/// address too, and that alone, with a warning, on a host without IPv6.
///
/// # Errors
/// [`BindError`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    bind_with(address, listen)
}

/// [`bind`] with another way to open one.
fn bind_with(
    address: SocketAddr,
    mut open: impl FnMut(SocketAddr) -> io::Result<TcpListener>,
) -> Result<TcpListener, BindError> {
    let refused = match open(address) {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let Some(instead) = ipv4_instead(address, &refused) else {
        return Err(BindError { address, source: refused });
    };
    tracing::warn!(%address, %instead, reason = %refused, "this host has no IPv6: listening on IPv4 alone");
    open(instead).map_err(|source| BindError { address: instead, source })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Whatever the host's default is.
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// One service on its listeners. Dropping it cuts every connection off; [`stop`](Self::stop) lets them finish.
#[derive(Debug)]
pub struct HttpServer {
    shared: Arc<Shared>,
    stopping: watch::Sender<bool>,
    accepting: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    router: Router,
    limits: Limits,
    counters: HttpCounters,
    places: Arc<Places>,
}

impl HttpServer {
    /// A server of `router` without a listener yet.
    pub fn new(router: Router, limits: Limits) -> Self {
        Self::with_counters(router, limits, HttpCounters::default())
    }

    /// The same, counting in `counters`.
    pub fn with_counters(router: Router, limits: Limits, counters: HttpCounters) -> Self {
        let router = router.fallback(Reply::unknown_path).layer(DefaultBodyLimit::max(limits.body_bytes_max));
        let places = Places::new(limits.connections_max, limits.connections_per_address_max);
        let shared = Arc::new(Shared { router, limits, counters, places });
        Self { shared, stopping: watch::Sender::new(false), accepting: JoinSet::new() }
    }

    /// What it counts.
    pub fn counters(&self) -> &HttpCounters {
        &self.shared.counters
    }

    /// Serves `listener` too, from now on. All listeners share the bound on connections. Must be called within a tokio
    /// runtime.
    pub fn listen<L>(&mut self, listener: L)
    where
        L: Listener,
        Caller: From<L::Addr>,
    {
        self.accepting.spawn(accept(listener, Arc::clone(&self.shared), self.stopping.subscribe(), None));
    }

    /// The same for a listener that may stand behind proxies: a PROXY header of these networks says whose a connection is, and from
    /// anywhere else one ends it.
    pub fn listen_behind(&mut self, listener: TcpListener, proxy_from: Arc<[IpNet]>) {
        let shared = Arc::clone(&self.shared);
        self.accepting.spawn(accept(listener, shared, self.stopping.subscribe(), Some(proxy_from)));
    }

    /// Accepts nothing more, lets requests in progress finish within [`Limits::stop`], and cuts off the rest.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        while self.accepting.join_next().await.is_some() {}
    }
}

async fn accept<L>(
    mut listener: L,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
    proxies: Option<ProxyNetworks>,
) where
    L: Listener,
    Caller: From<L::Addr>,
{
    let mut connections = JoinSet::new();
    loop {
        let (io, address) = tokio::select! {
            biased;
            // An error means that the server was dropped.
            _ = stopping.wait_for(|stopping| *stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let caller = Caller::from(address);
        let standing = match (&proxies, &caller) {
            (Some(networks), Caller::Ip(address)) if is_believed(networks, *address) => Standing::Believed,
            (Some(_), _) => Standing::Doubted,
            (None, _) => Standing::Direct,
        };
        let place = match standing {
            Standing::Believed => shared.places.take_for_another(&caller),
            Standing::Doubted | Standing::Direct => shared.places.take(&caller),
        };
        let Some(place) = place else {
            shared.counters.connections_refused.inc();
            continue;
        };
        connections.spawn(serve(io, caller, standing, Arc::clone(&shared), stopping.clone(), place));
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(shared.limits.stop, finished).await.is_err() {
        tracing::debug!("requests were cut off at the stop");
    }
}

/// What a PROXY header in front of a connection is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It says whose the connection is.
    Believed,
    /// It ends the connection.
    Doubted,
    /// Nobody looks for one.
    Direct,
}

async fn serve<Io>(
    mut io: Io,
    mut caller: Caller,
    standing: Standing,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
    mut place: Place,
) where
    Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let counters = shared.counters.clone();
    let _pair = Pair::open(&counters.connections_opened, &counters.connections_closed);
    let limits = shared.limits;
    let mut front = Vec::new();
    if standing != Standing::Direct {
        let head = tokio::select! {
            head = timeout(limits.head, read_head(&mut io, standing == Standing::Believed)) => head,
            // Nothing was asked yet.
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let Some(head) = head.ok().and_then(|head| judge_head(head, caller, &counters)) else {
            counters.connections_failed.inc();
            return;
        };
        caller = head.source.map_or(caller, Caller::Ip);
        if standing == Standing::Believed && !place.ascribe(&caller) {
            counters.connections_refused.inc();
            return;
        }
        front = head.front;
    }
    let linger = Arc::new(AtomicBool::new(false));
    let io = Lingering::new(Unread::new(Fronted::new(io, front), limits.unread), Arc::clone(&linger));
    let service = service_fn(move |request| {
        let (shared, linger) = (Arc::clone(&shared), Arc::clone(&linger));
        async move {
            let response = answer(request, caller, &shared).await;
            linger.fetch_or(response.status() == StatusCode::PAYLOAD_TOO_LARGE, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(limits.head_bytes_max)
            .serve_connection(TokioIo::new(io), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stopping.wait_for(|stopping| *stopping) => None,
        () = tokio::time::sleep(limits.connection) => None,
    };
    let ended = match ended {
        Some(ended) => ended.is_ok(),
        None => {
            connection.as_mut().graceful_shutdown();
            matches!(timeout(limits.request, connection).await, Ok(Ok(())))
        }
    };
    if !ended {
        counters.connections_failed.inc();
    }
    drop(place);
}

/// Counts what a connection began with, and says so where an operator has something to put right. `None`: it ends.
fn judge_head(head: Result<Head, HeaderFault>, caller: Caller, counters: &HttpCounters) -> Option<Head> {
    static UNTRUSTED: Throttle = Throttle::new(crate::throttle::INTERVAL);
    static MALFORMED: Throttle = Throttle::new(crate::throttle::INTERVAL);

    match head {
        Ok(head) => {
            counters.proxy_headers.inc_by(u64::from(head.has_header));
            return Some(head);
        }
        Err(fault @ HeaderFault::Untrusted) => {
            counters.proxy_untrusted.inc();
            if let Some(suppressed) = UNTRUSTED.admit() {
                tracing::warn!(%caller, suppressed, "HTTP: {fault}: closed");
            }
        }
        Err(HeaderFault::Malformed(fault)) => {
            counters.proxy_malformed.inc();
            if let Some(suppressed) = MALFORMED.admit() {
                tracing::warn!(%caller, %fault, suppressed, "HTTP: a trusted proxy sent a header that cannot be read: closed");
            }
        }
        Err(HeaderFault::Connection(_)) => {}
    }
    None
}

async fn answer(request: Request<Incoming>, caller: Caller, shared: &Shared) -> Response {
    let counters = &shared.counters;
    let _pair = Pair::open(&counters.requests_opened, &counters.requests_closed);
    let mut response = if request.body().size_hint().lower() > shared.limits.body_bytes_max as u64 {
        // Before it is read: whoever expects to be asked for it is not.
        let text = format!("the body is longer than {} bytes", shared.limits.body_bytes_max);
        Reply::message(StatusCode::PAYLOAD_TOO_LARGE, text).into_response()
    } else {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(caller);
        let routed = shared.router.clone().oneshot(request);
        match timeout(shared.limits.request, routed).await {
            Ok(Ok(response)) => response,
            Err(_) => {
                counters.requests_timed_out.inc();
                let text = format!("the request took longer than {} s", shared.limits.request.as_secs_f32());
                Reply::message(StatusCode::REQUEST_TIMEOUT, text).into_response()
            }
        }
    };
    // What is left of the body would be taken for the next request.
    if matches!(response.status(), StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    counters.answered(response.status());
    response
}

/// Counts the end of what was opened, whichever way it ends.
struct Pair {
    closed: Counter,
}

impl Pair {
    fn open(opened: &Counter, closed: &Counter) -> Self {
        opened.inc();
        Self { closed: closed.clone() }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.closed.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_ipv6_every_address_is_every_ipv4_address() {
        let mut asked = Vec::new();
        let without_ipv6 = |address: SocketAddr| {
            asked.push(address);
            if address.is_ipv6() {
                Err(io::Error::from(rustix::io::Errno::AFNOSUPPORT))
            } else {
                listen(address)
            }
        };
        let bound = bind_with("[::]:0".parse().unwrap(), without_ipv6).unwrap().local_addr().unwrap();
        assert!(bound.ip().is_unspecified() && bound.is_ipv4(), "{bound}");
        assert_eq!(asked, ["[::]:0".parse().unwrap(), "0.0.0.0:0".parse::<SocketAddr>().unwrap()]);
        // One address of IPv6 is not replaced, and a taken port is a taken port.
        let refuse = |errno: rustix::io::Errno| move |_| Err(io::Error::from(errno));
        for (address, errno) in
            [("[::1]:0", rustix::io::Errno::AFNOSUPPORT), ("[::]:0", rustix::io::Errno::ADDRINUSE)]
        {
            let error = bind_with(address.parse().unwrap(), refuse(errno)).unwrap_err();
            assert_eq!(error.address, address.parse().unwrap());
        }
    }

    #[tokio::test]
    async fn every_address_of_ipv6_is_every_one_of_ipv4_too() {
        let port = bind("[::]:0".parse().unwrap()).await.unwrap().local_addr().unwrap().port();
        let listener = bind(SocketAddr::new("::".parse().unwrap(), port)).await.unwrap();
        assert!(listener.local_addr().unwrap().is_ipv6(), "a host with IPv6");
        let (accepted, connected) =
            tokio::join!(listener.accept(), tokio::net::TcpStream::connect(("127.0.0.1", port)));
        assert!(accepted.is_ok() && connected.is_ok());
    }
}

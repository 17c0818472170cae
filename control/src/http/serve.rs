//! The frame itself: accepts connections, serves one router on them, and stops in order.
//!
//! One task accepts per listener and one serves per connection; the accepting one owns the others, so that nothing is
//! left behind when a server is dropped.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::places::{Place, Places};
use super::unread::Unread;
use super::{Caller, HttpCounters, Limits, Reply};

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

/// Opens a TCP listener; port 0 takes a free one, [`TcpListener::local_addr`] says which.
///
/// # Errors
/// [`BindError`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
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
        self.accepting.spawn(accept(listener, Arc::clone(&self.shared), self.stopping.subscribe()));
    }

    /// Accepts nothing more, lets requests in progress finish within [`Limits::stop`], and cuts off the rest.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        while self.accepting.join_next().await.is_some() {}
    }
}

async fn accept<L>(mut listener: L, shared: Arc<Shared>, mut stopping: watch::Receiver<bool>)
where
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
        let Some(place) = shared.places.take(&caller) else {
            shared.counters.connections_refused.inc();
            continue;
        };
        connections.spawn(serve(io, caller, Arc::clone(&shared), stopping.clone(), place));
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(shared.limits.stop, finished).await.is_err() {
        tracing::debug!("requests were cut off at the stop");
    }
}

async fn serve<Io>(
    io: Io,
    caller: Caller,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
    place: Place,
) where
    Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let counters = shared.counters.clone();
    let _pair = Pair::open(&counters.connections_opened, &counters.connections_closed);
    let limits = shared.limits;
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(request, caller, &shared).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(limits.head_bytes_max)
            .serve_connection(TokioIo::new(Unread::new(io, limits.unread)), service)
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

async fn answer(request: Request<Incoming>, caller: Caller, shared: &Shared) -> Response {
    let counters = &shared.counters;
    let _pair = Pair::open(&counters.requests_opened, &counters.requests_closed);
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(caller);
    let routed = shared.router.clone().oneshot(request);
    let response = match timeout(shared.limits.request, routed).await {
        Ok(Ok(response)) => response,
        Err(_) => {
            counters.requests_timed_out.inc();
            let text = format!("the request took longer than {} s", shared.limits.request.as_secs_f32());
            let mut response = Reply::message(StatusCode::REQUEST_TIMEOUT, text).into_response();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
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

//! `ringwire dmsg serve`: a directory, or a local web server, over dmsg.

mod access;
mod files;
mod listing;
mod version;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use clap::Args;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use self::access::AccessLog;
use self::files::Files;
use super::events::{Place, Reporter, end_asked};
use super::listen::SESSIONS;
use super::network::Network;
use crate::cli::signals::Signals;
use crate::http::{Caller, HttpServer, Limits, Reply};

/// How long the local web server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Bounds of a request: downloads of large files take their time, and a reader that never reads ends.
const LIMITS: Limits = Limits {
    connections_max: 1024,
    // Who asks over dmsg is a key, not an address.
    connections_per_address_max: 1024,
    head: Duration::from_secs(30),
    head_bytes_max: 64 * 1024,
    body_bytes_max: usize::MAX,
    request: Duration::from_secs(60),
    // Who reads a stream pauses it as he likes.
    unread: Duration::from_secs(600),
    // As long as a large file takes over a slow link; one that is cut off can be continued.
    connection: Duration::from_secs(24 * 3600),
    stop: Duration::from_secs(3),
};

/// Who asks, for the local web server.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire dmsg serve --dir ./public --key-file my.key      files, to everybody who knows the key
  ringwire dmsg serve --to 127.0.0.1:8080 --port 80         a web server of this machine
  ringwire dmsg curl dmsg://PUBLICKEY/                      from elsewhere

A directory without index.html is shown as a list of its files. Names with a dot in front are neither served nor listed, unless
--hidden says so; a symbolic link is followed where it leads to something in the directory; devices and FIFOs are not there.
Downloads can be continued (Range, ETag, Last-Modified).

Each request is a line on the error output when its answer is over: time, who (an authenticated key), method, path, status, bytes;
with --json an object. The key of whoever asks reaches the web server in X-Forwarded-For.")]
#[group(skip)]
pub(in crate::cli) struct Arguments {
    /// Directory to serve; index.html stands for a directory that has it
    #[arg(long, value_name = "DIR", required_unless_present = "to", conflicts_with = "to")]
    dir: Option<PathBuf>,
    /// Serve and list names with a dot in front too
    #[arg(long, conflicts_with = "to")]
    hidden: bool,
    /// Web server to pass requests to
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,
    /// Port to listen on
    #[arg(long, short = 'p', value_name = "PORT", default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// No line for each request
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Events and requests as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: Network,
}

#[derive(Serialize)]
struct Ready {
    event: &'static str,
    public_key: String,
    port: u16,
    url: String,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let router = match (&arguments.dir, arguments.to) {
        (Some(directory), _) => {
            let files = Arc::new(Files::open(directory, arguments.hidden)?);
            Router::new()
                .route("/", any(files::answer))
                .route("/{*path}", any(files::answer))
                .with_state(files)
        }
        (None, Some(to)) => {
            // Told now, and not at the first request.
            let resolved = lookup_host(&to).await.map(|addresses| addresses.count());
            resolved.map_err(|error| anyhow!("cannot resolve {to}: {error}; write HOST:PORT"))?;
            Router::new().route("/", any(pass_on)).route("/{*path}", any(pass_on)).with_state(to)
        }
        (None, None) => bail!("name a directory with --dir, or a web server with --to"),
    };
    let log = (!arguments.quiet).then(|| AccessLog::start(arguments.json));
    let (router, log) = match log {
        Some((log, writer)) => (router.layer(from_fn_with_state(log, access::note)), Some(writer)),
        None => (router, None),
    };
    let reporter = Reporter { json: arguments.json, place: Place::Output };
    let mut signals = Signals::new()?;
    let client = arguments.network.connect(SESSIONS, arguments.json).await?;
    let listener = client.listen(arguments.port)?;
    let mut server = HttpServer::new(router, LIMITS);
    server.listen(listener);
    let public_key = client.public_key().to_string();
    let url = match arguments.port {
        80 => format!("dmsg://{public_key}/"),
        port => format!("dmsg://{public_key}:{port}/"),
    };
    let text = format!("serving {url}");
    reporter.tell(&Ready { event: "ready", public_key, port: arguments.port, url }, &text);
    end_asked(&mut signals).await;
    server.stop().await;
    client.close().await;
    if let Some(lines) = log.map(|log| log.dropped_lines()).filter(|lines| *lines > 0) {
        tracing::warn!(lines, "lines of the access log were dropped: nobody took them in time");
    }
    Ok(ExitCode::SUCCESS)
}

/// Passes one request to the local web server.
async fn pass_on(State(to): State<String>, mut request: Request) -> Response {
    let caller = request.extensions().get::<Caller>().map(Caller::to_string);
    strip_hops(request.headers_mut());
    if let Some(caller) = caller.and_then(|caller| HeaderValue::try_from(caller).ok()) {
        request.headers_mut().insert(FORWARDED_FOR, caller);
    }
    if !request.headers().contains_key(HOST)
        && let Ok(host) = HeaderValue::try_from(&to)
    {
        request.headers_mut().insert(HOST, host);
    }
    match ask(&to, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(%to, %error, "the web server did not answer");
            Reply::message(StatusCode::BAD_GATEWAY, format!("the web server behind did not answer: {error}"))
                .into_response()
        }
    }
}

async fn ask(to: &str, request: Request) -> anyhow::Result<Response> {
    let connection = timeout(CONNECT_LIMIT, TcpStream::connect(to))
        .await
        .map_err(|_| anyhow!("no connection within {} s", CONNECT_LIMIT.as_secs()))??;
    connection.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await?;
    // Ends with the response's body.
    tokio::spawn(connection);
    let mut response = sender.send_request(request).await?.map(Body::new);
    strip_hops(response.headers_mut());
    Ok(response)
}

/// Removes what belongs to one connection only (RFC 9110, 7.6.1).
fn strip_hops(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let fixed = [
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("te"),
        HeaderName::from_static("trailer"),
    ];
    for name in named.iter().chain(&fixed) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_one_connection_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-other", "2"),
            ("content-length", "3"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip_hops(&mut headers);
        let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-other", "content-length"]);
    }
}

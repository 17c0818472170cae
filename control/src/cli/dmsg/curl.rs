//! `ringwire dmsg curl`: one HTTP request over a dmsg stream.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use axum::body::Bytes;
use axum::http::header::{HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use ringwire_proto::identity::Address;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::network::{Network, Target};
use crate::cli::output::{output_failed, print_json, print_text};
use crate::dmsg::Client;

/// Redirections that are followed at most.
const REDIRECTS_MAX: usize = 10;

/// Longest body that is shown as JSON; a file takes any.
const JSON_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The port of HTTP (dmsg-wire 10.1).
const PORT_DEFAULT: u16 = 80;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire dmsg curl dmsg://03../health --discovery http://dmsgd.example
  ringwire dmsg curl -o page.html dmsg://03..:8080/page
  ringwire dmsg curl -X POST -H 'Content-Type: application/json' -d '{\"a\":1}' dmsg://03../api
  ringwire dmsg curl --json dmsg://03../          status, headers and body as one JSON object

Exits with 0 when there was an answer; with --fail only when its status is below 400.")]
pub(in crate::cli) struct Arguments {
    /// dmsg://PUBLICKEY[:PORT]/path
    #[arg(value_name = "URL", value_parser = parse)]
    url: Location,
    /// Method [default: GET, or POST with data]
    #[arg(long, short = 'X', value_name = "METHOD")]
    request: Option<Method>,
    /// A header, as 'Name: value'; may be given several times
    #[arg(long, short = 'H', value_name = "HEADER", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// Body to send; @FILE sends a file
    #[arg(long, short = 'd', value_name = "DATA")]
    data: Option<String>,
    /// Write the body to a file
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Show status and headers too
    #[arg(long, short = 'i')]
    include: bool,
    /// Follow redirections, at most 10, to dmsg URLs only
    #[arg(long, short = 'L')]
    location: bool,
    /// Exit with 1 when the status is 400 or more
    #[arg(long, short = 'f')]
    fail: bool,
    /// Seconds for everything
    #[arg(long, short = 'm', value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    max_time: u32,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: Network,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Location {
    address: Address,
    /// As written, for the Host header.
    authority: String,
    /// Path and query.
    path: String,
}

fn parse(text: &str) -> Result<Location, String> {
    let rest = text.strip_prefix("dmsg://").ok_or("expected dmsg://PUBLICKEY[:PORT]/path")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let target: Target = authority.parse()?;
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    path.parse::<Uri>().map_err(|error| format!("the path is not valid: {error}"))?;
    let address = Address { key: target.key, port: target.port.unwrap_or(PORT_DEFAULT) };
    Ok(Location { address, authority: authority.to_owned(), path })
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected 'Name: value'")?;
    let name =
        name.trim().parse().map_err(|error| format!("the name of the header is not valid: {error}"))?;
    let value =
        value.trim().parse().map_err(|error| format!("the value of the header is not valid: {error}"))?;
    Ok((name, value))
}

impl Location {
    /// Where a redirection leads: a path of the same server, or another dmsg URL.
    fn follow(&self, to: &str) -> Result<Self, String> {
        if to.starts_with("dmsg://") {
            return parse(to);
        }
        if to.contains("://") || to.starts_with("//") {
            return Err(format!("the redirection leads out of dmsg, to {to}"));
        }
        let directory = || self.path.split('?').next().and_then(|path| path.rsplit_once('/'));
        let path = match to.starts_with('/') {
            true => to.to_owned(),
            false => format!("{}/{to}", directory().map_or("", |(directory, _)| directory)),
        };
        parse(&format!("dmsg://{}{path}", self.authority))
    }
}

#[derive(Serialize)]
struct Report<'a> {
    url: String,
    status: u16,
    headers: BTreeMap<&'a str, Vec<String>>,
    body_bytes: u64,
    /// The body, unless it went to a file or is not text.
    body: Option<String>,
    /// The body in hexadecimal digits, when it is not text.
    body_hex: Option<String>,
    file: Option<&'a Path>,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let limit = Duration::from_secs(arguments.max_time.into());
    let client = arguments.network.connect(1).await?;
    let result = timeout(limit, perform(&client, &arguments)).await;
    client.close().await;
    let status = result.map_err(|_| {
        anyhow!("no complete answer within {} s: a larger --max-time waits longer", arguments.max_time)
    })??;
    let failed = arguments.fail && status.as_u16() >= 400;
    if failed && !arguments.json {
        // Nobody is left to tell when the error output takes nothing: the exit code says it too.
        writeln!(std::io::stderr(), "ringwire: the answer is {status}").ok();
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn perform(client: &Client, arguments: &Arguments) -> anyhow::Result<StatusCode> {
    let mut location = arguments.url.clone();
    let mut body = match arguments.data.as_deref().map(|data| (data, data.strip_prefix('@'))) {
        Some((_, Some(path))) => Some(Bytes::from(
            tokio::fs::read(path).await.map_err(|error| anyhow!("cannot read {path}: {error}"))?,
        )),
        Some((data, None)) => Some(Bytes::from(data.to_owned())),
        None => None,
    };
    let implied = if body.is_some() { Method::POST } else { Method::GET };
    let mut method = arguments.request.clone().unwrap_or(implied);
    for _ in 0..=REDIRECTS_MAX {
        let response = send(client, &location, &method, &arguments.header, body.clone()).await?;
        let status = response.status();
        let to = response.headers().get(LOCATION).filter(|_| status.is_redirection() && arguments.location);
        let Some(to) = to else {
            show(response, arguments, &location).await?;
            return Ok(status);
        };
        let to = to.to_str().map_err(|_| anyhow!("the redirection's target is not readable"))?;
        location = location.follow(to).map_err(|error| anyhow!(error))?;
        // As browsers do: what was posted is not posted again elsewhere, unless the status says so.
        if !matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT)
            && method != Method::HEAD
        {
            (method, body) = (Method::GET, None);
        }
    }
    bail!(
        "more than {REDIRECTS_MAX} redirections, the last one to dmsg://{}{}",
        location.authority,
        location.path
    )
}

async fn send(
    client: &Client,
    location: &Location,
    method: &Method,
    headers: &[(HeaderName, HeaderValue)],
    body: Option<Bytes>,
) -> anyhow::Result<Response<Incoming>> {
    let stream = client.dial(location.address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the response's body, or with the runtime.
    tokio::spawn(connection);
    let mut request = Request::new(Full::new(body.unwrap_or_default()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = location.path.parse()?;
    let all: &mut HeaderMap = request.headers_mut();
    all.insert(HOST, location.authority.parse()?);
    all.insert(USER_AGENT, HeaderValue::from_static(concat!("ringwire/", env!("CARGO_PKG_VERSION"))));
    for (name, value) in headers {
        all.insert(name, value.clone());
    }
    let sent = sender.send_request(request).await;
    sent.map_err(|error| anyhow!("no HTTP answer from {}: {error}", location.authority))
}

async fn show(
    response: Response<Incoming>,
    arguments: &Arguments,
    location: &Location,
) -> anyhow::Result<()> {
    let (head, mut body) = response.into_parts();
    if arguments.include && !arguments.json {
        let mut text = format!("{:?} {}\r\n", head.version, head.status);
        for (name, value) in &head.headers {
            text.push_str(&format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes())));
        }
        text.push_str("\r\n");
        print_text(&text)?;
    }
    let path = arguments.output.as_deref().unwrap_or(Path::new(""));
    let file_failed = |error: std::io::Error| {
        anyhow!(
            "cannot write {}: {error}; make room or grant access there, or name another file",
            path.display()
        )
    };
    let mut file = match &arguments.output {
        Some(path) => Some(tokio::fs::File::create(path).await.map_err(file_failed)?),
        None => None,
    };
    let mut kept = Vec::new();
    let mut body_bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| anyhow!("the body broke off after {body_bytes} bytes: {error}"))?;
        let Ok(piece) = frame.into_data() else { continue };
        body_bytes += piece.len() as u64;
        match &mut file {
            Some(file) => file.write_all(&piece).await.map_err(file_failed)?,
            None if arguments.json => {
                if kept.len() + piece.len() > JSON_BODY_BYTES_MAX {
                    bail!(
                        "the body is longer than {JSON_BODY_BYTES_MAX} bytes: write it to a file with -o FILE"
                    );
                }
                kept.extend_from_slice(&piece);
            }
            None => std::io::stdout().write_all(&piece).map_err(output_failed)?,
        }
    }
    if let Some(file) = &mut file {
        file.flush().await.map_err(file_failed)?;
    }
    if !arguments.json {
        std::io::stdout().flush().map_err(output_failed)?;
        return Ok(());
    }
    let mut headers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &head.headers {
        headers
            .entry(name.as_str())
            .or_default()
            .push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let (text, hex) = match String::from_utf8(kept) {
        _ if file.is_some() => (None, None),
        Ok(text) => (Some(text), None),
        Err(bytes) => (None, Some(hex(bytes.as_bytes()))),
    };
    let report = Report {
        url: format!("dmsg://{}{}", location.authority, location.path),
        status: head.status.as_u16(),
        headers,
        body_bytes,
        body: text,
        body_hex: hex,
        file: arguments.output.as_deref(),
    };
    print_json(&report)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    #[test]
    fn urls_name_a_key_a_port_and_a_path() {
        let parsed = |rest: &str| parse(&format!("dmsg://{KEY}{rest}")).unwrap();
        for (rest, port, path) in [
            ("", 80, "/"),
            ("/", 80, "/"),
            (":8080/a/b?c=d#e", 8080, "/a/b?c=d"),
            ("?q=1", 80, "/?q=1"),
            ("/a%20b", 80, "/a%20b"),
        ] {
            let location = parsed(rest);
            assert_eq!((location.address.port, &*location.path), (port, path), "{rest}");
        }
        for text in ["http://example.com/", "dmsg://", "dmsg://02/", KEY, &format!("dmsg://{KEY}:0/")] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&format!("dmsg://{KEY}/a b")).is_err(), "a space is no part of a path");
    }

    #[test]
    fn redirections_stay_in_dmsg() {
        let here = parse(&format!("dmsg://{KEY}:81/a/b?c")).unwrap();
        assert_eq!(here.follow("/x?y").unwrap().path, "/x?y");
        assert_eq!(here.follow("x").unwrap().path, "/a/x");
        assert_eq!(here.follow("x").unwrap().address.port, 81);
        assert_eq!(here.follow(&format!("dmsg://{KEY}/z")).unwrap().address.port, 80);
        for out in ["http://example.com/", "//example.com/", "https://x"] {
            assert!(here.follow(out).unwrap_err().contains("out of dmsg"), "{out}");
        }
    }

    #[test]
    fn headers_are_name_and_value() {
        let (name, value) = header("Content-Type:  text/plain ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("content-type", "text/plain"));
        for text in ["none", ": value", "a b: c", "a: \u{7f}"] {
            assert!(header(text).is_err(), "{text}");
        }
    }
}

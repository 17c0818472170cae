//! `ringwire dmsg curl`: one HTTP request over a dmsg stream, and its answer, or the rest of one that broke off.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use axum::body::Bytes;
use axum::http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use axum::http::response::Parts;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use ringwire_proto::identity::Address;
use serde::Serialize;
use tokio::time::timeout;

use super::events::end_asked;
use super::network::{Network, Target};
use super::part::{Left, Part, Verdict};
use crate::cli::output::{output_failed, print_json, print_text};
use crate::cli::signals::Signals;
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
  ringwire dmsg curl -o image.iso --continue dmsg://03../image.iso   go on where it broke off
  ringwire dmsg curl -X POST -H 'Content-Type: application/json' -d '{\"a\":1}' dmsg://03../api
  ringwire dmsg curl --json dmsg://03../          status, headers and body as one JSON object

A download has all the time it needs, as long as something comes (--silence). It is in FILE.part until it is whole, and then in FILE.
Exits with 0 when there was an answer and all of it came; with --fail only when its status is below 400. A reader of the standard
output that has read enough, such as head, is no failure.")]
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
    /// Go on with what is in FILE.part, if the server still has the same; else begin anew
    #[arg(long = "continue", short = 'C', requires = "output", conflicts_with_all = ["data", "request"])]
    continues: bool,
    /// No progress bar, also on a terminal
    #[arg(long, short = 's')]
    silent: bool,
    /// Show status and headers too
    #[arg(long, short = 'i')]
    include: bool,
    /// Follow redirections, at most 10, to dmsg URLs only
    #[arg(long, short = 'L')]
    location: bool,
    /// Exit with 1 when the status is 400 or more, and write no file
    #[arg(long, short = 'f')]
    fail: bool,
    /// Seconds for everything [default: as long as something comes]
    #[arg(long, short = 'm', value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    max_time: Option<u32>,
    /// Give up when nothing has come for so many seconds; with data, from the answer on
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    silence: u32,
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
    /// As a URL.
    fn text(&self) -> String {
        format!("dmsg://{}{}", self.authority, self.path)
    }

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
    /// Bytes of the file that were there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    continued_at: Option<u64>,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let limit = arguments.max_time.map_or(FOREVER, |seconds| Duration::from_secs(seconds.into()));
    let mut broken = Broken::default();
    // A download that is interrupted says how to go on; anything else may end at once, also while it waits for who reads.
    let mut signals = arguments.output.as_ref().map(|_| Signals::new()).transpose()?;
    let interrupted = async {
        match &mut signals {
            Some(signals) => end_asked(signals).await,
            None => std::future::pending().await,
        }
    };
    let client = arguments.network.connect(1, arguments.json).await?;
    let result = tokio::select! {
        () = interrupted => Err(anyhow!("told to end before all of it had come")),
        result = timeout(limit, perform(&client, &arguments, &mut broken)) => result.unwrap_or_else(|_| {
            Err(anyhow!(
                "no complete answer within {} s: a larger --max-time waits longer, and without it there is no limit",
                limit.as_secs()
            ))
        }),
    };
    client.close().await;
    let status = result.map_err(|error| broken.told(error))?;
    let failed = arguments.fail && status.as_u16() >= 400;
    if failed && !arguments.json {
        // Nobody is left to tell when the error output takes nothing: the exit code says it too.
        writeln!(std::io::stderr(), "ringwire: the answer is {status}").ok();
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Longer than anybody waits; the timer's wheel takes it.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What of a download is there when it fails.
#[derive(Debug, Default)]
struct Broken {
    part: Option<PathBuf>,
    can_continue: bool,
}

impl Broken {
    /// What was said of the failure, and what to do with what came.
    fn told(self, error: anyhow::Error) -> anyhow::Error {
        let Some(part) = self.part else { return error };
        let part = part.display();
        if self.can_continue {
            anyhow!("{error}. What came is in {part}: go on with the same command and --continue")
        } else {
            anyhow!(
                "{error}. What came is in {part}; the server did not say of what version it is, so begin anew"
            )
        }
    }
}

/// What comes within the time that may pass in silence.
async fn heard<T>(arguments: &Arguments, what: &str, work: impl Future<Output = T>) -> anyhow::Result<T> {
    let heard = timeout(Duration::from_secs(arguments.silence.into()), work).await;
    heard.map_err(|_| anyhow!("{what} within {} s; a larger --silence waits longer", arguments.silence))
}

async fn perform(client: &Client, arguments: &Arguments, broken: &mut Broken) -> anyhow::Result<StatusCode> {
    // Of the URL as it was typed: where it leads may change.
    let url = arguments.url.text();
    let path = arguments.output.as_deref();
    let mut left = path.filter(|_| arguments.continues).and_then(|path| Left::of(path, &url));
    if arguments.continues && left.is_none() {
        say("there is nothing to continue: all of it is fetched");
    }
    let body = match arguments.data.as_deref().map(|data| (data, data.strip_prefix('@'))) {
        Some((_, Some(path))) => Some(Bytes::from(
            tokio::fs::read(path).await.map_err(|error| anyhow!("cannot read {path}: {error}"))?,
        )),
        Some((data, None)) => Some(Bytes::from(data.to_owned())),
        None => None,
    };
    loop {
        let (response, location) = ask(client, arguments, body.clone(), left.as_ref()).await?;
        let status = response.status();
        let (Some(path), Some(known)) = (path, &left) else {
            show(response, arguments, &location, None, broken).await?;
            return Ok(status);
        };
        match known.judge(status, response.headers()) {
            Verdict::Rest(known) => {
                show(response, arguments, &location, Some(&known), broken).await?;
                return Ok(status);
            }
            Verdict::Whole => {
                Part::whole(path, &url, known).await?;
                say("it was whole already");
                return Ok(StatusCode::OK);
            }
            Verdict::All => {
                say("the server has another version, or does not send parts: all of it is fetched");
                show(response, arguments, &location, None, broken).await?;
                return Ok(status);
            }
            Verdict::Useless(reason) => {
                say(&format!("{reason}: all of it is fetched"));
                left = None;
            }
            Verdict::Other => {
                bail!("the answer is {status}; what came before stays: try again, with --continue, later")
            }
        }
    }
}

/// Asks, for what is behind `left` if there is something, and follows redirections. Returns also who has answered.
async fn ask(
    client: &Client,
    arguments: &Arguments,
    mut body: Option<Bytes>,
    left: Option<&Left>,
) -> anyhow::Result<(Response<Incoming>, Location)> {
    let mut location = arguments.url.clone();
    let mut headers = arguments.header.clone();
    headers.extend(left.and_then(Left::headers).into_iter().flatten());
    let implied = if body.is_some() { Method::POST } else { Method::GET };
    let mut method = arguments.request.clone().unwrap_or(implied);
    for _ in 0..=REDIRECTS_MAX {
        let sent = send(client, &location, &method, &headers, body.clone());
        let what = format!("no answer from {}", location.authority);
        // What is sent takes its time as well, and nothing comes meanwhile.
        let response = if body.is_some() { sent.await? } else { heard(arguments, &what, sent).await?? };
        let status = response.status();
        let to = response.headers().get(LOCATION).filter(|_| status.is_redirection() && arguments.location);
        let Some(to) = to else { return Ok((response, location)) };
        let to = to.to_str().map_err(|_| anyhow!("the redirection's target is not readable"))?;
        location = location.follow(to).map_err(|error| anyhow!(error))?;
        // As browsers do: what was posted is not posted again elsewhere, unless the status says so.
        if !matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT)
            && method != Method::HEAD
        {
            (method, body) = (Method::GET, None);
        }
    }
    bail!("more than {REDIRECTS_MAX} redirections, the last one to {}", location.text())
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

/// One line to whoever looks.
fn say(text: &str) {
    writeln!(std::io::stderr(), "ringwire: {text}").ok();
}

/// How far a download is, for who watches it on a terminal.
fn progress(arguments: &Arguments, head: &Parts, begins_at: u64) -> ProgressBar {
    if arguments.silent || arguments.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length =
        head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let template = match length {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left",
        None => "{spinner} {bytes} {binary_bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = match length {
        Some(length) => ProgressBar::new(begins_at + length),
        None => ProgressBar::new_spinner(),
    };
    bar.set_style(style);
    bar.set_position(begins_at);
    bar.reset_eta();
    bar
}

async fn show(
    response: Response<Incoming>,
    arguments: &Arguments,
    location: &Location,
    left: Option<&Left>,
    broken: &mut Broken,
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
    let wanted = arguments.output.as_deref().filter(|_| !(arguments.fail && head.status.as_u16() >= 400));
    let path = wanted.unwrap_or(Path::new(""));
    let file_failed = |error: std::io::Error| {
        anyhow!(
            "cannot write {}: {error}; make room or grant access there, or name another file",
            path.display()
        )
    };
    let mut file = match wanted {
        Some(path) => {
            let url = arguments.url.text();
            let part =
                Part::begin(path, &url, head.status, &head.headers, left).await.map_err(file_failed)?;
            *broken = Broken { part: Some(part.shown().to_owned()), can_continue: part.can_continue };
            Some(part)
        }
        None => None,
    };
    let begins_at = file.as_ref().map_or(0, |part| part.begins_at);
    let bar = if file.is_some() { progress(arguments, &head, begins_at) } else { ProgressBar::hidden() };
    let mut kept = Vec::new();
    let mut body_bytes = 0;
    let came = async {
        while let Some(frame) = heard(arguments, "nothing more came", body.frame()).await? {
            let broke = |error| anyhow!("the body broke off after {body_bytes} bytes: {error}");
            let Ok(piece) = frame.map_err(broke)?.into_data() else { continue };
            body_bytes += piece.len() as u64;
            bar.inc(piece.len() as u64);
            match &mut file {
                Some(file) => file.write(&piece).await.map_err(file_failed)?,
                None if arguments.json => {
                    if kept.len() + piece.len() > JSON_BODY_BYTES_MAX {
                        bail!(
                            "the body is longer than {JSON_BODY_BYTES_MAX} bytes: write it to a file with -o FILE"
                        );
                    }
                    kept.extend_from_slice(&piece);
                }
                None => match std::io::stdout().write_all(&piece) {
                    // Who reads has enough.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
                    written => written.map_err(output_failed)?,
                },
            }
        }
        Ok(())
    };
    let came = came.await;
    bar.finish_and_clear();
    let is_file = file.is_some();
    match (file, came) {
        (Some(part), Ok(())) => {
            if let Some((there, whole)) = part.missing() {
                part.leave().await;
                bail!("the server sent a part of the rest: there are {there} of {whole} bytes");
            }
            part.finish().await.map_err(file_failed)?;
            *broken = Broken::default();
        }
        (Some(part), Err(error)) => {
            part.leave().await;
            return Err(error);
        }
        (None, came) => came?,
    }
    if !arguments.json {
        return match std::io::stdout().flush() {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(output_failed(error)),
            Ok(()) | Err(_) => Ok(()),
        };
    }
    let mut headers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &head.headers {
        headers
            .entry(name.as_str())
            .or_default()
            .push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let (text, hex) = match String::from_utf8(kept) {
        _ if is_file => (None, None),
        Ok(text) => (Some(text), None),
        Err(bytes) => (None, Some(hex(bytes.as_bytes()))),
    };
    let report = Report {
        url: location.text(),
        status: head.status.as_u16(),
        headers,
        body_bytes,
        body: text,
        body_hex: hex,
        file: wanted,
        continued_at: (begins_at > 0).then_some(begins_at),
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

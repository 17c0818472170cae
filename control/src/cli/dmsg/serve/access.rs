//! The access log: a line for each request, on the error output.
//!
//! In: requests and their answers. Out: when, who, what, which status, how many bytes. A line is written once the answer is
//! over, whichever way. Nobody waits for whoever reads the lines: they go through a bounded queue, and those that find it
//! full are counted.

use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, WorkerGuard};

use crate::http::Caller;

/// Longest path in a line, in characters.
const PATH_CHARS_MAX: usize = 1024;

/// Where lines go.
#[derive(Debug, Clone)]
pub(super) struct AccessLog {
    writer: NonBlocking,
    json: bool,
}

/// Writes out what is queued when it is dropped.
pub(super) struct Writer {
    _guard: WorkerGuard,
    dropped: ErrorCounter,
}

impl AccessLog {
    pub(super) fn start(json: bool) -> (Self, Writer) {
        let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
        let dropped = writer.error_counter();
        (Self { writer, json }, Writer { _guard: guard, dropped })
    }
}

impl Writer {
    /// Lines that nobody took.
    pub(super) fn dropped_lines(&self) -> usize {
        self.dropped.dropped_lines()
    }
}

#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    time: String,
    peer: &'a str,
    method: &'a str,
    path: &'a str,
    /// Nothing when the request was cut off before its answer.
    status: Option<u16>,
    /// Of the body, handed to the connection.
    bytes: u64,
}

/// A request; its line is written when it is dropped.
struct Entry {
    log: AccessLog,
    time: SystemTime,
    peer: String,
    method: String,
    path: String,
    status: Option<u16>,
    bytes: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Self { log, time, peer, method, path, status, bytes } = self;
        let time = humantime::format_rfc3339_millis(*time).to_string();
        let line = if log.json {
            let line = Line { event: "request", time, peer, method, path, status: *status, bytes: *bytes };
            // String keys and numbers, which always have a JSON form.
            serde_json::to_string(&line).unwrap_or_default()
        } else {
            let status = status.map_or_else(|| "-".to_owned(), |status| status.to_string());
            format!("{time} {peer} {method} {path} {status} {bytes}")
        };
        // One write is one line of the queue; a full one counts it.
        log.writer.write_all(format!("{line}\n").as_bytes()).ok();
    }
}

/// Answers a request, and writes its line afterwards.
pub(super) async fn note(State(log): State<AccessLog>, request: Request, next: Next) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut entry = Entry {
        log,
        time: SystemTime::now(),
        peer: request.extensions().get::<Caller>().map(Caller::to_string).unwrap_or_default(),
        method: request.method().to_string(),
        path: escaped(path),
        status: None,
        bytes: 0,
    };
    let response = next.run(request).await;
    entry.status = Some(response.status().as_u16());
    response.map(|body| Body::new(Counted { body, entry }))
}

/// Nothing in it moves a terminal or ends a line, and spaces part the columns.
fn escaped(path: &str) -> String {
    let mut text: String =
        path.chars().flat_map(char::escape_default).collect::<String>().replace(' ', "%20");
    // Escapes are ASCII.
    if text.len() > PATH_CHARS_MAX {
        text.truncate(PATH_CHARS_MAX);
        text.push_str("...");
    }
    text
}

/// A body whose bytes are counted as they leave.
struct Counted {
    body: Body,
    entry: Entry,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.entry.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_their_line_and_column() {
        assert_eq!(escaped("/a%20b?c=d"), "/a%20b?c=d");
        assert_eq!(escaped("/\u{1b}[2J\n\u{202e}\u{e9} \""), "/\\u{1b}[2J\\n\\u{202e}\\u{e9}%20\\\"");
        assert_eq!(escaped(&"x".repeat(5000)).len(), PATH_CHARS_MAX + 3);
    }
}

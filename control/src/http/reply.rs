//! Answers of services, and bodies of requests.
//!
//! The shape is that of the dmsg discovery, `{"message":"…","code":N}`, for errors and successes alike (services 1.9).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use serde::Serialize;

/// The media type of nearly all answers.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// 200 with a JSON text.
    Json(String),
    /// The same with a text that others have too.
    Shared(Bytes),
    /// `{"message":"…","code":N}`.
    Message(StatusCode, String),
    /// Nothing but a status.
    Status(StatusCode),
}

impl Reply {
    /// `{"message":"…","code":N}` with this status.
    pub fn message(status: StatusCode, text: impl Into<String>) -> Self {
        Self::Message(status, text.into())
    }

    /// 200 with `value` as JSON. A value that has no JSON form is a fault of ours and answered with 500.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(text) => Self::Json(text),
            Err(error) => Self::message(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// What is answered where nothing is (services vector "unknown path").
    pub async fn unknown_path() -> Response {
        let plain = [(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))];
        (StatusCode::NOT_FOUND, plain, "404 page not found\n").into_response()
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Message {
            message: String,
            code: u16,
        }

        match self {
            Self::Json(text) => ([(CONTENT_TYPE, JSON)], text).into_response(),
            Self::Shared(text) => ([(CONTENT_TYPE, JSON)], text).into_response(),
            Self::Message(status, message) => {
                let Self::Json(text) = Self::json(&Message { message, code: status.as_u16() }) else {
                    return StatusCode::INTERNAL_SERVER_ERROR.into_response();
                };
                (status, [(CONTENT_TYPE, JSON)], text).into_response()
            }
            Self::Status(status) => status.into_response(),
        }
    }
}

/// 200 with a JSON text of `bytes` bytes that lies in pieces: it is put together nowhere, and a piece that others have too
/// costs nothing while this answer is not read.
pub fn json_pieces(bytes: usize, pieces: impl Iterator<Item = Bytes> + Send + Unpin + 'static) -> Response {
    let left = u64::try_from(bytes).unwrap_or(u64::MAX);
    ([(CONTENT_TYPE, JSON)], Body::new(Pieces { pieces, left })).into_response()
}

struct Pieces<I> {
    pieces: I,
    /// Bytes to come.
    left: u64,
}

impl<I: Iterator<Item = Bytes> + Unpin> hyper::body::Body for Pieces<I> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.next();
        self.left = self.left.saturating_sub(piece.as_ref().map_or(0, |piece| piece.len() as u64));
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The body of a request, or the answer to one that is too long or breaks off.
pub fn body_of(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Reply> {
    body.map_err(|rejection| Reply::message(rejection.status(), rejection.body_text()))
}

//! Answers of services, and bodies of requests.
//!
//! The shape is that of the dmsg discovery, `{"message":"…","code":N}`, for errors and successes alike (services 1.9).

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The media type of nearly all answers.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// 200 with a JSON text.
    Json(String),
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

/// The body of a request, or the answer to one that is too long or breaks off.
pub fn body_of(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Reply> {
    body.map_err(|rejection| Reply::message(rejection.status(), rejection.body_text()))
}

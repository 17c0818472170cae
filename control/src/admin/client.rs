//! The asking side: what the command line uses.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::model::Failure;
use crate::state::State;

/// How long an answer may take: a stop waits for the data plane's end.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No control plane listens.
    #[error(
        "no control plane answers on {path}; start one with: ringwire run (it attaches to a data plane that still runs), \
         or look at: ringwire status"
    )]
    Absent {
        /// The socket.
        path: String,
    },
    /// It is another user's.
    #[error("the server at {path} is another user's; run this command as that user, or as root")]
    Denied {
        /// The socket.
        path: String,
    },
    /// The conversation failed.
    #[error("the control plane did not answer: {0}; look at: ringwire status")]
    Http(reqwest::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// A way to ask the control plane of a state directory.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    path: String,
}

impl Client {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Http`]: no client can be made.
    pub fn new(state: &State) -> Result<Self, ClientError> {
        let path = state.control_socket();
        let http = reqwest::Client::builder()
            .unix_socket(path.clone())
            .timeout(ANSWER_LIMIT)
            .build()
            .map_err(ClientError::Http)?;
        Ok(Self { http, path: path.display().to_string() })
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`ClientError::Absent`]: the control plane does not run.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(self.http.get(url(path))).await
    }

    /// Tells it to do something.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send(self.http.post(url(path)).json(body)).await
    }

    /// Tells it to set something.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send(self.http.put(url(path)).json(body)).await
    }

    /// Whether the socket is why nothing comes: we may not see it, or it answers its owner alone.
    fn is_anothers(&self) -> bool {
        let owner = std::fs::symlink_metadata(&self.path).map(|metadata| metadata.uid());
        is_denied(owner, rustix::process::geteuid().as_raw())
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, ClientError> {
        let response = request.send().await.map_err(|error| {
            if self.is_anothers() {
                ClientError::Denied { path: self.path.clone() }
            } else if error.is_connect() {
                ClientError::Absent { path: self.path.clone() }
            } else {
                ClientError::Http(error)
            }
        })?;
        if response.status().is_success() {
            return response.json().await.map_err(ClientError::Http);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let failure = serde_json::from_str::<Failure>(&text);
        Err(ClientError::Refused(
            failure.map_or_else(|_| format!("{status}: {text}"), |failure| failure.error),
        ))
    }
}

/// The host is of no meaning on a Unix socket.
fn url(path: &str) -> String {
    format!("http://ringwire{path}")
}

/// Whether a socket of this owner does not answer this user.
fn is_denied(owner: io::Result<u32>, own: u32) -> bool {
    match owner {
        Ok(owner) => own != 0 && own != owner,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_answers_its_owner_and_root() {
        assert!(!is_denied(Ok(1000), 1000) && !is_denied(Ok(1000), 0));
        assert!(is_denied(Ok(1000), 1001) && is_denied(Ok(0), 1001));
        assert!(is_denied(Err(io::ErrorKind::PermissionDenied.into()), 1001));
        assert!(!is_denied(Err(io::ErrorKind::NotFound.into()), 1001), "then nothing runs");
    }
}

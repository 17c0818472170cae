//! The asking side: what the command line uses.

use std::error::Error as _;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use super::model::{Alive, Failure};
use crate::state::State;
use crate::state::lock::Holder;

/// Where a control plane says nothing but that it is alive.
const ALIVE: &str = "/v1/alive";

/// How long an answer may take: a stop waits for the data plane's end.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// After this time without an answer, and again and again, the control plane is asked whether it is alive.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How long it may take to say so until the kernel is asked what its process does.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// How long it may say nothing while its process is not stopped: a machine may be busy.
const SILENCE_MAX: Duration = Duration::from_secs(6);

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
    /// Its process is there and does not answer.
    #[error("{}", silent(*.pid, *.condition, *.ordered))]
    Silent {
        /// Its process, if that is known.
        pid: Option<u32>,
        /// The kernel's letter for what that does.
        condition: Option<char>,
        /// It was told to do something, and may do it yet.
        ordered: bool,
    },
    /// The conversation failed.
    #[error("the control plane did not answer: {0}; look at: ringwire status")]
    Http(reqwest::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// What is said of a control plane that does not answer.
fn silent(pid: Option<u32>, condition: Option<char>, ordered: bool) -> String {
    let process = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
    let number = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    let (found, cure) = match condition {
        Some(letter @ ('T' | 't')) => (
            format!("it is stopped (state {letter})"),
            format!("Wake it with: kill -CONT {number}, or end it with: kill -KILL {number}"),
        ),
        condition => {
            let letter = condition.map_or_else(String::new, |letter| format!(" (state {letter})"));
            let found = format!("it has said nothing for {} s{letter}", SILENCE_MAX.as_secs());
            (
                found,
                format!(
                    "Its log may say why; end it with: kill -KILL {number}, and start another with: ringwire run"
                ),
            )
        }
    };
    let done = if ordered { "What it was told it may do yet" } else { "Nothing was changed" };
    format!(
        "the control plane{process} does not answer: {found}. {done}. {cure}. Sessions go on without it; the data plane says \
         more: ringwire show sessions --from dataplane"
    )
}

/// A way to ask the control plane of a state directory.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    state: State,
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
        Ok(Self { http, state: state.clone(), path: path.display().to_string() })
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`ClientError::Absent`]: the control plane does not run.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(self.http.get(url(path)), false).await
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
        self.order(self.http.post(url(path)).json(body)).await
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
        self.order(self.http.put(url(path)).json(body)).await
    }

    /// Whether the socket is why nothing comes: we may not see it, or it answers its owner alone.
    fn is_anothers(&self) -> bool {
        let owner = std::fs::symlink_metadata(&self.path).map(|metadata| metadata.uid());
        is_denied(owner, rustix::process::geteuid().as_raw())
    }

    /// Sends an order to a control plane that is alive: one that is not would carry it out whenever it goes on.
    async fn order<T: DeserializeOwned>(&self, order: reqwest::RequestBuilder) -> Result<T, ClientError> {
        match self.send::<Alive>(self.http.get(url(ALIVE)), false).await {
            // One of an older build answers, but not to that.
            Ok(_) | Err(ClientError::Refused(_)) => self.send(order, true).await,
            Err(error) => Err(error),
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        ordered: bool,
    ) -> Result<T, ClientError> {
        let sent = tokio::select! {
            sent = request.send() => sent,
            condition = self.silence() => return Err(self.silent(condition, ordered)),
        };
        let response = sent.map_err(|error| {
            if self.is_anothers() {
                ClientError::Denied { path: self.path.clone() }
            } else if is_crowded(&error) {
                self.silent(self.condition(), false)
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

    /// Ends when the control plane turns out not to answer at all, with what its process does.
    async fn silence(&self) -> Option<char> {
        let mut silent_since = Instant::now();
        loop {
            sleep(PROBE_INTERVAL).await;
            let probe = self.http.get(url(ALIVE)).send();
            if timeout(PROBE_LIMIT, probe).await.is_ok() {
                // That it hangs up or refuses is for the request to find out.
                silent_since = Instant::now();
                continue;
            }
            let condition = self.condition();
            if matches!(condition, Some('T' | 't')) || silent_since.elapsed() >= SILENCE_MAX {
                return condition;
            }
        }
    }

    fn condition(&self) -> Option<char> {
        Holder::of(&self.state).and_then(|holder| holder.condition())
    }

    fn silent(&self, condition: Option<char>, ordered: bool) -> ClientError {
        ClientError::Silent { pid: Holder::of(&self.state).map(|holder| holder.pid), condition, ordered }
    }
}

/// Whether as many wait for the socket as it has room for: whoever listens there takes none of them.
fn is_crowded(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return true;
        }
        cause = error.source();
    }
    false
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

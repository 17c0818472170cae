//! Requests to a discovery over HTTP (dmsg-wire 12.3, services 2.3).
//!
//! In: the URL of a discovery; keys and signed entries. Out: entries, or a [`DiscoveryError`]. Used by the
//! registration of the server, by the dmsg client and by the checks. Nothing is retried here and no redirection is
//! followed: who calls knows what a repetition costs. Every request ends within ten seconds and every answer is
//! bounded.

use std::error::Error as _;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use ringwire_proto::entry::Entry;
use ringwire_proto::identity::PublicKey;
use serde::Deserialize;

use super::error::{DiscoveryError, ENTRY_NOT_FOUND, NO_SERVERS, Refusal};
use crate::http::Health;

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for a whole answer, connection included.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Longest answer to anything but a list, in bytes. The longest entry of a visor is below 3 KiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest list, in bytes: some ten thousand servers.
const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How much of a discovery's words goes into an error text, in characters.
const EXCERPT_CHARS_MAX: usize = 200;
/// The wait after a 429 that names none.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);
/// A 429 that asks for more than this is not taken at its word.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// One discovery. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DiscoveryClient {
    /// Without query, fragment or a slash at the end.
    url: String,
    http: reqwest::Client,
    limit: Duration,
}

/// What a discovery answers when it is not an entry or a list; successes too (services 1.9).
#[derive(Deserialize)]
struct Message {
    message: String,
}

impl DiscoveryClient {
    /// A client of the discovery at `url`, such as `http://dmsgd.example`. Connects to nothing yet.
    ///
    /// # Errors
    /// [`DiscoveryError::Url`], [`DiscoveryError::Setup`].
    pub fn new(url: &str) -> Result<Self, DiscoveryError> {
        let parsed = parse(url)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("ringwire/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            // Requests are rare, and a connection that is kept fails the first one after the discovery was restarted.
            .pool_max_idle_per_host(0)
            .tcp_nodelay(true);
        if parsed.scheme() == "http" {
            // Reading the system's certificates takes time and fails where there are none.
            builder = builder.tls_certs_only([]);
        }
        if is_local(&parsed) {
            builder = builder.no_proxy();
        }
        let url = parsed.as_str().trim_end_matches('/').to_owned();
        let http = builder
            .build()
            .map_err(|error| DiscoveryError::Setup { url: url.clone(), reason: causes(&error) })?;
        Ok(Self { url, http, limit: REQUEST_LIMIT })
    }

    /// The same with another limit on whole requests.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The discovery's URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// True when the discovery is on this machine, as far as its URL tells.
    pub fn is_local(&self) -> bool {
        Url::parse(&self.url).is_ok_and(|url| is_local(&url))
    }

    /// The entry of `key`. Its signature is not checked: stored server entries do not verify any more (services 2.2,
    /// step 6); [`Entry::verify`] is there for entries of clients.
    ///
    /// # Errors
    /// [`DiscoveryError::NotFound`] exactly when the discovery itself says so; the others as they are named.
    pub async fn entry(&self, key: &PublicKey) -> Result<Entry, DiscoveryError> {
        let answer = self.request(Method::GET, &format!("dmsg-discovery/entry/{key}"), None).await?;
        if answer.status != StatusCode::OK {
            return Err(if answer.says(StatusCode::NOT_FOUND, ENTRY_NOT_FOUND) {
                DiscoveryError::NotFound { url: self.url.clone(), key: *key }
            } else {
                self.unexpected(answer)
            });
        }
        let entry = Entry::from_json(&answer.body).map_err(|error| self.malformed(&error))?;
        if entry.static_key != Some(*key) {
            return Err(self.malformed(&"the entry of another key"));
        }
        Ok(entry)
    }

    /// Servers with room for more sessions, at most 512, the emptiest first; none is an empty list.
    ///
    /// # Errors
    /// As [`Self::entry`], never [`DiscoveryError::NotFound`].
    pub async fn available_servers(&self) -> Result<Vec<Entry>, DiscoveryError> {
        self.servers("dmsg-discovery/available_servers").await
    }

    /// All servers, full ones too, in no order; none is an empty list.
    ///
    /// # Errors
    /// As [`Self::entry`], never [`DiscoveryError::NotFound`].
    pub async fn all_servers(&self) -> Result<Vec<Entry>, DiscoveryError> {
        self.servers("dmsg-discovery/all_servers").await
    }

    async fn servers(&self, path: &str) -> Result<Vec<Entry>, DiscoveryError> {
        let answer = self.request(Method::GET, path, None).await?;
        if answer.says(StatusCode::NOT_FOUND, NO_SERVERS) {
            return Ok(Vec::new());
        }
        if answer.status != StatusCode::OK {
            return Err(self.unexpected(answer));
        }
        let mut entries = Entry::list_from_json(&answer.body).map_err(|error| self.malformed(&error))?;
        entries.retain(|entry| entry.static_key.is_some() && entry.server.is_some());
        Ok(entries)
    }

    /// Stores a signed entry. The discovery wants a greater sequence than that of the entry it has.
    ///
    /// # Errors
    /// [`DiscoveryError::Refused`] names the rule that was broken; the others as they are named.
    pub async fn put(&self, entry: &Entry) -> Result<(), DiscoveryError> {
        self.send(Method::POST, "dmsg-discovery/entry/", entry).await
    }

    /// Removes the entry whose key signed `entry`. An entry that is not there is no error.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&self, entry: &Entry) -> Result<(), DiscoveryError> {
        self.send(Method::DELETE, "dmsg-discovery/entry", entry).await
    }

    async fn send(&self, method: Method, path: &str, entry: &Entry) -> Result<(), DiscoveryError> {
        let absent_is_fine = method == Method::DELETE;
        let answer = self.request(method, path, Some(entry.to_json())).await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            StatusCode::NOT_FOUND
                if absent_is_fine && answer.says(StatusCode::NOT_FOUND, ENTRY_NOT_FOUND) =>
            {
                Ok(())
            }
            StatusCode::UNAUTHORIZED | StatusCode::UNPROCESSABLE_ENTITY => match answer.message() {
                Some(message) => Err(DiscoveryError::Refused {
                    url: self.url.clone(),
                    refusal: Refusal::of(answer.status.as_u16(), &message),
                    status: answer.status.as_u16(),
                    message,
                }),
                None => Err(self.unexpected(answer)),
            },
            _ => Err(self.unexpected(answer)),
        }
    }

    /// How the discovery is (services 1.3).
    ///
    /// # Errors
    /// As [`Self::entry`], never [`DiscoveryError::NotFound`].
    pub async fn health(&self) -> Result<Health, DiscoveryError> {
        let answer = self.request(Method::GET, "health", None).await?;
        if answer.status != StatusCode::OK {
            return Err(self.unexpected(answer));
        }
        serde_json::from_slice(&answer.body).map_err(|error| self.malformed(&error))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer, DiscoveryError> {
        let body_bytes_max = match path {
            "dmsg-discovery/available_servers" | "dmsg-discovery/all_servers" => LIST_BYTES_MAX,
            _ => ANSWER_BYTES_MAX,
        };
        let mut request = self.http.request(method, format!("{}/{path}", self.url));
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let answer = async {
            let response = request.send().await.map_err(|error| self.unreachable(&error))?;
            self.read(response, body_bytes_max).await
        };
        tokio::time::timeout(self.limit, answer)
            .await
            .unwrap_or_else(|_| Err(DiscoveryError::Timeout { url: self.url.clone(), limit: self.limit }))
    }

    async fn read(&self, mut response: Response, limit_bytes: usize) -> Result<Answer, DiscoveryError> {
        let header = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (location, retry_after) = (header(LOCATION), header(RETRY_AFTER));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + chunk.len() > limit_bytes {
                return Err(DiscoveryError::Oversize { url: self.url.clone(), limit_bytes });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status: response.status(), location, retry_after, body })
    }

    fn unexpected(&self, answer: Answer) -> DiscoveryError {
        let url = self.url.clone();
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = answer.retry_after.and_then(|text| text.parse().ok());
            let retry_after = seconds.map_or(RETRY_AFTER_DEFAULT, Duration::from_secs).min(RETRY_AFTER_MAX);
            return DiscoveryError::RateLimited { url, retry_after };
        }
        let message = answer.message().unwrap_or_else(|| excerpt(&String::from_utf8_lossy(&answer.body)));
        let location = answer.location.filter(|_| answer.status.is_redirection()).map(|text| excerpt(&text));
        DiscoveryError::Status { url, status: answer.status.as_u16(), message, location }
    }

    fn malformed(&self, reason: &impl ToString) -> DiscoveryError {
        DiscoveryError::Malformed { url: self.url.clone(), reason: reason.to_string() }
    }

    fn unreachable(&self, error: &reqwest::Error) -> DiscoveryError {
        let url = self.url.clone();
        if error.is_timeout() {
            return DiscoveryError::Timeout { url, limit: self.limit.min(CONNECT_LIMIT) };
        }
        DiscoveryError::Unreachable { url, reason: causes(error) }
    }
}

/// A whole answer.
struct Answer {
    status: StatusCode,
    location: Option<String>,
    retry_after: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    /// The discovery's own words, if it is a discovery that speaks.
    fn message(&self) -> Option<String> {
        let message: Message = serde_json::from_slice(&self.body).ok()?;
        Some(excerpt(&message.message))
    }

    /// True when status and words agree: something before the discovery can answer with either.
    fn says(&self, status: StatusCode, words: &str) -> bool {
        self.status == status && self.message().is_some_and(|message| message.contains(words))
    }
}

/// The start of somebody else's text, as one line that moves no terminal.
fn excerpt(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        return "no text".to_owned();
    }
    line.chars().filter(|character| !character.is_control()).take(EXCERPT_CHARS_MAX).collect()
}

fn parse(text: &str) -> Result<Url, DiscoveryError> {
    let refuse = |reason: String| DiscoveryError::Url { text: text.to_owned(), reason };
    let url = Url::parse(text).map_err(|error| refuse(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse(format!("scheme {:?} instead of http or https", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it holds a user name or a password".to_owned()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("it holds a query or a fragment".to_owned()));
    }
    Ok(url)
}

fn is_local(url: &Url) -> bool {
    // An IPv6 address stands in brackets here.
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.to_canonical().is_loopback())
}

/// An error with its causes; the library's own text holds only the outermost.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, url, local) in [
            ("http://dmsgd.example", "http://dmsgd.example", false),
            ("https://dmsgd.example/", "https://dmsgd.example", false),
            ("http://10.0.0.7:9090/base/", "http://10.0.0.7:9090/base", false),
            ("http://localhost:9090", "http://localhost:9090", true),
            ("http://127.0.0.2:9090", "http://127.0.0.2:9090", true),
            ("http://[::1]:9090", "http://[::1]:9090", true),
        ] {
            let client = DiscoveryClient::new(text).unwrap();
            assert_eq!(client.url(), url);
            assert_eq!(client.is_local(), local, "{text}");
        }
        for text in
            ["", "dmsgd.example", "ftp://x", "http://", "http://u:p@x", "http://x?y", "dmsg://02ab:80"]
        {
            let error = DiscoveryClient::new(text).unwrap_err();
            assert!(matches!(error, DiscoveryError::Url { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn refusals_are_told_apart_by_their_words() {
        for (status, message, refusal) in [
            (
                422,
                "entry validation error: sequence field of new entry is not sequence of old entry + 1",
                Refusal::Sequence,
            ),
            (
                422,
                "entry validation error: advertised entry timestamp is not greater than previous",
                Refusal::TimestampOrder,
            ),
            (422, "entry validation error: advertised entry has outdated timestamp", Refusal::Clock),
            (
                422,
                "entry validation error: advertising localhost listening address is not allowed in production mode",
                Refusal::Loopback,
            ),
            (401, "invalid signature", Refusal::Signature),
            (422, "entry validation error: entry has no version", Refusal::Other),
        ] {
            assert_eq!(Refusal::of(status, message), refusal, "{message}");
        }
    }
}

//! The embedded discovery, as somebody uses it who speaks HTTP by hand.
//!
//! In: where it listens, an address to come from. Out: answers, and the [`Figures`] of a client that keeps its own entry
//! and looks for the server's. Blocking and without a pool of connections: attacks leave answers unread on purpose. Called by
//! [`super::honest`] and the attacks on the discovery.

use anyhow::{Context, Result, bail};
use ringwire_proto::entry::{ClientPart, ENTRY_VERSION, Entry, ServerPart};
use ringwire_proto::identity::{PublicKey, SecretKey};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const ANSWER_LEN_MAX: u64 = 256 << 20;
/// Time between two visits of the honest client.
const VISIT_INTERVAL: Duration = Duration::from_millis(100);
/// The address in made-up entries: documentation's, nobody is there.
const NOBODY: &str = "203.0.113.1:8081";

/// Where a discovery is, and from where it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// Where it listens.
    pub address: SocketAddr,
    /// The address to come from.
    pub source: IpAddr,
}

impl Door {
    /// A connection with a request on it, whose answer is not read yet.
    ///
    /// # Errors
    /// The socket's.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        body: &str,
        receive_buffer: Option<usize>,
    ) -> Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
        if let Some(len) = receive_buffer {
            socket.set_recv_buffer_size(len)?;
        }
        socket.bind(&SocketAddr::new(self.source, 0).into())?;
        socket.connect_timeout(&self.address.into(), ANSWER_LIMIT)?;
        let mut socket = TcpStream::from(socket);
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        socket.set_write_timeout(Some(ANSWER_LIMIT))?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: discovery\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        socket.write_all(request.as_bytes())?;
        Ok(socket)
    }

    /// A request and its whole answer: status and body.
    ///
    /// # Errors
    /// When none comes or it is not HTTP.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<(u16, Vec<u8>)> {
        let mut answer = Vec::new();
        self.ask(method, path, body, None)?.take(ANSWER_LEN_MAX).read_to_end(&mut answer)?;
        parse(&answer)
    }

    /// The text of a key's entry; none when there is none.
    ///
    /// # Errors
    /// When the discovery does not answer or says something else.
    pub fn entry(&self, key: &PublicKey) -> Result<Option<Vec<u8>>> {
        match self.request("GET", &format!("/dmsg-discovery/entry/{key}"), "")? {
            (200, body) => Ok(Some(body)),
            (404, _) => Ok(None),
            (status, _) => bail!("the discovery answered {status}"),
        }
    }

    /// Posts an entry; false when it is refused.
    ///
    /// # Errors
    /// When the discovery does not answer.
    pub fn post(&self, entry: &Entry) -> Result<bool> {
        Ok(self.request("POST", "/dmsg-discovery/entry/", &entry.to_json())?.0 == 200)
    }

    /// All servers it lists.
    ///
    /// # Errors
    /// When the discovery does not answer or with something that is no list.
    pub fn servers(&self) -> Result<Vec<Entry>> {
        match self.request("GET", "/dmsg-discovery/all_servers", "")? {
            (200, body) => Ok(Entry::list_from_json(&body)?),
            (404, _) => Ok(Vec::new()),
            (status, _) => bail!("the discovery answered {status}"),
        }
    }
}

/// Status and body of an answer that ended with its connection.
fn parse(answer: &[u8]) -> Result<(u16, Vec<u8>)> {
    let head_len =
        answer.windows(4).position(|window| window == b"\r\n\r\n").context("no HTTP answer came")? + 4;
    let head = std::str::from_utf8(&answer[..head_len])?.to_ascii_lowercase();
    let status =
        head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("the answer has no status")?;
    let mut body = &answer[head_len..];
    if !head.contains("transfer-encoding: chunked") {
        return Ok((status, body.to_vec()));
    }
    let mut whole = Vec::new();
    loop {
        let line = body.windows(2).position(|window| window == b"\r\n").context("the answer was cut off")?;
        let len = usize::from_str_radix(std::str::from_utf8(&body[..line])?.trim(), 16)?;
        body = &body[line + 2..];
        if len == 0 {
            return Ok((status, whole));
        }
        whole.extend_from_slice(body.get(..len).context("the answer was cut off")?);
        body = body.get(len + 2..).context("the answer was cut off")?;
    }
}

/// A signed entry of a client, with the servers it has sessions with.
///
/// # Errors
/// When the clock is before 1970.
pub fn client_entry(key: &SecretKey, sequence: u64, servers: Vec<PublicKey>) -> Result<Entry> {
    signed(key, sequence, |entry| entry.client = Some(ClientPart { delegated_servers: Some(servers) }))
}

/// A signed entry of a server that is nowhere.
///
/// # Errors
/// When the clock is before 1970.
pub fn server_entry(key: &SecretKey, sequence: u64) -> Result<Entry> {
    let part = ServerPart { address: NOBODY.into(), available_sessions: 2048, ..ServerPart::default() };
    signed(key, sequence, |entry| entry.server = Some(part))
}

/// Whether an entry is one of [`server_entry`]'s.
#[must_use]
pub fn is_made_up(entry: &Entry) -> bool {
    entry.server.as_ref().is_some_and(|server| server.address == NOBODY)
}

fn signed(key: &SecretKey, sequence: u64, fill: impl FnOnce(&mut Entry)) -> Result<Entry> {
    let timestamp_ns = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let mut entry = Entry { version: ENTRY_VERSION.into(), sequence, timestamp_ns, ..Entry::default() };
    fill(&mut entry);
    entry.sign(key);
    Ok(entry)
}

/// What the honest client found at the discovery in one phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// How often it looked for the server's own entry.
    pub looks: u64,
    /// How often that was not there.
    pub own_entry_gone: u64,
    /// How often the honest client's own entry was not there right before it was renewed.
    pub client_entry_gone: u64,
    /// Posts of its entry that were stored.
    pub posts_ok: u64,
    /// Posts that were refused or not answered.
    pub posts_failed: u64,
    /// Requests that were not answered.
    pub unanswered: u64,
}

/// The honest client at the discovery.
pub struct Watch {
    door: Door,
    server: PublicKey,
    key: SecretKey,
    sequence: u64,
}

impl Watch {
    /// A client with `key` that uses the server `server`.
    #[must_use]
    pub fn new(door: Door, server: PublicKey, key: SecretKey) -> Self {
        Self { door, server, key, sequence: 0 }
    }

    /// Looks and posts until the time is over.
    pub(super) fn run(&mut self, until: Instant) -> Figures {
        let mut figures = Figures::default();
        while Instant::now() < until {
            let began = Instant::now();
            figures.looks += 1;
            match self.door.entry(&self.server) {
                Ok(found) => figures.own_entry_gone += u64::from(found.is_none()),
                Err(_) => figures.unanswered += 1,
            }
            if self.sequence > 0 {
                match self.door.entry(&self.key.public_key()) {
                    Ok(found) => figures.client_entry_gone += u64::from(found.is_none()),
                    Err(_) => figures.unanswered += 1,
                }
            }
            self.sequence += 1;
            let entry = client_entry(&self.key, self.sequence, vec![self.server]);
            match entry.and_then(|entry| self.door.post(&entry)) {
                Ok(true) => figures.posts_ok += 1,
                Ok(false) | Err(_) => figures.posts_failed += 1,
            }
            std::thread::sleep(VISIT_INTERVAL.saturating_sub(began.elapsed()));
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_plain_and_in_chunks() {
        let plain = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        assert_eq!(parse(plain).unwrap(), (404, b"no".to_vec()));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), (200, b"abcd".to_vec()));
        assert!(parse(&chunked[..chunked.len() - 8]).is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn entries_verify() {
        let key = super::super::wire::fresh_key();
        let server = server_entry(&key, 1).unwrap();
        server.verify().unwrap();
        assert!(is_made_up(&server));
        let client = client_entry(&key, 1, vec![key.public_key()]).unwrap();
        client.verify().unwrap();
        assert!(!is_made_up(&client));
    }
}

//! Reaching a key: one attempt after the other, over the servers most likely to know it (dmsg-wire 15, control-plane 6).
//!
//! In: a destination. Out: a stream, or [`ReachError`] with what was tried. Attempts never race: two sessions of one
//! key with one server evict each other. Dropping the future leaves nothing behind; nothing watches a stream that was
//! handed over.

use std::collections::HashSet;
use std::sync::Arc;

use ringwire_proto::entry::Entry;
use ringwire_proto::identity::{Address, PublicKey};
use ringwire_proto::object::ErrorCode;
use tokio::time::{Instant, timeout};

use super::directory::{DirectoryError, delegated_servers};
use super::error::{Cause, ReachError, SessionError};
use super::inner::Inner;
use crate::dmsg::address::ServerAddress;
use crate::dmsg::error::DialError;
use crate::dmsg::session::Session;
use crate::dmsg::stream::Stream;

/// Attempts over sessions that exist, in each of the two phases.
const ATTEMPTS_MAX: usize = 16;

/// Attempts over sessions made for the purpose.
const NEW_SESSIONS_MAX: usize = 2;

/// Dials `destination` within the client's limit.
pub(super) async fn dial(inner: &Arc<Inner>, destination: Address) -> Result<Stream, ReachError> {
    if destination.port == 0 {
        return Err(DialError::PortZero.into());
    }
    if inner.table().is_closed() {
        return Err(ReachError::Closed);
    }
    if let Some(left) = inner.memory().backed_off(destination, Instant::now()) {
        return Err(ReachError::BackedOff { destination, left });
    }
    let mut search = Search { inner, destination, tried: HashSet::new(), causes: Vec::new() };
    let limit = inner.config.dial_limit;
    match timeout(limit, search.run()).await {
        Ok(Ok(Some(stream))) => return Ok(stream),
        Ok(Ok(None)) => {}
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => search.note(None, format!("the time for the whole dial, {limit:?}, is used up")),
    }
    let causes = search.causes;
    if inner.table().is_closed() {
        return Err(ReachError::Closed);
    }
    inner.memory().destination_failed(destination, Instant::now());
    Err(ReachError::NoRoute { destination, causes })
}

/// One dial.
struct Search<'a> {
    inner: &'a Arc<Inner>,
    destination: Address,
    /// Servers over which an attempt was made, or that were left out for a reason.
    tried: HashSet<PublicKey>,
    causes: Vec<Cause>,
}

/// A stream, nothing yet, or an error that no other server can help with.
type Step = Result<Option<Stream>, DialError>;

impl Search<'_> {
    async fn run(&mut self) -> Step {
        let key = self.destination.key;
        let cached = self.inner.cached_entry(&key);
        let was_cached = cached.is_some();
        let found = match cached {
            Some(entry) => Ok(Some(entry)),
            None => self.inner.read_entry(key).await,
        };
        let entry = self.noted(found);
        if let Some(stream) = self.over(entry.as_ref()).await? {
            return Ok(Some(stream));
        }
        if !was_cached {
            return Ok(None);
        }
        // The destination may have moved since its entry was read.
        self.inner.memory().forget_entry(&key);
        let fresh = self.inner.read_entry(key).await;
        match self.noted(fresh) {
            Some(fresh) if Some(&fresh) != entry.as_ref() => self.over(Some(&fresh)).await,
            Some(_) | None => Ok(None),
        }
    }

    /// All phases for one entry, or for none.
    async fn over(&mut self, entry: Option<&Entry>) -> Step {
        let delegated = entry.map(|entry| self.delegated(entry)).unwrap_or_default();
        let worked = self.inner.memory().worked(&self.destination.key);
        // The destination itself counts first when it is a server: its own client is connected to it.
        let first = [worked, Some(self.destination.key)].into_iter().flatten();
        let existing = self.inner.table().by_latency().iter().map(|seat| seat.server.key).collect::<Vec<_>>();
        let (at_delegated, others): (Vec<_>, Vec<_>) =
            existing.iter().copied().partition(|server| delegated.contains(server));

        let known = first.filter(|server| existing.contains(server));
        for server in known.chain(at_delegated.into_iter().take(ATTEMPTS_MAX)).collect::<Vec<_>>() {
            if let Some(stream) = self.over_existing(server).await? {
                return Ok(Some(stream));
            }
        }
        // They may reach it over their peers.
        for server in others.into_iter().take(ATTEMPTS_MAX) {
            if let Some(stream) = self.over_existing(server).await? {
                return Ok(Some(stream));
            }
        }
        let mut made = 0;
        for server in delegated {
            if made == NEW_SESSIONS_MAX {
                break;
            }
            // A session that met this dial with silence is replaced; over any other one it was tried.
            if self.inner.table().is_healthy(&server) {
                continue;
            }
            made += 1;
            if let Some(stream) = self.over_new(server).await? {
                return Ok(Some(stream));
            }
        }
        Ok(None)
    }

    /// The servers an entry names, in its order; a server that is no client is reached over itself.
    fn delegated(&mut self, entry: &Entry) -> Vec<PublicKey> {
        let delegated = delegated_servers(entry).to_vec();
        if !delegated.is_empty() {
            return delegated;
        }
        if ServerAddress::of_entry(entry).is_some() {
            return vec![self.destination.key];
        }
        let code =
            if entry.client.is_some() { ErrorCode::NoDelegatedServers } else { ErrorCode::EntryNotClient };
        self.note(None, code.to_string());
        Vec::new()
    }

    async fn over_existing(&mut self, server: PublicKey) -> Step {
        if !self.tried.insert(server) {
            return Ok(None);
        }
        let seat = self.inner.table().get(&server).map(|seat| (seat.session.clone(), seat.number));
        let Some((session, number)) = seat else {
            self.note(Some(server), "the session ended".to_owned());
            return Ok(None);
        };
        self.attempt(server, number, session).await
    }

    async fn over_new(&mut self, server: PublicKey) -> Step {
        let made = async {
            let address = self.inner.locate(server).await?;
            self.inner.obtain(&address).await
        };
        let session = match made.await {
            Ok(session) => session,
            Err(SessionError::Closed) => return Ok(None),
            Err(error) => {
                self.note(Some(server), error.to_string());
                return Ok(None);
            }
        };
        self.tried.insert(server);
        let number = self.inner.table().get(&server).map_or(0, |seat| seat.number);
        self.attempt(server, number, session).await
    }

    async fn attempt(&mut self, server: PublicKey, number: u64, session: Session) -> Step {
        let (destination, memory) = (self.destination, || self.inner.memory());
        let resting = memory().resting(destination, server, Instant::now()).map(str::to_owned);
        if let Some(cause) = resting {
            self.note(Some(server), format!("failed less than 30 s ago, not tried again yet ({cause})"));
            return Ok(None);
        }
        let before = session.heard_mark();
        let failure = match session.dial(destination).await {
            Ok(stream) => {
                memory().route_worked(destination, server);
                return Ok(Some(stream));
            }
            // These are not the server's doing.
            Err(error @ (DialError::PortZero | DialError::NoPort)) => return Err(error),
            // The destination answered, whichever way it was reached.
            Err(error @ (DialError::Rejected(_) | DialError::NotHybrid(_))) => return Err(error),
            Err(error) => error,
        };
        match &failure {
            DialError::TimedOut { .. } if session.heard_mark() == before => {
                self.inner.suspect((server, number));
            }
            DialError::Unreachable(_) | DialError::TimedOut { .. } | DialError::Fault(_) => {
                memory().route_failed(destination, server, failure.to_string(), Instant::now());
            }
            // The session's matter, not the route's.
            _ => {}
        }
        self.note(Some(server), failure.to_string());
        Ok(None)
    }

    fn noted(&mut self, found: Result<Option<Entry>, DirectoryError>) -> Option<Entry> {
        match found {
            Ok(Some(entry)) => return Some(entry),
            Ok(None) => self.note(None, ErrorCode::EntryNotFound.to_string()),
            Err(error) => self.note(None, format!("its entry could not be read: {error}")),
        }
        None
    }

    fn note(&mut self, server: Option<PublicKey>, text: String) {
        let cause = Cause { server, text };
        if !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }
}

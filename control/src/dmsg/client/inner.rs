//! What the parts of a client share, and the one way a session comes about.
//!
//! No lock here is held across I/O; after I/O the table decides anew whether the client is still open (control-plane
//! 4.2). Sessions with one server are made one at a time, so that they do not evict each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::entropy::Entropy as _;
use ringwire_proto::entry::Entry;
use ringwire_proto::identity::PublicKey;
use tokio::sync::{Mutex as Gate, Notify, watch};
use tokio::time::{Instant, timeout};

use super::ClientConfig;
use super::backoff::Candidates;
use super::directory::{Directory, DirectoryError};
use super::error::SessionError;
use super::memory::Memory;
use super::one_per_key::KeyLease;
use super::table::{Pulse, SessionId, Table};
use crate::dmsg::address::ServerAddress;
use crate::dmsg::error::Disconnected;
use crate::dmsg::ports::Ports;
use crate::dmsg::session::{Session, longer_pause};

/// The common state of one client.
pub(in crate::dmsg) struct Inner {
    pub(super) config: ClientConfig,
    pub(super) key: PublicKey,
    pub(super) directory: Arc<dyn Directory>,
    pub(super) ports: Arc<Ports>,
    table: Mutex<Table>,
    candidates: Mutex<Candidates>,
    memory: Mutex<Memory>,
    /// Held while a session with that server is made. One exists while somebody wants it.
    gates: Mutex<HashMap<PublicKey, Arc<Gate<()>>>>,
    /// Something changed that the keeper should look at.
    pub(super) changed: Notify,
    pub(super) status: watch::Sender<Status>,
    lease: Mutex<Option<KeyLease>>,
}

/// How a client is, for those who wait for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Status {
    /// Sessions that answered, or that had the time to.
    pub(super) proven: usize,
    /// The entry is posted, or need not be.
    pub(super) announced: bool,
    /// The directory answered the last question it was asked.
    pub(super) directory_answers: bool,
    /// What went wrong last, and with whom.
    pub(super) trouble: Option<(Awaited, String)>,
    /// Somebody wants it closed: in order, or at once.
    pub(super) stop: Option<Stop>,
    /// It is closed.
    pub(super) stopped: bool,
}

/// Whom a client that is not ready waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The discovery: for its list of servers, or to take the entry.
    Discovery,
    /// A server.
    Server,
}

/// What keeps a client from being ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Whose answer is missing.
    pub awaited: Awaited,
    /// What went wrong last there; `None` while nothing has come at all.
    pub trouble: Option<String>,
}

impl Status {
    /// Others can reach this client.
    pub(super) fn is_ready(&self) -> bool {
        self.proven > 0 && self.announced
    }

    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        if self.is_ready() {
            return None;
        }
        // With a session in place only the entry is missing.
        let awaited =
            if self.proven > 0 || !self.directory_answers { Awaited::Discovery } else { Awaited::Server };
        let trouble = self.trouble.as_ref().filter(|(with, _)| *with == awaited);
        Some(Obstacle { awaited, trouble: trouble.map(|(_, text)| text.clone()) })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Takes the entry away and delivers what is queued.
    InOrder,
    /// Nobody is left who could wait for that.
    AtOnce,
}

impl Inner {
    pub(super) fn new(config: ClientConfig, lease: KeyLease) -> Self {
        Self {
            key: config.secret_key.public_key(),
            directory: Arc::clone(&config.directory),
            ports: Arc::new(Ports::new()),
            table: Mutex::new(Table::default()),
            candidates: Mutex::new(Candidates::new(config.redial)),
            memory: Mutex::new(Memory::default()),
            gates: Mutex::new(HashMap::new()),
            changed: Notify::new(),
            status: watch::Sender::new(Status::default()),
            lease: Mutex::new(Some(lease)),
            config,
        }
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(super) fn candidates(&self) -> MutexGuard<'_, Candidates> {
        lock(&self.candidates)
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// Ends the client; the first wish counts.
    pub(super) fn stop(&self, stop: Stop) {
        self.status.send_modify(|status| {
            status.stop.get_or_insert(stop);
        });
    }

    /// Another client may take the key from now on.
    pub(super) fn release_key(&self) {
        lock(&self.lease).take();
    }

    /// A session with a server wherever the directory says it is.
    pub(super) async fn session_with(self: &Arc<Self>, key: PublicKey) -> Result<Session, SessionError> {
        if let Some(seat) = self.table().get(&key).filter(|seat| !seat.stale) {
            return Ok(seat.session.clone());
        }
        let server = self.locate(key).await?;
        self.obtain(&server).await
    }

    /// Where a server is.
    pub(super) async fn locate(&self, key: PublicKey) -> Result<ServerAddress, SessionError> {
        let entry = match self.cached_entry(&key) {
            Some(entry) => entry,
            None => self.read_entry(key).await?.ok_or(SessionError::NotFound { key })?,
        };
        ServerAddress::of_entry(&entry)
            .filter(|server| server.key == key)
            .ok_or(SessionError::NotServer { key })
    }

    pub(super) fn cached_entry(&self, key: &PublicKey) -> Option<Entry> {
        self.memory().entry(key, Instant::now()).cloned()
    }

    /// Asks the directory, and remembers the answer.
    pub(super) async fn read_entry(&self, key: PublicKey) -> Result<Option<Entry>, DirectoryError> {
        let limit = self.config.post.request_limit;
        let entry = timeout(limit, self.directory.entry(key))
            .await
            .unwrap_or(Err(DirectoryError::TimedOut(limit)))?;
        let mut memory = self.memory();
        match &entry {
            Some(entry) => memory.keep_entry(key, entry.clone(), Instant::now()),
            None => memory.forget_entry(&key),
        }
        Ok(entry)
    }

    /// The session with `server`: the one there is, unless it is stale: then a new one, which takes its place. Dropping the future leaves nothing behind.
    pub(super) async fn obtain(self: &Arc<Self>, server: &ServerAddress) -> Result<Session, SessionError> {
        let gate = GateGuard::new(self, server.key);
        let _turn = gate.gate.lock().await;
        {
            let table = self.table();
            if table.is_closed() {
                return Err(SessionError::Closed);
            }
            match table.get(&server.key) {
                Some(seat) if !seat.stale => return Ok(seat.session.clone()),
                None if table.len() >= self.config.sessions_max => {
                    return Err(SessionError::Full(self.config.sessions_max));
                }
                Some(_) | None => {}
            }
        }
        let now = Instant::now();
        if let Some(left) = self.candidates().resting(&server.key, now) {
            return Err(SessionError::Resting(left));
        }
        let mut config = self.config.session_with(server.clone());
        let unheard = self.candidates().unheard(&server.key);
        config.first_frame_pause = longer_pause(config.first_frame_pause, unheard);
        match Session::connect_with(config, Some(Arc::clone(&self.ports))).await {
            Ok(session) => self.install(server.clone(), session),
            Err(error) => {
                self.candidates().failed(server.key, Instant::now(), random());
                // Its address may be an old one.
                self.memory().forget_entry(&server.key);
                Err(error.into())
            }
        }
    }

    fn install(self: &Arc<Self>, server: ServerAddress, session: Session) -> Result<Session, SessionError> {
        let key = server.key;
        let ended = session.ended();
        let installed = self.table().install(server, session.clone(), Instant::now());
        let (number, displaced) = installed.ok_or(SessionError::Closed)?;
        self.memory().session_is_new(&key);
        tracing::info!(server = %key, "dmsg session opened");
        if let Some(displaced) = displaced {
            displaced.begin_close();
        }
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let reason = ended.await;
            inner.session_ended((key, number), &reason);
        });
        self.changed.notify_one();
        Ok(session)
    }

    /// A session is over. One that did not last counts as a failure of its server: whoever evicts this client would
    /// otherwise be evicted in turn, again and again.
    fn session_ended(&self, id: SessionId, reason: &Disconnected) {
        let Some(seat) = self.table().remove(id) else { return };
        let now = Instant::now();
        tracing::info!(server = %id.0, %reason, "dmsg session over");
        let mut candidates = self.candidates();
        if now.duration_since(seat.since) >= self.config.lasting {
            candidates.pardon(&id.0);
        }
        let pause = candidates.failed(id.0, now, random());
        if matches!(reason, Disconnected::Unheard) {
            candidates.was_unheard(&id.0);
        }
        drop(candidates);
        tracing::debug!(server = %id.0, ?pause, "pause before the next session");
        let text = format!("server {}: {reason}", id.0);
        self.status.send_modify(|status| status.trouble = Some((Awaited::Server, text)));
        self.changed.notify_one();
    }

    /// A dial over this session met complete silence.
    pub(super) fn suspect(&self, id: SessionId) {
        if self.table().mark_stale(id) {
            tracing::warn!(server = %id.0, "a dmsg session is silent: a new one is made");
            self.changed.notify_one();
        }
    }

    /// Closes a session that is of no use any more; its streams end.
    pub(super) fn drop_session(&self, id: SessionId) {
        if let Some(seat) = self.table().remove(id) {
            seat.session.begin_close();
            self.changed.notify_one();
        }
    }

    /// Tells those who wait how many sessions can be used.
    pub(super) fn update_status(&self, announced: bool, proven_after: std::time::Duration) {
        let now = Instant::now();
        let proven = {
            let table = self.table();
            let seats = table.by_latency();
            let is_proven = |pulse, since| match pulse {
                Pulse::Answers(_) | Pulse::Mute => true,
                Pulse::Unknown => now.duration_since(since) >= proven_after,
            };
            seats.iter().filter(|seat| !seat.stale && is_proven(seat.pulse, seat.since)).count()
        };
        self.status.send_if_modified(|status| {
            let changed = status.proven != proven || status.announced != announced;
            (status.proven, status.announced) = (proven, announced);
            changed
        });
    }
}

/// A server's gate, forgotten with the last one who wanted it.
struct GateGuard<'a> {
    inner: &'a Inner,
    key: PublicKey,
    gate: Arc<Gate<()>>,
}

impl<'a> GateGuard<'a> {
    fn new(inner: &'a Inner, key: PublicKey) -> Self {
        let gate = Arc::clone(lock(&inner.gates).entry(key).or_default());
        Self { inner, key, gate }
    }
}

impl Drop for GateGuard<'_> {
    fn drop(&mut self) {
        let mut gates = lock(&self.inner.gates);
        // The table's and this one.
        if gates.get(&self.key).is_some_and(|gate| Arc::strong_count(gate) <= 2) {
            gates.remove(&self.key);
        }
    }
}

/// A number nobody can guess; for shuffling and for pauses.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    OsEntropy.fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// A lock whose holder panicked still holds whole values: nothing in here unwinds halfway through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

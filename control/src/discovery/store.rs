//! Where a discovery keeps its entries: the interface, and the one in memory (services 2.4).
//!
//! In: entries that passed the checks on an entry by itself, and the time. Out: what is stored, and verdicts that need
//! the entry stored before. Times are nanoseconds of the Unix clock as the caller reads it, so that lifetimes can be
//! tested with any clock and outlive the process.

use std::collections::{BTreeMap, HashSet};
use std::future::{Future, ready};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringwire_proto::entry::{Entry, EntryError};
use ringwire_proto::identity::PublicKey;
use thiserror::Error;

/// Client type of visors (services 2.1).
const VISOR: &str = "visor";

/// Longest text of an entry in bytes. A visor that delegates to two hundred servers needs 14 KB.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024;

/// An entry as it is stored.
#[derive(Debug)]
pub struct Record {
    /// The entry.
    pub entry: Entry,
    /// Its exact text.
    pub text: String,
    /// When it is no longer there, Unix time in nanoseconds; `None` is never.
    pub expires_ns: Option<i64>,
}

impl Record {
    /// The record of an entry that is put at `now_ns` and lives for `lifetime`.
    pub fn new(entry: Entry, lifetime: Option<Duration>, now_ns: i64) -> Self {
        let text = entry.to_json();
        Self { entry, text, expires_ns: Self::expiry(lifetime, now_ns) }
    }

    /// When something of this life ends.
    pub(super) fn expiry(lifetime: Option<Duration>, now_ns: i64) -> Option<i64> {
        lifetime.map(|time| now_ns.saturating_add(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)))
    }

    fn is_alive(&self, now_ns: i64) -> bool {
        self.expires_ns.is_none_or(|expires_ns| now_ns < expires_ns)
    }
}

/// Why an entry is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PutError {
    /// It is no successor of the entry that is stored.
    #[error("{0}")]
    Order(EntryError),
    /// The entry names no key.
    #[error("entry Keys is nil")]
    NullKey,
    /// The entry is longer than an entry may be.
    #[error("the entry has {bytes} bytes, more than {ENTRY_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A key that is new here, and no room.
    #[error("the discovery holds as many entries as it may")]
    Full,
}

/// What [`Store::put`] did.
#[derive(Debug)]
pub enum Put {
    /// The key had no entry.
    New,
    /// The key's entry was replaced.
    Replaced,
}

/// Entries by key. One call is one step: nothing happens between its check and its write.
pub trait Store: Send + Sync + 'static {
    /// The entry of a key.
    fn entry(&self, key: &PublicKey, now_ns: i64) -> impl Future<Output = Option<Arc<Record>>> + Send;

    /// Stores an entry if it may follow the one that is there; `check` off leaves that out.
    fn put(
        &self,
        record: Record,
        check: bool,
        now_ns: i64,
    ) -> impl Future<Output = Result<Put, PutError>> + Send;

    /// Removes the entry of a key, if there is one.
    fn remove(&self, key: &PublicKey) -> impl Future<Output = ()> + Send;

    /// Every server, in the order of the keys.
    fn servers(&self, now_ns: i64) -> impl Future<Output = Vec<Arc<Record>>> + Send;

    /// Every client, in the order of the keys.
    fn clients(&self, now_ns: i64) -> impl Future<Output = Vec<Arc<Record>>> + Send;
}

/// True for the entry of a visor.
pub(super) fn is_visor(record: &Record) -> bool {
    record.entry.client.is_some() && record.entry.client_type == VISOR
}

/// How many entries a [`MemoryStore`] holds; a new key beyond it is refused, an old one can still be replaced. Servers
/// have their own number, so that a flood of clients leaves them room.
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// Entries with a server part.
    pub servers_max: usize,
    /// All other entries.
    pub clients_max: usize,
    /// Text of all entries together, in bytes.
    pub bytes_max: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { servers_max: 4096, clients_max: 200_000, bytes_max: 256 * 1024 * 1024 }
    }
}

/// Entries in the memory of one process, with the changes that a journal has yet to write.
#[derive(Debug, Default)]
pub struct MemoryStore {
    limits: StoreLimits,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    records: BTreeMap<PublicKey, Arc<Record>>,
    /// Keys of `records` with a server part.
    servers: HashSet<PublicKey>,
    bytes: usize,
    changed: Changed,
}

/// What changed since the journal was last written.
#[derive(Debug, Default)]
enum Changed {
    /// There is no journal.
    #[default]
    Nobody,
    /// These keys.
    Keys(HashSet<PublicKey>),
    /// More keys than are worth listing.
    All,
}

/// Changes between two writes of the journal that are listed one by one; beyond it the whole is written anew.
const CHANGES_MAX: usize = 100_000;

impl Changed {
    fn note(&mut self, key: PublicKey) {
        if let Self::Keys(keys) = self {
            keys.insert(key);
            if keys.len() > CHANGES_MAX {
                *self = Self::All;
            }
        }
    }
}

/// What a journal has to write.
#[derive(Debug)]
pub enum Changes {
    /// These keys changed; `None` is a key that is gone.
    Some(Vec<(PublicKey, Option<Arc<Record>>)>),
    /// Too many to list: these are all records.
    All(Vec<Arc<Record>>),
}

impl Changes {
    /// True when nothing has to be written.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Some(changes) if changes.is_empty())
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new(limits: StoreLimits) -> Self {
        Self { limits, table: Mutex::default() }
    }

    /// Takes records from a journal: no check, no change noted. What is over a limit or expired is left out; how many
    /// were taken is the result.
    pub fn restore(&self, records: impl IntoIterator<Item = Record>, now_ns: i64) -> usize {
        let mut table = self.table();
        let mut count = 0;
        for record in records {
            let Some(key) = record.entry.static_key else { continue };
            if record.is_alive(now_ns) && table.has_room(&key, &record, &self.limits) {
                table.insert(key, record);
                count += 1;
            }
        }
        count
    }

    /// What changed since the last call; the first one begins to keep account.
    pub fn take_changes(&self) -> Changes {
        let mut table = self.table();
        match std::mem::replace(&mut table.changed, Changed::Keys(HashSet::new())) {
            Changed::Nobody | Changed::All => Changes::All(table.records.values().cloned().collect()),
            Changed::Keys(keys) => {
                Changes::Some(keys.into_iter().map(|key| (key, table.records.get(&key).cloned())).collect())
            }
        }
    }

    /// All records, with everything that changed so far.
    pub fn take_all(&self) -> Vec<Arc<Record>> {
        let mut table = self.table();
        table.changed = Changed::Keys(HashSet::new());
        table.records.values().cloned().collect()
    }

    /// Drops what has expired; gives back how many. To be called now and then (services 2.4: every 10 s).
    pub fn sweep(&self, now_ns: i64) -> usize {
        let mut table = self.table();
        let expired: Vec<_> = table
            .records
            .iter()
            .filter(|(_, record)| !record.is_alive(now_ns))
            .map(|(key, _)| *key)
            .collect();
        for key in &expired {
            table.remove(key);
        }
        expired.len()
    }

    /// Number of entries with a server part, and of all others.
    pub fn counts(&self) -> (usize, usize) {
        let table = self.table();
        (table.servers.len(), table.records.len() - table.servers.len())
    }

    /// Text of all entries together, in bytes.
    pub fn bytes(&self) -> usize {
        self.table().bytes
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No code can panic half-way through a change of the table.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_now(&self, record: Record, check: bool, now_ns: i64) -> Result<Put, PutError> {
        let key = record.entry.static_key.ok_or(PutError::NullKey)?;
        if record.text.len() > ENTRY_BYTES_MAX {
            return Err(PutError::TooLong { bytes: record.text.len() });
        }
        let mut table = self.table();
        let stored = table.records.get(&key).filter(|stored| stored.is_alive(now_ns));
        let put = if stored.is_some() { Put::Replaced } else { Put::New };
        if let (true, Some(stored)) = (check, stored) {
            record.entry.validate_successor_of(&stored.entry).map_err(PutError::Order)?;
        }
        if !table.has_room(&key, &record, &self.limits) {
            return Err(PutError::Full);
        }
        table.insert(key, record);
        table.changed.note(key);
        Ok(put)
    }
}

impl Table {
    fn has_room(&self, key: &PublicKey, record: &Record, limits: &StoreLimits) -> bool {
        let stored = self.records.get(key);
        let kept_bytes = self.bytes - stored.map_or(0, |stored| stored.text.len());
        let server = record.entry.server.is_some();
        let clients = self.records.len() - self.servers.len();
        let room = match (stored.map(|stored| stored.entry.server.is_some()), server) {
            (Some(was_server), is_server) if was_server == is_server => true,
            (_, true) => self.servers.len() < limits.servers_max,
            (_, false) => clients < limits.clients_max,
        };
        room && kept_bytes + record.text.len() <= limits.bytes_max
    }

    fn insert(&mut self, key: PublicKey, record: Record) {
        self.bytes += record.text.len();
        if record.entry.server.is_some() {
            self.servers.insert(key);
        } else {
            self.servers.remove(&key);
        }
        if let Some(former) = self.records.insert(key, Arc::new(record)) {
            self.bytes -= former.text.len();
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        if let Some(former) = self.records.remove(key) {
            self.bytes -= former.text.len();
            self.servers.remove(key);
            self.changed.note(*key);
        }
    }
}

impl Store for MemoryStore {
    fn entry(&self, key: &PublicKey, now_ns: i64) -> impl Future<Output = Option<Arc<Record>>> + Send {
        ready(self.table().records.get(key).filter(|record| record.is_alive(now_ns)).cloned())
    }

    fn put(
        &self,
        record: Record,
        check: bool,
        now_ns: i64,
    ) -> impl Future<Output = Result<Put, PutError>> + Send {
        ready(self.put_now(record, check, now_ns))
    }

    fn remove(&self, key: &PublicKey) -> impl Future<Output = ()> + Send {
        self.table().remove(key);
        ready(())
    }

    fn servers(&self, now_ns: i64) -> impl Future<Output = Vec<Arc<Record>>> + Send {
        let table = self.table();
        let mut servers: Vec<_> = table
            .servers
            .iter()
            .filter_map(|key| table.records.get(key))
            .filter(|record| record.is_alive(now_ns))
            .cloned()
            .collect();
        servers.sort_unstable_by_key(|record| record.entry.static_key);
        ready(servers)
    }

    fn clients(&self, now_ns: i64) -> impl Future<Output = Vec<Arc<Record>>> + Send {
        let table = self.table();
        let alive = table.records.values().filter(|record| record.is_alive(now_ns));
        ready(alive.filter(|record| record.entry.client.is_some()).cloned().collect())
    }
}

//! Where a discovery keeps its entries: the interface, and the one in memory (services 2.4).
//!
//! In: entries that passed the checks on an entry by itself, and the time. Out: what is stored, and verdicts that need
//! the entry stored before. Times are nanoseconds of the Unix clock as the caller reads it, so that lifetimes can be
//! tested with any clock and outlive the process.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::{Future, ready};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ringwire_proto::entry::{Entry, EntryError, TIMESTAMP_FUTURE_MAX_NS};
use ringwire_proto::identity::PublicKey;
use thiserror::Error;

use super::crowd::{Crowd, KindLimits, Member};
use super::source::{Sender, Source};

/// Client type of visors (services 2.1).
const VISOR: &str = "visor";

/// Longest text of an entry in bytes. A visor that delegates to two hundred servers needs 14 KB.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024;

/// An entry as it is stored.
#[derive(Debug)]
pub struct Record {
    /// The entry.
    pub entry: Entry,
    /// Its exact text, shared with every answer that shows it.
    pub text: Bytes,
    /// When it is no longer there, Unix time in nanoseconds; `None` is never.
    pub expires_ns: Option<i64>,
}

impl Record {
    /// The record of an entry that is put at `now_ns` and lives for `lifetime`.
    pub fn new(entry: Entry, lifetime: Option<Duration>, now_ns: i64) -> Self {
        let text = entry.to_json().into();
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
    #[error("the discovery holds as many entries as it may; try again later")]
    Full,
    /// A key that is new here, and its source has as many as it may.
    #[error(
        "the discovery holds as many entries from this address as it may, and all of them are in use; remove some, or \
         post from another address"
    )]
    SourceFull,
}

/// What [`Store::put`] did.
#[derive(Debug)]
pub struct Stored {
    /// With the key's entry.
    pub put: Put,
    /// How many entries of others left for it.
    pub evicted: usize,
}

/// What became of the key's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The key had no entry.
    New,
    /// The key's entry was replaced.
    Replaced,
}

/// What a request to remove an entry shows beside a signature that everybody can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The entry's key itself asks: it was authenticated, over dmsg.
    Owner,
    /// A withdrawal of this time (Unix, nanoseconds), which the key signed to be no post.
    Withdrawal(i64),
    /// Where it comes from.
    From(Sender),
}

/// What [`Store::withdraw`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawn {
    /// The entry was removed.
    Removed,
    /// There was none.
    Absent,
    /// The entry stays: the claim is not enough.
    Refused,
}

/// Entries by key. One call is one step: nothing happens between its check and its write.
pub trait Store: Send + Sync + 'static {
    /// The entry of a key.
    fn entry(&self, key: &PublicKey, now_ns: i64) -> impl Future<Output = Option<Arc<Record>>> + Send;

    /// Stores an entry of `sender` if it may follow the one that is there; `check` off leaves that out.
    fn put(
        &self,
        record: Record,
        sender: Sender,
        check: bool,
        now_ns: i64,
    ) -> impl Future<Output = Result<Stored, PutError>> + Send;

    /// Removes the entry of a key if the claim is enough. [`Claim::From`] is where every post of the entry since it was new
    /// came from; one replayed from another discovery must not give its sender a right.
    fn withdraw(&self, key: &PublicKey, claim: Claim, now_ns: i64) -> impl Future<Output = Withdrawn> + Send;

    /// Removes the entry of a key, if there is one and it is not pinned.
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

/// How many entries a [`MemoryStore`] holds, and who leaves when there are more: `crowd`. Servers have their own
/// bounds, so that a flood of clients leaves them room. An entry that replaces one of its key always has its place.
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// Entries with a server part.
    pub servers: KindLimits,
    /// All other entries.
    pub clients: KindLimits,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            servers: KindLimits {
                entries_max: 4096,
                bytes_max: 16 << 20,
                // Nobody runs more servers behind one address, and a flood needs 256 addresses to fill the whole.
                source_entries_max: 16,
                source_bytes_max: 256 << 10,
            },
            clients: KindLimits {
                entries_max: 200_000,
                bytes_max: 240 << 20,
                // A whole farm of visors, or the customers of a provider, may be behind one address.
                source_entries_max: 4096,
                source_bytes_max: 4 << 20,
            },
        }
    }
}

/// How long after it was new an entry is renewed to be *proven*, half the interval at which servers post: a flood would
/// have to be posted twice, half a minute apart.
const PROVEN_AFTER_NS: i64 = 30_000_000_000;

/// Entries in the memory of one process, with the changes that a journal has yet to write.
#[derive(Debug)]
pub struct MemoryStore {
    table: Mutex<Table>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(StoreLimits::default())
    }
}

#[derive(Debug)]
struct Table {
    slots: BTreeMap<PublicKey, Slot>,
    /// Keys of `slots` with a server part.
    server_keys: BTreeSet<PublicKey>,
    /// Entries that nobody's entry displaces and only their own key removes; counted in no crowd.
    pinned: HashSet<PublicKey>,
    servers: Crowd,
    clients: Crowd,
    bytes: usize,
    /// Posts so far.
    posts: u64,
    changed: Changed,
}

/// An entry and what is known of how it came.
#[derive(Debug, Clone)]
struct Slot {
    record: Arc<Record>,
    member: Member,
    /// Every post since it was new came from `member.source`, directly.
    one_source: bool,
    /// When it was new, Unix time in nanoseconds.
    since_ns: i64,
}

impl Slot {
    fn is_server(&self) -> bool {
        self.record.entry.server.is_some()
    }
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
        Self {
            table: Mutex::new(Table {
                slots: BTreeMap::new(),
                server_keys: BTreeSet::new(),
                pinned: HashSet::new(),
                servers: Crowd::new(limits.servers),
                clients: Crowd::new(limits.clients),
                bytes: 0,
                posts: 0,
                changed: Changed::default(),
            }),
        }
    }

    /// Pins the entry of a key, whether it is there or comes later: it has room besides all bounds, never leaves for
    /// another, and only the key itself removes it ([`Claim::Owner`], [`Claim::Withdrawal`]).
    pub fn pin(&self, key: PublicKey) {
        let mut table = self.table();
        let slot = table.take(&key);
        table.pinned.insert(key);
        if let Some(slot) = slot {
            table.insert(key, slot);
        }
    }

    /// Takes records from a journal: no check, no change noted. What is over a limit or expired is left out; how many
    /// were taken is the result. Where they came from is forgotten, and that they were here once proves them: what of a
    /// flood is among them expires soon.
    pub fn restore(&self, records: impl IntoIterator<Item = Record>, now_ns: i64) -> usize {
        let mut table = self.table();
        let mut count = 0;
        for record in records {
            let Some(key) = record.entry.static_key else { continue };
            let bytes = record.text.len();
            let server = record.entry.server.is_some();
            let room = table.pinned.contains(&key) || table.crowd(server).fits(bytes);
            if !record.is_alive(now_ns) || !room || table.slots.contains_key(&key) {
                continue;
            }
            let member = Member { source: Source::Unknown, order: table.next_order(), proven: true, bytes };
            let slot = Slot { record: Arc::new(record), member, one_source: false, since_ns: now_ns };
            table.insert(key, slot);
            count += 1;
        }
        count
    }

    /// What changed since the last call; the first one begins to keep account.
    pub fn take_changes(&self) -> Changes {
        let mut table = self.table();
        match std::mem::replace(&mut table.changed, Changed::Keys(HashSet::new())) {
            Changed::Nobody | Changed::All => Changes::All(table.all()),
            Changed::Keys(keys) => {
                let record = |key| table.slots.get(key).map(|slot| Arc::clone(&slot.record));
                Changes::Some(keys.iter().map(|key| (*key, record(key))).collect())
            }
        }
    }

    /// All records, with everything that changed so far.
    pub fn take_all(&self) -> Vec<Arc<Record>> {
        let mut table = self.table();
        table.changed = Changed::Keys(HashSet::new());
        table.all()
    }

    /// Drops what has expired; gives back how many. To be called now and then (services 2.4: every 10 s). No entry lives
    /// longer than if it had been posted now, which matters after the clock was set back: `lifetime` says how long.
    pub fn sweep(&self, now_ns: i64, lifetime: impl Fn(&Entry) -> Option<Duration>) -> usize {
        let mut table = self.table();
        for slot in table.slots.values_mut() {
            let record = &slot.record;
            let latest_ns = Record::expiry(lifetime(&record.entry), now_ns);
            if latest_ns.is_some_and(|latest_ns| record.expires_ns.is_some_and(|expires| expires > latest_ns))
            {
                let (entry, text) = (record.entry.clone(), record.text.clone());
                slot.record = Arc::new(Record { entry, text, expires_ns: latest_ns });
            }
        }
        let expired: Vec<_> = table
            .slots
            .iter()
            .filter(|(_, slot)| !slot.record.is_alive(now_ns))
            .map(|(key, _)| *key)
            .collect();
        for key in &expired {
            table.drop_entry(key);
        }
        expired.len()
    }

    /// True when the order in which entries leave may soon matter.
    pub fn is_dense(&self) -> bool {
        let table = self.table();
        table.servers.is_dense() || table.clients.is_dense()
    }

    /// These keys have a session here now: their entries are proven.
    pub fn prove(&self, keys: impl IntoIterator<Item = PublicKey>) {
        let mut table = self.table();
        for key in keys {
            if table.slots.get(&key).is_some_and(|slot| !slot.member.proven)
                && let Some(mut slot) = table.take(&key)
            {
                slot.member.proven = true;
                table.insert(key, slot);
            }
        }
    }

    /// Number of entries with a server part, and of all others.
    pub fn counts(&self) -> (usize, usize) {
        let table = self.table();
        (table.server_keys.len(), table.slots.len() - table.server_keys.len())
    }

    /// Text of all entries together, in bytes.
    pub fn bytes(&self) -> usize {
        self.table().bytes
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No code can panic half-way through a change of the table.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_now(&self, record: Record, sender: Sender, check: bool, now_ns: i64) -> Result<Stored, PutError> {
        let key = record.entry.static_key.ok_or(PutError::NullKey)?;
        if record.text.len() > ENTRY_BYTES_MAX {
            return Err(PutError::TooLong { bytes: record.text.len() });
        }
        let mut table = self.table();
        let stored = table.slots.get(&key).filter(|slot| slot.record.is_alive(now_ns));
        let put = if stored.is_some() { Put::Replaced } else { Put::New };
        if let (true, Some(stored)) = (check, stored) {
            match record.entry.validate_successor_of(&stored.record.entry) {
                // The clock was set back since: who waited for that time to come would have no entry meanwhile.
                Err(EntryError::TimestampOrder) if is_ahead(&stored.record.entry, now_ns) => {}
                other => other.map_err(PutError::Order)?,
            }
        }
        // An entry goes on only as what it was: a client that becomes a server is a new server.
        let kind = record.entry.server.is_some();
        let former = stored.filter(|slot| slot.is_server() == kind).cloned();
        let taken = table.take(&key);
        let mut slot = successor(record, former.as_ref(), sender, now_ns);
        slot.member.order = table.next_order();
        let mut room = table.make_room(&key, &slot);
        if let (Err(_), Some(former)) = (&room, &former)
            && former.member.source != slot.member.source
        {
            // It came before anybody knew from where, and can stay that way.
            (slot.member.source, slot.one_source) = (former.member.source, false);
            room = table.make_room(&key, &slot);
        }
        match room {
            Ok(evicted) => {
                table.insert(key, slot);
                table.changed.note(key);
                Ok(Stored { put, evicted })
            }
            Err(error) => {
                if let Some(taken) = taken {
                    table.insert(key, taken);
                }
                Err(error)
            }
        }
    }

    fn withdraw_now(&self, key: &PublicKey, claim: Claim, now_ns: i64) -> Withdrawn {
        let mut table = self.table();
        let Some(slot) = table.slots.get(key).filter(|slot| slot.record.is_alive(now_ns)) else {
            return Withdrawn::Absent;
        };
        let enough = match claim {
            Claim::Owner => true,
            Claim::Withdrawal(timestamp_ns) => {
                let stored = &slot.record.entry;
                timestamp_ns >= stored.timestamp_ns || is_ahead(stored, now_ns)
            }
            Claim::From(sender) => {
                sender.direct
                    && slot.one_source
                    && slot.member.source == sender.source
                    && !table.pinned.contains(key)
            }
        };
        if !enough {
            return Withdrawn::Refused;
        }
        table.drop_entry(key);
        Withdrawn::Removed
    }
}

/// True for an entry of a time that is not yet and that no clock which is nearly right could show.
fn is_ahead(entry: &Entry, now_ns: i64) -> bool {
    entry.timestamp_ns.saturating_sub(now_ns) > TIMESTAMP_FUTURE_MAX_NS
}

/// The slot of an entry that follows `former`, or is new. It stays with the source that brought the key, whoever renews
/// it, so that nobody can take another one's entry into his own account.
fn successor(record: Record, former: Option<&Slot>, sender: Sender, now_ns: i64) -> Slot {
    let source = sender.source.counted();
    let known = |source: Source| source != Source::Unknown;
    let mut slot = Slot {
        member: Member { source, order: 0, proven: false, bytes: record.text.len() },
        record: Arc::new(record),
        one_source: sender.direct && known(source),
        since_ns: now_ns,
    };
    if let Some(former) = former {
        // A clock that was set back must not make the wait longer.
        slot.since_ns = former.since_ns.min(now_ns);
        slot.member.proven = former.member.proven || now_ns.saturating_sub(slot.since_ns) >= PROVEN_AFTER_NS;
        if known(former.member.source) {
            slot.one_source &= former.one_source && former.member.source == source;
            slot.member.source = former.member.source;
        }
    }
    slot
}

impl Table {
    fn crowd(&mut self, server: bool) -> &mut Crowd {
        if server { &mut self.servers } else { &mut self.clients }
    }

    fn next_order(&mut self) -> u64 {
        self.posts += 1;
        self.posts
    }

    fn all(&self) -> Vec<Arc<Record>> {
        self.slots.values().map(|slot| Arc::clone(&slot.record)).collect()
    }

    /// Lets entries leave until one more fits; gives back how many. The entry of `key` itself is not in the table.
    fn make_room(&mut self, key: &PublicKey, slot: &Slot) -> Result<usize, PutError> {
        if self.pinned.contains(key) {
            return Ok(0);
        }
        let Member { source, bytes, .. } = slot.member;
        let server = slot.is_server();
        let mut evicted = 0;
        while !self.crowd(server).fits_source(source, bytes) {
            let leaver = self.crowd(server).leaver_of(source).ok_or(PutError::SourceFull)?;
            self.drop_entry(&leaver);
            evicted += 1;
        }
        while !self.crowd(server).fits(bytes) {
            let leaver = self.crowd(server).leaver(source).ok_or(PutError::Full)?;
            self.drop_entry(&leaver);
            evicted += 1;
        }
        Ok(evicted)
    }

    /// The key must have no slot.
    fn insert(&mut self, key: PublicKey, slot: Slot) {
        self.bytes += slot.member.bytes;
        if slot.is_server() {
            self.server_keys.insert(key);
        }
        if !self.pinned.contains(&key) {
            self.crowd(slot.is_server()).add(key, &slot.member);
        }
        self.slots.insert(key, slot);
    }

    fn take(&mut self, key: &PublicKey) -> Option<Slot> {
        let slot = self.slots.remove(key)?;
        self.bytes -= slot.member.bytes;
        self.server_keys.remove(key);
        if !self.pinned.contains(key) {
            self.crowd(slot.is_server()).remove(&slot.member);
        }
        Some(slot)
    }

    fn drop_entry(&mut self, key: &PublicKey) {
        if self.take(key).is_some() {
            self.changed.note(*key);
        }
    }
}

impl Store for MemoryStore {
    fn entry(&self, key: &PublicKey, now_ns: i64) -> impl Future<Output = Option<Arc<Record>>> + Send {
        let table = self.table();
        let slot = table.slots.get(key).filter(|slot| slot.record.is_alive(now_ns));
        ready(slot.map(|slot| Arc::clone(&slot.record)))
    }

    fn put(
        &self,
        record: Record,
        sender: Sender,
        check: bool,
        now_ns: i64,
    ) -> impl Future<Output = Result<Stored, PutError>> + Send {
        ready(self.put_now(record, sender, check, now_ns))
    }

    fn withdraw(&self, key: &PublicKey, claim: Claim, now_ns: i64) -> impl Future<Output = Withdrawn> + Send {
        ready(self.withdraw_now(key, claim, now_ns))
    }

    fn remove(&self, key: &PublicKey) -> impl Future<Output = ()> + Send {
        let mut table = self.table();
        if !table.pinned.contains(key) {
            table.drop_entry(key);
        }
        ready(())
    }

    fn servers(&self, now_ns: i64) -> impl Future<Output = Vec<Arc<Record>>> + Send {
        let table = self.table();
        let records = table.server_keys.iter().filter_map(|key| table.slots.get(key));
        let alive = records.map(|slot| &slot.record).filter(|record| record.is_alive(now_ns));
        ready(alive.cloned().collect())
    }

    fn clients(&self, now_ns: i64) -> impl Future<Output = Vec<Arc<Record>>> + Send {
        let table = self.table();
        let records = table.slots.values().map(|slot| &slot.record);
        let alive = records.filter(|record| record.is_alive(now_ns) && record.entry.client.is_some());
        ready(alive.cloned().collect())
    }
}

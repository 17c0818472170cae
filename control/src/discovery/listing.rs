//! Answers that grow with the number of entries, built once for all who ask.
//!
//! In: the records at one moment. Out: a text that all answers share. It is built at most once in fifteen seconds and by
//! one task at a time, whoever asks and gives up meanwhile; and while answers of an older text are still being read, only
//! one newer is made, so that readers who do not read cost two texts and not one each.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use ringwire_proto::identity::PublicKey;

use super::store::{Record, is_visor};

/// How long a text is shown (services 2.3).
const LIFE: Duration = Duration::from_secs(15);
/// Texts of one listing in memory at a time: the one shown, and an older one that is still being sent. A newer one waits
/// until that has been read or its connections have been cut, which the HTTP frame does within
/// [`Limits::connection`](crate::http::Limits::connection).
const TEXTS_MAX: usize = 2;
/// Records up to which a listing that may be fresh is: it costs no more than the request itself.
const FRESH_RECORDS_MAX: usize = 256;

/// A JSON text of many entries.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The whole.
    pub(super) text: Bytes,
    /// Where in it the list of one server is.
    parts: HashMap<PublicKey, Range<usize>>,
}

impl Listing {
    /// The list of one server; nobody is on that of an unknown one.
    pub(super) fn part(&self, server: &PublicKey) -> Bytes {
        self.parts.get(server).map_or(Bytes::from_static(b"[]"), |range| self.text.slice(range.clone()))
    }
}

/// Makes a listing's text of the records of all clients, in the order of their keys.
type Render = fn(&[Arc<Record>]) -> (Vec<u8>, HashMap<PublicKey, Range<usize>>);

/// One listing and its text.
#[derive(Debug)]
pub(super) struct Shared {
    render: Render,
    life: Duration,
    /// Whether a short one is built for each request.
    fresh_when_short: bool,
    shown: Mutex<Option<Shown>>,
    building: tokio::sync::Mutex<()>,
    texts: Arc<AtomicUsize>,
    built: Counter,
}

#[derive(Debug)]
struct Shown {
    listing: Arc<Listing>,
    since: Instant,
    records: usize,
}

impl Shared {
    fn new(render: Render, fresh_when_short: bool, built: Counter) -> Arc<Self> {
        Arc::new(Self {
            render,
            life: LIFE,
            fresh_when_short,
            shown: Mutex::default(),
            building: tokio::sync::Mutex::default(),
            texts: Arc::default(),
            built,
        })
    }

    /// Keys of all clients.
    pub(super) fn clients(built: Counter) -> Arc<Self> {
        Self::new(|records| keys(records, |_| true), true, built)
    }

    /// Keys of clients that are visors.
    pub(super) fn visors(built: Counter) -> Arc<Self> {
        Self::new(|records| keys(records, is_visor), true, built)
    }

    /// Which clients delegate to which server.
    pub(super) fn clients_of_servers(built: Counter) -> Arc<Self> {
        Self::new(clients_of_servers, false, built)
    }

    /// The listing; built of `records` when there is none to show. `None` while the process ends.
    pub(super) async fn get(
        self: &Arc<Self>,
        records: impl Future<Output = Vec<Arc<Record>>> + Send + 'static,
    ) -> Option<Arc<Listing>> {
        if let Some(listing) = self.shown(Instant::now()) {
            return Some(listing);
        }
        let this = Arc::clone(self);
        // In a task of its own: who asked may give up, and the next must not build beside it.
        let built = tokio::spawn(async move {
            let _turn = this.building.lock().await;
            if let Some(listing) = this.shown(Instant::now()) {
                return Some(listing);
            }
            let records = records.await;
            let builder = Arc::clone(&this);
            tokio::task::spawn_blocking(move || builder.build(&records)).await.ok()
        });
        built.await.ok().flatten()
    }

    fn shown(&self, now: Instant) -> Option<Arc<Listing>> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.as_ref()?;
        if self.fresh_when_short && shown.records <= FRESH_RECORDS_MAX {
            return None;
        }
        let young = now.saturating_duration_since(shown.since) < self.life;
        let held = self.texts.load(Ordering::Acquire) >= TEXTS_MAX;
        (young || held).then(|| Arc::clone(&shown.listing))
    }

    fn build(&self, records: &[Arc<Record>]) -> Arc<Listing> {
        self.built.inc();
        let (text, parts) = (self.render)(records);
        let text = Bytes::from_owner(Text::new(text, &self.texts));
        let listing = Arc::new(Listing { text, parts });
        let shown = Shown { listing: Arc::clone(&listing), since: Instant::now(), records: records.len() };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        listing
    }
}

/// A text that is counted as long as anybody has a part of it.
struct Text {
    text: Vec<u8>,
    texts: Arc<AtomicUsize>,
}

impl Text {
    fn new(text: Vec<u8>, texts: &Arc<AtomicUsize>) -> Self {
        texts.fetch_add(1, Ordering::AcqRel);
        Self { text, texts: Arc::clone(texts) }
    }
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        self.texts.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Bytes of a key in a list: 66 digits, two quotes, a comma.
const KEY_BYTES: usize = 69;

fn push_key(key: &PublicKey, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(key.to_string().as_bytes());
    out.push(b'"');
}

fn keys(records: &[Arc<Record>], wanted: fn(&Record) -> bool) -> (Vec<u8>, HashMap<PublicKey, Range<usize>>) {
    let mut out = vec![b'['];
    let wanted = records.iter().filter(|record| wanted(record));
    for (index, key) in wanted.filter_map(|record| record.entry.static_key).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_key(&key, &mut out);
    }
    out.push(b']');
    (out, HashMap::new())
}

fn clients_of_servers(records: &[Arc<Record>]) -> (Vec<u8>, HashMap<PublicKey, Range<usize>>) {
    let mut clients: BTreeMap<PublicKey, Vec<u32>> = BTreeMap::new();
    let mut names = 0;
    for (index, record) in (0u32..).zip(records) {
        for server in delegated(record) {
            let of_server = clients.entry(*server).or_default();
            // An entry may name a server many times.
            if of_server.last() != Some(&index) {
                of_server.push(index);
                names += 1;
            }
        }
    }
    let mut out = Vec::with_capacity(2 + KEY_BYTES * names + (KEY_BYTES + 4) * clients.len());
    let mut parts = HashMap::with_capacity(clients.len());
    out.push(b'{');
    for (server, indices) in clients {
        if out.len() > 1 {
            out.push(b',');
        }
        push_key(&server, &mut out);
        out.push(b':');
        let start = out.len();
        out.push(b'[');
        let keys = indices.iter().filter_map(|index| records.get(*index as usize)?.entry.static_key);
        for (index, key) in keys.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            push_key(&key, &mut out);
        }
        out.push(b']');
        parts.insert(server, start..out.len());
    }
    out.push(b'}');
    (out, parts)
}

fn delegated(record: &Record) -> &[PublicKey] {
    let client = record.entry.client.as_ref();
    client.and_then(|client| client.delegated_servers.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ringwire_proto::entry::{ClientPart, Entry};
    use ringwire_proto::identity::SecretKey;

    use super::*;

    fn key(number: u8) -> PublicKey {
        SecretKey::from_bytes(&[number; 32]).unwrap().public_key()
    }

    fn record(number: u8, servers: &[u8]) -> Arc<Record> {
        let delegated_servers = Some(servers.iter().map(|server| key(*server)).collect());
        let client = Some(ClientPart { delegated_servers });
        let entry = Entry { static_key: Some(key(number)), client, ..Entry::default() };
        Arc::new(Record::new(entry, None, 0))
    }

    #[test]
    fn the_list_of_a_server_is_a_part_of_the_whole() {
        let (text, parts) = clients_of_servers(&[record(1, &[8, 8, 9]), record(2, &[9])]);
        let listing = Listing { text: text.into(), parts };
        let whole: BTreeMap<String, Vec<String>> = serde_json::from_slice(&listing.text).unwrap();
        let names =
            |numbers: &[u8]| numbers.iter().map(|number| key(*number).to_string()).collect::<Vec<_>>();
        assert_eq!(whole, [(8, &[1][..]), (9, &[1, 2])].map(|(s, c)| (key(s).to_string(), names(c))).into());
        for server in [8, 9] {
            let part: Vec<String> = serde_json::from_slice(&listing.part(&key(server))).unwrap();
            assert_eq!(part, whole[&key(server).to_string()]);
        }
        assert_eq!(&listing.part(&key(7))[..], b"[]");
        assert_eq!(clients_of_servers(&[]).0, b"{}");
        assert_eq!(keys(&[], |_| true).0, b"[]");
    }

    #[tokio::test]
    async fn whoever_asks_meanwhile_shares_the_text_and_who_gives_up_loses_nothing() {
        let built = Counter::default();
        let shared = Shared::clients_of_servers(built.clone());
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let get = || {
            let (shared, gate) = (Arc::clone(&shared), Arc::clone(&gate));
            tokio::spawn(async move {
                let records = async move {
                    gate.acquire().await.unwrap().forget();
                    vec![record(1, &[9])]
                };
                shared.get(records).await.unwrap()
            })
        };
        let asked: Vec<_> = (0..20).map(|_| get()).collect();
        tokio::task::yield_now().await;
        asked[0].abort();
        gate.add_permits(1);
        let mut texts = Vec::new();
        for task in asked.into_iter().skip(1) {
            texts.push(task.await.unwrap().text.clone());
        }
        assert_eq!(built.get(), 1);
        assert!(texts.iter().all(|text| text.as_ptr() == texts[0].as_ptr()), "one text for all");
    }

    #[tokio::test]
    async fn readers_who_do_not_read_hold_two_texts_at_most() {
        let built = Counter::default();
        let mut shared = Shared::clients_of_servers(built.clone());
        Arc::get_mut(&mut shared).unwrap().life = Duration::ZERO;
        let mut unread = Vec::new();
        for _ in 0..10 {
            let listing = shared.get(async { vec![record(1, &[])] }).await.unwrap();
            unread.push(listing.text.clone());
        }
        assert_eq!((built.get(), shared.texts.load(Ordering::Relaxed)), (2, TEXTS_MAX));
        unread.clear();
        shared.get(async { Vec::new() }).await.unwrap();
        assert_eq!((built.get(), shared.texts.load(Ordering::Relaxed)), (3, 1));
    }
}

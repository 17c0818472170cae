//! The discovery that a box hosts: what it answers to which request (services 2.2 to 2.6).
//!
//! In: requests, a store, the clock. Out: a router for the HTTP frame. The checks on an entry are `proto`'s; here is
//! their order, the words of the answers, and how long an entry lives.

use std::collections::{BTreeMap, HashSet};
use std::iter::{once, repeat_n};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use ipnet::IpNet;
use ringwire_dataplane::worker::default_proxy_from;
use ringwire_proto::entry::{Deployment, Entry, EntryError};
use ringwire_proto::identity::{PublicKey, Signature, verify};
use zeroize::Zeroizing;

use super::class::{Classes, is_official};
use super::counters::DiscoveryCounters;
use super::error::{ENTRY_NOT_FOUND, NO_SERVERS, VALIDATION_PREFIX};
use super::listing::{Listing, Shared};
use super::registered::Log;
use super::source::Sender;
use super::store::{Claim, Put, PutError, Record, Store, StoreLimits, Withdrawn};
use super::withdrawal::{is_current, is_withdrawal};
use crate::http::{Caller, Health, Reply, body_of, json_pieces};

/// Life of a server's entry, twice the interval at which servers post (services 2.4).
const SERVER_LIFETIME: Duration = Duration::from_secs(120);
/// Life of a client's entry (services 2.4 [26]).
const CLIENT_LIFETIME: Duration = Duration::from_secs(3600);
/// Life of a client's entry that was posted with `?timeout=true` (services 2.4 [24]).
const CLIENT_LIFETIME_SHORT: Duration = Duration::from_secs(180);
/// Longest list of available servers (services 2.3).
const AVAILABLE_MAX: usize = 512;
/// Most keys in one batch (services 2.3 [26]).
const BATCH_MAX: usize = 1000;

/// Settings of an embedded discovery.
#[derive(Debug, Clone)]
pub struct DiscoverySettings {
    /// Whether servers may advertise loopback addresses; see [`deployment_of`].
    pub deployment: Deployment,
    /// A server that posts this as its `serverType` is official.
    pub official_passphrase: Zeroizing<String>,
    /// Servers that are official without it.
    pub official_servers: HashSet<PublicKey>,
    /// The server that this discovery runs beside: it is official, and its entry is pinned.
    pub own_server: Option<PublicKey>,
    /// Who may deregister others (services 1.7).
    pub network_monitors: HashSet<PublicKey>,
    /// How much a [`DiscoveryHost`](super::DiscoveryHost) keeps.
    pub limits: StoreLimits,
    /// Life of a client's entry; `None` is for ever.
    pub client_lifetime: Option<Duration>,
    /// What `/health` says.
    pub health: Health,
    /// Networks whose PROXY headers a [`DiscoveryHost`](super::DiscoveryHost) believes.
    pub proxy_from: Arc<[IpNet]>,
}

impl DiscoverySettings {
    /// The defaults of this deployment.
    pub fn new(deployment: Deployment) -> Self {
        Self {
            deployment,
            official_passphrase: Zeroizing::default(),
            official_servers: HashSet::new(),
            own_server: None,
            network_monitors: HashSet::new(),
            limits: StoreLimits::default(),
            client_lifetime: Some(CLIENT_LIFETIME),
            health: Health { service_name: "dmsg-discovery".to_owned(), ..Health::default() },
            proxy_from: default_proxy_from(),
        }
    }

    /// How long an entry lives after its post (services 2.4); `None` is for ever.
    pub(super) fn lifetime(&self, entry: &Entry, short_lived: bool) -> Option<Duration> {
        match (entry.server.is_some(), short_lived) {
            (true, _) => Some(SERVER_LIFETIME),
            (false, true) => Some(CLIENT_LIFETIME_SHORT),
            (false, false) => self.client_lifetime,
        }
    }
}

/// The deployment of a box with these listeners: a test exactly when every one is on a loopback address, because then
/// nobody elsewhere can reach anything that is advertised here.
pub fn deployment_of(listeners: &[SocketAddr]) -> Deployment {
    let local = |listener: &SocketAddr| listener.ip().to_canonical().is_loopback();
    if !listeners.is_empty() && listeners.iter().all(local) {
        Deployment::Test
    } else {
        Deployment::Production
    }
}

/// Reads the Unix clock in nanoseconds. A type of its own so that tests can bring another clock.
pub type UnixClock = fn() -> i64;

/// The system's clock.
pub fn unix_now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// An embedded discovery over some store.
pub struct DiscoveryService<S> {
    store: Arc<S>,
    settings: DiscoverySettings,
    classes: Classes,
    counters: DiscoveryCounters,
    log: Log,
    clients: Arc<Shared>,
    visors: Arc<Shared>,
    clients_of_servers: Arc<Shared>,
    clock: UnixClock,
}

impl<S: Store> DiscoveryService<S> {
    /// A discovery of the entries in `store`.
    pub fn new(store: Arc<S>, settings: DiscoverySettings) -> Self {
        let official = settings.official_servers.iter().copied().chain(settings.own_server).collect();
        let classes = Classes::new(settings.official_passphrase.clone(), official);
        let counters = DiscoveryCounters::default();
        let built = || counters.listings_built.clone();
        Self {
            clients: Shared::clients(built()),
            visors: Shared::visors(built()),
            clients_of_servers: Shared::clients_of_servers(built()),
            log: Log::new(),
            store,
            settings,
            classes,
            counters,
            clock: unix_now_ns,
        }
    }

    /// The same with another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: UnixClock) -> Self {
        self.clock = clock;
        self
    }

    /// What it counts.
    pub fn counters(&self) -> &DiscoveryCounters {
        &self.counters
    }

    /// The routes of services 2.3, for the HTTP frame.
    pub fn router(self) -> Router {
        Router::new()
            .route("/health", get(health::<S>))
            .route("/dmsg-discovery/entry/{key}", get(entry::<S>).post(put::<S>))
            .route("/dmsg-discovery/entry/", post(put::<S>))
            .route("/dmsg-discovery/entry", delete(remove::<S>))
            .route("/dmsg-discovery/entries", get(clients::<S>))
            .route("/dmsg-discovery/entries/batch", post(batch::<S>))
            .route("/dmsg-discovery/visorEntries", get(visors::<S>))
            .route("/dmsg-discovery/available_servers", get(available_servers::<S>))
            .route("/dmsg-discovery/all_servers", get(all_servers::<S>))
            .route("/dmsg-discovery/servers/clients", get(clients_of_all::<S>))
            .route("/dmsg-discovery/server/{key}/clients", get(clients_of_one::<S>))
            .route("/dmsg-discovery/deregister", delete(deregister::<S>))
            .with_state(Arc::new(self))
    }

    fn now_ns(&self) -> i64 {
        (self.clock)()
    }

    /// Steps 1 to 7 of services 2.2.
    async fn accept(
        &self,
        body: &[u8],
        short_lived: bool,
        caller: Option<Caller>,
        sender: Sender,
    ) -> Result<Put, Refused> {
        let now_ns = self.now_ns();
        let mut entry = Entry::from_json(body).map_err(Refused::Entry)?;
        if is_withdrawal(&entry) {
            return Err(Refused::Entry(EntryError::NoVersion));
        }
        entry.validate(now_ns, self.settings.deployment).map_err(Refused::Entry)?;
        let key = entry.static_key.ok_or(Refused::Entry(EntryError::NullKey))?;
        let lifetime = self.settings.lifetime(&entry, short_lived);
        if let Some(server) = &mut entry.server {
            // Quirk: after the signature was checked, so what is stored does not verify any more.
            server.server_type = self.classes.of(&key, &server.server_type).to_owned();
            let stored = self.store.entry(&key, now_ns).await;
            if self.log.note(&entry, stored.as_deref(), caller.as_ref()) {
                self.counters.servers_noted.inc();
            }
        }
        let record = Record::new(entry, lifetime, now_ns);
        let stored = self.store.put(record, sender, true, now_ns).await.map_err(Refused::Store)?;
        self.counters.evicted.inc_by(u64::try_from(stored.evicted).unwrap_or(u64::MAX));
        Ok(stored.put)
    }

    /// What a removal shows beside a signature of the key.
    fn claim(&self, entry: &Entry, key: &PublicKey, caller: Option<&Caller>, sender: Sender) -> Claim {
        match caller {
            Some(Caller::Key(address)) if address.key == *key => Claim::Owner,
            _ if is_withdrawal(entry) && is_current(entry, self.now_ns()) => {
                Claim::Withdrawal(entry.timestamp_ns)
            }
            _ => Claim::From(sender),
        }
    }

    async fn listing(&self, shared: &Arc<Shared>) -> Result<Arc<Listing>, Reply> {
        let (store, now_ns) = (Arc::clone(&self.store), self.now_ns());
        shared.get(async move { store.clients(now_ns).await }).await.ok_or_else(unexpected)
    }
}

/// Why a post is refused.
enum Refused {
    Entry(EntryError),
    Store(PutError),
}

impl From<Refused> for Reply {
    fn from(refused: Refused) -> Self {
        let invalid = |text: String| {
            Self::message(StatusCode::UNPROCESSABLE_ENTITY, VALIDATION_PREFIX.to_owned() + &text)
        };
        match refused {
            // quirk: 500 for a body that is no entry, as the discovery of 2024 answers.
            Refused::Entry(EntryError::Malformed(_)) => unexpected(),
            Refused::Entry(EntryError::Signature) => {
                Self::message(StatusCode::UNAUTHORIZED, EntryError::Signature.to_string())
            }
            Refused::Entry(error) | Refused::Store(PutError::Order(error)) => invalid(error.to_string()),
            Refused::Store(PutError::NullKey) => invalid(EntryError::NullKey.to_string()),
            Refused::Store(error @ PutError::TooLong { .. }) => {
                Self::message(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            Refused::Store(error @ (PutError::Full | PutError::SourceFull)) => {
                Self::message(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
        }
    }
}

fn unexpected() -> Reply {
    Reply::message(StatusCode::INTERNAL_SERVER_ERROR, "something unexpected happened")
}

fn bad_input() -> Reply {
    Reply::message(StatusCode::BAD_REQUEST, "error bad input")
}

/// The service as its handlers see it.
type Service<S> = State<Arc<DiscoveryService<S>>>;
/// The body as it came.
type Body = Result<Bytes, BytesRejection>;

async fn health<S: Store>(State(service): Service<S>) -> Reply {
    Reply::json(&service.settings.health)
}

async fn entry<S: Store>(State(service): Service<S>, Path(key): Path<String>) -> Result<Reply, Reply> {
    let key: PublicKey = key.parse().map_err(|_| bad_input())?;
    match service.store.entry(&key, service.now_ns()).await {
        Some(record) => {
            service.counters.found.inc();
            Ok(Reply::Shared(record.text.clone()))
        }
        None => {
            service.counters.not_found.inc();
            Err(Reply::message(StatusCode::NOT_FOUND, ENTRY_NOT_FOUND))
        }
    }
}

async fn put<S: Store>(
    State(service): Service<S>,
    caller: Option<Extension<Caller>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Reply, Reply> {
    let body = body_of(body)?;
    let short_lived = query.is_some_and(|query| query.split('&').any(|pair| pair == "timeout=true"));
    let caller = caller.map(|Extension(caller)| caller);
    let sender = Sender::of(caller.as_ref(), &headers);
    match service.accept(&body, short_lived, caller, sender).await {
        Ok(put) => {
            service.counters.posts_stored.inc();
            Ok(Reply::message(
                StatusCode::OK,
                match put {
                    Put::New => "wrote a new entry",
                    Put::Replaced => "wrote new entry iteration",
                },
            ))
        }
        Err(refused) => {
            service.counters.posts_refused.inc();
            Err(refused.into())
        }
    }
}

/// Removes the entry of whoever signed the body, if that is who asks. Sequence and time are not checked (services 2.3).
///
/// quirk: a client of 2024 sends the entry as it is stored, which everybody can read; so it counts only from where it was
/// posted. Who asks from elsewhere is told that the signature is not good enough, in the words of 2024, and the entry
/// expires by itself.
async fn remove<S: Store>(
    State(service): Service<S>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Reply, Reply> {
    let body = body_of(body)?;
    let entry = Entry::from_json(&body).map_err(Refused::Entry)?;
    entry.verify().map_err(Refused::Entry)?;
    let key = entry.static_key.ok_or(Refused::Entry(EntryError::NullKey))?;
    let caller = caller.map(|Extension(caller)| caller);
    let sender = Sender::of(caller.as_ref(), &headers);
    let claim = service.claim(&entry, &key, caller.as_ref(), sender);
    match service.store.withdraw(&key, claim, service.now_ns()).await {
        Withdrawn::Removed | Withdrawn::Absent => {
            service.counters.deletes.inc();
            Ok(Reply::message(StatusCode::OK, "deleted entry"))
        }
        Withdrawn::Refused => {
            service.counters.deletes_refused.inc();
            tracing::debug!(%key, src = caller.map(|caller| caller.to_string()), "a removal by somebody else is refused");
            Err(Refused::Entry(EntryError::Signature).into())
        }
    }
}

async fn clients<S: Store>(State(service): Service<S>) -> Result<Reply, Reply> {
    Ok(Reply::Shared(service.listing(&service.clients).await?.text.clone()))
}

async fn visors<S: Store>(State(service): Service<S>) -> Result<Reply, Reply> {
    Ok(Reply::Shared(service.listing(&service.visors).await?.text.clone()))
}

async fn available_servers<S: Store>(State(service): Service<S>) -> Response {
    let mut servers = service.store.servers(service.now_ns()).await;
    let room = |record: &Record| record.entry.server.as_ref().map_or(0, |server| server.available_sessions);
    servers.retain(|record| room(record) > 0);
    fastrand::shuffle(&mut servers);
    // Made-up servers cost nothing: those that somebody vouches for are not lost among them.
    servers.sort_by_key(|record| !is_official(record));
    servers.truncate(AVAILABLE_MAX);
    // Stable, so servers with equal room stay shuffled.
    servers.sort_by_key(|record| std::cmp::Reverse(room(record)));
    list(servers)
}

async fn all_servers<S: Store>(State(service): Service<S>) -> Response {
    list(service.store.servers(service.now_ns()).await)
}

/// An array of entries: of each answer its own are the references, and the texts are everybody's.
fn list(servers: Vec<Arc<Record>>) -> Response {
    if servers.is_empty() {
        return Reply::message(StatusCode::NOT_FOUND, NO_SERVERS).into_response();
    }
    let bytes = servers.iter().map(|server| server.text.len() + 1).sum::<usize>() + 1;
    let between =
        once("[").chain(repeat_n(",", servers.len() - 1)).map(|text| Bytes::from_static(text.as_bytes()));
    let texts = servers.into_iter().map(|server| server.text.clone());
    let pieces = between.zip(texts).flat_map(<[Bytes; 2]>::from).chain(once(Bytes::from_static(b"]")));
    json_pieces(bytes, pieces)
}

/// Many entries at once; unknown keys are left out (services 2.3 [26]).
async fn batch<S: Store>(State(service): Service<S>, body: Body) -> Result<Response, Reply> {
    let body = body_of(body)?;
    let texts: Vec<String> = serde_json::from_slice(&body).map_err(|_| bad_input())?;
    if texts.len() > BATCH_MAX {
        return Err(Reply::message(StatusCode::BAD_REQUEST, format!("more than {BATCH_MAX} keys")));
    }
    let now_ns = service.now_ns();
    let mut found = BTreeMap::new();
    for text in texts {
        let key: PublicKey = text.parse().map_err(|_| bad_input())?;
        if let Some(record) = service.store.entry(&key, now_ns).await {
            found.insert(key, record);
        }
    }
    let heads: Vec<_> = found
        .keys()
        .enumerate()
        .map(|(index, key)| Bytes::from(format!("{}\"{key}\":", if index == 0 { "{" } else { "," })))
        .collect();
    let bytes = heads.iter().map(Bytes::len).sum::<usize>();
    let bytes = bytes + found.values().map(|record| record.text.len()).sum::<usize>();
    let (bytes, end) = if found.is_empty() { (2, "{}") } else { (bytes + 1, "}") };
    let texts = found.into_values().map(|record| record.text.clone());
    let pieces = heads.into_iter().zip(texts).flat_map(<[Bytes; 2]>::from);
    Ok(json_pieces(bytes, pieces.chain(once(Bytes::from_static(end.as_bytes())))))
}

/// Which clients delegate to which server (services 2.3 [26]).
async fn clients_of_all<S: Store>(State(service): Service<S>) -> Result<Reply, Reply> {
    Ok(Reply::Shared(service.listing(&service.clients_of_servers).await?.text.clone()))
}

async fn clients_of_one<S: Store>(
    State(service): Service<S>,
    Path(key): Path<String>,
) -> Result<Reply, Reply> {
    let server: PublicKey = key.parse().map_err(|_| bad_input())?;
    Ok(Reply::Shared(service.listing(&service.clients_of_servers).await?.part(&server)))
}

/// Removes the entries of others, for a network monitor (services 1.7).
///
/// quirk: the signature covers nothing but the monitor's own key in hex: whoever has seen it once can repeat it. So
/// nobody is on the list unless the operator puts him there.
async fn deregister<S: Store>(
    State(service): Service<S>,
    headers: HeaderMap,
    body: Body,
) -> Result<Reply, Reply> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let malformed = |_| Reply::Status(StatusCode::BAD_REQUEST);
    let forbidden = Reply::Status(StatusCode::FORBIDDEN);
    let monitor = PublicKey::parse_text(header("NM-PK")).map_err(malformed)?;
    let Some(monitor) = monitor.filter(|monitor| service.settings.network_monitors.contains(monitor)) else {
        return Err(forbidden);
    };
    let signature =
        Signature::from_hex(header("NM-Sign")).map_err(|_| Reply::Status(StatusCode::BAD_REQUEST))?;
    verify(&monitor, monitor.to_string().as_bytes(), &signature).map_err(|_| forbidden)?;
    let texts: Vec<String> = serde_json::from_slice(&body_of(body)?).map_err(|_| bad_input())?;
    let keys: Result<Vec<PublicKey>, _> = texts.iter().map(|text| text.parse()).collect();
    for key in keys.map_err(|_| bad_input())? {
        service.store.remove(&key).await;
        service.counters.deregistered.inc();
    }
    Ok(Reply::Json("null".to_owned()))
}

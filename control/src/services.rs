//! What runs in the control plane beside the supervision: the embedded discovery, the registration, `/metrics` and
//! `/health`.
//!
//! In: settings, the state directory, the handle on the data plane. Out: two steps for `ringwire run`: [`Prepared`] takes
//! the listeners and checks what can be checked before a data plane exists, [`Services`] runs beside it and ends with it.
//!
//! ```text
//!   settings ──► Prepared ──(data plane is there)──► Services ──► discovery ◄──HTTP── registration ◄── beat
//!                                                        └──────► /metrics, /health ◄────────────────────┘
//! ```
//! The beat reads the data plane's counters once a second: the number of sessions for the registration, the frames for the
//! rates. Nothing here is near a forwarded byte.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::worker::default_proxy_from;
use ringwire_proto::entry::Deployment;
use ringwire_proto::identity::{PublicKey, SecretKey};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::config::{self, Network};
use crate::discovery::{
    DiscoveryClient, DiscoveryError, DiscoveryHost, DiscoverySettings, HostError, MemoryStore, deployment_of,
};
use crate::http::{BindError, BuildInfo, Health, HttpServer, Limits, bind};
use crate::metrics::{CounterSource as _, Facts, Metrics, Rates, Totals};
use crate::presence::Presence;
use crate::registration::{
    AddressError, Content, Registration, UPDATE_INTERVAL, advertised_address, available_sessions,
};
use crate::state::State;
use crate::supervise::Plane;

/// Where the embedded discovery listens unless it is told: the usual port, on the loopback.
const DISCOVERY_PORT: u16 = 9090;
/// Sessions that are advertised as possible unless it is told (control-plane 1.1).
const SESSIONS_MAX: u32 = 2048;
/// How often the data plane's counters are read.
const BEAT: Duration = Duration::from_secs(1);
/// How often, while the embedded discovery is nearly full, it is told whose sessions are here.
const PROVE_INTERVAL: Duration = Duration::from_secs(10);
/// The journal of the embedded discovery, in the state directory.
const JOURNAL: &str = "discovery.json";

/// Settings of all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSettings {
    /// Discoveries to register at; `None` is the embedded one.
    pub discoveries: Option<Vec<String>>,
    /// Where the embedded discovery listens; `None` is the loopback, wherever the server listens.
    pub discovery_listen: Option<SocketAddr>,
    /// What is advertised; `None` is the first listener.
    pub public_address: Option<String>,
    /// Where `/metrics` and `/health` answer.
    pub http_listen: Option<SocketAddr>,
    /// Sessions that are advertised as possible.
    pub sessions_max: u32,
    /// How often the entry is renewed.
    pub update_interval: Duration,
    /// Networks whose PROXY headers are believed, in front of HTTP as in front of sessions.
    pub proxy_from: Arc<[IpNet]>,
}

impl From<&config::File> for ServiceSettings {
    fn from(file: &config::File) -> Self {
        let discoveries = file.discovery.as_ref();
        Self {
            discoveries: discoveries.map(|urls| urls.iter().map(|url| url.as_str().to_owned()).collect()),
            discovery_listen: file.discovery_listen,
            public_address: file.public_address.as_ref().map(ToString::to_string),
            http_listen: file.http_listen,
            sessions_max: file.max_sessions.unwrap_or(SESSIONS_MAX),
            update_interval: file
                .update_interval_s
                .map_or(UPDATE_INTERVAL, |seconds| Duration::from_secs(u64::from(seconds))),
            proxy_from: file
                .proxy_from
                .as_ref()
                .map_or_else(default_proxy_from, |networks| networks.iter().map(Network::net).collect()),
        }
    }
}

/// Why they cannot run. Every text names the setting.
#[derive(Debug, Error)]
pub enum ServicesError {
    /// A discovery that cannot be one.
    #[error("discovery: {0}")]
    Discovery(#[from] DiscoveryError),
    /// No address to advertise.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// The embedded discovery has no listener.
    #[error("discovery_listen (--discovery-listen): {0}")]
    DiscoveryListener(BindError),
    /// The embedded discovery does not start.
    #[error("embedded discovery: {0}")]
    Host(#[from] HostError),
    /// No listener for `/metrics`.
    #[error("http_listen (--http-listen): {0}")]
    HttpListener(BindError),
    /// A listener has no address.
    #[error("a listener failed: {0}")]
    Listener(#[from] io::Error),
}

/// Listeners taken, settings checked.
#[derive(Debug)]
pub struct Prepared {
    settings: ServiceSettings,
    /// Discoveries elsewhere, or on this machine but not ours.
    discoveries: Vec<DiscoveryClient>,
    discovery: Option<TcpListener>,
    http: Option<TcpListener>,
}

impl Prepared {
    /// Takes the listeners. `listen` is where the data plane is to listen.
    ///
    /// # Errors
    /// [`ServicesError`].
    pub async fn new(
        settings: ServiceSettings,
        listen: &[SocketAddr],
        state: &State,
    ) -> Result<Self, ServicesError> {
        let mut discoveries = Vec::new();
        for url in settings.discoveries.iter().flatten() {
            discoveries.push(DiscoveryClient::new(url)?);
        }
        advertised_address(settings.public_address.as_deref(), listen, elsewhere(&discoveries))?;
        let discovery = if settings.discovery_listen.is_some() || settings.discoveries.is_none() {
            Some(discovery_listener(&settings, listen, state).await?)
        } else {
            None
        };
        let http = match settings.http_listen {
            Some(address) => Some(bind(address).await.map_err(ServicesError::HttpListener)?),
            None => None,
        };
        Ok(Self { settings, discoveries, discovery, http })
    }

    /// Runs them beside a data plane that is attached.
    ///
    /// # Errors
    /// [`ServicesError`].
    pub async fn start(
        self,
        state: &State,
        key: SecretKey,
        plane: &Plane,
    ) -> Result<Services, ServicesError> {
        let Self { settings, mut discoveries, discovery, http } = self;
        let listening = plane.status().addresses;
        let address =
            advertised_address(settings.public_address.as_deref(), &listening, elsewhere(&discoveries))?;
        let health = Health {
            build_info: Some(BuildInfo::of_this_program()),
            started_at: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
            ..Health::default()
        };
        let (mut deployment, mut discovery_address) = (None, None);
        let host = match discovery {
            Some(listener) => {
                let all: Vec<_> = listening.iter().copied().chain([listener.local_addr()?]).collect();
                discovery_address = Some(listener.local_addr()?);
                let mut discovery = DiscoverySettings::new(deployment_of(&all));
                discovery.own_server = Some(key.public_key());
                discovery.health = Health { service_name: discovery.health.service_name, ..health.clone() };
                discovery.proxy_from = Arc::clone(&settings.proxy_from);
                deployment = Some(discovery.deployment);
                let host = DiscoveryHost::start(listener, discovery, state.directory().join(JOURNAL))?;
                discoveries.insert(0, DiscoveryClient::new(&host.local_url())?);
                Some(host)
            }
            None => None,
        };
        let health = Health {
            service_name: "dmsg-server".to_owned(),
            public_key: key.public_key().to_string(),
            dmsg_discovery: discoveries.first().map(|first| first.url().to_owned()).unwrap_or_default(),
            ..health
        };
        let advertise = Advertise { address: address.clone(), sessions_max: settings.sessions_max };
        let first = advertise.content(&plane.totals().await.unwrap_or_default());
        let presence = Presence::new(Registration::start(discoveries, key, first, settings.update_interval));
        let rates = Arc::new(Rates::default());
        let http = match http {
            Some(listener) => {
                let mut metrics = Metrics::new(&rates);
                presence.registration().counters().register(metrics.registry());
                if let Some(host) = &host {
                    let (counters, listener) = host.counters();
                    counters.register(metrics.registry());
                    metrics.add_listener("discovery", listener.clone());
                }
                let (watched, standings) = (plane.clone(), presence.registration().watch());
                metrics.add_facts(move || {
                    let status = watched.status();
                    let registrations = standings.iter().map(|standing| {
                        let standing = standing.borrow();
                        (standing.url.clone(), standing.accepted.map(|(_, at)| at))
                    });
                    Facts {
                        dataplane_pid: if status.attached { status.pid } else { 0 },
                        dataplane_losses: status.losses,
                        connections_max: status.connections_max,
                        registrations: registrations.collect(),
                    }
                });
                let bound = listener.local_addr()?;
                let (asked, presence) = (plane.clone(), presence.clone());
                let health = move || {
                    let unready = presence.away().map(str::to_owned).or_else(|| asked.status().unready());
                    Health { not_ready: unready.unwrap_or_default(), ..health.clone() }
                };
                let mut server = metrics.serve(plane.clone(), health, Limits::default());
                server.listen_behind(listener, Arc::clone(&settings.proxy_from));
                Some((server, bound))
            }
            None => None,
        };
        let store = host.as_ref().map(|host| Arc::clone(host.store()));
        let beat = tokio::spawn(beat(plane.clone(), presence.clone(), rates, advertise, store));
        Ok(Services { host, deployment, discovery_address, presence, address, http, beat })
    }
}

/// The first that is not on this machine.
pub(crate) fn elsewhere(discoveries: &[DiscoveryClient]) -> Option<&str> {
    discoveries.iter().find(|discovery| !discovery.is_local()).map(DiscoveryClient::url)
}

/// The listener of the embedded discovery: where it is told; else on the loopback, since whoever opens the server to the world has
/// not opened a discovery with it. There where it was before, so that clients which know its URL find it again; else on the
/// usual port; else, when that is taken or named for something else, or the server's own port is a free one, on a free port.
async fn discovery_listener(
    settings: &ServiceSettings,
    listen: &[SocketAddr],
    state: &State,
) -> Result<TcpListener, ServicesError> {
    if let Some(address) = settings.discovery_listen {
        return bind(address).await.map_err(ServicesError::DiscoveryListener);
    }
    let beside = listen.first().copied();
    let ip = match beside.map(|beside| beside.ip()) {
        Some(ip) if ip.is_loopback() => ip,
        Some(IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        Some(IpAddr::V4(_)) | None => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let port = beside.map_or(DISCOVERY_PORT, |beside| if beside.port() == 0 { 0 } else { DISCOVERY_PORT });
    let before = state.read_note().ok().and_then(|note| {
        let url = note.discovery?;
        let before: SocketAddr = url.strip_prefix("http://")?.parse().ok()?;
        Some(before.port())
    });
    let named = |port: &u16| {
        *port != 0 && listen.iter().chain(&settings.http_listen).any(|address| address.port() == *port)
    };
    for port in before.into_iter().chain([port]).filter(|port| !named(port)) {
        if let Ok(listener) = bind(SocketAddr::new(ip, port)).await {
            return Ok(listener);
        }
    }
    let listener = bind(SocketAddr::new(ip, 0)).await.map_err(ServicesError::DiscoveryListener)?;
    tracing::warn!(
        wanted = port,
        taken = %listener.local_addr()?,
        "the usual port of the embedded discovery is taken; name another with --discovery-listen"
    );
    Ok(listener)
}

/// What is advertised, and from what it is computed.
#[derive(Debug)]
struct Advertise {
    address: String,
    sessions_max: u32,
}

impl Advertise {
    /// A data plane that is away has no room for anybody.
    fn content(&self, totals: &Totals) -> Content {
        let sessions = totals.open(Counter::SessionsOpened, Counter::SessionsClosed);
        let room =
            if totals.attached { available_sessions(u64::from(self.sessions_max), sessions) } else { 0 };
        Content::server(self.address.clone(), room, String::new())
    }
}

async fn beat(
    plane: Plane,
    presence: Presence,
    rates: Arc<Rates>,
    advertise: Advertise,
    store: Option<Arc<MemoryStore>>,
) {
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut prove_at = Instant::now();
    loop {
        ticks.tick().await;
        if let Some(store) = store.as_ref().filter(|store| Instant::now() >= prove_at && store.is_dense()) {
            prove_at = Instant::now() + PROVE_INTERVAL;
            let Some(table) = plane.table().await else { return };
            let store = Arc::clone(store);
            let keys = table.sessions.into_iter().map(|session| session.note.peer);
            // Tens of microseconds for each key; detached, because nothing waits for it.
            drop(tokio::task::spawn_blocking(move || {
                store.prove(
                    keys.filter_map(|key| PublicKey::from_bytes(key.as_bytes()).ok()).collect::<Vec<_>>(),
                );
            }));
        }
        let Some(totals) = plane.totals().await else { return };
        rates.note(totals.sum(Counter::FramesReceived), Instant::now());
        presence.registration().set_content(advertise.content(&totals));
    }
}

/// Running. Dropping it leaves the entries where they are; [`stop`](Self::stop) ends it in order.
#[derive(Debug)]
pub struct Services {
    host: Option<DiscoveryHost>,
    deployment: Option<Deployment>,
    /// Where the embedded discovery listens.
    discovery_address: Option<SocketAddr>,
    presence: Presence,
    /// What is advertised.
    address: String,
    http: Option<(HttpServer, SocketAddr)>,
    beat: JoinHandle<()>,
}

impl Services {
    /// The URL of the discovery that programs on this machine find this server in: the embedded one for those here, else
    /// the first that was named.
    pub fn discovery_url(&self) -> Option<String> {
        self.presence.registration().standings().into_iter().next().map(|standing| standing.url)
    }

    /// Lines for people who have just started this: what runs where, and what is advertised.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, standing) in self.presence.registration().standings().into_iter().enumerate() {
            let kind = match self.deployment {
                Some(Deployment::Test) if index == 0 => {
                    ", embedded; test mode: every listener is on loopback"
                }
                Some(Deployment::Production) if index == 0 => ", embedded",
                _ => "",
            };
            lines.push(format!("  discovery    {}{kind}", standing.url));
            let place = match self.discovery_address.filter(|_| index == 0) {
                Some(address) if address.ip().is_loopback() => {
                    "for this machine only; open it with --discovery-listen ADDRESS".to_owned()
                }
                Some(address) => format!("listening on {address}, for whoever reaches that"),
                None => continue,
            };
            lines.push(format!("               {place}"));
        }
        lines.push(format!("  advertised   {}", self.address));
        if let Some(http) = self.http_address() {
            lines.push(format!("  metrics      http://{http}/metrics and /health"));
        }
        lines
    }

    /// Where the embedded discovery listens, if it runs.
    pub fn discovery_address(&self) -> Option<SocketAddr> {
        self.discovery_address
    }

    /// Where `/metrics` and `/health` answer.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(_, address)| *address)
    }

    /// Whether others are sent to this server.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Ends all of them, behind the data plane: until then `/health` says why, and the embedded discovery where else to go.
    /// Entries that were not withdrawn before stay, for the control plane that goes on.
    pub async fn stop(self) {
        self.beat.abort();
        if let Some((http, _)) = self.http {
            http.stop().await;
        }
        if let Some(host) = self.host {
            host.stop().await;
        }
    }
}

//! The answering side. In: requests on the socket. Out: answers from the supervision's handle and from the data plane.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use ringwire_dataplane::counters::Counter;
use ringwire_dataplane::limits::WAIT_US_MAX;
use ringwire_ipc::message::{HybridPolicy, Order, PeerKey, Setting};
use ringwire_proto::identity::PublicKey;
use tokio::net::{UnixListener, UnixStream};

use super::direct::{self, DirectError, key_text, seconds};
use super::model::{
    self, Alive, Change, Close, ClosedSession, ClosedSessions, ControlStatus, Counters, DiscoveryStatus,
    Done, Drain, Failure, Of, Session, Sessions, Status, Stop, Stream, Streams,
};
use super::pattern::{Pattern, PatternError};
use crate::config::{SETTINGS, setting_name};
use crate::http::{HttpServer, Limits};
use crate::presence::{Absence, DRAINING, ENDING, Presence};
use crate::registration::Standing;
use crate::state::{State, StateError};
use crate::supervise::mirror::{AskError, Outcome, reason_text};
use crate::supervise::{End, EndError, Plane, monotonic_ns};

/// Longest drain that can be asked for, in seconds: a month.
const DRAIN_S_MAX: f64 = 30.0 * 86_400.0;

/// How long an answer may take: a stop waits for the data plane's end, which has ten seconds.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// What the interface answers from.
#[derive(Debug, Clone)]
pub struct Admin {
    state: Arc<State>,
    plane: Plane,
    started: Instant,
    presence: Option<Presence>,
}

/// The socket of the control plane that holds the directory's lock; what a dead one left there is removed.
///
/// # Errors
/// The directory cannot be written, or its path is too long for a socket.
pub fn bind(state: &State) -> Result<UnixListener, StateError> {
    let path = state.control_socket();
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(StateError::Io { action: "remove", path, source });
        }
        Ok(()) | Err(_) => {}
    }
    let bound = UnixListener::bind(&path).and_then(|listener| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    bound.map_err(|source| StateError::Io { action: "listen on", path, source })
}

impl Admin {
    /// Answers about this data plane.
    pub fn new(state: State, plane: Plane) -> Self {
        Self { state: Arc::new(state), plane, started: Instant::now(), presence: None }
    }

    /// The same, of a server that others are sent to.
    #[must_use]
    pub fn with_presence(mut self, presence: Presence) -> Self {
        self.presence = Some(presence);
        self
    }

    /// Sends nobody here any more, see [`Presence::leave`].
    async fn leave(&self, reason: &'static str) -> Option<Absence> {
        match &self.presence {
            Some(presence) => Some(presence.leave(reason).await),
            None => None,
        }
    }

    fn discoveries(&self) -> Vec<DiscoveryStatus> {
        let status = |standing: &Standing| DiscoveryStatus {
            url: standing.url.clone(),
            registered_s: standing.accepted.map(|(_, at)| at.elapsed().unwrap_or_default().as_secs_f64()),
            error: standing.error.as_ref().map(ToString::to_string),
            withdrawn: standing.withdrawn,
        };
        let registration = self.presence.as_ref().map(Presence::registration);
        registration
            .map(|registration| registration.standings().iter().map(status).collect())
            .unwrap_or_default()
    }

    /// Answers on `listener` until the server is stopped or dropped. Must be called inside a tokio runtime.
    pub fn serve(self, listener: UnixListener) -> HttpServer {
        let routes = Router::new()
            .route("/v1/alive", get(alive))
            .route("/v1/status", get(status))
            .route("/v1/sessions", get(sessions))
            .route("/v1/sessions/closed", get(closed))
            .route("/v1/streams", get(streams))
            .route("/v1/counters", get(counters))
            .route("/v1/limits", get(limits))
            .route("/v1/close", post(close))
            .route("/v1/settings", put(change))
            .route("/v1/drain", post(drain))
            .route("/v1/stop", post(stop))
            .with_state(self);
        let mut server = HttpServer::new(routes, Limits { request: REQUEST_LIMIT, ..Limits::default() });
        server.listen(OwnersOnly(listener));
        server
    }

    /// Work that blocks, such as a conversation on the data plane's socket.
    async fn direct<T: Send + 'static>(
        &self,
        work: impl FnOnce(&State) -> Result<T, DirectError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let state = Arc::clone(&self.state);
        match tokio::task::spawn_blocking(move || work(&state)).await {
            Ok(done) => done.map_err(|error| Refusal(StatusCode::BAD_GATEWAY, error.to_string())),
            Err(_) => Err(Refusal::ending()),
        }
    }

    async fn order(&self, order: Order) -> Result<Outcome, Refusal> {
        match self.plane.order(order).await? {
            Outcome::TimedOut => Err(Refusal(
                StatusCode::GATEWAY_TIMEOUT,
                "the data plane did not answer in time; look at: ringwire status".to_owned(),
            )),
            Outcome::Lost => Err(Refusal(
                StatusCode::BAD_GATEWAY,
                "the data plane went away before it answered; try again".to_owned(),
            )),
            Outcome::Refused => {
                Err(Refusal(StatusCode::CONFLICT, "the data plane does not do that now".to_owned()))
            }
            outcome @ (Outcome::Done(_) | Outcome::Bridges(_) | Outcome::NotFound) => Ok(outcome),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl Refusal {
    fn ending() -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, "the control plane is ending".to_owned())
    }

    fn bad(text: String) -> Self {
        Self(StatusCode::BAD_REQUEST, text)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(Failure { error: self.1 })).into_response()
    }
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<PatternError> for Refusal {
    fn from(error: PatternError) -> Self {
        let code = match error {
            PatternError::Malformed(_) => StatusCode::BAD_REQUEST,
            PatternError::Nobody(_) => StatusCode::NOT_FOUND,
            PatternError::Several { .. } => StatusCode::CONFLICT,
        };
        Self(code, error.to_string())
    }
}

impl From<EndError> for Refusal {
    fn from(error: EndError) -> Self {
        Self(StatusCode::BAD_GATEWAY, error.to_string())
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

/// That it answers is all that is asked.
async fn alive() -> Answer<Alive> {
    Ok(Json(Alive { pid: std::process::id() }))
}

async fn status(Shared(admin): Shared<Admin>) -> Answer<Status> {
    let plane = admin.plane.status();
    let table = admin.plane.table().await.unwrap_or_default();
    let dataplane = admin.direct(direct::dataplane_status).await.ok();
    let control = ControlStatus {
        pid: std::process::id(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: admin.started.elapsed().as_secs_f64(),
        attached: plane.attached,
        current: table.current,
        not_ready: plane.unready(),
        losses: plane.losses,
        last_loss: plane.last_loss,
        events_dropped: table.events_dropped,
        discoveries: admin.discoveries(),
    };
    Ok(Json(Status { control: Some(control), control_error: None, dataplane }))
}

/// Whose list is asked for.
fn pattern(of: &Of) -> Result<Option<Pattern>, PatternError> {
    of.key.as_deref().map(str::parse).transpose()
}

async fn sessions(Shared(admin): Shared<Admin>, Query(of): Query<Of>) -> Answer<Sessions> {
    let table = admin.plane.table().await.ok_or_else(Refusal::ending)?;
    let now = monotonic_ns();
    let mut sessions: Vec<_> = table
        .sessions
        .into_iter()
        .map(|session| Session {
            worker: u32::try_from(session.worker).unwrap_or(u32::MAX),
            session: session.note.session,
            public_key: key_text(session.note.peer.as_bytes()),
            address: session.note.address.to_string(),
            hybrid: session.note.hybrid,
            standby: session.note.stands_by,
            opened_ns: session.note.at_ns,
            age_s: seconds(now.saturating_sub(session.note.at_ns)),
        })
        .collect();
    sessions.sort_by_key(|session| (session.worker, session.session));
    let from = "control".to_owned();
    let all = Sessions { from, current: table.current, untracked: table.untracked, sessions };
    Ok(Json(match pattern(&of)? {
        Some(pattern) => all.of(&pattern)?,
        None => all,
    }))
}

async fn closed(Shared(admin): Shared<Admin>, Query(of): Query<Of>) -> Answer<ClosedSessions> {
    let closed = admin.plane.closed().await.ok_or_else(Refusal::ending)?;
    let now = monotonic_ns();
    let closed = closed.into_iter().map(|closed| {
        let (reason, errno) = reason_text(closed.reason);
        let ended = closed.note.at_ns;
        ClosedSession {
            worker: u32::try_from(closed.worker).unwrap_or(u32::MAX),
            session: closed.note.session,
            public_key: key_text(closed.note.peer.as_bytes()),
            address: closed.note.address.to_string(),
            reason: reason.to_owned(),
            errno,
            ended_s: seconds(now.saturating_sub(ended)),
            lasted_s: closed.opened_ns.map(|opened| seconds(ended.saturating_sub(opened))),
        }
    });
    let all = ClosedSessions { closed: closed.collect() };
    Ok(Json(match pattern(&of)? {
        Some(pattern) => all.of(&pattern)?,
        None => all,
    }))
}

async fn streams(Shared(admin): Shared<Admin>, Query(of): Query<Of>) -> Answer<Streams> {
    let list = match admin.order(Order::ListBridges).await? {
        Outcome::Bridges(list) => list,
        _ => return Err(Refusal(StatusCode::BAD_GATEWAY, "the data plane listed no bridges".to_owned())),
    };
    let now = monotonic_ns();
    let streams = list.bridges.into_iter().map(|(worker, bridge)| Stream {
        worker: u32::try_from(worker).unwrap_or(u32::MAX),
        source: key_text(bridge.source.as_bytes()),
        destination: key_text(bridge.destination.as_bytes()),
        forth_bytes: bridge.forth,
        back_bytes: bridge.back,
        forth_queued_bytes: bridge.forth_queued.into(),
        back_queued_bytes: bridge.back_queued.into(),
        forth_limited: Some(bridge.forth_limited),
        back_limited: Some(bridge.back_limited),
        age_s: Some(seconds(now.saturating_sub(bridge.since_ns))),
    });
    let all = Streams { from: "control".to_owned(), missing: list.missing, streams: streams.collect() };
    Ok(Json(match pattern(&of)? {
        Some(pattern) => all.of(&pattern)?,
        None => all,
    }))
}

async fn counters(Shared(admin): Shared<Admin>) -> Answer<Counters> {
    let workers = admin.plane.counters().await.ok_or_else(Refusal::ending)?;
    let named = |totals: &[u64]| {
        let named = Counter::ALL.iter().zip(totals);
        named.map(|(counter, &total)| (counter.name().to_owned(), total)).collect()
    };
    let total: Vec<u64> = (0..Counter::ALL.len())
        .map(|cell| workers.iter().filter_map(|totals| totals.get(cell)).sum())
        .collect();
    Ok(Json(Counters { total: named(&total), workers: workers.iter().map(|totals| named(totals)).collect() }))
}

async fn limits(Shared(admin): Shared<Admin>) -> Answer<model::Limits> {
    Ok(Json(admin.direct(direct::dataplane_limits).await?))
}

async fn close(Shared(admin): Shared<Admin>, Json(close): Json<Close>) -> Answer<Done> {
    let pattern: Pattern = close.public_key.parse()?;
    let table = admin.plane.table().await.ok_or_else(Refusal::ending)?;
    let keys: Vec<_> = table.sessions.iter().map(|session| key_text(session.note.peer.as_bytes())).collect();
    let meant = pattern.resolve(keys.iter().map(String::as_str))?;
    let key = meant.parse::<PublicKey>().map_err(|error| Refusal::bad(format!("{meant}: {error}")))?;
    let peer = PeerKey::new(*key.as_bytes()).map_err(|error| Refusal::bad(error.to_string()))?;
    match admin.order(Order::CloseSession(peer)).await? {
        Outcome::Done(count) => Ok(Json(Done { message: format!("closed the session of {key}"), count })),
        _ => Err(Refusal(
            StatusCode::NOT_FOUND,
            format!("{key} has no session here; see: ringwire show sessions"),
        )),
    }
}

async fn change(Shared(admin): Shared<Admin>, Json(change): Json<Change>) -> Answer<Done> {
    let name = setting_name(&change.name);
    let setting = parse_setting(&name, &change.value).map_err(Refusal::bad)?;
    match admin.order(Order::Change(setting)).await? {
        Outcome::Done(_) => {
            let message = format!("{name} is {} from now on", change.value);
            Ok(Json(Done { message, count: admin.plane.status().workers as u64 }))
        }
        _ => Err(Refusal(StatusCode::CONFLICT, format!("the data plane does not change {name}"))),
    }
}

/// A setting that can change while it runs, by its name in files.
fn parse_setting(name: &str, value: &str) -> Result<Setting, String> {
    match name {
        "hybrid" => match value {
            "off" => Ok(Setting::Hybrid(HybridPolicy::Off)),
            "offer" => Ok(Setting::Hybrid(HybridPolicy::Offer)),
            "require" => Ok(Setting::Hybrid(HybridPolicy::Require)),
            _ => Err(format!("hybrid is one of off, offer, require; not `{value}`")),
        },
        "company_us" => microseconds(name, value).map(Setting::CompanyUsMax),
        "pause_us" => microseconds(name, value).map(Setting::PauseUsMax),
        _ if SETTINGS.iter().any(|setting| setting.name == name) => Err(format!(
            "{name} holds until the server is started anew; these can be changed while it runs: {}",
            live_settings()
        )),
        _ => Err(format!(
            "there is no setting `{name}`; these can be changed while the server runs: {}",
            live_settings()
        )),
    }
}

fn live_settings() -> String {
    let live = SETTINGS.iter().filter(|setting| setting.live).map(|setting| setting.name);
    live.collect::<Vec<_>>().join(", ")
}

fn microseconds(name: &str, value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(us) if us <= WAIT_US_MAX => Ok(us),
        _ => Err(format!("{name} is a number of microseconds from 0 to {WAIT_US_MAX}; not `{value}`")),
    }
}

async fn drain(Shared(admin): Shared<Admin>, Json(drain): Json<Drain>) -> Answer<Done> {
    if !(0.0..=DRAIN_S_MAX).contains(&drain.within_s) {
        return Err(Refusal::bad(format!("within_s is a number of seconds from 0 to {DRAIN_S_MAX}")));
    }
    carried_out(async move {
        if !admin.plane.status().attached {
            return Err(EndError::DataPlane("it is not running".to_owned()).into());
        }
        let sessions = admin.plane.table().await.unwrap_or_default().sessions.len() as u64;
        let absence = admin.leave(DRAINING).await;
        admin.plane.drain(Duration::from_secs_f64(drain.within_s)).await?;
        // Had it not been done, the server would be there again from here on.
        if let Some(absence) = absence {
            absence.for_good();
        }
        let last = match sessions {
            0 => "at once: nobody is connected".to_owned(),
            1 => format!("when its one session has ended, at the latest in {} s", drain.within_s),
            _ => format!("when its {sessions} sessions have ended, at the latest in {} s", drain.within_s),
        };
        let message = format!("draining: nothing new is accepted, and the server ends {last}");
        Ok(Json(Done { message, count: sessions }))
    })
    .await
}

async fn stop(Shared(admin): Shared<Admin>, Json(stop): Json<Stop>) -> Answer<Done> {
    carried_out(async move {
        let message = if stop.leave_dataplane {
            let status = admin.plane.status();
            admin.plane.end(End::Leave).await?;
            match status.attached {
                true => format!(
                    "stopped the control plane; the data plane (process {}) goes on alone",
                    status.pid
                ),
                false => "stopped the control plane; it had no data plane".to_owned(),
            }
        } else {
            // Whatever comes of it, this process ends with it.
            if let Some(absence) = admin.leave(ENDING).await {
                absence.for_good();
            }
            match admin.plane.end(End::Stop).await? {
                Some(dataplane) => format!("stopped both planes (data plane: process {dataplane})"),
                None => "stopped the control plane; it had no data plane".to_owned(),
            }
        };
        Ok(Json(Done { message, count: 1 }))
    })
    .await
}

/// An order that was begun is carried out whole, also when who gave it does not wait.
async fn carried_out<T: Send + 'static>(work: impl Future<Output = Answer<T>> + Send + 'static) -> Answer<T> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Refusal::ending()))
}

/// Lets nobody in but processes of our user and root, whatever the file's mode has become.
struct OwnersOnly(UnixListener);

impl axum::serve::Listener for OwnersOnly {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // Retries by itself when descriptors are used up.
            let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
            let own = rustix::process::geteuid().as_raw();
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == own || peer.uid() == 0 => return (stream, address),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "refused another user on the admin socket"),
                Err(error) => tracing::debug!(%error, "a connection to the admin socket went away"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_and_named() {
        assert_eq!(parse_setting("hybrid", "require"), Ok(Setting::Hybrid(HybridPolicy::Require)));
        assert_eq!(parse_setting("company_us", "0"), Ok(Setting::CompanyUsMax(0)));
        assert_eq!(parse_setting("pause_us", "3000"), Ok(Setting::PauseUsMax(3000)));
        for (name, value, cure) in [
            ("hybrid", "maybe", "off, offer, require"),
            ("company_us", "-1", "0 to 10000"),
            ("company_us", "10001", "0 to 10000"),
            ("pause_us", "10001", "0 to 10000"),
            (
                "listen",
                "127.0.0.1:1",
                "started anew; these can be changed while it runs: hybrid, company_us, pause_us",
            ),
            (
                "company",
                "1",
                "no setting `company`; these can be changed while the server runs: hybrid, company_us, pause_us",
            ),
        ] {
            let error = parse_setting(name, value).unwrap_err();
            assert!(error.contains(cure), "{error}");
        }
    }
}

//! The hands of the machines: one task per discovery that sends what its machine asks for.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ringwire_proto::entry::Entry;
use ringwire_proto::identity::SecretKey;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::content::Content;
use super::counters::RegistrationCounters;
use super::machine::{Action, Failure, Machine};
use crate::discovery::{DiscoveryClient, DiscoveryError, Refusal, unix_now_ns, withdrawal};
use crate::throttle::{INTERVAL, Throttle};

/// How long an orderly stop waits for discoveries. Entries expire by themselves.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// How the registration at one discovery stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The discovery.
    pub url: String,
    /// The last post that it accepted: its sequence and when.
    pub accepted: Option<(u64, SystemTime)>,
    /// What went wrong since then.
    pub error: Option<DiscoveryError>,
}

/// Own entries in any number of discoveries. Dropping it leaves them where they are; [`stop`](Self::stop) removes them.
#[derive(Debug)]
pub struct Registration {
    content: watch::Sender<Content>,
    stopping: watch::Sender<bool>,
    standings: Vec<watch::Receiver<Standing>>,
    counters: RegistrationCounters,
    tasks: JoinSet<()>,
}

impl Registration {
    /// Keeps the entry of `key` with `content` in every one of `discoveries`, from now on, and renews it every
    /// `interval`. Must be called within a tokio runtime.
    pub fn start(
        discoveries: Vec<DiscoveryClient>,
        key: SecretKey,
        content: Content,
        interval: Duration,
    ) -> Self {
        let key = Arc::new(key);
        let (content, stopping) = (watch::Sender::new(content), watch::Sender::new(false));
        let counters = RegistrationCounters::default();
        let mut tasks = JoinSet::new();
        let mut standings = Vec::new();
        for discovery in discoveries {
            let url = discovery.url().to_owned();
            let (standing, receiver) = watch::channel(Standing { url, accepted: None, error: None });
            standings.push(receiver);
            let task = Task {
                discovery,
                key: Arc::clone(&key),
                standing,
                counters: counters.clone(),
                interval,
                failures: Throttle::new(INTERVAL),
            };
            tasks.spawn(task.run(content.subscribe(), stopping.subscribe()));
        }
        Self { content, stopping, standings, counters, tasks }
    }

    /// The entry is to say this from now on. Cheap, and without effect when it already does.
    pub fn set_content(&self, content: Content) {
        self.content.send_if_modified(|current| {
            let changed = *current != content;
            *current = content;
            changed
        });
    }

    /// How it stands with each discovery, in the order given.
    pub fn standings(&self) -> Vec<Standing> {
        self.standings.iter().map(|standing| standing.borrow().clone()).collect()
    }

    /// [`standings`](Self::standings) for who watches them.
    pub fn watch(&self) -> Vec<watch::Receiver<Standing>> {
        self.standings.clone()
    }

    /// What it counts, all discoveries together.
    pub fn counters(&self) -> &RegistrationCounters {
        &self.counters
    }

    /// Removes the entries, as far as that goes within three seconds.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        let ended = timeout(STOP_LIMIT, async { while self.tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::info!("a discovery did not answer in time; the entry there expires by itself");
        }
    }
}

struct Task {
    discovery: DiscoveryClient,
    key: Arc<SecretKey>,
    standing: watch::Sender<Standing>,
    counters: RegistrationCounters,
    interval: Duration,
    failures: Throttle,
}

impl Task {
    async fn run(self, mut content: watch::Receiver<Content>, mut stopping: watch::Receiver<bool>) {
        let initial = content.borrow_and_update().clone();
        let mut machine = Machine::new(initial, self.interval, Instant::now(), fastrand::u64(..));
        let mut is_stopping = false;
        while !machine.is_stopped() {
            let mut action = machine.next_action(Instant::now(), unix_now_ns());
            while let Some(todo) = action {
                action = self.perform(todo, &mut machine).await;
            }
            let next = machine.next_time();
            tokio::select! {
                // A sender that is gone is a registration that was dropped: its entry stays.
                stop = stopping.wait_for(|stopping| *stopping), if !is_stopping => {
                    if stop.is_err() {
                        return;
                    }
                    is_stopping = true;
                    machine.stop();
                }
                changed = content.changed(), if !is_stopping => {
                    if changed.is_err() {
                        return;
                    }
                    machine.set_content(content.borrow_and_update().clone(), Instant::now());
                }
                () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
                else => return,
            }
        }
    }

    /// Sends one request. What the machine wants next is the result.
    async fn perform(&self, action: Action, machine: &mut Machine) -> Option<Action> {
        self.counters.requests.inc();
        match action {
            Action::Read => {
                let read = self.discovery.entry(&self.key.public_key()).await;
                let read = read.map_err(|error| self.failed(error));
                machine.handle_read(read.as_ref().map_err(|failure| *failure), Instant::now(), unix_now_ns())
            }
            Action::Post(mut entry) => {
                entry.sign(&self.key);
                let posted = self.discovery.put(&entry).await;
                if posted.is_ok() {
                    self.accepted(&entry);
                }
                machine.handle_post(posted.map_err(|error| self.failed(error)), Instant::now());
                None
            }
            Action::Delete(entry) => {
                let mut entry = withdrawal(entry);
                entry.sign(&self.key);
                if let Err(error) = self.discovery.delete(&entry).await {
                    self.failed(error);
                }
                machine.handle_delete();
                None
            }
        }
    }

    fn accepted(&self, entry: &Entry) {
        self.counters.posts_accepted.inc();
        tracing::debug!(discovery = self.discovery.url(), sequence = entry.sequence, "registered");
        let accepted = Some((entry.sequence, SystemTime::now()));
        self.standing.send_modify(|standing| {
            standing.accepted = accepted;
            standing.error = None;
        });
    }

    fn failed(&self, error: DiscoveryError) -> Failure {
        let failure = Failure::from(&error);
        if failure == Failure::NotFound {
            return failure;
        }
        self.counters.failures.inc();
        if let Some(suppressed) = self.failures.admit() {
            tracing::warn!(suppressed, "not registered: {error}");
        }
        self.standing.send_modify(|standing| standing.error = Some(error));
        failure
    }
}

impl From<&DiscoveryError> for Failure {
    fn from(error: &DiscoveryError) -> Self {
        match error {
            DiscoveryError::NotFound { .. } => Self::NotFound,
            DiscoveryError::RateLimited { retry_after, .. } => Self::Transient(*retry_after),
            error => match error.refusal() {
                Some(Refusal::Sequence | Refusal::TimestampOrder) => Self::Sequence,
                _ if error.is_transient() => Self::Transient(Duration::ZERO),
                _ => Self::Permanent,
            },
        }
    }
}

//! The hands of the machines: one task per discovery that sends what its machine asks for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ringwire_proto::entry::Entry;
use ringwire_proto::identity::SecretKey;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};

use super::content::Content;
use super::counters::RegistrationCounters;
use super::machine::{Action, Failure, Machine};
use crate::discovery::{DiscoveryClient, DiscoveryError, Refusal, unix_now_ns, withdrawal};
use crate::throttle::{INTERVAL, Throttle};

/// How long a withdrawal waits for discoveries: sessions are not closed before. One that is slower may go on sending clients
/// here for a moment, and the entry there expires by itself.
pub const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

/// How the registration at one discovery stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The discovery.
    pub url: String,
    /// The last post that it accepted: its sequence and when.
    pub accepted: Option<(u64, SystemTime)>,
    /// What went wrong since then.
    pub error: Option<DiscoveryError>,
    /// The entry was taken away on purpose, as far as the discovery let us, and is not posted meanwhile.
    pub withdrawn: bool,
}

/// Own entries in any number of discoveries. Dropping it leaves them where they are; [`withdraw`](Self::withdraw) removes
/// them.
#[derive(Debug)]
pub struct Registration {
    content: watch::Sender<Content>,
    /// The entries are to be away.
    away: watch::Sender<bool>,
    /// Until when discoveries are waited for, while they are.
    answer_by: Mutex<Option<Instant>>,
    standings: Vec<watch::Receiver<Standing>>,
    counters: RegistrationCounters,
    _tasks: JoinSet<()>,
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
        let (content, away) = (watch::Sender::new(content), watch::Sender::new(false));
        let counters = RegistrationCounters::default();
        let mut tasks = JoinSet::new();
        let mut standings = Vec::new();
        for discovery in discoveries {
            let url = discovery.url().to_owned();
            let standing = Standing { url, accepted: None, error: None, withdrawn: false };
            let (standing, receiver) = watch::channel(standing);
            standings.push(receiver);
            let task = Task {
                discovery,
                key: Arc::clone(&key),
                standing,
                counters: counters.clone(),
                interval,
                failures: Throttle::new(INTERVAL),
            };
            tasks.spawn(task.run(content.subscribe(), away.subscribe()));
        }
        Self { content, away, answer_by: Mutex::default(), standings, counters, _tasks: tasks }
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

    /// Removes the entries, and posts none from now on until [`restore`](Self::restore). Returns when every discovery has
    /// answered, at the latest after [`WITHDRAW_LIMIT`]; what has not been answered then is awaited in the background, and
    /// not by a second call.
    pub async fn withdraw(&self) {
        let (answer_by, first) = {
            let mut answer_by = self.answer_by();
            let first = answer_by.is_none();
            (*answer_by.get_or_insert_with(|| Instant::now() + WITHDRAW_LIMIT), first)
        };
        self.away.send_replace(true);
        let withdrawn = async {
            for standing in &self.standings {
                // A task that is gone posts nothing.
                standing.clone().wait_for(|standing| standing.withdrawn).await.ok();
            }
        };
        if timeout_at(answer_by.into(), withdrawn).await.is_err() && first {
            let late = self.standings().into_iter().filter(|standing| !standing.withdrawn);
            let late: Vec<_> = late.map(|standing| standing.url).collect();
            tracing::warn!(
                discoveries = late.join(", "),
                "no answer to the withdrawal in time; the entry there expires by itself, and clients may be sent here until then"
            );
        }
    }

    /// Posts the entries again after a [`withdraw`](Self::withdraw).
    pub fn restore(&self) {
        *self.answer_by() = None;
        self.away.send_replace(false);
    }

    fn answer_by(&self) -> MutexGuard<'_, Option<Instant>> {
        self.answer_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the entries for good, as [`withdraw`](Self::withdraw) does.
    pub async fn stop(self) {
        self.withdraw().await;
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
    /// Keeps the entry where it is wanted and away when it is not, until the registration is dropped: then it stays.
    async fn run(self, mut content: watch::Receiver<Content>, mut away: watch::Receiver<bool>) {
        while self.keep(&mut content, &mut away).await {
            self.standing.send_modify(|standing| {
                standing.accepted = None;
                standing.withdrawn = true;
            });
            if away.wait_for(|away| !*away).await.is_err() {
                return;
            }
            self.standing.send_modify(|standing| standing.withdrawn = false);
        }
    }

    /// Keeps the entry where it is until it is to be away, and takes it away. False: the registration was dropped.
    async fn keep(&self, content: &mut watch::Receiver<Content>, away: &mut watch::Receiver<bool>) -> bool {
        let initial = content.borrow_and_update().clone();
        let mut machine = Machine::new(initial, self.interval, Instant::now(), fastrand::u64(..));
        loop {
            let mut action = machine.next_action(Instant::now(), unix_now_ns());
            while let Some(todo) = action {
                action = self.perform(todo, &mut machine, away).await;
            }
            if machine.is_stopped() {
                return true;
            }
            let next = machine.next_time();
            tokio::select! {
                stop = away.wait_for(|away| *away) => {
                    if stop.is_err() {
                        return false;
                    }
                    machine.stop();
                }
                changed = content.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    machine.set_content(content.borrow_and_update().clone(), Instant::now());
                }
                () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            }
        }
    }

    /// Sends one request. What the machine wants next is the result.
    async fn perform(
        &self,
        action: Action,
        machine: &mut Machine,
        away: &watch::Receiver<bool>,
    ) -> Option<Action> {
        self.counters.requests.inc();
        match action {
            Action::Read => {
                let read = self.discovery.entry(&self.key.public_key()).await;
                let read = read.map_err(|error| self.failed(error));
                // What was to be renewed when this was asked is not any more.
                if *away.borrow() {
                    machine.stop();
                }
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

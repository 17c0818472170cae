//! The control plane's hold on the data plane: finding or starting it, attaching, watching, asking, replacing.
//!
//! ```text
//!   run, admin ──► plane (handle) ──asks──► task ──► channel ──► mirror      while attached
//!                        ▲                   │           ▲ shared memory
//!                        └────status─────────┤           ▼
//!                                            └──► obtain ──► data plane's socket      before, and after a loss
//! ```
//!
//! The data plane lives on when this side dies; when it dies, the task starts another on the same listeners, of which it
//! keeps duplicates, at once and then with growing pauses (`restart`).

pub mod mirror;
pub mod settings;

mod cancel;
mod channel;
mod obtain;
mod plane;
mod pulse;
mod restart;
mod session_log;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use cancel::Cancel;
pub use channel::now as monotonic_ns;
use channel::{Askers, Channels, Event};
use mirror::Mirror;
use obtain::Attached;
pub use obtain::{ObtainError, Wanted, converse, stop};
use plane::{ASKS_MAX, Ask};
pub use plane::{End, EndError, Plane, PlaneStatus, Table};
pub use restart::Restarts;
use ringwire_ipc::socket::ClientError;
pub use session_log::TARGET as SESSION_LOG;
use settings::Settings;

/// Environment variable with the log filter, such as `debug` or `ringwire=trace`: of this process, and of a data plane it
/// starts.
pub const LOG_VARIABLE: &str = "RINGWIRE_LOG";

/// How long a child of ours that hung up may take to be gone.
const REAP_LIMIT: Duration = Duration::from_secs(2);

/// Finds or starts the data plane, attaches, and supervises it in a task until [`Plane::end`]. The task's result says how it
/// ended.
///
/// # Errors
/// [`ObtainError`]: there is no data plane to work with, and none of ours is left running.
pub async fn start(wanted: Wanted) -> Result<(Plane, JoinHandle<End>), ObtainError> {
    start_unless(wanted, &Cancel::default()).await
}

/// The same, given up within milliseconds of `cancel` while there is no data plane.
///
/// # Errors
/// As [`start`], and [`ObtainError::Cancelled`].
pub async fn start_unless(wanted: Wanted, cancel: &Cancel) -> Result<(Plane, JoinHandle<End>), ObtainError> {
    let wanted = Arc::new(wanted);
    let settings = wanted.settings.clone();
    let attached =
        obtain_on_thread(Arc::clone(&wanted), settings.clone(), Vec::new(), cancel.clone()).await.0?;
    // True before anybody can ask: what is ready is announced with the addresses in it.
    let mut status = PlaneStatus::default();
    status.attached_to(&attached);
    let (asks, questions) = mpsc::channel(ASKS_MAX);
    let (status, watched) = watch::channel(status);
    let task = Task {
        wanted,
        status,
        asks: questions,
        settings,
        mirror: Mirror::default(),
        askers: Askers::default(),
        restarts: Restarts::default(),
        counters: Vec::new(),
        draining: false,
    };
    Ok((Plane { asks, status: watched }, tokio::spawn(task.run(attached))))
}

type Listeners = Vec<(SocketAddr, OwnedFd)>;

/// [`obtain::obtain`] on a thread that may block; the listeners come back.
async fn obtain_on_thread(
    wanted: Arc<Wanted>,
    settings: Settings,
    listeners: Listeners,
    cancel: Cancel,
) -> (Result<Attached, ObtainError>, Listeners) {
    let work = move || (obtain::obtain(&wanted, &settings, &listeners, &cancel), listeners);
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// See the module's head.
#[derive(Debug)]
struct Task {
    wanted: Arc<Wanted>,
    status: watch::Sender<PlaneStatus>,
    asks: mpsc::Receiver<Ask>,
    /// What is in force, with what was changed while it ran: a successor is started with it.
    settings: Settings,
    mirror: Mirror,
    askers: Askers,
    restarts: Restarts,
    /// Of the last attach, for questions in between.
    counters: Vec<Vec<u64>>,
    /// The data plane was told to drain: when it ends, so does this task.
    draining: bool,
}

/// What is left of an attach when it is over.
struct Remains {
    listeners: Listeners,
    child: Option<Child>,
    loss: String,
}

/// How an attach ended.
enum Over {
    Lost(Remains),
    End(End),
}

impl Task {
    async fn run(mut self, mut attached: Attached) -> End {
        let mut pid = None;
        loop {
            let same = pid.replace(attached.pid).is_some_and(|before| before == attached.pid);
            let remains = match self.attached(attached, same).await {
                Over::End(end) => return end,
                Over::Lost(remains) => remains,
            };
            let pause = self.restarts.failed(channel::now());
            self.lost(&remains.loss);
            if reap(remains.child).await || self.draining {
                return End::Ended;
            }
            attached = match self.detached(remains.listeners, pause).await {
                Ok(attached) => attached,
                Err(end) => return end,
            };
        }
    }

    /// One attach, from its begin to its end.
    async fn attached(&mut self, attached: Attached, same: bool) -> Over {
        self.status.send_modify(|status| status.attached_to(&attached));
        let Attached {
            lifeline, bell, channels, epoch, pid, listeners, settings, child, is_draining, ..
        } = attached;
        self.settings = settings;
        // Told to end while there was no control plane: it is not to be replaced. Where others start it, they know.
        self.draining |= is_draining && self.wanted.program.is_some();
        self.status.send_modify(|status| status.draining |= self.draining);
        let mut remains = Remains { listeners, child, loss: String::new() };
        let mut channels = match Channels::new(channels, bell, self.wanted.log_sessions) {
            Ok(channels) => channels,
            Err(error) => {
                remains.loss = format!("its bell cannot be waited for: {error}");
                return Over::Lost(remains);
            }
        };
        self.restarts.up(channel::now());
        self.mirror.attached(channels.workers(), same, channel::now());
        tracing::info!(pid, epoch, workers = channels.workers(), "attached to the data plane");
        loop {
            let (mirror, askers) = (&mut self.mirror, &mut self.askers);
            match channels.serve(&remains.listeners, mirror, askers, &mut self.asks, &self.status).await {
                Event::Lost(lost) => {
                    self.counters = channels.counters();
                    remains.loss = lost.to_string();
                    // Kept so long: as far as the data plane is concerned, it is the control plane.
                    drop(lifeline);
                    return Over::Lost(remains);
                }
                Event::Ask(Ask::Drain(within, answer)) => {
                    let drained = self.drain(within).await;
                    self.draining |= drained.is_ok();
                    self.status.send_modify(|status| status.draining = self.draining);
                    let _ = answer.send(drained);
                }
                Event::Ask(Ask::End(end, answer)) => {
                    let ended = if end == End::Stop { self.stop(remains.child).await } else { Ok(None) };
                    let _ = answer.send(ended);
                    return Over::End(end);
                }
                // Answered by `serve`.
                Event::Ask(_) => {}
                Event::Abandoned => return Over::End(End::Leave),
            }
        }
    }

    /// No data plane: questions are answered as far as they can be, while one is brought back.
    async fn detached(&mut self, mut listeners: Listeners, mut pause: Duration) -> Result<Attached, End> {
        loop {
            let (wanted, settings) = (Arc::clone(&self.wanted), self.settings.clone());
            let cancel = Cancel::default();
            let cancelled = cancel.clone();
            let mut attempt = std::pin::pin!(async move {
                tokio::time::timeout(pause, cancelled.cancelled()).await.ok();
                obtain_on_thread(wanted, settings, listeners, cancelled).await
            });
            // An end that is asked for cuts the attempt short and waits for it: it may be starting a process at this moment.
            let mut end = None;
            let (outcome, returned) = loop {
                tokio::select! {
                    done = &mut attempt => break done,
                    ask = self.asks.recv(), if end.is_none() => match ask {
                        None => {
                            cancel.cancel();
                            end = Some((End::Leave, None));
                        }
                        Some(Ask::End(wanted, answer)) => {
                            cancel.cancel();
                            end = Some((wanted, Some(answer)));
                        }
                        Some(Ask::Drain(_, answer)) => {
                            let _ = answer.send(Err(EndError::DataPlane("it is not running".to_owned())));
                        }
                        Some(ask) => self.answer_detached(ask),
                    },
                }
            };
            listeners = returned;
            if let Some((end, answer)) = end {
                let child = outcome.ok().and_then(|attached| attached.child);
                let ended = if end == End::Stop { self.stop(child).await } else { Ok(None) };
                if let Some(answer) = answer {
                    let _ = answer.send(ended);
                }
                return Err(end);
            }
            match outcome {
                Ok(attached) => return Ok(attached),
                Err(error) => {
                    pause = self.restarts.failed(channel::now());
                    tracing::error!(%error, pause_ms = pause.as_millis(), "no data plane");
                    self.status.send_modify(|status| status.last_loss = Some(error.to_string()));
                }
            }
        }
    }

    fn answer_detached(&mut self, ask: Ask) {
        // What was asked while attached is lost with the attach.
        self.mirror.detached();
        self.askers.tell(&mut self.mirror);
        let counters = &self.counters;
        channel::answer(ask, &mut self.mirror, &mut self.askers, || counters.clone());
    }

    fn lost(&mut self, loss: &str) {
        self.mirror.detached();
        self.askers.tell(&mut self.mirror);
        for setting in self.askers.changed() {
            self.settings.keep(setting);
        }
        self.status.send_modify(|status| {
            status.attached = false;
            // What a signal began is over; what was ordered here ends this task too.
            status.draining = self.draining;
            status.losses += 1;
            status.last_loss = Some(loss.to_owned());
        });
        if !self.draining {
            tracing::warn!(loss, "the data plane went away; bringing it back");
        }
    }

    async fn drain(&self, within: Duration) -> Result<(), EndError> {
        let wanted = Arc::clone(&self.wanted);
        blocking(move || {
            let (mut client, _) = converse(&wanted.state)?;
            client.drain(within)
        })
        .await
    }

    /// Stops the data plane, if there is one, and waits for its end; one that does not end and is a child of ours is killed.
    /// Which it was.
    async fn stop(&self, child: Option<Child>) -> Result<Option<u32>, EndError> {
        let wanted = Arc::clone(&self.wanted);
        let stopped = blocking(move || match stop(&wanted.state) {
            Ok(pid) => Ok(Some(pid)),
            Err(ClientError::Absent { .. }) => Ok(None),
            Err(error) => Err(error),
        })
        .await;
        let Some(mut child) = child else { return stopped };
        let pid = child.id();
        if let Err(error) = &stopped {
            tracing::error!(%error, "the data plane does not stop; it is killed");
            child.kill().ok();
        }
        reap(Some(child)).await;
        Ok(Some(pid))
    }
}

/// Waits for a child to be gone, for a short while. True if it was told to end, and so need not be replaced.
async fn reap(child: Option<Child>) -> bool {
    let Some(mut child) = child else { return false };
    let deadline = Instant::now() + REAP_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(2)).await,
            Ok(None) | Err(_) => return false,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, EndError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| EndError::DataPlane(error.to_string())),
        Err(_) => Err(EndError::Over),
    }
}

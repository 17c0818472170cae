//! What all conversations share: the server, once it is started, and who is attached.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringwire_ipc::socket::{Refusal, Refused, Start};
use ringwire_proto::identity::SecretKey;
use socket2::Socket;

use super::configuration::Configuration;
use crate::server::{AttachError, Server, StopError, WorkerDescriptors};

/// A century: longer than anything is waited for.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// See the module's head. Held for the time of one request at most.
#[derive(Debug, Default)]
pub(super) struct Plane(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) serving: Option<Serving>,
    /// Number of the last attach.
    pub(super) epoch: u64,
    /// Which attach is in force, and whose it is.
    pub(super) attached: Option<Attached>,
    /// Since when nobody is attached.
    pub(super) alone_since: Option<Instant>,
    stopped: bool,
}

#[derive(Debug)]
pub(super) struct Serving {
    pub(super) server: Server,
    /// What tells this configuration from another.
    pub(super) configuration: Vec<u8>,
    /// What it was started with.
    pub(super) settings: Configuration,
    pub(super) orphan_limit: Option<Duration>,
    pub(super) since: Instant,
    pub(super) draining: Option<Draining>,
}

/// A drain that has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draining {
    pub(super) since: Instant,
    /// It is over by then, by the last order.
    pub(super) until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) epoch: u64,
    pub(super) pid: u32,
}

impl Plane {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { alone_since: Some(Instant::now()), ..State::default() }))
    }

    /// The state. A thread that panicked while it had it left it whole: each change is one assignment.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what was attached with this epoch, unless a newer attach has replaced it.
    pub(super) fn detach(&self, epoch: u64) {
        let mut state = self.state();
        if state.attached.is_some_and(|attached| attached.epoch == epoch) {
            state.attached = None;
            state.alone_since = Some(Instant::now());
            if let Some(serving) = &state.serving {
                serving.server.detach();
            }
            tracing::info!(epoch, "the control plane is gone; forwarding goes on");
        }
    }

    /// Orders the end.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Whether the workers have ended by themselves.
    pub(super) fn has_ended(&self) -> bool {
        self.state().serving.as_ref().is_some_and(|serving| serving.server.has_ended())
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state().serving.as_ref().is_some_and(|serving| serving.draining.is_some())
    }

    pub(super) fn is_attached(&self) -> bool {
        self.state().attached.is_some()
    }

    pub(super) fn is_serving(&self) -> bool {
        self.state().serving.is_some()
    }

    /// How long nobody may be attached, by configuration.
    pub(super) fn orphan_limit(&self) -> Option<Duration> {
        self.state().serving.as_ref().and_then(|serving| serving.orphan_limit)
    }

    /// Begins to drain; false if there is nothing to drain.
    pub(super) fn drain(&self, within: Duration) -> bool {
        let mut state = self.state();
        let Some(serving) = &mut state.serving else { return false };
        let now = Instant::now();
        // A time that cannot be named is never.
        let until = now.checked_add(within).unwrap_or(now + FOREVER);
        if serving.server.drain(within) {
            let since = serving.draining.map_or(now, |draining| draining.since);
            serving.draining = Some(Draining { since, until });
        } else {
            serving.draining = None;
        }
        serving.draining.is_some()
    }

    /// Stops the workers, if there are any.
    pub(super) fn end(&self) -> Result<(), StopError> {
        let serving = self.state().serving.take();
        serving.map_or(Ok(()), |serving| {
            // Nobody whose session is closed is to come back. One that has ended by itself may have a successor on its
            // listeners.
            if !serving.server.has_ended() {
                serving.server.refuse();
            }
            serving.server.stop()
        })
    }
}

impl State {
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Starts the workers.
    pub(super) fn start(&mut self, start: &Start, listeners: Vec<OwnedFd>) -> Result<&Serving, Refused> {
        if let Some(serving) = &self.serving {
            return Err(refused(
                Refusal::AlreadyStarted,
                format!("this data plane serves {} already", serving.server.public_key()),
                "Attach to it, or stop it first with `ringwire stop`.",
            ));
        }
        let malformed =
            |reason: String| refused(Refusal::Malformed, reason, "Start with a control plane of this build.");
        let secret_key = SecretKey::from_bytes(&start.secret_key)
            .map_err(|error| malformed(format!("the secret key is none: {error}")))?;
        let mut listen = Vec::with_capacity(start.listen.len());
        for address in &start.listen {
            let parsed = address.text.parse();
            listen.push(parsed.map_err(|_| malformed(format!("`{}` is no address", address.text)))?);
        }
        let configuration =
            Configuration::from_json(&start.settings).map_err(|error| malformed(error.to_string()))?;
        let listeners = listeners.into_iter().map(Socket::from).collect();
        let config = configuration
            .server(secret_key, listen, listeners)
            .map_err(|error| refused(Refusal::Malformed, error.to_string(), "Nothing was started."))?;
        let server = Server::start(config)
            .map_err(|error| refused(Refusal::StartFailed, error.to_string(), "Nothing was started."))?;
        let connections_max = server.connections_max();
        tracing::info!(public_key = %server.public_key(), addresses = ?server.addresses(), connections_max, "serving");
        Ok(self.serving.insert(Serving {
            server,
            configuration: start.configuration.clone(),
            orphan_limit: configuration.orphan_limit(),
            settings: configuration,
            since: Instant::now(),
            draining: None,
        }))
    }

    /// Makes a fresh set of shared memory for a control plane; the former set is dropped unread.
    pub(super) fn attach(
        &mut self,
        pid: u32,
    ) -> Result<(u64, ringwire_ipc::doorbell::SocketBell, Vec<WorkerDescriptors>), Refused> {
        let Some(serving) = &self.serving else { return Err(not_started()) };
        let epoch = self.epoch + 1;
        let (bell, descriptors) = serving.server.attach(epoch).map_err(|error| {
            // What the kernel refuses comes with its own cure.
            let (refusal, cure) = match &error {
                AttachError::Stuck(_) => {
                    (Refusal::Stuck, "Look at the data plane's log; stop it with `ringwire stop`.")
                }
                AttachError::Region(_) | AttachError::Bell(_) => (Refusal::Other, "Nothing was attached."),
            };
            refused(refusal, error.to_string(), cure)
        })?;
        if let Some(former) = self.attached {
            tracing::info!(former = former.pid, "another control plane takes over");
        }
        self.epoch = epoch;
        self.attached = Some(Attached { epoch, pid });
        self.alone_since = None;
        tracing::info!(epoch, pid, "control plane attached");
        Ok((epoch, bell, descriptors))
    }
}

/// A refusal with its cure.
pub(super) fn refused(refusal: Refusal, reason: String, cure: &str) -> Refused {
    Refused { refusal: refusal.into(), reason, cure: cure.into() }
}

/// The refusal of what needs workers.
pub(super) fn not_started() -> Refused {
    let reason = "this data plane has not been started".to_owned();
    refused(Refusal::NotStarted, reason, "Start its control plane with `ringwire run`.")
}

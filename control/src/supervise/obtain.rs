//! Getting hold of the data plane: find the living one or start one, agree on who is who, attach.
//!
//! In: what is wanted ([`Wanted`]) with the settings of now and, after a death, the listeners of before. Out: an [`Attached`], or a
//! typed refusal that left everything as it was. Everything here blocks, with deadlines; the task calls it on a thread of its own.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringwire_ipc::channel::ControlEnd;
use ringwire_ipc::region::RegionError;
use ringwire_ipc::socket::{self, Client, ClientError, Hello, Start};
use ringwire_proto::identity::{PublicKey, SecretKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::LOG_VARIABLE;
use super::cancel::Cancel;
use super::settings::{Difference, Settings};
use crate::state::State;

/// How long one answer of the data plane may take. An attach makes shared memory, a start probes the kernel: milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long a process that was just started may take to open its socket.
const UP_LIMIT: Duration = Duration::from_secs(30);

/// How many seconds a process that was just started waits to be told what to serve.
const START_WITHIN_S: &str = "30";

/// How long a data plane that was told to end may take.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks at a socket or a process that changes any moment.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Which data plane is wanted.
#[derive(Debug)]
pub struct Wanted {
    /// Where its socket is.
    pub state: State,
    /// Whom it serves as.
    pub key: SecretKey,
    /// How it is set up, as far as somebody has said.
    pub settings: Settings,
    /// Starts one; none: it is somebody else's to start (systemd's), and is waited for.
    pub program: Option<PathBuf>,
    /// Layout of shared memory this side has: [`ringwire_ipc::LAYOUT_HASH`], unless a test wants to be of another build.
    pub layout: u64,
    /// Log filter for one that is started; none: as in this process's environment.
    pub log: Option<String>,
    /// Whether every session is to be in this process's log.
    pub log_sessions: bool,
}

/// A data plane that this process is attached to.
#[derive(Debug)]
pub(super) struct Attached {
    /// The conversation that attached: its end is the data plane's, or ours.
    pub(super) lifeline: Client,
    /// Our end of the bell that every worker rings.
    pub(super) bell: OwnedFd,
    pub(super) channels: Vec<ControlEnd>,
    /// Number of this attach.
    pub(super) epoch: u64,
    pub(super) pid: u32,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) driver: String,
    pub(super) connections_max: u64,
    /// Duplicates, for a successor of the data plane.
    pub(super) listeners: Vec<(SocketAddr, OwnedFd)>,
    /// What is in force, for a successor too: what was asked for, and what it had besides.
    pub(super) settings: Settings,
    /// It drains, as it was told to before.
    pub(super) is_draining: bool,
    /// The process, if it is this one's child.
    pub(super) child: Option<Child>,
}

/// Why there is no data plane to work with. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    /// The conversation with it failed, or it refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It is of another build.
    #[error(
        "the data plane (process {pid}, build {build}) is of another build than this program: its shared memory has layout \
         {theirs:016x}, ours has {ours:016x}. It goes on undisturbed. Either use the ringwire it was started with, or stop it \
         with: ringwire stop, and start anew with: ringwire run"
    )]
    Layout {
        /// Its process.
        pid: u32,
        /// Its version.
        build: String,
        /// Its layout.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// It serves another key.
    #[error(
        "the data plane (process {pid}) serves the key {theirs}, and this control plane is to be the server {ours}, by the \
         key of its configuration or else of its state directory. It goes on undisturbed. Put its key back, or stop it \
         with: ringwire stop, and start anew with: ringwire run"
    )]
    OtherKey {
        /// Its process.
        pid: u32,
        /// Its key.
        theirs: String,
        /// Ours.
        ours: PublicKey,
    },
    /// It runs with other settings than were asked for.
    #[error(
        "a data plane runs already (process {pid}), and {difference}. It goes on undisturbed. Leave that setting out or \
         give it the value it has, or stop it with: ringwire stop, and start anew with: ringwire run"
    )]
    OtherSettings {
        /// Its process.
        pid: u32,
        /// What differs.
        difference: Difference,
    },
    /// Shared memory is not as it should be.
    #[error("the data plane passed shared memory that cannot be used: {0}; stop it with: ringwire stop")]
    Region(#[from] RegionError),
    /// The process cannot be started.
    #[error(
        "cannot start {program} as the data plane: {error}; if a limit was reached, raise it (`ulimit -n`, `ulimit -u`)"
    )]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The process ended before it served.
    #[error("the data plane ended before it was ready ({status}); its messages are above")]
    Ended {
        /// How it ended.
        status: String,
    },
    /// Nobody opened the socket.
    #[error(
        "no data plane opened {path} within {} s; look at its messages: journalctl -u ringwire-dataplane, or start it by \
         hand: ringwire dataplane --state DIR",
        UP_LIMIT.as_secs()
    )]
    Late {
        /// The socket.
        path: PathBuf,
    },
    /// It was given up because the control plane is to end.
    #[error("the search for a data plane was given up: the control plane was told to end")]
    Cancelled,
}

/// Finds or starts the data plane and attaches to it. `settings` are those of `wanted`, or what has become of them; `listeners` are
/// those of a predecessor that died, if any. With `cancel` none is started or waited for any more.
pub(super) fn obtain(
    wanted: &Wanted,
    settings: &Settings,
    listeners: &[(SocketAddr, OwnedFd)],
    cancel: &Cancel,
) -> Result<Attached, ObtainError> {
    let mut started = Started(None);
    let client = match Client::connect(&wanted.state.dataplane_socket(), ANSWER_LIMIT) {
        Ok(client) => client,
        Err(ClientError::Absent { .. }) => started.bring_up(wanted, cancel)?,
        Err(error) => return Err(error.into()),
    };
    let attached = agree(wanted, settings, client, listeners)?;
    // From here on it lives on without this process.
    Ok(Attached { child: started.0.take(), ..attached })
}

/// A child that ends with this value unless it is taken out: who cannot use a data plane does not leave it behind.
struct Started(Option<Child>);

impl Started {
    /// Starts a data plane, or waits for one that somebody else starts.
    fn bring_up(&mut self, wanted: &Wanted, cancel: &Cancel) -> Result<Client, ObtainError> {
        if cancel.is_cancelled() {
            return Err(ObtainError::Cancelled);
        }
        if let Some(program) = &wanted.program {
            let child = Command::new(program)
                // For those who list processes: the path may be the kernel's name for it.
                .arg0("ringwire")
                .arg("dataplane")
                .arg("--state")
                .arg(wanted.state.directory())
                // If this process dies before it has said START, its child ends by itself.
                .args(["--start-within", START_WITHIN_S])
                .envs(wanted.log.iter().map(|log| (LOG_VARIABLE, log)))
                // Those are for this process; the child is no unit of systemd's.
                .env_remove("NOTIFY_SOCKET")
                .env_remove("WATCHDOG_USEC")
                .env_remove("WATCHDOG_PID")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn();
            let program = program.clone();
            self.0 = Some(child.map_err(|error| ObtainError::Spawn { program, error })?);
        }
        let path = wanted.state.dataplane_socket();
        if self.0.is_none() {
            tracing::warn!(
                socket = %path.display(),
                "waits for a data plane that somebody else starts: systemctl start ringwire-dataplane, or: ringwire dataplane --state {}",
                wanted.state.directory().display()
            );
        }
        let deadline = Instant::now() + UP_LIMIT;
        loop {
            if cancel.is_cancelled() {
                return Err(ObtainError::Cancelled);
            }
            match Client::connect(&path, ANSWER_LIMIT) {
                Ok(client) => return Ok(client),
                Err(ClientError::Absent { .. }) if Instant::now() < deadline => {}
                Err(ClientError::Absent { .. }) => return Err(ObtainError::Late { path }),
                Err(error) => return Err(error.into()),
            }
            if let Some(child) = &mut self.0
                && let Ok(Some(status)) = child.try_wait()
            {
                return Err(ObtainError::Ended { status: status.to_string() });
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Says who this is, checks who that is, starts it if it waits for that, attaches.
fn agree(
    wanted: &Wanted,
    settings: &Settings,
    mut client: Client,
    listeners: &[(SocketAddr, OwnedFd)],
) -> Result<Attached, ObtainError> {
    let ours = wanted.key.public_key();
    let theirs = client.hello(Hello {
        protocol: socket::PROTOCOL,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        layout: wanted.layout,
        public_key: ours.as_bytes().to_vec(),
        configuration: settings.configuration(),
        pid: std::process::id(),
    })?;
    let pid = theirs.pid;
    if theirs.layout != wanted.layout {
        let (build, theirs) = (theirs.build, theirs.layout);
        return Err(ObtainError::Layout { pid, build, theirs, ours: wanted.layout });
    }
    let lived = !theirs.public_key.is_empty();
    if !lived {
        start(&wanted.key, settings, &mut client, listeners)?;
    } else if theirs.public_key != ours.as_bytes() {
        let key = PublicKey::from_bytes(&theirs.public_key);
        let theirs = key.map_or_else(|_| "(none)".to_owned(), |key| key.to_string());
        return Err(ObtainError::OtherKey { pid, theirs, ours });
    } else if let Some(difference) = settings.difference(&theirs.configuration) {
        return Err(ObtainError::OtherSettings { pid, difference });
    }
    let attachment = client.attach(wanted.layout)?;
    let epoch = attachment.epoch;
    let mut descriptors = attachment.channels;
    descriptors.sort_by_key(|channel| channel.worker);
    let channels = descriptors.into_iter().map(|channel| ControlEnd::open(channel, epoch));
    let channels = channels.collect::<Result<_, _>>()?;
    let (listeners, status) = (client.listeners()?, client.status()?);
    if lived {
        change(settings, &status.settings, &mut client)?;
    }
    let settings = settings.adopt(&theirs.configuration, &status.settings);
    Ok(Attached {
        lifeline: client,
        bell: attachment.bell,
        channels,
        epoch,
        pid,
        addresses: once_each(&listeners),
        driver: status.driver,
        connections_max: status.connections_max,
        listeners,
        settings,
        is_draining: status.state == "draining",
        child: None,
    })
}

/// Has a living data plane take on what was asked for of the settings that change while it runs. It must be true before anybody is
/// told that the server is ready.
fn change(settings: &Settings, in_force: &str, client: &mut Client) -> Result<(), ClientError> {
    let (differences, changes) = settings.changes(in_force);
    if differences.is_empty() {
        return Ok(());
    }
    client.change(changes)?;
    for Difference { name, theirs, ours } in differences {
        tracing::warn!(
            setting = name,
            from = theirs,
            to = ours,
            "the data plane that runs had another value; changed to what is configured"
        );
    }
    Ok(())
}

/// What listeners are bound to: several workers have one each of every address.
fn once_each(listeners: &[(SocketAddr, OwnedFd)]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for (address, _) in listeners {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    addresses
}

fn start(
    key: &SecretKey,
    settings: &Settings,
    client: &mut Client,
    listeners: &[(SocketAddr, OwnedFd)],
) -> Result<(), ClientError> {
    let listen = match listeners {
        [] => settings.listen().to_vec(),
        listeners => once_each(listeners),
    };
    let living: Vec<_> = listeners.iter().filter(|(_, listener)| listens(listener)).collect();
    if living.len() < listeners.len() {
        let dead = listeners.len() - living.len();
        tracing::info!(dead, "listeners were shut down by the data plane that ended; they are made anew");
    }
    let start = Start {
        secret_key: key.expose_bytes().to_vec(),
        settings: settings.for_start(),
        configuration: settings.configuration(),
        listen: listen.into_iter().map(socket::Address::new).collect(),
    };
    let descriptors: Vec<_> = living.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
    client.start(start, &descriptors).map(drop)
}

/// Whether a listener still is one: a data plane that drains shuts its own down, and with them these duplicates, for good.
pub(super) fn listens(listener: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_acceptconn(listener).unwrap_or(false)
}

/// A conversation besides the lifeline, for one or two requests.
///
/// # Errors
/// Nobody answers, or not as who we are.
pub fn converse(state: &State) -> Result<(Client, Hello), ClientError> {
    let mut client = Client::connect(&state.dataplane_socket(), ANSWER_LIMIT)?;
    let hello = client.hello(Hello {
        protocol: socket::PROTOCOL,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        layout: ringwire_ipc::LAYOUT_HASH,
        public_key: Vec::new(),
        configuration: Vec::new(),
        pid: std::process::id(),
    })?;
    Ok((client, hello))
}

/// Tells the data plane to end and waits until its process has. Works without a control plane.
///
/// # Errors
/// Nobody answers; [`ConnectionError::Timeout`](socket::ConnectionError::Timeout) if it goes on for ten seconds.
pub fn stop(state: &State) -> Result<u32, ClientError> {
    let (mut client, hello) = converse(state)?;
    // Taken while it answers: a number that is given to another process later does not matter.
    let process = watch(hello.pid).map_err(socket::ConnectionError::from)?;
    client.stop()?;
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(socket::ConnectionError::Timeout(END_LIMIT).into());
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(hello.pid),
            Err(error) => return Err(socket::ConnectionError::from(io::Error::from(error)).into()),
        }
    }
}

/// A descriptor that is readable when the process has ended.
fn watch(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_was_shut_down_listens_no_more_whoever_did_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let duplicate = OwnedFd::from(listener.try_clone().unwrap());
        assert!(listens(&duplicate));
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert!(!listens(&duplicate));
    }
}

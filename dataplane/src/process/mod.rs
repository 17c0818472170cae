//! The data plane as a process of its own: its Unix socket, who may speak with it, and when it ends.
//!
//! ```text
//!   STATE/dataplane.sock ──► listener ──► a thread per conversation ──► service ──► Plane ──► Server (the workers)
//!                                                                                     ▲
//!   SIGTERM (drain), orphan limit, the end of a drain ──► run, which looks a few times a second
//! ```
//!
//! In: a state directory and what comes on the socket (`ringwire_ipc::socket`). Out: a served dmsg server, until it is told
//! to stop. The process owns the listeners and everything the workers have. A control plane may come, go, be killed or be
//! stopped: nothing here waits for it, and the workers know nothing of this module but their mail.

mod configuration;
mod lifetime;
mod plain;
mod plane;
mod service;
mod shield;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringwire_ipc::socket::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::process::{Pid, umask};

pub use configuration::{Configuration, ConfigurationError};
use lifetime::Signals;
pub use plain::{PlainError, open_named, open_plain};
use plane::Plane;
pub use shield::shield;

/// The socket's file in the state directory.
pub const SOCKET_NAME: &str = "dataplane.sock";

/// The file that a living data plane holds locked; says which process it is.
const LOCK_NAME: &str = "dataplane.lock";

/// Longest text of the lock's holder that is read, in bytes: a number.
const HOLDER_LEN_MAX: u64 = 64;

/// Conversations at a time: the control plane's and those of a few commands.
const CONVERSATIONS_MAX: usize = 16;

/// How often the process looks whether it is time to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long one side of a conversation may take to read or write a message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the process is started with; everything else comes with START.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// The state directory. Exists, and belongs to this user alone.
    pub state: PathBuf,
    /// End when nobody starts it for so long; `None`: wait for ever.
    pub start_within: Option<Duration>,
    /// How long SIGTERM lets what is there finish.
    pub drain_within: Duration,
}

/// What a supervisor of the process may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The socket is there.
    Listening,
    /// A look at what could end the process is over: it lives.
    Alive,
}

/// Why the process cannot be, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Another data plane has this state directory.
    #[error(
        "a data plane runs on {state} already (process {holder}). Attach to it with `ringwire run`, or end it with `ringwire stop`"
    )]
    Taken {
        /// The state directory.
        state: String,
        /// Its process, as it wrote it.
        holder: String,
    },
    /// A file of the state directory cannot be used.
    #[error("cannot use {path}: {error}. Choose another state directory with --state")]
    File {
        /// Which.
        path: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// Something else has the name of a file of the state directory.
    #[error(
        "{path} is {other} where a plain file is expected. It is left as it is: remove it, or choose another state directory with --state"
    )]
    NotPlain {
        /// Which.
        path: String,
        /// What it is.
        other: &'static str,
    },
    /// Signals cannot be taken.
    #[error("cannot take signals: {0}")]
    Signals(io::Error),
    /// The socket failed.
    #[error("the socket of the data plane failed: {0}")]
    Socket(io::Error),
    /// Workers failed while they served, or do not end.
    #[error("the data plane did not end in order: {0}")]
    Worker(#[from] crate::server::StopError),
}

/// Serves the socket of a state directory until told to end; `notify` hears of it. Call it before the process has other threads: it becomes
/// the leader of a session of its own, if it can, so that a terminal's signals do not reach it.
///
/// # Errors
/// The state directory is taken or unusable, or the workers failed.
pub fn run(options: &ProcessOptions, notify: &mut dyn FnMut(Moment)) -> Result<(), ProcessError> {
    // A process that was started as a leader stays in its session; then only its signal handlers protect it.
    let _ = rustix::process::setsid();
    let signals = Signals::take().map_err(ProcessError::Signals)?;
    let _lock = lock(&options.state)?;
    let path = options.state.join(SOCKET_NAME);
    let socket = bind(&path)?;
    notify(Moment::Listening);
    let plane = Arc::new(Plane::new());
    let outcome = serve(&socket, &plane, &signals, options, notify);
    // Whoever connects from here on is refused at once and may start a successor; the lock is given back last.
    let _ = std::fs::remove_file(&path);
    drop(socket);
    let ended = plane.end();
    outcome?;
    ended?;
    Ok(())
}

fn serve(
    socket: &UnixListener,
    plane: &Arc<Plane>,
    signals: &Signals,
    options: &ProcessOptions,
    notify: &mut dyn FnMut(Moment),
) -> Result<(), ProcessError> {
    let conversations = Arc::new(AtomicUsize::new(0));
    let mut ending = lifetime::Watch::new(options.start_within, options.drain_within);
    while !ending.is_over(plane, signals) {
        notify(Moment::Alive);
        let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK_INTERVAL.subsec_nanos().into() };
        let mut ready = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(ProcessError::Socket(error.into())),
        }
        let stream = match socket.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a control plane's connection (raise the limit of open files, `ulimit -n`)");
                std::thread::sleep(LOOK_INTERVAL);
                continue;
            }
        };
        if let Err(reason) = service::check_peer(&stream) {
            tracing::warn!(%reason, "refused a connection to the data plane's socket");
            continue;
        }
        if conversations.fetch_add(1, Ordering::Relaxed) >= CONVERSATIONS_MAX {
            conversations.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(
                limit = CONVERSATIONS_MAX,
                "too many conversations with the data plane; closed the newest"
            );
            continue;
        }
        let (of_thread, count) = (Arc::clone(plane), Arc::clone(&conversations));
        let body = move || {
            service::converse(Connection::new(stream, MESSAGE_TIMEOUT), &of_thread);
            count.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(error) = std::thread::Builder::new().name("conversation".into()).spawn(body) {
            conversations.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "cannot make a thread for a conversation");
        }
    }
    Ok(())
}

/// The lock that one living data plane per state directory holds. The kernel gives it back however the process ends.
fn lock(state: &Path) -> Result<File, ProcessError> {
    let path = state.join(LOCK_NAME);
    let display = || path.display().to_string();
    let file = |error| ProcessError::File { path: display(), error };
    let flags = OFlags::RDWR | OFlags::CREATE;
    let mut lock = open_plain(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| match error {
        PlainError::Other(other) => ProcessError::NotPlain { path: display(), other },
        PlainError::Io(error) => file(error),
    })?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // One that cannot be read is a holder all the same.
            let _ = lock.take(HOLDER_LEN_MAX).read_to_string(&mut holder);
            return Err(ProcessError::Taken {
                state: state.display().to_string(),
                holder: holder.trim().to_owned(),
            });
        }
        Err(error) => return Err(file(error.into())),
    }
    lock.set_len(0).map_err(file)?;
    writeln!(lock, "{}", std::process::id()).map_err(file)?;
    Ok(lock)
}

/// Listens on the socket; what is left of a former data plane goes (the lock says that it is dead).
fn bind(path: &Path) -> Result<UnixListener, ProcessError> {
    let file = |error| ProcessError::File { path: path.display().to_string(), error };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(error)),
        _ => {}
    }
    // The socket is this user's alone from its first moment on.
    let former = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let socket = UnixListener::bind(path);
    umask(former);
    let socket = socket.map_err(file)?;
    socket.set_nonblocking(true).map_err(file)?;
    Ok(socket)
}

/// This process, as others name it.
fn own_pid() -> u32 {
    std::process::id()
}

/// A process id as the kernel gives it.
fn pid_number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// Whether the process is to end, as threads tell each other.
type Flag = Arc<AtomicBool>;

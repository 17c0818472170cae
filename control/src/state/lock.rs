//! The locks of a state directory: one control plane at a time, and a second one learns who the first is.
//!
//! In: `STATE/lock` and `STATE/parent.lock`. Out: a [`Lock`] that lasts as long as the value, or the holder. The lock is the
//! kernel's (`flock`), so that it ends with the process that holds it, however that ends; the file's text only names the holder.
//! The control plane holds the first. The second is held by the process that looks after it, also while there is none, so that nobody
//! comes in between; a control plane that nobody looks after holds both.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ringwire_dataplane::process::{PlainError, open_plain};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};

use super::{State, StateError};

/// The control plane's.
const CONTROL: &str = "lock";

/// Of the process that looks after the control plane.
const PARENT: &str = "parent.lock";

/// Pause between two looks at a lock that is about to be let go.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Longest text of a holder that is read back, in bytes.
const HOLDER_LEN_MAX: u64 = 4096;

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// When it took the lock, in seconds since 1970.
    pub since: u64,
    /// Its command line.
    pub command: String,
}

impl Holder {
    fn this_process() -> Self {
        let command: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { pid: std::process::id(), since, command: command.join(" ") }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.since));
        let age = since.and_then(|since| SystemTime::now().duration_since(since).ok()).unwrap_or_default();
        // The text was written by whoever may write the directory: no control characters on a terminal.
        write!(formatter, "process {}, since {} s: {}", self.pid, age.as_secs(), self.command.escape_debug())
    }
}

impl Holder {
    /// Who holds the lock of `state`, without touching it; none if nobody does, or it cannot be known. The process that the
    /// file names must have it open: a number alone may have passed to another, or be of another container.
    pub fn of(state: &State) -> Option<Self> {
        Self::of_file(state, CONTROL)
    }

    /// The same of the process that looks after the control plane, also while that is being started again.
    pub fn of_parent(state: &State) -> Option<Self> {
        Self::of_file(state, PARENT)
    }

    fn of_file(state: &State, name: &str) -> Option<Self> {
        let path = state.directory().join(name);
        let file = open_plain(&path, OFlags::RDONLY, Mode::empty()).ok()?;
        let of_lock = file.metadata().ok()?;
        let mut text = String::new();
        file.take(HOLDER_LEN_MAX).read_to_string(&mut text).ok()?;
        let holder: Self = serde_json::from_str(&text).ok()?;
        let mut open = std::fs::read_dir(format!("/proc/{}/fd", holder.pid)).ok()?.flatten();
        let is_lock = |of: std::fs::Metadata| (of.dev(), of.ino()) == (of_lock.dev(), of_lock.ino());
        open.any(|entry| std::fs::metadata(entry.path()).is_ok_and(is_lock)).then_some(holder)
    }

    /// The kernel's letter for what its process does: `T` is stopped by a signal, `t` by a debugger.
    pub fn condition(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // Behind the name, which may hold anything.
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }
}

/// A state directory held by this process. Dropping it lets go.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock of `state`, whose directory exists. Never waits.
    ///
    /// # Errors
    /// [`StateError::Locked`] names who has it.
    pub fn take(state: &State) -> Result<Self, StateError> {
        Self::take_file(state, CONTROL)
    }

    /// The same, and waits up to `patience` for a holder that is about to end.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_within(state: &State, patience: Duration) -> Result<Self, StateError> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::take(state) {
                Err(StateError::Locked { .. }) if Instant::now() < deadline => thread::sleep(LOOK_INTERVAL),
                taken => return taken,
            }
        }
    }

    /// Takes the lock of the process that looks after the control plane.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_as_parent(state: &State) -> Result<Self, StateError> {
        Self::take_file(state, PARENT)
    }

    fn take_file(state: &State, name: &str) -> Result<Self, StateError> {
        let path = state.directory().join(name);
        let failed = |action| {
            let path = path.clone();
            move |source| StateError::Io { action, path, source }
        };
        // Not truncated: the text is the holder's until the lock is ours.
        let opened = open_plain(&path, OFlags::RDWR | OFlags::CREATE, Mode::RUSR | Mode::WUSR);
        let mut file = match opened {
            Ok(file) => file,
            Err(PlainError::Other(other)) => return Err(StateError::NotPlain { path, other }),
            Err(PlainError::Io(error)) => return Err(failed("open")(error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(locked(path, &mut file)),
            Err(error) => return Err(failed("lock")(error.into())),
        }
        write_holder(&mut file, &Holder::this_process()).map_err(failed("write"))?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The text names nobody then; the kernel's lock ends with the descriptor in any case.
        self.0.set_len(0).ok();
    }
}

fn write_holder(file: &mut File, holder: &Holder) -> io::Result<()> {
    let text = serde_json::to_string(holder)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

fn locked(path: PathBuf, file: &mut File) -> StateError {
    let mut text = String::new();
    let read = file.take(HOLDER_LEN_MAX).read_to_string(&mut text);
    let holder = read.ok().and_then(|_| serde_json::from_str(&text).ok());
    StateError::Locked { path, holder }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, State) {
        let directory = tempfile::tempdir().unwrap();
        let state = State::locate(Some(directory.path().to_owned())).unwrap();
        (directory, state)
    }

    #[test]
    fn the_second_is_refused_and_learns_of_the_first() {
        let (_directory, state) = state();
        let first = Lock::take(&state).unwrap();
        let error = Lock::take(&state).unwrap_err();
        assert!(
            matches!(&error, StateError::Locked { holder: Some(holder), .. } if holder.pid == std::process::id())
        );
        let text = error.to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(text.contains("ringwire stop") && text.contains("--state"), "{text}");
        let holder = Holder::of(&state).unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert!(holder.condition().is_some_and(|letter| "RSD".contains(letter)), "{:?}", holder.condition());
        drop(first);
        assert_eq!(Holder::of(&state), None);
        Lock::take(&state).unwrap();
    }

    #[test]
    fn the_parent_has_a_lock_of_its_own() {
        let (_directory, state) = state();
        let parent = Lock::take_as_parent(&state).unwrap();
        assert!(matches!(Lock::take_as_parent(&state), Err(StateError::Locked { .. })));
        assert_eq!(Holder::of(&state), None);
        let _control = Lock::take(&state).unwrap();
        assert_eq!(Holder::of_parent(&state), Holder::of(&state));
        drop(parent);
        assert_eq!(Holder::of_parent(&state), None);
    }

    #[test]
    fn who_is_about_to_end_is_waited_for_and_nobody_else() {
        let (_directory, state) = state();
        let first = Lock::take(&state).unwrap();
        assert!(Lock::take_within(&state, Duration::from_millis(5)).is_err());
        let end = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            drop(first);
        });
        Lock::take_within(&state, Duration::from_secs(60)).unwrap();
        end.join().unwrap();
    }

    #[test]
    fn a_number_that_is_another_process_by_now_is_no_holder() {
        let (_directory, state) = state();
        assert_eq!(Holder::of(&state), None);
        let text = format!(r#"{{"pid":{},"since":1,"command":"ringwire run"}}"#, std::process::id());
        std::fs::write(state.directory().join("lock"), text).unwrap();
        assert_eq!(Holder::of(&state), None, "it does not have the file open");
    }

    #[test]
    fn the_text_of_a_dead_holder_blocks_nobody() {
        let (_directory, state) = state();
        for text in [r#"{"pid":1,"since":1,"command":"ringwire run"}"#, "", "{", "\u{0}\u{0}"] {
            std::fs::write(state.directory().join("lock"), text).unwrap();
            Lock::take(&state).unwrap();
        }
    }

    #[test]
    fn a_holder_whose_text_makes_no_sense_still_holds() {
        let (_directory, state) = state();
        let _first = Lock::take(&state).unwrap();
        std::fs::write(state.directory().join("lock"), "nonsense").unwrap();
        let error = Lock::take(&state).unwrap_err();
        assert!(matches!(error, StateError::Locked { holder: None, .. }), "{error}");
    }
}

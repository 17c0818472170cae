//! The state directory: what a server keeps between starts, and what it leaves for its own tools while it runs.
//!
//! In: the directory's path. Out: the files below, each readable by its owner only. None of them is anything but a plain
//! file: what else has its name is refused at once, unread and unwritten.
//!
//! ```text
//!   key             the server's secret key, made at the first start          ringwire run
//!   version         number of this list; a newer one is refused               ringwire run
//!   lock            held by the control plane, names it (lock.rs)             ringwire run
//!   server.json     the note of a running server                              ringwire run; read by tools
//!   dataplane.sock  the data plane's socket                                   ringwire dataplane
//!   control.sock    the control plane's socket                                ringwire run
//! ```

pub mod key_file;
pub mod lock;

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use ringwire_dataplane::process::{PlainError, open_plain};
use ringwire_proto::identity::{PublicKey, SecretKey};
use rustix::fs::{Access, Mode, OFlags};
use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Environment variable that names the state directory.
pub const STATE_VARIABLE: &str = "RINGWIRE_STATE";

/// Version of the directory's contents. Raised when an older program would misunderstand what a newer one left there.
const VERSION: u32 = 1;

/// Longest file of the directory that is read, in bytes: a note with a thousand addresses.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Bytes that the name of a Unix socket may have (`sun_path`, with its end).
const SOCKET_PATH_LEN_MAX: usize = 107;

/// Why the state directory could not be used. Every text names the file and what to do about it.
#[derive(Debug, Error)]
pub enum StateError {
    /// No directory was named and the environment has no home to put one in.
    #[error("no state directory: neither HOME nor XDG_STATE_HOME is set; name one with --state DIR")]
    NoHome,
    /// The directory belongs to somebody else.
    #[error(
        "{path} belongs to user {owner}, and this process is user {user}; run this as that user, name a directory of your \
         own with --state DIR, or if it is to be yours, with all that is in it: chown -R {user} {path}"
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs this process.
        user: u32,
    },
    /// Sockets in the directory would have names longer than the kernel takes.
    #[error("{path} is {} bytes long, and sockets in it can be used up to {max}; name a shorter one with --state DIR", path.as_os_str().len())]
    TooLong {
        /// The directory.
        path: PathBuf,
        /// How long it may be.
        max: usize,
    },
    /// Others could read or replace the files in the directory.
    #[error("{path} is open to other users (mode {mode:03o}); run: chmod 700 {path}")]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Something else has the name of a file in the directory.
    #[error(
        "{path} is {other} where a plain file is expected, and is left as it is; remove it, or name another directory \
         with: --state DIR"
    )]
    NotPlain {
        /// The name.
        path: PathBuf,
        /// What it is.
        other: &'static str,
    },
    /// A newer program wrote the directory.
    #[error(
        "{path} says version {found}, and this program knows up to {VERSION}: a newer ringwire used the directory; run \
         that one, or start afresh with another directory: --state DIR"
    )]
    Newer {
        /// The version file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// The version file is there but holds no version.
    #[error(
        "{path} does not hold a version number; if the directory is ringwire's own, run: echo {VERSION} > {path}"
    )]
    VersionMalformed {
        /// The version file.
        path: PathBuf,
    },
    /// Another control plane runs on the directory.
    #[error(
        "another control plane has this state directory ({path}: {}); stop it with: ringwire stop, or run a second server \
         with a directory of its own: --state DIR",
        holder.as_ref().map_or_else(|| "holder unknown".to_owned(), ToString::to_string)
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, if the file says so.
        holder: Option<lock::Holder>,
    },
    /// The key file can be read or written by others than its owner.
    #[error("{path} is open to other users (mode {mode:03o}); run: chmod 600 {path}")]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file belongs to somebody else, who can change it and knows what is in it.
    #[error(
        "{path} belongs to user {owner}, and this process is user {user}; run this as that user, or if the key is yours: \
         chown {user} {path}"
    )]
    KeyOwner {
        /// The key file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs this process.
        user: u32,
    },
    /// Something else than a file was named as a key file.
    #[error(
        "{path} is {other} where a key file is expected, and is left as it is; remove it, or name another file"
    )]
    KeyNotPlain {
        /// The name.
        path: PathBuf,
        /// What it is.
        other: &'static str,
    },
    /// There is no key file where one was named.
    #[error("{path} does not exist; make a key with: ringwire keys generate {path}")]
    KeyAbsent {
        /// The key file.
        path: PathBuf,
    },
    /// A new key was to be written over a file.
    #[error("{path} exists and is not overwritten; name another file, or move it away")]
    KeyExists {
        /// The key file.
        path: PathBuf,
    },
    /// The key file is empty.
    #[error(
        "{path} is empty: it holds no key. If this server has run before, restore its key from a backup; if not, an older \
         build met a full disk at the first start and left it: remove it, and a key is made at the next start"
    )]
    KeyEmpty {
        /// The key file.
        path: PathBuf,
    },
    /// The key file does not hold a secret key.
    #[error(
        "{path} does not hold a secret key (64 hex digits, not zero); restore it from a backup, or move it away and a \
         new key is made at the next start"
    )]
    KeyMalformed {
        /// The key file.
        path: PathBuf,
    },
    /// No server runs on this state directory.
    #[error(
        "no running server: {path} is absent; start one with: ringwire run, or name one with --server PK@HOST:PORT"
    )]
    NoServer {
        /// The note that a running server would have left.
        path: PathBuf,
    },
    /// The note of a server is there but makes no sense.
    #[error("{path} is not a server's note ({reason}); remove it and start the server again")]
    NoteMalformed {
        /// The note.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused a key file.
    #[error("cannot {action} {path}: {source}; grant this user access there, or name another file")]
    KeyIo {
        /// What was tried.
        action: &'static str,
        /// The key file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The operating system refused.
    #[error(
        "cannot {action} {path}: {source}; make room or grant access there, or name another directory with: --state DIR"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

/// What was seen of a state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The key a server would have; none when it would make one at its first start.
    pub key: Option<PublicKey>,
    /// As which user it was looked at, when not as this process's.
    pub owner: Option<u32>,
}

/// A state directory.
#[derive(Debug, Clone)]
pub struct State {
    directory: PathBuf,
}

/// What a running server tells tools on the same machine (`STATE/server.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerNote {
    /// The server's public key, 66 hex digits.
    pub public_key: String,
    /// Where it can be reached from this machine.
    pub address: SocketAddr,
    /// Everything it listens on.
    pub addresses: Vec<SocketAddr>,
    /// Process of the control plane; none while the data plane was left alone on purpose.
    pub control_pid: Option<u32>,
    /// Process of the data plane: the one that forwards.
    pub dataplane_pid: u32,
    /// Where the embedded discovery answers, if it runs.
    pub discovery: Option<String>,
}

impl ServerNote {
    /// The public key as a key. An error is a note that was edited by hand.
    pub fn key(&self) -> Result<PublicKey, ringwire_proto::identity::KeyError> {
        self.public_key.parse()
    }
}

impl State {
    /// The state directory to use: `named`, else `$XDG_STATE_HOME/ringwire`, else `~/.local/state/ringwire`.
    pub fn locate(named: Option<PathBuf>) -> Result<Self, StateError> {
        let environment = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let directory = match (named, environment("XDG_STATE_HOME"), environment("HOME")) {
            (Some(directory), _, _) => directory,
            (None, Some(base), _) => Path::new(&base).join("ringwire"),
            (None, None, Some(home)) => Path::new(&home).join(".local/state/ringwire"),
            (None, None, None) => return Err(StateError::NoHome),
        };
        Ok(Self { directory })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory if it is absent (mode 700) and checks that it is ours: owner, mode, version.
    pub fn prepare(&self) -> Result<(), StateError> {
        self.check_length()?;
        self.create_directory()?;
        if self.check()? {
            return Ok(());
        }
        self.replace(&self.directory.join("version"), format!("{VERSION}\n").as_bytes())
    }

    /// Whether a server could use the directory. Changes nothing. Returns the key it would have; none when it would make one
    /// at its first start.
    pub fn look(&self) -> Result<Option<PublicKey>, StateError> {
        self.check_length()?;
        // Where there is no directory yet, one has to be made in the nearest that exists.
        let place = self.directory.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."));
        let action = if place == self.directory {
            self.check()?;
            "write in"
        } else {
            "create a directory in"
        };
        rustix::fs::access(place, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| io_error(action, place)(error.into()))?;
        match key_file::read_own(&self.key_path()) {
            Ok(key) => Ok(Some(key.public_key())),
            Err(StateError::KeyAbsent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`look`](Self::look), and root sees the directory of another user as that user would, who is to run the server: with
    /// that one's rights, and the directory's group alone.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn look_as_owner(&self) -> Result<Look, StateError> {
        let owner = match fs::metadata(&self.directory) {
            Ok(metadata) if rustix::process::geteuid().is_root() && metadata.uid() != 0 => metadata,
            _ => return Ok(Look { key: self.look()?, owner: None }),
        };
        let (user, group) = (owner.uid(), owner.gid());
        // Who one is, is the kernel's for each thread alone, and this one's ends with it.
        let looked = thread::scope(|scope| {
            let as_owner = scope.spawn(|| become_user(user, group).is_ok().then(|| self.look()));
            as_owner.join().unwrap_or_default()
        });
        // A root that may not become anybody is a user like another.
        match looked {
            Some(looked) => Ok(Look { key: looked?, owner: Some(user) }),
            None => Ok(Look { key: self.look()?, owner: None }),
        }
    }

    fn check_length(&self) -> Result<(), StateError> {
        let longer = self.dataplane_socket().as_os_str().len().saturating_sub(SOCKET_PATH_LEN_MAX);
        if longer == 0 {
            return Ok(());
        }
        let path = self.directory.clone();
        Err(StateError::TooLong { max: path.as_os_str().len().saturating_sub(longer), path })
    }

    /// Checks that the directory is ours: owner, mode, version. False: it has no version yet.
    fn check(&self) -> Result<bool, StateError> {
        let path = self.directory.clone();
        let metadata = fs::metadata(&path).map_err(io_error("look at", &path))?;
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user {
            return Err(StateError::Owner { path, owner: metadata.uid(), user });
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(StateError::Exposed { path, mode: metadata.mode() & 0o777 });
        }
        let path = self.directory.join("version");
        let Some(text) = read_plain(&path)? else { return Ok(false) };
        match text.trim().parse() {
            Ok(found) if found > VERSION => Err(StateError::Newer { path, found }),
            Ok(_) => Ok(true),
            Err(_) => Err(StateError::VersionMalformed { path }),
        }
    }

    /// The data plane's socket.
    pub fn dataplane_socket(&self) -> PathBuf {
        self.directory.join("dataplane.sock")
    }

    /// The control plane's socket.
    pub fn control_socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// The server's secret key: read from `key`, or made and written there (mode 600) when the file is absent.
    pub fn key(&self) -> Result<SecretKey, StateError> {
        let path = self.key_path();
        match key_file::read_own(&path) {
            Err(StateError::KeyAbsent { .. }) => {
                self.create_directory()?;
                key_file::create(&path)
            }
            result => result,
        }
    }

    /// The file of the server's secret key.
    pub fn key_path(&self) -> PathBuf {
        self.directory.join("key")
    }

    /// Leaves the note of a running server.
    pub fn write_note(&self, note: &ServerNote) -> Result<(), StateError> {
        let path = self.note_path();
        let text = serde_json::to_string(note)
            .map_err(|error| StateError::NoteMalformed { path: path.clone(), reason: error.to_string() })?;
        self.replace(&path, format!("{text}\n").as_bytes())
    }

    /// Reads the note of a running server.
    pub fn read_note(&self) -> Result<ServerNote, StateError> {
        let path = self.note_path();
        let Some(text) = read_plain(&path)? else { return Err(StateError::NoServer { path }) };
        serde_json::from_str(&text)
            .map_err(|error| StateError::NoteMalformed { path, reason: error.to_string() })
    }

    /// Removes the note, but only one about this data plane: a successor's note stays.
    pub fn remove_note(&self, dataplane_pid: u32) {
        if self.read_note().is_ok_and(|note| note.dataplane_pid == dataplane_pid) {
            // A note that cannot be removed names a process that no longer answers; its readers say so.
            fs::remove_file(self.note_path()).ok();
        }
    }

    fn note_path(&self) -> PathBuf {
        self.directory.join("server.json")
    }

    fn create_directory(&self) -> Result<(), StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|source| StateError::Io { action: "create", path: self.directory.clone(), source })
    }

    /// Writes beside the target and renames, so that a reader sees the old text or the new one, also after a power failure.
    fn replace(&self, path: &Path, text: &[u8]) -> Result<(), StateError> {
        self.create_directory()?;
        let beside = beside(path);
        let written = write_fresh(&beside, text).and_then(|()| fs::rename(&beside, path));
        written.map_err(|source| {
            fs::remove_file(&beside).ok();
            StateError::Io { action: "write", path: path.to_owned(), source }
        })
    }
}

/// Gives this thread alone the rights of a user, for good.
fn become_user(user: u32, group: u32) -> rustix::io::Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { action, path, source }
}

/// Where a file is written before it has its name.
fn beside(path: &Path) -> PathBuf {
    path.with_extension(format!("new.{}", std::process::id()))
}

/// Makes a file that only its owner can read, with this text, safe on the disk. What is left there of a process that had this
/// one's number and died goes; anything that comes back meanwhile is refused.
fn write_fresh(path: &Path, text: &[u8]) -> io::Result<()> {
    fs::remove_file(path).ok();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = open_plain(path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| match error {
        PlainError::Io(error) => error,
        PlainError::Other(_) => io::ErrorKind::AlreadyExists.into(),
    })?;
    file.write_all(text)?;
    file.sync_all()
}

/// The text of a file in the directory; none: there is no such file. One that is too long or no text reads as nothing that
/// makes sense, and its reader says so.
fn read_plain(path: &Path) -> Result<Option<String>, StateError> {
    let file = match open_plain(path, OFlags::RDONLY, Mode::empty()) {
        Ok(file) => file,
        Err(PlainError::Other(other)) => return Err(StateError::NotPlain { path: path.to_owned(), other }),
        Err(PlainError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(PlainError::Io(error)) => return Err(io_error("read", path)(error)),
    };
    let mut text = Vec::new();
    file.take(FILE_LEN_MAX).read_to_end(&mut text).map_err(io_error("read", path))?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn state() -> (tempfile::TempDir, State) {
        let directory = tempfile::tempdir().unwrap();
        let state = State::locate(Some(directory.path().join("nested/state"))).unwrap();
        (directory, state)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_key_is_made_once_and_private() {
        let (_directory, state) = state();
        let made = state.key().unwrap().public_key();
        assert_eq!(state.key().unwrap().public_key(), made);
        assert_eq!(mode(&state.directory().join("key")), 0o600);
        assert_eq!(mode(state.directory()), 0o700);
    }

    #[test]
    fn an_exposed_key_is_refused_with_the_cure() {
        let (_directory, state) = state();
        state.key().unwrap();
        let path = state.directory().join("key");
        for exposed in [0o640, 0o604, 0o620, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(exposed)).unwrap();
            let text = state.key().err().unwrap().to_string();
            assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
            assert!(text.contains(&format!("{exposed:03o}")), "{text}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(state.key().is_ok());
    }

    #[test]
    fn a_key_file_without_a_key_is_refused_and_kept() {
        let (_directory, state) = state();
        state.key().unwrap();
        let path = state.directory().join("key");
        for text in ["", "\n"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(state.key(), Err(StateError::KeyEmpty { .. })), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        for text in ["zz", &"0".repeat(64), &"f".repeat(64), &"1".repeat(63)] {
            fs::write(&path, text).unwrap();
            assert!(matches!(state.key(), Err(StateError::KeyMalformed { .. })), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn the_note_comes_back_and_only_its_writer_removes_it() {
        let (_directory, state) = state();
        assert!(matches!(state.read_note(), Err(StateError::NoServer { .. })));
        let note = ServerNote {
            public_key: state.key().unwrap().public_key().to_string(),
            address: "127.0.0.1:8081".parse().unwrap(),
            addresses: vec!["0.0.0.0:8081".parse().unwrap()],
            control_pid: Some(4710),
            dataplane_pid: 4711,
            discovery: None,
        };
        state.write_note(&note).unwrap();
        assert_eq!(state.read_note().unwrap(), note);
        assert_eq!(mode(&state.directory().join("server.json")), 0o600);
        state.remove_note(1);
        assert!(state.read_note().is_ok());
        state.remove_note(4711);
        assert!(matches!(state.read_note(), Err(StateError::NoServer { .. })));
        assert_eq!(fs::read_dir(state.directory()).unwrap().count(), 1, "only the key is left");
    }

    #[test]
    fn the_directory_is_made_private_and_marked_with_its_version() {
        let (_directory, state) = state();
        state.prepare().unwrap();
        assert_eq!(mode(state.directory()), 0o700);
        assert_eq!(fs::read_to_string(state.directory().join("version")).unwrap(), "1\n");
        state.prepare().unwrap();
    }

    #[test]
    fn a_directory_of_a_newer_program_is_refused_and_left_as_it_is() {
        let (_directory, state) = state();
        state.prepare().unwrap();
        let path = state.directory().join("version");
        for (text, cure) in [("2\n", "newer ringwire"), ("", "echo 1"), ("one", "echo 1")] {
            fs::write(&path, text).unwrap();
            let error = state.prepare().unwrap_err().to_string();
            assert!(error.contains(cure) && error.contains(&*path.to_string_lossy()), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused_with_the_cure() {
        let (_directory, state) = state();
        state.prepare().unwrap();
        for exposed in [0o750, 0o755, 0o701, 0o710, 0o770, 0o707, 0o777] {
            fs::set_permissions(state.directory(), fs::Permissions::from_mode(exposed)).unwrap();
            let text = state.prepare().unwrap_err().to_string();
            assert!(text.contains(&format!("chmod 700 {}", state.directory().display())), "{text}");
        }
        fs::set_permissions(state.directory(), fs::Permissions::from_mode(0o700)).unwrap();
        state.prepare().unwrap();
    }

    #[test]
    fn what_is_no_plain_file_is_refused_at_once_whichever_file_it_is() {
        let (_directory, state) = state();
        state.prepare().unwrap();
        let target = state.directory().join("target");
        for name in ["key", "version", "server.json", "lock"] {
            let path = state.directory().join(name);
            let refused = |what: &str| {
                let error = match name {
                    "key" => state.key().err().map(|error| error.to_string()),
                    "version" => state.prepare().err().map(|error| error.to_string()),
                    "lock" => lock::Lock::take(&state).err().map(|error| error.to_string()),
                    _ => state.read_note().err().map(|error| error.to_string()),
                };
                let error = error.unwrap();
                assert!(error.contains(what) && error.contains(&*path.to_string_lossy()), "{name}: {error}");
            };
            fs::remove_file(&path).ok();
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
            refused("a FIFO");
            fs::remove_file(&path).unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
            refused("a socket");
            fs::remove_file(&path).unwrap();
            fs::write(&target, "somebody's").unwrap();
            std::os::unix::fs::symlink(&target, &path).unwrap();
            refused("a symbolic link");
            assert_eq!(fs::read_to_string(&target).unwrap(), "somebody's", "{name}");
            fs::remove_file(&path).unwrap();
            if name == "version" {
                state.prepare().unwrap();
            }
        }
    }

    #[test]
    fn a_key_of_somebody_else_is_refused() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give a file away.
            return;
        }
        let (_directory, state) = state();
        state.key().unwrap();
        std::os::unix::fs::chown(state.key_path(), Some(12_345), None).unwrap();
        for error in [state.key().err().unwrap(), state.look().err().unwrap()] {
            let text = error.to_string();
            assert!(text.contains("user 12345") && text.contains("chown 0"), "{text}");
        }
        // The directory is root's, and so is the judgement.
        assert!(matches!(state.look_as_owner(), Err(StateError::KeyOwner { user: 0, .. })));
        // To look at, it is a key like another.
        assert!(key_file::read(&state.key_path()).is_ok());
    }

    #[test]
    fn a_broken_note_is_named() {
        let (_directory, state) = state();
        state.key().unwrap();
        fs::write(state.directory().join("server.json"), "{}").unwrap();
        let text = state.read_note().err().unwrap().to_string();
        assert!(text.contains("public_key"), "{text}");
    }
}

//! The state directory: the server's key and the note a running server leaves for its own tools.
//!
//! In: the directory's path. Out: the secret key of `STATE/key`, made at the first start, and `STATE/server.json`,
//! which exists exactly while a server runs. `ringwire run` writes both, `ringwire bench` reads the second.
//! Everything in the directory is readable by its owner only.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{PublicKey, SecretKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

/// Environment variable that names the state directory.
pub const STATE_VARIABLE: &str = "RINGWIRE_STATE";

/// Why the state directory could not be used. Every text names the file and what to do about it.
#[derive(Debug, Error)]
pub enum StateError {
    /// No directory was named and the environment has no home to put one in.
    #[error("no state directory: neither HOME nor XDG_STATE_HOME is set; name one with --state DIR")]
    NoHome,
    /// The key file can be read or written by others than its owner.
    #[error("{path} is open to other users (mode {mode:03o}); run: chmod 600 {path}")]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
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
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
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
    /// Process that forwards.
    pub pid: u32,
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

    /// The server's secret key: read from `key`, or made and written there (mode 600) when the file is absent.
    pub fn key(&self) -> Result<SecretKey, StateError> {
        let path = self.directory.join("key");
        match fs::metadata(&path) {
            Ok(metadata) if metadata.mode() & 0o077 != 0 => {
                return Err(StateError::KeyExposed { path, mode: metadata.mode() & 0o777 });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.create_key(&path),
            Err(source) => return Err(StateError::Io { action: "look at", path, source }),
        }
        match fs::read(&path).map(Zeroizing::new) {
            Ok(text) => std::str::from_utf8(&text)
                .ok()
                .and_then(|text| SecretKey::from_hex(text.trim()).ok())
                .ok_or(StateError::KeyMalformed { path }),
            Err(source) => Err(StateError::Io { action: "read", path, source }),
        }
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
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NoServer { path });
            }
            Err(source) => return Err(StateError::Io { action: "read", path, source }),
        };
        serde_json::from_str(&text)
            .map_err(|error| StateError::NoteMalformed { path, reason: error.to_string() })
    }

    /// Removes the note, but only one that process `pid` wrote: a successor's note stays.
    pub fn remove_note(&self, pid: u32) {
        if self.read_note().is_ok_and(|note| note.pid == pid) {
            // A note that cannot be removed names a process that no longer answers; its readers say so.
            fs::remove_file(self.note_path()).ok();
        }
    }

    fn note_path(&self) -> PathBuf {
        self.directory.join("server.json")
    }

    fn create_key(&self, path: &Path) -> Result<SecretKey, StateError> {
        let key = SecretKey::generate(&mut OsEntropy);
        let mut text = Zeroizing::new(key.to_hex().to_string());
        text.push('\n');
        self.create_directory()?;
        let written = private_file(path, true).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|source| StateError::Io { action: "write", path: path.to_owned(), source })?;
        Ok(key)
    }

    fn create_directory(&self) -> Result<(), StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|source| StateError::Io { action: "create", path: self.directory.clone(), source })
    }

    /// Writes beside the target and renames, so that a reader sees the old text or the new one.
    fn replace(&self, path: &Path, text: &[u8]) -> Result<(), StateError> {
        self.create_directory()?;
        let beside = path.with_extension(format!("new.{}", std::process::id()));
        let written = private_file(&beside, false).and_then(|mut file| {
            file.write_all(text)?;
            fs::rename(&beside, path)
        });
        written.map_err(|source| {
            fs::remove_file(&beside).ok();
            StateError::Io { action: "write", path: path.to_owned(), source }
        })
    }
}

/// Opens a file that only its owner can read; `fresh` refuses one that exists.
fn private_file(path: &Path, fresh: bool) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    if fresh {
        options.create_new(true);
    } else {
        options.create(true).truncate(true);
    }
    options.open(path)
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
        for text in ["", "zz", &"0".repeat(64), &"f".repeat(64), &"1".repeat(63)] {
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
            pid: 4711,
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
    fn a_broken_note_is_named() {
        let (_directory, state) = state();
        state.key().unwrap();
        fs::write(state.directory().join("server.json"), "{}").unwrap();
        let text = state.read_note().err().unwrap().to_string();
        assert!(text.contains("public_key"), "{text}");
    }
}

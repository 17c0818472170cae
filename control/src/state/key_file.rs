//! Files with a secret key: 64 hex digits, readable by their owner only.
//!
//! In: a path. Out: the key, or what is wrong with the file. The state directory's key is one; `--key-file` and
//! `ringwire keys` take any other.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::process::{PlainError, open_named, open_plain};
use ringwire_proto::identity::SecretKey;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::{StateError, beside, write_fresh};

/// Longest key file that is read, in bytes: the digits, and room for white space.
const FILE_LEN_MAX: u64 = 1024;

/// Reads a key from a file that somebody has named.
///
/// # Errors
/// [`StateError::KeyAbsent`], [`StateError::KeyExposed`], [`StateError::KeyNotPlain`], [`StateError::KeyEmpty`],
/// [`StateError::KeyMalformed`], [`StateError::KeyIo`].
pub fn read(path: &Path) -> Result<SecretKey, StateError> {
    let file = opened(path, open_named(path, OFlags::RDONLY, Mode::empty()))?;
    key_of(path, &file)
}

/// Reads the key of a state directory: this user's own file, and no link to another.
///
/// # Errors
/// As [`read`]; [`StateError::KeyOwner`].
pub(super) fn read_own(path: &Path) -> Result<SecretKey, StateError> {
    let file = opened(path, open_plain(path, OFlags::RDONLY, Mode::empty()))?;
    let owner = file.metadata().map_err(|source| refused("look at", path, source))?.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner != user {
        return Err(StateError::KeyOwner { path: path.to_owned(), owner, user });
    }
    key_of(path, &file)
}

fn opened(path: &Path, outcome: Result<File, PlainError>) -> Result<File, StateError> {
    outcome.map_err(|error| match error {
        PlainError::Other(other) => StateError::KeyNotPlain { path: path.to_owned(), other },
        PlainError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            StateError::KeyAbsent { path: path.to_owned() }
        }
        PlainError::Io(source) => refused("read", path, source),
    })
}

fn key_of(path: &Path, file: &File) -> Result<SecretKey, StateError> {
    let mode = file.metadata().map_err(|source| refused("look at", path, source))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::KeyExposed { path: path.to_owned(), mode });
    }
    // Of its final size from the start: growing would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_LEN_MAX as usize));
    file.take(FILE_LEN_MAX).read_to_end(&mut text).map_err(|source| refused("read", path, source))?;
    if text.trim_ascii().is_empty() {
        return Err(StateError::KeyEmpty { path: path.to_owned() });
    }
    std::str::from_utf8(&text)
        .ok()
        .and_then(|text| SecretKey::from_hex(text.trim()).ok())
        .ok_or_else(|| StateError::KeyMalformed { path: path.to_owned() })
}

/// Makes a key and writes it to a file that must not exist yet. The file has its name only once the whole key is safe on the
/// disk: a full one leaves nothing behind that looks like a lost key.
///
/// # Errors
/// [`StateError::KeyExists`], [`StateError::KeyIo`].
pub fn create(path: &Path) -> Result<SecretKey, StateError> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(StateError::KeyExists { path: path.to_owned() });
    }
    let key = SecretKey::generate(&mut OsEntropy);
    let mut text = Zeroizing::new(key.to_hex().to_string());
    text.push('\n');
    let beside = beside(path);
    let written = write_fresh(&beside, text.as_bytes()).and_then(|()| name(&beside, path));
    if written.is_err() {
        fs::remove_file(&beside).ok();
    }
    match written {
        Ok(true) => Ok(key),
        Ok(false) => {
            fs::remove_file(&beside).ok();
            Err(StateError::KeyExists { path: path.to_owned() })
        }
        Err(source) => Err(refused("write", path, source)),
    }
}

/// Gives a written file its name, for good; false: somebody else has the name meanwhile.
fn name(beside: &Path, path: &Path) -> io::Result<bool> {
    let named = match renameat_with(CWD, beside, CWD, path, RenameFlags::NOREPLACE) {
        // Not every file system can, and those can link.
        Err(Errno::INVAL | Errno::NOSYS) => {
            fs::hard_link(beside, path).and_then(|()| fs::remove_file(beside))
        }
        outcome => outcome.map_err(io::Error::from),
    };
    match named {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        outcome => outcome?,
    }
    // The name is the directory's. One that cannot be written through has it all the same.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).ok();
    Ok(true)
}

fn refused(action: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::KeyIo { action, path: path.to_owned(), source }
}

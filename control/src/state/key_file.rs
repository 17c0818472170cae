//! Files with a secret key: 64 hex digits, readable by their owner only.
//!
//! In: a path. Out: the key, or what is wrong with the file. The state directory's key is one; `--key-file` and
//! `ringwire keys` take any other.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::SecretKey;
use zeroize::Zeroizing;

use super::{StateError, private_file};

/// Reads a key.
///
/// # Errors
/// [`StateError::KeyAbsent`], [`StateError::KeyExposed`], [`StateError::KeyMalformed`], [`StateError::KeyIo`].
pub fn read(path: &Path) -> Result<SecretKey, StateError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            return Err(StateError::KeyExposed { path: path.to_owned(), mode: metadata.mode() & 0o777 });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StateError::KeyAbsent { path: path.to_owned() });
        }
        Err(source) => return Err(refused("look at", path, source)),
    }
    let text = fs::read(path).map(Zeroizing::new).map_err(|source| refused("read", path, source))?;
    std::str::from_utf8(&text)
        .ok()
        .and_then(|text| SecretKey::from_hex(text.trim()).ok())
        .ok_or_else(|| StateError::KeyMalformed { path: path.to_owned() })
}

/// Makes a key and writes it to a file that must not exist yet.
///
/// # Errors
/// [`StateError::KeyExists`], [`StateError::KeyIo`].
pub fn create(path: &Path) -> Result<SecretKey, StateError> {
    let key = SecretKey::generate(&mut OsEntropy);
    let mut text = Zeroizing::new(key.to_hex().to_string());
    text.push('\n');
    let written = private_file(path, true).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(StateError::KeyExists { path: path.to_owned() })
        }
        Err(source) => Err(refused("write", path, source)),
    }
}

fn refused(action: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::KeyIo { action, path: path.to_owned(), source }
}

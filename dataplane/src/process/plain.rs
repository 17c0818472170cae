//! Opening the files of a state directory: each is a plain file, or is refused at once.
//!
//! In: a path and how to open it. Out: the file, or what else is there. A FIFO would let the start wait for ever for its other
//! end, a device may do anything when it is opened, and a symbolic link would let us write over somebody's file.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, lstat, open};

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// Something else has the name.
    #[error("it is {0} where a plain file is expected")]
    Other(&'static str),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens a plain file, never waiting and never through a symbolic link. `flags` and `mode` as for `open(2)`.
///
/// # Errors
/// [`PlainError::Other`]: the name is that of something else. [`PlainError::Io`]: what the kernel says, such as that there is
/// none.
pub fn open_plain(path: &Path, flags: OFlags, mode: Mode) -> Result<File, PlainError> {
    open_file(path, flags | OFlags::NOFOLLOW, mode)
}

/// As [`open_plain`], also through a symbolic link: for a path that somebody has named.
///
/// # Errors
/// As [`open_plain`].
pub fn open_named(path: &Path, flags: OFlags, mode: Mode) -> Result<File, PlainError> {
    open_file(path, flags, mode)
}

fn open_file(path: &Path, flags: OFlags, mode: Mode) -> Result<File, PlainError> {
    let file = match open(path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, mode) {
        Ok(file) => file,
        // A link, a socket, a FIFO without its other end: the kernel's words for them say less.
        Err(error) => {
            let there = lstat(path).ok().map(|stat| FileType::from_raw_mode(stat.st_mode));
            let link = there == Some(FileType::Symlink) && !flags.contains(OFlags::NOFOLLOW);
            return Err(match there.filter(|_| !link).and_then(other) {
                Some(other) => PlainError::Other(other),
                None => PlainError::Io(error.into()),
            });
        }
    };
    let stat = fstat(&file).map_err(io::Error::from)?;
    match other(FileType::from_raw_mode(stat.st_mode)) {
        Some(other) => Err(PlainError::Other(other)),
        None => Ok(File::from(file)),
    }
}

/// What a file is that is no plain one.
fn other(kind: FileType) -> Option<&'static str> {
    Some(match kind {
        FileType::RegularFile => return None,
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::mkfifoat;

    use super::*;

    #[test]
    fn what_is_no_plain_file_is_named_at_once_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("file"), "text").unwrap();
        mkfifoat(rustix::fs::CWD, path("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        std::os::unix::fs::symlink(path("nowhere"), path("dangling")).unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        for (name, what) in [
            ("fifo", "a FIFO"),
            ("socket", "a socket"),
            ("link", "a symbolic link"),
            ("dangling", "a symbolic link"),
            ("directory", "a directory"),
        ] {
            for flags in [OFlags::RDONLY, OFlags::RDWR | OFlags::CREATE, OFlags::WRONLY] {
                let outcome = open_plain(&path(name), flags, Mode::RUSR | Mode::WUSR);
                assert!(
                    matches!(outcome, Err(PlainError::Other(found)) if found == what),
                    "{name}: {outcome:?}"
                );
            }
        }
        let null = open_plain(Path::new("/dev/null"), OFlags::RDONLY, Mode::empty());
        assert!(matches!(null, Err(PlainError::Other("a device"))), "{null:?}");
        assert_eq!(std::fs::read_to_string(path("file")).unwrap(), "text");
        assert!(!path("nowhere").exists(), "nothing is made through a link");
        // A file that somebody has named may be reached through one.
        let named = |name: &str| open_named(&path(name), OFlags::RDONLY, Mode::empty());
        assert!(named("link").is_ok() && open_plain(&path("file"), OFlags::RDONLY, Mode::empty()).is_ok());
        assert!(matches!(named("fifo"), Err(PlainError::Other("a FIFO"))));
        assert!(
            matches!(named("dangling"), Err(PlainError::Io(error)) if error.kind() == io::ErrorKind::NotFound)
        );
        assert!(
            matches!(named("absent"), Err(PlainError::Io(error)) if error.kind() == io::ErrorKind::NotFound)
        );
    }
}

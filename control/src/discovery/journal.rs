//! What a discovery remembers over a restart: `STATE/discovery.json`.
//!
//! In: the records of a [`super::MemoryStore`] and what changed in them. Out: a file of JSON lines: a head, then one
//! line per change, each the whole entry or the name of a key that is gone; the last line of a key counts. A change costs
//! one line instead of the whole table, and the file is written anew (beside, then renamed) when more than half of it is
//! history. Every write reaches the disk before it counts as done.
//!
//! A crash can leave a last line without its end: that one is ignored. Any other line that does not read is damage: it is
//! passed over, all others are used, the file is kept beside, and the operator is told how many there were.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ringwire_proto::entry::Entry;
use ringwire_proto::identity::PublicKey;
use rustix::fs::OFlags;
use serde::Deserialize;
use thiserror::Error;

use super::store::{Changes, ENTRY_BYTES_MAX, Record};

/// The first line.
const HEAD: &str = "{\"format\":\"ringwire-discovery\",\"version\":1}";
/// Longest line: an entry and what stands around it.
const LINE_BYTES_MAX: usize = ENTRY_BYTES_MAX + 128;
/// Longest file that is read. What we write stays below (twice the text of a full store).
const FILE_BYTES_MAX: u64 = 1 << 30;
/// A file below this size is not worth writing anew.
const HISTORY_BYTES_MIN: u64 = 1 << 20;

/// Why the journal could not be read or written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// An operation failed.
    #[error("cannot {action} {}: {source}; until it can, a restart forgets the entries of the discovery", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The answer of the operating system.
        source: io::Error,
    },
    /// Something else is in its place, of which a read might never end.
    #[error(
        "{} is a {kind} and no file: the discovery keeps its entries there; move it away, a new file is made", path.display()
    )]
    NoFile {
        /// Where.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
}

/// What a journal held.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The records, in no order.
    pub records: Vec<Record>,
    /// What was wrong with the file, and where it lies now.
    pub damage: Option<Damage>,
}

/// A file of which not every line read.
#[derive(Debug)]
pub struct Damage {
    /// How many lines did not.
    pub lines: usize,
    /// Number of the first of them, from 1.
    pub first: usize,
    /// What is wrong with it.
    pub reason: String,
    /// Where the file is kept.
    pub kept: PathBuf,
}

#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    expires_ns: Option<i64>,
    entry: Option<Entry>,
    removed: Option<String>,
}

/// Reads a journal; an absent file is an empty one.
///
/// # Errors
/// [`JournalError`] when the file is there and cannot be read or moved, or is no file. Damage is no error.
pub fn load(path: &Path) -> Result<Loaded, JournalError> {
    let fail = |action, source| JournalError::Io { action, path: path.to_owned(), source };
    let Some(file) = open(path)? else { return Ok(Loaded::default()) };
    let mut records = HashMap::new();
    let mut reader = BufReader::new(file.take(FILE_BYTES_MAX));
    let mut line = Vec::new();
    let mut number = 0;
    let mut damaged = 0;
    let mut first = None;
    loop {
        line.clear();
        number += 1;
        let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        reader.by_ref().take(limit).read_until(b'\n', &mut line).map_err(|source| fail("read", source))?;
        let read = if line.len() == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
            reader.skip_until(b'\n').map_err(|source| fail("read", source))?;
            Err(Bad::Line(format!("longer than {LINE_BYTES_MAX} bytes")))
        } else {
            // The end, or a line that was being written when the process or the machine stopped.
            let Some(text) = line.strip_suffix(b"\n") else { break };
            if number == 1 { check_head(text) } else { apply(text, &mut records).map_err(Bad::Line) }
        };
        if let Err(Bad::Line(reason) | Bad::Format(reason)) = &read {
            damaged += 1;
            first.get_or_insert_with(|| (number, reason.clone()));
        }
        if matches!(read, Err(Bad::Format(_))) {
            break;
        }
    }
    let damage = match first {
        None => None,
        Some((first, reason)) => {
            let kept = path.with_extension("json.damaged");
            fs::rename(path, &kept).map_err(|source| fail("move away", source))?;
            Some(Damage { lines: damaged, first, reason, kept })
        }
    };
    Ok(Loaded { records: records.into_values().collect(), damage })
}

/// Opens the file without waiting for anybody; `None` when there is none.
fn open(path: &Path) -> Result<Option<File>, JournalError> {
    let fail = |action, source| JournalError::Io { action, path: path.to_owned(), source };
    // Looked at before, so that nothing is started by an open (a device), and again after it.
    let no_file = |kind: fs::FileType| JournalError::NoFile { path: path.to_owned(), kind: name_of(kind) };
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(found) => return Err(no_file(found.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(fail("look at", source)),
    }
    // The flag keeps the open of a FIFO from waiting for a writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|source| fail("open", source))?;
    let opened = file.metadata().map_err(|source| fail("look at", source))?;
    if opened.is_file() { Ok(Some(file)) } else { Err(no_file(opened.file_type())) }
}

fn name_of(kind: fs::FileType) -> &'static str {
    if kind.is_dir() {
        "directory"
    } else if kind.is_fifo() {
        "FIFO"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    }
}

/// What is wrong with a line.
enum Bad {
    /// The line itself.
    Line(String),
    /// It says that all others mean something else.
    Format(String),
}

fn check_head(text: &[u8]) -> Result<(), Bad> {
    let head: Head = serde_json::from_slice(text).map_err(|error| Bad::Line(error.to_string()))?;
    if head.format != "ringwire-discovery" || head.version != 1 {
        let text = format!("format {} {} instead of ringwire-discovery 1", head.format, head.version);
        return Err(Bad::Format(text));
    }
    Ok(())
}

fn apply(text: &[u8], records: &mut HashMap<PublicKey, Record>) -> Result<(), String> {
    let line: Line = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match (line.entry, line.removed) {
        (Some(entry), None) => {
            let key = entry.static_key.ok_or("an entry of nobody")?;
            let text = entry.to_json().into();
            records.insert(key, Record { entry, text, expires_ns: line.expires_ns });
        }
        (None, Some(key)) => {
            let key: PublicKey = key.parse().map_err(|error| format!("removed: {error}"))?;
            records.remove(&key);
        }
        (Some(_), Some(_)) | (None, None) => return Err("neither an entry nor a removed key".to_owned()),
    }
    Ok(())
}

/// The writing end. One per file; nothing here waits for anything but the disk, so it belongs on a blocking thread.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// None until the whole was written once, and after a failure: what reached the file is then unknown.
    file: Option<File>,
    bytes: u64,
    bytes_when_whole: u64,
}

impl Journal {
    /// A journal at `path`, whatever is there now. Writes nothing yet; the first write must be of the whole.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, bytes: 0, bytes_when_whole: 0 }
    }

    /// True when the next write must be [`Changes::All`].
    pub fn wants_all(&self) -> bool {
        self.file.is_none() || self.bytes > self.bytes_when_whole.saturating_mul(2).max(HISTORY_BYTES_MIN)
    }

    /// Writes changes and waits for the disk.
    ///
    /// # Errors
    /// [`JournalError`]; the next write must then be of the whole.
    pub fn write(&mut self, changes: &Changes) -> Result<(), JournalError> {
        let written = match (changes, self.file.take()) {
            (Changes::All(records), _) => self.write_all(records.iter().map(AsRef::as_ref)),
            (Changes::Some(changes), Some(file)) => self.append(file, changes),
            (Changes::Some(_), None) => Err(("append to", io::Error::other("the whole was not written yet"))),
        };
        match written {
            Ok(file) => {
                self.file = Some(file);
                Ok(())
            }
            Err((action, source)) => Err(JournalError::Io { action, path: self.path.clone(), source }),
        }
    }

    fn append(
        &mut self,
        mut file: File,
        changes: &[(PublicKey, Option<std::sync::Arc<Record>>)],
    ) -> Result<File, (&'static str, io::Error)> {
        let mut text = Vec::new();
        for (key, record) in changes {
            match record {
                Some(record) => push_record(record, &mut text),
                None => push_removed(key, &mut text),
            }
        }
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        written.map_err(|error| ("append to", error))?;
        self.bytes += text.len() as u64;
        Ok(file)
    }

    /// Writes beside and renames, so that the file is the old one or the new one at any moment.
    fn write_all<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Record>,
    ) -> Result<File, (&'static str, io::Error)> {
        let beside = self.path.with_extension("json.new");
        let written = write_beside(&beside, records).and_then(|(file, bytes)| {
            fs::rename(&beside, &self.path)?;
            // The rename itself must survive a crash too.
            if let Some(directory) = self.path.parent() {
                File::open(directory)?.sync_all()?;
            }
            Ok((file, bytes))
        });
        let (file, bytes) = written.map_err(|error| {
            fs::remove_file(&beside).ok();
            ("write", error)
        })?;
        (self.bytes, self.bytes_when_whole) = (bytes, bytes);
        Ok(file)
    }
}

fn write_beside<'a>(path: &Path, records: impl Iterator<Item = &'a Record>) -> io::Result<(File, u64)> {
    // Whatever a crash or somebody left there: made anew, so that nothing is followed or waited for.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut writer = io::BufWriter::new(file);
    let mut bytes = 0;
    let mut text = format!("{HEAD}\n").into_bytes();
    for record in records {
        writer.write_all(&text)?;
        bytes += text.len() as u64;
        text.clear();
        push_record(record, &mut text);
    }
    writer.write_all(&text)?;
    bytes += text.len() as u64;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok((file, bytes))
}

fn push_record(record: &Record, out: &mut Vec<u8>) {
    out.push(b'{');
    if let Some(expires_ns) = record.expires_ns {
        out.extend_from_slice(format!("\"expires_ns\":{expires_ns},").as_bytes());
    }
    out.extend_from_slice(b"\"entry\":");
    out.extend_from_slice(&record.text);
    out.extend_from_slice(b"}\n");
}

fn push_removed(key: &PublicKey, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{{\"removed\":\"{key}\"}}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringwire_proto::entry::{ClientPart, ENTRY_VERSION};
    use ringwire_proto::identity::SecretKey;

    use super::*;

    fn key(number: u8) -> SecretKey {
        SecretKey::from_bytes(&[number; 32]).unwrap()
    }

    fn record(number: u8, sequence: u64) -> Arc<Record> {
        let mut entry = Entry {
            version: ENTRY_VERSION.to_owned(),
            sequence,
            client: Some(ClientPart { delegated_servers: None }),
            ..Entry::default()
        };
        entry.sign(&key(number));
        let text = entry.to_json().into();
        Arc::new(Record {
            entry,
            text,
            expires_ns: number.is_multiple_of(2).then_some(1000 + i64::from(number)),
        })
    }

    fn changed(number: u8, sequence: u64) -> (PublicKey, Option<Arc<Record>>) {
        (key(number).public_key(), Some(record(number, sequence)))
    }

    /// Key number, sequence and expiry of what a file holds.
    fn held(path: &Path) -> Vec<(u64, Option<i64>)> {
        let loaded = load(path).unwrap();
        assert!(loaded.damage.is_none(), "{:?}", loaded.damage);
        let mut held: Vec<_> =
            loaded.records.iter().map(|record| (record.entry.sequence, record.expires_ns)).collect();
        held.sort_unstable();
        for record in &loaded.records {
            record.entry.verify().unwrap();
            assert_eq!(record.text, record.entry.to_json());
        }
        held
    }

    #[test]
    fn what_was_written_comes_back_in_its_last_form() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("discovery.json");
        assert_eq!(held(&path), []);
        let mut journal = Journal::new(path.clone());
        assert!(journal.wants_all());
        assert!(journal.write(&Changes::Some(vec![changed(1, 1)])).is_err());
        journal.write(&Changes::All(vec![record(1, 10), record(2, 20)])).unwrap();
        assert!(!journal.wants_all());
        assert_eq!(held(&path), [(10, None), (20, Some(1002))]);
        journal.write(&Changes::Some(vec![changed(2, 21), changed(3, 30)])).unwrap();
        journal.write(&Changes::Some(vec![(key(1).public_key(), None)])).unwrap();
        assert_eq!(held(&path), [(21, Some(1002)), (30, None)]);
        journal.write(&Changes::All(vec![])).unwrap();
        assert_eq!(held(&path), []);
        let names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(names, ["discovery.json"]);
    }

    #[test]
    fn history_is_thrown_away_before_it_outweighs_the_present() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(directory.path().join("discovery.json"));
        journal.write(&Changes::All(vec![])).unwrap();
        let mut writes = 0;
        while !journal.wants_all() {
            journal.write(&Changes::Some((1..=100).map(|number| changed(number, writes)).collect())).unwrap();
            writes += 1;
        }
        let bytes = fs::metadata(directory.path().join("discovery.json")).unwrap().len();
        assert!((HISTORY_BYTES_MIN..2 * HISTORY_BYTES_MIN).contains(&bytes), "{bytes} after {writes}");
        journal.write(&Changes::All(vec![record(1, 1)])).unwrap();
        assert!(!journal.wants_all());
        assert!(fs::metadata(directory.path().join("discovery.json")).unwrap().len() < 1000);
    }

    #[test]
    fn a_crash_at_any_byte_costs_at_most_the_line_it_fell_into() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("discovery.json");
        let mut journal = Journal::new(path.clone());
        journal.write(&Changes::All(vec![record(1, 1)])).unwrap();
        journal.write(&Changes::Some(vec![changed(1, 2)])).unwrap();
        journal.write(&Changes::Some(vec![changed(1, 3)])).unwrap();
        let whole = fs::read(&path).unwrap();
        let mut ends = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(end, _)| end + 1);
        let ends: [usize; 4] = std::array::from_fn(|_| ends.next().unwrap());
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let lines = ends.iter().filter(|end| **end <= length).count();
            let sequences: Vec<_> = held(&path).into_iter().map(|(sequence, _)| sequence).collect();
            let expected: &[u64] = match lines {
                0 | 1 => &[],
                2 => &[1],
                3 => &[2],
                _ => &[3],
            };
            assert_eq!(sequences, expected, "{length}");
        }
    }

    #[test]
    fn a_damaged_line_costs_itself_and_the_file_is_kept_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("discovery.json");
        let line = |number| format!("{{\"entry\":{}}}", record(number, 7).entry.to_json());
        let (one, two, head) = (line(1), line(3), HEAD);
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        for (text, first, lines, used) in [
            (format!("{head}\n{one}\n\0\0\0\0\n{two}\n"), 3, 1, 2),
            (format!("{head}\n{one}\n{{}}\n{{}}\n{two}\n{{}}\n"), 3, 3, 2),
            (format!("{head}\n{one}\n{{\"removed\":\"zz\"}}\n{two}\n"), 3, 1, 2),
            (format!("{head}\n{{\"entry\":{{\"version\":\"1\"}}}}\n{one}\n{two}\n"), 2, 1, 2),
            (format!("{head}\n{one}\n{long}\n{two}\n"), 3, 1, 2),
            (format!("{head}\n{one}\n{{}}\n{}", &two[..two.len() / 2]), 3, 1, 1),
            (format!("{}\n{one}\n", head.replace(":1}", ":2}")), 1, 1, 0),
            (format!("not a head\n{one}\n{two}\n"), 1, 1, 2),
        ] {
            fs::write(&path, &text).unwrap();
            let loaded = load(&path).unwrap();
            let damage = loaded.damage.unwrap();
            let found = (damage.first, damage.lines, loaded.records.len());
            assert_eq!(found, (first, lines, used), "{}", damage.reason);
            assert!(!path.exists());
            assert_eq!(fs::read_to_string(&damage.kept).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_file_is_named_and_nothing_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), 0o600.into()).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        std::os::unix::fs::symlink(at("fifo"), at("link")).unwrap();
        for (path, kind) in [
            (at("fifo"), "FIFO"),
            (at("link"), "FIFO"),
            (at("socket"), "socket"),
            (at("directory"), "directory"),
            ("/dev/zero".into(), "device"),
        ] {
            let error = load(&path).unwrap_err();
            assert!(matches!(&error, JournalError::NoFile { kind: found, .. } if *found == kind), "{error}");
            let text = error.to_string();
            assert!(text.contains(&path.display().to_string()) && text.contains("move it away"), "{text}");
        }
    }

    #[test]
    fn what_lies_where_the_file_is_made_anew_is_neither_followed_nor_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (path, beside) =
            (directory.path().join("discovery.json"), directory.path().join("discovery.json.new"));
        let target = directory.path().join("target");
        fs::write(&target, "mine").unwrap();
        std::os::unix::fs::symlink(&target, &beside).unwrap();
        Journal::new(path.clone()).write(&Changes::All(vec![record(1, 1)])).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &beside, 0o600.into()).unwrap();
        Journal::new(path.clone()).write(&Changes::All(vec![record(1, 2)])).unwrap();
        assert_eq!(held(&path), [(2, None)]);
        assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
    }

    #[test]
    fn a_disk_that_fails_is_named_and_the_whole_is_due_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("absent/discovery.json");
        let mut journal = Journal::new(path.clone());
        let text = journal.write(&Changes::All(vec![])).unwrap_err().to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(journal.wants_all());
        fs::create_dir(path.parent().unwrap()).unwrap();
        journal.write(&Changes::All(vec![record(1, 1)])).unwrap();
        assert_eq!(held(&path), [(1, None)]);
    }
}

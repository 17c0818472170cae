//! Configuration files: TOML of our own, and the Go server's JSON of 2024 read as it is (control-plane 1.1).
//!
//! In: the path of a file. Out: the settings it names, each checked by its type, or an error with the place, the name and
//! the cure. What a file does not name has its default; precedence is default < file < environment < flag, and the
//! merging is the caller's ([`File::under`]). [`SETTINGS`] describes every setting for people.

mod describe;
mod go;
mod log;
mod value;

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ringwire_dataplane::limits::{WAIT_US_MAX, WORKERS_MAX};
use ringwire_proto::identity::SecretKey;
use serde::Deserialize;

pub use describe::{SETTINGS, SettingHelp, setting_name};
pub use log::LogFilter;
pub use value::{Driver, HostPort, HybridSetting, Network, Url};

/// Longest configuration file, in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;

/// What a file names. `None`: not named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// Addresses to accept sessions on.
    #[serde(deserialize_with = "value::one_or_many")]
    pub listen: Option<Vec<SocketAddr>>,
    /// Where clients reach this server, when that is not where it listens.
    pub public_address: Option<HostPort>,
    /// Discoveries to register with; absent: the embedded one.
    #[serde(deserialize_with = "value::one_or_many")]
    pub discovery: Option<Vec<Url>>,
    /// Where the embedded discovery answers.
    pub discovery_listen: Option<SocketAddr>,
    /// Where `/health` and `/metrics` answer.
    pub http_listen: Option<SocketAddr>,
    /// Sessions advertised as possible.
    pub max_sessions: Option<u32>,
    /// Seconds between registrations.
    pub update_interval_s: Option<u32>,
    /// What moves the bytes.
    pub driver: Option<Driver>,
    /// Threads that forward.
    pub workers: Option<u16>,
    /// Core that the first of them is kept on; the others follow on those behind it.
    pub first_core: Option<u16>,
    /// The post-quantum part of session handshakes.
    pub hybrid: Option<HybridSetting>,
    /// Longest wait for company, in microseconds; 0: never.
    pub company_us: Option<u32>,
    /// Longest time for which receiving from one busy session of many is put off, in microseconds; 0: never.
    pub pause_us: Option<u32>,
    /// Buffer memory, in bytes; 0: by the size of the machine.
    pub buffer_memory: Option<u64>,
    /// A data plane without control plane ends after so many milliseconds; 0: never. Here too where a file says
    /// `orphan_limit_s`.
    pub orphan_limit_ms: Option<u64>,
    /// `orphan_limit_s` of a file, in milliseconds; moved to the former by [`read`](Self::read).
    #[serde(deserialize_with = "value::seconds_as_ms")]
    pub orphan_limit_s: Option<u64>,
    /// Threads of the handshake lane; 0: by the number of cores.
    pub handshake_threads: Option<u16>,
    /// Connections that may be in their handshake.
    pub half_open_max: Option<u32>,
    /// Sessions one address may have; 0: no limit.
    pub sessions_per_address: Option<u32>,
    /// Networks whose PROXY headers are believed.
    #[serde(deserialize_with = "value::one_or_many")]
    pub proxy_from: Option<Vec<Network>>,
    /// Log filter.
    pub log: Option<LogFilter>,
    /// Every session in the log.
    pub log_sessions: Option<bool>,
    /// The server's key, for files of the Go server, which carry it.
    #[serde(skip)]
    pub secret_key: Option<FileKey>,
    /// What is accepted and should be known all the same, in sentences.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// A secret key that a file carries. Compared by its public key, shown as nothing else.
#[derive(Clone)]
pub struct FileKey(std::sync::Arc<SecretKey>);

impl FileKey {
    /// The key.
    pub fn secret(&self) -> &SecretKey {
        &self.0
    }
}

impl PartialEq for FileKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.public_key() == other.0.public_key()
    }
}

impl Eq for FileKey {}

impl std::fmt::Debug for FileKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "FileKey({})", self.0.public_key())
    }
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}. Name a file that this user may read with --config")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// The file is far too long.
    #[error(
        "{path} has more than {FILE_LEN_MAX} bytes, more than any configuration: name another file with --config"
    )]
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// There is nothing in the file: it was not written, or somebody else has read it.
    #[error(
        "{path} is empty. Name another file with --config, or leave the flag out (and RINGWIRE_CONFIG) to start without \
         one; what is empty on purpose holds a comment: # nothing"
    )]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// A line is wrong.
    #[error("{path}:{line}:{column}: {message}. {cure}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
        /// What to do.
        cure: String,
    },
    /// Settings that cannot be together.
    #[error("{path}: {names}: {message}")]
    Together {
        /// Which file.
        path: PathBuf,
        /// Names of the settings.
        names: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
}

impl File {
    /// Reads a file. One that begins with `{` is the Go server's.
    ///
    /// # Errors
    /// What is wrong, where, and what to do.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error| ConfigError::Unreadable { path: path.to_owned(), error };
        let opened = fs::File::open(path).map_err(unreadable)?;
        // Of what was opened: a pipe, and it may have another name's mode.
        let metadata = opened.metadata().map_err(unreadable)?;
        // Of its final size from the start where that is known: growing would leave copies of a key behind.
        let len = metadata.len().min(FILE_LEN_MAX) as usize + 1;
        let mut text = zeroize::Zeroizing::new(String::with_capacity(len));
        opened.take(FILE_LEN_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > FILE_LEN_MAX {
            return Err(ConfigError::TooLong { path: path.to_owned() });
        }
        // Some editors mark their files.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        if text.trim().is_empty() {
            return Err(ConfigError::Empty { path: path.to_owned() });
        }
        let file = if text.trim_start().starts_with('{') {
            let mut file = go::parse(path, text)?;
            let mode = std::os::unix::fs::MetadataExt::mode(&metadata) & 0o777;
            if file.secret_key.is_some() && mode & 0o077 != 0 {
                let path = path.display();
                file.warnings.push(format!(
                    "{path} carries a secret key, and other users may use it (mode {mode:03o}): run `chmod 600 {path}`"
                ));
            }
            file
        } else {
            from_toml(text).map_err(|error| toml_error(path, text, &error))?
        };
        let file = file.in_one_unit(path)?;
        file.check(path)?;
        Ok(file)
    }

    /// What may be told in seconds or in milliseconds, in one of them.
    fn in_one_unit(mut self, path: &Path) -> Result<Self, ConfigError> {
        let seconds = self.orphan_limit_s.take();
        if seconds.is_some() && self.orphan_limit_ms.is_some() {
            return Err(ConfigError::Together {
                path: path.to_owned(),
                names: "orphan_limit_s, orphan_limit_ms",
                message: "they are one setting in two units; leave one of the two out".to_owned(),
            });
        }
        self.orphan_limit_ms = self.orphan_limit_ms.or(seconds);
        Ok(self)
    }

    /// These settings where `over` does not name its own.
    #[must_use]
    pub fn under(self, over: Self) -> Self {
        Self {
            listen: over.listen.or(self.listen),
            public_address: over.public_address.or(self.public_address),
            discovery: over.discovery.or(self.discovery),
            discovery_listen: over.discovery_listen.or(self.discovery_listen),
            http_listen: over.http_listen.or(self.http_listen),
            max_sessions: over.max_sessions.or(self.max_sessions),
            update_interval_s: over.update_interval_s.or(self.update_interval_s),
            driver: over.driver.or(self.driver),
            workers: over.workers.or(self.workers),
            first_core: over.first_core.or(self.first_core),
            hybrid: over.hybrid.or(self.hybrid),
            company_us: over.company_us.or(self.company_us),
            pause_us: over.pause_us.or(self.pause_us),
            buffer_memory: over.buffer_memory.or(self.buffer_memory),
            orphan_limit_ms: over.orphan_limit_ms.or(self.orphan_limit_ms),
            orphan_limit_s: over.orphan_limit_s.or(self.orphan_limit_s),
            handshake_threads: over.handshake_threads.or(self.handshake_threads),
            half_open_max: over.half_open_max.or(self.half_open_max),
            sessions_per_address: over.sessions_per_address.or(self.sessions_per_address),
            proxy_from: over.proxy_from.or(self.proxy_from),
            log: over.log.or(self.log),
            log_sessions: over.log_sessions.or(self.log_sessions),
            secret_key: over.secret_key.or(self.secret_key),
            warnings: [self.warnings, over.warnings].concat(),
        }
    }

    /// Checks what no single value shows.
    ///
    /// # Errors
    /// [`ConfigError::Together`].
    pub fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let together = |names, message: &str| {
            Err(ConfigError::Together { path: path.to_owned(), names, message: message.to_owned() })
        };
        if self.listen.as_ref().is_some_and(Vec::is_empty) {
            return together("listen", "the list is empty; name an address, or leave the setting out");
        }
        if self.discovery.as_ref().is_some_and(|urls| !urls.is_empty()) && self.discovery_listen.is_some() {
            return together(
                "discovery, discovery_listen",
                "the embedded discovery runs only when no other is named; leave one of the two out",
            );
        }
        if self.half_open_max == Some(0) {
            return together(
                "half_open_max",
                "with 0 nobody could connect; use 1 or more, or leave the setting out",
            );
        }
        if self.workers.is_some_and(|count| !(1..=WORKERS_MAX).contains(&usize::from(count))) {
            return together("workers", "use 1 to 64 workers, at most one for each core (`nproc`)");
        }
        for (name, value) in [("company_us", self.company_us), ("pause_us", self.pause_us)] {
            if value.is_some_and(|us| us > WAIT_US_MAX) {
                return together(
                    name,
                    "use 0 (never) to 10000 microseconds; beyond that people would notice",
                );
            }
        }
        if self.update_interval_s.is_some_and(|seconds| !(1..=3600).contains(&seconds)) {
            return together(
                "update_interval_s",
                "use 1 to 3600 seconds; discoveries forget a server sooner than that",
            );
        }
        Ok(())
    }
}

/// Reads TOML. Who writes a name with `-` for `_` means the setting all the same.
fn from_toml(text: &str) -> Result<File, toml::de::Error> {
    let mut text = std::borrow::Cow::Borrowed(text);
    // Each goes round once at most: a name that is written twice is the format's own error.
    for _ in SETTINGS {
        let error = match toml::from_str(&text) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        let (Some(name), Some(place)) = (unknown_field(error.message()), error.span()) else { break };
        let meant = setting_name(name);
        let is_meant = meant != name && SETTINGS.iter().any(|setting| setting.name == meant);
        if !is_meant || text.get(place.clone()) != Some(name) {
            break;
        }
        // As long as before, so that places of other errors stay true.
        text.to_mut().replace_range(place, &meant);
    }
    toml::from_str(&text)
}

/// The field that a parser does not know.
fn unknown_field(message: &str) -> Option<&str> {
    message.trim().strip_prefix("unknown field `")?.split('`').next()
}

fn toml_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let before = &text[..floor(text, at)];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&character| character != '\n').count() + 1;
    let message = error.message().trim().trim_end_matches('.').to_owned();
    let cure = cure(&message);
    ConfigError::Line { path: path.to_owned(), line, column, message, cure }
}

/// The start of the character at a place in a text.
fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// What to do about a message of a parser.
fn cure(message: &str) -> String {
    let Some(unknown) = unknown_field(message) else {
        return "`ringwire check --settings` lists every setting with its values".into();
    };
    let nearest = SETTINGS
        .iter()
        .map(|setting| (strsim::damerau_levenshtein(setting.name, unknown), setting.name))
        .min()
        .filter(|&(distance, name)| distance <= name.len() / 2);
    match nearest {
        Some((_, name)) => format!("Did you mean `{name}`? `ringwire check --settings` lists every setting"),
        None => "Remove it; `ringwire check --settings` lists every setting".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn read(text: &str) -> Result<File, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ringwire.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        File::read(&path)
    }

    #[test]
    fn every_setting_is_read() {
        let file = read(
            r#"
            listen = ["0.0.0.0:8081", "[::]:8081"]
            public_address = "relay.example.org:8081"
            discovery = "http://dmsgd.example.org"
            http_listen = "127.0.0.1:8082"
            max_sessions = 5000
            update_interval_s = 30
            driver = "poll"
            workers = 2
            first_core = 4
            hybrid = "require"
            company_us = 50
            pause_us = 60
            buffer_memory = 1073741824
            orphan_limit_ms = 60000
            handshake_threads = 3
            half_open_max = 100
            sessions_per_address = 20
            proxy_from = ["10.0.0.0/8", "2001:db8::/32"]
            log = "info"
            "#,
        )
        .unwrap();
        assert_eq!(file.listen.unwrap().len(), 2);
        assert_eq!(file.public_address.unwrap().to_string(), "relay.example.org:8081");
        assert_eq!(file.discovery.unwrap()[0].to_string(), "http://dmsgd.example.org");
        assert_eq!(file.http_listen.unwrap().port(), 8082);
        assert_eq!((file.max_sessions, file.update_interval_s), (Some(5000), Some(30)));
        assert_eq!((file.driver, file.workers, file.first_core), (Some(Driver::Poll), Some(2), Some(4)));
        assert_eq!((file.hybrid, file.company_us), (Some(HybridSetting::Require), Some(50)));
        assert_eq!(file.pause_us, Some(60));
        assert_eq!((file.buffer_memory, file.orphan_limit_ms), (Some(1 << 30), Some(60_000)));
        assert_eq!((file.handshake_threads, file.half_open_max), (Some(3), Some(100)));
        assert_eq!(file.sessions_per_address, Some(20));
        assert_eq!(file.proxy_from.unwrap()[1].to_string(), "2001:db8::/32");
        assert_eq!(file.log, Some("info".parse().unwrap()));
        assert_eq!(read("log_sessions = true").unwrap().log_sessions, Some(true));
        assert_eq!(read("log = \"\"").unwrap().log, Some(LogFilter::default()));
        assert_eq!(read("\u{feff}workers = 2").unwrap().workers, Some(2));
        assert_eq!(read("# nothing").unwrap(), File::default());
        let embedded = read("discovery_listen = \"127.0.0.1:9090\"").unwrap();
        assert_eq!(embedded.discovery_listen.unwrap().port(), 9090);
    }

    #[test]
    fn a_name_may_be_written_with_either_dash() {
        let file =
            read("company-us = 7\npause_us = 8\nhalf-open-max = 9\nlog = \"company-us=info\"\n").unwrap();
        assert_eq!((file.company_us, file.pause_us, file.half_open_max), (Some(7), Some(8), Some(9)));
        assert_eq!(file.log, Some("company-us=info".parse().unwrap()), "values stay as they are");
        for (text, place) in [
            ("company-us = 7\ncompany_us = 8\n", "duplicate"),
            ("company-us = 7\nhybrid-off = 8\n", ":2:1: unknown field `hybrid-off`"),
            ("company-us = 7\nhalf-open-max = -1\n", ":2:17:"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn a_time_may_be_told_in_seconds_or_in_milliseconds() {
        for (text, milliseconds) in [
            ("orphan_limit_s = 60", 60_000),
            ("orphan-limit-s = 0.25", 250),
            ("orphan_limit_s = 0", 0),
            ("orphan_limit_ms = 250", 250),
        ] {
            let file = read(text).unwrap();
            assert_eq!((file.orphan_limit_ms, file.orphan_limit_s), (Some(milliseconds), None), "{text}");
        }
        for (text, cure) in [
            ("orphan_limit_s = 1\norphan_limit_ms = 1000", "one of the two"),
            ("orphan_limit_s = -1", "from 0 to 31536000"),
            ("orphan_limit_s = 31536001", "from 0 to 31536000"),
            ("orphan_limit_s = nan", "from 0 to 31536000"),
            ("orphan_limit_s = \"1\"", "number of seconds"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(cure), "{text}: {error}");
        }
    }

    #[test]
    fn the_help_names_exactly_the_settings_of_a_file() {
        for setting in SETTINGS {
            let error = read(&format!("{} = {{}}", setting.name)).unwrap_err().to_string();
            assert!(!error.contains("unknown field"), "{error}");
        }
        let error = read("no_such_setting = 1").unwrap_err().to_string();
        for setting in SETTINGS {
            assert!(error.contains(&format!("`{}`", setting.name)), "{}: {error}", setting.name);
        }
        assert_eq!(error.matches('`').count() / 2, SETTINGS.len() + 2, "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_cure() {
        for (text, place, words) in [
            ("workers = 1\nhybird = \"off\"\n", ":2:1:", ["`hybird`", "Did you mean `hybrid`?"]),
            ("\n\nhybrid = \"maybe\"\n", ":3:10:", ["maybe", "require"]),
            ("listen = [\"nowhere\"]", ":1:", ["nowhere", "127.0.0.1:8081"]),
            ("workers = -1", ":1:11:", ["-1", "ringwire check"]),
            ("company_us = \"5\"", ":1:14:", ["string", "ringwire check"]),
            ("workers = 1\nworkers = 2\n", ":2:1:", ["duplicate", "ringwire check"]),
            ("listen = [", ":1:", ["array", "ringwire check"]),
            ("discovery = \"dmsgd\"", ":1:", ["dmsgd", "http://"]),
            ("public_address = \"relay\"", ":1:", ["relay", "8081"]),
            ("listen = []", ": listen:", ["empty", "name an address"]),
            ("proxy_from = \"10.0.0.0/99\"", ":1:", ["10.0.0.0/99", "10.0.0.0/8"]),
            ("workers = 1\nlog = \"infos\"", ":2:7:", ["`infos`", "ringwire_dataplane=debug"]),
            ("half_open_max = 0", ": half_open_max:", ["nobody", "1 or more"]),
            ("workers = 0", ": workers:", ["1 to 64", "nproc"]),
            ("workers = 65", ": workers:", ["1 to 64", "nproc"]),
            ("company_us = 10001", ": company_us:", ["0 (never)", "10000"]),
            ("pause_us = 2000000", ": pause_us:", ["0 (never)", "10000"]),
            ("update_interval_s = 0", ": update_interval_s:", ["1 to 3600", "forget"]),
            (
                "discovery = \"http://a\"\ndiscovery_listen = \"127.0.0.1:9090\"",
                ": discovery, discovery_listen:",
                ["embedded", "leave one"],
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(place), "{text:?}: {error}");
            for word in words {
                assert!(error.contains(word), "{text:?}: {error}");
            }
        }
        let absent = File::read(Path::new("/nonexistent/ringwire.toml")).unwrap_err().to_string();
        assert!(absent.contains("/nonexistent/ringwire.toml") && absent.contains("--config"), "{absent}");
    }

    #[test]
    fn a_flag_is_stronger_than_a_file() {
        let file = read("workers = 2\nhybrid = \"off\"").unwrap();
        let flags = File { workers: Some(3), ..File::default() };
        let both = file.under(flags);
        assert_eq!((both.workers, both.hybrid), (Some(3), Some(HybridSetting::Off)));
    }
}

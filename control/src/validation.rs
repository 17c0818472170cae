//! What `ringwire run` would refuse, found without running anything: one judgement, which `run`, `check` and `doctor` share.
//!
//! In: settings, as files and flags name them; the state directory of the server they are for. Out: problems, each with the
//! setting it is about and what to do. [`problems`] is what can be told of the settings and the machine, and `run` asks for it
//! before anything else; [`places`] tries to listen, as `run` then does in earnest. What the server that runs already listens
//! on is its own and no problem: a configuration is looked at beside a living server.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use ringwire_dataplane::entropy::OsEntropy;
use ringwire_dataplane::process::{Configuration, ConfigurationError};
use ringwire_dataplane::{StartError, hold};
use ringwire_proto::identity::SecretKey;
use serde::Serialize;

use crate::config::File;
use crate::discovery::DiscoveryClient;
use crate::http::bind;
use crate::registration::advertised_address;
use crate::services::elsewhere;
use crate::state::State;
use crate::state::lock::Holder;
use crate::supervise::settings::{LISTEN_DEFAULT, Settings};

/// Something that `run` would refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The setting it is about.
    pub setting: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Problem {
    fn new(setting: &'static str, message: impl fmt::Display) -> Self {
        Self { setting, message: message.to_string() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.setting, self.message)
    }
}

/// What is wrong with settings, apart from what listens where at the moment. `here`: the data plane would be this machine's
/// and this process's child, not somebody else's with rights and cores of its own.
pub fn problems(file: &File, here: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    if here {
        problems.extend(of_dataplane(file));
    }
    problems.extend(of_registration(file));
    problems.extend(overlaps(file));
    problems
}

/// That a file carries another key than its server's state directory holds, if it does: which of them the server is, and what
/// to do. Nothing is refused for it.
pub fn other_key(file: &File, state: &State) -> Option<String> {
    let carried = file.secret_key.as_ref()?.secret().public_key();
    let kept = state.look_as_owner().ok()?.key.filter(|kept| *kept != carried)?;
    let path = state.key_path();
    Some(format!(
        "the configuration carries the key {carried}, and {path} holds another one, {kept}: the server is the first. If that is \
         right, move {path} away; if not, use a configuration without a key, or name another directory with --state",
        path = path.display()
    ))
}

/// What the data plane would say to these settings.
fn of_dataplane(file: &File) -> Option<Problem> {
    let settings = Settings::from(file);
    let of_value = |error: ConfigurationError| match error {
        ConfigurationError::Value { name, .. } => Problem::new(name, error),
        ConfigurationError::Unreadable(_) => Problem::new("settings", error),
    };
    let configuration = match Configuration::from_json(&settings.for_start()) {
        Ok(configuration) => configuration,
        Err(error) => return Some(of_value(error)),
    };
    // No judgement is about the key.
    let key = SecretKey::generate(&mut OsEntropy);
    let config = match configuration.server(key, settings.listen().to_vec(), Vec::new()) {
        Ok(config) => config,
        Err(error) => return Some(of_value(error)),
    };
    let error = config.check().err()?;
    let setting = match &error {
        StartError::BufferMemory { .. } => "buffer_memory",
        StartError::Driver(_) => "driver",
        StartError::Workers { .. } | StartError::Listeners { .. } => "workers",
        _ => "listen",
    };
    Some(Problem::new(setting, error))
}

/// Whether there are discoveries to register at, and an address to tell them.
fn of_registration(file: &File) -> Vec<Problem> {
    let (mut problems, mut discoveries) = (Vec::new(), Vec::new());
    for url in file.discovery.iter().flatten() {
        match DiscoveryClient::new(url.as_str()) {
            Ok(discovery) => discoveries.push(discovery),
            Err(error) => problems.push(Problem::new("discovery", error)),
        }
    }
    let public = file.public_address.as_ref().map(ToString::to_string);
    let listen = file.listen.as_deref().unwrap_or(&[LISTEN_DEFAULT]);
    if let Err(error) = advertised_address(public.as_deref(), listen, elsewhere(&discoveries)) {
        problems.push(Problem::new("public_address", error));
    }
    problems
}

/// Everything that is to be listened on by name, in the order in which `run` does.
fn named(file: &File) -> Vec<(&'static str, SocketAddr)> {
    let listen = file.listen.as_deref().unwrap_or(&[LISTEN_DEFAULT]);
    let of_control = [("discovery_listen", file.discovery_listen), ("http_listen", file.http_listen)];
    let of_control = of_control.into_iter().filter_map(|(setting, address)| Some((setting, address?)));
    of_control.chain(listen.iter().map(|&address| ("listen", address))).collect()
}

/// Addresses that are named for two things at a time.
fn overlaps(file: &File) -> Vec<Problem> {
    let named = named(file);
    let mut problems = Vec::new();
    for (at, (setting, address)) in named.iter().enumerate() {
        for (other, with) in &named[..at] {
            if !collide(*address, *with) {
                continue;
            }
            let message = match (setting == other, address == with) {
                (true, true) => format!("{address} is named twice; leave one out"),
                (true, false) => format!("{address} and {with} cannot be listened on both; leave one out"),
                (false, _) => {
                    format!("{with} is listened on already for {setting} ({address}); choose another port")
                }
            };
            problems.push(Problem::new(other, message));
        }
    }
    problems
}

/// Whether the kernel lets only one of two be listened on. Families are told apart: sessions are accepted on each alone.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    let covers = a == b || a.is_unspecified() || b.is_unspecified();
    one.port() != 0 && one.port() == other.port() && a.is_ipv4() == b.is_ipv4() && covers
}

/// An address that is to be listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The setting that names it.
    pub setting: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// Whether it could be had.
    pub found: Found,
}

/// Whether an address could be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Yes.
    Free,
    /// The server of the state directory listens there, with this process.
    Own(u32),
    /// No: why, and what to do.
    Refused(String),
}

impl Place {
    /// As a problem, if it is one.
    pub fn problem(&self) -> Option<Problem> {
        match &self.found {
            Found::Refused(message) => Some(Problem::new(self.setting, message)),
            Found::Free | Found::Own(_) => None,
        }
    }
}

/// Tries every address that settings name, all at a time. `state`: whose server may listen there already. Must be called
/// within a tokio runtime.
pub async fn places(file: &File, state: Option<&State>) -> Vec<Place> {
    let own = Own::of(state);
    let (mut held_http, mut held) = (Vec::new(), Vec::new());
    let (mut places, mut seen) = (Vec::new(), HashSet::new());
    for (setting, address) in named(file) {
        // That it is named twice is told by its name.
        if address.port() != 0 && !seen.insert(address) {
            continue;
        }
        let refused = if setting == "listen" {
            hold(address).map(|listener| held.push(listener)).map_err(|error| error.to_string())
        } else {
            bind(address).await.map(|listener| held_http.push(listener)).map_err(|error| error.to_string())
        };
        let found = match refused {
            Ok(()) => Found::Free,
            Err(refused) => own.listens(address).map_or(Found::Refused(refused), Found::Own),
        };
        places.push(Place { setting, address, found });
    }
    places
}

/// Processes of a living server.
struct Own(Vec<u32>);

impl Own {
    fn of(state: Option<&State>) -> Self {
        let Some(state) = state else { return Self(Vec::new()) };
        let control = Holder::of(state).map(|holder| holder.pid);
        let dataplane = state.read_note().ok().map(|note| note.dataplane_pid);
        Self(dataplane.into_iter().chain(control).collect())
    }

    /// Which of them listens on the port of an address that cannot be had.
    fn listens(&self, address: SocketAddr) -> Option<u32> {
        if self.0.is_empty() || address.port() == 0 {
            return None;
        }
        let sockets: HashSet<_> = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .flat_map(|path| listening(&std::fs::read_to_string(path).unwrap_or_default()))
            .filter(|(bound, _)| bound.port() == address.port())
            .map(|(_, inode)| format!("socket:[{inode}]"))
            .collect();
        let has_one = |pid: &u32| {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
            let mut links =
                open.into_iter().flatten().flatten().flat_map(|entry| std::fs::read_link(entry.path()));
            links
                .any(|link: std::path::PathBuf| sockets.contains(Path::new(&link).to_string_lossy().as_ref()))
        };
        self.0.iter().copied().find(has_one)
    }
}

/// What is listened on, by the kernel's table: addresses, and the sockets' numbers.
fn listening(table: &str) -> Vec<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (address, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
        let (ip, port) = address.split_once(':')?;
        // Words of 32 bits, each as this machine writes it.
        let mut bytes = Vec::with_capacity(16);
        for at in (0..ip.len()).step_by(8) {
            bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
        }
        let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(v4) => std::net::IpAddr::from(v4),
            Err(_) => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
        };
        let address = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
        (*state == LISTEN).then_some((address, inode.parse().ok()?))
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn addresses_collide_by_port_and_family() {
        let collides = |one: &str, other: &str| collide(one.parse().unwrap(), other.parse().unwrap());
        for (one, other) in
            [("127.0.0.1:1", "127.0.0.1:1"), ("0.0.0.0:1", "127.0.0.1:1"), ("[::1]:1", "[::]:1")]
        {
            assert!(collides(one, other) && collides(other, one), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("0.0.0.0:1", "[::]:1"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("0.0.0.0:0", "0.0.0.0:0"),
        ] {
            assert!(!collides(one, other), "{one} {other}");
        }
    }

    #[test]
    fn what_listens_is_read_from_the_kernels_table() {
        let listeners = [
            std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
            std::net::TcpListener::bind("[::1]:0").unwrap(),
        ];
        for (listener, path) in listeners.iter().zip(["/proc/net/tcp", "/proc/net/tcp6"]) {
            let address = listener.local_addr().unwrap();
            let table = listening(&std::fs::read_to_string(path).unwrap());
            assert!(table.iter().any(|(listening, _)| *listening == address), "{address}");
            assert_eq!(Own(vec![std::process::id()]).listens(address), Some(std::process::id()));
        }
        assert_eq!(Own(Vec::new()).listens(listeners[0].local_addr().unwrap()), None);
    }

    #[test]
    fn a_data_plane_of_somebody_elses_is_not_judged_by_this_machine() {
        let file = file("first_core = 1023\nlisten = \"127.0.0.1:0\"");
        assert_eq!(problems(&file, true)[0].setting, "first_core");
        assert_eq!(problems(&file, false), []);
    }
}

//! What `ringwire doctor` looks at: does this machine let a server do its work, and if not, what to change.
//!
//! In: the settings a server would run with. Out: findings, each with what was found and a cure where one is needed.
//! Nothing is changed; everything is looked at by trying or reading, within a few seconds.

use std::fs;
use std::time::{Duration, SystemTime};

use ringwire_dataplane::memory::{self, Room};
use ringwire_dataplane::{limits, ring};
use serde::Serialize;

use crate::config::{ConfigError, Url};
use crate::state::{Look, State, StateError};
use crate::validation::{Found, Place, Problem};

/// How long a question to a discovery may take.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(5);

/// A clock may differ from a discovery's by so much before clients and servers disagree about timestamps.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(30);

/// Descriptors below which a server is small: some for itself, one for each session.
const DESCRIPTORS_WANTED: u64 = 65_536;

/// Bytes of TCP buffer that fill a gigabit over 50 ms.
const TCP_BUFFER_WANTED: u64 = 6 << 20;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// It works, but worse than it could.
    Warning,
    /// It does not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How serious it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    pub cure: String,
}

impl Finding {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Good, found: found.into(), cure: String::new() }
    }

    fn bad(name: &'static str, level: Level, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, level, found: found.into(), cure: cure.into() }
    }
}

/// Looks at the machine alone.
pub fn machine() -> Vec<Finding> {
    vec![kernel(), io_uring(), descriptors(), backlog(), tcp_buffers(), memory()]
}

/// Whether this machine has a core for each worker.
pub fn workers(count: u16) -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    workers_on(usize::from(count), cores)
}

fn workers_on(count: usize, cores: usize) -> Finding {
    let found = format!("{count} of {cores} cores forward");
    if count <= cores {
        return Finding::good("workers", found);
    }
    let found = format!("{count} workers on {cores} cores");
    let cure = format!("They only take turns on them: use {cores} at most (setting `workers`).");
    Finding::bad("workers", Level::Warning, found, cure)
}

/// Looks at what the state directory holds, or why there is none.
pub fn state(state: Result<State, StateError>) -> Finding {
    let looked = state.and_then(|state| Ok((state.look_as_owner()?, state)));
    match looked {
        Ok((Look { key, owner }, state)) => {
            let by = owner.map(|user| format!(", as its owner, user {user}, sees it")).unwrap_or_default();
            let directory = state.directory().display();
            Finding::good(
                "state",
                match key {
                    Some(key) => format!("{directory}{by}: key {key}"),
                    None => format!("{directory}{by}: can be used; a key is made at the first start"),
                },
            )
        }
        Err(error) => Finding::bad("state", Level::Failure, error.to_string(), NO_START),
    }
}

/// That the configuration's key and the state directory's differ, as [`validation::other_key`](crate::validation::other_key)
/// says it.
pub fn other_key(found: impl Into<String>) -> Finding {
    let cure = "Two keys are two servers to everybody: keep the one that clients and discoveries know.";
    Finding::bad("key", Level::Warning, found, cure)
}

/// A configuration that cannot be read.
pub fn configuration(error: &ConfigError) -> Finding {
    Finding::bad("configuration", Level::Failure, error.to_string(), NO_START)
}

/// What a server would refuse of its settings.
pub fn settings(problems: &[Problem]) -> Vec<Finding> {
    if problems.is_empty() {
        return vec![Finding::good("settings", "they go together")];
    }
    let finding =
        |problem: &Problem| Finding::bad(problem.setting, Level::Failure, &problem.message, NO_START);
    problems.iter().map(finding).collect()
}

/// What is said where the cure is in what was found.
const NO_START: &str = "A server would not start, with the same words.";

/// Whether a server could listen there.
pub fn place(place: &Place) -> Finding {
    let Place { setting, address, found } = place;
    match found {
        Found::Free => Finding::good(setting, format!("{address} is free")),
        Found::Own(pid) => {
            Finding::good(setting, format!("this server listens on {address} (process {pid})"))
        }
        Found::Refused(refused) => Finding::bad(setting, Level::Failure, refused, NO_START),
    }
}

/// Whether a discovery answers, and whether its clock and ours agree.
pub async fn discovery(url: &Url) -> Vec<Finding> {
    let asked = async {
        let client = reqwest::Client::builder().timeout(DISCOVERY_LIMIT).build()?;
        client.get(format!("{url}/health")).send().await?.error_for_status()
    };
    let response = match asked.await {
        Ok(response) => response,
        Err(error) => {
            let cure =
                "Check the address, the name service and the firewall; the server itself runs without it.";
            return vec![Finding::bad("discovery", Level::Failure, format!("{url}: {error}"), cure)];
        }
    };
    let mut findings = vec![Finding::good("discovery", format!("{url} answers"))];
    let date = response.headers().get(reqwest::header::DATE).and_then(|date| date.to_str().ok());
    if let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) {
        findings.push(clock(SystemTime::now(), theirs));
    }
    findings
}

fn clock(ours: SystemTime, theirs: SystemTime) -> Finding {
    let difference = ours.duration_since(theirs).unwrap_or_else(|error| error.duration());
    let found = format!("{} s apart from the discovery's", difference.as_secs());
    if difference <= CLOCK_DIFFERENCE_MAX {
        return Finding::good("clock", found);
    }
    let cure = "Set the clock (`timedatectl set-ntp true`): entries and requests carry timestamps.";
    Finding::bad("clock", Level::Failure, found, cure)
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release}");
    match version {
        (6.., 12..) | (7.., _) => Finding::good("kernel", found),
        (6, 1..) => Finding::bad(
            "kernel",
            Level::Warning,
            found,
            "Linux 6.12 lets a worker wait for small frames together, 6.10 receives in bundles: upgrade for speed.",
        ),
        _ => Finding::bad(
            "kernel",
            Level::Warning,
            found,
            "io_uring is used from Linux 6.1 on; below, the poll driver runs and needs more CPU.",
        ),
    }
}

fn io_uring() -> Finding {
    match ring::probe() {
        Ok(features) => {
            let with = |has| if has { "with" } else { "without" };
            let found = format!(
                "usable, {} receive bundles, {} minimum wait",
                with(features.receive_bundle),
                with(features.minimum_wait)
            );
            Finding::good("io_uring", found)
        }
        Err(error) => Finding::bad(
            "io_uring",
            Level::Warning,
            error.to_string(),
            "Until then the poll driver runs and needs more CPU.",
        ),
    }
}

fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let soft = limit.current.unwrap_or(u64::MAX);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let found = format!("{soft} open files (hard limit {hard})");
    if soft >= DESCRIPTORS_WANTED {
        return Finding::good("descriptors", found);
    }
    let cure =
        "Each session is one: raise the limit (`LimitNOFILE=` in the unit, `ulimit -n`) for more sessions.";
    Finding::bad("descriptors", Level::Warning, found, cure)
}

fn backlog() -> Finding {
    let somaxconn = number("/proc/sys/net/core/somaxconn");
    let wanted = u64::from(limits::LISTEN_BACKLOG.unsigned_abs());
    let found = format!("net.core.somaxconn = {somaxconn}");
    if somaxconn >= wanted {
        return Finding::good("backlog", found);
    }
    let cure = format!("A rush of clients waits there: `sysctl -w net.core.somaxconn={wanted}`.");
    Finding::bad("backlog", Level::Warning, found, cure)
}

fn tcp_buffers() -> Finding {
    let largest = |name: &str| {
        read(name).split_whitespace().nth(2).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    let (receive, send) = (largest("/proc/sys/net/ipv4/tcp_rmem"), largest("/proc/sys/net/ipv4/tcp_wmem"));
    let found = format!("TCP buffers up to {} KiB in, {} KiB out", receive >> 10, send >> 10);
    if receive.min(send) >= TCP_BUFFER_WANTED {
        return Finding::good("buffers", found);
    }
    let cure = format!(
        "A long path needs more: `sysctl -w net.ipv4.tcp_rmem=\"4096 131072 {}\" net.ipv4.tcp_wmem=\"4096 65536 {}\"`.",
        receive.max(16 << 20),
        send.max(16 << 20)
    );
    Finding::bad("buffers", Level::Warning, found, cure)
}

/// Whether there is memory, and what of it would be buffers with this setting.
pub fn buffers(configured: Option<u64>, workers: u16) -> Finding {
    let (room, workers) = (memory::room(), usize::from(workers));
    buffers_in(&room, configured.filter(|&len| len > 0), workers)
}

fn buffers_in(room: &Room, configured: Option<u64>, workers: usize) -> Finding {
    let default = memory::default_buffers(room, workers);
    let Some(configured) = configured else {
        let found = format!("{} MiB: {}", default.len >> 20, default.reason);
        if default.len > limits::BUFFER_MEMORY_LEN_MIN * workers {
            return Finding::good("buffer memory", found);
        }
        return Finding::bad("buffer memory", Level::Warning, found, MORE_MEMORY);
    };
    let found = format!("{} MiB, as configured; there is {room}", configured >> 20);
    if usize::try_from(configured).is_ok_and(|len| len <= room.len) {
        return Finding::good("buffer memory", found);
    }
    let cure = "Once it is used the kernel kills the data plane: set `buffer_memory` lower, or leave it out.";
    Finding::bad("buffer memory", Level::Warning, found, cure)
}

/// What helps where there is little.
const MORE_MEMORY: &str = "Sessions will be few: give the machine, or the control group, more memory.";

fn memory() -> Finding {
    let kib = |name: &str| {
        let text = read("/proc/meminfo");
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned)?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let available = kib("MemAvailable:").unwrap_or(0) * 1024;
    let found = format!("{} MiB available", available >> 20);
    if available >= 4 * limits::BUFFER_MEMORY_LEN_MIN as u64 {
        return Finding::good("memory", found);
    }
    Finding::bad("memory", Level::Warning, found, MORE_MEMORY)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn number(path: &str) -> u64 {
    read(path).parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_with_its_cure() {
        let now = SystemTime::now();
        assert_eq!(clock(now, now + Duration::from_secs(20)).level, Level::Good);
        for theirs in [now + Duration::from_secs(40), now - Duration::from_secs(40)] {
            let finding = clock(now, theirs);
            assert_eq!(finding.level, Level::Failure);
            assert!(finding.found.starts_with("40 s") && finding.cure.contains("timedatectl"), "{finding:?}");
        }
    }

    #[test]
    fn every_finding_that_is_not_good_has_a_cure() {
        let findings = machine();
        assert_eq!(findings.len(), 6);
        for finding in findings {
            assert!(!finding.found.is_empty(), "{finding:?}");
            assert_eq!(finding.level == Level::Good, finding.cure.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn more_workers_than_cores_are_told() {
        assert_eq!(workers_on(1, 1).level, Level::Good);
        let finding = workers_on(3, 2);
        assert_eq!(finding.level, Level::Warning);
        assert!(
            finding.found.contains("3 workers on 2 cores") && finding.cure.contains("use 2"),
            "{finding:?}"
        );
    }

    #[test]
    fn buffer_memory_is_told_with_its_origin() {
        let file = "/sys/fs/cgroup/memory.max";
        let room = |mib: usize| Room { len: mib << 20, origin: memory::Origin::Group(file.into()) };
        let finding = buffers_in(&room(256), None, 1);
        assert_eq!(finding.level, Level::Good);
        assert!(finding.found.starts_with("96 MiB") && finding.found.contains(file), "{finding:?}");
        assert_eq!(buffers_in(&room(70), None, 1).level, Level::Warning);
        assert_eq!(buffers_in(&room(256), Some(256 << 20), 1).level, Level::Good);
        let finding = buffers_in(&room(256), Some(257 << 20), 1);
        assert!(finding.level == Level::Warning && finding.cure.contains("buffer_memory"), "{finding:?}");
    }

    #[test]
    fn an_address_that_is_taken_or_foreign_is_told() {
        let found =
            |found: Found| Place { setting: "listen", address: "192.0.2.1:8081".parse().unwrap(), found };
        assert_eq!(place(&found(Found::Free)).level, Level::Good);
        assert_eq!(place(&found(Found::Own(7))).level, Level::Good);
        let finding = place(&found(Found::Refused("no interface has it".into())));
        assert!(finding.level == Level::Failure && finding.found.contains("no interface"), "{finding:?}");
    }

    #[tokio::test]
    async fn a_discovery_that_does_not_answer_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", taken.local_addr().unwrap()).parse().unwrap();
        drop(taken);
        let findings = discovery(&url).await;
        assert_eq!((findings.len(), findings[0].level), (1, Level::Failure));
    }
}

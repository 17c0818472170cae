//! The server under attack: both planes, as people run them.
//!
//! In: a program, settings. Out: where it listens, its memory and its processor time; its end with this value. The program is
//! this one unless another is named: with [`AS_SERVER`] in its environment it is `ringwire`. Called by [`super::run`].

use super::attack::Settings;
use crate::cpu::CpuClock;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// In the environment of this program it says: be the server.
pub const AS_SERVER: &str = "RINGWIRE_BENCHES_AS_SERVER";
/// How often memory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// A data plane whose control plane is gone ends after so many seconds, should this process be killed.
const ORPHAN_LIMIT: &str = "20";
/// How long the server may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What `ringwire run --json` says first.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// The server's key.
    pub public_key: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// What moves the bytes.
    pub driver: String,
    /// The URL of its discovery.
    pub discovery: Option<String>,
    control_pid: u32,
    dataplane_pid: u32,
}

/// One of the two processes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// The one that forwards.
    #[default]
    Data,
    /// The one with the discovery.
    Control,
}

/// A running server; ended when dropped.
pub struct Server {
    control: Child,
    ready: Ready,
    clocks: [CpuClock; 2],
    memory: Memory,
    log: PathBuf,
    /// State, configuration, log.
    _directory: TempDir,
}

impl Server {
    /// Starts `program` (none: this one) and waits until it is ready. Memory is that of `plane`.
    ///
    /// # Errors
    /// When it does not start; what it said is in the message.
    pub fn start(
        program: Option<&Path>,
        driver: Option<&str>,
        settings: Settings,
        plane: Plane,
    ) -> Result<Self> {
        let directory = TempDir::with_prefix("ringwire-flood-")?;
        let (state, log) = (directory.path().join("state"), directory.path().join("log"));
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("flood-server");
        command.args(
            program.iter().flat_map(|program| [OsString::from("--binary"), program.as_os_str().into()]),
        );
        command.args(
            settings.descriptors.iter().flat_map(|count| ["--descriptors".to_owned(), count.to_string()]),
        );
        command.args(["--", "run", "--json", "--listen", "127.0.0.1:0", "--discovery-listen", "127.0.0.1:0"]);
        command.args(["--orphan-limit", ORPHAN_LIMIT, "--state"]).arg(&state);
        command.args(driver.iter().flat_map(|driver| ["--driver", driver]));
        if let Some(memory) = settings.buffer_memory {
            let config = directory.path().join("ringwire.toml");
            std::fs::write(&config, format!("buffer_memory = {memory}\n"))?;
            command.arg("--config").arg(&config);
        }
        for name in ["RINGWIRE_CONFIG", "RINGWIRE_STATE", "RINGWIRE_LOG", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        let mut control = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("the server could not be started")?;
        let mut line = String::new();
        BufReader::new(control.stdout.take().context("the server has no standard output")?)
            .read_line(&mut line)?;
        let Ok(ready) = serde_json::from_str::<Ready>(&line) else {
            let _ = control.kill();
            let _ = control.wait();
            bail!("the server did not start: {line}{}", said(&log));
        };
        let clocks = [CpuClock::of(ready.control_pid)?, CpuClock::of(ready.dataplane_pid)?];
        let memory = Memory::watch(match plane {
            Plane::Data => ready.dataplane_pid,
            Plane::Control => ready.control_pid,
        })?;
        Ok(Self { control, ready, clocks, memory, log, _directory: directory })
    }

    /// What it said first.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Where its discovery listens.
    #[must_use]
    pub fn discovery(&self) -> Option<SocketAddr> {
        self.ready.discovery.as_deref()?.strip_prefix("http://")?.trim_end_matches('/').parse().ok()
    }

    /// Processor time of both planes so far.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn cpu_used(&self) -> Result<Duration> {
        let of = |clock: &CpuClock| clock.used().with_context(|| self.gone());
        Ok(of(&self.clocks[0])? + of(&self.clocks[1])?)
    }

    /// Resident memory of the plane under attack.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Why one of them may have ended.
    fn gone(&self) -> String {
        format!("a plane of the server has ended: {}", said(&self.log))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let signal = |pid: u32, signal| {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, signal);
            }
        };
        signal(self.control.id(), Signal::TERM);
        let began = Instant::now();
        while matches!(self.control.try_wait(), Ok(None)) && began.elapsed() < STOP_LIMIT {
            std::thread::sleep(LOOK_INTERVAL / 5);
        }
        if matches!(self.control.try_wait(), Ok(None)) {
            let _ = self.control.kill();
            let _ = self.control.wait();
            signal(self.ready.dataplane_pid, Signal::KILL);
        }
    }
}

fn said(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().take(5).collect::<Vec<_>>().join("; ")
}

/// The resident memory of a process, looked at all the time.
pub struct Memory {
    shared: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    now: AtomicU64,
    most: AtomicU64,
    stop: AtomicBool,
}

impl Memory {
    fn watch(pid: u32) -> Result<Self> {
        let shared = Arc::new(Seen::default());
        let seen = Arc::clone(&shared);
        seen.look(pid);
        let thread = std::thread::Builder::new().name("memory".into()).spawn(move || {
            while !seen.stop.load(Ordering::Relaxed) {
                seen.look(pid);
                std::thread::sleep(LOOK_INTERVAL);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Now, in bytes.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.shared.now.load(Ordering::Relaxed)
    }

    /// The most since [`Memory::forget`].
    #[must_use]
    pub fn most(&self) -> u64 {
        self.shared.most.load(Ordering::Relaxed)
    }

    /// The most is looked for from now on.
    pub fn forget(&self) {
        self.shared.most.store(self.now(), Ordering::Relaxed);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn look(&self, pid: u32) {
        let now = resident(pid);
        self.now.store(now, Ordering::Relaxed);
        self.most.fetch_max(now, Ordering::Relaxed);
    }
}

/// Resident memory of a process in bytes; nothing of one that has ended.
fn resident(pid: u32) -> u64 {
    let mut status = String::new();
    let read =
        File::open(format!("/proc/{pid}/status")).and_then(|mut file| file.read_to_string(&mut status));
    let line = read.ok().and_then(|_| status.lines().find_map(|line| line.strip_prefix("VmRSS:")));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Becomes the server: its limits are set here, and it ends with whoever started this.
///
/// # Errors
/// When the limit cannot be set or the program not be started.
pub fn become_server(program: Option<&Path>, descriptors: Option<u64>, arguments: &[OsString]) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if let Some(count) = descriptors {
        let limit = Rlimit { current: Some(count), maximum: Some(count) };
        setrlimit(Resource::Nofile, limit).context("the descriptor limit cannot be lowered")?;
    }
    let program = program.map_or_else(std::env::current_exe, |program| Ok(program.to_owned()))?;
    let error = Command::new(&program).args(arguments).env(AS_SERVER, "1").exec();
    Err(error).with_context(|| format!("{} could not be started", program.display()))
}

/// As many descriptors as this process may have.
pub(super) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // What is allowed cannot be refused; and if it is, an attack stops where they end.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_seen_and_that_of_nobody_is_nothing() {
        assert!(resident(std::process::id()) > 1 << 20);
        assert_eq!(resident(u32::MAX), 0);
    }
}

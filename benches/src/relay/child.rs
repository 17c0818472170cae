//! A relay's process, seen from the measuring one.
//!
//! In: which relay, which core, which sinks. Out: its addresses, its processor clock, and at the end what it printed on
//! standard error. Called by [`crate::measure`], one fresh process for each row of each round, so that no row inherits
//! the memory or the connections of another.

use super::{Ready, Relay};
use crate::cpu::CpuClock;
use anyhow::{Context, Result, bail};
use ringwire_proto::identity::PublicKey;
use rustix::fs::{MemfdFlags, memfd_create};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a relay may take to end after its standard input was closed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines of a relay's standard error that are kept; one is enough to make a row invalid.
const WARNINGS_MAX: usize = 10;

/// A running relay; killed when dropped.
pub struct RelayChild {
    child: Child,
    stdout: RefCell<BufReader<ChildStdout>>,
    stderr: File,
    clock: CpuClock,
    ready: Ready,
}

/// What a relay leaves behind.
#[derive(Debug, Default)]
pub struct Remains {
    /// Lines of its standard error.
    pub warnings: Vec<String>,
    /// Counters it printed at its end; only our server has some.
    pub counters: BTreeMap<String, u64>,
}

impl RelayChild {
    /// Starts `relay` and waits until it listens. `core` is none where nothing is to be pinned.
    ///
    /// # Errors
    /// When it cannot be started or does not listen; its standard error is in the message.
    pub fn start(program: &Path, relay: Relay, core: Option<usize>, sinks: &[SocketAddr]) -> Result<Self> {
        // A memory file takes what the relay prints without a thread here that could wake up within a window.
        let stderr = File::from(memfd_create("relay-stderr", MemfdFlags::CLOEXEC)?);
        let mut command = Command::new(program);
        match relay {
            Relay::Ringwire => command.arg("relay-ringwire"),
            Relay::RingwirePoll => command.args(["relay-ringwire", "--driver", "poll"]),
            Relay::TwoTogether | Relay::TwoApart => command.args(["relay-ringwire", "--workers", "2"]),
            Relay::Tokio64k => command.args(["relay-tokio", "--buffer", "65536"]),
            Relay::Tokio256k => command.args(["relay-tokio", "--buffer", "262144"]),
            Relay::TokioUring => command.arg("relay-tokio-uring"),
            Relay::Epoll => command.arg("relay-epoll"),
            Relay::Splice => command.arg("relay-splice"),
            Relay::Haproxy => command.arg("relay-haproxy"),
        };
        if !relay.is_ours() {
            command.args(sinks.iter().flat_map(|sink| ["--sink".into(), sink.to_string()]));
        }
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("the relay {} could not be started", relay.name()))?;
        let mut stdout = BufReader::new(child.stdout.take().context("the relay has no standard output")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Ok(ready) = serde_json::from_str(&line) else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the relay {} did not start: {}", relay.name(), lines_of(stderr)?.join("; "));
        };
        let clock = CpuClock::of(child.id())?;
        Ok(Self { child, stdout: RefCell::new(stdout), stderr, clock, ready })
    }

    /// What it said when it began to listen.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Which worker of our server has the session of `key`; none has it yet, or no more: none.
    ///
    /// # Errors
    /// When it has ended.
    pub fn worker_of(&self, key: PublicKey) -> Result<Option<usize>> {
        let mut input = self.child.stdin.as_ref().context("the relay has no standard input")?;
        writeln!(input, "{key}").context("the relay has ended")?;
        let mut line = String::new();
        self.stdout.borrow_mut().read_line(&mut line)?;
        serde_json::from_str(&line).context("the relay did not say where a session is")
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time of all its threads so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_used(&self) -> Result<Duration> {
        self.clock.used().context("the relay's processor clock cannot be read")
    }

    /// Ends it and collects what it printed.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(mut self) -> Result<Remains> {
        let mut remains = Remains::default();
        // Only our server has something to say at its end; the others are killed below without a wait.
        if self.ready.public_key.is_some() {
            drop(self.child.stdin.take());
            let began = Instant::now();
            while self.child.try_wait()?.is_none() {
                if began.elapsed() > STOP_TIMEOUT {
                    remains.warnings.push(format!("did not stop within {STOP_TIMEOUT:?}"));
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        } else if let Some(status) = self.child.try_wait()? {
            remains.warnings.push(format!("ended by itself: {status}"));
        }
        let _ = self.child.kill();
        let status = self.child.wait()?;
        if self.ready.public_key.is_some() && !status.success() {
            remains.warnings.push(format!("ended with {status}"));
        }
        let mut counters = String::new();
        self.stdout.get_mut().read_to_string(&mut counters)?;
        if self.ready.public_key.is_some() && !counters.trim().is_empty() {
            remains.counters =
                serde_json::from_str(&counters).context("the relay's counters cannot be read")?;
        }
        remains.warnings.extend(lines_of(self.stderr.try_clone()?)?);
        Ok(remains)
    }
}

impl Drop for RelayChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(mut file: File) -> Result<Vec<String>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter(|line| !line.trim().is_empty()).take(WARNINGS_MAX).map(str::to_owned).collect())
}

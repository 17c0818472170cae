//! Reference relay: HAProxy in TCP mode, the relay that operators know; optional, for it is not ours to install.
//!
//! In: the sinks' addresses. Out: this process becomes HAProxy, on the listeners that were made here and with a
//! configuration that exists in memory only, so that nothing is left behind whatever ends it. Started by
//! [`super::child`]; [`version`] tells [`crate::command`] whether it is there.

use super::{Ready, loopback_listener};
use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// Directories searched behind those of PATH, which for ordinary users often lacks them.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// One thread; no splicing, which has a reference of its own; more connections than any row has, and few enough for a usual limit of
/// open files, without which it ends; timeouts far beyond any row, because without them it warns.
const CONFIGURATION: &str = "\
global
    nbthread 1
    maxconn 256
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
";

/// Where it is installed.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join("haproxy"))
        .find(|program| program.is_file())
}

/// What it says about itself; nothing where it is not installed or does not run.
#[must_use]
pub fn version() -> Option<String> {
    let output = Command::new(program()?).arg("-v").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<&str> = text.lines().next()?.split_whitespace().collect();
    (words.len() >= 3).then(|| words[..3].join(" "))
}

/// Becomes HAProxy.
///
/// # Errors
/// When it is not installed, or listening fails.
pub fn run(sinks: &[SocketAddr]) -> Result<()> {
    let program = program().context("haproxy is not installed (apt install haproxy)")?;
    let mut configuration = CONFIGURATION.to_owned();
    let mut inherited = Vec::new();
    let mut addresses = Vec::new();
    for (index, sink) in sinks.iter().enumerate() {
        let listener = loopback_listener()?;
        addresses.push(listener.local_addr()?);
        fcntl_setfd(&listener, FdFlags::empty())?;
        write!(
            configuration,
            "listen sink{index}\n    bind fd@{}\n    server sink {sink}\n",
            listener.as_raw_fd()
        )?;
        inherited.push(listener);
    }
    let mut file = File::from(memfd_create("haproxy.cfg", MemfdFlags::empty())?);
    file.write_all(configuration.as_bytes())?;
    // Connections wait in the listeners' queues until it accepts.
    Ready { addresses, public_key: None, driver: "haproxy".into(), company_us_max: None }.print()?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // In the foreground and quiet: what it still prints makes the row invalid.
    let error = Command::new(program).args(["-db", "-q", "-f", &path]).exec();
    Err(error).context("haproxy could not be started")
}

//! What a discovery checks before it stores an entry (dmsg-wire 12.2, services 2.2).
//!
//! In: a decoded entry, the clock of the caller, the entry stored before. Out: the first rule that is broken.

use core::net::IpAddr;

use super::{Entry, EntryError};

/// How far the timestamp of a pure server may lie in the past: 60 s in nanoseconds.
pub const TIMESTAMP_PAST_MAX_NS: i64 = 60_000_000_000;

/// How far the timestamp of a pure server may lie in the future: 5 s in nanoseconds.
pub const TIMESTAMP_FUTURE_MAX_NS: i64 = 5_000_000_000;

/// Whether servers may advertise loopback addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deployment {
    /// They may not.
    Production,
    /// They may: everything runs on one machine.
    Test,
}

impl Entry {
    /// The checks on an entry by itself, in the order of the discovery of 2024. `now_ns` is Unix time in
    /// nanoseconds.
    ///
    /// Quirk: only an entry without client part has its timestamp compared with the clock, so a server that
    /// is also a client escapes that check.
    ///
    /// # Errors
    /// The first that applies of [`EntryError::Loopback`], [`EntryError::NoVersion`],
    /// [`EntryError::NoSignature`], [`EntryError::NullKey`], [`EntryError::NoPart`],
    /// [`EntryError::NoAddress`], [`EntryError::Outdated`], [`EntryError::Signature`].
    pub fn validate(&self, now_ns: i64, deployment: Deployment) -> Result<(), EntryError> {
        if let (Some(server), Deployment::Production) = (&self.server, deployment)
            && names_no_remote_host(&server.address)
        {
            return Err(EntryError::Loopback);
        }
        if self.version.is_empty() {
            return Err(EntryError::NoVersion);
        }
        if self.signature.is_none() {
            return Err(EntryError::NoSignature);
        }
        if self.static_key.is_none() {
            return Err(EntryError::NullKey);
        }
        if self.client.is_none() && self.server.is_none() {
            return Err(EntryError::NoPart);
        }
        if self.server.as_ref().is_some_and(|server| server.address.is_empty()) {
            return Err(EntryError::NoAddress);
        }
        if self.client.is_none() && !is_current(self.timestamp_ns, now_ns) {
            return Err(EntryError::Outdated);
        }
        self.verify()
    }

    /// The checks on an entry that replaces `stored`: a greater sequence, and not an earlier timestamp.
    ///
    /// # Errors
    /// [`EntryError::Sequence`], then [`EntryError::TimestampOrder`].
    pub fn validate_successor_of(&self, stored: &Self) -> Result<(), EntryError> {
        if self.sequence <= stored.sequence {
            return Err(EntryError::Sequence);
        }
        if self.timestamp_ns < stored.timestamp_ns {
            return Err(EntryError::TimestampOrder);
        }
        Ok(())
    }
}

fn is_current(timestamp_ns: i64, now_ns: i64) -> bool {
    let age_ns = now_ns.saturating_sub(timestamp_ns);
    (-TIMESTAMP_FUTURE_MAX_NS..=TIMESTAMP_PAST_MAX_NS).contains(&age_ns)
}

/// True for an address of which the part before the port is empty or a loopback IP.
///
/// quirk: only IP literals are recognised. The name `localhost` passes, and so does an address without a
/// port.
fn names_no_remote_host(address: &str) -> bool {
    let Some(host) = host_of(address) else { return false };
    host.is_empty() || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The host of `host:port` or `[host]:port`; `None` when the text has neither form.
fn host_of(address: &str) -> Option<&str> {
    let (host, _port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    if host.contains(['[', ']']) { None } else { Some(host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for loopback in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", ":80", "[]:80", "[::ffff:127.0.0.1]:1"] {
            assert!(names_no_remote_host(loopback), "{loopback}");
        }
        for passes in
            ["localhost:80", "127.0.0.1", "", "203.0.113.7:80", "[2001:db8::7]:80", "::1:80", "[::1", "x"]
        {
            assert!(!names_no_remote_host(passes), "{passes}");
        }
    }

    #[test]
    fn clock_window() {
        let now_ns = 1_000_000_000_000;
        assert!(is_current(now_ns - TIMESTAMP_PAST_MAX_NS, now_ns));
        assert!(!is_current(now_ns - TIMESTAMP_PAST_MAX_NS - 1, now_ns));
        assert!(is_current(now_ns + TIMESTAMP_FUTURE_MAX_NS, now_ns));
        assert!(!is_current(now_ns + TIMESTAMP_FUTURE_MAX_NS + 1, now_ns));
        assert!(!is_current(i64::MIN, i64::MAX));
        assert!(!is_current(i64::MAX, i64::MIN));
    }
}

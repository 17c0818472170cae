//! When a server's post is worth a line in the log (services 2.6), and how often.

use ringwire_proto::entry::Entry;

use super::store::Record;
use crate::http::Caller;
use crate::throttle::Throttle;

/// Why a post of a server is logged. One a minute from each server is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The key had no entry.
    New,
    /// The sequence does not follow: another program posts for the same key, or posts were missed.
    SequenceGap,
    /// The address is another one.
    AddressChanged,
}

impl Reason {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::New, Self::SequenceGap, Self::AddressChanged];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::SequenceGap => "sequence-gap",
            Self::AddressChanged => "address-changed",
        }
    }
}

/// The reason to log that `entry` was posted over `stored`, if there is one.
pub(super) fn reason_to_log(entry: &Entry, stored: Option<&Entry>) -> Option<Reason> {
    let server = entry.server.as_ref()?;
    let Some(stored) = stored else { return Some(Reason::New) };
    if stored.server.as_ref().is_none_or(|stored| stored.address != server.address) {
        return Some(Reason::AddressChanged);
    }
    let follows = stored.sequence.checked_add(1) == Some(entry.sequence);
    (!follows).then_some(Reason::SequenceGap)
}

/// Lines about posts of servers: every one that has a reason at `debug`, one per reason and interval at `info`, because
/// strangers can post as many as they like.
#[derive(Debug)]
pub(super) struct Log {
    lines: [Throttle; Reason::ALL.len()],
}

impl Log {
    pub(super) fn new() -> Self {
        Self { lines: std::array::from_fn(|_| Throttle::default()) }
    }

    /// To be called on accepting a server's entry, before the check of its sequence, so that a double of its identity shows
    /// even when it is refused. True when there was something to note.
    pub(super) fn note(&self, entry: &Entry, stored: Option<&Record>, caller: Option<&Caller>) -> bool {
        let (Some(server), Some(key)) = (&entry.server, &entry.static_key) else { return false };
        let stored = stored.map(|record| &record.entry);
        let Some(reason) = reason_to_log(entry, stored) else { return false };
        macro_rules! line {
            ($level:ident, $suppressed:expr) => {
                tracing::$level!(
                    server_pk = %key,
                    address = server.address,
                    sequence = entry.sequence,
                    prev_sequence = stored.map(|stored| stored.sequence),
                    src = caller.map(|caller| caller.to_string()),
                    reason = reason.name(),
                    suppressed = $suppressed,
                    "dmsg-server entry registration"
                )
            };
        }
        match self.lines[reason as usize].admit() {
            Some(suppressed) => line!(info, suppressed),
            None => line!(debug, 0),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use ringwire_proto::entry::{ClientPart, ServerPart};

    use super::*;

    fn server(sequence: u64, address: &str) -> Entry {
        let server = Some(ServerPart { address: address.to_owned(), ..ServerPart::default() });
        Entry { sequence, server, ..Entry::default() }
    }

    #[test]
    fn a_heartbeat_is_not_logged_and_what_is_odd_is() {
        let stored = server(4, "a:1");
        let reason = |entry: &Entry| reason_to_log(entry, Some(&stored)).map(Reason::name);
        assert_eq!(reason(&server(5, "a:1")), None);
        assert_eq!(reason(&server(7, "a:1")), Some("sequence-gap"));
        assert_eq!(reason(&server(4, "a:1")), Some("sequence-gap"), "a double shows though it is refused");
        assert_eq!(reason(&server(5, "b:1")), Some("address-changed"));
        assert_eq!(reason_to_log(&stored, None), Some(Reason::New));
        let client = Entry { client: Some(ClientPart::default()), ..Entry::default() };
        assert_eq!(reason_to_log(&client, None), None, "clients never");
    }
}

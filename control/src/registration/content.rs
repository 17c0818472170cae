//! What an entry says, without what makes it one of a series.

use ringwire_proto::entry::{ClientPart, ENTRY_VERSION, Entry, ServerPart};

/// The content of an entry: two entries with the same content differ in sequence, time and signature only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Of a client.
    pub client: Option<ClientPart>,
    /// For instance `visor`.
    pub client_type: String,
    /// Of a server.
    pub server: Option<ServerPart>,
}

impl Content {
    /// The content of a server at `address` with room for so many more sessions. Members of 2026 stay away: an entry
    /// that has them does not verify at 2024 peers (dmsg-wire 12.1).
    pub fn server(address: String, available_sessions: i64, server_type: String) -> Self {
        let server = ServerPart { address, available_sessions, server_type, ..ServerPart::default() };
        Self { server: Some(server), ..Self::default() }
    }

    /// The entry with this content, not signed yet.
    pub(super) fn entry(&self, sequence: u64, timestamp_ns: i64) -> Entry {
        Entry {
            version: ENTRY_VERSION.to_owned(),
            sequence,
            timestamp_ns,
            client: self.client.clone(),
            client_type: self.client_type.clone(),
            server: self.server.clone(),
            ..Entry::default()
        }
    }
}

/// What a server advertises as free: never negative, whatever it holds (dmsg-wire 12.4). Sessions beyond the number are
/// still accepted, so that clients which delegated to this server keep working.
pub fn available_sessions(sessions_max: u64, sessions: u64) -> i64 {
    i64::try_from(sessions_max.saturating_sub(sessions)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_never_negative() {
        assert_eq!(available_sessions(2048, 0), 2048);
        assert_eq!(available_sessions(2048, 2047), 1);
        assert_eq!(available_sessions(2048, 2048), 0);
        assert_eq!(available_sessions(2048, 9000), 0);
        assert_eq!(available_sessions(u64::MAX, 0), i64::MAX);
    }
}

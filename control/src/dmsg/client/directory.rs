//! Where a client learns who is where: the four questions it asks a discovery, and an answer without one.
//!
//! In: keys and entries. Out: entries, or [`DirectoryError`]. The client bounds every call by a time of its own and may
//! drop it halfway.

use std::fmt;
use std::pin::Pin;

use ringwire_proto::entry::{ClientPart, ENTRY_VERSION, Entry, ServerPart};
use ringwire_proto::identity::PublicKey;
use thiserror::Error;

use crate::dmsg::address::ServerAddress;

/// What a directory's methods return.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, DirectoryError>> + Send + 'a>>;

/// Entries of servers and clients (dmsg-wire 12.3).
pub trait Directory: fmt::Debug + Send + Sync + 'static {
    /// The entry of `key`. `None` only when the directory said that there is none; everything else that keeps it from
    /// answering is an error (control-plane 5).
    fn entry(&self, key: PublicKey) -> Answer<'_, Option<Entry>>;

    /// Servers that take more sessions, in any order.
    fn available_servers(&self) -> Answer<'_, Vec<Entry>>;

    /// Stores a signed entry.
    fn put(&self, entry: Entry) -> Answer<'_, ()>;

    /// Removes the entry of whoever signed `entry`.
    fn remove(&self, entry: Entry) -> Answer<'_, ()>;

    /// Whether clients announce themselves here.
    fn takes_posts(&self) -> bool {
        true
    }
}

/// Why a directory gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DirectoryError {
    /// An entry was refused because the stored one has the same sequence or a later one (services 2.2).
    #[error("the discovery has a newer entry: {0}")]
    Sequence(String),
    /// Anything else: no connection, a status of another kind, a text that is no entry.
    #[error("{0}")]
    Failed(String),
    /// No answer in time.
    #[error("the discovery did not answer within {0:?}")]
    TimedOut(std::time::Duration),
}

/// A directory without a discovery: servers known beforehand, and every other key taken to be a client of all of them
/// (control-plane 2.2). Nothing is announced.
#[derive(Debug, Clone)]
pub struct KnownServers {
    servers: Vec<ServerAddress>,
}

impl KnownServers {
    /// These servers, and no others.
    pub fn new(servers: Vec<ServerAddress>) -> Self {
        Self { servers }
    }

    fn server_entry(server: &ServerAddress) -> Entry {
        Entry {
            version: ENTRY_VERSION.to_owned(),
            static_key: Some(server.key),
            server: Some(ServerPart {
                address: server.address.clone(),
                available_sessions: 1,
                ..ServerPart::default()
            }),
            ..Entry::default()
        }
    }

    fn client_entry(&self, key: PublicKey) -> Entry {
        let servers = self.servers.iter().map(|server| server.key).collect();
        Entry {
            version: ENTRY_VERSION.to_owned(),
            static_key: Some(key),
            client: Some(ClientPart { delegated_servers: Some(servers) }),
            ..Entry::default()
        }
    }
}

impl Directory for KnownServers {
    fn entry(&self, key: PublicKey) -> Answer<'_, Option<Entry>> {
        let server = self.servers.iter().find(|server| server.key == key).map(Self::server_entry);
        let entry = server.unwrap_or_else(|| self.client_entry(key));
        Box::pin(async { Ok(Some(entry)) })
    }

    fn available_servers(&self) -> Answer<'_, Vec<Entry>> {
        let servers = self.servers.iter().map(Self::server_entry).collect();
        Box::pin(async { Ok(servers) })
    }

    fn put(&self, _entry: Entry) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn remove(&self, _entry: Entry) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn takes_posts(&self) -> bool {
        false
    }
}

/// The servers a client's entry delegates to.
pub(super) fn delegated_servers(entry: &Entry) -> &[PublicKey] {
    entry.client.as_ref().and_then(|client| client.delegated_servers.as_deref()).unwrap_or_default()
}

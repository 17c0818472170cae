//! A discovery in memory: it checks what a real one checks, notes what it is asked, and fails when told to.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use ringwire::dmsg::{Answer, Directory, DirectoryError};
use ringwire_dataplane::Server;
use ringwire_proto::entry::{ENTRY_VERSION, Entry, ServerPart};
use ringwire_proto::identity::PublicKey;

/// A request that reached the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Entry(PublicKey),
    Put { key: PublicKey, sequence: u64 },
    Remove(PublicKey),
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<PublicKey, Entry>,
    requests: Vec<Request>,
    /// What the next reads of an entry answer instead.
    failures: VecDeque<DirectoryError>,
    /// Posted by somebody else right before the next puts.
    interlopers: VecDeque<Entry>,
}

#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lists a server at `address`.
    pub fn add_server(&self, key: PublicKey, address: &str) {
        let server = ServerPart { address: address.to_owned(), available_sessions: 9, ..Default::default() };
        let entry = Entry {
            version: ENTRY_VERSION.to_owned(),
            static_key: Some(key),
            server: Some(server),
            ..Default::default()
        };
        self.lock().entries.insert(key, entry);
    }

    pub fn add(&self, server: &Server) {
        self.add_server(server.public_key(), &server.addresses()[0].to_string());
    }

    pub fn insert(&self, entry: Entry) {
        self.lock().entries.insert(entry.static_key.unwrap(), entry);
    }

    pub fn forget(&self, key: &PublicKey) {
        self.lock().entries.remove(key);
    }

    pub fn stored(&self, key: &PublicKey) -> Option<Entry> {
        self.lock().entries.get(key).cloned()
    }

    pub fn delegated(&self, key: &PublicKey) -> Vec<PublicKey> {
        let client = self.stored(key).and_then(|entry| entry.client);
        client.and_then(|client| client.delegated_servers).unwrap_or_default()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    pub fn puts(&self, of: &PublicKey) -> Vec<u64> {
        let requests = self.requests();
        let sequence = |request: &Request| match request {
            Request::Put { key, sequence } if key == of => Some(*sequence),
            _ => None,
        };
        requests.iter().filter_map(sequence).collect()
    }

    pub fn fail_next(&self, error: DirectoryError) {
        self.lock().failures.push_back(error);
    }

    pub fn interlope(&self, entry: Entry) {
        self.lock().interlopers.push_back(entry);
    }
}

impl Directory for Memory {
    fn entry(&self, key: PublicKey) -> Answer<'_, Option<Entry>> {
        let mut state = self.lock();
        state.requests.push(Request::Entry(key));
        let answer = match state.failures.pop_front() {
            Some(error) => Err(error),
            None => Ok(state.entries.get(&key).cloned()),
        };
        Box::pin(async { answer })
    }

    fn available_servers(&self) -> Answer<'_, Vec<Entry>> {
        let servers = self.lock().entries.values().filter(|entry| entry.server.is_some()).cloned().collect();
        Box::pin(async { Ok(servers) })
    }

    fn put(&self, entry: Entry) -> Answer<'_, ()> {
        let mut state = self.lock();
        if let Some(interloper) = state.interlopers.pop_front() {
            state.entries.insert(interloper.static_key.unwrap(), interloper);
        }
        let key = entry.static_key.unwrap();
        state.requests.push(Request::Put { key, sequence: entry.sequence });
        let answer = match state.entries.get(&key) {
            _ if entry.verify().is_err() => Err(DirectoryError::Failed("invalid signature".to_owned())),
            Some(stored) => entry
                .validate_successor_of(stored)
                .map_err(|error| DirectoryError::Sequence(error.to_string())),
            None => Ok(()),
        };
        if answer.is_ok() {
            state.entries.insert(key, entry);
        }
        Box::pin(async { answer })
    }

    fn remove(&self, entry: Entry) -> Answer<'_, ()> {
        let mut state = self.lock();
        let key = entry.static_key.unwrap();
        state.requests.push(Request::Remove(key));
        let answer = entry.verify().map_err(|error| DirectoryError::Failed(error.to_string()));
        if answer.is_ok() {
            state.entries.remove(&key);
        }
        Box::pin(async { answer })
    }
}

/// The same directory, listing only some servers: it decides where a client connects by itself.
#[derive(Debug)]
pub struct Listing {
    pub of: Arc<Memory>,
    pub servers: Vec<PublicKey>,
}

impl Directory for Listing {
    fn entry(&self, key: PublicKey) -> Answer<'_, Option<Entry>> {
        self.of.entry(key)
    }

    fn available_servers(&self) -> Answer<'_, Vec<Entry>> {
        let servers = self.servers.iter().filter_map(|key| self.of.stored(key)).collect();
        Box::pin(async { Ok(servers) })
    }

    fn put(&self, entry: Entry) -> Answer<'_, ()> {
        self.of.put(entry)
    }

    fn remove(&self, entry: Entry) -> Answer<'_, ()> {
        self.of.remove(entry)
    }
}

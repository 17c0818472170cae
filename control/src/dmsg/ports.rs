//! The ports of one client (dmsg-wire 10.1): ephemeral ones of its dials, and those somebody listens on.
//!
//! One set belongs to one key, however many sessions carry its streams: a stream that arrives on any of them finds the
//! listener of its port here. Used by dials ([`Ports::reserve`]), listeners and requests from servers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::error::ListenError;
use super::stream::Stream;

/// The first ephemeral port is the one after this.
const EPHEMERAL_BASE: u16 = 49152;

/// The ports of one key.
pub(super) struct Ports {
    state: Mutex<State>,
}

struct State {
    /// The last ephemeral port that was handed out.
    last: u16,
    dialled: HashSet<u16>,
    listeners: HashMap<u16, mpsc::Sender<Stream>>,
}

impl Ports {
    pub(super) fn new() -> Self {
        let state = State { last: EPHEMERAL_BASE, dialled: HashSet::new(), listeners: HashMap::new() };
        Self { state: Mutex::new(state) }
    }

    /// Takes a free ephemeral port.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<PortGuard> {
        let mut state = self.lock();
        for _ in EPHEMERAL_BASE..=u16::MAX {
            state.last = state.last.checked_add(1).unwrap_or(EPHEMERAL_BASE);
            let port = state.last;
            if !state.listeners.contains_key(&port) && state.dialled.insert(port) {
                return Some(PortGuard { ports: Arc::clone(self), port });
            }
        }
        None
    }

    /// Files a listener whose streams come out of the receiver; `queue` of them may wait. The guard gives the port
    /// back.
    pub(super) fn listen(
        self: &Arc<Self>,
        port: u16,
        queue: usize,
    ) -> Result<(ListenGuard, mpsc::Receiver<Stream>), ListenError> {
        if port == 0 {
            return Err(ListenError::PortZero);
        }
        let (sender, streams) = mpsc::channel(queue.max(1));
        let mut state = self.lock();
        if state.dialled.contains(&port) || state.listeners.contains_key(&port) {
            return Err(ListenError::PortInUse { port });
        }
        state.listeners.insert(port, sender);
        Ok((ListenGuard { ports: Arc::clone(self), port }, streams))
    }

    /// The queue of whoever listens on `port`.
    pub(super) fn listener(&self, port: u16) -> Option<mpsc::Sender<Stream>> {
        self.lock().listeners.get(&port).cloned()
    }

    /// Ends every listener.
    pub(super) fn close(&self) {
        self.lock().listeners.clear();
    }

    /// A lock whose holder panicked still holds whole values: nothing in here unwinds halfway through a change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds an ephemeral port until dropped.
pub(super) struct PortGuard {
    ports: Arc<Ports>,
    port: u16,
}

impl PortGuard {
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        self.ports.lock().dialled.remove(&self.port);
    }
}

/// Holds the port of a listener until dropped.
pub(super) struct ListenGuard {
    ports: Arc<Ports>,
    port: u16,
}

impl ListenGuard {
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for ListenGuard {
    fn drop(&mut self) {
        self.ports.lock().listeners.remove(&self.port);
    }
}

//! A client on a thread of its own: it answers pings and dials until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use ringwire_proto::identity::PublicKey;
use ringwire_proto::object::{object_hash, open_response};

use super::Peer;

pub struct Living {
    pub key: PublicKey,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: JoinHandle<Peer>,
}

impl Living {
    pub fn start(peer: Peer) -> Self {
        Self::run(peer, false)
    }

    /// One that pings the server all the time.
    pub fn start_chatty(peer: Peer) -> Self {
        Self::run(peer, true)
    }

    fn run(mut peer: Peer, is_chatty: bool) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, count, key) = (Arc::clone(&stop), Arc::clone(&answered), peer.key);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) && !peer.closed {
                peer.pump();
                if is_chatty {
                    peer.settle();
                }
                if let Some(stream) = peer.mux.accept() {
                    // Before it leaves, so that whoever has the answer finds it counted.
                    count.fetch_add(1, Ordering::AcqRel);
                    peer.answer_on(stream);
                }
            }
            peer
        });
        Self { key, stop, answered, thread }
    }

    /// How many dials it has answered.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Acquire)
    }

    pub fn stop(self) -> Peer {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

/// Dials; true: with an answer.
pub fn dial(peer: &mut Peer, destination: PublicKey) -> bool {
    let stream = peer.open();
    let request = peer.request(destination);
    let signed = peer.sign(&request);
    peer.write_object(stream, &signed);
    let response = peer.try_read_object(stream);
    response
        .is_some_and(|signed_back| open_response(&signed_back, &object_hash(&signed), &destination).is_ok())
}

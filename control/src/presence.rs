//! Whether others are sent to this server: its readiness and its entries in discoveries, as one.
//!
//! In: somebody who is going to close sessions (a drain, a stop, a signal). Out, in this order: `/health` says no; the entries
//! are withdrawn, and the discoveries' answers awaited within a bound. Only then may a session be closed: a client that is
//! closed while its server is still listed comes straight back. Who closes nothing after all drops the [`Absence`], and the
//! entries are posted again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::registration::Registration;

/// Why a server leaves that ends with its last session.
pub const DRAINING: &str = "draining: it takes nobody new, and ends with its last session";

/// Why a server leaves that ends.
pub const ENDING: &str = "ending";

/// See the module's head. Clones are one.
#[derive(Debug, Clone)]
pub struct Presence(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    registration: Registration,
    /// Why it is away, one for each [`Absence`]; none: it is there.
    reasons: Mutex<Vec<&'static str>>,
}

impl Presence {
    /// Is where `registration` says from now on.
    pub fn new(registration: Registration) -> Self {
        Self(Arc::new(Shared { registration, reasons: Mutex::default() }))
    }

    /// The entries.
    pub fn registration(&self) -> &Registration {
        &self.0.registration
    }

    /// Why nobody should be sent here, if so.
    pub fn away(&self) -> Option<&'static str> {
        self.reasons().last().copied()
    }

    /// Sends nobody here any more. Returns when the discoveries have answered, at the latest after
    /// [`WITHDRAW_LIMIT`](crate::registration::WITHDRAW_LIMIT); `/health` gives `reason` from the first moment on.
    pub async fn leave(&self, reason: &'static str) -> Absence {
        self.reasons().push(reason);
        let absence = Absence { presence: self.clone(), reason: Some(reason) };
        self.0.registration.withdraw().await;
        absence
    }

    fn reasons(&self) -> MutexGuard<'_, Vec<&'static str>> {
        // Each change of it is one operation.
        self.0.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lasts nobody is sent here.
#[derive(Debug)]
pub struct Absence {
    presence: Presence,
    /// None: for good.
    reason: Option<&'static str>,
}

impl Absence {
    /// Lets it last to the end of the process.
    pub fn for_good(mut self) {
        self.reason = None;
    }
}

impl Drop for Absence {
    fn drop(&mut self) {
        let Some(reason) = self.reason else { return };
        let mut reasons = self.presence.reasons();
        if let Some(place) = reasons.iter().position(|other| *other == reason) {
            reasons.remove(place);
        }
        // Under the lock: who leaves a moment later withdraws after this.
        if reasons.is_empty() {
            tracing::info!("not leaving after all: registering again");
            self.presence.0.registration.restore();
        }
    }
}

#[cfg(test)]
mod tests {
    use ringwire_proto::identity::SecretKey;

    use super::*;
    use crate::registration::{Content, UPDATE_INTERVAL};

    #[tokio::test]
    async fn it_is_back_when_the_last_who_left_gives_up_and_never_when_one_left_for_good() {
        let key = SecretKey::from_bytes(&[3; 32]).unwrap();
        let registration = Registration::start(Vec::new(), key, Content::default(), UPDATE_INTERVAL);
        let presence = Presence::new(registration);
        assert_eq!(presence.away(), None);
        let (drain, stop) = (presence.leave(DRAINING).await, presence.leave(ENDING).await);
        assert_eq!(presence.away(), Some(ENDING));
        drop(stop);
        assert_eq!(presence.away(), Some(DRAINING));
        drop(drain);
        assert_eq!(presence.away(), None);

        let (drain, stop) = (presence.leave(DRAINING).await, presence.leave(ENDING).await);
        stop.for_good();
        drop(drain);
        assert_eq!(presence.away(), Some(ENDING));
    }
}

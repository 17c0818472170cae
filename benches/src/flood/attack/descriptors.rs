//! Sessions from one address, as many as there are descriptors.

use super::{Field, IDLE, Reins, Row, Settings, in_parallel};
use crate::flood::server::Plane;
use crate::flood::targets::{SETTLE_SHORT, Target};
use crate::flood::wire::{Wire, fresh_key};
use anyhow::Result;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(super) const ROW: Row = Row {
    name: "descriptors",
    about: "one address makes sessions, each with a new key, until there are no descriptors left, and goes on trying",
    attackers: &[8],
    attackers_quick: 2,
    seconds: 6.0,
    // Fewer than usual, so that they are used up soon.
    server: Settings { buffer_memory: None, descriptors: Some(2048) },
    server_quick: Settings { buffer_memory: None, descriptors: Some(192) },
    plane: Plane::Data,
    watches_discovery: false,
    targets: &[Target::HandshakesKept, Target::OpensOk, Target::SessionsKept],
    settle: SETTLE_SHORT,
    run,
};

/// Sessions in all: more than the server has descriptors.
const SESSIONS: usize = 2400;
const SESSIONS_QUICK: usize = 220;
/// Refusals after which the attack has come as far as it comes.
const REFUSALS: usize = 20;
/// Pause after a refusal.
const AGAIN: Duration = Duration::from_millis(10);

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let place = field.place()?;
    let (held, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let each = field.scaled(SESSIONS, SESSIONS_QUICK) / field.attackers;
    let attackers = (0..field.attackers).collect();
    in_parallel(attackers, |_, _: usize| {
        let mut sessions: Vec<Wire> = Vec::new();
        let (mut made, mut events, mut looked) = (0, Vec::new(), 0);
        while !reins.ended() {
            if sessions.len() < each {
                match Wire::establish(&place, &fresh_key()) {
                    Ok(wire) => {
                        sessions.push(wire);
                        made += 1;
                        held.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {
                        refused.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(AGAIN);
                    }
                }
            } else {
                std::thread::sleep(IDLE);
            }
            // One after the other: is it still there?
            if !sessions.is_empty() {
                looked = (looked + 1) % sessions.len();
                if sessions[looked].turn(Duration::ZERO, &mut events).is_err() {
                    sessions.swap_remove(looked);
                    held.fetch_sub(1, Ordering::Relaxed);
                    reins.did("sessions_ended", 1);
                }
                events.clear();
            }
            let all = each * field.attackers;
            if refused.load(Ordering::Relaxed) >= REFUSALS
                || held.load(Ordering::Relaxed) >= all
                || reins.is_late()
            {
                reins.stand();
            }
        }
        reins.did("sessions", made);
        reins.did("sessions_at_the_end", sessions.len() as u64);
        Ok(())
    })?;
    reins.did("refused", refused.into_inner() as u64);
    Ok(())
}

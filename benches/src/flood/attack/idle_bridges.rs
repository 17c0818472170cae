//! Bridges that are opened and left alone: each keeps the promise of two windows.

use super::{Field, IDLE, Idler, Reins, Row, SMALL, USUAL, in_parallel};
use crate::flood::server::Plane;
use crate::flood::targets::{OPENS_BESIDE, SETTLE_SHORT};
use anyhow::Result;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(super) const ROW: Row = Row {
    name: "idle-bridges",
    about: "clients open thousands of bridges among themselves, send a request on each, and then nothing",
    attackers: &[24],
    attackers_quick: 8,
    seconds: 6.0,
    server: USUAL,
    server_quick: SMALL,
    plane: Plane::Data,
    watches_discovery: false,
    targets: OPENS_BESIDE,
    settle: SETTLE_SHORT,
    run,
};

/// Two windows each are 7 GiB, nine tenths of the usual budget.
const BRIDGES: usize = 14_000;
const BRIDGES_QUICK: usize = 120;
/// After a refusal an attacker waits so long before it asks again.
const PATIENCE: Duration = Duration::from_millis(200);

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let sessions = field.sessions(field.attackers, reins)?;
    let keys: Vec<_> = sessions.iter().map(super::Wire::public_key).collect();
    let each = field.scaled(BRIDGES, BRIDGES_QUICK).div_ceil(keys.len());
    let ready = AtomicUsize::new(0);
    in_parallel(sessions, |number, wire| {
        let accomplice = keys[(number + 1) % keys.len()];
        let mut idler = Idler::new(wire);
        let (mut is_ready, mut most, mut refused) = (false, 0, 0);
        while !reins.ended() {
            if idler.refused > refused {
                refused = idler.refused;
                // Others still need an answer meanwhile.
                let until = std::time::Instant::now() + PATIENCE;
                while std::time::Instant::now() < until && !reins.ended() {
                    idler.turn(field, reins, accomplice, 0)?;
                }
            }
            idler.turn(field, reins, accomplice, each)?;
            most = most.max(idler.open);
            if !is_ready && (idler.open >= each || idler.refused > 0 || reins.is_late()) {
                is_ready = true;
                if ready.fetch_add(1, Ordering::Relaxed) + 1 == keys.len() {
                    std::thread::sleep(IDLE);
                    reins.stand();
                }
            }
        }
        reins.did("bridges", most as u64);
        reins.did("refused", idler.refused as u64);
        Ok(())
    })
}

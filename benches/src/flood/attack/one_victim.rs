//! Idle streams to somebody who has done nothing: the promises of the dialled side are the victim's.

use super::{Field, Idler, Reins, Row, SMALL, Settings, in_parallel};
use crate::flood::server::Plane;
use crate::flood::targets::{OPENS_BESIDE, SETTLE_SHORT};
use anyhow::Result;
use ringwire_proto::identity::PublicKey;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(super) const ROW: Row = Row {
    name: "one-victim",
    about: "two clients open idle streams to one honest client until they are refused, and go on asking",
    attackers: &[2],
    attackers_quick: 2,
    seconds: 6.0,
    // A quarter of this budget is 486 windows, and a session may have 2,048 streams.
    server: Settings { buffer_memory: Some(512 << 20), descriptors: None },
    server_quick: SMALL,
    plane: Plane::Data,
    watches_discovery: false,
    targets: OPENS_BESIDE,
    settle: SETTLE_SHORT,
    run,
};

/// What each wants: all streams a session may have.
const WANTED: usize = 2048;
/// After a refusal so many are asked for at a time, so often.
const AGAIN: usize = 8;
const INTERVAL: Duration = Duration::from_millis(50);

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let victim: PublicKey = field.honest.parse()?;
    let sessions = field.sessions(field.attackers, reins)?;
    let (count, ready) = (sessions.len(), AtomicUsize::new(0));
    in_parallel(sessions, |_, wire| {
        let mut idler = Idler::new(wire);
        let (mut is_ready, mut most, mut next) = (false, 0, Instant::now());
        while !reins.ended() {
            let wanted = if idler.refused == 0 {
                WANTED
            } else if Instant::now() >= next {
                next = Instant::now() + INTERVAL;
                (idler.open + AGAIN).min(WANTED)
            } else {
                0
            };
            idler.turn(field, reins, victim, wanted)?;
            most = most.max(idler.open);
            if !is_ready && (idler.refused > 0 || idler.open == WANTED || reins.is_late()) {
                is_ready = true;
                if ready.fetch_add(1, Ordering::Relaxed) + 1 == count {
                    reins.stand();
                }
            }
        }
        reins.did("streams", most as u64);
        reins.did("refused", idler.refused as u64);
        Ok(())
    })
}

//! Streams that are opened and on which no request ever comes: each keeps the promise of a window until it times out.

use super::{Field, Reins, Row, SMALL, USUAL, in_parallel};
use crate::flood::server::Plane;
use crate::flood::targets::{OPENS_BESIDE, SETTLE_SHORT};
use crate::flood::wire::Event;
use crate::frames::{SYN, WINDOW_UPDATE};
use anyhow::Result;
use std::time::{Duration, Instant};

pub(super) const ROW: Row = Row {
    name: "syn-only",
    about: "clients send nothing but SYN, 2,000 a second each, and never a request",
    attackers: &[16],
    attackers_quick: 4,
    seconds: 6.0,
    server: USUAL,
    server_quick: SMALL,
    plane: Plane::Data,
    watches_discovery: false,
    targets: OPENS_BESIDE,
    settle: SETTLE_SHORT,
    run,
};

/// 24 KB a second: 200 SYN each tenth.
const BURST: usize = 200;
const INTERVAL: Duration = Duration::from_millis(100);
/// So long it takes until a session has 2,048 of them.
const MAKING: Duration = Duration::from_millis(1200);
const MAKING_QUICK: Duration = Duration::from_millis(300);

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let sessions = field.sessions(field.attackers, reins)?;
    let began = Instant::now();
    let making = if field.quick { MAKING_QUICK } else { MAKING };
    in_parallel(sessions, |_, mut wire| {
        let (mut next, mut events, mut syns, mut resets) = (Instant::now(), Vec::new(), 0, 0);
        while !reins.ended() {
            if Instant::now() >= next {
                next += INTERVAL;
                for _ in 0..BURST {
                    let stream = wire.take_stream();
                    wire.queue_header(WINDOW_UPDATE, SYN, stream, 0);
                }
                syns += BURST as u64;
            }
            if wire.turn(next.saturating_duration_since(Instant::now()), &mut events).is_err() {
                field.replace(&mut wire, reins);
            }
            for event in events.drain(..) {
                if let Event::Ended { stream, reset } = event {
                    resets += 1;
                    if !reset {
                        wire.end(stream, false);
                    }
                }
            }
            if began.elapsed() > making {
                reins.stand();
            }
        }
        reins.did("syns", syns);
        reins.did("refused", resets);
        Ok(())
    })
}

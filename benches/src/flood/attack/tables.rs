//! Requests that are never finished: state outside the budget, in every session's table.

use super::{Field, IDLE, Reins, Row, USUAL};
use crate::flood::server::Plane;
use crate::flood::targets::Target;
use crate::frames::{DATA, SYN, WINDOW_UPDATE};
use anyhow::Result;
use std::time::{Duration, Instant};

pub(super) const ROW: Row = Row {
    name: "tables",
    about: "200 clients begin 2,560 requests each with the two bytes of their length, again whenever they time out",
    attackers: &[200],
    attackers_quick: 4,
    seconds: 8.0,
    server: USUAL,
    server_quick: USUAL,
    plane: Plane::Data,
    watches_discovery: false,
    targets: &[
        Target::MemoryBack { factor: 1.5, spare_mib: 0.0 },
        Target::OpensOk,
        Target::OpenP99Ms(20.0),
        Target::HandshakesKept,
    ],
    settle: Duration::from_secs(30),
    run,
};

/// Streams of a session: 2,048, and as many more as may wait to be accepted.
const STREAMS: usize = 2560;
const STREAMS_QUICK: usize = 200;
/// The server gives a request five seconds.
const AGAIN: Duration = Duration::from_millis(5200);

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let mut sessions = field.sessions(field.attackers, reins)?;
    let streams = field.scaled(STREAMS, STREAMS_QUICK);
    let mut next = Instant::now();
    let mut events = Vec::new();
    while !reins.ended() {
        let due = Instant::now() >= next;
        if due {
            next = Instant::now() + AGAIN;
        }
        for wire in &mut sessions {
            if due {
                for _ in 0..streams {
                    let stream = wire.take_stream();
                    wire.queue_header(WINDOW_UPDATE, SYN, stream, 0);
                    wire.queue_header(DATA, 0, stream, 2);
                    // A request of 384 bytes, of which nothing comes.
                    wire.queue(&[1, 128]);
                }
                reins.did("requests_begun", streams as u64);
            }
            if wire.turn(Duration::ZERO, &mut events).is_err() {
                field.replace(wire, reins);
            }
            for event in events.drain(..) {
                if let crate::flood::wire::Event::Ended { stream, reset } = event {
                    reins.did("ended", 1);
                    if !reset {
                        wire.end(stream, false);
                    }
                }
            }
        }
        reins.stand();
        std::thread::sleep(IDLE);
    }
    Ok(())
}

//! Frames that carry nothing, as many as the connection takes: work is counted in frames here, and never in bytes.

use super::{Field, IDLE, Reins, Row, USUAL, in_parallel};
use crate::flood::server::Plane;
use crate::flood::targets::Target;
use crate::flood::wire::Wire;
use crate::frames::{DATA, RST, SYN, WINDOW_UPDATE};
use anyhow::Result;
use std::time::Duration;

pub(super) const ROW: Row = Row {
    name: "empty-frames",
    about: "clients send SYN with RST, data of no length, data of unknown streams and RST in turn, at line rate",
    attackers: &[1, 8],
    attackers_quick: 1,
    seconds: 6.0,
    server: USUAL,
    server_quick: USUAL,
    plane: Plane::Data,
    watches_discovery: false,
    targets: &[
        Target::PingP99Ms(2.0),
        Target::HandshakesKept,
        Target::MemoryBack { factor: 1.5, spare_mib: 8.0 },
    ],
    settle: Duration::from_secs(10),
    run,
};

/// Frames of one kind in a row.
const RUN_LEN: usize = 2000;
/// Nothing more is prepared while so much waits to be sent.
const UNSENT_MAX: usize = 256 * 1024;
/// Ids that are never opened.
const UNKNOWN: u32 = 0x7000_0001;

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let sessions = field.sessions(field.attackers, reins)?;
    reins.stand();
    in_parallel(sessions, |_, mut wire| {
        let (mut events, mut frames, mut kind) = (Vec::new(), 0_u64, 0);
        while !reins.ended() {
            if wire.unsent() < UNSENT_MAX {
                frames += queue_run(&mut wire, kind % 4);
                kind += 1;
            }
            if wire.turn_at_line_rate(IDLE, &mut events).is_err() {
                field.replace(&mut wire, reins);
            }
            events.clear();
        }
        reins.did("frames", frames);
        Ok(())
    })
}

/// Queues a run of frames of one kind and says how many.
fn queue_run(wire: &mut Wire, kind: u32) -> u64 {
    match kind {
        0 => {
            for _ in 0..RUN_LEN / 2 {
                let stream = wire.take_stream();
                wire.queue_header(WINDOW_UPDATE, SYN, stream, 0);
                wire.queue_header(WINDOW_UPDATE, RST, stream, 0);
            }
        }
        1 => {
            let stream = wire.take_stream();
            wire.queue_header(WINDOW_UPDATE, SYN, stream, 0);
            for _ in 2..RUN_LEN {
                wire.queue_header(DATA, 0, stream, 0);
            }
            wire.queue_header(WINDOW_UPDATE, RST, stream, 0);
        }
        2 => {
            for number in 0..RUN_LEN as u32 {
                wire.queue_header(DATA, 0, UNKNOWN + 2 * number, 1);
                wire.queue(&[0]);
            }
        }
        _ => {
            for number in 0..RUN_LEN as u32 {
                wire.queue_header(WINDOW_UPDATE, RST, UNKNOWN + 2 * number, 0);
            }
        }
    }
    RUN_LEN as u64
}

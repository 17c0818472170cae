//! Streams that end as soon as they begin, from a client that reads nothing: what was to be said about them piles up.

use super::{Field, Reins, Row, USUAL, in_parallel};
use crate::flood::server::Plane;
use crate::flood::targets::{SETTLE_SHORT, Target};
use crate::flood::wire::{Wire, fresh_key};
use crate::frames::{FIN, RST, SYN, WINDOW_UPDATE};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

pub(super) const ROW: Row = Row {
    name: "unread-churn",
    about: "a client that reads nothing opens, finishes and resets streams at line rate, then reads again",
    attackers: &[1],
    attackers_quick: 1,
    seconds: 9.0,
    server: USUAL,
    server_quick: USUAL,
    plane: Plane::Data,
    watches_discovery: false,
    targets: &[
        Target::GrowthMib(64.0),
        Target::PingP99Ms(2.0),
        Target::OpensOk,
        Target::OpenP99Ms(20.0),
        Target::HandshakesKept,
    ],
    settle: SETTLE_SHORT,
    run,
};

/// What the kernel keeps for the client: little, so that the server's sends are stuck soon.
const RECEIVE_BUFFER: usize = 4096;
/// Until they are, streams are finished in groups and left alone for a moment, so that answers are made.
const FILLING: Duration = Duration::from_secs(2);
const FILLING_QUICK: Duration = Duration::from_millis(300);
const GROUP: usize = 400;
const MOMENT: Duration = Duration::from_millis(2);
/// Streams in a row at line rate.
const RUN_LEN: usize = 2000;
/// Nothing more is prepared while so much waits to be sent.
const UNSENT_MAX: usize = 256 * 1024;
/// Share of the measured time after which the client reads again.
const READS_AFTER: f64 = 0.6;

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let sessions = (0..field.attackers).map(|_| session(field)).collect::<Result<Vec<_>>>()?;
    in_parallel(sessions, |_, mut wire| {
        let (mut streams, mut sessions) = (0_u64, 1_u64);
        let filling = if field.quick { FILLING_QUICK } else { FILLING };
        let began = Instant::now();
        while began.elapsed() < filling && !reins.ended() {
            if fill(&mut wire).is_err() {
                (wire, sessions) = (session(field)?, sessions + 1);
            }
        }
        reins.stand();
        let reads_from = Instant::now() + Duration::from_secs_f64(field.seconds * READS_AFTER);
        while Instant::now() < reads_from && !reins.ended() {
            if wire.unsent() < UNSENT_MAX {
                for _ in 0..RUN_LEN {
                    let stream = wire.take_stream();
                    wire.queue_header(WINDOW_UPDATE, SYN | FIN, stream, 0);
                    wire.queue_header(WINDOW_UPDATE, RST, stream, 0);
                }
                streams += RUN_LEN as u64;
            }
            if wire.turn_unread(MOMENT).is_err() {
                (wire, sessions) = (session(field)?, sessions + 1);
            }
        }
        reins.did("streams", streams);
        reins.did("sessions", sessions);
        let mut events = Vec::new();
        while !reins.ended() {
            if wire.turn(MOMENT, &mut events).is_err() {
                break;
            }
            reins.did("answers", events.drain(..).count() as u64);
        }
        Ok(())
    })
}

fn session(field: &Field) -> Result<Wire> {
    let place = crate::flood::wire::Place { receive_buffer: Some(RECEIVE_BUFFER), ..field.place()? };
    Wire::establish(&place, &fresh_key()).context("an attacker has no session")
}

/// A group of streams that the server answers, all gone again a moment later.
fn fill(wire: &mut Wire) -> Result<()> {
    let streams: Vec<u32> = (0..GROUP).map(|_| wire.take_stream()).collect();
    for stream in &streams {
        wire.queue_header(WINDOW_UPDATE, SYN | FIN, *stream, 0);
    }
    wire.turn_unread(MOMENT)?;
    std::thread::sleep(MOMENT);
    for stream in &streams {
        wire.queue_header(WINDOW_UPDATE, RST, *stream, 0);
    }
    wire.turn_unread(MOMENT)
}

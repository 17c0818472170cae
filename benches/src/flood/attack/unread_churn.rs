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
        let (mut streams, mut since, began) = (0_u64, Instant::now(), Instant::now());
        let filling = if field.quick { FILLING_QUICK } else { FILLING };
        let mut reads_from = None;
        while reads_from.is_none_or(|reads_from| Instant::now() < reads_from) && !reins.ended() {
            let is_stuck = since.elapsed() >= filling;
            // Who is thrown out again and again is not waited for.
            if reads_from.is_none() && (is_stuck || began.elapsed() > 4 * filling) {
                reins.stand();
                reads_from = Some(Instant::now() + Duration::from_secs_f64(field.seconds * READS_AFTER));
            }
            let result = if is_stuck {
                streams += churn(&mut wire);
                wire.turn_unread(MOMENT)
            } else {
                fill(&mut wire)
            };
            if result.is_err() {
                again(field, &mut wire, reins);
                since = Instant::now();
            }
        }
        reins.did("streams", streams);
        let mut events = Vec::new();
        while !reins.ended() {
            if wire.turn(MOMENT, &mut events).is_err() {
                again(field, &mut wire, reins);
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

/// Once more, with a new key, for a client that was thrown out.
fn again(field: &Field, wire: &mut Wire, reins: &Reins) {
    field.count_again(&session(field).map(|next| *wire = next), reins);
}

/// Queues streams that are gone as soon as they came, while there is room; says how many.
fn churn(wire: &mut Wire) -> u64 {
    if wire.unsent() >= UNSENT_MAX {
        return 0;
    }
    for _ in 0..RUN_LEN {
        let stream = wire.take_stream();
        wire.queue_header(WINDOW_UPDATE, SYN | FIN, stream, 0);
        wire.queue_header(WINDOW_UPDATE, RST, stream, 0);
    }
    RUN_LEN as u64
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

//! Windows sent to somebody who grants no credit, and a FIN behind each: what is held outlives the promise.

use super::{Field, IDLE, Reins, Row, SMALL, Settings};
use crate::flood::server::Plane;
use crate::flood::targets::{SETTLE_SHORT, Target};
use crate::flood::wire::{Event, WINDOW};
use anyhow::Result;
use std::collections::HashMap;

/// A quarter of the budget of this memory is what one session may have: 121 MiB.
const MEMORY: u64 = 512 << 20;

pub(super) const ROW: Row = Row {
    name: "fin-pins",
    about: "one pair bridges, sends a window that is delivered and one that is not, and FIN, a thousand times over",
    attackers: &[1],
    attackers_quick: 1,
    seconds: 6.0,
    server: Settings { buffer_memory: Some(MEMORY), descriptors: None },
    server_quick: SMALL,
    plane: Plane::Data,
    watches_discovery: false,
    // Beside the 121 MiB: what receives and tables take.
    targets: &[Target::OpensOk, Target::OpenP99Ms(20.0), Target::GrowthMib(121.0 + 24.0)],
    settle: SETTLE_SHORT,
    run,
};

/// Streams, 256 KiB held of each: twice the bound on one pair.
const STREAMS: usize = 1100;
const STREAMS_QUICK: usize = 40;
/// Streams under way at a time.
const AT_ONCE: usize = 8;
/// What is sent on each: one window that the other side's credit takes, one that stays.
const EACH: u32 = 2 * WINDOW;
/// Payload of one frame.
const FRAME_LEN: u32 = 32 * 1024;

/// A stream on which something is still to be sent.
struct Filling {
    credit: u32,
    sent: u32,
    open: bool,
    idle: u32,
}

/// Turns without credit after which a stream is finished as it is.
const IDLE_TURNS_MAX: u32 = 10;

fn run(field: &Field, reins: &Reins) -> Result<()> {
    let (mut sender, mut reader) = (field.session()?, field.session()?);
    reins.did("sessions", 2);
    let wanted = field.scaled(STREAMS, STREAMS_QUICK);
    let mut filling: HashMap<u32, Filling> = HashMap::new();
    let (mut begun, mut finished, mut refused, mut payload) = (0, 0, 0, 0_u64);
    let (mut events, mut read) = (Vec::new(), Vec::new());
    let block = vec![0x5a; FRAME_LEN as usize];
    while !reins.ended() {
        while filling.len() < AT_ONCE && begun < wanted && refused < wanted {
            let stream = sender.request(reader.public_key(), None)?.0;
            filling.insert(stream, Filling { credit: WINDOW, sent: 0, open: false, idle: 0 });
            begun += 1;
        }
        let wait = if filling.is_empty() { IDLE } else { IDLE / 10 };
        // The reader takes what comes, so that its connection is never stuck, and grants nothing.
        for (wire, wait, events) in [(&mut sender, wait, &mut events), (&mut reader, IDLE / 20, &mut read)] {
            if wire.turn(wait, events).is_err() {
                events.clear();
                field.restore(wire, reins);
                refused += filling.drain().count();
            }
        }
        for event in read.drain(..) {
            if let Event::Object(stream, signed) = event {
                reader.respond(stream, &signed, None)?;
            }
        }
        for event in events.drain(..) {
            match event {
                Event::Object(stream, _) => {
                    if let Some(stream) = filling.get_mut(&stream) {
                        // The request was sent on it; a little less than it cost is left.
                        (stream.open, stream.credit) = (true, WINDOW - 1024);
                    }
                }
                Event::Credit(stream, len) => {
                    if let Some(stream) = filling.get_mut(&stream) {
                        (stream.credit, stream.idle) = (stream.credit + len, 0);
                    }
                }
                Event::Ended { stream, .. } => {
                    if filling.remove(&stream).is_some() {
                        refused += 1;
                    }
                }
                Event::Opened(_) | Event::Pong => {}
            }
        }
        let mut done = Vec::new();
        for (id, stream) in filling.iter_mut().filter(|(_, stream)| stream.open) {
            while stream.credit > 0 && stream.sent < EACH && sender.unsent() < (1 << 20) {
                let len = stream.credit.min(EACH - stream.sent).min(FRAME_LEN);
                sender.queue_header(crate::frames::DATA, 0, *id, len);
                sender.queue(&block[..len as usize]);
                stream.sent += len;
                stream.credit -= len;
                payload += u64::from(len);
            }
            stream.idle += 1;
            if stream.sent == EACH || stream.idle > IDLE_TURNS_MAX {
                done.push(*id);
            }
        }
        for id in done {
            filling.remove(&id);
            sender.end(id, false);
            finished += 1;
        }
        if finished + refused >= wanted || reins.is_late() {
            reins.stand();
        }
    }
    reins.did("streams", finished as u64);
    reins.did("refused", refused as u64);
    reins.did("payload_bytes", payload);
    reins.did("held_bytes_at_most", payload - reader.payload_received().min(payload));
    Ok(())
}

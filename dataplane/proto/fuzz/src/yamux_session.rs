//! A yamux session under any order of headers, requests and time: its counts hold and it lets go of everything
//! (dmsg-wire 5).
//!
//! Input: steps of six bytes: what to do, stream, flags, and a number of 24 bits.

use ringwire_proto::yamux::{Config, Flags, Header, Kind, Payload, Session, Timeout};

/// Plays the steps until a violation or the end, then closes what is left.
pub fn run(data: &[u8]) {
    let config = Config { streams_max: 6, accept_backlog: 4, open_backlog: 3, ..Config::server() };
    let mut session: Session<u8> = Session::new(config, 0);
    let mut now = 0;
    for step in data.chunks_exact(6).take(3000) {
        if !play(&mut session, &mut now, step) {
            break;
        }
        check(&session);
    }
    let ids: Vec<u32> = session.streams().map(|(id, _)| id).collect();
    for id in ids {
        session.reset(id);
    }
    assert_eq!((session.stream_count(), session.inbound_count()), (0, 0), "a stream was left");
    let mut left = 0;
    while session.poll_control().is_some() {
        left += 1;
        assert!(left < 5000, "control without end");
    }
}

/// False when the session is over.
fn play(session: &mut Session<u8>, now: &mut u64, step: &[u8]) -> bool {
    let id = u32::from(step[1] % 16);
    let number = u32::from_be_bytes([0, step[3], step[4], step[5]]);
    let length = if step[2] & 0x80 == 0 { number >> 6 } else { number << 8 };
    match step[0] % 16 {
        0..5 => {
            let kind = [Kind::Data, Kind::Data, Kind::WindowUpdate, Kind::Ping, Kind::GoAway]
                [usize::from(step[0] % 16)];
            let header = Header { kind, flags: Flags(u16::from(step[2] % 16)), stream: id, length };
            let Ok(incoming) = session.handle_header(*now, &header) else { return false };
            match incoming.payload {
                Payload::None => assert_eq!(header.payload_len(), 0),
                Payload::Deliver(length) | Payload::Discard(length) => {
                    assert_eq!(length, header.payload_len());
                }
            }
            if incoming.opened && step[5] & 1 == 0 {
                session.accept(id, 0);
            }
            if incoming.closed || incoming.reset {
                assert!(session.stream(id).is_none(), "an ended stream is still there");
            }
        }
        5 => session.accept(id, step[5]),
        6 => drop(session.open(*now, step[5])),
        7 | 8 => {
            let credit = session.stream(id).map_or(0, |stream| stream.send_credit());
            assert!(session.reserve(id, length) <= length.min(credit), "more than the credit");
        }
        9 => drop(session.finish(*now, id)),
        10 => drop(session.reset(id)),
        11 | 12 => {
            let length = length.min(session.stream(id).map_or(0, |stream| stream.unconsumed()));
            session.consumed(id, length);
        }
        13 => session.grant_extra(id, length),
        14 => drop(session.poll_control()),
        _ => {
            *now += u64::from(number) << 12;
            while let Some(timeout) = session.handle_timeout(*now) {
                if let Timeout::SessionDead(_) = timeout {
                    return false;
                }
            }
            assert!(session.next_timeout().is_none_or(|at| at > *now), "a timer was left behind");
        }
    }
    true
}

fn check(session: &Session<u8>) {
    let inbound = session.streams().filter(|(_, stream)| !stream.is_local()).count();
    assert_eq!(session.inbound_count() as usize, inbound);
    assert!(inbound <= 6 && session.streams().count() == session.stream_count());
    let unacked = session.streams().filter(|(_, stream)| stream.is_local() && !stream.acked()).count();
    assert!(unacked <= 3, "the open backlog was exceeded");
    assert!(session.next_timeout().is_some(), "keepalive has always a next time");
}

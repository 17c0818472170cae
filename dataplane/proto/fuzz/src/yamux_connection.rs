//! A yamux connection fed with anything, cut anywhere: the same events, output and received bytes as from one piece
//! (dmsg-wire 5).
//!
//! Input: one byte for the mode, one for the length of the pieces; then the raw stream, or steps of five bytes that make
//! mostly legal frames: kind and flags, stream, length, and a byte to repeat.

use ringwire_proto::yamux::{Config, Connection, ConnectionEvent, Flags, Header};

/// Feeds the stream in one piece and in many and compares.
pub fn run(data: &[u8]) {
    let [mode, step, rest @ ..] = data else { return };
    let stream = if mode % 2 == 0 { rest.to_vec() } else { frames(rest) };
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*step).max(1)).collect();
    assert_eq!(feed(&[&stream]), feed(&pieces), "cutting changed the result");
}

fn frames(steps: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for step in steps.chunks_exact(5).take(500) {
        let id = u32::from(step[1] % 8);
        let length = u32::from(step[2]) << (step[3] % 12);
        let flags = [Flags::NONE, Flags::NONE, Flags::SYN, Flags::SYN, Flags::FIN, Flags::RST, Flags::ACK]
            [usize::from(step[0] >> 3) % 7];
        let header = match step[0] & 7 {
            0..4 => Header::data(id, length).with_flags(flags),
            4..6 => Header::window_update(id, length).with_flags(flags),
            6 => Header::ping(length),
            _ => Header::pong(length),
        };
        stream.extend_from_slice(&header.encode());
        stream.resize(stream.len() + header.payload_len() as usize, step[4]);
    }
    stream
}

type Result = (Vec<ConnectionEvent>, Vec<u8>, Vec<(u32, Vec<u8>)>);

fn feed(pieces: &[&[u8]]) -> Result {
    let mut connection = Connection::new(Config::server(), 0);
    let own = connection.open(0).ok();
    for piece in pieces {
        connection.push(0, piece);
    }
    let mut out = Vec::new();
    while connection.poll_transmit(&mut out, 100) > 0 {}
    let events: Vec<ConnectionEvent> = std::iter::from_fn(|| connection.poll_event()).collect();
    let mut received = Vec::new();
    for id in own.into_iter().chain(std::iter::from_fn(|| connection.accept()).collect::<Vec<_>>()) {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(length) = connection.read(id, &mut buffer) {
            if length == 0 {
                break;
            }
            bytes.extend_from_slice(&buffer[..length]);
        }
        received.push((id, bytes));
        connection.close(0, id);
    }
    // The ends of streams must not trip over what was read.
    while connection.poll_transmit(&mut out, 1000) > 0 {}
    (events, out, received)
}

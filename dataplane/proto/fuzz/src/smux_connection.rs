//! An smux connection fed with anything, cut anywhere: the same events, output and received bytes as from one piece
//! (dmsg-wire 6).
//!
//! Input: one byte for the mode, one for the length of the pieces; then the raw stream, or steps of four bytes that make
//! mostly legal frames: command, stream, length, and a byte to repeat.

use ringwire_proto::smux::{Config, Connection, ConnectionEvent, Header, Update, Version};

/// Feeds the stream in one piece and in many and compares.
pub fn run(data: &[u8]) {
    let [mode, step, rest @ ..] = data else { return };
    let version = if mode & 2 == 0 { Version::V1 } else { Version::V2 };
    let stream = if mode & 1 == 0 { rest.to_vec() } else { frames(version, rest) };
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*step).max(1)).collect();
    assert_eq!(feed(version, &[&stream]), feed(version, &pieces), "cutting changed the result");
}

fn frames(version: Version, steps: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for step in steps.chunks_exact(4).take(500) {
        let id = u32::from(step[1] % 8);
        match step[0] % 8 {
            0 | 1 => stream.extend_from_slice(&Header::syn(version, id).encode()),
            2 => stream.extend_from_slice(&Header::fin(version, id).encode()),
            3 => stream.extend_from_slice(&Header::nop(version).encode()),
            4 => {
                let update = Update { consumed: u32::from(step[2]) << 8, window: u32::from(step[3]) << 10 };
                stream.extend_from_slice(&Header::update(id).encode());
                stream.extend_from_slice(&update.encode());
            }
            _ => {
                let length = u16::from(step[2]) << (step[3] % 9);
                stream.extend_from_slice(&Header::push(version, id, length).encode());
                stream.resize(stream.len() + usize::from(length), step[3]);
            }
        }
    }
    stream
}

type Result = (Vec<ConnectionEvent>, Vec<u8>, Vec<(u32, Vec<u8>)>);

fn feed(version: Version, pieces: &[&[u8]]) -> Result {
    let mut connection = Connection::new(Config::server(version), 0);
    let own = connection.open().ok();
    let mut out = Vec::new();
    while connection.poll_transmit(&mut out, 100) > 0 {}
    if let Some(own) = own {
        assert_eq!(connection.write(own, &[7; 1000]), Ok(1000));
    }
    for piece in pieces {
        connection.push(0, piece);
    }
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
        connection.close(id);
    }
    // The ends of streams must not trip over what was read.
    while connection.poll_transmit(&mut out, 1000) > 0 {}
    (events, out, received)
}

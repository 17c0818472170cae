//! An smux session fed with anything, cut anywhere: the same answers as from one piece, and counts that hold
//! (dmsg-wire 6).
//!
//! Input: one byte for the mode, one for the length of the pieces; then the raw stream, or steps of four bytes that make
//! mostly legal frames: command, stream, length, and how much to read.

use ringwire_proto::smux::{
    Config, Control, Cutter, Header, Incoming, OpenError, Payload, Piece, Session, Stream, Update, Version,
};

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
                let length = u16::from(step[2]) << (step[3] % 8);
                stream.extend_from_slice(&Header::push(version, id, length).encode());
                stream.resize(stream.len() + usize::from(length), step[3]);
            }
        }
    }
    stream
}

type Result = (Vec<Incoming<u32>>, Vec<Control>, bool);

fn feed(version: Version, pieces: &[&[u8]]) -> Result {
    let config = Config { streams_max: 6, accept_backlog: 5, ..Config::server(version) };
    let mut session: Session<u32> = Session::new(config, 0);
    let opened = session.open(1);
    assert!(opened.is_ok() || opened == Err(OpenError::IdsExhausted));
    assert_eq!(session.reserve(2, 1), 0, "data before the SYN");
    let mut cutter = Cutter::new(version);
    let (mut answers, mut controls) = (Vec::new(), Vec::new());
    'input: for piece in pieces {
        let mut at = 0;
        while session.may_receive() {
            let answer = match cutter.next(piece, &mut at) {
                Ok(None) => continue 'input,
                Ok(Some(Piece::Payload { .. })) => continue,
                Ok(Some(Piece::Update { stream, update })) => session.handle_update(0, stream, update),
                Ok(Some(Piece::Header(header))) => match session.handle_header(0, &header) {
                    Ok(answer) => answer,
                    Err(_) => return (answers, controls, true),
                },
                Err(_) => return (answers, controls, true),
            };
            answers.push(answer);
            act(&mut session, &answer);
            while let Some(control) = session.poll_control() {
                controls.push(control);
            }
        }
        break;
    }
    let ids: Vec<u32> = session.streams().map(|(id, _)| id).collect();
    for id in ids {
        session.finish(id);
        session.forget(id);
    }
    assert_eq!(session.stream_count(), 0);
    assert!(session.may_receive(), "bytes of forgotten streams are still counted");
    // Ends of streams that were reset may wait still; nothing of a forgotten one does.
    while let Some(control) = session.poll_control() {
        assert!(matches!(control, Control::Header(_)), "an update of a forgotten stream");
    }
    assert_eq!(session.inbound_count(), 0);
    (answers, controls, false)
}

/// Accepts some streams, reads most of what comes, answers some, ends some.
fn act(session: &mut Session<u32>, answer: &Incoming<u32>) {
    let id = answer.stream;
    if answer.opened && id != 5 {
        session.accept(id, id);
    }
    if let Payload::Deliver(length) = answer.payload {
        assert!(session.stream(id).is_some(), "delivered to nobody");
        if length % 7 != 0 {
            session.consumed(id, u32::from(length));
        }
    }
    if answer.fault.is_some() {
        assert!(session.stream(id).is_some_and(Stream::is_broken), "a fault without a broken stream");
        session.reset(id);
        return;
    }
    if answer.credit > 0 {
        let granted = session.reserve(id, u16::MAX);
        assert!(granted <= 32_768, "beyond the largest frame");
    }
    if answer.finished && id != 3 {
        session.finish(id);
    }
}

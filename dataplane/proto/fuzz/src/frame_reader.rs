//! Frames cut anywhere: the same bodies and the same error as from one piece (dmsg-wire 3).
//!
//! Input: one byte for the limit, one for the length of the pieces, then the byte stream.

use ringwire_proto::frame::{FRAME_BODY_MAX, FrameError, FrameReader};

/// Reads the stream in one piece and in many and compares.
pub fn run(data: &[u8]) {
    let [limit, step, stream @ ..] = data else { return };
    let body_max = match limit {
        0 => 0,
        1 => FRAME_BODY_MAX,
        2 => 65_535,
        other => usize::from(*other) * 16,
    };
    let whole = read(body_max, &[stream]);
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*step).max(1)).collect();
    assert_eq!(whole, read(body_max, &pieces), "cutting changed the result");

    let (bodies, error, between) = whole;
    assert!(bodies.iter().all(|body| body.len() <= body_max), "a body exceeds the limit");
    let framed: usize = bodies.iter().map(|body| body.len() + 2).sum();
    assert!(framed <= stream.len(), "bodies out of nothing");
    if error.is_none() {
        assert_eq!(between, framed == stream.len(), "a cut-off frame went unnoticed");
    }
}

type Reading = (Vec<Vec<u8>>, Option<FrameError>, bool);

fn read(body_max: usize, pieces: &[&[u8]]) -> Reading {
    let mut reader = FrameReader::new(body_max);
    let mut bodies = Vec::new();
    for mut piece in pieces.iter().copied() {
        loop {
            match reader.push(&mut piece) {
                Ok(Some(body)) => {
                    bodies.push(body.to_vec());
                    body.fill(0xff);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.push(&mut &[0; 9][..]), Err(error), "the error was forgotten");
                    return (bodies, Some(error), false);
                }
            }
        }
        assert!(piece.is_empty(), "input was left behind");
    }
    let between = reader.is_between_frames();
    (bodies, None, between)
}

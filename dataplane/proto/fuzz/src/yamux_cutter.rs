//! Frames of yamux cut anywhere: the same headers and payload, or the same error, as from one piece (dmsg-wire 5.2).
//!
//! Input: one byte for the length of the pieces, then the byte stream.

use ringwire_proto::yamux::{Cutter, Header, HeaderError, Piece};

/// Cuts the stream in one piece and in many and compares.
pub fn run(data: &[u8]) {
    let [step, stream @ ..] = data else { return };
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(*step).max(1)).collect();
    let whole = cut(&[stream]);
    assert_eq!(whole, cut(&pieces), "cutting changed the result");

    let (frames, error) = whole;
    let framed: usize = frames.iter().map(|(_, payload)| 12 + payload.len()).sum();
    assert!(framed <= stream.len(), "frames out of nothing");
    assert!(error.is_some() || stream.len() - framed < 12, "a frame went unnoticed");
}

type Cut = (Vec<(Header, Vec<u8>)>, Option<HeaderError>);

fn cut(inputs: &[&[u8]]) -> Cut {
    let mut cutter = Cutter::new();
    let mut frames: Vec<(Header, Vec<u8>)> = Vec::new();
    for input in inputs {
        let mut at = 0;
        loop {
            match cutter.next(input, &mut at) {
                Err(error) => return (frames, Some(error)),
                Ok(None) => break,
                Ok(Some(Piece::Header { header, start })) => {
                    if let Some(start) = start {
                        assert_eq!(input[start..start + 12], header.encode());
                    }
                    frames.push((header, Vec::new()));
                }
                Ok(Some(Piece::Payload { range, last })) => {
                    let Some((header, payload)) = frames.last_mut() else {
                        panic!("payload without a header")
                    };
                    payload.extend_from_slice(&input[range]);
                    assert_eq!(last, payload.len() == header.payload_len() as usize);
                }
            }
        }
        assert_eq!(at, input.len(), "input left over");
    }
    (frames, None)
}

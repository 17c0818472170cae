//! Any gob as a stream request or an announcement (dmsg-wire 8.4): what decodes is encoded again and means
//! the same.

use ringwire_proto::gob::GOB_MAX;
use ringwire_proto::object::{Generation, PeerAnnounce, StreamRequest};

/// Decodes, encodes and decodes again.
pub fn run(data: &[u8]) {
    if let Ok(request) = StreamRequest::decode(data) {
        let late = request.encode(Generation::Go2026);
        if late.len() <= GOB_MAX {
            assert_eq!(StreamRequest::decode(&late), Ok(request.clone()));
            let announce = PeerAnnounce { timestamp_ns: request.timestamp_ns, source: None };
            assert_eq!(PeerAnnounce::decode(&late), Ok(announce), "a request is an announcement of nobody");
        }
        let early = request.encode(Generation::Go2024);
        if early.len() <= GOB_MAX {
            let expected = StreamRequest { ip_info: false, geo_info: false, ..request };
            assert_eq!(StreamRequest::decode(&early), Ok(expected));
        }
    }
    if let Ok(announce) = PeerAnnounce::decode(data) {
        assert_eq!(PeerAnnounce::decode(&announce.encode()), Ok(announce));
    }
}

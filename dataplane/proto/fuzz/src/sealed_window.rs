//! Packet numbers in any order against a model that remembers all of them (dmsg-wire 2.7).
//!
//! Input: steps of three bytes: what to do, and a number of 16 bits that moves away from the greatest one so far.

use std::collections::BTreeSet;

use ringwire_proto::aead::{Aead, RustCryptoAead};
use ringwire_proto::noise::DirectionKey;
use ringwire_proto::noise::sealed::{Opener, ReplayError, SealedError, Sealer, WINDOW, WindowReplay};

/// Plays the steps, honest and forged packets mixed.
pub fn run(data: &[u8]) {
    let key = DirectionKey::from_bytes([0x33; 32]);
    let mut opener = Opener::<RustCryptoAead, WindowReplay>::new(&key);
    let mut greatest = 0_u64;
    let mut seen = BTreeSet::new();
    for step in data.chunks_exact(3).take(2000) {
        let distance = u64::from(u16::from_be_bytes([step[1], step[2]]));
        let number = match step[0] & 7 {
            0 => distance,
            1 => u64::MAX - distance,
            2..5 => greatest.saturating_add(distance % 1500),
            _ => greatest.saturating_sub(distance % 1500),
        };
        let forged = step[0] & 0x80 != 0;
        let mut packet = packet(&key, number);
        if forged {
            packet[9] ^= 1;
        }
        let expected = match number {
            0 => Err(SealedError::Replay(ReplayError::Zero)),
            n if greatest.saturating_sub(n) >= WINDOW => Err(SealedError::Replay(ReplayError::TooOld)),
            n if seen.contains(&n) => Err(SealedError::Replay(ReplayError::Repeated)),
            _ if forged => Err(SealedError::BadTag(ringwire_proto::aead::BadTag)),
            _ => Ok(()),
        };
        let opened = opener.open(&mut packet).map(|plaintext| assert_eq!(plaintext, b"payload"));
        assert_eq!(opened, expected, "number {number}, greatest {greatest}");
        if expected.is_ok() {
            seen.insert(number);
            greatest = greatest.max(number);
        }
    }
}

// A sealer gives every number but 0, which is sealed by hand.
fn packet(key: &DirectionKey, number: u64) -> Vec<u8> {
    let mut packet = Vec::new();
    if let Some(before) = number.checked_sub(1) {
        Sealer::<RustCryptoAead>::with_counter(key, before).seal(b"payload", &mut packet);
    } else {
        packet.extend_from_slice(&[0; 8]);
        packet.extend_from_slice(b"payload");
        let tag = RustCryptoAead::new(key.expose()).seal(&[0; 12], &mut packet[8..]);
        packet.extend_from_slice(&tag);
    }
    packet
}

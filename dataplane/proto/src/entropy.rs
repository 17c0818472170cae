//! Where random bytes come from: the caller.
//!
//! In: a request for bytes. Out: bytes that nobody else can predict. The crate draws no randomness of its own; keys
//! ([`SecretKey::generate`](crate::identity::SecretKey::generate)) and handshakes
//! ([`Handshake::new`](crate::noise::Handshake::new)) take an [`Entropy`]. The data plane and the control plane pass
//! the operating system's; simulations and tests pass [`SeededEntropy`].

use sha2::{Digest, Sha256};

/// A source of random bytes.
///
/// Real traffic needs a source that is cryptographically secure and cannot fail: an implementation that can fail
/// ends the process rather than hand out weak bytes.
pub trait Entropy {
    /// Fills `out` completely.
    fn fill(&mut self, out: &mut [u8]);
}

/// Reproducible bytes for tests and simulations only: SHA-256 over the seed and a counter, block after block.
///
/// The same seed gives the same bytes, however the requests are cut. Anybody who knows the seed knows every key, so
/// it must never serve real traffic.
pub struct SeededEntropy {
    seed: [u8; 32],
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl SeededEntropy {
    /// A source whose bytes depend on `seed` alone.
    pub fn new(seed: u64) -> Self {
        let mut wide = [0; 32];
        wide[..8].copy_from_slice(&seed.to_be_bytes());
        Self { seed: wide, counter: 0, block: [0; 32], used: 32 }
    }

    fn next_block(&mut self) {
        let mut hasher = Sha256::new();
        hasher.update(self.seed);
        hasher.update(self.counter.to_be_bytes());
        self.block = hasher.finalize().into();
        self.counter += 1;
        self.used = 0;
    }
}

impl Entropy for SeededEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            if self.used == self.block.len() {
                self.next_block();
            }
            *byte = self.block[self.used];
            self.used += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_bytes_however_cut() {
        let mut whole = [0; 100];
        SeededEntropy::new(7).fill(&mut whole);
        let mut pieces = [0; 100];
        let mut source = SeededEntropy::new(7);
        for piece in pieces.chunks_mut(9) {
            source.fill(piece);
        }
        assert_eq!(whole, pieces);
        let mut other = [0; 100];
        SeededEntropy::new(8).fill(&mut other);
        assert_ne!(whole, other);
    }
}

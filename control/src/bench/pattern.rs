//! The bytes a benchmark moves: different at every offset of every stream, cheap to make and to check.
//!
//! Word `i` of a stream (8 bytes, little-endian) is `seed + i * STEP` with an odd step: every word of a stream differs
//! from every other, so a lost, repeated or moved piece of any length shows at once. One addition per 8 bytes.

/// Odd, so that multiples of it never repeat within 2^64 words; large, so that all bytes of a word change.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

const WORD_BYTES: usize = 8;

/// A place in the pattern of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pattern {
    seed: u64,
    offset: u64,
}

impl Pattern {
    /// The beginning of stream number `stream`.
    pub(super) fn new(stream: u64) -> Self {
        // Far apart, so that two streams do not show the same words nearby.
        Self { seed: (stream + 1).wrapping_mul(0xd1b5_4a32_d192_ed03), offset: 0 }
    }

    /// Bytes made or checked so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Writes the next `out.len()` bytes.
    pub(super) fn fill(&mut self, out: &mut [u8]) {
        let (head, rest) = out.split_at_mut(self.to_boundary(out.len()));
        self.each_byte(head.len(), |index, byte| head[index] = byte);
        let mut word = self.word();
        let (words, tail) = rest.split_at_mut(rest.len() - rest.len() % WORD_BYTES);
        self.offset += words.len() as u64;
        for place in words.chunks_exact_mut(WORD_BYTES) {
            place.copy_from_slice(&word.to_le_bytes());
            word = word.wrapping_add(STEP);
        }
        self.each_byte(tail.len(), |index, byte| tail[index] = byte);
    }

    /// Checks the next `bytes.len()` bytes.
    #[must_use]
    pub(super) fn check(&mut self, bytes: &[u8]) -> bool {
        let (head, rest) = bytes.split_at(self.to_boundary(bytes.len()));
        let mut wrong = 0_u64;
        self.each_byte(head.len(), |index, byte| wrong |= u64::from(head[index] ^ byte));
        let mut word = self.word();
        let words = rest.chunks_exact(WORD_BYTES);
        let tail = words.remainder();
        self.offset += (rest.len() - tail.len()) as u64;
        // No branch inside, so that the compiler checks several words at once.
        for found in words {
            let mut whole = [0; WORD_BYTES];
            whole.copy_from_slice(found);
            wrong |= u64::from_le_bytes(whole) ^ word;
            word = word.wrapping_add(STEP);
        }
        self.each_byte(tail.len(), |index, byte| wrong |= u64::from(tail[index] ^ byte));
        wrong == 0
    }

    /// The word at the current offset.
    fn word(&self) -> u64 {
        self.seed.wrapping_add((self.offset / WORD_BYTES as u64).wrapping_mul(STEP))
    }

    /// Bytes up to the next whole word, at most `length`.
    fn to_boundary(self, length: usize) -> usize {
        let inside = (self.offset % WORD_BYTES as u64) as usize;
        ((WORD_BYTES - inside) % WORD_BYTES).min(length)
    }

    fn each_byte(&mut self, length: usize, mut work: impl FnMut(usize, u8)) {
        for index in 0..length {
            let inside = (self.offset % WORD_BYTES as u64) as usize;
            work(index, self.word().to_le_bytes()[inside]);
            self.offset += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(stream: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        Pattern::new(stream).fill(&mut out);
        out
    }

    #[test]
    fn pieces_of_any_size_are_the_same_pattern() {
        let whole = made(3, 1000);
        for piece in [1, 2, 3, 7, 8, 9, 15, 64, 333] {
            let (mut fill, mut check) = (Pattern::new(3), Pattern::new(3));
            let mut pieces = vec![0; 1000];
            for (place, expected) in pieces.chunks_mut(piece).zip(whole.chunks(piece)) {
                fill.fill(place);
                assert!(check.check(expected), "pieces of {piece}");
            }
            assert_eq!(pieces, whole, "pieces of {piece}");
            assert_eq!(fill, check);
            assert_eq!(fill.offset(), 1000);
        }
    }

    #[test]
    fn one_wrong_bit_anywhere_is_found() {
        let good = made(1, 100);
        for start in 0..9 {
            let mut at_start = Pattern::new(1);
            assert!(at_start.check(&good[..start]));
            for place in start..good.len() {
                let mut bad = good.clone();
                bad[place] ^= 1 << (place % 8);
                assert!(!at_start.clone().check(&bad[start..]), "start {start}, place {place}");
            }
        }
    }

    #[test]
    fn a_moved_piece_and_a_foreign_stream_are_found() {
        let good = made(1, 4096);
        for shift in [1, 8, 64, 1024] {
            assert!(!Pattern::new(1).check(&good[shift..]), "{shift} bytes lost");
        }
        assert!(!Pattern::new(2).check(&good));
    }
}

//! Randomness from the operating system, for the places of `ringwire-proto` that take it as an argument.

use ringwire_proto::entropy::Entropy;

/// The kernel's random number generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    #[allow(
        clippy::expect_used,
        reason = "without randomness no key may be made: there is nothing to fall back to"
    )]
    fn fill(&mut self, out: &mut [u8]) {
        getrandom::fill(out).expect("the kernel's random number generator answers");
    }
}

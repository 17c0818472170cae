//! Seeded randomness: xoshiro256** started by splitmix64 (both public domain algorithms of Blackman and Vigna).

/// A generator whose numbers depend on its seed alone. Not for cryptography.
#[derive(Debug, Clone)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// Starts from a seed; near seeds give unrelated numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut walk = seed;
        Self { state: std::array::from_fn(|_| splitmix(&mut walk)) }
    }

    /// A generator of its own for the part called `label`, so that parts do not disturb each other's numbers. The parent
    /// does not move.
    #[must_use]
    pub fn fork(&self, label: u64) -> Self {
        let mut walk = label;
        Self::new(self.state[0] ^ self.state[3].rotate_left(17) ^ splitmix(&mut walk))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let state = &mut self.state;
        let out = state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = state[1] << 17;
        state[2] ^= state[0];
        state[3] ^= state[1];
        state[1] ^= state[2];
        state[0] ^= state[3];
        state[2] ^= shifted;
        state[3] = state[3].rotate_left(45);
        out
    }

    /// A number below `bound`; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias of this reduction is below 2^-32 for every bound used here.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of `from..=to`; `from` when the range is empty.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from).saturating_add(1))
    }

    /// True `per_million` times in a million.
    pub fn chance(&mut self, per_million: u32) -> bool {
        self.below(1_000_000) < u64::from(per_million)
    }

    /// One of several; the slice must not be empty.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Mixes the order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// A number around 0 with this deviation, close to a normal distribution (a sum of twelve), never beyond six
    /// deviations.
    pub fn normal(&mut self, deviation: u64) -> i64 {
        let sum: u64 = (0..12).map(|_| self.below(1 << 20)).sum();
        let centred = sum as i64 - 6 * (1 << 20);
        ((i128::from(centred) * i128::from(deviation)) >> 20) as i64
    }
}

fn splitmix(walk: &mut u64) -> u64 {
    *walk = walk.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *walk;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_numbers_come_out() {
        // First outputs of splitmix64 from seed 0, as published with the algorithm.
        let mut walk = 0;
        assert_eq!(splitmix(&mut walk), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix(&mut walk), 0x6e78_9e6a_a1b9_65f4);
        // xoshiro256** from state 1, 2, 3, 4: the reference implementation's first outputs.
        let mut random = Random { state: [1, 2, 3, 4] };
        assert_eq!([random.next_u64(), random.next_u64()], [11_520, 0]);
        assert_eq!(random.next_u64(), 1_509_978_240);
    }

    #[test]
    fn numbers_stay_in_their_range_and_chances_are_kept() {
        let mut random = Random::new(5);
        assert!((0..1000).all(|_| (3..=9).contains(&random.range(3, 9))));
        assert_eq!((random.range(4, 4), random.below(0), random.below(1)), (4, 0, 0));
        let hits = (0..100_000).filter(|_| random.chance(250_000)).count();
        assert!((24_000..26_000).contains(&hits), "{hits}");
        let spread: Vec<i64> = (0..10_000).map(|_| random.normal(1000)).collect();
        let within = spread.iter().filter(|value| value.abs() <= 1000).count();
        assert!((6_500..7_200).contains(&within), "{within}");
    }

    #[test]
    fn forks_are_independent_and_repeatable() {
        let random = Random::new(1);
        let (mut a, mut b, mut again) = (random.fork(1), random.fork(2), random.fork(1));
        assert_eq!(a.next_u64(), again.next_u64());
        assert_ne!(a.next_u64(), b.next_u64());
    }
}

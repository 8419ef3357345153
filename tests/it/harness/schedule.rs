//! Random choices from a seed, which is printed when the test fails and can be set again.

/// Choices that follow from a seed.
pub struct Schedule {
    seed: u64,
    state: u64,
}

impl Schedule {
    /// From `FAULT_SEED`, or from a random seed.
    pub fn new() -> Self {
        let given = std::env::var("FAULT_SEED").ok();
        Self::of(given.map_or_else(rand::random, |seed| seed.parse().unwrap()))
    }

    /// From a seed.
    pub fn of(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// An independent schedule for one of several concurrent users.
    pub fn branch(&self, number: usize) -> Self {
        let number = u64::try_from(number).unwrap() + 1;
        Self { seed: self.seed, state: self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// `FAULT_ROUNDS`, if it is set.
    pub fn rounds(few: usize) -> usize {
        let given = std::env::var("FAULT_ROUNDS").ok();
        given.map_or(few, |rounds| rounds.parse().unwrap())
    }

    /// The next choice, below `bound`. SplitMix64.
    pub fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }
}

#[expect(clippy::print_stderr, reason = "printed with the failure")]
impl Drop for Schedule {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("set FAULT_SEED={} to repeat these choices", self.seed);
        }
    }
}

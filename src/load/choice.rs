//! Random numbers, and which one of several is chosen.

use std::sync::Arc;

use super::plan::Choice;

/// The most products or users.
pub(super) const COUNT_MAX: usize = 10_000_000;

/// A generator of random numbers for one thread: SplitMix64, a few instructions for each number.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to 1, without 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to `count`, without `count`.
    #[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below count")]
    fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }
}

/// Draws the index of one of `count` things.
#[derive(Debug, Clone)]
pub(super) enum Chooser {
    Hot,
    Uniform {
        count: usize,
    },
    /// The probability of each index or a lower one.
    Zipf {
        up_to: Arc<[f64]>,
    },
}

impl Chooser {
    pub(super) fn new(choice: Choice, count: usize) -> Self {
        match choice {
            Choice::Hot => Self::Hot,
            Choice::Uniform => Self::Uniform { count },
            Choice::Zipf { exponent } => {
                let mut sum = 0.0;
                let weights = (1..=count).map(|n| weight(n, exponent));
                let sums: Vec<f64> = weights
                    .map(|weight| {
                        sum += weight;
                        sum
                    })
                    .collect();
                Self::Zipf { up_to: sums.into_iter().map(|up_to| up_to / sum).collect() }
            }
        }
    }

    pub(super) fn choose(&self, random: &mut Random) -> usize {
        match self {
            Self::Hot => 0,
            Self::Uniform { count } => random.below(*count),
            Self::Zipf { up_to } => {
                let drawn = random.fraction();
                // The last sum is 1, up to rounding.
                up_to.partition_point(|up_to| *up_to <= drawn).min(up_to.len() - 1)
            }
        }
    }
}

fn weight(n: usize, exponent: f64) -> f64 {
    (n as f64).powf(-exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 200_000;

    fn counts(choice: Choice, count: usize) -> Vec<usize> {
        let (chooser, mut random) = (Chooser::new(choice, count), Random::seeded(7));
        let mut counts = vec![0; count];
        for _ in 0..DRAWS {
            counts[chooser.choose(&mut random)] += 1;
        }
        counts
    }

    #[test]
    fn hot_always_chooses_the_first() {
        assert_eq!(counts(Choice::Hot, 3), [DRAWS, 0, 0]);
    }

    #[test]
    fn uniform_chooses_each_equally_often() {
        for count in counts(Choice::Uniform, 10) {
            assert!(count.abs_diff(DRAWS / 10) < DRAWS / 100, "{count}");
        }
        assert_eq!(counts(Choice::Uniform, 1), [DRAWS]);
    }

    #[test]
    fn zipf_chooses_the_nth_in_proportion_to_its_power() {
        for exponent in [0.5, 1.0, 1.5] {
            let found = counts(Choice::Zipf { exponent }, 1000);
            let sum: f64 = (1..=1000).map(|n| weight(n, exponent)).sum();
            for n in [1, 2, 3, 10, 100] {
                let expected = weight(n, exponent) / sum * DRAWS as f64;
                // Six standard deviations; the seed is fixed.
                let allowed = 6.0 * expected.sqrt() + 1.0;
                let found = found[n - 1] as f64;
                assert!((found - expected).abs() < allowed, "{n}: {found}, not {expected}");
            }
        }
        assert_eq!(counts(Choice::Zipf { exponent: 1.1 }, 1), [DRAWS]);
    }

    #[test]
    fn random_numbers_differ_between_seeds_and_fractions_stay_below_one() {
        let (mut one, mut other) = (Random::seeded(1), Random::seeded(2));
        assert_ne!(one.next(), other.next());
        assert!((0..DRAWS).all(|_| (0.0..1.0).contains(&one.fraction())));
    }
}

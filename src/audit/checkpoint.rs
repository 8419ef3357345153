//! What must hold for a checkpoint: pure checks of its sums against those of the rows that it covers, and when they are
//! compared.
//!
//! Must never: leave a checkpoint without a comparison for more than a day.

use std::{collections::BTreeSet, time::Duration};

use super::Report;
use crate::{
    domain::Partition,
    ledger::{AuditCut, Checkpoint, CheckpointSums},
};

/// What an operator does about a checkpoint that is wrong.
const WHAT_TO_DO: &str = "a stored row was changed or removed, or the checkpoint was changed: see YoinkAuditViolated in \
                          docs/operations.md";

/// A checkpoint is compared with all rows that it covers after this time, and at the latest in the first round after the
/// other: then a row that was altered is found within a day.
const VERIFY_AFTER: Duration = Duration::from_secs(12 * 3600);
const VERIFY_BY: Duration = Duration::from_secs(22 * 3600);

/// Whether a checkpoint that was compared this long ago is to be compared.
pub(super) fn is_due(verified_ago: Duration) -> bool {
    verified_ago >= VERIFY_AFTER
}

/// How many checkpoints a round compares, when they were compared so long ago and a round takes so long: as few as possible,
/// so that rounds take about the same time, and as many as are needed until the oldest one is compared in time.
pub(super) fn comparisons_of_round(verified_ago: &[Duration], round: Duration) -> usize {
    let due = verified_ago.iter().filter(|ago| is_due(**ago)).count();
    let oldest = verified_ago.iter().max().copied().unwrap_or_default();
    let left = VERIFY_BY.saturating_sub(oldest).as_millis();
    let rounds = usize::try_from(left / round.as_millis().max(1)).unwrap_or(usize::MAX);
    due.div_ceil(rounds.max(1))
}

/// A checkpoint covers only orders that were accepted. Returns whether this one does.
pub(super) fn check_accepted(cut: &AuditCut, kept: &Checkpoint, report: &mut Report) -> bool {
    let is_accepted = cut.includes(kept);
    if !is_accepted {
        let AuditCut { partition, epoch, seq, .. } = cut;
        report.violated(
            1,
            format!(
                "partition {partition}: the checkpoint covers orders beyond {epoch}-{seq}, the last one that was accepted"
            ),
        );
    }
    is_accepted
}

/// The sums of a checkpoint are those of the rows that it covers. `now` has the sums of the rows; its request ids are those
/// from `since_ms` on, in the buckets of the checkpoint, or in others (`None`).
pub(super) fn check_checkpoint(
    partition: Partition,
    kept: &CheckpointSums,
    now: &CheckpointSums,
    since_ms: Option<i64>,
    report: &mut Report,
) {
    let violations = report.violations.len();
    let mut require = |kept: i64, now: i64, what: &str| {
        if kept != now {
            report.violated(
                kept - now,
                format!(
                    "partition {partition}: the checkpoint counts {kept} {what}, and the rows that it covers have {now}: \
                     {WHAT_TO_DO}"
                ),
            );
        }
    };
    require(kept.covered.count(), now.covered.count(), "orders");
    let products: BTreeSet<_> = kept.units.keys().chain(now.units.keys()).collect();
    for product in products {
        let units = |of: &CheckpointSums| of.units.get(product).copied().unwrap_or(0);
        require(units(kept), units(now), &format!("confirmed units of product {product}"));
    }
    if let Some(since_ms) = since_ms {
        let buckets: BTreeSet<_> = kept.request_ids.keys().chain(now.request_ids.keys()).collect();
        for bucket in buckets.into_iter().filter(|bucket| **bucket >= since_ms) {
            let count = |of: &CheckpointSums| of.request_ids.get(bucket).copied().unwrap_or(0);
            require(count(kept), count(now), "request ids of a bucket");
        }
    }
    let differs = kept.covered != now.covered || kept.checksum != now.checksum;
    if report.violations.len() == violations && differs {
        report.violated(
            1,
            format!(
                "partition {partition}: the checkpoint covers {} orders, and their rows are not those that it was made \
                 from: {WHAT_TO_DO}",
                kept.covered.count()
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    fn differences(kept: &CheckpointSums, now: &CheckpointSums, since_ms: Option<i64>) -> u64 {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let mut report = Report::default();
        check_checkpoint(partition, kept, now, since_ms, &mut report);
        assert_eq!(report.violations.is_empty(), report.differences == 0);
        report.differences
    }

    /// The longest time without a comparison of one of so many checkpoints in three days of such rounds, in hours, and the
    /// most comparisons of a round. The first `wrong` checkpoints stay due, and are compared before the others.
    fn longest(checkpoints: usize, wrong: usize, round: Duration) -> (f64, usize) {
        let mut ages = vec![Duration::ZERO; checkpoints];
        let (mut longest, mut most) = (Duration::ZERO, 0);
        for _ in 0..Duration::from_secs(72 * 3600).as_millis() / round.as_millis() {
            for age in &mut ages {
                *age += round;
            }
            longest = longest.max(ages[wrong..].iter().max().copied().unwrap());
            let comparisons = comparisons_of_round(&ages, round);
            most = most.max(comparisons);
            let due = ages.iter_mut().enumerate().filter(|(_, age)| is_due(**age));
            for (_, age) in due.take(comparisons).filter(|(at, _)| *at >= wrong) {
                *age = Duration::ZERO;
            }
        }
        (longest.as_secs_f64() / 3600.0, most)
    }

    #[test]
    fn each_checkpoint_is_compared_within_a_day_and_few_in_one_round() {
        for (checkpoints, round_s, most) in
            [(8, 30, 1), (64, 30, 1), (64, 600, 2), (1024, 60, 3), (64, 1800, 6), (64, 36_000, 64)]
        {
            let (hours, found) = longest(checkpoints, 0, Duration::from_secs(round_s));
            assert!(hours < 24.0, "{checkpoints} in rounds of {round_s} s: {hours} h");
            assert!(found <= most, "{checkpoints} in rounds of {round_s} s: {found} in a round");
        }
        // Checkpoints that stay due take the place of others in a round, and do not keep them from being compared in time.
        for (checkpoints, wrong, round_s) in [(8, 1, 30), (64, 5, 30), (64, 63, 600), (64, 5, 1800)]
        {
            let (hours, _) = longest(checkpoints, wrong, Duration::from_secs(round_s));
            assert!(hours < 24.0, "{wrong} of {checkpoints} in rounds of {round_s} s: {hours} h");
        }
        // The time of a round is not known at first; a time in the future shows nothing.
        assert_eq!(comparisons_of_round(&[VERIFY_AFTER; 64], Duration::ZERO), 1);
        assert_eq!(comparisons_of_round(&[Duration::ZERO; 64], Duration::ZERO), 0);
        assert_eq!(comparisons_of_round(&[Duration::MAX, Duration::ZERO], Duration::ZERO), 1);
        assert_eq!(comparisons_of_round(&[], Duration::from_secs(30)), 0);
    }

    #[test]
    fn each_sum_that_differs_is_a_violation() {
        let sums = CheckpointSums {
            units: [("shoe".parse().unwrap(), 5), ("hat".parse().unwrap(), 1)].into(),
            request_ids: [(10, 3), (20, 2)].into(),
            checksum: 7,
            ..CheckpointSums::default()
        };
        assert_eq!(differences(&sums, &sums, Some(10)), 0);
        let units = CheckpointSums {
            units: [("shoe".parse().unwrap(), 4), ("cap".parse().unwrap(), 1)].into(),
            ..sums.clone()
        };
        assert_eq!(differences(&sums, &units, Some(10)), 3);
        let moved = CheckpointSums { request_ids: [(10, 2), (20, 3)].into(), ..sums.clone() };
        assert_eq!(differences(&sums, &moved, Some(10)), 2);
        assert_eq!(differences(&sums, &moved, Some(20)), 1);
        assert_eq!(differences(&sums, &moved, None), 0);
        let altered = CheckpointSums { checksum: 8, ..sums.clone() };
        assert_eq!(differences(&sums, &altered, Some(10)), 1);
    }
}

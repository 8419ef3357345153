//! Which rows of a partition a checkpoint covers, and which are left to read.

/// Seqs of one epoch, from the first to the last. Each of them has exactly one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SeqRange {
    pub(super) epoch: i64,
    pub(super) first: i64,
    pub(super) last: i64,
}

impl SeqRange {
    pub(super) fn count(self) -> i64 {
        self.last - self.first + 1
    }
}

/// Rows whose epoch and seq are within these bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RowRange {
    epochs: (i64, i64),
    seqs: (i64, i64),
}

/// The columns of ranges of rows, as arguments of a statement that unnests them: first and last epoch, first and last seq.
pub(super) type RowRanges = [Vec<i64>; 4];

/// The rows in the given ranges ($1 to $4) of a partition ($5), for FROM. Each state has an index of its own. The bounds of
/// epochs and seqs have an index, whatever the statistics of the table are, and no other plan is cheaper. The last condition
/// follows from the others: before version 18, only such a comparison of rows ends the scan of an index at the last seq.
pub(super) fn rows_in_ranges(columns: &str, state: &str) -> String {
    format!(
        "(SELECT {columns}
            FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[])
                     AS bounds (first_epoch, last_epoch, first_seq, last_seq)
            JOIN reservations r ON r.state = '{state}' AND r.partition = $5
                               AND r.epoch BETWEEN bounds.first_epoch AND bounds.last_epoch
                               AND r.seq BETWEEN bounds.first_seq AND bounds.last_seq
                               AND (r.epoch, r.seq) <= (bounds.last_epoch, bounds.last_seq))"
    )
}

/// The rows of both states.
pub(super) fn decided_in_ranges(columns: &str) -> String {
    let of = |state| rows_in_ranges(columns, state);
    format!("({} UNION ALL {}) AS decided", of("confirmed"), of("voided"))
}

/// The seqs that a checkpoint covers; the default covers none. In the order of their epochs; no two ranges touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Covered(Vec<SeqRange>);

const LOWEST: i64 = i64::MIN;
const HIGHEST: i64 = i64::MAX;

impl Covered {
    /// Ranges in any order, joined where they overlap or touch.
    pub(super) fn new(mut ranges: Vec<SeqRange>) -> Self {
        ranges.retain(|range| range.first <= range.last);
        ranges.sort_unstable();
        let mut joined: Vec<SeqRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(before)
                    if before.epoch == range.epoch
                        && range.first <= before.last.saturating_add(1) =>
                {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    pub(super) fn ranges(&self) -> &[SeqRange] {
        &self.0
    }

    /// With more ranges.
    pub(super) fn with(&self, more: &Self) -> Self {
        Self::new(self.0.iter().chain(&more.0).copied().collect())
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many seqs are covered.
    pub fn count(&self) -> i64 {
        self.0.iter().map(|range| range.count()).sum()
    }

    /// How many seqs of an epoch are covered.
    pub(super) fn count_of(&self, epoch: i64) -> i64 {
        self.of(epoch).map(|range| range.count()).sum()
    }

    /// Whether only seqs up to this one, of this epoch or of earlier epochs, are covered.
    pub(super) fn ends_by(&self, epoch: i64, seq: i64) -> bool {
        self.0.last().is_none_or(|last| (last.epoch, last.last) <= (epoch, seq))
    }

    fn of(&self, epoch: i64) -> impl Iterator<Item = &SeqRange> {
        self.0.iter().filter(move |range| range.epoch == epoch)
    }

    /// The rows that are covered.
    pub(super) fn rows(&self) -> RowRanges {
        columns(self.0.iter().map(|range| RowRange {
            epochs: (range.epoch, range.epoch),
            seqs: (range.first, range.last),
        }))
    }

    /// All other rows of the partition, whatever their epochs and seqs are.
    pub(super) fn other_rows(&self) -> RowRanges {
        let mut rest = Vec::new();
        // All rows before (epoch, seq) are in a range of either kind.
        let (mut epoch, mut seq) = (LOWEST, LOWEST);
        for range in &self.0 {
            if range.epoch > epoch {
                if seq > LOWEST {
                    rest.push(RowRange { epochs: (epoch, epoch), seqs: (seq, HIGHEST) });
                    epoch += 1;
                }
                if epoch < range.epoch {
                    let epochs = (epoch, range.epoch - 1);
                    rest.push(RowRange { epochs, seqs: (LOWEST, HIGHEST) });
                }
                (epoch, seq) = (range.epoch, LOWEST);
            }
            if seq < range.first {
                rest.push(RowRange { epochs: (epoch, epoch), seqs: (seq, range.first - 1) });
            }
            seq = range.last.saturating_add(1);
        }
        if seq > LOWEST {
            rest.push(RowRange { epochs: (epoch, epoch), seqs: (seq, HIGHEST) });
            epoch = epoch.saturating_add(1);
        }
        rest.push(RowRange { epochs: (epoch, HIGHEST), seqs: (LOWEST, HIGHEST) });
        columns(rest.into_iter())
    }
}

fn columns(ranges: impl Iterator<Item = RowRange>) -> RowRanges {
    let mut columns = RowRanges::default();
    for RowRange { epochs, seqs } in ranges {
        for (column, value) in columns.iter_mut().zip([epochs.0, epochs.1, seqs.0, seqs.1]) {
            column.push(value);
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(epoch: i64, first: i64, last: i64) -> SeqRange {
        SeqRange { epoch, first, last }
    }

    fn times(ranges: &RowRanges, epoch: i64, seq: i64) -> usize {
        let [first_epochs, last_epochs, first_seqs, last_seqs] = ranges;
        let epochs = first_epochs.iter().zip(last_epochs);
        let bounds = epochs.zip(first_seqs.iter().zip(last_seqs));
        bounds
            .filter(|((e1, e2), (s1, s2))| {
                (**e1..=**e2).contains(&epoch) && (**s1..=**s2).contains(&seq)
            })
            .count()
    }

    proptest! {
        #[test]
        fn each_row_is_either_covered_or_among_the_others_and_read_once(
            ranges in prop::collection::vec((1..6_i64, 1..30_i64, 0..8_i64), 0..12),
        ) {
            let ranges: Vec<_> =
                ranges.into_iter().map(|(epoch, first, more)| range(epoch, first, first + more)).collect();
            let covered = Covered::new(ranges.clone());
            let (rows, others) = (covered.rows(), covered.other_rows());
            let mut count = 0;
            for epoch in -1..8 {
                for seq in -1..45 {
                    let is_covered = ranges
                        .iter()
                        .any(|r| r.epoch == epoch && (r.first..=r.last).contains(&seq));
                    count += i64::from(is_covered);
                    prop_assert_eq!(times(&rows, epoch, seq), usize::from(is_covered));
                    prop_assert_eq!(times(&others, epoch, seq), usize::from(!is_covered));
                }
            }
            prop_assert_eq!(covered.count(), count);
            prop_assert_eq!((1..6).map(|epoch| covered.count_of(epoch)).sum::<i64>(), count);
            for (epoch, seq) in [(LOWEST, LOWEST), (HIGHEST, HIGHEST), (3, HIGHEST), (3, LOWEST)] {
                prop_assert_eq!(times(&others, epoch, seq), 1);
            }
        }
    }

    #[test]
    fn ranges_that_touch_are_joined() {
        let covered = Covered::new(vec![range(2, 1, 4), range(1, 5, 9), range(1, 1, 4)]);
        assert_eq!(covered.ranges(), [range(1, 1, 9), range(2, 1, 4)]);
        let more = covered.with(&Covered::new(vec![range(2, 6, 7), range(2, 5, 5)]));
        assert_eq!(more.ranges(), [range(1, 1, 9), range(2, 1, 7)]);
        assert!(more.ends_by(2, 7) && more.ends_by(3, 0) && !more.ends_by(2, 6));
        assert!(Covered::default().ends_by(0, 0));
    }

    #[test]
    fn range_without_a_seq_covers_nothing() {
        assert_eq!(Covered::new(vec![range(1, 5, 4)]), Covered::default());
        assert!(Covered::default().is_empty());
        let everything = Covered::default().other_rows();
        assert_eq!(everything, [vec![LOWEST], vec![HIGHEST], vec![LOWEST], vec![HIGHEST]]);
    }
}

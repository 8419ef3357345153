//! Which worker owns which partition: the same in every process that knows the same workers.
//!
//! Each pair of a worker and a partition has a score, a hash of both (rendezvous hashing). Pairs are taken from the highest
//! score down, and a worker takes no more than its share, so the numbers of partitions differ by at most one. When a
//! worker comes or goes, almost only the partitions move that must.
//!
//! Must never: depend on anything but the arguments. Processes of two versions run at the same time during an update.

use std::cmp::Reverse;

use crate::domain::{Partition, PartitionCount};

/// The score of a worker for a number. SplitMix64 mixes FNV-1a, whose high bits depend little on the last bytes.
fn score(worker: &str, number: u16) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in worker.bytes().chain(number.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The owner of each partition among these workers.
pub fn owners<'a>(workers: &[&'a str], partitions: PartitionCount) -> Vec<(Partition, &'a str)> {
    let mut workers = workers.to_vec();
    workers.sort_unstable();
    workers.dedup();
    let count = usize::from(partitions.get());
    if workers.is_empty() {
        return Vec::new();
    }
    let (share, mut more) = (count / workers.len(), count % workers.len());
    let pairs = workers.iter().enumerate().flat_map(|(index, worker)| {
        partitions.all().map(move |partition| (score(worker, partition.number()), index, partition))
    });
    let mut pairs: Vec<(u64, usize, Partition)> = pairs.collect();
    pairs.sort_unstable_by_key(|pair| Reverse(*pair));
    let (mut owners, mut owned) = (vec![None; count], vec![0; workers.len()]);
    for (_, worker, partition) in pairs {
        let owner = &mut owners[partition.index()];
        if owner.is_some() || owned[worker] > share || (owned[worker] == share && more == 0) {
            continue;
        }
        more -= usize::from(owned[worker] == share);
        owned[worker] += 1;
        *owner = Some(workers[worker]);
    }
    partitions.all().filter_map(|partition| Some((partition, owners[partition.index()]?))).collect()
}

/// The partitions that the worker `own` owns, in order, among these workers; `own` may be one of them or not.
pub fn owned_partitions(own: &str, others: &[&str], partitions: PartitionCount) -> Vec<Partition> {
    let workers: Vec<&str> = others.iter().copied().chain([own]).collect();
    let owners = owners(&workers, partitions).into_iter();
    owners.filter(|(_, owner)| *owner == own).map(|(partition, _)| partition).collect()
}

/// Whether the worker `own` is the one that audits, if it and these others audit.
pub fn is_auditor(own: &str, others: &[&str]) -> bool {
    // No partition has this number.
    let rank = |worker: &str| (score(worker, u16::MAX), worker.to_owned());
    others.iter().all(|other| rank(other) <= rank(own))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn partitions(count: u32) -> PartitionCount {
        PartitionCount::try_from(count).unwrap()
    }

    /// The owner of each partition. Asserts that each has one, and that each worker has its share.
    fn checked_owners(workers: &[String], count: u32) -> BTreeMap<Partition, &str> {
        let names: Vec<&str> = workers.iter().map(String::as_str).collect();
        let (mut owned_by, mut numbers) = (BTreeMap::new(), Vec::new());
        for own in &names {
            let owned = owned_partitions(own, &names, partitions(count));
            numbers.push(owned.len());
            for partition in owned {
                assert_eq!(owned_by.insert(partition, *own), None, "two workers own {partition}");
            }
        }
        assert_eq!(owned_by, owners(&names, partitions(count)).into_iter().collect());
        assert_eq!(owned_by.len(), usize::try_from(count).unwrap(), "each partition has an owner");
        let (least, most) = (numbers.iter().min().unwrap(), numbers.iter().max().unwrap());
        assert!(most - least <= 1, "{numbers:?}");
        owned_by
    }

    /// Workers with names as processes have them.
    fn workers(count: usize, seed: usize) -> Vec<String> {
        (0..count).map(|n| format!("{}-{:032x}", 1000 + n, seed * 7919 + n)).collect()
    }

    #[test]
    fn partitions_are_spread_evenly_also_over_more_workers_than_partitions() {
        for (count, number) in [(64, 1), (64, 2), (64, 3), (64, 7), (8, 3), (4, 4), (2, 5), (1, 2)]
        {
            checked_owners(&workers(number, 1), count);
        }
    }

    #[test]
    fn worker_that_comes_or_goes_moves_few_partitions_more_than_its_own() {
        let (mut moved, mut most) = (0, 0);
        let seeds = 200;
        for seed in 0..seeds {
            let three = workers(3, seed);
            let (before, after) = (checked_owners(&three, 64), checked_owners(&three[..2], 64));
            let own = before.values().filter(|owner| **owner == three[2]).count();
            let between_others = before
                .iter()
                .filter(|(partition, owner)| **owner != three[2] && after[partition] != **owner)
                .count();
            assert!((21..=22).contains(&own));
            moved += between_others;
            most = most.max(between_others);
        }
        // A third must move. The names are fixed, so these numbers are as well.
        assert!(moved < 2 * seeds && most <= 6, "{moved} in {seeds} rounds, at most {most}");
    }

    #[test]
    fn one_of_the_workers_audits() {
        for number in 1..6 {
            let workers = workers(number, 2);
            let names: Vec<&str> = workers.iter().map(String::as_str).collect();
            assert_eq!(names.iter().filter(|own| is_auditor(own, &names)).count(), 1);
        }
    }

    #[test]
    fn scores_are_the_same_in_every_version_of_this_program() {
        let scores = |worker| [0, 1, 63].map(|number| score(worker, number));
        let expected = [0x9159_befe_1c1a_1812, 0x1b79_8e78_fbb3_8fa0, 0x2aea_3b6f_aae4_9ab1];
        assert_eq!(scores("1-a"), expected);
        let expected = [0x19a8_5ac4_7bb2_d781, 0x903b_6e0e_dd74_5d56, 0xadd7_8beb_f677_057d];
        assert_eq!(scores("1-b"), expected);
    }
}

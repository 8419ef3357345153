//! `lua/reserve.lua`: one call decides a batch.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{
    Decision, StockError, StockSettings,
    batcher::{Batcher, Limits},
    drain::Drain,
};
use crate::{
    domain::{Epoch, Outcome, Partition, Receipt, ReservationId, Reserve},
    redis::{FenceError, Partitions, Script},
    tasks::Tasks,
};

/// Most requests a script call: about 1.3 ms of Redis at 10 µs each.
pub const MAX_BATCH: usize = 128;
/// Most requests that wait for a partition.
const MAX_QUEUE: usize = 4096;

/// Asks `lua/reserve.lua`.
#[derive(Clone)]
pub(super) struct Reserver {
    partitions: Partitions,
    script: Arc<Script>,
    settings: StockSettings,
    drains: Arc<[Drain]>,
}

impl Reserver {
    pub(super) fn new(partitions: Partitions, settings: StockSettings) -> Self {
        let script = Arc::new(Script::new("reserve", include_str!("../../lua/reserve.lua")));
        let drains = partitions.count().all().map(|_| Drain::default()).collect();
        Self { partitions, script, settings, drains }
    }

    /// Starts the batcher of one partition.
    pub(super) fn start(self, partition: Partition, tasks: &Tasks) -> Batcher<Reserve, Decision> {
        let limits = Limits { batch: MAX_BATCH, queue: MAX_QUEUE };
        let this = Arc::new(self);
        Batcher::start(tasks, limits, move |batch: Vec<Reserve>| {
            let this = this.clone();
            async move { this.decide(partition, &batch).await }
        })
    }

    /// One decision a request, in order.
    async fn decide(&self, partition: Partition, batch: &[Reserve]) -> Vec<Decision> {
        let decisions = self.ask(partition, batch).await;
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for decision in &decisions {
            *counts.entry(label(decision)).or_default() += 1;
        }
        for (outcome, count) in counts {
            self.partitions.metrics().decided(outcome, count);
        }
        decisions
    }

    async fn ask(&self, partition: Partition, batch: &[Reserve]) -> Vec<Decision> {
        self.partitions.metrics().batch(batch.len());
        // Nobody is under way where nobody may be.
        if let Err(error) = self.partitions.selling_epoch(partition) {
            return batch.iter().map(|_| Err(error.clone().into())).collect();
        }
        let randoms: Vec<u64> = batch.iter().map(|_| ReservationId::draw_random()).collect();
        // Until every accept of this call was seen (R10).
        let _taking = self.partitions.take(partition);
        match self.call(partition, batch, &randoms).await {
            Err(error) => batch.iter().map(|_| Err(error.clone().into())).collect(),
            Ok((epoch, answers)) => {
                let (drain, backlog_max_entries) =
                    (&self.drains[partition.index()], self.settings.backlog_max_entries);
                let decode = |(random, answer): (u64, &String)| {
                    decode(answer, Asked { partition, epoch, random, drain, backlog_max_entries })
                        .unwrap_or_else(|| Err(FenceError::Malformed(vec![answer.clone()]).into()))
                };
                let decisions: Vec<Decision> =
                    randoms.into_iter().zip(&answers).map(decode).collect();
                // A duplicate may be the first that anybody hears of its accept.
                let told = decisions.iter().filter_map(|decision| match decision {
                    Ok(Outcome::Accepted(receipt) | Outcome::Duplicate(receipt)) => {
                        Some(receipt.reservation_id)
                    }
                    _ => None,
                });
                let told = told.filter(|id| id.epoch() == epoch).map(|id| id.seq());
                self.partitions.saw(partition, epoch, told.max().unwrap_or(0));
                decisions
            }
        }
    }

    async fn call(
        &self,
        partition: Partition,
        batch: &[Reserve],
        randoms: &[u64],
    ) -> Result<(Epoch, Vec<String>), FenceError> {
        let keys = self.partitions.keys();
        let keys = [
            keys.meta(partition),
            keys.stock(partition),
            keys.catalogue(partition),
            keys.claims(partition),
            keys.bought(partition),
            keys.orders(partition),
            keys.lost(partition),
        ];
        let epoch = self.partitions.selling_epoch(partition)?;
        let words = [
            self.settings.idempotency_window_ms.to_string(),
            self.settings.backlog_max_entries.to_string(),
        ];
        let randoms: Vec<String> = randoms.iter().map(|random| format!("{random:x}")).collect();
        let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
        for (request, random) in batch.iter().zip(&randoms) {
            let request_id = request.request.as_ref().map_or("", |id| id.as_str());
            let traceparent = request.traceparent.as_deref().unwrap_or_default();
            let (product, user) = (request.product.as_str(), request.user.as_str());
            // An earlier program leaves an entry of format 2 alone: it would take it for an unrecognized one.
            let format = if request.is_plain() { "1" } else { "2" };
            args.extend([product, user, request_id, random, traceparent, format]);
        }
        let mut answers = self.partitions.run_in(epoch, &self.script, &keys, &args).await?;
        if answers.len() != batch.len() + 1 || answers[0] != "ok" {
            return Err(FenceError::Malformed(answers));
        }
        answers.remove(0);
        Ok((epoch, answers))
    }
}

/// A decision as the label of a metric.
fn label(decision: &Decision) -> &'static str {
    match decision {
        Ok(Outcome::Accepted(_)) => "accepted",
        Ok(Outcome::Duplicate(_)) => "duplicate",
        Ok(Outcome::Lost(_)) => "lost",
        Ok(Outcome::SoldOut) => "sold_out",
        Ok(Outcome::LimitReached { .. }) => "limit_reached",
        Ok(Outcome::NotOpen { .. }) => "not_open",
        Ok(Outcome::Closed) => "closed",
        Ok(Outcome::Stopped) => "stopped",
        Ok(Outcome::UnknownProduct) => "unknown_product",
        Ok(Outcome::BacklogFull { .. }) => "backlog_full",
        Err(_) => "none",
    }
}

/// What the answer to a request needs beside its words.
#[derive(Clone, Copy)]
struct Asked<'a> {
    partition: Partition,
    epoch: Epoch,
    random: u64,
    drain: &'a Drain,
    backlog_max_entries: u64,
}

/// The script's words as a decision; `None` when they are none of the script's.
fn decode(answer: &str, asked: Asked<'_>) -> Option<Decision> {
    let (status, rest) = answer.split_once(' ').unwrap_or((answer, ""));
    let words: Vec<&str> = rest.split(' ').collect();
    let id =
        |epoch, seq, random| ReservationId::new(asked.partition.number(), epoch, seq, random).ok();
    let outcome = match (status, words.as_slice()) {
        ("accepted", [seq, remaining, at]) => Outcome::Accepted(Receipt {
            reservation_id: id(asked.epoch, seq.parse().ok()?, asked.random)?,
            reserved_at_ms: at.parse().ok()?,
            remaining: remaining.parse().ok()?,
        }),
        ("duplicate", [entry, random, at, remaining]) => {
            let (epoch, seq) = entry.split_once('-')?;
            let random = u64::from_str_radix(random, 16).ok()?;
            Outcome::Duplicate(Receipt {
                reservation_id: id(Epoch(epoch.parse().ok()?), seq.parse().ok()?, random)?,
                reserved_at_ms: at.parse().ok()?,
                remaining: remaining.parse().ok()?,
            })
        }
        ("lost", [entry, random]) => {
            let (epoch, seq) = entry.split_once('-')?;
            let random = u64::from_str_radix(random, 16).ok()?;
            Outcome::Lost(id(Epoch(epoch.parse().ok()?), seq.parse().ok()?, random)?)
        }
        ("sold_out", _) => Outcome::SoldOut,
        ("limit_reached", [limit]) => Outcome::LimitReached { limit: limit.parse().ok()? },
        ("not_open", [opens]) => Outcome::NotOpen { opens_at_ms: opens.parse().ok()? },
        ("closed", _) => Outcome::Closed,
        ("stopped", _) => Outcome::Stopped,
        ("unknown_product", _) => Outcome::UnknownProduct,
        ("backlog_full", [left]) => {
            let (left, full) = (left.parse().ok()?, asked.backlog_max_entries);
            Outcome::BacklogFull { retry_after: asked.drain.wait(Instant::now(), left, full) }
        }
        ("not_applied", _) => return Some(Err(StockError::Refused(rest.to_owned()))),
        _ => return None,
    };
    Some(Ok(outcome))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    fn asked(drain: &Drain) -> Asked<'_> {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        Asked { partition, epoch: Epoch(2), random: 0xabc, drain, backlog_max_entries: 9 }
    }

    #[test]
    fn every_status_that_the_script_names_is_understood() {
        let script = include_str!("../../lua/reserve.lua");
        for (named, answer) in [
            ("accepted", "accepted 7 12 1700000000000"),
            ("duplicate", "duplicate 1-5 abc 1700000000000 12"),
            ("lost", "lost 1-5 abc"),
            ("sold_out", "sold_out"),
            ("limit_reached", "limit_reached 2"),
            ("not_open", "not_open 1700000000000"),
            ("closed", "closed"),
            ("stopped", "stopped"),
            ("unknown_product", "unknown_product"),
            ("backlog_full", "backlog_full 17"),
            ("not_applied", "not_applied OOM command not allowed"),
        ] {
            let header = script.lines().take_while(|line| line.starts_with("--"));
            assert!(
                header.into_iter().any(|line| line.contains(named)),
                "{named} is not in the header"
            );
            assert!(decode(answer, asked(&Drain::default())).is_some(), "{answer}");
        }
    }

    #[test]
    fn a_duplicate_names_the_reservation_of_its_own_epoch() {
        let Some(Ok(Outcome::Duplicate(receipt))) =
            decode("duplicate 1-5 ff 1000 9", asked(&Drain::default()))
        else {
            panic!("not a duplicate");
        };
        assert_eq!(receipt.reservation_id, ReservationId::new(3, Epoch(1), 5, 0xff).unwrap());
        assert_eq!((receipt.reserved_at_ms, receipt.remaining), (1000, 9));
    }

    #[test]
    fn words_that_are_not_the_scripts_are_no_decision() {
        for bad in ["", "accepted", "accepted x 1 1", "accepted 1 1", "duplicate 1 a 1 1", "maybe"]
        {
            assert!(decode(bad, asked(&Drain::default())).is_none(), "{bad}");
        }
    }
}

//! `lua/reserve.lua`: one call decides a batch.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Decision, StockError, StockSettings,
    batcher::{Batcher, Limits},
    store_rate::StoreRate,
};
use crate::{
    domain::{
        Epoch, Outcome, Partition, PartitionEpoch, Receipt, ReservationId, ReserveRequest,
        parse_claim,
    },
    redis::{Partitions, RedisCallError, script},
    tasks::Tasks,
    telemetry::Metrics,
};

/// The most requests per script call: about 1.3 ms of Redis at 10 µs each.
const BATCH_MAX: usize = 128;
/// The most requests that wait for a partition.
const QUEUE_MAX: usize = 4096;

script!(RESERVE: String = "reserve", include_str!("../../lua/reserve.lua"),
    [Meta, Stock, Catalogue, Idempotency, Bought, Orders, Lost] {
    ["ok", answers] => answers.to_owned(),
});

/// Calls `lua/reserve.lua`.
#[derive(Clone)]
pub(super) struct Reserver {
    partitions: Partitions,
    settings: StockSettings,
    metrics: Metrics,
    store_rates: Arc<[StoreRate]>,
}

impl Reserver {
    pub(super) fn new(partitions: Partitions, settings: StockSettings, metrics: Metrics) -> Self {
        let store_rates = partitions.count().all().map(|_| StoreRate::default()).collect();
        Self { partitions, settings, metrics, store_rates }
    }

    /// Starts the batcher of one partition.
    pub(super) fn start(
        self,
        partition: Partition,
        tasks: &Tasks,
    ) -> Batcher<ReserveRequest, Decision> {
        let limits = Limits { batch: BATCH_MAX, queue: QUEUE_MAX };
        let this = Arc::new(self);
        Batcher::start(tasks, limits, move |batch: Vec<ReserveRequest>| {
            let this = this.clone();
            async move { this.decide(partition, &batch).await }
        })
    }

    /// One decision per request, in order.
    async fn decide(&self, partition: Partition, batch: &[ReserveRequest]) -> Vec<Decision> {
        self.metrics.record_reserve_batch(batch.len());
        let decisions = match self.decide_open(partition, batch).await {
            Ok(decisions) => decisions,
            Err(error) => batch.iter().map(|_| Err(error.clone().into())).collect(),
        };
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for decision in &decisions {
            *counts.entry(label(decision)).or_default() += 1;
        }
        for (outcome, count) in counts {
            self.metrics.record_outcome(outcome, count);
        }
        decisions
    }

    async fn decide_open(
        &self,
        partition: Partition,
        batch: &[ReserveRequest],
    ) -> Result<Vec<Decision>, RedisCallError> {
        // Checked first, so that a partition that is not open for selling is not recorded as selling below.
        self.partitions.selling_epoch(partition)?;
        let randoms: Vec<u64> = batch.iter().map(|_| ReservationId::draw_random()).collect();
        // Held until the mark has every accept of this call (R10).
        let _selling = self.partitions.begin_selling(partition);
        let (epoch, answers) = self.call(partition, batch, &randoms).await?;
        let (rate, capacity) =
            (&self.store_rates[partition.index()], self.settings.backlog_max_entries);
        let wait = |removed| rate.wait(Instant::now(), removed, capacity);
        let at = PartitionEpoch { partition, epoch };
        let decode = |answer: &str, random| decode(answer, at, random, wait);
        let decisions = decode_all(&answers, randoms.into_iter(), decode)?;
        // A duplicate may be the first report of its accept that any process gets.
        let reported = decisions.iter().filter_map(|decision| match decision {
            Ok(Outcome::Accepted(receipt) | Outcome::Duplicate(receipt)) => {
                Some(receipt.reservation_id)
            }
            _ => None,
        });
        let seqs = reported.filter(|id| id.epoch() == epoch).map(|id| id.seq());
        self.partitions.record_mark(partition, epoch, seqs.max().unwrap_or(0));
        Ok(decisions)
    }

    /// The epoch, and what the script answered.
    async fn call(
        &self,
        partition: Partition,
        batch: &[ReserveRequest],
        randoms: &[u64],
    ) -> Result<(Epoch, String), RedisCallError> {
        // Read again: the partition may have been closed before it was recorded as selling.
        let epoch = self.partitions.selling_epoch(partition)?;
        let settings = [
            self.settings.idempotency_window_ms.to_string(),
            self.settings.backlog_max_entries.to_string(),
        ];
        let randoms: Vec<String> =
            randoms.iter().map(|random| ReservationId::random_text(*random)).collect();
        let mut args: Vec<&str> = Vec::with_capacity(settings.len() + 6 * batch.len());
        args.extend(settings.iter().map(String::as_str));
        for (request, random) in batch.iter().zip(&randoms) {
            let request_id = request.request.as_ref().map_or("", |id| id.as_str());
            let traceparent = request.traceparent.as_deref().unwrap_or_default();
            let (product, user) = (request.product.as_str(), request.user.as_str());
            let plain = if request.is_plain() { "1" } else { "0" };
            args.extend([product, user, request_id, random, traceparent, plain]);
        }
        let at = PartitionEpoch { partition, epoch };
        Ok((epoch, self.partitions.run_in_epoch(at, &RESERVE, &args).await?))
    }
}

/// The decision of each request, in the line of its answer. With more or fewer lines than requests it is not known to which
/// request a line belongs, so none of them is used.
fn decode_all<Q>(
    answers: &str,
    asked: impl ExactSizeIterator<Item = Q>,
    decode: impl Fn(&str, Q) -> Option<Decision>,
) -> Result<Vec<Decision>, RedisCallError> {
    if answers.split('\n').count() != asked.len() {
        return Err(RedisCallError::Malformed(vec![answers.to_owned()]));
    }
    let decode = |(asked, answer): (Q, &str)| {
        decode(answer, asked)
            .unwrap_or_else(|| Err(RedisCallError::Malformed(vec![answer.to_owned()]).into()))
    };
    Ok(asked.zip(answers.split('\n')).map(decode).collect())
}

/// A decision as the label of a metric.
fn label(decision: &Decision) -> &'static str {
    match decision {
        Ok(Outcome::Accepted(_)) => "accepted",
        Ok(Outcome::Duplicate(_)) => "duplicate",
        Ok(Outcome::LostOrUnknown(_)) => "lost_or_unknown",
        Ok(Outcome::SoldOut) => "sold_out",
        Ok(Outcome::LimitReached { .. }) => "limit_reached",
        Ok(Outcome::SaleNotOpen { .. }) => "sale_not_open",
        Ok(Outcome::SaleClosed { .. }) => "sale_closed",
        Ok(Outcome::SaleStopped) => "sale_stopped",
        Ok(Outcome::ProductNotFound) => "product_not_found",
        Ok(Outcome::BacklogFull { .. }) => "backlog_full",
        Err(_) => "undecided",
    }
}

/// The decision in an answer to the request with this random part; `None` for an answer that the script never gives.
/// `wait` is how long to wait for a backlog of which so many entries have been removed.
pub(super) fn decode(
    answer: &str,
    PartitionEpoch { partition, epoch }: PartitionEpoch,
    random: u64,
    wait: impl Fn(i64) -> Duration,
) -> Option<Decision> {
    let (status, rest) = answer.split_once(' ').unwrap_or((answer, ""));
    // One place more than an answer has parts, so that an answer with too many matches none.
    let mut parts = [""; 5];
    let count = rest.split(' ').zip(&mut parts).map(|(part, place)| *place = part).count();
    let outcome = match (status, &parts[..count]) {
        ("accepted", [seq, remaining, at]) => {
            let id = ReservationId::new(partition.number(), epoch, seq.parse().ok()?, random);
            Outcome::Accepted(receipt(id.ok()?, at.parse().ok()?, remaining)?)
        }
        ("duplicate", [entry_id, random, at, remaining]) => {
            let (id, reserved_at_ms) = parse_claim(partition, [entry_id, random, at])?;
            Outcome::Duplicate(receipt(id, reserved_at_ms, remaining)?)
        }
        ("lost_or_unknown", [entry_id, random]) => {
            Outcome::LostOrUnknown(ReservationId::from_entry(partition, entry_id, random)?)
        }
        ("sold_out", _) => Outcome::SoldOut,
        ("limit_reached", [limit]) => Outcome::LimitReached { limit: limit.parse().ok()? },
        ("sale_not_open", [opens]) => Outcome::SaleNotOpen { opens_at_ms: opens.parse().ok()? },
        ("sale_closed", [""]) => Outcome::SaleClosed { closes_at_ms: None },
        ("sale_closed", [closes]) => {
            Outcome::SaleClosed { closes_at_ms: Some(closes.parse().ok()?) }
        }
        ("sale_stopped", _) => Outcome::SaleStopped,
        ("product_not_found", _) => Outcome::ProductNotFound,
        ("backlog_full", [removed]) => {
            Outcome::BacklogFull { retry_after: wait(removed.parse().ok()?) }
        }
        ("not_applied", _) => return Some(Err(StockError::Refused(rest.to_owned()))),
        _ => return None,
    };
    Some(Ok(outcome))
}

fn receipt(reservation_id: ReservationId, reserved_at_ms: i64, remaining: &str) -> Option<Receipt> {
    Some(Receipt { reservation_id, reserved_at_ms, remaining: remaining.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    fn decoded(answer: &str) -> Option<Decision> {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        decode(answer, PartitionEpoch { partition, epoch: Epoch(2) }, 0xabc, |_| Duration::ZERO)
    }

    #[test]
    fn every_status_of_the_script_is_decoded() {
        let script = include_str!("../../lua/reserve.lua");
        for (named, answer) in [
            ("accepted", "accepted 7 12 1700000000000"),
            ("duplicate", "duplicate 1-5 ~000000abc H_?iFP0 12"),
            ("lost_or_unknown", "lost_or_unknown 1-5 ~000000abc"),
            ("sold_out", "sold_out"),
            ("limit_reached", "limit_reached 2"),
            ("sale_not_open", "sale_not_open 1700000000000"),
            ("sale_closed", "sale_closed"),
            ("sale_closed", "sale_closed 1700000000000"),
            ("sale_stopped", "sale_stopped"),
            ("product_not_found", "product_not_found"),
            ("backlog_full", "backlog_full 17"),
            ("not_applied", "not_applied OOM command not allowed"),
        ] {
            let header = script.lines().take_while(|line| line.starts_with("--"));
            assert!(
                header.into_iter().any(|line| line.contains(named)),
                "{named} is not in the header"
            );
            assert!(decoded(answer).is_some(), "{answer}");
        }
    }

    #[test]
    fn duplicate_has_the_reservation_id_of_its_own_epoch() {
        let Some(Ok(Outcome::Duplicate(receipt))) = decoded("duplicate 1-5 ~00000003o H_?iFP0 9")
        else {
            panic!("not a duplicate");
        };
        assert_eq!(receipt.reservation_id, ReservationId::new(3, Epoch(1), 5, 0xff).unwrap());
        assert_eq!((receipt.reserved_at_ms, receipt.remaining), (1_700_000_000_000, 9));
    }

    #[test]
    fn answer_that_the_script_never_gives_is_not_decoded() {
        for bad in ["", "accepted", "accepted x 1 1", "accepted 1 1", "duplicate 1 a 1 1", "maybe"]
        {
            assert!(decoded(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn more_or_fewer_answers_than_requests_are_malformed() {
        let decoded = |answers: &str| {
            let decode = |answer: &str, limit| {
                (answer == "limit").then_some(Ok(Outcome::LimitReached { limit }))
            };
            decode_all(answers, [1, 2].into_iter(), decode)
        };
        let decisions = decoded("limit\nlimit").unwrap();
        let [first, second] = decisions.as_slice() else { panic!("{decisions:?}") };
        assert!(matches!(first, Ok(Outcome::LimitReached { limit: 1 })), "{first:?}");
        assert!(matches!(second, Ok(Outcome::LimitReached { limit: 2 })), "{second:?}");
        // One line that is malformed does not spoil the others.
        assert!(matches!(decoded("limit\n").unwrap().as_slice(), [Ok(_), Err(_)]));
        for answers in ["", "limit", "limit\nlimit\nlimit", "limit\nlimit\n"] {
            let refused = decoded(answers);
            assert!(matches!(refused, Err(RedisCallError::Malformed(_))), "{refused:?}");
        }
    }
}

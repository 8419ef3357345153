//! What must hold for one partition: pure checks of the cut against the rows of the ledger.

use super::Report;
use crate::{
    domain::{Partition, ProductId},
    ledger::{AuditRows, LedgerUnits},
    stream::{Cut, IdempotencyCut, ProductCut},
};

/// The seqs of the cut's epoch that are in a stream, each once.
pub(super) fn waiting_seqs(cut: &Cut) -> Vec<i64> {
    let of_epoch = cut.in_streams.iter().filter(|id| id.epoch() == cut.epoch);
    let mut seqs: Vec<i64> = of_epoch.filter_map(|id| i64::try_from(id.seq()).ok()).collect();
    seqs.sort_unstable();
    seqs.dedup();
    seqs
}

/// Each reservation accepted in this epoch is in exactly one store. The sum of units alone would not show a
/// reservation that is there twice while another one is lost. Returns whether none is missing.
pub(super) fn check_seqs(
    partition: Partition,
    cut: &Cut,
    rows: &AuditRows,
    report: &mut Report,
) -> bool {
    for entry in &cut.unrecognized {
        report.violated(
            1,
            format!("partition {partition}: the entry {entry:?} was not written by this program"),
        );
    }
    let waiting = waiting_seqs(cut).len();
    if waiting != cut.in_streams.len() {
        let what = "its streams hold a reservation twice, or one of another epoch";
        report.violated(1, format!("partition {partition}: {what}"));
    }
    let found = i64::try_from(waiting).unwrap_or(i64::MAX) + rows.decided_at_cut;
    let difference = cut.seq - found;
    if difference != 0 {
        let accepted = cut.seq;
        report.violated(
            difference,
            format!(
                "partition {partition}: {accepted} reservations were accepted in this epoch, {found} are in the \
                 streams or in the ledger (difference {difference})"
            ),
        );
    }
    difference == 0
}

/// No seq has a voided row and another one. Such a row of a seq that a checkpoint covers is in none of its sums.
pub(super) fn check_doubled(partition: Partition, rows: &AuditRows, report: &mut Report) {
    for (epoch, seq) in &rows.doubled {
        let what = format!("order {epoch}-{seq} has more than one row in the ledger");
        report.violated(1, format!("partition {partition}: {what}"));
    }
}

/// Each order's request id is remembered, so that a repeated call gets the same answer and no second unit.
pub(super) fn check_request_ids(
    partition: Partition,
    buckets: &[IdempotencyCut],
    rows: &AuditRows,
    report: &mut Report,
) {
    let (mut orders, mut remembered, mut difference, mut forgotten) = (0, 0, 0, 0);
    for bucket in buckets {
        let of_ledger = rows.request_ids_at_cut.get(&bucket.since_ms).copied().unwrap_or(0);
        let in_bucket = of_ledger + bucket.waiting;
        if bucket.is_kept {
            orders += in_bucket;
            remembered += bucket.remembered;
            difference += (in_bucket - bucket.remembered).abs();
        } else {
            forgotten += in_bucket;
        }
    }
    if difference != 0 {
        report.violated(
            difference,
            format!(
                "partition {partition}: {orders} orders have a request id, but {remembered} request ids are \
                 remembered (difference {difference})"
            ),
        );
    }
    if forgotten > 0 {
        report.notes.push(format!(
            "partition {partition}: the request ids of {forgotten} orders within idempotency_window_ms are not \
             remembered: they were recorded under a shorter idempotency_window_ms; \
             `yoink rebuild --partition {partition}` restores them"
        ));
    }
}

/// Each unit of a product is in exactly one place.
pub(super) fn check_product(
    product: &ProductId,
    redis: ProductCut,
    ledger: LedgerUnits,
    report: &mut Report,
) {
    // Each with its difference; 0 holds.
    let mut require = |difference: i64, what: String| {
        if difference != 0 {
            report.violated(difference, format!("product {product}: {what}"));
        }
    };
    let ProductCut { supply, stock, in_orders, in_dead } = redis;
    let confirmed = ledger.confirmed_at_cut;
    let difference = supply - (stock + in_orders + in_dead + confirmed);
    require(
        difference,
        format!(
            "supply {supply} is not the sum of stock {stock}, in orders {in_orders}, in dead {in_dead} \
             and confirmed {confirmed} (difference {difference})"
        ),
    );
    require(stock.min(0), format!("the stock is negative: {stock} units"));
    require(
        (supply - ledger.supply).max(0),
        format!("Redis has a supply of {supply} units, the ledger granted {}", ledger.supply),
    );
    require(
        (ledger.confirmed - ledger.supply).max(0),
        format!("{} units are confirmed, {} were granted", ledger.confirmed, ledger.supply),
    );
    require(
        ledger.sold - ledger.confirmed,
        format!(
            "the ledger counts {} units as sold and holds {} confirmed reservations",
            ledger.sold, ledger.confirmed
        ),
    );
    if supply < ledger.supply {
        let missing = ledger.supply - supply;
        report
            .unknown
            .push(format!("product {product}: {missing} granted units are not in Redis yet"));
    }
    if ledger.over_limit > 0 {
        let users = ledger.over_limit;
        report.notes.push(format!(
            "product {product}: {users} users hold more than its limit allows now: \
             it was lowered, or set after they bought"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::Verdict, domain::PartitionCount};

    fn report_of(redis: ProductCut, ledger: LedgerUnits) -> Report {
        let mut report = Report::default();
        check_product(&"shoe".parse().unwrap(), redis, ledger, &mut report);
        report
    }

    const REDIS: ProductCut = ProductCut { stock: 5, supply: 10, in_orders: 2, in_dead: 1 };
    const LEDGER: LedgerUnits =
        LedgerUnits { supply: 10, sold: 2, confirmed: 2, confirmed_at_cut: 2, over_limit: 0 };

    #[test]
    fn one_unit_too_many_or_too_few_anywhere_is_a_violation() {
        let violations = |redis, ledger| report_of(redis, ledger).violations.len();
        assert_eq!(violations(REDIS, LEDGER), 0);
        for wrong in [
            ProductCut { stock: 6, ..REDIS },
            ProductCut { stock: 4, ..REDIS },
            ProductCut { in_dead: 0, ..REDIS },
            ProductCut { in_orders: 3, ..REDIS },
            ProductCut { stock: -1, in_orders: 8, ..REDIS },
        ] {
            assert_eq!(violations(wrong, LEDGER), 1, "{wrong:?}");
        }
        assert_eq!(violations(REDIS, LedgerUnits { sold: 3, ..LEDGER }), 1);
        assert_eq!(violations(REDIS, LedgerUnits { supply: 9, ..LEDGER }), 1);
    }

    #[test]
    fn grant_that_is_not_in_redis_yet_is_unknown_and_no_violation() {
        let report = report_of(REDIS, LedgerUnits { supply: 20, ..LEDGER });
        assert_eq!(report.verdict(), Verdict::Unknown);
    }

    #[test]
    fn users_above_a_limit_that_was_lowered_are_a_note() {
        let report = report_of(REDIS, LedgerUnits { over_limit: 1, ..LEDGER });
        assert_eq!((report.verdict(), report.notes.len()), (Verdict::Holds, 1));
    }

    #[test]
    fn forgotten_request_id_is_a_violation_and_an_absent_earlier_bucket_is_a_note() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let bucket = |since_ms, is_kept, remembered, waiting| IdempotencyCut {
            since_ms,
            is_kept,
            remembered,
            waiting,
        };
        let rows =
            AuditRows { request_ids_at_cut: [(0, 5), (10, 2)].into(), ..AuditRows::default() };
        let check = |buckets: &[IdempotencyCut]| {
            let mut report = Report::default();
            check_request_ids(partition, buckets, &rows, &mut report);
            (report.differences, report.notes.len())
        };
        assert_eq!(check(&[bucket(0, true, 6, 1), bucket(10, true, 2, 0)]), (0, 0));
        assert_eq!(check(&[bucket(0, false, 0, 0), bucket(10, true, 2, 0)]), (0, 1));
        // One too many in a bucket does not hide one too few in another.
        assert_eq!(check(&[bucket(0, true, 4, 0), bucket(10, true, 3, 0)]), (2, 0));
    }

    #[test]
    fn order_of_an_epoch_that_is_missing_or_there_twice_is_a_violation() {
        use crate::domain::{Epoch, ReservationId};

        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let check = |waiting: &[u64], decided_at_cut| {
            let id = |seq: &u64| ReservationId::new(3, Epoch(2), *seq, 0).unwrap();
            let cut = Cut {
                epoch: Epoch(2),
                seq: 3,
                products: [].into(),
                in_streams: waiting.iter().map(id).collect(),
                idempotency: Vec::new(),
                unrecognized: Vec::new(),
            };
            let rows = AuditRows { decided_at_cut, ..AuditRows::default() };
            let mut report = Report::default();
            let is_complete = check_seqs(partition, &cut, &rows, &mut report);
            (is_complete, report.violations.len(), report.differences)
        };
        assert_eq!(check(&[3], 2), (true, 0, 0));
        assert_eq!(check(&[3], 1), (false, 1, 1), "one is missing");
        assert_eq!(check(&[3], 3), (false, 1, 1), "one has two rows");
        assert_eq!(check(&[3, 3], 2), (true, 1, 1), "one has two entries");
    }
}

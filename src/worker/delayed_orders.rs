//! Orders that could not be stored and are delayed until another attempt; the delay grows with each attempt.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::pause::UnlistedOrders;
use crate::{ledger::Sqlstate, stream::PendingEntry};

/// The most orders that are delayed; while there are this many, no new entry is read.
const DELAYED_MAX: usize = 1000;
/// The longest delay before another attempt.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

struct Delayed {
    pending: PendingEntry,
    due: Instant,
}

/// The delayed orders of one partition.
pub(super) struct DelayedOrders {
    orders: Vec<Delayed>,
    /// By entry id: how often Postgres refused the order with an unlisted SQLSTATE.
    refusals: HashMap<String, u32>,
    /// The last of these SQLSTATEs.
    sqlstate: Option<Sqlstate>,
    retry_delay: Duration,
}

impl DelayedOrders {
    /// None yet; `retry_delay` is the delay after the first refusal.
    pub(super) fn new(retry_delay: Duration) -> Self {
        Self { orders: Vec::new(), refusals: HashMap::new(), sqlstate: None, retry_delay }
    }

    pub(super) fn is_full(&self) -> bool {
        self.orders.len() >= DELAYED_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// The ids of the entries.
    pub(super) fn entries(&self) -> HashSet<&str> {
        self.orders.iter().map(|order| order.pending.entry.id.as_str()).collect()
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.orders.iter().map(|order| order.due).min()
    }

    /// Takes those that are due, at most `count`.
    pub(super) fn take_due(&mut self, count: usize) -> Vec<PendingEntry> {
        let now = Instant::now();
        let mut taken = 0;
        let due = self.orders.extract_if(.., |order| {
            let take = order.due <= now && taken < count;
            taken += usize::from(take);
            take
        });
        due.map(|order| order.pending).collect()
    }

    /// Drops the orders for which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(&PendingEntry) -> bool) {
        self.orders.retain(|order| keep(&order.pending));
    }

    /// Adds an order that was itself rejected; its delivery count is 1 more than its rejections.
    pub(super) fn add_rejected(&mut self, pending: PendingEntry) {
        let rejections = pending.deliveries.saturating_sub(1);
        self.delay(pending, rejections);
    }

    /// Adds an order that was refused with an unlisted SQLSTATE, which counts no delivery; returns whether this is
    /// its first refusal.
    pub(super) fn add_unlisted(&mut self, pending: PendingEntry, sqlstate: Sqlstate) -> bool {
        self.sqlstate = Some(sqlstate);
        let refusals = self.refusals.entry(pending.entry.id.clone()).or_default();
        *refusals += 1;
        let refusals = *refusals;
        self.delay(pending, refusals);
        refusals == 1
    }

    /// Adds those that were refused before with such a SQLSTATE, and returns the others.
    pub(super) fn add_unlisted_again(&mut self, entries: Vec<PendingEntry>) -> Vec<PendingEntry> {
        let refused = |pending: &PendingEntry| self.refusals.contains_key(&pending.entry.id);
        let (again, others): (Vec<_>, _) = entries.into_iter().partition(refused);
        for pending in again {
            let refusals = self.refusals[&pending.entry.id];
            self.delay(pending, refusals);
        }
        others
    }

    /// The orders that were refused with such a SQLSTATE and are delayed or unsettled in the consumer.
    pub(super) fn unlisted(&mut self, unsettled: &[PendingEntry]) -> Option<UnlistedOrders> {
        if !self.refusals.is_empty() {
            let delayed = self.orders.iter().map(|order| &order.pending);
            let here: HashSet<&str> =
                delayed.chain(unsettled).map(|pending| pending.entry.id.as_str()).collect();
            self.refusals.retain(|entry, _| here.contains(entry.as_str()));
        }
        let orders = self.refusals.len();
        self.sqlstate.filter(|_| orders > 0).map(|sqlstate| UnlistedOrders { orders, sqlstate })
    }

    fn delay(&mut self, pending: PendingEntry, failures: u32) {
        let doublings = failures.saturating_sub(1).min(10);
        let delay = (self.retry_delay * 2u32.pow(doublings)).min(RETRY_DELAY_MAX);
        self.orders.push(Delayed { pending, due: Instant::now() + delay });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Entry;

    fn pending(id: &str) -> PendingEntry {
        PendingEntry { entry: Entry { id: id.to_owned(), fields: Vec::new() }, deliveries: 1 }
    }

    #[test]
    fn unlisted_order_is_delayed_longer_each_time_and_counts_no_delivery() {
        let sqlstate = Sqlstate::new("P0001").unwrap();
        let mut delayed = DelayedOrders::new(Duration::ZERO);
        assert!(delayed.add_unlisted(pending("1-1"), sqlstate));
        assert_eq!(delayed.unlisted(&[]), Some(UnlistedOrders { orders: 1, sqlstate }));
        let due = delayed.take_due(10);
        assert_eq!((due.len(), due[0].deliveries), (1, 1));
        assert_eq!(
            delayed.unlisted(&due),
            Some(UnlistedOrders { orders: 1, sqlstate }),
            "it is unsettled"
        );
        let others = delayed.add_unlisted_again([due, vec![pending("1-2")]].concat());
        assert_eq!(others, [pending("1-2")], "not refused so far");
        assert!(delayed.entries().contains("1-1"));
        let mut slow = DelayedOrders::new(Duration::from_secs(1));
        for times in [1, 2, 4, 8, 16, 30, 30] {
            let before = Instant::now();
            slow.add_unlisted(pending("1-1"), sqlstate);
            let delay = slow.next_due().unwrap() - before;
            assert_eq!(delay.as_secs(), times);
            slow.retain(|_| false);
        }
        assert_eq!(slow.unlisted(&[]), None);
    }
}

//! Orders that could not be stored and are tried again later, each after a delay that grows.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::pause::Kept;
use crate::{ledger::Sqlstate, stream::Delivery};

/// Most orders that wait for another attempt; while there are so many, nothing new is read.
const MAX_SUSPECTS: usize = 1000;
/// Longest wait before another attempt.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

struct Suspect {
    delivery: Delivery,
    due: Instant,
}

/// The orders of one partition that wait for another attempt.
pub(super) struct Suspects {
    waiting: Vec<Suspect>,
    /// By the id of its entry: how often Postgres refused an order with a SQLSTATE that is in no list.
    refusals: HashMap<String, u32>,
    /// The last of these SQLSTATEs.
    sqlstate: Option<Sqlstate>,
    retry_delay: Duration,
}

impl Suspects {
    /// None; each waits so long after its first failure.
    pub(super) fn new(retry_delay: Duration) -> Self {
        Self { waiting: Vec::new(), refusals: HashMap::new(), sqlstate: None, retry_delay }
    }

    pub(super) fn are_too_many(&self) -> bool {
        self.waiting.len() >= MAX_SUSPECTS
    }

    /// The ids of their entries.
    pub(super) fn entries(&self) -> HashSet<&str> {
        self.waiting.iter().map(|suspect| suspect.delivery.entry.id.as_str()).collect()
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.iter().map(|suspect| suspect.due).min()
    }

    /// Takes those that are due, at most `count`.
    pub(super) fn take_due(&mut self, count: usize) -> Vec<Delivery> {
        let now = Instant::now();
        let mut taken = 0;
        let due = self.waiting.extract_if(.., |suspect| {
            let takes = suspect.due <= now && taken < count;
            taken += usize::from(takes);
            takes
        });
        due.map(|suspect| suspect.delivery).collect()
    }

    /// Drops those that do not stand any more.
    pub(super) fn retain(&mut self, stands: impl Fn(&Delivery) -> bool) {
        self.waiting.retain(|suspect| stands(&suspect.delivery));
    }

    /// Adds one that failed by itself; its deliveries tell how often.
    pub(super) fn add(&mut self, delivery: Delivery) {
        let failures = delivery.deliveries.saturating_sub(1);
        self.wait(delivery, failures);
    }

    /// Adds one that was refused with a SQLSTATE that is in no list, and spends no delivery; returns whether
    /// that is the first time.
    pub(super) fn keep(&mut self, delivery: Delivery, sqlstate: Sqlstate) -> bool {
        self.sqlstate = Some(sqlstate);
        let refusals = self.refusals.entry(delivery.entry.id.clone()).or_default();
        *refusals = refusals.saturating_add(1);
        let refusals = *refusals;
        self.wait(delivery, refusals);
        refusals == 1
    }

    /// Adds those that were refused before, and returns the others.
    pub(super) fn keep_again(&mut self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let refused = |delivery: &Delivery| self.refusals.contains_key(&delivery.entry.id);
        let (again, others): (Vec<_>, _) = deliveries.into_iter().partition(refused);
        for delivery in again {
            let refusals = self.refusals[&delivery.entry.id];
            self.wait(delivery, refusals);
        }
        others
    }

    /// What is kept, here or in the consumer's hands, because of such a SQLSTATE.
    pub(super) fn kept(&mut self, held: &[Delivery]) -> Option<Kept> {
        if !self.refusals.is_empty() {
            let waiting = self.waiting.iter().map(|suspect| &suspect.delivery);
            let here: HashSet<&str> =
                waiting.chain(held).map(|delivery| delivery.entry.id.as_str()).collect();
            self.refusals.retain(|entry, _| here.contains(entry.as_str()));
        }
        let orders = self.refusals.len();
        self.sqlstate.filter(|_| orders > 0).map(|sqlstate| Kept { orders, sqlstate })
    }

    fn wait(&mut self, delivery: Delivery, failures: u32) {
        let doublings = failures.saturating_sub(1).min(10);
        let delay = (self.retry_delay * 2u32.pow(doublings)).min(RETRY_DELAY_MAX);
        self.waiting.push(Suspect { delivery, due: Instant::now() + delay });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Entry;

    fn delivery(id: &str) -> Delivery {
        Delivery { entry: Entry { id: id.to_owned(), fields: Vec::new() }, deliveries: 1 }
    }

    #[test]
    fn a_refused_order_waits_longer_each_time_and_spends_no_delivery() {
        let sqlstate = Sqlstate::new("P0001").unwrap();
        let mut suspects = Suspects::new(Duration::ZERO);
        assert!(suspects.keep(delivery("1-1"), sqlstate));
        assert_eq!(suspects.kept(&[]), Some(Kept { orders: 1, sqlstate }));
        let due = suspects.take_due(10);
        assert_eq!((due.len(), due[0].deliveries), (1, 1));
        assert_eq!(suspects.kept(&due), Some(Kept { orders: 1, sqlstate }), "it is in hand");
        let others = suspects.keep_again([due, vec![delivery("1-2")]].concat());
        assert_eq!(others, [delivery("1-2")], "not refused so far");
        assert!(suspects.entries().contains("1-1"));
        let mut slow = Suspects::new(Duration::from_secs(1));
        for times in [1, 2, 4, 8, 16, 30, 30] {
            let before = Instant::now();
            slow.keep(delivery("1-1"), sqlstate);
            let wait = slow.next_due().unwrap() - before;
            assert_eq!(wait.as_secs(), times);
            slow.retain(|_| false);
        }
        assert_eq!(slow.kept(&[]), None);
    }
}

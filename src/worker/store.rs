//! Stores a batch; what cannot be stored is found by halving, and its neighbours are stored.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;

use super::pause::Pause;
use crate::{
    domain::{Epoch, Order, Partition},
    ledger::{Ledger, LedgerError, Mismatch},
    stream::{Delivery, EntryError},
    telemetry::Metrics,
};

/// An order that failed by itself.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) delivery: Delivery,
    pub(super) order: Option<Order>,
    pub(super) reason: String,
    pub(super) sqlstate: Option<String>,
}

/// What became of a batch so far.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    /// In the ledger: to be settled.
    pub(super) stored: Vec<Delivery>,
    /// Voided before: to be released (R6).
    pub(super) voided: Vec<Delivery>,
    /// Something else stands under their ids.
    pub(super) mismatched: Vec<Mismatch>,
    /// Failed by themselves.
    pub(super) failed: Vec<Failure>,
    /// Not tried to the end, and why.
    pub(super) left: Vec<Delivery>,
    pub(super) pause: Option<Pause>,
}

type Batch = Vec<(Delivery, Order)>;

/// Stores as much of a batch as can be stored now.
pub(super) async fn store(
    (ledger, metrics): (&Ledger, &Metrics),
    partition: Partition,
    epoch: Epoch,
    batch: Vec<Delivery>,
) -> Attempt {
    let mut attempt = Attempt::default();
    let mut halves: Vec<Batch> = vec![decode(partition, batch, &mut attempt)];
    while let Some(mut batch) = halves.pop() {
        if batch.is_empty() {
            continue;
        }
        if attempt.pause.is_some() {
            attempt.left.extend(batch.into_iter().map(|(delivery, _)| delivery));
            continue;
        }
        let orders: Vec<&Order> = batch.iter().map(|(_, order)| order).collect();
        let started = Instant::now();
        let stored = AssertUnwindSafe(ledger.store(partition, epoch, &orders)).catch_unwind().await;
        let (reason, sqlstate) = match stored {
            Ok(Ok(stored)) => {
                metrics.stored(started.elapsed(), orders.iter().map(|order| age(order)));
                sort(batch, stored, &mut attempt);
                continue;
            }
            Ok(Err(LedgerError::Rejected { sqlstate, source })) => {
                (source.to_string(), Some(sqlstate))
            }
            Err(_panic) => ("the program panicked while storing it".to_owned(), None),
            Ok(Err(error)) => {
                attempt.pause = Some(error.into());
                attempt.left.extend(batch.into_iter().map(|(delivery, _)| delivery));
                continue;
            }
        };
        let second = batch.split_off(batch.len() / 2);
        match <[_; 1]>::try_from(second) {
            Ok([(delivery, order)]) if batch.is_empty() => {
                attempt.failed.push(Failure { delivery, order: Some(order), reason, sqlstate });
            }
            Ok(one) => halves.extend([Vec::from(one), batch]),
            Err(second) => halves.extend([second, batch]),
        }
    }
    attempt
}

fn decode(partition: Partition, batch: Vec<Delivery>, attempt: &mut Attempt) -> Batch {
    let mut decoded = Vec::with_capacity(batch.len());
    for delivery in batch {
        match delivery.entry.order(partition, &delivery.entry.id) {
            Ok(order) => decoded.push((delivery, order)),
            Err(error @ EntryError::NewerFormat(_)) => {
                attempt.pause = Some(error.into());
                attempt.left.push(delivery);
            }
            Err(error @ EntryError::Malformed(_)) => attempt.failed.push(Failure {
                delivery,
                order: None,
                reason: error.to_string(),
                sqlstate: None,
            }),
        }
    }
    decoded
}

fn sort(batch: Batch, stored: crate::ledger::Stored, attempt: &mut Attempt) {
    for (delivery, order) in batch {
        if stored.voided.contains(&order.id) {
            attempt.voided.push(delivery);
        } else if !stored.mismatched.iter().any(|mismatch| mismatch.id == order.id) {
            attempt.stored.push(delivery);
        }
    }
    attempt.mismatched.extend(stored.mismatched);
}

/// How long ago an order was accepted, by this machine's clock against that of Redis.
fn age(order: &Order) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let accepted = u64::try_from(order.reserved_at_ms).unwrap_or(0);
    now.saturating_sub(Duration::from_millis(accepted))
}

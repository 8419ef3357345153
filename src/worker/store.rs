//! Stores a batch. If an order of it is refused, halves the batch until the order is alone, and stores the
//! others.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;

use super::pause::{Pause, PauseReason};
use crate::{
    domain::{Epoch, Order, Partition},
    ledger::{Ledger, LedgerError, Mismatch, Sqlstate, Stored, code_of},
    stream::{Delivery, EntryError},
    telemetry::Metrics,
};

/// An order that cannot be stored.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) delivery: Delivery,
    pub(super) order: Option<Order>,
    pub(super) reason: String,
    pub(super) sqlstate: Option<String>,
}

/// An order that Postgres refused with an unlisted SQLSTATE.
#[derive(Debug)]
pub(super) struct Unlisted {
    pub(super) delivery: Delivery,
    pub(super) sqlstate: Sqlstate,
    pub(super) reason: String,
}

/// What happened to each entry of a batch.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    /// In the ledger: to be settled.
    pub(super) stored: Vec<Delivery>,
    /// Voided before: their units are to be given back (R6).
    pub(super) voided: Vec<Delivery>,
    /// The ledger holds another order under their ids.
    pub(super) mismatched: Vec<Mismatch>,
    /// Refused, each for a reason of its own.
    pub(super) failed: Vec<Failure>,
    /// Refused with an unlisted SQLSTATE: to be kept, and tried again later.
    pub(super) unlisted: Vec<Unlisted>,
    /// Not stored because of `pause`.
    pub(super) unfinished: Vec<Delivery>,
    pub(super) pause: Option<Pause>,
}

impl Attempt {
    fn entries(&self) -> usize {
        let Self { stored, voided, mismatched, failed, unlisted, unfinished, pause: _ } = self;
        let refused = mismatched.len() + failed.len() + unlisted.len();
        stored.len() + voided.len() + refused + unfinished.len()
    }
}

type Batch = Vec<(Delivery, Order)>;

/// Why a batch was not stored.
enum Fault {
    /// One of its orders cannot be stored.
    Order { reason: String, sqlstate: Option<String> },
    /// It is unknown whether one of its orders is the cause.
    Unlisted { sqlstate: Sqlstate, reason: String },
    /// The cause is not an order.
    Pause(Pause),
}

impl Fault {
    /// Classifies a failure. An unlisted one without a SQLSTATE is no failure of an order; nor is one after
    /// which the attempt gives up.
    fn of(error: LedgerError, give_up: bool) -> Self {
        match error {
            LedgerError::Rejected { sqlstate, source } => {
                Self::Order { reason: source.to_string(), sqlstate: Some(sqlstate) }
            }
            LedgerError::Unlisted { sqlstate: Some(sqlstate), source } if !give_up => {
                Self::Unlisted { sqlstate, reason: source.to_string() }
            }
            LedgerError::Transient { .. }
            | LedgerError::Unlisted { .. }
            | LedgerError::Misconfigured { .. }
            | LedgerError::Inconsistent { .. }
            | LedgerError::InvalidData(_)
            | LedgerError::EpochChanged => Self::Pause(error.into()),
        }
    }
}

/// After this many unlisted failures an attempt that has stored nothing gives up: most likely no order is
/// the cause.
const UNLISTED_MAX: usize = 32;

/// Stores as much of a batch as can be stored now.
pub(super) async fn store(
    ledger: &Ledger,
    metrics: &Metrics,
    partition: Partition,
    epoch: Epoch,
    batch: Vec<Delivery>,
) -> Attempt {
    let mut attempt = Attempt::default();
    let entries = batch.len();
    let (mut stored_any, mut unlisted) = (false, 0);
    let mut halves: Vec<Batch> = vec![decode(partition, batch, &mut attempt)];
    while let Some(batch) = halves.pop() {
        if batch.is_empty() {
            continue;
        }
        if attempt.pause.is_some() {
            attempt.unfinished.extend(batch.into_iter().map(|(delivery, _)| delivery));
            continue;
        }
        let orders: Vec<&Order> = batch.iter().map(|(_, order)| order).collect();
        let stored = AssertUnwindSafe(ledger.store(partition, epoch, &orders)).catch_unwind().await;
        let fault = match stored {
            Ok(Ok(stored)) => {
                metrics.record_stored(orders.iter().map(|order| age(order)));
                stored_any = true;
                add_stored(batch, stored, &mut attempt);
                continue;
            }
            Ok(Err(error)) => {
                if let LedgerError::Unlisted { sqlstate, .. } = &error {
                    metrics.record_unlisted(code_of(*sqlstate));
                    unlisted += 1;
                }
                Fault::of(error, unlisted >= UNLISTED_MAX && !stored_any)
            }
            Err(_panic) => {
                let reason = "this program panicked while it stored this order".to_owned();
                Fault::Order { reason, sqlstate: None }
            }
        };
        halves.extend(split(batch, fault, &mut attempt));
    }
    debug_assert_eq!(attempt.entries(), entries, "an attempt accounts for each entry once");
    attempt
}

/// Sorts a batch that was not stored: a single order by its fault; more than one are returned in halves.
fn split(mut batch: Batch, fault: Fault, attempt: &mut Attempt) -> Vec<Batch> {
    match fault {
        Fault::Pause(pause) => {
            attempt.pause = Some(pause);
            attempt.unfinished.extend(batch.into_iter().map(|(delivery, _)| delivery));
        }
        Fault::Order { .. } | Fault::Unlisted { .. } if batch.len() > 1 => {
            let second = batch.split_off(batch.len() / 2);
            return vec![second, batch];
        }
        Fault::Order { reason, sqlstate } => {
            if let Some((delivery, order)) = batch.pop() {
                attempt.failed.push(Failure { delivery, order: Some(order), reason, sqlstate });
            }
        }
        Fault::Unlisted { sqlstate, reason } => {
            if let Some((delivery, _)) = batch.pop() {
                attempt.unlisted.push(Unlisted { delivery, sqlstate, reason });
            }
        }
    }
    Vec::new()
}

fn decode(partition: Partition, batch: Vec<Delivery>, attempt: &mut Attempt) -> Batch {
    let mut decoded = Vec::with_capacity(batch.len());
    for delivery in batch {
        match delivery.entry.order(partition, &delivery.entry.id) {
            Ok(order) => decoded.push((delivery, order)),
            Err(error @ EntryError::NewerFormat(_)) => {
                let reason = PauseReason::NewerFormat;
                attempt.pause = Some(Pause { reason, source: error.into() });
                attempt.unfinished.push(delivery);
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

fn add_stored(batch: Batch, stored: Stored, attempt: &mut Attempt) {
    for (delivery, order) in batch {
        if stored.voided.contains(&order.id) {
            attempt.voided.push(delivery);
        } else if !stored.mismatched.iter().any(|mismatch| mismatch.id == order.id) {
            tracing::debug!(reservation.id = %order.id, "order stored");
            attempt.stored.push(delivery);
        }
    }
    attempt.mismatched.extend(stored.mismatched);
}

/// How long ago an order was accepted: this machine's clock against that of Redis.
fn age(order: &Order) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let accepted = u64::try_from(order.reserved_at_ms).unwrap_or(0);
    now.saturating_sub(Duration::from_millis(accepted))
}

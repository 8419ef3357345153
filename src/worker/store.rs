//! Stores a batch; what cannot be stored is found by halving, and its neighbours are stored.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;

use super::pause::Pause;
use crate::{
    domain::{Epoch, Order, Partition},
    ledger::{Cause, Ledger, LedgerError, Mismatch, Sqlstate, code_of},
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

/// An order that Postgres refused with a SQLSTATE that is in no list.
#[derive(Debug)]
pub(super) struct Unlisted {
    pub(super) delivery: Delivery,
    pub(super) sqlstate: Sqlstate,
    pub(super) reason: String,
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
    /// Refused alone, for a reason that is in no list: to be kept, and tried again later.
    pub(super) unlisted: Vec<Unlisted>,
    /// Not tried to the end, and why.
    pub(super) left: Vec<Delivery>,
    pub(super) pause: Option<Pause>,
}

type Batch = Vec<(Delivery, Order)>;

/// Why a batch was not stored.
enum Fault {
    /// One of its orders cannot be stored.
    Order { reason: String, sqlstate: Option<String> },
    /// Nobody knows whether it is the fault of one of its orders.
    Unlisted { sqlstate: Sqlstate, source: Cause },
    /// No order's fault.
    Pause(Pause),
}

impl Fault {
    /// A failure that is in no list. Without a code it says nothing of an order.
    fn unlisted(sqlstate: Option<Sqlstate>, source: Cause, give_up: bool) -> Self {
        match sqlstate {
            Some(sqlstate) if !give_up => Self::Unlisted { sqlstate, source },
            sqlstate => Self::Pause(LedgerError::Unlisted { sqlstate, source }.into()),
        }
    }
}

impl From<LedgerError> for Fault {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Rejected { sqlstate, source } => {
                Self::Order { reason: source.to_string(), sqlstate: Some(sqlstate) }
            }
            LedgerError::Unlisted { sqlstate, source } => Self::unlisted(sqlstate, source, false),
            LedgerError::Unavailable { .. }
            | LedgerError::Misconfigured { .. }
            | LedgerError::Inconsistent { .. }
            | LedgerError::GateClosed => Self::Pause(error.into()),
        }
    }
}

/// Failures that are in no list after which an attempt that has stored nothing gives up: most likely it
/// is no order's fault.
const MAX_UNLISTED: usize = 32;

/// Stores as much of a batch as can be stored now.
pub(super) async fn store(
    (ledger, metrics): (&Ledger, &Metrics),
    partition: Partition,
    epoch: Epoch,
    batch: Vec<Delivery>,
) -> Attempt {
    let mut attempt = Attempt::default();
    let (mut stored_any, mut unlisted) = (false, 0);
    let mut halves: Vec<Batch> = vec![decode(partition, batch, &mut attempt)];
    while let Some(batch) = halves.pop() {
        if batch.is_empty() {
            continue;
        }
        if attempt.pause.is_some() {
            attempt.left.extend(batch.into_iter().map(|(delivery, _)| delivery));
            continue;
        }
        let orders: Vec<&Order> = batch.iter().map(|(_, order)| order).collect();
        let stored = AssertUnwindSafe(ledger.store(partition, epoch, &orders)).catch_unwind().await;
        let fault = match stored {
            Ok(Ok(stored)) => {
                metrics.stored(orders.iter().map(|order| age(order)));
                stored_any = true;
                sort(batch, stored, &mut attempt);
                continue;
            }
            Ok(Err(LedgerError::Unlisted { sqlstate, source })) => {
                metrics.unlisted(code_of(sqlstate));
                unlisted += 1;
                Fault::unlisted(sqlstate, source, unlisted >= MAX_UNLISTED && !stored_any)
            }
            Ok(Err(error)) => error.into(),
            Err(_panic) => {
                let reason = "the program panicked while storing it".to_owned();
                Fault::Order { reason, sqlstate: None }
            }
        };
        halves.extend(split(batch, fault, &mut attempt));
    }
    attempt
}

/// The halves of a batch that was not stored; an order alone is put where its fault says.
fn split(mut batch: Batch, fault: Fault, attempt: &mut Attempt) -> Vec<Batch> {
    if let Fault::Pause(pause) = fault {
        attempt.pause = Some(pause);
        attempt.left.extend(batch.into_iter().map(|(delivery, _)| delivery));
        return Vec::new();
    }
    if batch.len() > 1 {
        let second = batch.split_off(batch.len() / 2);
        return vec![second, batch];
    }
    for (delivery, order) in batch {
        match &fault {
            Fault::Order { reason, sqlstate } => attempt.failed.push(Failure {
                delivery,
                order: Some(order),
                reason: reason.clone(),
                sqlstate: sqlstate.clone(),
            }),
            Fault::Unlisted { sqlstate, source } => {
                let (sqlstate, reason) = (*sqlstate, source.to_string());
                attempt.unlisted.push(Unlisted { delivery, sqlstate, reason });
            }
            Fault::Pause(_) => attempt.left.push(delivery),
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
            tracing::debug!(reservation.id = %order.id, "order stored");
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

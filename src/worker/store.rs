//! Stores a batch. If Postgres fails on an order of it, halves the batch until the order is alone, and stores the
//! others.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;

use super::pause::{Pause, PauseReason};
use crate::{
    domain::{Epoch, Order, Partition, ReservationId},
    ledger::{Ledger, LedgerError, Mismatch, Sqlstate, Stored, code_of},
    stream::{EntryError, PendingEntry},
    telemetry::Metrics,
};

/// An order that cannot be stored: the ledger rejected it, or its entry cannot be read.
#[derive(Debug)]
pub(super) struct RejectedOrder {
    pub(super) pending: PendingEntry,
    pub(super) order: Option<Order>,
    pub(super) reason: String,
    pub(super) sqlstate: Option<String>,
}

/// An order that Postgres refused with an unlisted SQLSTATE.
#[derive(Debug)]
pub(super) struct Unlisted {
    pub(super) pending: PendingEntry,
    pub(super) sqlstate: Sqlstate,
    pub(super) reason: String,
}

/// What happened to each entry of a batch.
#[derive(Debug, Default)]
pub(super) struct BatchResult {
    /// In the ledger: to be settled.
    pub(super) stored: Vec<PendingEntry>,
    /// The orders of `stored`, for the calls that wait for them.
    pub(super) confirmed: Vec<ReservationId>,
    /// Voided before: their units are to be given back (R6).
    pub(super) voided: Vec<PendingEntry>,
    /// The ledger holds another order under their ids.
    pub(super) mismatched: Vec<Mismatch>,
    /// Rejected, each for a reason of its own.
    pub(super) rejected: Vec<RejectedOrder>,
    /// Refused with an unlisted SQLSTATE: to be kept, and tried again later.
    pub(super) unlisted: Vec<Unlisted>,
    /// Not stored because of `pause`.
    pub(super) unfinished: Vec<PendingEntry>,
    pub(super) pause: Option<Pause>,
}

impl BatchResult {
    /// Whether every order is in the ledger, and nothing is left to do but to settle their entries.
    pub(super) fn is_all_stored(&self) -> bool {
        self.stored.len() == self.entries() && self.pause.is_none()
    }

    fn entries(&self) -> usize {
        let Self { stored, voided, mismatched, rejected, unlisted, unfinished, .. } = self;
        let not_stored = mismatched.len() + rejected.len() + unlisted.len() + unfinished.len();
        stored.len() + voided.len() + not_stored
    }
}

type Batch = Vec<(PendingEntry, Order)>;

/// Why a batch was not stored.
enum StoreError {
    /// One of its orders cannot be stored.
    Order { reason: String, sqlstate: Option<String> },
    /// It is unknown whether one of its orders is the cause.
    Unlisted { sqlstate: Sqlstate, reason: String },
    /// The cause is not an order.
    Pause(Pause),
}

impl StoreError {
    /// Classifies a failure. An unlisted one without a SQLSTATE is no failure of an order; nor is one after
    /// which the halving of the batch ends, and the partition pauses.
    fn of(error: LedgerError, stop_halving: bool) -> Self {
        match error {
            LedgerError::Rejected { sqlstate, source } => {
                Self::Order { reason: source.to_string(), sqlstate: Some(sqlstate) }
            }
            LedgerError::Unlisted { sqlstate: Some(sqlstate), source } if !stop_halving => {
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

/// After this many unlisted failures, if nothing of the batch is stored, its halving ends, and the partition pauses:
/// most likely no order is the cause.
const UNLISTED_MAX: usize = 32;

/// Stores as much of a batch as can be stored now.
pub(super) async fn store(
    ledger: &Ledger,
    metrics: &Metrics,
    partition: Partition,
    epoch: Epoch,
    batch: Vec<PendingEntry>,
) -> BatchResult {
    let mut result = BatchResult::default();
    let entries = batch.len();
    let (mut stored_any, mut unlisted) = (false, 0);
    let mut halves: Vec<Batch> = vec![decode(partition, batch, &mut result)];
    while let Some(batch) = halves.pop() {
        if batch.is_empty() {
            continue;
        }
        if result.pause.is_some() {
            result.unfinished.extend(batch.into_iter().map(|(pending, _)| pending));
            continue;
        }
        let orders: Vec<&Order> = batch.iter().map(|(_, order)| order).collect();
        let stored = AssertUnwindSafe(ledger.store(partition, epoch, &orders)).catch_unwind().await;
        let error = match stored {
            Ok(Ok(stored)) => {
                metrics.record_stored(orders.iter().map(|order| age(order)));
                stored_any = true;
                add_stored(batch, stored, &mut result);
                continue;
            }
            Ok(Err(error)) => {
                if let LedgerError::Unlisted { sqlstate, .. } = &error {
                    metrics.record_unlisted(code_of(*sqlstate));
                    unlisted += 1;
                }
                StoreError::of(error, unlisted >= UNLISTED_MAX && !stored_any)
            }
            Err(_panic) => {
                let reason = "this program panicked while it stored this order".to_owned();
                StoreError::Order { reason, sqlstate: None }
            }
        };
        halves.extend(split(batch, error, &mut result));
    }
    debug_assert_eq!(result.entries(), entries, "the result has each entry once");
    result
}

/// Sorts a batch that was not stored: a single order by its error; more than one are returned in halves.
fn split(mut batch: Batch, error: StoreError, result: &mut BatchResult) -> Vec<Batch> {
    match error {
        StoreError::Pause(pause) => {
            result.pause = Some(pause);
            result.unfinished.extend(batch.into_iter().map(|(pending, _)| pending));
        }
        StoreError::Order { .. } | StoreError::Unlisted { .. } if batch.len() > 1 => {
            let second = batch.split_off(batch.len() / 2);
            return vec![second, batch];
        }
        StoreError::Order { reason, sqlstate } => {
            if let Some((pending, order)) = batch.pop() {
                result.rejected.push(RejectedOrder {
                    pending,
                    order: Some(order),
                    reason,
                    sqlstate,
                });
            }
        }
        StoreError::Unlisted { sqlstate, reason } => {
            if let Some((pending, _)) = batch.pop() {
                result.unlisted.push(Unlisted { pending, sqlstate, reason });
            }
        }
    }
    Vec::new()
}

fn decode(partition: Partition, batch: Vec<PendingEntry>, result: &mut BatchResult) -> Batch {
    let mut decoded = Vec::with_capacity(batch.len());
    for pending in batch {
        match pending.entry.order(partition, &pending.entry.id) {
            Ok(order) => decoded.push((pending, order)),
            Err(error @ EntryError::NewerFormat(_)) => {
                let reason = PauseReason::NewerFormat;
                result.pause = Some(Pause { reason, source: error.into() });
                result.unfinished.push(pending);
            }
            Err(error @ EntryError::Malformed(_)) => result.rejected.push(RejectedOrder {
                pending,
                order: None,
                reason: error.to_string(),
                sqlstate: None,
            }),
        }
    }
    decoded
}

fn add_stored(batch: Batch, stored: Stored, result: &mut BatchResult) {
    for (pending, order) in batch {
        if stored.voided.contains(&order.id) {
            result.voided.push(pending);
        } else if !stored.mismatched.iter().any(|mismatch| mismatch.id == order.id) {
            tracing::debug!(reservation.id = %order.id, "order stored");
            result.stored.push(pending);
            result.confirmed.push(order.id);
        }
    }
    result.mismatched.extend(stored.mismatched);
}

/// How long ago an order was accepted: this machine's clock against that of Redis.
fn age(order: &Order) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let accepted = u64::try_from(order.reserved_at_ms).unwrap_or(0);
    now.saturating_sub(Duration::from_millis(accepted))
}

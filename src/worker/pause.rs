//! Why consumption of a partition is paused. A pause is no failure of an order, and costs no order a
//! delivery (R4).

use std::{
    fmt,
    sync::{Mutex, MutexGuard},
};

use redis::RedisError;

use crate::{
    dead_letters::DeadLetterError,
    domain::Partition,
    ledger::{LedgerError, Sqlstate, code_of},
    redis::FenceError,
    stock::StockError,
    stream::EntryError,
};

/// The cause of a pause, by who can remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// Postgres is unavailable.
    LedgerUnavailable,
    /// Postgres fails with a SQLSTATE that is in no list, or without one.
    LedgerUnlisted(Option<Sqlstate>),
    /// The schema, the role or the database is wrong: an operator must repair it.
    LedgerMisconfigured,
    /// Redis and the ledger disagree, and the partition was closed.
    Inconsistent,
    /// The partition is fenced, or of another epoch.
    Fenced,
    /// Redis is unavailable.
    RedisUnavailable,
    /// A script returned a reply that this program does not understand: a bug.
    Malformed,
    /// A newer program wrote an entry: this one must be updated.
    NewerFormat,
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LedgerUnavailable => "Postgres is unavailable",
            Self::LedgerUnlisted(sqlstate) => {
                let code = code_of(*sqlstate);
                return write!(f, "Postgres fails with SQLSTATE {code}, which is in no list");
            }
            Self::LedgerMisconfigured => "Postgres refuses: its schema, role or database is wrong",
            Self::Inconsistent => "Redis and the ledger disagree",
            Self::Fenced => "the partition is fenced",
            Self::RedisUnavailable => "Redis is unavailable",
            Self::Malformed => {
                "internal error: Redis sent a reply that this program does not understand"
            }
            Self::NewerFormat => "an entry is of a newer format",
        })
    }
}

/// A batch that cannot be processed now.
#[derive(Debug)]
pub struct Pause {
    /// The cause.
    pub reason: PauseReason,
    /// The error.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Pause {
    /// Whether Postgres refuses with a SQLSTATE that is in no list.
    pub(super) fn is_unlisted(&self) -> bool {
        matches!(self.reason, PauseReason::LedgerUnlisted(Some(_)))
    }
}

impl From<LedgerError> for Pause {
    fn from(error: LedgerError) -> Self {
        let reason = match &error {
            // Rejections of orders are handled before an error becomes a pause.
            LedgerError::Unavailable { .. } | LedgerError::Rejected { .. } => {
                PauseReason::LedgerUnavailable
            }
            LedgerError::Unlisted { sqlstate, .. } => PauseReason::LedgerUnlisted(*sqlstate),
            LedgerError::Misconfigured { .. } => PauseReason::LedgerMisconfigured,
            LedgerError::Inconsistent { .. } => PauseReason::Inconsistent,
            LedgerError::GateClosed => PauseReason::Fenced,
        };
        Self { reason, source: error.into() }
    }
}

impl From<FenceError> for Pause {
    fn from(error: FenceError) -> Self {
        let reason = match &error {
            FenceError::Fenced(_) => PauseReason::Fenced,
            FenceError::Unavailable { .. } => PauseReason::RedisUnavailable,
            FenceError::Malformed(_) => PauseReason::Malformed,
        };
        Self { reason, source: error.into() }
    }
}

impl From<RedisError> for Pause {
    fn from(error: RedisError) -> Self {
        FenceError::from(error).into()
    }
}

impl From<EntryError> for Pause {
    fn from(error: EntryError) -> Self {
        Self { reason: PauseReason::NewerFormat, source: error.into() }
    }
}

impl From<DeadLetterError> for Pause {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Ledger(error) => error.into(),
            DeadLetterError::Fence(error) | DeadLetterError::Stock(StockError::Fence(error)) => {
                error.into()
            }
            DeadLetterError::Stock(error) => {
                Self { reason: PauseReason::RedisUnavailable, source: error.into() }
            }
        }
    }
}

/// Orders of a partition that are kept and tried again, because Postgres refuses them with a SQLSTATE that
/// is in no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnlistedOrders {
    /// How many.
    pub orders: usize,
    /// The SQLSTATE of the last refusal.
    pub sqlstate: Sqlstate,
}

/// What the consumer of a partition reports.
#[derive(Debug, Clone, Copy, Default)]
struct PartitionState {
    pause: Option<PauseReason>,
    unlisted: Option<UnlistedOrders>,
}

/// The pause and the kept orders of every partition.
#[derive(Debug)]
pub struct Pauses {
    by_partition: Mutex<Vec<PartitionState>>,
}

impl Pauses {
    /// No pause, in this number of partitions.
    pub fn none(partitions: u16) -> Self {
        Self { by_partition: Mutex::new(vec![PartitionState::default(); usize::from(partitions)]) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PartitionState>> {
        self.by_partition.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sets a pause or (`None`) ends it; returns the previous one.
    pub fn set(&self, partition: Partition, reason: Option<PauseReason>) -> Option<PauseReason> {
        std::mem::replace(&mut self.lock()[partition.index()].pause, reason)
    }

    /// Sets which orders of a partition are kept, if any.
    pub fn set_unlisted(&self, partition: Partition, orders: Option<UnlistedOrders>) {
        self.lock()[partition.index()].unlisted = orders;
    }

    /// Whether consumption of a partition is paused.
    pub fn is_paused(&self, partition: Partition) -> bool {
        self.lock()[partition.index()].pause.is_some()
    }

    /// The reasons of all pauses, without duplicates.
    pub fn reasons(&self) -> Vec<PauseReason> {
        let mut reasons = Vec::new();
        for reason in self.lock().iter().filter_map(|state| state.pause) {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        reasons
    }

    /// The kept orders, by partition number.
    pub fn unlisted(&self) -> Vec<(usize, UnlistedOrders)> {
        let by_partition = self.lock();
        let states = by_partition.iter().enumerate();
        states.filter_map(|(number, state)| Some((number, state.unlisted?))).collect()
    }
}

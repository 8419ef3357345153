//! Why consumption of a partition stands still. No order's fault, and none pays for it (R4).

use std::{fmt, sync::Mutex};

use redis::RedisError;

use crate::{domain::Partition, fence::FenceError, ledger::LedgerError, stream::EntryError};

/// What stands in the way, by who can remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// Postgres is away, or in a state nobody has thought of.
    LedgerUnavailable,
    /// The schema, the role or the database is wrong: an operator must mend it.
    LedgerMisconfigured,
    /// Redis and the ledger disagree, and the partition was closed.
    Inconsistent,
    /// The partition is fenced, or of another epoch.
    Fenced,
    /// Redis is away.
    RedisUnavailable,
    /// An entry of a newer program: this one must be updated.
    NewerFormat,
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LedgerUnavailable => "Postgres is unavailable",
            Self::LedgerMisconfigured => "Postgres refuses: its schema, role or database is wrong",
            Self::Inconsistent => "Redis and the ledger disagree",
            Self::Fenced => "the partition is fenced",
            Self::RedisUnavailable => "Redis is unavailable",
            Self::NewerFormat => "an entry is of a newer format",
        })
    }
}

/// A step that could not be done now.
#[derive(Debug)]
pub struct Pause {
    /// What stands in the way.
    pub reason: PauseReason,
    /// What happened.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl From<LedgerError> for Pause {
    fn from(error: LedgerError) -> Self {
        let reason = match &error {
            // A rejection is handled before it gets here; what is left of it is nothing we know.
            LedgerError::Unavailable { .. } | LedgerError::Rejected { .. } => {
                PauseReason::LedgerUnavailable
            }
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
            FenceError::Unavailable { .. } | FenceError::Malformed(_) => {
                PauseReason::RedisUnavailable
            }
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

/// Where consumption stands still.
#[derive(Debug)]
pub struct Pauses {
    by_partition: Mutex<Vec<Option<PauseReason>>>,
}

impl Pauses {
    /// None, in `partitions` of them.
    pub fn none(partitions: u16) -> Self {
        Self { by_partition: Mutex::new(vec![None; usize::from(partitions)]) }
    }

    /// Notes a pause or (`None`) its end; returns what stood there before.
    pub fn set(&self, partition: Partition, reason: Option<PauseReason>) -> Option<PauseReason> {
        let mut by_partition =
            self.by_partition.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        std::mem::replace(&mut by_partition[partition.index()], reason)
    }

    /// Whether consumption of a partition stands still.
    pub fn is_paused(&self, partition: Partition) -> bool {
        let by_partition =
            self.by_partition.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        by_partition[partition.index()].is_some()
    }

    /// Each reason that holds somewhere, once.
    pub fn reasons(&self) -> Vec<PauseReason> {
        let by_partition =
            self.by_partition.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut reasons = Vec::new();
        for reason in by_partition.iter().flatten() {
            if !reasons.contains(reason) {
                reasons.push(*reason);
            }
        }
        reasons
    }
}

//! Why consumption of a partition stands still. No order's fault, and none pays for it (R4).

use std::{
    fmt,
    sync::{Mutex, MutexGuard},
};

use redis::RedisError;

use crate::{
    domain::Partition,
    ledger::{LedgerError, Sqlstate, code_of},
    redis::FenceError,
    stream::EntryError,
};

/// What stands in the way, by who can remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// Postgres is away.
    LedgerUnavailable,
    /// Postgres fails in a way that this program does not know.
    LedgerUnlisted(Option<Sqlstate>),
    /// The schema, the role or the database is wrong: an operator must mend it.
    LedgerMisconfigured,
    /// Redis and the ledger disagree, and the partition was closed.
    Inconsistent,
    /// The partition is fenced, or of another epoch.
    Fenced,
    /// Redis is away.
    RedisUnavailable,
    /// Redis gave an answer that this program does not understand.
    Malformed,
    /// An entry of a newer program: this one must be updated.
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
                "internal error: Redis gave an answer that this program does not understand"
            }
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

impl Pause {
    /// Whether Postgres refuses for a reason that is in no list.
    pub(super) fn is_unlisted(&self) -> bool {
        matches!(self.reason, PauseReason::LedgerUnlisted(Some(_)))
    }
}

impl From<LedgerError> for Pause {
    fn from(error: LedgerError) -> Self {
        let reason = match &error {
            // A rejection is handled before it gets here; what is left of it is nothing we know.
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

/// Orders of a partition that are kept and tried again, because Postgres refuses them with a SQLSTATE that
/// is in no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// How many.
    pub orders: usize,
    /// What Postgres called the last refusal.
    pub sqlstate: Sqlstate,
}

/// What a consumer says of its partition.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    pause: Option<PauseReason>,
    kept: Option<Kept>,
}

/// Where consumption stands still, and where orders are kept.
#[derive(Debug)]
pub struct Pauses {
    by_partition: Mutex<Vec<Standing>>,
}

impl Pauses {
    /// None, in `partitions` of them.
    pub fn none(partitions: u16) -> Self {
        Self { by_partition: Mutex::new(vec![Standing::default(); usize::from(partitions)]) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Standing>> {
        self.by_partition.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes a pause or (`None`) its end; returns what stood there before.
    pub fn set(&self, partition: Partition, reason: Option<PauseReason>) -> Option<PauseReason> {
        std::mem::replace(&mut self.lock()[partition.index()].pause, reason)
    }

    /// Notes which orders of a partition are kept, if any.
    pub fn keep(&self, partition: Partition, kept: Option<Kept>) {
        self.lock()[partition.index()].kept = kept;
    }

    /// Whether consumption of a partition stands still.
    pub fn is_paused(&self, partition: Partition) -> bool {
        self.lock()[partition.index()].pause.is_some()
    }

    /// Each reason that holds somewhere, once.
    pub fn reasons(&self) -> Vec<PauseReason> {
        let mut reasons = Vec::new();
        for reason in self.lock().iter().filter_map(|standing| standing.pause) {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        reasons
    }

    /// Where orders are kept: the number of the partition, and what is kept.
    pub fn kept(&self) -> Vec<(usize, Kept)> {
        let by_partition = self.lock();
        let kept = by_partition.iter().enumerate();
        kept.filter_map(|(number, standing)| Some((number, standing.kept?))).collect()
    }
}

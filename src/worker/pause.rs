//! Why consumption of a partition is paused. A pause is no failure of an order, and no delivery is counted for it
//! (R4).

use std::sync::{Mutex, MutexGuard};

use redis::RedisError;

use crate::{
    dead_letters::DeadLetterError,
    domain::Partition,
    ledger::{LedgerError, Sqlstate, code_of},
    redis::RedisCallError,
    stock::StockError,
};

/// The cause of a pause, by who can remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each has its message")]
pub enum PauseReason {
    #[error("Postgres cannot do this now")]
    LedgerTransient,
    #[error("the ledger holds an invalid value in {0}: correct the row")]
    LedgerInvalidData(&'static str),
    #[error("Postgres fails with SQLSTATE {}, which this program does not classify (src/ledger/error.rs)", code_of(*.0))]
    LedgerUnlisted(Option<Sqlstate>),
    #[error("Postgres refuses statements: its schema, role or database is wrong")]
    LedgerMisconfigured,
    #[error("Postgres refuses to void a dead letter or to record it (SQLSTATE {}): correct the constraint or trigger", code_of(*.0))]
    VoidRefused(Option<Sqlstate>),
    /// The partition was closed.
    #[error("Redis and the ledger disagree")]
    Inconsistent,
    /// Or it has another epoch.
    #[error("the partition is fenced")]
    Fenced,
    #[error("Redis is unavailable")]
    RedisUnavailable,
    #[error("internal error: Redis sent a reply that this program does not understand")]
    Malformed,
    #[error("an entry has a newer format than this program reads: update this worker")]
    NewerFormat,
}

/// A batch that cannot be processed now.
#[derive(Debug)]
#[expect(missing_docs, reason = "the cause and the error")]
pub struct Pause {
    pub reason: PauseReason,
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl From<LedgerError> for Pause {
    fn from(error: LedgerError) -> Self {
        let reason = match &error {
            LedgerError::Transient { .. } => PauseReason::LedgerTransient,
            // Of a void or its record: the rejection of an order is handled before it becomes a pause.
            LedgerError::Rejected { sqlstate, .. } => {
                PauseReason::VoidRefused(Sqlstate::new(sqlstate))
            }
            LedgerError::Unlisted { sqlstate, .. } => PauseReason::LedgerUnlisted(*sqlstate),
            LedgerError::InvalidData(column) => PauseReason::LedgerInvalidData(column),
            LedgerError::Misconfigured { .. } => PauseReason::LedgerMisconfigured,
            LedgerError::Inconsistent { .. } => PauseReason::Inconsistent,
            LedgerError::EpochChanged => PauseReason::Fenced,
        };
        Self { reason, source: error.into() }
    }
}

impl From<RedisCallError> for Pause {
    fn from(error: RedisCallError) -> Self {
        let reason = match &error {
            RedisCallError::Fenced(_) => PauseReason::Fenced,
            RedisCallError::Unavailable { .. } => PauseReason::RedisUnavailable,
            RedisCallError::Malformed(_) => PauseReason::Malformed,
        };
        Self { reason, source: error.into() }
    }
}

impl From<RedisError> for Pause {
    fn from(error: RedisError) -> Self {
        RedisCallError::from(error).into()
    }
}

impl From<DeadLetterError> for Pause {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Ledger(error) => error.into(),
            DeadLetterError::Redis(error) | DeadLetterError::Stock(StockError::Redis(error)) => {
                error.into()
            }
            DeadLetterError::Stock(error) => {
                Self { reason: PauseReason::RedisUnavailable, source: error.into() }
            }
        }
    }
}

/// Orders of a partition that are kept and tried again, because Postgres refuses them with an unlisted SQLSTATE.
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

    /// The reason of each pause, once, with the numbers of its partitions.
    pub fn by_reason(&self) -> Vec<(PauseReason, Vec<usize>)> {
        let mut pauses: Vec<(PauseReason, Vec<usize>)> = Vec::new();
        for (number, state) in self.lock().iter().enumerate() {
            let Some(reason) = state.pause else { continue };
            match pauses.iter_mut().find(|(found, _)| *found == reason) {
                Some((_, partitions)) => partitions.push(number),
                None => pauses.push((reason, vec![number])),
            }
        }
        pauses
    }

    /// The kept orders, by partition number.
    pub fn unlisted(&self) -> Vec<(usize, UnlistedOrders)> {
        let by_partition = self.lock();
        let states = by_partition.iter().enumerate();
        states.filter_map(|(number, state)| Some((number, state.unlisted?))).collect()
    }
}

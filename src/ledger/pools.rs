//! Connections by kind of caller: no kind waits for the connections of another.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    Address, Ledger, LedgerError, LookedUp,
    pool::{maintenance, operations, reading},
};
use crate::{
    domain::ReservationId,
    telemetry::{Metrics, PoolReading},
};

/// Look-ups in flight per connection. Most of them wait; the last one waits about 32 times as long as one takes.
const LOOKUPS_PER_CONNECTION: usize = 32;

/// The most connections of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields of `Pools`, and `maintenance` for reads without a bound and imports"
)]
pub struct PoolSizes {
    pub workers: usize,
    pub operators: usize,
    pub lookups: usize,
    pub maintenance: usize,
}

/// Postgres, by kind of caller.
#[derive(Clone)]
pub struct Pools {
    /// For storing orders, voiding dead ones, and calls that wait for the commit (`ack = LEDGER`).
    pub workers: Ledger,
    /// For operators' calls, the catalogue, and opening and rebuilding partitions.
    pub operators: Ledger,
    /// For look-ups of reservations by buyers.
    pub lookups: Lookups,
    /// For the beats of a worker: one connection, so that a beat waits for nothing else that the process does.
    pub beats: Ledger,
}

impl Pools {
    /// Pools of these sizes; connections are opened as they are needed.
    pub fn new(address: &Address, sizes: PoolSizes, metrics: &Metrics) -> anyhow::Result<Self> {
        let maintenance = maintenance(address, sizes.maintenance)?;
        let ledger = |connections| {
            let pool = operations(address, connections)?;
            anyhow::Ok(Ledger::new(pool, maintenance.clone(), address.clone(), metrics.clone()))
        };
        let permits = Arc::new(Semaphore::new(sizes.lookups * LOOKUPS_PER_CONNECTION));
        Ok(Self {
            workers: ledger(sizes.workers)?,
            operators: ledger(sizes.operators)?,
            lookups: Lookups { ledger: ledger(sizes.lookups)?, permits },
            beats: ledger(1)?,
        })
    }

    /// The connections of each pool whose size is a setting, now.
    pub fn connections(&self) -> [(&'static str, PoolReading); 4] {
        [
            ("workers", reading(&self.workers.pool)),
            ("operators", reading(&self.operators.pool)),
            ("lookups", reading(&self.lookups.ledger.pool)),
            ("maintenance", reading(&self.operators.maintenance)),
        ]
    }
}

/// Looks reservations up for buyers, with a limit on how many are in flight.
#[derive(Clone)]
pub struct Lookups {
    ledger: Ledger,
    permits: Arc<Semaphore>,
}

impl Lookups {
    /// Begins a look-up; `None` when too many are in flight.
    pub fn begin(&self) -> Option<Lookup<'_>> {
        let permit = self.permits.try_acquire().ok()?;
        Some(Lookup { ledger: &self.ledger, _permit: permit })
    }
}

/// A look-up, counted until this is dropped.
pub struct Lookup<'a> {
    ledger: &'a Ledger,
    _permit: SemaphorePermit<'a>,
}

impl Lookup<'_> {
    /// What the ledger holds of a reservation.
    pub async fn find(&self, id: ReservationId) -> Result<LookedUp, LedgerError> {
        self.ledger.look_up(id).await
    }
}

//! Connections by kind of caller: no kind waits for connections that another kind has taken.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::Config;

use super::{
    Ledger, LedgerError, LookedUp,
    pool::{long_reads, operations, prepare},
};
use crate::{
    domain::ReservationId,
    telemetry::{Metrics, PoolReading},
};

/// Look-ups under way for each of their connections: most of them wait, for some 32 times as long as one takes.
const LOOKUPS_PER_CONNECTION: usize = 32;

/// The most connections of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSizes {
    /// For storing orders, voiding dead ones, and telling calls that wait for that.
    pub workers: usize,
    /// For operators' calls, the catalogue, and opening and rebuilding partitions.
    pub operators: usize,
    /// For buyers who look a reservation up.
    pub lookups: usize,
    /// For reads that take long: rebuilds, audits, exports.
    pub maintenance: usize,
}

/// Postgres, by kind of caller.
#[derive(Clone)]
pub struct Pools {
    /// For storing orders, voiding dead ones, and telling calls that wait for that.
    pub workers: Ledger,
    /// For operators' calls, the catalogue, and opening and rebuilding partitions.
    pub operators: Ledger,
    /// For buyers who look a reservation up.
    pub lookups: Lookups,
}

impl Pools {
    /// Pools of these sizes; connections are opened as they are needed.
    ///
    /// # Errors
    ///
    /// When the settings make no pool.
    pub fn new(config: Config, sizes: PoolSizes, metrics: &Metrics) -> anyhow::Result<Self> {
        let config = prepare(config);
        let long = long_reads(&config, sizes.maintenance)?;
        let ledger = |connections| {
            let pool = operations(&config, connections)?;
            anyhow::Ok(Ledger::new(pool, long.clone(), config.clone(), metrics.clone()))
        };
        let places = Arc::new(Semaphore::new(sizes.lookups * LOOKUPS_PER_CONNECTION));
        Ok(Self {
            workers: ledger(sizes.workers)?,
            operators: ledger(sizes.operators)?,
            lookups: Lookups { ledger: ledger(sizes.lookups)?, places },
        })
    }

    /// The connections as they are now, by pool.
    pub fn connections(&self) -> [(&'static str, PoolReading); 4] {
        [
            ("workers", self.workers.connections()),
            ("operators", self.operators.connections()),
            ("lookups", self.lookups.ledger.connections()),
            ("maintenance", self.operators.long_connections()),
        ]
    }
}

/// Looks reservations up for buyers; so many at once, and no more.
#[derive(Clone)]
pub struct Lookups {
    ledger: Ledger,
    places: Arc<Semaphore>,
}

impl Lookups {
    /// Begins a look-up; `None` when too many are under way already.
    pub fn begin(&self) -> Option<Lookup<'_>> {
        let permit = self.places.try_acquire().ok()?;
        Some(Lookup { ledger: &self.ledger, _permit: permit })
    }
}

/// A look-up that is under way until this is dropped.
pub struct Lookup<'a> {
    ledger: &'a Ledger,
    _permit: SemaphorePermit<'a>,
}

impl Lookup<'_> {
    /// What the ledger holds of a reservation.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn find(&self, id: ReservationId) -> Result<LookedUp, LedgerError> {
        self.ledger.look_up(id).await
    }
}

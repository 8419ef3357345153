//! When an accepted reservation is answered: at once, or as soon as it is on Redis's disk, on replicas, or in
//! the ledger. The unit is taken by then, and stays taken whether or not the answer arrives.
//!
//! Must never: answer before the requested level is reached, or take a unit for a level that the stores cannot give.

mod replicated;
mod stored;
mod waiters;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::Instant;

use self::{replicated::Replicated, stored::Stored};
use crate::{
    domain::{Ack, ReservationId},
    ledger::Ledger,
    redis::{Connection, Partitions},
    tasks::Tasks,
    telemetry::Metrics,
};

/// Settings of the answers.
#[derive(Debug, Clone, Copy)]
pub struct AckSettings {
    /// For a call that does not choose one.
    pub default: Ack,
    /// How many replicas `Ack::Replica` means.
    pub replicas: u32,
}

impl AckSettings {
    /// A message that names what the default needs and the stores do not offer; `None` if they offer all of it.
    pub fn unmet(&self, Offer { disk, replicas, ledger }: Offer) -> Option<String> {
        match self.default {
            Ack::Disk if !disk => Some(
                "ack = disk needs a Redis with appendonly yes, appendfsync always and \
                 no-appendfsync-on-rewrite no, and whose append-only file is complete"
                    .to_owned(),
            ),
            Ack::Replica if replicas < self.replicas => Some(format!(
                "ack = replica needs {} replicas (ack_replicas), Redis has {replicas}",
                self.replicas
            )),
            Ack::Ledger if !ledger => Some(
                "ack = ledger needs a Postgres with synchronous_commit and fsync on".to_owned(),
            ),
            Ack::Memory | Ack::Disk | Ack::Replica | Ack::Ledger => None,
        }
    }
}

/// What the stores offer now, by their own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Redis answers after its log is on the disk.
    pub disk: bool,
    /// Replicas that are connected and up to date with Redis.
    pub replicas: u32,
    /// A commit of Postgres is on its disk.
    pub ledger: bool,
}

/// Why a call does not get the requested acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// The stores do not offer this now; nothing was done.
    #[error("the stores cannot give ack = {} now", .0.as_str())]
    Unavailable(Ack),
    /// Too many calls wait already; the unit is taken, and the outcome is open.
    #[error("too many reservations wait for their answer")]
    Overloaded,
    /// The ledger records that the order will never be stored; its unit is given back after that.
    #[error("the order could not be stored")]
    Voided,
    /// A store lost it.
    #[error("reservation {0} was lost")]
    Lost(ReservationId),
    /// The service is shutting down; the outcome is open.
    #[error("the service is shutting down")]
    Stopping,
}

/// What the waits use.
pub struct AckStores {
    /// The partitions.
    pub partitions: Partitions,
    /// A connection for waits alone, because they block it.
    pub blocking: Connection,
    /// The ledger.
    pub ledger: Ledger,
    /// Where the length of each wait is recorded.
    pub metrics: Metrics,
}

/// A handle on the calls that wait; clones share it.
#[derive(Clone)]
pub struct Acks {
    metrics: Metrics,
    settings: AckSettings,
    offered: Arc<[AtomicBool; 4]>,
    replicated: Replicated,
    stored: Stored,
}

impl Acks {
    /// Starts the waiting tasks on `tasks`; they end when the last handle is dropped.
    pub fn start(stores: AckStores, settings: AckSettings, tasks: &Tasks) -> Self {
        let AckStores { partitions, blocking, ledger, metrics } = stores;
        let offered = Arc::new([(); 4].map(|()| AtomicBool::new(false)));
        let replicated = Replicated::start(partitions.on(blocking), settings.replicas, tasks);
        let stored = Stored::start(partitions, ledger, tasks);
        let this = Self { metrics, settings, offered, replicated, stored };
        this.offered[index(Ack::Memory)].store(true, Ordering::Release);
        this
    }

    /// Sets what the stores offer from now on; returns what the default lacks.
    pub fn offer(&self, offer: Offer) -> Option<String> {
        let Offer { disk, replicas, ledger } = offer;
        for (ack, given) in [
            (Ack::Disk, disk),
            (Ack::Replica, replicas >= self.settings.replicas),
            (Ack::Ledger, ledger),
        ] {
            self.offered[index(ack)].store(given, Ordering::Release);
        }
        self.settings.unmet(offer)
    }

    fn is_offered(&self, ack: Ack) -> bool {
        self.offered[index(ack)].load(Ordering::Acquire)
    }

    /// What a call waits for; chosen before a unit is taken for it.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the stores do not offer that now.
    pub fn choose(&self, requested: Option<Ack>) -> Result<Ack, AckError> {
        let ack = requested.unwrap_or(self.settings.default);
        if self.is_offered(ack) { Ok(ack) } else { Err(AckError::Unavailable(ack)) }
    }

    /// Waits until an accepted reservation may be answered. The caller limits how long.
    ///
    /// # Errors
    ///
    /// Never `Unavailable`. `Overloaded` and `Stopping` leave the outcome open.
    pub async fn wait(&self, ack: Ack, id: ReservationId) -> Result<(), AckError> {
        let started = Instant::now();
        match ack {
            // Redis answers after it has written: with these settings, to the disk.
            Ack::Memory | Ack::Disk => return Ok(()),
            Ack::Ledger => self.stored.wait(id).await?,
            // Its partition is in a later epoch now, so the ledger has the outcome.
            Ack::Replica => {
                if !self.replicated.wait(id).await? {
                    self.stored.wait(id).await?;
                }
            }
        }
        self.metrics.record_ack_wait(ack.as_str(), started.elapsed());
        Ok(())
    }
}

fn index(ack: Ack) -> usize {
    match ack {
        Ack::Memory => 0,
        Ack::Disk => 1,
        Ack::Replica => 2,
        Ack::Ledger => 3,
    }
}

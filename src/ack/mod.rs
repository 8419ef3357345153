//! When an accepted reservation is answered: at once, or as soon as it is on Redis's disk, on replicas, or in
//! the ledger. The unit is taken by then, and stays taken whether or not the answer arrives.
//!
//! Must never: answer before the requested level is reached, or take a unit for a level that the stores cannot give.

mod replicated;
mod stored;
mod waiters;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

pub use self::stored::CommitReports;
use self::{replicated::Replicated, waiters::Queue};
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
    /// A message that names what the default needs and the stores cannot give; `None` if they can give it.
    pub fn unmet(&self, available: AvailableAcks) -> Option<String> {
        if available.contains(self.default, self.replicas) {
            return None;
        }
        match self.default {
            Ack::Memory => None,
            Ack::Disk => Some(
                "ack = disk needs a Redis with appendonly yes, appendfsync always and \
                 no-appendfsync-on-rewrite no, and whose append-only file is complete"
                    .to_owned(),
            ),
            Ack::Replica => Some(format!(
                "ack = replica needs {} replicas (ack_replicas), Redis has {}",
                self.replicas, available.replicas
            )),
            Ack::Ledger => Some(
                "ack = ledger needs a Postgres with synchronous_commit other than off, and fsync = on".to_owned(),
            ),
        }
    }
}

/// The ack levels that the stores can give now, by their own settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AvailableAcks {
    /// Redis answers after its append-only file is on the disk.
    pub disk: bool,
    /// Replicas that are connected and up to date with Redis.
    pub replicas: u32,
    /// A commit of Postgres is on its disk.
    pub ledger: bool,
}

impl AvailableAcks {
    fn contains(self, ack: Ack, replicas: u32) -> bool {
        match ack {
            Ack::Memory => true,
            Ack::Disk => self.disk,
            Ack::Replica => self.replicas >= replicas,
            Ack::Ledger => self.ledger,
        }
    }
}

/// Why a call does not get the requested acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// The stores cannot give this now; nothing was done.
    #[error("the stores cannot give ack = {} now", .0.as_str())]
    Unavailable(Ack),
    /// Too many calls wait already; the unit is taken, and the outcome is unknown.
    #[error(
        "too many reservations wait for their answer: repeat the request with the same request id"
    )]
    Overloaded,
    /// The ledger records that the order will never be stored; its unit is given back after that.
    #[error("the order could not be stored")]
    Voided,
    /// A store lost it.
    #[error("reservation {0} was lost")]
    Lost(ReservationId),
    /// This process is shutting down; the outcome is unknown.
    #[error("this process is shutting down: repeat the request with the same request id")]
    ShuttingDown,
}

/// What the waits use.
#[expect(missing_docs, reason = "the types describe the others")]
pub struct AckStores {
    pub partitions: Partitions,
    /// Connections for waits alone, because they block them.
    pub blocking: Vec<Connection>,
    pub ledger: Ledger,
    pub metrics: Metrics,
}

/// A handle on the calls that wait; clones share it.
#[derive(Clone)]
pub struct Acks {
    metrics: Metrics,
    settings: AckSettings,
    available: Arc<ArcSwap<AvailableAcks>>,
    replicated: Replicated,
    stored: Queue<ReservationId, Result<(), AckError>>,
    commit_reports: CommitReports,
}

impl Acks {
    /// Starts the waiting tasks on `tasks`; they end when the last handle is dropped.
    pub fn start(stores: AckStores, settings: AckSettings, tasks: &Tasks) -> Self {
        let AckStores { partitions, blocking, ledger, metrics } = stores;
        let replicated = Replicated::start(partitions.on(blocking), settings.replicas, tasks);
        let (stored, commit_reports) = stored::start(partitions, ledger, tasks);
        Self { metrics, settings, available: Arc::default(), replicated, stored, commit_reports }
    }

    /// Where the consumers of this process report what they have committed.
    pub fn commit_reports(&self) -> CommitReports {
        self.commit_reports.clone()
    }

    /// Sets what the stores can give from now on; returns what the default lacks.
    pub fn set_available(&self, available: AvailableAcks) -> Option<String> {
        self.available.store(Arc::new(available));
        self.settings.unmet(available)
    }

    /// What a call waits for, or `Unavailable`; chosen before a unit is taken for it.
    pub fn choose(&self, requested: Option<Ack>) -> Result<Ack, AckError> {
        let ack = requested.unwrap_or(self.settings.default);
        let available = self.available.load().contains(ack, self.settings.replicas);
        if available { Ok(ack) } else { Err(AckError::Unavailable(ack)) }
    }

    /// Waits until an accepted reservation may be answered. The caller limits how long. `Overloaded` and `ShuttingDown`
    /// mean that the outcome is unknown.
    pub async fn wait(&self, ack: Ack, id: ReservationId) -> Result<(), AckError> {
        let started = Instant::now();
        match ack {
            // Redis answers after it has written: with these settings, to the disk.
            Ack::Memory | Ack::Disk => return Ok(()),
            Ack::Ledger => self.stored.join(id).await??,
            // Its partition is in a later epoch now, so the ledger has the outcome.
            Ack::Replica => {
                if !self.replicated.wait(id).await? {
                    self.stored.join(id).await??;
                }
            }
        }
        self.metrics.record_ack_wait(ack.as_str(), started.elapsed());
        Ok(())
    }
}

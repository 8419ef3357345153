//! When an accepted reservation is answered: at once, or as soon as it is on Redis's disk, on replicas, or in
//! the ledger. The unit is taken by then, and stays taken whether or not the answer arrives.
//!
//! Must never: answer before the requested level is reached, or take a unit for a level that the stores cannot give.

mod replicated;
mod stored;
mod waiters;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use tokio::time::Instant;

pub use self::stored::CommitReports;
use self::{replicated::Replicated, waiters::Queue};
use crate::{
    domain::{Ack, Partition, ReservationId},
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
    /// What the default needs and masters cannot give.
    pub fn unmet(&self, available: &AvailableAcks) -> Unmet {
        let lacks = |name: &str| !available.contains(self.default, self.replicas, name);
        let masters = available.masters.iter();
        let lacking: Vec<_> = masters.filter(|(name, _)| lacks(name)).collect();
        if lacking.len() < available.masters.len() {
            let named = |(name, master): (&String, &MasterAcks)| {
                format!("{name}: {}", self.needs(master.replicas))
            };
            return Unmet { by_some: lacking.into_iter().map(named).collect(), by_all: None };
        }
        let most = lacking.iter().map(|(_, master)| master.replicas).max().unwrap_or(0);
        Unmet { by_some: Vec::new(), by_all: lacks("").then(|| self.needs(most)) }
    }

    /// A message that names what the default needs, at a master with this many replicas.
    fn needs(&self, replicas: u32) -> String {
        match self.default {
            Ack::Memory => String::new(),
            Ack::Disk => "ack = disk needs a Redis with appendonly yes, appendfsync always and \
                          no-appendfsync-on-rewrite no, and whose append-only file is complete"
                .to_owned(),
            Ack::Replica => format!(
                "ack = replica needs {} replicas (ack_replicas), Redis has {replicas}",
                self.replicas
            ),
            Ack::Ledger => {
                "ack = ledger needs a Postgres with synchronous_commit other than off, and fsync = on".to_owned()
            }
        }
    }
}

/// Why calls do not get the default level.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unmet {
    /// If no master can give it.
    pub by_all: Option<String>,
    /// If others can, for each master that cannot.
    pub by_some: Vec<String>,
}

/// The ack levels that the stores can give now, by their own settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AvailableAcks {
    /// The masters of Redis by their names. One that was not read yet can give nothing.
    pub masters: BTreeMap<String, MasterAcks>,
    /// A commit of Postgres is on its disk.
    pub ledger: bool,
}

/// The ack levels that a master of Redis can give.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MasterAcks {
    /// It answers after its append-only file is on the disk.
    pub disk: bool,
    /// Replicas that are connected and up to date with it.
    pub replicas: u32,
}

impl AvailableAcks {
    /// Whether a reservation can be acknowledged like that by the master with this name.
    fn contains(&self, ack: Ack, replicas: u32, name: &str) -> bool {
        let master = self.masters.get(name);
        match ack {
            Ack::Memory => true,
            Ack::Disk => master.is_some_and(|master| master.disk),
            Ack::Replica => master.is_some_and(|master| master.replicas >= replicas),
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
    partitions: Partitions,
    replicated: Replicated,
    stored: Queue<ReservationId, Result<(), AckError>>,
    commit_reports: CommitReports,
}

impl Acks {
    /// Starts the waiting tasks on `tasks`; they end when the last handle is dropped.
    pub fn start(stores: AckStores, settings: AckSettings, tasks: &Tasks) -> Self {
        let AckStores { partitions, blocking, ledger, metrics } = stores;
        let replicated = Replicated::start(partitions.on(blocking), settings.replicas, tasks);
        let (stored, commit_reports) = stored::start(partitions.clone(), ledger, tasks);
        let available = Arc::default();
        Self { metrics, settings, available, partitions, replicated, stored, commit_reports }
    }

    /// Where the consumers of this process report what they have committed.
    pub fn commit_reports(&self) -> CommitReports {
        self.commit_reports.clone()
    }

    /// Sets what the stores can give from now on; returns what the default lacks.
    pub fn set_available(&self, available: AvailableAcks) -> Unmet {
        let unmet = self.settings.unmet(&available);
        self.available.store(Arc::new(available));
        unmet
    }

    /// What a call on this partition waits for, or `Unavailable`; chosen before a unit is taken for it.
    pub fn choose(&self, requested: Option<Ack>, partition: Partition) -> Result<Ack, AckError> {
        let ack = requested.unwrap_or(self.settings.default);
        if self.is_available(ack, partition) { Ok(ack) } else { Err(AckError::Unavailable(ack)) }
    }

    /// By the master that the partition has now.
    fn is_available(&self, ack: Ack, partition: Partition) -> bool {
        let name = match ack {
            Ack::Memory | Ack::Ledger => String::new(),
            Ack::Disk | Ack::Replica => self.partitions.master(partition),
        };
        self.available.load().contains(ack, self.settings.replicas, &name)
    }

    /// Waits until an accepted reservation may be answered. The caller limits how long. `Overloaded` and `ShuttingDown`
    /// mean that the outcome is unknown.
    pub async fn wait(&self, ack: Ack, id: ReservationId) -> Result<(), AckError> {
        let started = Instant::now();
        match ack {
            Ack::Memory => return Ok(()),
            // Redis answers after it has written: with these settings, to the disk.
            Ack::Disk if self.is_on_disk(id) => return Ok(()),
            Ack::Disk | Ack::Ledger => self.stored.join(id).await??,
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

    /// Whether the master of its partition writes to the disk: another one may have become the master since the level was
    /// chosen.
    fn is_on_disk(&self, id: ReservationId) -> bool {
        let partition = self.partitions.count().get_partition(id.partition());
        partition.is_some_and(|partition| self.is_available(Ack::Disk, partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn available(masters: &[(&str, bool, u32)], ledger: bool) -> AvailableAcks {
        let acks = |(name, disk, replicas): &(&str, bool, u32)| {
            ((*name).to_owned(), MasterAcks { disk: *disk, replicas: *replicas })
        };
        AvailableAcks { masters: masters.iter().map(acks).collect(), ledger }
    }

    #[test]
    fn each_master_gives_its_own_levels() {
        let available = available(&[("a:1", true, 0), ("b:1", false, 2)], false);
        let given = |name| {
            [Ack::Memory, Ack::Disk, Ack::Replica, Ack::Ledger]
                .map(|ack| available.contains(ack, 2, name))
        };
        assert_eq!(given("a:1"), [true, true, false, false]);
        assert_eq!(given("b:1"), [true, false, true, false]);
        assert_eq!(given("c:1"), [true, false, false, false], "it was not read yet");
    }

    #[test]
    fn default_is_unmet_by_all_only_if_no_master_gives_it() {
        let unmet = |default, masters: &[_], ledger| {
            let Unmet { by_all, by_some } =
                AckSettings { default, replicas: 2 }.unmet(&available(masters, ledger));
            (by_all.is_some(), by_some.len())
        };
        let (a, b) = (("a:1", true, 0), ("b:1", false, 2));
        for (default, masters, expected) in [
            (Ack::Memory, &[a, b][..], (false, 0)),
            (Ack::Memory, &[], (false, 0)),
            (Ack::Disk, &[a, b], (false, 1)),
            (Ack::Disk, &[b], (true, 0)),
            (Ack::Disk, &[], (true, 0)),
            (Ack::Disk, &[a], (false, 0)),
            (Ack::Replica, &[a, b], (false, 1)),
            (Ack::Replica, &[a], (true, 0)),
            (Ack::Ledger, &[a, b], (true, 0)),
        ] {
            assert_eq!(unmet(default, masters, false), expected, "{default:?} {masters:?}");
        }
        assert_eq!(unmet(Ack::Ledger, &[a, b], true), (false, 0));
        let settings = AckSettings { default: Ack::Replica, replicas: 2 };
        let Unmet { by_all, .. } = settings.unmet(&available(&[a, ("c:1", true, 1)], true));
        assert!(by_all.as_ref().is_some_and(|why| why.ends_with("Redis has 1")), "{by_all:?}");
        let Unmet { by_some, .. } = settings.unmet(&available(&[a, b], true));
        assert!(by_some[0].starts_with("a:1: ack = replica needs 2"), "{by_some:?}");
    }
}

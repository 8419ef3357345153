//! When an accepted reservation is answered: at once, or as soon as it is on Redis's disk, on replicas, or in
//! the ledger. The unit is taken by then, and stays taken whatever becomes of the answer.
//!
//! Must never: answer sooner than was asked, or take a unit for an answer that it knows it cannot give.

mod replicated;
mod stored;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::Instant,
};

use self::{replicated::Replicated, stored::Stored};
use crate::{
    domain::{Ack, ReservationId},
    ledger::Ledger,
    redis::{Connection, Partitions},
    tasks::Tasks,
};

/// Most reservations that wait for one and the same thing: far more than calls under way may be.
const MAX_WAITING: usize = 65_536;

/// Settings of the answers.
#[derive(Debug, Clone, Copy)]
pub struct AckSettings {
    /// For a call that asks for nothing else.
    pub default: Ack,
    /// How many replicas `Ack::Replica` means.
    pub replicas: u32,
}

impl AckSettings {
    /// What the default needs and the stores do not offer; none if they do.
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

/// What the stores can give now, by their own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Redis answers after its log is on the disk.
    pub disk: bool,
    /// Replicas that are connected and up to date with Redis.
    pub replicas: u32,
    /// A commit of Postgres is on its disk.
    pub ledger: bool,
}

/// Why a reservation is not answered as it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// The stores cannot give this now; nothing was done.
    #[error("the stores cannot give ack = {} now", .0.as_str())]
    Unavailable(Ack),
    /// Too many wait already; the unit is taken, and nobody knows yet how it ends.
    #[error("too many reservations wait for their answer")]
    Overloaded,
    /// The order could not be stored: its unit goes back.
    #[error("the order could not be stored")]
    Voided,
    /// A store lost it.
    #[error("the reservation was lost")]
    Lost,
    /// The service breaks off; nobody knows yet how it ends.
    #[error("the service is shutting down")]
    Stopping,
}

/// Whoever waits for a reservation.
struct Waiting<A> {
    id: ReservationId,
    answer: oneshot::Sender<A>,
}

/// Joins those who wait in a queue, until there is an answer.
async fn join<A>(queue: &mpsc::Sender<Waiting<A>>, id: ReservationId) -> Result<A, AckError> {
    let (answer, answered) = oneshot::channel();
    queue.try_send(Waiting { id, answer }).map_err(|refused| match refused {
        TrySendError::Full(_) => AckError::Overloaded,
        TrySendError::Closed(_) => AckError::Stopping,
    })?;
    answered.await.map_err(|_| AckError::Stopping)
}

/// A handle on all who wait; clones share it.
#[derive(Clone)]
pub struct Acks {
    partitions: Partitions,
    settings: AckSettings,
    offered: Arc<[AtomicBool; 4]>,
    replicated: Replicated,
    stored: Stored,
}

impl Acks {
    /// Starts what waits on `tasks`; it ends when the last handle is dropped. `connection` is for waits alone.
    pub fn start(
        (partitions, ledger): (Partitions, Ledger),
        connection: Connection,
        settings: AckSettings,
        tasks: &Tasks,
    ) -> Self {
        let offered = Arc::new([(); 4].map(|()| AtomicBool::new(false)));
        let blocked = partitions.on(connection);
        let replicated = Replicated::start(blocked, settings.replicas, tasks);
        let stored = Stored::start(partitions.clone(), ledger, tasks);
        let this = Self { partitions, settings, offered, replicated, stored };
        this.offered[index(Ack::Memory)].store(true, Ordering::Release);
        this
    }

    /// What can be given from now on; returns why the default cannot.
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

    /// What a call waits for, before anything is taken for it.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the stores cannot give that now.
    pub fn choose(&self, asked: Option<Ack>) -> Result<Ack, AckError> {
        let ack = asked.unwrap_or(self.settings.default);
        if self.is_offered(ack) { Ok(ack) } else { Err(AckError::Unavailable(ack)) }
    }

    /// Waits until an accepted reservation may be answered; as long as the caller wants to.
    ///
    /// # Errors
    ///
    /// Never `Unavailable`. `Overloaded` and `Stopping` leave open how it ends.
    pub async fn wait(&self, ack: Ack, id: ReservationId) -> Result<(), AckError> {
        let started = Instant::now();
        match ack {
            // Redis answers after it has written: with these settings, to the disk.
            Ack::Memory | Ack::Disk => return Ok(()),
            Ack::Ledger => self.stored.wait(id).await?,
            // Of another life by now: the ledger knows what became of it.
            Ack::Replica => {
                if !self.replicated.wait(id).await? {
                    self.stored.wait(id).await?;
                }
            }
        }
        self.partitions.metrics().acknowledged(ack.as_str(), started.elapsed());
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

//! The state of the model.

use crate::{
    ledger::Ledger,
    redis::{Levels, Redis},
    rules::Bounds,
};

/// The most reservations of a model.
pub const RESERVATIONS_MAX: usize = 3;

/// A reservation's identity: its number in the order of the accepts. It represents the random part of
/// the real id; the stream id is [`EntryId`].
pub type Reservation = u8;

/// An entry's id in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryId {
    pub epoch: u8,
    pub seq: u8,
}

/// A set of reservations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Set(u8);

impl Set {
    pub fn has(self, reservation: Reservation) -> bool {
        self.0 & (1 << reservation) != 0
    }

    pub fn add(&mut self, reservation: Reservation) {
        self.0 |= 1 << reservation;
    }

    /// Whether it was there.
    pub fn remove(&mut self, reservation: Reservation) -> bool {
        let had = self.has(reservation);
        self.0 &= !(1 << reservation);
        had
    }

    pub fn of(reservation: Reservation) -> Self {
        Self(1 << reservation)
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// In the order of their numbers. It takes as many steps as there are, because the checker calls it most of all.
    pub fn iter(self) -> impl Iterator<Item = Reservation> {
        let mut left = self;
        std::iter::from_fn(move || {
            if left.is_empty() {
                return None;
            }
            let first = Reservation::try_from(left.0.trailing_zeros()).ok()?;
            left.remove(first);
            Some(first)
        })
    }
}

/// What a consumer does with the entry it has read. It handles one entry at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Consumer {
    #[default]
    Idle,
    /// To be stored.
    Holds(Reservation),
    /// In the ledger: to be settled.
    Stored(Reservation),
    /// Voided in the ledger: to be released (R6).
    Voided(Reservation),
    /// Cannot be stored: to be moved to dead.
    Failed(Reservation),
    /// Beyond the supply, or another order has its seq: the partition is to be closed.
    Refused(Reservation),
}

/// What a releaser does with a dead entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Releaser {
    #[default]
    Idle,
    /// Read from the dead stream: to be voided.
    Found(Reservation),
    /// Voided: to be released.
    Voided(Reservation),
    /// Stored after all: only the entry is to be removed.
    Stored(Reservation),
    /// Released before its void: what R5 forbids.
    Released(Reservation),
}

/// The progress of a rebuild; the first number is its epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rebuilder {
    #[default]
    Idle,
    /// Has read the ledger's epoch and has not begun: a separate step only without `epoch_is_a_lock`.
    Seen(u8),
    /// The ledger is closed: Redis is to be closed under the new epoch.
    Closed(u8),
    /// Entries that are left in the streams are to be read.
    Draining(u8),
    /// Read an entry: it is to be stored or voided.
    Found(u8, Reservation),
    /// Stored or voided it: it is to be removed.
    Settled(u8, Reservation),
    /// Saw both streams empty: the ledger is to be read.
    Drained(u8),
    /// Read the products; the users are to be read: a separate step only with holds.
    ReadProducts(u8, Levels),
    /// Read the users; the request ids are to be read: a separate step only if there are some.
    ReadUsers(u8, Levels),
    /// Read all: Redis is to be filled.
    Remaining(u8, Levels),
    /// Redis is to be opened.
    Filled(u8),
    /// The ledger is to be opened.
    Opened(u8),
}

/// How many events may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub rewinds: u8,
    pub copies: u8,
    pub grants: u8,
    pub limit_changes: u8,
}

/// Facts that no actor knows and that properties need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    /// Taken out of the streams by a rewind.
    pub rewound: Set,
    /// Their units went back.
    pub released: Set,
    /// Stored after they had been counted as lost.
    pub stored_after_lost: Set,
    /// Their confirm was answered, and they were not cancelled since.
    pub paid: Set,
    /// Holds whose time was over at some moment.
    pub was_due: Set,
    /// Holds that expired although their time had been extended.
    pub expired_early: Set,
    /// Returns whose script ran.
    pub script_ran: Set,
}

/// The state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub redis: Redis,
    /// A backup, or a replica that stopped replicating.
    pub copy: Option<Redis>,
    pub ledger: Ledger,
    /// The stream ids of the reservations accepted so far.
    pub accepted: [Option<EntryId>; RESERVATIONS_MAX],
    /// Those of them whose entry states that they count for the limit of their user.
    pub counted: Set,
    pub consumers: [Consumer; 2],
    pub releasers: [Releaser; 2],
    pub rebuilders: [Rebuilder; 2],
    /// Units granted and not added to Redis; only without R3.
    pub unapplied_grants: u8,
    pub budget: Budget,
    pub history: History,
}

impl State {
    /// A partition that is open in its first epoch, with its supply in both stores.
    pub fn first(bounds: &Bounds) -> Self {
        Self {
            redis: Redis::opened(bounds.supply, bounds.holds.limit > 0),
            copy: None,
            ledger: Ledger::opened(bounds.supply, bounds.holds.limit > 0),
            accepted: [None; RESERVATIONS_MAX],
            counted: Set::default(),
            consumers: Default::default(),
            releasers: Default::default(),
            rebuilders: Default::default(),
            unapplied_grants: 0,
            budget: Budget {
                rewinds: bounds.rewinds,
                copies: bounds.copies,
                grants: bounds.grants,
                limit_changes: bounds.holds.limit_changes,
            },
            history: History::default(),
        }
    }

    /// The stream id under which a reservation was accepted. Only accepted ones are ever asked for.
    pub fn entry_id(&self, reservation: Reservation) -> EntryId {
        self.accepted[usize::from(reservation)].unwrap_or(EntryId { epoch: 0, seq: 0 })
    }

    /// The reservation among those whose entry has the same stream id. Without R1 it may be another one.
    pub fn with_same_entry_id(&self, reservation: Reservation, among: Set) -> Option<Reservation> {
        let id = self.entry_id(reservation);
        among.iter().find(|other| self.entry_id(*other) == id)
    }

    /// All reservations accepted so far.
    pub fn all(&self) -> Set {
        let mut all = Set::default();
        (0..).zip(&self.accepted).filter(|(_, id)| id.is_some()).for_each(|(r, _)| all.add(r));
        all
    }

    /// Sorts equal actors, because it makes no difference which of them does what; idle ones come last.
    pub fn normalised(mut self) -> Self {
        self.consumers.sort_unstable_by(|a, b| b.cmp(a));
        self.releasers.sort_unstable_by(|a, b| b.cmp(a));
        self.rebuilders.sort_unstable_by(|a, b| b.cmp(a));
        self
    }
}

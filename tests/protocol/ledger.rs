//! Postgres: each function is one transaction.

use crate::{
    redis::{Levels, signed},
    rules::{Bounds, Holds, Rules},
    state::{EntryId, RESERVATIONS_MAX, Reservation, Set},
};

/// Rows of one partition and one product.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    pub epoch: u8,
    pub open: bool,
    /// The epochs that were ever open, as bits: a process may still use any of them.
    was_open: u8,
    pub supply: u8,
    /// Rows by their state.
    pub held: Set,
    pub confirmed: Set,
    pub voided: Set,
    /// Cancelled or expired; their units are for sale again.
    pub returned: Set,
    /// Cancelled; their units are not put back on sale.
    pub kept: Set,
    /// Holds whose time is over.
    pub due: Set,
    /// `products.returned` and `user_returns`.
    pub totals: Totals,
    /// The totals that each return committed. A process that applies it may have read these or later ones.
    pub totals_after: [Totals; RESERVATIONS_MAX],
    /// Returns that are marked as applied to Redis.
    pub applied: Set,
    /// Whether the product has a limit.
    pub has_limit: bool,
}

/// How many units were ever returned, and how many were ever held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Totals {
    /// Of the product.
    pub product: u8,
    /// Of the user, of those that count for the limit.
    pub user: u8,
    /// Units of the product whose hold has ended (confirmed, cancelled or expired), if SOLD_OUT shows what is held.
    pub ended: u8,
}

impl Totals {
    pub fn plus(self, other: Self) -> Self {
        self.each(other, u8::saturating_add)
    }

    /// What is above `other`.
    pub fn minus(self, other: Self) -> Self {
        self.each(other, u8::saturating_sub)
    }

    fn each(self, other: Self, of: impl Fn(u8, u8) -> u8) -> Self {
        Self {
            product: of(self.product, other.product),
            user: of(self.user, other.user),
            ended: of(self.ended, other.ended),
        }
    }

    /// Whether no total is below that of `other`.
    pub fn covers(self, other: Self) -> bool {
        other.minus(self) == Self::default()
    }
}

/// The result of storing an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It has a row, by this transaction or from before.
    Stored,
    /// It was cancelled or expired before.
    Returned,
    /// It had been voided before.
    Voided,
    /// Beyond the supply, or another order has its stream id.
    Inconsistent,
}

impl Ledger {
    /// As a first opening leaves it.
    pub fn opened(supply: u8, has_limit: bool) -> Self {
        Self { epoch: 1, open: true, was_open: 1 << 1, supply, has_limit, ..Self::default() }
    }

    /// Whether a process may take the partition to be open in this epoch. Any number of gateways and workers
    /// may, at any later time.
    pub fn was_ever_open(&self, epoch: u8) -> bool {
        self.was_open & (1 << epoch) != 0
    }

    /// The last epoch that was open: before the present one, while that is closed.
    pub fn last_open(&self) -> u8 {
        (0..8).rev().find(|epoch| self.was_ever_open(*epoch)).unwrap_or(0)
    }

    /// R2: whether a transaction under this epoch passes.
    pub fn passes(&self, rules: &Rules, epoch: u8) -> bool {
        !rules.gate || self.epoch == epoch
    }

    /// Inserts an order, unless its row is there.
    pub fn store(
        &mut self,
        reservation: Reservation,
        accepted: &[Option<EntryId>; RESERVATIONS_MAX],
        bounds: &Bounds,
    ) -> StoreOutcome {
        if self.voided.has(reservation) {
            return StoreOutcome::Voided;
        }
        if self.returned.or(self.kept).has(reservation) {
            return StoreOutcome::Returned;
        }
        if self.rows().has(reservation) {
            return StoreOutcome::Stored;
        }
        let id = |reservation: Reservation| accepted[usize::from(reservation)];
        let taken = self.rows().iter().any(|other| id(other) == id(reservation));
        let units = bounds.holds.units_of(self.sold_or_held().or(Set::of(reservation)));
        if taken || units > signed(self.supply) {
            return StoreOutcome::Inconsistent;
        }
        let rows = if bounds.holds.allowed { &mut self.held } else { &mut self.confirmed };
        rows.add(reservation);
        StoreOutcome::Stored
    }

    /// Voids a reservation, unless it is stored; returns whether it is void now.
    pub fn void(&mut self, reservation: Reservation) -> bool {
        let stored = self.rows().has(reservation);
        if !stored {
            self.voided.add(reservation);
        }
        !stored
    }

    /// Moves a row to another state. Without R12, it may have left the state in which an earlier read found it.
    fn leave(&mut self, rules: &Rules, reservation: Reservation, from: Set) -> bool {
        if rules.compare_and_set && !from.has(reservation) {
            return false;
        }
        let found = self.rows().has(reservation);
        for rows in [&mut self.held, &mut self.confirmed, &mut self.returned, &mut self.kept] {
            rows.remove(reservation);
        }
        self.due.remove(reservation);
        found
    }

    /// R12: confirms a hold. It does not compare the time.
    pub fn confirm(&mut self, rules: &Rules, reservation: Reservation, change: Totals) -> bool {
        let left = self.leave(rules, reservation, self.held);
        if left {
            self.confirmed.add(reservation);
            self.count(reservation, change);
        }
        left
    }

    /// Cancels or expires a reservation that is in one of the states `from`. A transaction that locks the partition's
    /// row and does not ask for its epoch (R11).
    pub fn give_back(
        &mut self,
        rules: &Rules,
        reservation: Reservation,
        (from, kept): (Set, bool),
        change: Totals,
    ) -> bool {
        let left = self.leave(rules, reservation, from);
        if left {
            let rows = if kept { &mut self.kept } else { &mut self.returned };
            rows.add(reservation);
            self.count(reservation, change);
        }
        left
    }

    fn count(&mut self, reservation: Reservation, change: Totals) {
        self.totals = self.totals.plus(change);
        self.totals_after[usize::from(reservation)] = self.totals;
    }

    /// What a rebuild reads of the product, after `gone` units that are neither for sale nor returned.
    pub fn product_levels(&self, gone: i8, holds: &Holds) -> Levels {
        Levels {
            supply: self.supply,
            stock: signed(self.supply) - gone,
            held: if holds.shown { holds.units_of(self.held) } else { 0 },
            has_limit: self.has_limit,
            totals: Totals { user: 0, ..self.totals },
            bought: 0,
            remembered: None,
        }
    }

    /// What a rebuild reads of users.
    pub fn add_user_levels(&self, levels: &mut Levels, counted: Set, holds: &Holds) {
        levels.bought = holds.units_of(self.live().and(counted));
        levels.totals.user = self.totals.user;
    }

    /// Rows whose request ids a rebuild restores, and which may count for a limit.
    pub fn live(&self) -> Set {
        self.held.or(self.confirmed)
    }

    /// R7: begins a rebuild with a new epoch.
    pub fn close(&mut self, epoch: u8) {
        self.epoch = epoch;
        self.open = false;
    }

    /// Ends the rebuild of this epoch, if the row still has it.
    pub fn reopen(&mut self, rules: &Rules, epoch: u8) -> bool {
        let ours = if rules.epoch_comes_first {
            self.epoch == epoch && !self.open
        } else {
            self.epoch + 1 == epoch
        };
        if ours {
            self.epoch = epoch;
            self.open = true;
            self.was_open |= 1 << epoch;
        }
        ours
    }

    /// Rows of orders that were stored.
    pub fn rows(&self) -> Set {
        self.sold_or_held().or(self.returned)
    }

    /// Rows whose units are not for sale: `CHECK (held + sold + kept <= supply)`.
    pub fn sold_or_held(&self) -> Set {
        self.held.or(self.confirmed).or(self.kept)
    }

    /// Stored or voided.
    pub fn decided(&self) -> Set {
        self.rows().or(self.voided)
    }
}

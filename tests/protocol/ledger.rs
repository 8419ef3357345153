//! Postgres: each function is one transaction.

use crate::{
    rules::Rules,
    state::{EntryId, RESERVATIONS_MAX, Reservation, Set},
};

/// Rows of one partition and one product.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    pub epoch: u8,
    pub open: bool,
    /// The epochs that were ever open, as bits: a process may still use any of them.
    was_open: u8,
    pub supply: u8,
    pub confirmed: Set,
    pub voided: Set,
}

/// The result of storing an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is confirmed, by this transaction or before.
    Confirmed,
    /// It had been voided before.
    Voided,
    /// Beyond the supply, or another order has its stream id.
    Inconsistent,
}

impl Ledger {
    /// As a first opening leaves it.
    pub fn opened(supply: u8) -> Self {
        let (confirmed, voided) = Default::default();
        Self { epoch: 1, open: true, was_open: 1 << 1, supply, confirmed, voided }
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
    ) -> Stored {
        if self.voided.has(reservation) {
            return Stored::Voided;
        }
        if self.confirmed.has(reservation) {
            return Stored::Confirmed;
        }
        let id = |reservation: Reservation| accepted[usize::from(reservation)];
        let taken = self.confirmed.iter().any(|other| id(other) == id(reservation));
        if taken || self.confirmed.count() >= u32::from(self.supply) {
            return Stored::Inconsistent;
        }
        self.confirmed.add(reservation);
        Stored::Confirmed
    }

    /// Voids a reservation, unless it is confirmed; returns whether it is void now.
    pub fn void(&mut self, reservation: Reservation) -> bool {
        let sold = self.confirmed.has(reservation);
        if !sold {
            self.voided.add(reservation);
        }
        !sold
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

    /// Confirmed or voided.
    pub fn decided(&self) -> Set {
        self.confirmed.or(self.voided)
    }
}

//! The rules that can be removed one by one, and the bounds of a model.

use crate::{
    redis::signed,
    state::{RESERVATIONS_MAX, Set},
};

/// The rules of docs/ARCHITECTURE.md that are modelled, and R11 and R12 of docs/decisions/0034-holds.md, which are not
/// built yet. With a rule the model does what the program does; without it, the next simplest thing.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// R1. Every script compares the replid. Without: only the epoch and the status.
    pub fence: bool,
    /// R2. A transaction of the ledger works only under the current epoch. Without: under any.
    pub gate: bool,
    /// R3. Redis is given the whole supply. Without: the units to add.
    pub absolute_grants: bool,
    /// R5. The void is committed, then the unit goes back. Without: the other way round.
    pub void_first: bool,
    /// R5. Only the process that removes the entry adds the unit. Without: every process that gets there.
    pub entry_is_token: bool,
    /// R6. A consumer that meets a voided row gives the unit back. Without: it acknowledges the entry.
    pub voided_is_released: bool,
    /// R7. A rebuild begins with an epoch of its own in the ledger. Without: it ends with it.
    pub epoch_comes_first: bool,
    /// R7. That epoch belongs to one rebuild. Without: all that have read the same epoch begin the same one.
    pub epoch_is_a_lock: bool,
    /// R8. Entries that are left in the streams are stored or voided, and removed. Without: they stay there and
    /// are subtracted.
    pub drain: bool,
    /// With R8. Of the entries that are left in the streams, those of the last open epoch are stored. Those of
    /// older epochs were counted as lost and are voided. Without: they are stored.
    pub lost_orders_are_voided: bool,
    /// R9. Redis is opened only if it is closed, has the epoch of this rebuild, and is empty. Without: unchecked.
    pub checked_opening: bool,
    /// R11. How Redis learns of returned units.
    pub returns: Returns,
    /// R11. A rebuild subtracts the units on hold. Without, as programs before it: only those that are sold.
    pub held_is_counted: bool,
    /// R11. A rebuild fills Redis with the totals that it has read. Without, as programs before it: with zero.
    pub totals_are_filled: bool,
    /// R11. A rebuild reads what a product has returned in one snapshot with what is held and sold. Without: later.
    pub product_snapshot: bool,
    /// R11. A rebuild reads what a user has returned in one snapshot with the user's rows. Without: later.
    pub user_snapshot: bool,
    /// R11. A consumer that meets a returned row settles its entry. Without: it releases it, as if it were voided.
    pub returned_is_settled: bool,
    /// R11. The totals that are given with a return contain it. Without: they may have been read before it.
    pub totals_contain_return: bool,
    /// R11. A return is marked as applied after its script ran. Without: at any time.
    pub script_before_mark: bool,
    /// R11. A return frees a request id only if this still names its reservation. Without: it always does.
    pub request_is_compared: bool,
    /// R11. A return lowers the user's count only if the reservation had raised it. Without: if the product has a
    /// limit now.
    pub only_counted: bool,
    /// R11. The ledger counts units that a refund keeps from sale. Without: it only lowers `sold`.
    pub kept_is_counted: bool,
    /// R12. A change of a row compares its state in the same statement. Without: an earlier read did.
    pub compare_and_set: bool,
    /// R12. The statement that expires a hold compares its time. Without: an earlier read did.
    pub due_is_compared: bool,
}

/// What Redis is given when units are returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// How many units were ever returned: the program.
    Totals,
    /// The units of one return, to add; again if the answer was lost.
    Differences,
    /// The units of one return, to add exactly once.
    DifferencesOnce,
}

/// All rules: the program.
pub const ALL: Rules = Rules {
    fence: true,
    gate: true,
    absolute_grants: true,
    void_first: true,
    entry_is_token: true,
    voided_is_released: true,
    epoch_comes_first: true,
    epoch_is_a_lock: true,
    drain: true,
    lost_orders_are_voided: true,
    checked_opening: true,
    returns: Returns::Totals,
    held_is_counted: true,
    totals_are_filled: true,
    product_snapshot: true,
    user_snapshot: true,
    returned_is_settled: true,
    totals_contain_return: true,
    script_before_mark: true,
    request_is_compared: true,
    only_counted: true,
    kept_is_counted: true,
    compare_and_set: true,
    due_is_compared: true,
};

/// How often events may happen. Crashes and stalls have no bound: an actor may crash before any step, and may
/// take its next step at any later time.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests: as many orders are accepted at most.
    pub reservations: u8,
    /// Units at the beginning.
    pub supply: u8,
    /// Units granted later, one by one.
    pub grants: u8,
    /// How often Redis is rewound: emptied, restored, or only restarted.
    pub rewinds: u8,
    /// Copies of Redis that are taken at some time and may be restored later.
    pub copies: u8,
    /// The last epoch; the first is 1.
    pub epochs: u8,
    /// Consumers, at most 2.
    pub consumers: usize,
    /// Releasers, at most 2.
    pub releasers: usize,
    /// Rebuilders, at most 2.
    pub rebuilders: usize,
    /// Whether an order may be impossible to store and be moved to dead.
    pub poison: bool,
    /// Whether an operator voids orders in the ledger.
    pub manual_voids: bool,
    /// What a model with holds allows.
    pub holds: Holds,
}

/// Which changes of stored reservations may happen.
#[derive(Clone, Copy, Debug)]
pub struct Holds {
    /// Whether orders are stored as holds. Otherwise they are confirmed when they are stored.
    pub allowed: bool,
    /// The units of each reservation.
    pub units: [u8; RESERVATIONS_MAX],
    /// The most units of a user; 0 if there is no limit. All reservations have one user.
    pub limit: u8,
    /// How often an operator removes the limit or sets it again.
    pub limit_changes: u8,
    /// Whether all reservations have one request id. Otherwise none has one.
    pub one_request: bool,
    /// Whether confirmed reservations are cancelled, and their units may be kept from sale.
    pub refunds: bool,
    /// Whether holds have a time, which may be extended. Otherwise they may expire at any time.
    pub extensions: bool,
    /// Whether returns are marked as applied. (Nothing depends on a mark but the search for returns to apply.)
    pub marks: bool,
    /// Whether SOLD_OUT shows the units on hold.
    pub shown: bool,
}

/// A model without holds: one unit, confirmed when it is stored.
pub const NO_HOLDS: Holds = Holds {
    allowed: false,
    units: [1; RESERVATIONS_MAX],
    limit: 0,
    limit_changes: 0,
    one_request: false,
    refunds: false,
    extensions: false,
    marks: false,
    shown: false,
};

impl Holds {
    /// The units of these reservations.
    pub fn units_of(&self, reservations: Set) -> i8 {
        reservations.iter().map(|reservation| signed(self.units[usize::from(reservation)])).sum()
    }
}

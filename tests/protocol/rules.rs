//! The rules that can be removed one by one, and the bounds of a model.

/// The rules of docs/ARCHITECTURE.md that are modelled. With a rule the model does what the program does; without
/// it, the next simplest thing.
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
}

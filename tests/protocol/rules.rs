//! The rules that may be taken out, one by one, and how large a world is looked through.

/// The rules of the design, as far as this model has them. Each is what the program does; without it, the
/// model does the next simplest thing.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// R1. Every script compares the replid. Without: only the epoch and the status.
    pub fence: bool,
    /// R2. A transaction of the ledger works only under the current epoch. Without: under any.
    pub gate: bool,
    /// R3. Redis is told the whole supply. Without: it is told what to add.
    pub absolute_grants: bool,
    /// R5. The void is committed, then the unit goes back. Without: the other way round.
    pub void_first: bool,
    /// R5. Only who removes the entry adds the unit. Without: whoever comes to that point.
    pub entry_is_token: bool,
    /// R6. A consumer that meets a voided row gives the unit back. Without: it acknowledges the entry.
    pub voided_is_released: bool,
    /// R7. A rebuild begins with an epoch of its own in the ledger. Without: it ends with it.
    pub epoch_comes_first: bool,
    /// R7. That epoch is one rebuild's. Without: who has seen the same epoch begins the same one.
    pub epoch_is_a_lock: bool,
    /// R8. What survived is stored or voided, then it is in no stream. Without: it stays there and is
    /// subtracted.
    pub drain: bool,
    /// Beside R8. Of what survived, only what the last open epoch accepted is stored; what an older one did
    /// was given up for lost, and is voided. Without: it is stored.
    pub lost_orders_are_voided: bool,
    /// R9. Redis is opened only where it is closed, this rebuild's, and empty. Without: unseen.
    pub checked_opening: bool,
}

/// Nothing taken out: the program.
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

/// How often things may happen. Crashes and stalls have no bound: an actor may forget what it was about
/// to do at any step, and may go on with it as late as it likes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Requests: as many orders are accepted at most.
    pub reservations: u8,
    /// Units at the beginning.
    pub supply: u8,
    /// Units granted later, one by one.
    pub grants: u8,
    /// Times that Redis loses its past: it is emptied, restored, or just restarted.
    pub rewinds: u8,
    /// Copies of Redis that are taken at some moment and may come back later.
    pub copies: u8,
    /// The last epoch; the first is 1.
    pub epochs: u8,
    /// Consumers, at most 2.
    pub consumers: usize,
    /// Releasers, at most 2.
    pub releasers: usize,
    /// Rebuilders, at most 2.
    pub rebuilders: usize,
    /// Whether an order may fail by itself and be buried.
    pub poison: bool,
    /// Whether somebody voids orders by hand, in the ledger.
    pub manual_voids: bool,
}

//! Redis: each function is one script of `lua/`, and one atomic step.

use crate::{
    ledger::Totals,
    rules::{Holds, Returns, Rules},
    state::{EntryId, Reservation, Set},
};

/// The hash `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Meta {
    pub epoch: u8,
    pub open: bool,
    /// Whether the replid in it is the server's own.
    pub current: bool,
    pub seq: u8,
}

/// What Redis holds of one partition. The group's list of pending entries is not here: an entry that
/// its consumer has not finished may be read by another at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Redis {
    pub meta: Option<Meta>,
    pub stock: i8,
    pub supply: u8,
    pub orders: Set,
    pub dead: Set,
    /// Whether the product has a limit, as far as Redis knows.
    pub has_limit: bool,
    /// The units of the user that count for the limit.
    pub bought: i8,
    /// The units on hold, which SOLD_OUT shows; 0 if it does not.
    pub held: i8,
    /// The totals that are in `stock`, `bought` and `held`.
    pub totals: Totals,
    /// The reservation that the request id names.
    pub remembered: Option<Reservation>,
}

/// What a rebuild reads from the ledger and writes to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Levels {
    pub supply: u8,
    pub stock: i8,
    pub held: i8,
    pub has_limit: bool,
    pub bought: i8,
    pub totals: Totals,
    pub remembered: Option<Reservation>,
}

impl Redis {
    /// As a first opening and the first grant leave it.
    pub fn opened(supply: u8, has_limit: bool) -> Self {
        let meta = Meta { epoch: 1, open: true, current: true, seq: 0 };
        Self { meta: Some(meta), supply, stock: signed(supply), has_limit, ..Self::default() }
    }

    /// `fence.lua`: the epoch in which calls are accepted, if any (R1).
    pub fn open_epoch(&self, rules: &Rules) -> Option<u8> {
        let meta = self.meta.filter(|meta| meta.open && (meta.current || !rules.fence));
        meta.map(|meta| meta.epoch)
    }

    /// `fence.lua`, `rebuild_fence`: whether it is closed with the epoch of this rebuild.
    fn is_rebuild_fence(&self, rules: &Rules, epoch: u8) -> bool {
        let ours = |meta: Meta| meta.epoch == epoch && !meta.open && (meta.current || !rules.fence);
        self.meta.is_some_and(ours)
    }

    /// Both streams.
    pub fn streams(&self) -> Set {
        self.orders.or(self.dead)
    }

    /// `reserve.lua`, which begins with the fence: takes all units and writes the order, or refuses.
    pub fn reserve(&mut self, reservation: Reservation, holds: &Holds) -> Option<EntryId> {
        let units = holds.units_of(Set::of(reservation));
        let duplicate = self.remembered.is_some();
        let over_limit = self.has_limit && self.bought + units > signed(holds.limit);
        let refused = duplicate || over_limit || self.stock < units;
        let meta = self.meta.as_mut().filter(|_| !refused)?;
        meta.seq += 1;
        self.orders.add(reservation);
        self.stock -= units;
        if holds.shown {
            self.held += units;
        }
        if self.has_limit {
            self.bought += units;
        }
        if holds.one_request {
            self.remembered = Some(reservation);
        }
        Some(EntryId { epoch: meta.epoch, seq: meta.seq })
    }

    /// What `release.lua` does after it has removed the entry: gives back its units, limit and request id.
    pub fn give_back(&mut self, reservation: Reservation, holds: &Holds, counted: bool) {
        let units = holds.units_of(Set::of(reservation));
        self.stock += units;
        if holds.shown {
            self.held -= units;
        }
        if counted {
            self.bought -= units;
        }
        self.forget_request(reservation);
    }

    fn forget_request(&mut self, reservation: Reservation) {
        if self.remembered == Some(reservation) {
            self.remembered = None;
        }
    }

    /// `apply_returns.lua`, which begins with the fence: absolute (R11), or one return's own difference. Frees the
    /// request id of this reservation if it was returned.
    pub fn apply_return(&mut self, rules: &Rules, given: Totals, returned: Option<Reservation>) {
        let known = match rules.returns {
            Returns::Totals => self.totals,
            Returns::Differences | Returns::DifferencesOnce => Totals::default(),
        };
        let added = given.minus(known);
        self.stock += signed(added.product);
        self.bought -= signed(added.user);
        self.held -= signed(added.ended);
        self.totals = self.totals.plus(added);
        match returned {
            Some(reservation) if rules.request_is_compared => self.forget_request(reservation),
            Some(_) => self.remembered = None,
            None => {}
        }
    }

    /// `set_supply.lua`, which begins with the fence: absolute (R3).
    pub fn set_supply(&mut self, supply: u8) -> bool {
        let raises = supply > self.supply;
        if raises {
            self.stock += signed(supply - self.supply);
            self.supply = supply;
        }
        raises
    }

    /// What R3 forbids: adds a unit.
    pub fn add_unit(&mut self) {
        self.stock += 1;
        self.supply += 1;
    }

    /// `move_to_dead.lua`, which begins with the fence.
    pub fn move_to_dead(&mut self, reservation: Reservation) {
        if self.orders.remove(reservation) {
            self.dead.add(reservation);
        }
    }

    /// `close.lua`, which begins with the fence.
    pub fn close(&mut self) {
        self.meta = self.meta.map(|meta| Meta { open: false, ..meta });
    }

    /// `begin_rebuild.lua`: returns whether no rebuild with a higher epoch has begun.
    pub fn begin_rebuild(&mut self, epoch: u8) -> bool {
        if self.meta.is_some_and(|meta| meta.epoch > epoch) {
            return false;
        }
        let meta = Some(Meta { epoch, open: false, current: true, seq: 0 });
        *self = Self { meta, orders: self.orders, dead: self.dead, ..Self::default() };
        true
    }

    /// `drain.lua`: returns whether this rebuild is still the current one.
    pub fn remove_drained(&mut self, rules: &Rules, epoch: u8, reservation: Reservation) -> bool {
        let ours = self.is_rebuild_fence(rules, epoch);
        if ours {
            self.orders.remove(reservation);
            self.dead.remove(reservation);
        }
        ours
    }

    /// `fill.lua`: returns whether this rebuild is still the current one.
    pub fn fill(&mut self, rules: &Rules, epoch: u8, levels: Levels) -> bool {
        let ours = self.is_rebuild_fence(rules, epoch);
        if ours {
            let Levels { supply, stock, held, has_limit, bought, totals, remembered } = levels;
            let before = self.clone();
            *self = Self { supply, stock, held, has_limit, bought, totals, remembered, ..before };
        }
        ours
    }

    /// `reopen.lua` (R9): whether it opened; `None` if another rebuild has begun.
    pub fn reopen(&mut self, rules: &Rules, epoch: u8) -> Option<bool> {
        if rules.checked_opening {
            if !self.is_rebuild_fence(rules, epoch) {
                return None;
            }
            // Without draining, entries may be in flight.
            if rules.drain && !self.streams().is_empty() {
                return Some(false);
            }
        }
        self.meta = Some(Meta { epoch, open: true, current: true, seq: 0 });
        Some(true)
    }

    /// The same data on a server with another replid.
    pub fn rewound(&self) -> Self {
        Self { meta: self.meta.map(|meta| Meta { current: false, ..meta }), ..self.clone() }
    }
}

/// Units as a signed count, which a broken rule may take below zero.
pub fn signed(units: u8) -> i8 {
    i8::try_from(units).unwrap_or(i8::MAX)
}

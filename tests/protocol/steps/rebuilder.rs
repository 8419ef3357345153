//! Rebuilds (R7–R9), of one partition by several processes: any of them may begin at any time, be killed
//! at any step, or continue long after another has finished.

use super::Protocol;
use crate::{
    ledger::{StoreOutcome, Totals},
    redis::Levels,
    state::{Rebuilder, Reservation, Set, State},
};

/// What a rebuilder does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebuilderStep {
    /// The next step of its rebuild.
    Continue,
    /// Is killed.
    Crash,
}

/// What a rebuilder may do next.
pub fn steps(state: &State, index: usize, mut add: impl FnMut(RebuilderStep)) {
    let idle = |index: usize| state.rebuilders[index] == Rebuilder::Idle;
    if !idle(index) {
        add(RebuilderStep::Crash);
    }
    if !idle(index) || index == 0 || !idle(index - 1) {
        add(RebuilderStep::Continue);
    }
}

impl Protocol {
    pub fn rebuilder(&self, state: &mut State, index: usize, step: RebuilderStep) -> Option<()> {
        let now = state.rebuilders[index];
        state.rebuilders[index] = match step {
            RebuilderStep::Crash if now == Rebuilder::Idle => return None,
            RebuilderStep::Crash => Rebuilder::Idle,
            RebuilderStep::Continue => self.continue_rebuild(state, now)?,
        };
        Some(())
    }

    /// The state after the next step; idle if the step is refused.
    fn continue_rebuild(&self, state: &mut State, now: Rebuilder) -> Option<Rebuilder> {
        let rules = &self.rules;
        let next = match now {
            Rebuilder::Idle => Some(self.begin(state)?),
            Rebuilder::Seen(epoch) => join(state, epoch + 1),
            Rebuilder::Closed(epoch) => {
                state.redis.begin_rebuild(epoch).then_some(Rebuilder::Draining(epoch))
            }
            Rebuilder::Draining(epoch) => Some(self.next_undrained(state, epoch)),
            Rebuilder::Found(epoch, reservation) => self
                .settle(state, epoch, reservation)
                .then_some(Rebuilder::Settled(epoch, reservation)),
            Rebuilder::Settled(epoch, reservation) => {
                let is_current = state.redis.remove_drained(rules, epoch, reservation);
                is_current.then_some(Rebuilder::Draining(epoch))
            }
            Rebuilder::Drained(epoch) => Some(self.read_products(state, epoch, Set::default())),
            Rebuilder::ReadProducts(epoch, levels) => Some(self.read_users(state, epoch, levels)),
            Rebuilder::ReadUsers(epoch, levels) => {
                let remembered = state.ledger.live().iter().next();
                Some(self.remaining(epoch, Levels { remembered, ..levels }))
            }
            Rebuilder::Remaining(epoch, levels) => {
                let is_current = state.redis.fill(rules, epoch, levels);
                is_current.then_some(Rebuilder::Filled(epoch))
            }
            Rebuilder::Filled(epoch) => state.redis.reopen(rules, epoch).map(|opened| {
                if opened { Rebuilder::Opened(epoch) } else { Rebuilder::Draining(epoch) }
            }),
            Rebuilder::Opened(epoch) => {
                state.ledger.reopen(rules, epoch);
                None
            }
        };
        Some(next.unwrap_or_default())
    }

    /// R7. A process that has read an older epoch changes nothing: so reading and closing are one step.
    fn begin(&self, state: &mut State) -> Option<Rebuilder> {
        let epoch = state.ledger.epoch + 1;
        if epoch > self.bounds.epochs {
            return None;
        }
        if !self.rules.epoch_is_a_lock {
            return Some(Rebuilder::Seen(epoch - 1));
        }
        if self.rules.epoch_comes_first {
            state.ledger.close(epoch);
        }
        Some(Rebuilder::Closed(epoch))
    }

    /// R8: the next entry that is left in the streams, if any. Reading is not fenced.
    fn next_undrained(&self, state: &State, epoch: u8) -> Rebuilder {
        let streams = state.redis.streams();
        if !self.rules.drain {
            return self.read_products(state, epoch, streams);
        }
        let first = streams.iter().next();
        first.map_or(Rebuilder::Drained(epoch), |entry| Rebuilder::Found(epoch, entry))
    }

    /// R8: stores what can be stored and voids the rest; false when the partition has another epoch.
    fn settle(&self, state: &mut State, epoch: u8, reservation: Reservation) -> bool {
        let under = if self.rules.epoch_comes_first { epoch } else { epoch - 1 };
        if !state.ledger.passes(&self.rules, under) {
            return false;
        }
        let counted_as_lost = state.entry_id(reservation).epoch < state.ledger.last_open();
        if counted_as_lost && self.rules.lost_orders_are_voided {
            state.ledger.void(reservation);
            return true;
        }
        let new = !state.ledger.decided().has(reservation);
        match state.ledger.store(reservation, &state.accepted, &self.bounds) {
            StoreOutcome::Stored if counted_as_lost && new => {
                state.history.stored_after_lost.add(reservation)
            }
            StoreOutcome::Stored | StoreOutcome::Returned | StoreOutcome::Voided => {}
            StoreOutcome::Inconsistent => {
                state.ledger.void(reservation);
            }
        }
        true
    }

    /// R9, R11: reads supply, held, sold, kept and returned in one snapshot.
    fn read_products(&self, state: &State, epoch: u8, not_drained: Set) -> Rebuilder {
        let (ledger, holds) = (&state.ledger, &self.bounds.holds);
        let counted = |rows: Set, rule: bool| if rule { rows } else { Set::default() };
        let held = counted(ledger.held, self.rules.held_is_counted);
        let kept = counted(ledger.kept, self.rules.kept_is_counted);
        let gone = ledger.confirmed.or(held).or(kept);
        let gone = holds.units_of(gone) + holds.units_of(not_drained);
        let mut levels = ledger.product_levels(gone, holds);
        if !holds.allowed {
            return self.remaining(epoch, levels);
        }
        ledger.add_user_levels(&mut levels, self.counted_by_rebuild(state), holds);
        Rebuilder::ReadProducts(epoch, levels)
    }

    /// R11: reads the rows of users, and what they have returned, in another snapshot. The request ids are in a third one.
    fn read_users(&self, state: &State, epoch: u8, before: Levels) -> Rebuilder {
        let mut levels = before;
        let holds = &self.bounds.holds;
        state.ledger.add_user_levels(&mut levels, self.counted_by_rebuild(state), holds);
        if !self.rules.product_snapshot {
            levels.totals.product = state.ledger.totals.product;
        }
        if !self.rules.user_snapshot {
            levels.bought = before.bought;
        }
        if holds.one_request {
            return Rebuilder::ReadUsers(epoch, levels);
        }
        self.remaining(epoch, levels)
    }

    fn remaining(&self, epoch: u8, mut levels: Levels) -> Rebuilder {
        if !self.rules.totals_are_filled {
            levels.totals = Totals::default();
        }
        Rebuilder::Remaining(epoch, levels)
    }

    /// The rows that a rebuild counts for the limit.
    fn counted_by_rebuild(&self, state: &State) -> Set {
        match self.rules.only_counted {
            true => state.counted,
            false if state.ledger.has_limit => state.all(),
            false => Set::default(),
        }
    }
}

/// What R7 forbids: the same epoch for all that have read the one before it.
fn join(state: &mut State, epoch: u8) -> Option<Rebuilder> {
    if state.ledger.epoch > epoch {
        return None;
    }
    state.ledger.close(epoch);
    Some(Rebuilder::Closed(epoch))
}

//! Rebuilds (R7–R9), of one partition by several processes: any of them may begin at any time, be killed
//! at any step, or continue long after another has finished.

use super::Protocol;
use crate::{
    ledger::Stored,
    redis::signed,
    state::{Rebuilder, Reservation, State},
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
            Rebuilder::Draining(epoch) => Some(self.next_survivor(state, epoch)),
            Rebuilder::Found(epoch, reservation) => self
                .settle(state, epoch, reservation)
                .then_some(Rebuilder::Settled(epoch, reservation)),
            Rebuilder::Settled(epoch, reservation) => {
                let is_current = state.redis.remove_drained(rules, epoch, reservation);
                is_current.then_some(Rebuilder::Draining(epoch))
            }
            Rebuilder::Drained(epoch) => {
                let sold = state.ledger.confirmed.count();
                Some(remaining(state, epoch, sold))
            }
            Rebuilder::Remaining(epoch, supply, stock) => {
                let is_current = state.redis.fill(rules, epoch, (supply, stock));
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

    /// R8: the next surviving entry, if any. Reading is not fenced.
    fn next_survivor(&self, state: &State, epoch: u8) -> Rebuilder {
        let streams = state.redis.streams();
        if !self.rules.drain {
            return remaining(state, epoch, state.ledger.confirmed.count() + streams.count());
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
        let given_up = state.entry_id(reservation).epoch < state.ledger.last_open();
        if given_up && self.rules.lost_orders_are_voided {
            state.ledger.void(reservation);
            return true;
        }
        let new = !state.ledger.settled().has(reservation);
        match state.ledger.store(reservation, &state.accepted) {
            Stored::Confirmed if given_up && new => {
                state.history.stored_after_lost.add(reservation)
            }
            Stored::Confirmed | Stored::Voided => {}
            Stored::Inconsistent => {
                state.ledger.void(reservation);
            }
        }
        true
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

fn remaining(state: &State, epoch: u8, gone: u32) -> Rebuilder {
    let supply = state.ledger.supply;
    let gone = i8::try_from(gone).unwrap_or(i8::MAX);
    Rebuilder::Remaining(epoch, supply, signed(supply) - gone)
}

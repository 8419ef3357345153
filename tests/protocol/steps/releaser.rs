//! Releasers and operators: a dead entry is voided and released (R5), or stored after all.

use super::Protocol;
use crate::{
    ledger::StoreOutcome,
    state::{Releaser, Reservation, State},
};

/// What a releaser does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaserStep {
    /// Reads a dead entry. Reading is not fenced.
    Read(Reservation),
    /// The transaction that voids it.
    Void,
    /// The transaction that stores it: an operator's retry.
    Retry,
    /// The script that follows from the outcome.
    Finish,
    /// Is killed, or meets an error.
    Crash,
}

/// What a releaser may do next.
pub fn steps(state: &State, index: usize, mut add: impl FnMut(ReleaserStep)) {
    match state.releasers[index] {
        Releaser::Idle => {
            if index == 0 || state.releasers[index - 1] != Releaser::Idle {
                state.redis.dead.iter().for_each(|entry| add(ReleaserStep::Read(entry)));
            }
        }
        Releaser::Found(_) | Releaser::Released(_) => {
            [ReleaserStep::Void, ReleaserStep::Retry, ReleaserStep::Crash]
                .into_iter()
                .for_each(add);
        }
        Releaser::Voided(_) | Releaser::Stored(_) => {
            [ReleaserStep::Finish, ReleaserStep::Crash].into_iter().for_each(add);
        }
    }
}

impl Protocol {
    pub fn releaser(&self, state: &mut State, index: usize, step: ReleaserStep) -> Option<()> {
        let now = state.releasers[index];
        let next = match (step, now) {
            (ReleaserStep::Read(reservation), Releaser::Idle) => {
                let there = state.redis.dead.has(reservation);
                there.then_some(Releaser::Found(reservation))?
            }
            (ReleaserStep::Void, Releaser::Found(reservation)) => {
                self.void_or_release(state, reservation)?
            }
            (ReleaserStep::Void, Releaser::Released(reservation)) => {
                if !self.may_settle(state, reservation) {
                    return None;
                }
                state.ledger.void(reservation);
                Releaser::Idle
            }
            (ReleaserStep::Retry, Releaser::Found(reservation)) => {
                if !self.may_settle(state, reservation) {
                    return None;
                }
                match state.ledger.store(reservation, &state.accepted, &self.bounds) {
                    StoreOutcome::Stored | StoreOutcome::Returned => Releaser::Stored(reservation),
                    StoreOutcome::Voided => Releaser::Voided(reservation),
                    StoreOutcome::Inconsistent => Releaser::Idle,
                }
            }
            (ReleaserStep::Finish, Releaser::Voided(reservation)) => {
                self.release_dead(state, reservation);
                Releaser::Idle
            }
            (ReleaserStep::Finish, Releaser::Stored(reservation)) => {
                if self.is_open(state) {
                    state.redis.dead.remove(reservation);
                }
                Releaser::Idle
            }
            (ReleaserStep::Crash, _) if now != Releaser::Idle => Releaser::Idle,
            _ => return None,
        };
        state.releasers[index] = next;
        Some(())
    }

    fn void_or_release(&self, state: &mut State, reservation: Reservation) -> Option<Releaser> {
        if !self.rules.void_first {
            self.release_dead(state, reservation);
            return Some(Releaser::Released(reservation));
        }
        if !self.may_settle(state, reservation) {
            return None;
        }
        let void = state.ledger.void(reservation);
        Some(if void { Releaser::Voided(reservation) } else { Releaser::Stored(reservation) })
    }

    /// `release.lua` on a dead entry: the entry is the token.
    fn release_dead(&self, state: &mut State, reservation: Reservation) {
        if !self.is_open(state) {
            return;
        }
        if state.redis.dead.remove(reservation) || !self.rules.entry_is_token {
            self.release(state, reservation);
        }
    }

    /// `release.lua`, after it has removed the entry.
    pub fn release(&self, state: &mut State, reservation: Reservation) {
        let counted = state.counted.has(reservation);
        state.redis.give_back(reservation, &self.bounds.holds, counted);
        state.history.released.add(reservation);
    }
}

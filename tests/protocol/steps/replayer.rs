//! Replayers, and the operator's desk: a dead entry is voided and released (R5), or stored after all.

use super::Protocol;
use crate::{
    ledger::Stored,
    state::{Replayer, Reservation, State},
};

/// What a replayer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayerStep {
    /// Reads a dead entry. No fence is here.
    Read(Reservation),
    /// The transaction that voids it.
    Void,
    /// The transaction that stores it: an operator's retry.
    Retry,
    /// The script that the outcome asks for.
    Conclude,
    /// Is killed, or meets an error.
    Forget,
}

/// What a replayer may do next.
pub fn steps(state: &State, who: usize, mut add: impl FnMut(ReplayerStep)) {
    match state.replayers[who] {
        Replayer::Idle => {
            if who == 0 || state.replayers[who - 1] != Replayer::Idle {
                state.redis.dead.iter().for_each(|entry| add(ReplayerStep::Read(entry)));
            }
        }
        Replayer::Found(_) | Replayer::Released(_) => {
            [ReplayerStep::Void, ReplayerStep::Retry, ReplayerStep::Forget]
                .into_iter()
                .for_each(add);
        }
        Replayer::Voided(_) | Replayer::Stored(_) => {
            [ReplayerStep::Conclude, ReplayerStep::Forget].into_iter().for_each(add);
        }
    }
}

impl Protocol {
    pub fn replayer(&self, state: &mut State, who: usize, step: ReplayerStep) -> Option<()> {
        let now = state.replayers[who];
        let next = match (step, now) {
            (ReplayerStep::Read(reservation), Replayer::Idle) => {
                let there = state.redis.dead.has(reservation);
                there.then_some(Replayer::Found(reservation))?
            }
            (ReplayerStep::Void, Replayer::Found(reservation)) => {
                self.void_or_release(state, reservation)?
            }
            (ReplayerStep::Void, Replayer::Released(reservation)) => {
                if !self.may_settle(state, reservation) {
                    return None;
                }
                state.ledger.void(reservation);
                Replayer::Idle
            }
            (ReplayerStep::Retry, Replayer::Found(reservation)) => {
                if !self.may_settle(state, reservation) {
                    return None;
                }
                match state.ledger.store(reservation, &state.accepted) {
                    Stored::Confirmed => Replayer::Stored(reservation),
                    Stored::Voided => Replayer::Voided(reservation),
                    Stored::Inconsistent => Replayer::Idle,
                }
            }
            (ReplayerStep::Conclude, Replayer::Voided(reservation)) => {
                self.release_dead(state, reservation);
                Replayer::Idle
            }
            (ReplayerStep::Conclude, Replayer::Stored(reservation)) => {
                if self.is_let_in(state) {
                    state.redis.dead.remove(reservation);
                }
                Replayer::Idle
            }
            (ReplayerStep::Forget, _) if now != Replayer::Idle => Replayer::Idle,
            _ => return None,
        };
        state.replayers[who] = next;
        Some(())
    }

    fn void_or_release(&self, state: &mut State, reservation: Reservation) -> Option<Replayer> {
        if !self.rules.void_first {
            self.release_dead(state, reservation);
            return Some(Replayer::Released(reservation));
        }
        if !self.may_settle(state, reservation) {
            return None;
        }
        let void = state.ledger.void(reservation);
        Some(if void { Replayer::Voided(reservation) } else { Replayer::Stored(reservation) })
    }

    /// `release.lua` on a dead entry: the entry is the token.
    fn release_dead(&self, state: &mut State, reservation: Reservation) {
        if !self.is_let_in(state) {
            return;
        }
        if state.redis.dead.remove(reservation) || !self.rules.entry_is_token {
            state.redis.stock += 1;
            state.past.released.add(reservation);
        }
    }
}

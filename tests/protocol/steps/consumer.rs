//! Consumers: read, store and settle, release or move to dead. Each step may come at any later time, and between any
//! two of them a consumer may crash.

use super::Protocol;
use crate::{
    ledger::StoreOutcome,
    state::{Consumer, Reservation, State},
};

/// What a consumer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumerStep {
    /// Reads a new entry, or takes one over from a dead or stalled consumer. Reading is not fenced.
    Read(Reservation),
    /// The transaction that stores it.
    Store,
    /// The same transaction, which fails because of the order.
    Fail,
    /// The script that follows from the outcome.
    Finish,
    /// Is killed, or drops an entry of an earlier epoch.
    Crash,
}

/// What a consumer may do next.
pub fn steps(state: &State, index: usize, mut add: impl FnMut(ConsumerStep)) {
    match state.consumers[index] {
        // Equal actors: it is enough that one of the idle ones reads.
        Consumer::Idle => {
            if index == 0 || state.consumers[index - 1] != Consumer::Idle {
                state.redis.orders.iter().for_each(|entry| add(ConsumerStep::Read(entry)));
            }
        }
        Consumer::Holds(_) => {
            [ConsumerStep::Store, ConsumerStep::Fail, ConsumerStep::Crash]
                .into_iter()
                .for_each(add);
        }
        Consumer::Stored(_) | Consumer::Voided(_) | Consumer::Failed(_) | Consumer::Refused(_) => {
            [ConsumerStep::Finish, ConsumerStep::Crash].into_iter().for_each(add);
        }
    }
}

impl Protocol {
    pub fn consumer(&self, state: &mut State, index: usize, step: ConsumerStep) -> Option<()> {
        let now = state.consumers[index];
        let next = match (step, now) {
            (ConsumerStep::Read(reservation), Consumer::Idle) => {
                let there = state.redis.orders.has(reservation);
                there.then_some(Consumer::Holds(reservation))?
            }
            (ConsumerStep::Store, Consumer::Holds(reservation)) => {
                if !self.may_settle(state, reservation) {
                    return None;
                }
                match state.ledger.store(reservation, &state.accepted, &self.bounds) {
                    StoreOutcome::Stored => Consumer::Stored(reservation),
                    StoreOutcome::Returned if self.rules.returned_is_settled => {
                        Consumer::Stored(reservation)
                    }
                    StoreOutcome::Returned | StoreOutcome::Voided => Consumer::Voided(reservation),
                    StoreOutcome::Inconsistent => Consumer::Refused(reservation),
                }
            }
            (ConsumerStep::Fail, Consumer::Holds(reservation)) => {
                let allowed = self.bounds.poison && self.may_settle(state, reservation);
                allowed.then_some(Consumer::Failed(reservation))?
            }
            (ConsumerStep::Finish, _) => self.finish(state, now)?,
            (ConsumerStep::Crash, _) if now != Consumer::Idle => Consumer::Idle,
            _ => return None,
        };
        state.consumers[index] = next;
        Some(())
    }

    /// If the fence refuses the script, the entry stays unsettled and is stored again.
    fn finish(&self, state: &mut State, now: Consumer) -> Option<Consumer> {
        let reservation = match now {
            Consumer::Idle | Consumer::Holds(_) => return None,
            Consumer::Stored(reservation)
            | Consumer::Voided(reservation)
            | Consumer::Failed(reservation)
            | Consumer::Refused(reservation) => reservation,
        };
        if !self.is_open(state) {
            return Some(Consumer::Holds(reservation));
        }
        // Redis knows an entry by its stream id alone.
        let entry = state.with_same_entry_id(reservation, state.redis.orders);
        match (now, entry) {
            (Consumer::Refused(_), _) => {
                state.redis.close();
                return Some(Consumer::Holds(reservation));
            }
            (Consumer::Failed(_), Some(entry)) => state.redis.move_to_dead(entry),
            (Consumer::Voided(_), Some(entry)) if self.rules.voided_is_released => {
                state.redis.orders.remove(entry);
                self.release(state, entry);
            }
            (_, Some(entry)) => {
                state.redis.orders.remove(entry);
            }
            (_, None) => {}
        }
        Some(Consumer::Idle)
    }
}

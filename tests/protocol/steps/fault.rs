//! Faults: Redis is rewound, and an operator changes the ledger.

use super::Protocol;
use crate::{
    redis::Redis,
    rules::Bounds,
    state::{Reservation, State},
};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultStep {
    /// A backup is taken, or a replica stops replicating.
    Copy,
    /// Redis restarts, and has lost nothing.
    Restart,
    /// Redis is emptied.
    Empty,
    /// The copy is restored, or the replica promoted.
    Restore,
    /// An operator voids an order in the ledger.
    VoidByHand(Reservation),
}

/// The faults that may happen next.
pub fn steps(state: &State, bounds: &Bounds, mut add: impl FnMut(FaultStep)) {
    if state.budget.rewinds > 0 {
        [FaultStep::Copy, FaultStep::Restart, FaultStep::Empty, FaultStep::Restore]
            .into_iter()
            .for_each(&mut add);
    }
    if bounds.manual_voids {
        state.redis.orders.iter().for_each(|entry| add(FaultStep::VoidByHand(entry)));
    }
}

impl Protocol {
    pub fn fault(&self, state: &mut State, step: FaultStep) -> Option<()> {
        let other = match step {
            FaultStep::Copy => {
                state.budget.copies = state.budget.copies.checked_sub(1)?;
                state.copy = Some(state.redis.rewound());
                return Some(());
            }
            FaultStep::VoidByHand(reservation) => {
                let allowed = self.bounds.manual_voids && state.redis.orders.has(reservation);
                return (allowed && state.ledger.void(reservation)).then_some(());
            }
            FaultStep::Restart => state.redis.rewound(),
            FaultStep::Empty => Redis::default(),
            FaultStep::Restore => state.copy.clone()?,
        };
        state.budget.rewinds = state.budget.rewinds.checked_sub(1)?;
        let before = state.redis.streams();
        state.history.rewound = state.history.rewound.or(before.without(other.streams()));
        state.redis = other;
        if state.budget.rewinds == 0 {
            state.copy = None;
            state.budget.copies = 0;
        }
        Some(())
    }
}

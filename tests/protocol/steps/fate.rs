//! What nobody does on purpose: Redis loses its past, and somebody reaches into the ledger.

use super::Protocol;
use crate::{
    redis::Redis,
    state::{Reservation, State},
};

/// A turn of fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FateStep {
    /// A backup is taken, or a replica gets no further.
    Copy,
    /// Redis restarts, and has lost nothing.
    Restart,
    /// Redis is emptied.
    Empty,
    /// The copy comes back: restored, or promoted.
    Restore,
    /// Somebody voids an order in the ledger.
    VoidByHand(Reservation),
}

/// What may befall.
pub fn steps(state: &State, mut add: impl FnMut(FateStep)) {
    if state.left.rewinds > 0 {
        [FateStep::Copy, FateStep::Restart, FateStep::Empty, FateStep::Restore]
            .into_iter()
            .for_each(&mut add);
    }
    state.redis.orders.iter().for_each(|entry| add(FateStep::VoidByHand(entry)));
}

impl Protocol {
    pub fn fate(&self, state: &mut State, step: FateStep) -> Option<()> {
        let other = match step {
            FateStep::Copy => {
                state.left.copies = state.left.copies.checked_sub(1)?;
                state.copy = Some(state.redis.rewound());
                return Some(());
            }
            FateStep::VoidByHand(reservation) => {
                let may = self.bounds.hands && state.redis.orders.has(reservation);
                return (may && state.ledger.void(reservation)).then_some(());
            }
            FateStep::Restart => state.redis.rewound(),
            FateStep::Empty => Redis::default(),
            FateStep::Restore => state.copy.clone()?,
        };
        state.left.rewinds = state.left.rewinds.checked_sub(1)?;
        let before = state.redis.streams();
        state.past.rewound = state.past.rewound.or(before.without(other.streams()));
        state.redis = other;
        if state.left.rewinds == 0 {
            state.copy = None;
            state.left.copies = 0;
        }
        Some(())
    }
}

//! Gateways, and the processes that apply grants to Redis. A gateway is defined by the epoch it sells in, and any
//! number of them may sell in any epoch that was ever open: so gateways have no state in this model.

use super::Protocol;
use crate::{
    rules::Bounds,
    state::{RESERVATIONS_MAX, State},
};

/// What a gateway does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayStep {
    /// `reserve.lua`.
    Reserve,
    /// A grant is committed in the ledger.
    Grant,
    /// `set_supply.lua`, by any process.
    ApplyGrant,
    /// An operator removes the limit of the product, or sets it again, in the ledger.
    ChangeLimit,
    /// `write_terms.lua`, by any process.
    ApplyTerms,
}

/// What gateways may do next.
pub fn steps(state: &State, bounds: &Bounds, mut add: impl FnMut(GatewayStep)) {
    if state.all().count() < u32::from(bounds.reservations) {
        add(GatewayStep::Reserve);
    }
    if bounds.grants > 0 {
        [GatewayStep::Grant, GatewayStep::ApplyGrant].into_iter().for_each(&mut add);
    }
    if bounds.holds.limit_changes > 0 {
        [GatewayStep::ChangeLimit, GatewayStep::ApplyTerms].into_iter().for_each(add);
    }
}

impl Protocol {
    pub fn gateway(&self, state: &mut State, step: GatewayStep) -> Option<()> {
        match step {
            GatewayStep::Reserve => self.reserve(state),
            GatewayStep::Grant => {
                state.budget.grants = state.budget.grants.checked_sub(1)?;
                state.ledger.supply += 1;
                state.unapplied_grants += u8::from(!self.rules.absolute_grants);
                Some(())
            }
            GatewayStep::ApplyGrant => {
                if !self.is_open(state) {
                    return None;
                }
                if self.rules.absolute_grants {
                    return state.redis.set_supply(state.ledger.supply).then_some(());
                }
                state.unapplied_grants = state.unapplied_grants.checked_sub(1)?;
                state.redis.add_unit();
                Some(())
            }
            GatewayStep::ChangeLimit => {
                state.budget.limit_changes = state.budget.limit_changes.checked_sub(1)?;
                state.ledger.has_limit = !state.ledger.has_limit;
                Some(())
            }
            GatewayStep::ApplyTerms => {
                let differs = state.redis.has_limit != state.ledger.has_limit;
                (differs && self.is_open(state)).then_some(())?;
                state.redis.has_limit = state.ledger.has_limit;
                Some(())
            }
        }
    }

    fn reserve(&self, state: &mut State) -> Option<()> {
        let limit = RESERVATIONS_MAX.min(usize::from(self.bounds.reservations));
        let place = state.accepted[..limit].iter().position(Option::is_none)?;
        if !self.is_open(state) {
            return None;
        }
        let reservation = u8::try_from(place).ok()?;
        let id = state.redis.reserve(reservation, &self.bounds.holds)?;
        state.accepted[place] = Some(id);
        if state.redis.has_limit {
            state.counted.add(reservation);
        }
        Some(())
    }
}

//! What must always hold under the rules of docs/ARCHITECTURE.md, and what must be reachable, so that it does not
//! hold trivially.

use stateright::Property;

use crate::{
    redis::{Meta, signed},
    state::{Consumer, Rebuilder, State},
    steps::Protocol,
};

pub const ONE_PLACE: &str = "while a partition sells, each unit is in one place";
pub const SUPPLY: &str = "the ledger holds no more orders than units";
pub const NEVER_REFUSED: &str = "no order of an open partition is refused by the ledger";
pub const NOT_NEGATIVE: &str = "stock is never negative";
pub const NEVER_DROPPED: &str = "an accepted order disappears only with a rewind of Redis";
pub const RELEASED_ONLY_UNSOLD: &str = "no unit is released whose order is stored";
pub const ONE_EPOCH: &str = "an open partition holds no entry of an earlier epoch";
pub const UNIQUE_ENTRY_ID: &str = "no two reservations have one stream id";
pub const LOST_NOT_STORED: &str = "an order that was counted as lost is not stored";

pub const REBUILT: &str = "a rebuild ends after a rewind";
pub const GIVEN_BACK: &str = "an order is voided and its unit goes back";
pub const GRANT_REBUILT: &str = "a rebuild applies a grant to Redis";
pub const STALLED: &str = "a stalled consumer handles an entry that others have settled";
pub const STALLED_VOIDED: &str = "a stalled consumer finds a voided row";
pub const LOST: &str = "an accepted order is lost by a rewind of Redis";
pub const RECOVERED: &str = "a rebuild stores an order that a rewind restored";
pub const LATE_REBUILD: &str = "a late rebuilder continues while a newer one works";
pub const VOIDED_BY_REBUILD: &str = "a rebuild voids an order that is beyond the supply";

/// All properties.
pub fn all() -> Vec<Property<Protocol>> {
    vec![
        always(ONE_PLACE, each_unit_is_in_one_place),
        always(SUPPLY, |model, state| {
            let units = model.bounds.holds.units_of(state.ledger.sold_or_held());
            units <= signed(state.ledger.supply)
        }),
        always(NEVER_REFUSED, |_, state| {
            !has(state, |consumer| matches!(consumer, Consumer::Refused(_)))
        }),
        always(NOT_NEGATIVE, |_, state| state.redis.stock >= 0),
        always(NEVER_DROPPED, |_, state| {
            let known = state.ledger.decided().or(state.redis.streams()).or(state.history.rewound);
            state.all().without(known).is_empty()
        }),
        always(RELEASED_ONLY_UNSOLD, |_, state| {
            state.history.released.and(state.ledger.rows()).is_empty()
        }),
        always(ONE_EPOCH, only_entries_of_its_epoch),
        always(UNIQUE_ENTRY_ID, |_, state| {
            let all = state.all();
            all.iter()
                .all(|reservation| state.with_same_entry_id(reservation, all) == Some(reservation))
        }),
        always(LOST_NOT_STORED, |_, state| state.history.stored_after_lost.is_empty()),
        sometimes(REBUILT, |model, state| {
            state.budget.rewinds < model.bounds.rewinds
                && state.ledger.open
                && state.ledger.epoch > 1
                && model.selling_epoch(state) == Some(state.ledger.epoch)
        }),
        sometimes(GIVEN_BACK, |_, state| {
            !state.history.released.and(state.ledger.voided).is_empty()
        }),
        sometimes(GRANT_REBUILT, |model, state| {
            let filled = |rebuilder| matches!(rebuilder, Rebuilder::Filled(_));
            state.redis.supply > model.bounds.supply && state.rebuilders.into_iter().any(filled)
        }),
        sometimes(STALLED, |_, state| {
            has(state, |consumer| {
                let Consumer::Holds(reservation) = consumer else { return false };
                let decided = state.ledger.decided().has(reservation);
                decided && !state.redis.streams().has(reservation)
            })
        }),
        sometimes(STALLED_VOIDED, |_, state| {
            has(state, |consumer| matches!(consumer, Consumer::Voided(_)))
        }),
        sometimes(LOST, |_, state| {
            let known = state.ledger.decided().or(state.redis.streams());
            state.ledger.open && state.ledger.epoch > 1 && !state.all().without(known).is_empty()
        }),
        sometimes(RECOVERED, |_, state| !state.history.rewound.and(state.ledger.rows()).is_empty()),
        sometimes(LATE_REBUILD, |_, state| {
            let late = |rebuilder| {
                let Rebuilder::Filled(epoch) = rebuilder else { return false };
                let its_own = |meta: Meta| meta.epoch == epoch && meta.current;
                epoch < state.ledger.epoch && state.redis.meta.is_some_and(its_own)
            };
            state.rebuilders.into_iter().any(late)
        }),
        sometimes(VOIDED_BY_REBUILD, |model, state| {
            !model.bounds.poison && !state.ledger.voided.is_empty()
        }),
    ]
}

fn has(state: &State, is: impl Fn(Consumer) -> bool) -> bool {
    state.consumers.into_iter().any(is)
}

/// supply = stock + in orders + in dead + held + confirmed + kept + returned and not applied to Redis. The unit of an
/// order that is stored and not settled yet is where its row is. An order that is voided and not released yet still has
/// its unit.
fn each_unit_is_in_one_place(model: &Protocol, state: &State) -> bool {
    if !model.is_open(state) {
        return true;
    }
    let (redis, ledger) = (&state.redis, &state.ledger);
    let waiting = redis.streams().without(ledger.rows());
    let taken = model.bounds.holds.units_of(waiting.or(ledger.sold_or_held()));
    let not_applied = signed(ledger.totals.minus(redis.totals).product);
    let granted = model.bounds.supply..=ledger.supply;
    redis.stock + taken + not_applied == signed(redis.supply)
        && ledger.totals.product >= redis.totals.product
        && granted.contains(&redis.supply)
        && redis.orders.and(redis.dead).is_empty()
}

fn only_entries_of_its_epoch(model: &Protocol, state: &State) -> bool {
    let Some(epoch) = model.selling_epoch(state) else { return true };
    state.redis.streams().iter().all(|reservation| state.entry_id(reservation).epoch == epoch)
}

pub type Condition = fn(&Protocol, &State) -> bool;

pub fn always(name: &'static str, condition: Condition) -> Property<Protocol> {
    Property::always(name, condition)
}

pub fn sometimes(name: &'static str, condition: Condition) -> Property<Protocol> {
    Property::sometimes(name, condition)
}

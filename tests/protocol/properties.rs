//! What must always hold (section 6 of the design), and what must be reachable lest it hold in vain.

use stateright::Property;

use crate::{
    redis::{Meta, signed},
    state::{Consumer, Rebuilder, State},
    steps::Protocol,
};

pub const ONE_PLACE: &str = "while a partition sells, each unit is in one place";
pub const SUPPLY: &str = "the ledger holds no more orders than units";
pub const PROMISES: &str = "no order of an open partition is refused by the ledger";
pub const NOT_NEGATIVE: &str = "stock is never negative";
pub const NOT_DROPPED: &str = "an accepted order vanishes only with Redis's past";
pub const RELEASED: &str = "no unit goes back whose order stands";
pub const ONE_LIFE: &str = "an open partition holds nothing of an earlier life";
pub const OWN_ID: &str = "no two reservations have one stream id";
pub const STAY_LOST: &str = "what was given up for lost is not stored";

pub const REBUILT: &str = "a rebuild ends after a rewind";
pub const GAVE_BACK: &str = "an order is voided and its unit goes back";
pub const GRANT_REBUILT: &str = "a grant comes to Redis by a rebuild";
pub const ZOMBIE: &str = "a stalled consumer meets what others have settled";
pub const ZOMBIE_VOIDED: &str = "a stalled consumer meets a voided row";
pub const LOST: &str = "an accepted order is lost with Redis's past";
pub const CAUGHT: &str = "a rebuild stores what a rewind brought back";
pub const RIVALS: &str = "a late rebuilder goes on while a newer one works";
pub const OVERTAKEN: &str = "what survived finds no supply and is voided by a rebuild";

/// Everything.
pub fn all() -> Vec<Property<Protocol>> {
    vec![
        always(ONE_PLACE, each_unit_is_in_one_place),
        always(SUPPLY, |_, state| state.ledger.confirmed.count() <= u32::from(state.ledger.supply)),
        always(PROMISES, |_, state| {
            !has(state, |consumer| matches!(consumer, Consumer::Refused(_)))
        }),
        always(NOT_NEGATIVE, |_, state| state.redis.stock >= 0),
        always(NOT_DROPPED, |_, state| {
            let known = state.ledger.settled().or(state.redis.streams()).or(state.past.rewound);
            state.all().without(known).is_empty()
        }),
        always(RELEASED, |_, state| state.past.released.and(state.ledger.confirmed).is_empty()),
        always(ONE_LIFE, nothing_of_an_earlier_life),
        always(OWN_ID, |_, state| {
            let all = state.all();
            all.iter().all(|reservation| state.named_like(reservation, all) == Some(reservation))
        }),
        always(STAY_LOST, |_, state| state.past.came_back.is_empty()),
        sometimes(REBUILT, |model, state| {
            state.left.rewinds < model.bounds.rewinds
                && state.ledger.open
                && state.ledger.epoch > 1
                && model.selling_epoch(state) == Some(state.ledger.epoch)
        }),
        sometimes(GAVE_BACK, |_, state| !state.past.released.and(state.ledger.voided).is_empty()),
        sometimes(GRANT_REBUILT, |model, state| {
            let filled = |rebuilder| matches!(rebuilder, Rebuilder::Filled(_));
            state.redis.supply > model.bounds.supply && state.rebuilders.into_iter().any(filled)
        }),
        sometimes(ZOMBIE, |_, state| {
            has(state, |consumer| {
                let Consumer::Holds(reservation) = consumer else { return false };
                let settled = state.ledger.settled().has(reservation);
                settled && !state.redis.streams().has(reservation)
            })
        }),
        sometimes(ZOMBIE_VOIDED, |_, state| {
            has(state, |consumer| matches!(consumer, Consumer::Voided(_)))
        }),
        sometimes(LOST, |_, state| {
            let known = state.ledger.settled().or(state.redis.streams());
            state.ledger.open && state.ledger.epoch > 1 && !state.all().without(known).is_empty()
        }),
        sometimes(CAUGHT, |_, state| !state.past.rewound.and(state.ledger.confirmed).is_empty()),
        sometimes(RIVALS, |_, state| {
            let late = |rebuilder| {
                let Rebuilder::Filled(epoch) = rebuilder else { return false };
                let its_own = |meta: Meta| meta.epoch == epoch && meta.current;
                epoch < state.ledger.epoch && state.redis.meta.is_some_and(its_own)
            };
            state.rebuilders.into_iter().any(late)
        }),
        sometimes(OVERTAKEN, |model, state| {
            !model.bounds.poison && !state.ledger.voided.is_empty()
        }),
    ]
}

fn has(state: &State, is: impl Fn(Consumer) -> bool) -> bool {
    state.consumers.into_iter().any(is)
}

/// supply = available + in orders + in dead + confirmed. An order that is stored and not settled yet is
/// confirmed; one that is voided and not released yet still has its unit.
fn each_unit_is_in_one_place(model: &Protocol, state: &State) -> bool {
    if !model.is_let_in(state) {
        return true;
    }
    let (redis, ledger) = (&state.redis, &state.ledger);
    let waiting = redis.streams().without(ledger.confirmed);
    let taken = i8::try_from(waiting.count() + ledger.confirmed.count()).unwrap_or(i8::MAX);
    let granted = model.bounds.supply..=ledger.supply;
    redis.stock + taken == signed(redis.supply)
        && granted.contains(&redis.supply)
        && redis.orders.and(redis.dead).is_empty()
}

fn nothing_of_an_earlier_life(model: &Protocol, state: &State) -> bool {
    let Some(epoch) = model.selling_epoch(state) else { return true };
    state.redis.streams().iter().all(|reservation| state.entry_id(reservation).epoch == epoch)
}

type Condition = fn(&Protocol, &State) -> bool;

fn always(name: &'static str, condition: Condition) -> Property<Protocol> {
    Property::always(name, condition)
}

fn sometimes(name: &'static str, condition: Condition) -> Property<Protocol> {
    Property::sometimes(name, condition)
}

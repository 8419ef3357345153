//! What must always hold in a model with holds, and what must be reachable there.

use stateright::Property;

use crate::{
    properties::{always, sometimes},
    redis::signed,
    state::{Rebuilder, Set, State},
    steps::Protocol,
};

pub const LIMIT_COUNT: &str =
    "while a partition sells, each unit that counts for a limit is counted once";
pub const WITHIN_LIMIT: &str = "no user has more units than the limit";
pub const ONE_REQUEST: &str =
    "while a partition sells, the request id names the reservation that was made with it";
pub const REQUEST_FREED: &str = "when a return is applied, its request id is free";
pub const APPLIED: &str = "while a partition sells, a return that is marked as applied is applied";
pub const PAID: &str = "a reservation whose confirm was answered is confirmed until it is refunded";
pub const HELD_COUNT: &str =
    "while a partition sells, what SOLD_OUT shows as held is held or about to be applied";
pub const HONEST: &str = "while SOLD_OUT shows nothing on hold, no hold can give units back";
pub const NOT_EARLY: &str = "no hold expires whose time was extended";

pub const BOUNDS_REACHED: &str = "all requests, rewinds and epochs of the bounds are used";
pub const RESOLD: &str = "a returned unit is confirmed by another reservation";
pub const CONFIRMED: &str = "a reservation is confirmed in an epoch after the one that accepted it";
pub const RETURN_REBUILT: &str = "a rebuild applies a return to Redis";
pub const RETURN_AFTER_SNAPSHOT: &str = "a unit is returned after the rebuild has read the ledger";
pub const APPLIED_TWICE: &str =
    "a return that is marked as applied is applied again after a rebuild";
pub const RETURNED_IN_ORDERS: &str = "a returned reservation has its entry in orders";
pub const DRAIN_MEETS_RETURNED: &str = "a rebuild drains the entry of a returned reservation";
pub const KEPT: &str = "units are kept from sale and Redis is rebuilt";
pub const BOUGHT_AGAIN: &str = "a user buys again after a return";
pub const REQUEST_REUSED: &str = "a request id is used again after its reservation was returned";
pub const COUNTED_AND_NOT: &str = "one reservation counts for the limit and another does not";
pub const EXTENDED: &str = "a hold whose time was over and was extended is confirmed";

/// All properties of a model with holds.
pub fn all() -> Vec<Property<Protocol>> {
    let mut all = vec![
        always(LIMIT_COUNT, each_counted_unit_is_counted_once),
        always(WITHIN_LIMIT, |model, state| {
            let holds = &model.bounds.holds;
            // While it is closed, an order that was counted as lost may wait for its void.
            let waiting = if model.is_open(state) { waiting(state) } else { Set::default() };
            let live = waiting.or(state.ledger.live());
            holds.limit == 0 || holds.units_of(live.and(state.counted)) <= signed(holds.limit)
        }),
        always(ONE_REQUEST, |model, state| {
            let live = waiting(state).or(state.ledger.live());
            let mut names = live.iter().map(|live| state.redis.remembered == Some(live));
            !model.bounds.holds.one_request || !model.is_open(state) || names.all(|names| names)
        }),
        always(REQUEST_FREED, |model, state| {
            let named = state.redis.remembered;
            !model.is_open(state) || !named.is_some_and(|named| state.ledger.applied.has(named))
        }),
        always(APPLIED, |model, state| {
            let after = |row: u8| state.ledger.totals_after[usize::from(row)];
            let mut applied = state.ledger.applied.iter();
            !model.is_open(state) || applied.all(|row| state.redis.totals.covers(after(row)))
        }),
        always(PAID, |_, state| state.history.paid.without(state.ledger.confirmed).is_empty()),
        always(NOT_EARLY, |_, state| state.history.expired_early.is_empty()),
    ];
    all.extend(shown());
    all.extend(reachable());
    all
}

fn shown() -> [Property<Protocol>; 2] {
    fn checked(model: &Protocol, state: &State) -> bool {
        model.bounds.holds.shown && model.is_open(state)
    }
    [
        always(HELD_COUNT, |model, state| {
            let (redis, ledger) = (&state.redis, &state.ledger);
            let held = model.bounds.holds.units_of(waiting(state).or(ledger.held));
            let not_applied = signed(ledger.totals.minus(redis.totals).ended);
            !checked(model, state) || redis.held == held + not_applied
        }),
        always(HONEST, |model, state| {
            let held = waiting(state).or(state.ledger.held);
            let not_applied = state.ledger.totals.minus(state.redis.totals).product;
            let returns = !held.is_empty() || not_applied > 0 && !model.bounds.holds.refunds;
            !checked(model, state) || state.redis.held > 0 || !returns
        }),
    ]
}

fn reachable() -> Vec<Property<Protocol>> {
    vec![
        sometimes(BOUNDS_REACHED, |model, state| {
            let all = state.all().count() == u32::from(model.bounds.reservations);
            all && state.budget.rewinds == 0 && state.ledger.last_open() == model.bounds.epochs
        }),
        sometimes(RESOLD, |model, state| {
            let ledger = &state.ledger;
            let gone = model.bounds.holds.units_of(ledger.returned.or(ledger.confirmed));
            !ledger.confirmed.is_empty() && gone > signed(ledger.supply)
        }),
        sometimes(CONFIRMED, |_, state| {
            let mut confirmed = state.ledger.confirmed.iter();
            confirmed.any(|row| state.entry_id(row).epoch < state.ledger.last_open())
        }),
        sometimes(RETURN_REBUILT, |model, state| {
            let returned = state.ledger.returned.without(state.history.script_ran);
            let known = state.redis.totals == state.ledger.totals;
            model.is_open(state) && !returned.is_empty() && known
        }),
        sometimes(RETURN_AFTER_SNAPSHOT, |_, state| {
            state.rebuilders.into_iter().any(|rebuilder| {
                let Rebuilder::Remaining(epoch, levels) = rebuilder else { return false };
                epoch == state.ledger.epoch && levels.totals != state.ledger.totals
            })
        }),
        sometimes(APPLIED_TWICE, |model, state| {
            let applied = state.ledger.applied.and(state.history.script_ran);
            let rebuilt = state.ledger.epoch > 1 && state.ledger.open;
            model.is_open(state) && rebuilt && !applied.is_empty()
        }),
        sometimes(RETURNED_IN_ORDERS, |model, state| {
            let returned = state.redis.orders.and(state.ledger.returned);
            model.is_open(state) && !returned.is_empty()
        }),
        sometimes(DRAIN_MEETS_RETURNED, |_, state| {
            state.rebuilders.into_iter().any(|rebuilder| {
                let Rebuilder::Found(epoch, entry) = rebuilder else { return false };
                epoch == state.ledger.epoch && state.ledger.returned.has(entry)
            })
        }),
        sometimes(KEPT, |model, state| {
            let rebuilt = state.ledger.epoch > 1 && state.ledger.open;
            model.is_open(state) && rebuilt && !state.ledger.kept.is_empty()
        }),
        sometimes(BOUGHT_AGAIN, |_, state| {
            let counted = |rows: Set| !rows.and(state.counted).is_empty();
            counted(state.ledger.returned) && counted(waiting(state))
        }),
        sometimes(REQUEST_REUSED, |_, state| {
            let again = state.redis.remembered.is_some();
            again && state.ledger.returned.iter().any(|row| state.redis.remembered > Some(row))
        }),
        sometimes(COUNTED_AND_NOT, |_, state| {
            let live = state.ledger.live();
            let counted = live.and(state.counted);
            !counted.is_empty() && !live.without(counted).is_empty()
        }),
        sometimes(EXTENDED, |_, state| {
            !state.history.was_due.and(state.ledger.confirmed).is_empty()
        }),
    ]
}

/// Accepted, not stored, and in a stream. A voided one waits for its release.
fn waiting(state: &State) -> Set {
    state.redis.streams().without(state.ledger.rows())
}

/// bought = waiting + held + confirmed + returned and not applied to Redis, of those that count.
fn each_counted_unit_is_counted_once(model: &Protocol, state: &State) -> bool {
    if !model.is_open(state) {
        return true;
    }
    let (redis, ledger) = (&state.redis, &state.ledger);
    let live = waiting(state).or(ledger.live());
    let not_applied = signed(ledger.totals.minus(redis.totals).user);
    redis.bought == model.bounds.holds.units_of(live.and(state.counted)) + not_applied
        && ledger.totals.user >= redis.totals.user
}

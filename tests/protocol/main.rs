//! A model of the protocol, checked exhaustively: in every order of steps, no unit is sold twice or lost. Each
//! rule is needed: without it, the checker finds a trace that breaks a property.
//!
//! ```text
//! rules       the rules that can be removed, and the bounds of a model
//! state       the state of a model
//! redis       one script per function      ledger   one transaction per function
//! steps       gateways, consumers, releasers, rebuilders, changes of stored reservations, faults
//! properties  what must hold, and what must be reachable; hold_properties: in a model with holds
//! holds       the bounds and tests of models with holds (R11, R12)
//! opening     a separate model of the first opening
//! marks       a separate model of the count of lost orders (R10)
//! changes     a separate model of the numbers of changes (R13)
//! ```
//!
//! A model has one product. A batch is modelled as single entries. Delivery counts (R4) are not modelled. Request ids
//! and limits are modelled with holds only, and for one user.
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod changes;
mod hold_properties;
mod holds;
mod ledger;
mod marks;
mod opening;
mod properties;
mod redis;
mod rules;
mod state;
mod steps;

use std::{fmt::Debug, hash::Hash};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::{
    marks::Marks,
    opening::Openings,
    properties::{
        GIVEN_BACK, GRANT_REBUILT, LATE_REBUILD, LOST, LOST_NOT_STORED, NEVER_DROPPED,
        NEVER_REFUSED, ONE_PLACE, REBUILT, RECOVERED, RELEASED_ONLY_UNSOLD, STALLED,
        STALLED_VOIDED, UNIQUE_ENTRY_ID, VOIDED_BY_REBUILD,
    },
    rules::{ALL, Bounds, NO_HOLDS, Rules},
    steps::Protocol,
};

const THREADS: usize = 2;

/// Redis loses its recent writes twice, with three orders and two consumers.
const REWINDS: Bounds = Bounds {
    reservations: 3,
    supply: 2,
    grants: 0,
    rewinds: 2,
    copies: 1,
    epochs: 4,
    consumers: 2,
    releasers: 0,
    rebuilders: 1,
    poison: false,
    manual_voids: false,
    holds: NO_HOLDS,
};

/// Two rebuilders and a grant, which a rebuild or `set_supply.lua` may apply to Redis.
const TWO_REBUILDERS: Bounds =
    Bounds { reservations: 2, supply: 1, grants: 1, epochs: 3, rebuilders: 2, ..REWINDS };

/// Orders that cannot be stored, are moved to dead and released; and two rewinds.
const POISON: Bounds =
    Bounds { reservations: 2, supply: 1, epochs: 3, releasers: 1, poison: true, ..REWINDS };

/// The same with two releasers, and one rewind.
const TWO_RELEASERS: Bounds = Bounds { rewinds: 1, epochs: 2, releasers: 2, ..POISON };

/// The smallest bounds with two rewinds.
const SMALL: Bounds = Bounds { reservations: 2, supply: 1, epochs: 3, ..REWINDS };

/// An operator voids orders in the ledger that are still in Redis.
const MANUAL_VOIDS: Bounds = Bounds { rewinds: 1, manual_voids: true, poison: false, ..POISON };

/// A model that several threads can check.
trait CheckedModel:
    Model<
        State: Clone + Debug + PartialEq + Hash + Send + Sync,
        Action: Clone + Debug + PartialEq + Send + Sync,
    > + Send
    + Sync
    + 'static
{
}

impl CheckedModel for Protocol {}
impl CheckedModel for Openings {}
impl CheckedModel for Marks {}
impl CheckedModel for changes::Changes {}

/// Checks all states of a model: every property holds, and what must be reachable is reached. Returns the number
/// of states.
fn assert_no_violation(model: impl CheckedModel, reached: &[&str]) -> usize {
    let checker = model.checker().threads(THREADS).spawn_bfs().join();
    // Without a limit it ends when all states are checked.
    assert!(checker.is_done());
    let found = checker.discoveries();
    for property in checker.model().properties() {
        let name = property.name;
        if property.expectation == Expectation::Always {
            let trace = found.get(name).cloned().map(|path| path.into_actions());
            assert!(trace.is_none(), "{name}: {trace:#?}");
        }
    }
    for name in reached {
        assert!(found.contains_key(name), "never: {name}");
    }
    checker.unique_state_count()
}

/// Checks until a property is broken; returns the steps to it.
fn find_violation<M: CheckedModel>(model: M, broken: &'static str) -> Vec<M::Action> {
    let first = HasDiscoveries::AnyOf([broken].into());
    let checker = model.checker().threads(THREADS).finish_when(first).spawn_bfs().join();
    let trace = checker.discovery(broken);
    trace.unwrap_or_else(|| panic!("found no trace: {broken}")).into_actions()
}

fn program(bounds: Bounds) -> Protocol {
    Protocol { rules: ALL, bounds }
}

/// The length of the trace that breaks a property under these rules.
fn steps_without(rules: Rules, bounds: Bounds, broken: &'static str) -> usize {
    find_violation(Protocol { rules, bounds }, broken).len()
}

#[test]
fn all_rules_with_two_rewinds_lose_and_double_nothing() {
    let reached = [REBUILT, STALLED, LOST, RECOVERED, VOIDED_BY_REBUILD];
    let states = assert_no_violation(program(REWINDS), &reached);
    assert!(states > 1_500_000, "{states}");
}

#[test]
fn all_rules_allow_rebuilds_to_race_each_other_and_a_grant() {
    let reached = [REBUILT, GRANT_REBUILT, LATE_REBUILD, STALLED, LOST, RECOVERED];
    let states = assert_no_violation(program(TWO_REBUILDERS), &reached);
    assert!(states > 1_000_000, "{states}");
}

#[test]
fn all_rules_give_the_unit_of_an_unstorable_order_back_once() {
    let reached = [REBUILT, GIVEN_BACK, STALLED, STALLED_VOIDED, LOST, RECOVERED];
    let states = assert_no_violation(program(POISON), &reached);
    assert!(states > 1_000_000, "{states}");
}

#[test]
fn all_rules_allow_releasers_to_race() {
    let reached = [REBUILT, GIVEN_BACK, STALLED_VOIDED];
    let states = assert_no_violation(program(TWO_RELEASERS), &reached);
    assert!(states > 100_000, "{states}");
}

#[test]
fn without_r1_a_stream_id_is_reused_and_an_order_is_dropped() {
    let rules = Rules { fence: false, ..ALL };
    for broken in [UNIQUE_ENTRY_ID, NEVER_DROPPED, NEVER_REFUSED] {
        assert!(steps_without(rules, REWINDS, broken) >= 4);
    }
}

#[test]
fn without_r2_a_commit_lands_after_a_rebuild_has_counted() {
    let rules = Rules { gate: false, ..ALL };
    assert!(steps_without(rules, SMALL, ONE_PLACE) > 4);
}

#[test]
fn without_r3_a_grant_is_counted_by_a_rebuild_and_added_again() {
    let rules = Rules { absolute_grants: false, ..ALL };
    assert!(steps_without(rules, TWO_REBUILDERS, ONE_PLACE) > 4);
}

#[test]
fn without_r5_a_unit_is_given_back_twice_or_despite_its_order() {
    let rules = Rules { void_first: false, ..ALL };
    assert!(steps_without(rules, POISON, RELEASED_ONLY_UNSOLD) > 4);
    let rules = Rules { entry_is_token: false, ..ALL };
    assert!(steps_without(rules, TWO_RELEASERS, ONE_PLACE) > 4);
}

/// No step of the program voids an order whose entry is still in `orders`. R6 guards against manual changes and
/// against later programs.
#[test]
fn without_r6_only_a_void_by_hand_loses_a_unit() {
    let rules = Rules { voided_is_released: false, ..ALL };
    assert_no_violation(Protocol { rules, bounds: TWO_RELEASERS }, &[STALLED_VOIDED]);
    assert!(steps_without(rules, MANUAL_VOIDS, ONE_PLACE) > 4);
    assert_no_violation(program(MANUAL_VOIDS), &[GIVEN_BACK, STALLED_VOIDED]);
}

#[test]
fn without_r7_a_commit_lands_in_a_rebuild_or_two_rebuilds_share_an_epoch() {
    let rules = Rules { epoch_comes_first: false, ..ALL };
    assert!(steps_without(rules, SMALL, ONE_PLACE) > 4);
    let rules = Rules { epoch_is_a_lock: false, ..ALL };
    assert!(steps_without(rules, TWO_REBUILDERS, ONE_PLACE) > 4);
}

#[test]
fn without_r8_entries_in_flight_are_counted_twice() {
    let rules = Rules { drain: false, ..ALL };
    assert!(steps_without(rules, SMALL, ONE_PLACE) > 4);
}

#[test]
fn without_r9_an_unfilled_redis_is_opened() {
    let rules = Rules { checked_opening: false, ..ALL };
    for broken in [ONE_PLACE, NEVER_REFUSED] {
        assert!(steps_without(rules, SMALL, broken) > 4);
    }
}

/// Restored data of Redis may hold an order that was counted as lost, after its buyer has bought again.
#[test]
fn without_the_last_open_epoch_a_rebuild_stores_orders_counted_as_lost() {
    let rules = Rules { lost_orders_are_voided: false, ..ALL };
    assert!(steps_without(rules, SMALL, LOST_NOT_STORED) > 4);
}

#[test]
fn first_opening_at_any_later_time_is_safe() {
    let openings = Openings { epoch_of_its_own: true, rewinds: 2, epochs: 6 };
    let reached = [opening::SOLD, opening::CAME_LATE, opening::TRIED_AGAIN];
    let states = assert_no_violation(openings.clone(), &reached);
    assert!(states > 10_000, "{states}");
    let shared = Openings { epoch_of_its_own: false, ..openings };
    find_violation(shared, opening::SOLD_ONCE);
}

#[test]
fn r10_counts_answered_orders_that_are_in_no_store() {
    let marks = Marks {
        registers_first: true,
        waits_for_answers: true,
        reservations: 2,
        rewinds: 1,
        epochs: 3,
        lost_answers: 1,
        kills: 0,
    };
    let reached = [marks::COUNTED, marks::INEXACT, marks::UNANSWERED];
    let states = assert_no_violation(marks.clone(), &reached);
    assert!(states > 100_000, "{states}");
    let killed = Marks { epochs: 2, lost_answers: 0, kills: 1, ..marks.clone() };
    assert_no_violation(killed, &[marks::COUNTED, marks::INEXACT, marks::UNANSWERED]);
    find_violation(Marks { registers_first: false, ..marks.clone() }, marks::EXACT);
    find_violation(Marks { waits_for_answers: false, ..marks }, marks::EXACT);
}

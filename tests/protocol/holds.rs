//! The model with holds: reservations of several units that wait to be confirmed (R11 and R12 of
//! docs/decisions/0034-holds.md).
//!
//! ```text
//! gateway     reserves all units of a reservation or none, within the limit and under the request id of the user
//! consumer    stores it as held
//! change      confirms, cancels, extends, expires or refunds a row; gives Redis the totals of what was returned
//! rebuilder   reads products in one snapshot, users and request ids in another, and fills Redis with both
//! ```
//!
//! A row is held, confirmed, returned (cancelled or expired) or kept (cancelled, its units not put back on sale).
//! Changes do not compare the epoch. Each may happen at any later time, any number of processes may make them, and a
//! return may be applied any number of times, with the totals of any moment since it was committed. All reservations
//! have one user. Time is not modelled: a hold may expire at any time, or with `extensions` when its time is over.

use crate::{
    POISON, SMALL, assert_no_violation,
    changes::{self, Changes},
    find_violation,
    hold_properties::{
        APPLIED, APPLIED_TWICE, BOUGHT_AGAIN, BOUNDS_REACHED, CONFIRMED, COUNTED_AND_NOT,
        DRAIN_MEETS_RETURNED, EXTENDED, KEPT, LIMIT_COUNT, NOT_EARLY, ONE_REQUEST, PAID,
        REQUEST_FREED, REQUEST_REUSED, RESOLD, RETURN_AFTER_SNAPSHOT, RETURN_REBUILT,
        RETURNED_IN_ORDERS, WITHIN_LIMIT,
    },
    properties::{
        GIVEN_BACK, LATE_REBUILD, LOST, ONE_PLACE, REBUILT, RECOVERED, RELEASED_ONLY_UNSOLD,
        STALLED,
    },
    rules::{ALL, Bounds, Holds, NO_HOLDS, Returns, Rules},
    steps::Protocol,
    steps_without,
};

/// One user with a limit of one unit and one request id: the second reservation needs the limit and the request id of
/// the first one.
const ONE_USER: Holds = Holds { allowed: true, limit: 1, one_request: true, ..NO_HOLDS };

/// Redis loses its recent writes twice.
const HOLDS: Bounds = Bounds { supply: 2, consumers: 1, holds: ONE_USER, ..SMALL };

/// It loses them once.
const ONE_REWIND: Bounds = Bounds { rewinds: 1, epochs: 2, ..HOLDS };

/// Returns are marked as applied.
const MARKS: Bounds =
    Bounds { consumers: 2, holds: Holds { marks: true, ..ONE_USER }, ..ONE_REWIND };

/// Two rebuilders.
const HOLDS_TWO_REBUILDERS: Bounds = Bounds { rewinds: 1, rebuilders: 2, ..HOLDS };

/// Orders that cannot be stored, are moved to dead and released.
const UNSTORABLE: Bounds =
    Bounds { supply: 2, rewinds: 1, epochs: 2, consumers: 1, holds: ONE_USER, ..POISON };

/// Three reservations of one or two units each, which compete for three.
const UNITS: Bounds = Bounds {
    reservations: 3,
    supply: 3,
    holds: Holds { allowed: true, units: [2, 1, 2], ..NO_HOLDS },
    ..ONE_REWIND
};

/// One unit, without a limit.
const ONE_UNIT: Bounds =
    Bounds { supply: 1, holds: Holds { allowed: true, ..NO_HOLDS }, ..ONE_REWIND };

/// Confirmed reservations are cancelled.
const REFUNDS: Bounds = Bounds { holds: Holds { refunds: true, ..ONE_USER }, ..ONE_REWIND };

/// The limit is removed and set again.
const LIMIT_CHANGES: Bounds = Bounds {
    rewinds: 0,
    holds: Holds { limit_changes: 2, one_request: false, ..ONE_USER },
    ..ONE_REWIND
};

/// Holds are extended.
const EXTENSIONS: Bounds =
    Bounds { holds: Holds { extensions: true, ..ONE_UNIT.holds }, ..ONE_UNIT };

/// SOLD_OUT shows what is held.
const SHOWN: Bounds = Bounds { holds: Holds { shown: true, ..ONE_UNIT.holds }, ..ONE_UNIT };

/// All changes together.
const ALL_CHANGES: Bounds = Bounds {
    holds: Holds { refunds: true, extensions: true, shown: true, ..ONE_USER },
    ..ONE_REWIND
};

/// Checks all states within these bounds, which are all reached, and prints their number.
#[expect(clippy::print_stdout, reason = "the number of states is a result")]
fn assert_safe(bounds: Bounds, reached: &[&str]) -> usize {
    let reached = [reached, &[BOUNDS_REACHED]].concat();
    let states = assert_no_violation(Protocol { rules: ALL, bounds }, &reached);
    println!(
        "all {states} states within these bounds are safe, and all bounds are reached: {bounds:?}"
    );
    states
}

#[test]
fn holds_with_two_rewinds_keep_units_limits_and_request_ids() {
    let reached = [
        REBUILT,
        LOST,
        RECOVERED,
        STALLED,
        CONFIRMED,
        BOUGHT_AGAIN,
        REQUEST_REUSED,
        RETURN_AFTER_SNAPSHOT,
        RETURNED_IN_ORDERS,
        DRAIN_MEETS_RETURNED,
    ];
    let states = assert_safe(HOLDS, &reached);
    assert!(states > 100_000, "{states}");
}

#[test]
fn rebuilds_race_each_other_and_returns() {
    let reached = [LATE_REBUILD, RETURN_AFTER_SNAPSHOT, REQUEST_REUSED];
    let states = assert_safe(HOLDS_TWO_REBUILDERS, &reached);
    assert!(states > 100_000, "{states}");
}

#[test]
fn return_that_is_marked_is_applied_and_may_be_applied_again() {
    let states = assert_safe(MARKS, &[RETURN_REBUILT, APPLIED_TWICE, RETURNED_IN_ORDERS]);
    assert!(states > 10_000, "{states}");
}

#[test]
fn hold_that_cannot_be_stored_gives_its_unit_limit_and_request_id_back() {
    let states = assert_safe(UNSTORABLE, &[GIVEN_BACK, BOUGHT_AGAIN]);
    assert!(states > 10_000, "{states}");
}

#[test]
fn reservations_of_several_units_compete_for_the_supply() {
    let states = assert_safe(UNITS, &[RESOLD, RETURN_AFTER_SNAPSHOT, DRAIN_MEETS_RETURNED]);
    assert!(states > 10_000, "{states}");
}

#[test]
fn refund_puts_units_back_on_sale_or_keeps_them() {
    let states = assert_safe(REFUNDS, &[KEPT, BOUGHT_AGAIN]);
    assert!(states > 10_000, "{states}");
}

#[test]
fn limit_that_is_removed_and_set_again_counts_the_units_taken_under_it() {
    let states = assert_safe(LIMIT_CHANGES, &[COUNTED_AND_NOT, BOUGHT_AGAIN]);
    assert!(states > 10_000, "{states}");
}

#[test]
fn extended_hold_does_not_expire_early() {
    let states = assert_safe(EXTENSIONS, &[EXTENDED, RESOLD]);
    assert!(states > 1_000, "{states}");
}

#[test]
fn sold_out_shows_each_unit_that_may_come_back() {
    let states = assert_safe(SHOWN, &[RESOLD, RETURN_AFTER_SNAPSHOT]);
    assert!(states > 1_000, "{states}");
}

#[test]
fn all_changes_together_keep_units_limits_and_request_ids() {
    let reached = [KEPT, EXTENDED, BOUGHT_AGAIN, REQUEST_REUSED, RETURN_AFTER_SNAPSHOT];
    let states = assert_safe(ALL_CHANGES, &reached);
    assert!(states > 100_000, "{states}");
}

#[test]
fn without_r11_a_repeated_difference_adds_a_unit_twice() {
    let rules = Rules { returns: Returns::Differences, ..ALL };
    assert!(steps_without(rules, ONE_UNIT, ONE_PLACE) > 4);
    assert!(steps_without(rules, HOLDS, LIMIT_COUNT) > 4);
}

/// The rebuild has counted the unit before.
#[test]
fn without_r11_a_difference_that_is_applied_once_adds_a_unit_twice() {
    let rules = Rules { returns: Returns::DifferencesOnce, ..ALL };
    assert!(steps_without(rules, ONE_UNIT, ONE_PLACE) > 8);
    assert!(steps_without(rules, HOLDS, LIMIT_COUNT) > 8);
}

#[test]
fn without_r11_a_rebuild_reads_returns_that_it_has_not_counted() {
    let rules = Rules { product_snapshot: false, ..ALL };
    assert!(steps_without(rules, ONE_UNIT, ONE_PLACE) > 8);
    let rules = Rules { user_snapshot: false, ..ALL };
    assert!(steps_without(rules, HOLDS, LIMIT_COUNT) > 8);
}

/// A program from before holds rebuilds: it subtracts only what is sold, and fills Redis without totals.
#[test]
fn without_r11_a_rebuild_sells_held_units_and_adds_a_returned_unit_twice() {
    let rules = Rules { held_is_counted: false, ..ALL };
    assert!(steps_without(rules, ONE_UNIT, ONE_PLACE) > 4);
    let rules = Rules { totals_are_filled: false, ..ALL };
    assert!(steps_without(rules, ONE_UNIT, ONE_PLACE) > 8);
    assert!(steps_without(rules, HOLDS, LIMIT_COUNT) > 8);
}

#[test]
fn without_r11_a_consumer_releases_a_returned_reservation() {
    let rules = Rules { returned_is_settled: false, ..ALL };
    for broken in [ONE_PLACE, RELEASED_ONLY_UNSOLD] {
        assert!(steps_without(rules, ONE_UNIT, broken) > 4);
    }
}

#[test]
fn without_r11_a_marked_return_is_never_applied() {
    let rules = Rules { script_before_mark: false, ..ALL };
    for broken in [APPLIED, REQUEST_FREED] {
        assert!(steps_without(rules, MARKS, broken) > 3);
    }
}

/// The totals were read before the return, so the script does not add its unit.
#[test]
fn without_r11_a_marked_return_is_not_in_the_totals() {
    let rules = Rules { totals_contain_return: false, ..ALL };
    assert!(steps_without(rules, MARKS, APPLIED) > 8);
}

/// A request that is repeated then takes a second unit.
#[test]
fn without_r11_a_late_return_frees_the_request_id_of_another_reservation() {
    let rules = Rules { request_is_compared: false, ..ALL };
    assert!(steps_without(rules, HOLDS, ONE_REQUEST) > 4);
}

#[test]
fn without_r11_a_limit_that_changes_counts_wrongly() {
    let rules = Rules { only_counted: false, ..ALL };
    assert!(steps_without(rules, LIMIT_CHANGES, LIMIT_COUNT) > 4);
    let without_rebuilds = Bounds { reservations: 3, epochs: 1, ..LIMIT_CHANGES };
    assert!(steps_without(rules, without_rebuilds, WITHIN_LIMIT) > 8);
}

#[test]
fn without_r11_a_rebuild_sells_units_that_a_refund_kept() {
    let rules = Rules { kept_is_counted: false, ..ALL };
    assert!(steps_without(rules, REFUNDS, ONE_PLACE) > 8);
}

#[test]
fn without_r12_a_confirmed_reservation_expires_and_a_unit_is_returned_twice() {
    let rules = Rules { compare_and_set: false, ..ALL };
    for broken in [PAID, ONE_PLACE] {
        assert!(steps_without(rules, ONE_UNIT, broken) > 4);
    }
}

#[test]
fn without_r12_an_extended_hold_expires() {
    let rules = Rules { due_is_compared: false, ..ALL };
    assert!(steps_without(rules, EXTENSIONS, NOT_EARLY) > 4);
}

#[test]
fn r13_gives_a_reader_each_change() {
    let model = Changes {
        under_lock: true,
        number_for_each_row: true,
        cursor_names_timeline: true,
        commits: 4,
        failovers: 1,
    };
    let reached = [changes::CAUGHT_UP, changes::CHANGED_AGAIN, changes::SPLIT, changes::READ_AGAIN];
    let states = assert_no_violation(model.clone(), &reached);
    println!("all {states} states within these bounds are safe: {model:?}");
    assert!(states > 1_000, "{states}");
    find_violation(Changes { under_lock: false, ..model.clone() }, changes::NO_GAP);
    find_violation(Changes { number_for_each_row: false, ..model.clone() }, changes::NO_GAP);
    find_violation(Changes { cursor_names_timeline: false, ..model }, changes::NO_GAP);
}

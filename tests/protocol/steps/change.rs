//! Changes of stored reservations: a hold is confirmed, extended, cancelled or expired, a confirmed reservation is
//! refunded, and what was returned is applied to Redis. Any process may do any of these at any later time, also long
//! after it has read why. So the processes have no state in this model.

use super::Protocol;
use crate::{
    ledger::{Ledger, Totals},
    rules::Returns,
    state::{Reservation, Set, State},
};

/// What happens to a stored reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeStep {
    /// The buyer pays: the transaction that confirms a hold.
    Confirm(Reservation),
    /// The transaction that cancels a hold.
    Cancel(Reservation),
    /// The time of a hold is over.
    FallDue(Reservation),
    /// The transaction that gives a hold more time.
    Extend(Reservation),
    /// The transaction of a worker that expires a hold.
    Expire(Reservation),
    /// The transaction that cancels a confirmed reservation; its units go back on sale.
    Refund(Reservation),
    /// The same, but its units are kept from sale.
    RefundAndKeep(Reservation),
    /// `apply_returns.lua` for the first reservation, with the totals that the second one's return committed.
    Apply(Reservation, Reservation),
    /// The transaction that marks a return as applied.
    Mark(Reservation),
}

/// The changes that may happen next; `change` refuses some of them.
pub fn steps(state: &State, model: &Protocol, mut add: impl FnMut(ChangeStep)) {
    let Ledger { held, confirmed, .. } = state.ledger;
    let holds = &model.bounds.holds;
    let rows = state.ledger.rows();
    // Without R12, a row may have left these states.
    let from = |found: Set| if model.rules.compare_and_set { found } else { rows };
    for row in from(held).iter() {
        add(ChangeStep::Confirm(row));
        add(ChangeStep::Cancel(row));
        add(ChangeStep::Expire(row));
        if holds.extensions {
            add(ChangeStep::FallDue(row));
            add(ChangeStep::Extend(row));
        }
    }
    for row in from(confirmed).iter().filter(|_| holds.refunds) {
        add(ChangeStep::Refund(row));
        add(ChangeStep::RefundAndKeep(row));
    }
    let changed = rows.without(held);
    for row in changed.iter() {
        if model.is_open(state) {
            changed.iter().for_each(|later| add(ChangeStep::Apply(row, later)));
        }
        if holds.marks {
            add(ChangeStep::Mark(row));
        }
    }
}

impl Protocol {
    pub fn change(&self, state: &mut State, step: ChangeStep) -> Option<()> {
        let extensions = self.bounds.holds.extensions;
        match step {
            ChangeStep::Confirm(row) => {
                let change = Totals { ended: self.ended(row), ..Totals::default() };
                state.ledger.confirm(&self.rules, row, change).then_some(())?;
                state.history.paid.add(row);
            }
            ChangeStep::Cancel(row) => self.give_back(state, row, state.ledger.held, false)?,
            ChangeStep::FallDue(row) => {
                let new = state.ledger.held.has(row) && !state.ledger.due.has(row);
                (extensions && new).then_some(())?;
                state.ledger.due.add(row);
                state.history.was_due.add(row);
            }
            ChangeStep::Extend(row) => state.ledger.due.remove(row).then_some(())?,
            ChangeStep::Expire(row) => self.expire(state, row)?,
            ChangeStep::Refund(row) | ChangeStep::RefundAndKeep(row) => {
                self.bounds.holds.refunds.then_some(())?;
                let kept = step == ChangeStep::RefundAndKeep(row);
                self.give_back(state, row, state.ledger.confirmed, kept)?;
                state.history.paid.remove(row);
            }
            ChangeStep::Apply(row, later) => self.apply(state, row, later)?,
            ChangeStep::Mark(row) => {
                let ran = state.history.script_ran.has(row) || !self.rules.script_before_mark;
                let new = self.bounds.holds.marks && !state.ledger.applied.has(row);
                (ran && new && !state.ledger.confirmed.has(row)).then_some(())?;
                state.ledger.applied.add(row);
            }
        }
        Some(())
    }

    fn give_back(&self, state: &mut State, row: Reservation, from: Set, kept: bool) -> Option<()> {
        let counted =
            if self.rules.only_counted { state.counted.has(row) } else { state.ledger.has_limit };
        let was_confirmed = state.ledger.confirmed.has(row);
        let units = self.bounds.holds.units[usize::from(row)];
        let change = Totals {
            product: if kept { 0 } else { units },
            user: if counted { units } else { 0 },
            ended: if was_confirmed { 0 } else { self.ended(row) },
        };
        state.ledger.give_back(&self.rules, row, (from, kept), change).then_some(())
    }

    fn ended(&self, row: Reservation) -> u8 {
        if self.bounds.holds.shown { self.bounds.holds.units[usize::from(row)] } else { 0 }
    }

    /// What R11 forbids Redis to be given: what this one return changes.
    fn difference(&self, state: &State, row: Reservation) -> Totals {
        let units = self.bounds.holds.units[usize::from(row)];
        Totals {
            product: if state.ledger.kept.has(row) { 0 } else { units },
            user: if state.counted.has(row) { units } else { 0 },
            ended: self.ended(row),
        }
    }

    /// R12: a worker expires a hold whose time is over.
    fn expire(&self, state: &mut State, row: Reservation) -> Option<()> {
        let due = state.ledger.due.has(row);
        if self.bounds.holds.extensions {
            let found_due = state.history.was_due.has(row) && !self.rules.due_is_compared;
            (due || found_due).then_some(())?;
            if !due {
                state.history.expired_early.add(row);
            }
        }
        self.give_back(state, row, state.ledger.held, false)
    }

    /// R11. The process may have read the totals long ago, in any epoch.
    fn apply(&self, state: &mut State, row: Reservation, later: Reservation) -> Option<()> {
        let after = |row: Reservation| state.ledger.totals_after[usize::from(row)];
        let given = match self.rules.returns {
            Returns::Totals => after(later),
            Returns::Differences | Returns::DifferencesOnce => self.difference(state, row),
        };
        let again = state.history.script_ran.has(row);
        let confirmed = state.ledger.confirmed.has(row);
        let refused = match self.rules.returns {
            Returns::Totals => {
                let contained = after(later).covers(after(row));
                let too_early = !contained && self.rules.totals_contain_return;
                too_early || confirmed && !self.bounds.holds.shown
            }
            Returns::Differences => row != later || confirmed,
            Returns::DifferencesOnce => row != later || confirmed || again,
        };
        if refused || !self.is_open(state) {
            return None;
        }
        let returned = (!confirmed).then_some(row);
        state.redis.apply_return(&self.rules, given, returned);
        if self.bounds.holds.marks || self.rules.returns != Returns::Totals {
            state.history.script_ran.add(row);
        }
        Some(())
    }
}

//! A separate model of R13: transactions of one partition number the rows that they change, and a reader asks for the
//! rows above its cursor, a page at a time.

use stateright::{Model, Property};

pub const NO_GAP: &str = "a reader has the newest state of each row that its cursor has passed";
pub const IN_ORDER: &str = "a reader gets rows in the order of their commits";
pub const CAUGHT_UP: &str = "a reader has the newest state of all rows";
pub const CHANGED_AGAIN: &str = "a row changes again before a reader has its earlier state";
pub const SPLIT: &str = "a page ends between two rows of one transaction";
pub const READ_AGAIN: &str = "a reader begins again after Postgres lost commits";

const ROWS: usize = 2;
const WRITERS: usize = 2;

/// The numbering of changes, within bounds.
#[derive(Clone, Debug)]
pub struct Changes {
    /// A transaction takes its numbers under the lock of the partition's row, which it holds until it commits.
    /// Without: it takes them from a sequence.
    pub under_lock: bool,
    /// Each row has a number of its own. Without: all rows of a transaction have the same.
    pub number_for_each_row: bool,
    /// A cursor names the timeline of Postgres; a reader of another one begins again. Without: it continues.
    pub cursor_names_timeline: bool,
    /// Transactions that commit.
    pub commits: u8,
    /// How often Postgres loses its last commits: a standby is promoted that had not received them.
    pub failovers: u8,
}

/// A row of `reservations`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Row {
    /// Its state: the number of the transaction that wrote it; 0 if there is no row.
    state: u8,
    /// Its number.
    change: u8,
}

/// What is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Committed {
    timeline: u8,
    rows: [Row; ROWS],
    /// `partitions.changes`
    changes: u8,
}

/// An open transaction: the numbers that it gives to the rows that it changes; 0 for the others.
pub type Transaction = [u8; ROWS];

/// A reader of `WatchReservations`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reader {
    timeline: u8,
    cursor: u8,
    /// The state of each row that it has.
    has: [u8; ROWS],
    out_of_order: bool,
    began_again: bool,
}

/// The state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Numbered {
    now: Committed,
    /// What a standby has received.
    standby: Committed,
    /// The numbers taken so far, with those of open transactions.
    taken: u8,
    writers: [Option<Transaction>; WRITERS],
    /// Transactions that committed, in any timeline.
    commits: u8,
    reader: Reader,
    failovers: u8,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangesStep {
    /// A transaction changes these rows.
    Write(usize, [bool; ROWS]),
    Commit(usize),
    RollBack(usize),
    /// A reader reads a page of one row.
    Read,
    /// The standby receives what is committed.
    Replicate,
    /// The standby is promoted.
    Promote,
}

impl Model for Changes {
    type State = Numbered;
    type Action = ChangesStep;

    fn init_states(&self) -> Vec<Numbered> {
        vec![Numbered {
            now: Committed::default(),
            standby: Committed::default(),
            taken: 0,
            writers: Default::default(),
            commits: 0,
            reader: Reader::default(),
            failovers: self.failovers,
        }]
    }

    fn actions(&self, _: &Numbered, steps: &mut Vec<ChangesStep>) {
        for writer in 0..WRITERS {
            let rows = [[true, false], [false, true], [true, true]];
            steps.extend(rows.map(|rows| ChangesStep::Write(writer, rows)));
            steps.extend([ChangesStep::Commit(writer), ChangesStep::RollBack(writer)]);
        }
        steps.extend([ChangesStep::Read, ChangesStep::Replicate, ChangesStep::Promote]);
    }

    fn next_state(&self, last: &Numbered, step: ChangesStep) -> Option<Numbered> {
        let mut state = last.clone();
        match step {
            ChangesStep::Write(writer, rows) => self.write(&mut state, writer, rows)?,
            ChangesStep::Commit(writer) => {
                let transaction = state.writers[writer].take()?;
                state.commits += 1;
                for (row, change) in state.now.rows.iter_mut().zip(transaction) {
                    if change > 0 {
                        *row = Row { state: state.commits, change };
                    }
                }
                state.now.changes = state.taken;
            }
            ChangesStep::RollBack(writer) => {
                state.writers[writer].take()?;
                if self.under_lock {
                    state.taken = state.now.changes;
                }
            }
            ChangesStep::Read => self.read(&mut state)?,
            ChangesStep::Replicate => state.standby = state.now,
            ChangesStep::Promote => {
                state.failovers = state.failovers.checked_sub(1)?;
                state.now = Committed { timeline: state.now.timeline + 1, ..state.standby };
                state.taken = state.now.changes;
                state.writers = Default::default();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_GAP, |model: &Self, state: &Numbered| {
                // A reader learns of another timeline with its next page.
                let same_timeline = state.reader.timeline == state.now.timeline;
                let passed = |index: &usize| state.now.rows[*index].change <= state.reader.cursor;
                let mut passed = (0..ROWS).filter(passed);
                model.cursor_names_timeline && !same_timeline
                    || passed.all(|index| state.has_newest(index))
            }),
            Property::always(IN_ORDER, |_, state: &Numbered| !state.reader.out_of_order),
            Property::sometimes(CAUGHT_UP, |model: &Self, state: &Numbered| {
                state.commits == model.commits && (0..ROWS).all(|index| state.has_newest(index))
            }),
            Property::sometimes(CHANGED_AGAIN, |_, state: &Numbered| {
                let first = state.now.rows[0];
                state.reader.cursor > 0 && first.state > 2 && state.reader.has[0] == 0
            }),
            Property::sometimes(SPLIT, |_, state: &Numbered| {
                let [first, second] = state.now.rows;
                let has_one = state.has_newest(0) && !state.has_newest(1);
                first.state > 0 && first.state == second.state && has_one
            }),
            Property::sometimes(READ_AGAIN, |_, state: &Numbered| state.reader.began_again),
        ]
    }
}

impl Numbered {
    /// Whether the reader has the newest state of a row, or there is no row.
    fn has_newest(&self, index: usize) -> bool {
        let row = self.now.rows[index];
        row.state == 0 || row.state == self.reader.has[index]
    }
}

impl Changes {
    fn write(&self, state: &mut Numbered, writer: usize, rows: [bool; ROWS]) -> Option<()> {
        let open = state.writers.iter().flatten();
        let transactions = state.commits + u8::try_from(open.clone().count()).ok()?;
        let locked = self.under_lock && open.clone().next().is_some();
        // The locks of the rows themselves.
        let row_locked = open
            .clone()
            .any(|other| other.iter().zip(rows).any(|(change, changes)| *change > 0 && changes));
        if state.writers[writer].is_some() || locked || row_locked || transactions >= self.commits {
            return None;
        }
        if !self.number_for_each_row {
            state.taken += 1;
        }
        let mut transaction = Transaction::default();
        for (change, changes) in transaction.iter_mut().zip(rows) {
            if changes {
                state.taken += u8::from(self.number_for_each_row);
                *change = state.taken;
            }
        }
        state.writers[writer] = Some(transaction);
        Some(())
    }

    /// Reads the row with the lowest number above the cursor. The row and the timeline are in one snapshot.
    fn read(&self, state: &mut Numbered) -> Option<()> {
        let reader = &mut state.reader;
        if self.cursor_names_timeline && reader.timeline != state.now.timeline {
            let timeline = state.now.timeline;
            *reader = Reader { timeline, began_again: true, ..Reader::default() };
            return Some(());
        }
        let above = |index: &usize| state.now.rows[*index].change > reader.cursor;
        let next = (0..ROWS).filter(above).min_by_key(|index| state.now.rows[*index].change)?;
        let row = state.now.rows[next];
        reader.out_of_order |= reader.has.iter().any(|had| *had > row.state);
        reader.cursor = row.change;
        reader.has[next] = row.state;
        Some(())
    }
}

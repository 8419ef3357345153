//! A separate model of the first opening of a partition, `new → open`: one product with one unit, and several
//! processes that start at once, each of which may stall for any time.

use stateright::{Model, Property};

pub const SOLD_ONCE: &str = "no unit is sold a second time";
pub const OPENED_ONCE: &str = "an open Redis has the ledger's last epoch";
pub const SOLD: &str = "a unit is sold";
pub const CAME_LATE: &str = "a late opener runs its script after the unit was sold";
pub const TRIED_AGAIN: &str = "a second attempt opens what the first left behind";

const SUPPLY: u8 = 1;

/// Openings, within bounds.
#[derive(Clone, Debug)]
pub struct Openings {
    /// Each attempt first gets an epoch of its own. Without: all attempts have the first epoch and lock the
    /// partition's row; but a stalled process loses the lock.
    pub epoch_of_its_own: bool,
    /// How often Redis is rewound.
    pub rewinds: u8,
    /// The last epoch.
    pub epochs: u8,
}

/// An attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Opener {
    #[default]
    Idle,
    /// Has an epoch: Redis is to be opened. And whether it holds the row.
    HasEpoch(u8, bool),
    /// Opened Redis: the ledger is to be opened.
    OpenedRedis(u8, bool),
}

/// The row of `partitions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    New,
    Open,
}

/// What Redis holds: nothing without an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Redis {
    epoch: Option<u8>,
    /// Whether the replid is the server's own.
    current: bool,
    seq: u8,
    granted: bool,
    stock: u8,
}

/// The state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Opened {
    epoch: u8,
    status: Status,
    /// The epochs that were ever open, as bits.
    was_open: u8,
    sold: u8,
    redis: Redis,
    copy: Option<Redis>,
    openers: [Opener; 2],
    rewinds: u8,
    /// What no process knows: a late script that ran, an attempt after another, an order without a unit.
    came_late: bool,
    tried_again: bool,
    oversold: bool,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpeningStep {
    /// The ledger assigns an epoch to an attempt.
    Take(usize),
    /// The session that holds the row ends; its process does not know.
    LoseRow(usize),
    /// `open.lua`.
    Run(usize),
    /// The ledger is opened.
    Commit(usize),
    /// Is killed.
    Crash(usize),
    /// `set_supply.lua`.
    Grant,
    /// An order is accepted and stored.
    Sell,
    /// A whole rebuild.
    Rebuild,
    Copy,
    Restart,
    Empty,
    Restore,
}

impl Model for Openings {
    type State = Opened;
    type Action = OpeningStep;

    fn init_states(&self) -> Vec<Opened> {
        vec![Opened {
            epoch: u8::from(!self.epoch_of_its_own),
            status: Status::New,
            was_open: 0,
            sold: 0,
            redis: Redis::default(),
            copy: None,
            openers: Default::default(),
            rewinds: self.rewinds,
            came_late: false,
            tried_again: false,
            oversold: false,
        }]
    }

    fn actions(&self, _: &Opened, steps: &mut Vec<OpeningStep>) {
        for index in 0..2 {
            steps.extend([OpeningStep::Take(index), OpeningStep::LoseRow(index)]);
            steps.extend([OpeningStep::Run(index), OpeningStep::Commit(index)]);
            steps.push(OpeningStep::Crash(index));
        }
        steps.extend([OpeningStep::Grant, OpeningStep::Sell, OpeningStep::Rebuild]);
        steps.extend([OpeningStep::Copy, OpeningStep::Restart]);
        steps.extend([OpeningStep::Empty, OpeningStep::Restore]);
    }

    fn next_state(&self, last: &Opened, step: OpeningStep) -> Option<Opened> {
        let mut state = last.clone();
        match step {
            OpeningStep::Take(index) => self.take(&mut state, index)?,
            OpeningStep::LoseRow(index) => match &mut state.openers[index] {
                Opener::HasEpoch(_, holds) | Opener::OpenedRedis(_, holds) if *holds => {
                    *holds = false
                }
                Opener::Idle | Opener::HasEpoch(..) | Opener::OpenedRedis(..) => return None,
            },
            OpeningStep::Run(index) => {
                let Opener::HasEpoch(epoch, holds) = state.openers[index] else { return None };
                state.came_late |= state.sold > 0;
                let opened = self.open_script(&mut state, epoch);
                state.openers[index] =
                    if opened { Opener::OpenedRedis(epoch, holds) } else { Opener::Idle };
            }
            OpeningStep::Commit(index) => self.commit(&mut state, index)?,
            OpeningStep::Crash(index) => {
                if state.openers[index] == Opener::Idle {
                    return None;
                }
                state.openers[index] = Opener::Idle;
            }
            OpeningStep::Grant => {
                let new = state.sells() && !state.redis.granted;
                state.redis =
                    new.then_some(Redis { granted: true, stock: SUPPLY, ..state.redis })?;
            }
            OpeningStep::Sell => state.sell()?,
            OpeningStep::Rebuild => self.rebuild(&mut state)?,
            OpeningStep::Copy => {
                let allowed = state.rewinds > 0 && state.copy.is_none();
                state.copy = Some(allowed.then_some(Redis { current: false, ..state.redis })?);
            }
            OpeningStep::Restart => state.rewind(Redis { current: false, ..last.redis })?,
            OpeningStep::Empty => state.rewind(Redis::default())?,
            OpeningStep::Restore => state.rewind(last.copy?)?,
        }
        state.openers.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SOLD_ONCE, |_, state: &Opened| !state.oversold),
            Property::always(OPENED_ONCE, |_, state: &Opened| {
                !state.sells() || state.redis.epoch == Some(state.epoch)
            }),
            Property::sometimes(SOLD, |_, state: &Opened| state.sold > 0),
            Property::sometimes(CAME_LATE, |_, state: &Opened| state.came_late),
            Property::sometimes(TRIED_AGAIN, |_, state: &Opened| state.tried_again),
        ]
    }
}

impl Openings {
    /// `begin_opening`, or what came before it: the row is read and locked.
    fn take(&self, state: &mut Opened, index: usize) -> Option<()> {
        let idle = state.openers[index] == Opener::Idle;
        let holds = |opener: &Opener| {
            matches!(opener, Opener::HasEpoch(_, true) | Opener::OpenedRedis(_, true))
        };
        let held = state.openers.iter().any(holds);
        if !idle || state.status != Status::New || held {
            return None;
        }
        if self.epoch_of_its_own {
            state.epoch = (state.epoch < self.epochs).then_some(state.epoch + 1)?;
        }
        state.openers[index] = Opener::HasEpoch(state.epoch, !self.epoch_of_its_own);
        Some(())
    }

    /// `open.lua`; returns whether it opened.
    fn open_script(&self, state: &mut Opened, epoch: u8) -> bool {
        let redis = &mut state.redis;
        let refuses = match redis.epoch {
            Some(other) if self.epoch_of_its_own => {
                other >= epoch || redis.seq > 0 || redis.granted
            }
            Some(other) => other != epoch || redis.seq > 0,
            None => false,
        };
        if !refuses {
            state.tried_again |= redis.epoch.is_some();
            *redis = Redis { epoch: Some(epoch), current: true, seq: 0, ..*redis };
        }
        !refuses
    }

    fn commit(&self, state: &mut Opened, index: usize) -> Option<()> {
        let Opener::OpenedRedis(epoch, holds) = state.openers[index] else { return None };
        let allowed = if self.epoch_of_its_own { state.epoch == epoch } else { holds };
        if allowed && state.status == Status::New {
            state.status = Status::Open;
            state.was_open |= 1 << epoch;
        }
        state.openers[index] = Opener::Idle;
        Some(())
    }

    fn rebuild(&self, state: &mut Opened) -> Option<()> {
        let allowed = state.status == Status::Open && state.epoch < self.epochs;
        state.epoch = allowed.then_some(state.epoch + 1)?;
        state.was_open |= 1 << state.epoch;
        let stock = SUPPLY - state.sold;
        let epoch = Some(state.epoch);
        state.redis = Redis { epoch, current: true, seq: 0, granted: true, stock };
        Some(())
    }
}

impl Opened {
    /// Whether Redis accepts calls with its epoch, and a process may send them.
    fn sells(&self) -> bool {
        let was_ever_open = |epoch: u8| self.was_open & (1 << epoch) != 0;
        self.redis.current && self.redis.epoch.is_some_and(was_ever_open)
    }

    fn sell(&mut self) -> Option<()> {
        let redis = &mut self.redis;
        redis.stock = redis.stock.checked_sub(1)?;
        redis.seq += 1;
        if !self.sells() {
            return None;
        }
        self.oversold |= self.sold >= SUPPLY;
        self.sold = SUPPLY;
        Some(())
    }

    fn rewind(&mut self, other: Redis) -> Option<()> {
        self.rewinds = self.rewinds.checked_sub(1)?;
        self.redis = other;
        Some(())
    }
}

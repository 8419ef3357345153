//! A separate model of R10: two gateways, their marks, and the count of lost orders. A rebuild is two steps here;
//! the other model has all of its steps.

use stateright::{Model, Property};

use crate::state::{RESERVATIONS_MAX, Reservation, Set};

pub const EXACT: &str = "if every gateway reported, every answered order in no store is counted";
pub const COMPLETE: &str = "if every answer arrived, the count equals the orders in no store";
pub const LOWER_BOUND: &str = "no order that is in a store is counted";
pub const COUNTED: &str = "a loss is counted exactly";
pub const INEXACT: &str = "a count is a lower bound because a gateway has not reported";
pub const UNANSWERED: &str = "an accepted order without an answer is lost";

const GATEWAYS: usize = 2;
const EPOCHS: usize = 4;

/// The protocol of the marks, within bounds.
#[derive(Clone, Debug)]
pub struct Marks {
    /// A gateway has a row in the ledger before it takes its first order of an epoch.
    pub registers_first: bool,
    /// A gateway reports only when no call is in flight.
    pub waits_for_answers: bool,
    pub reservations: u8,
    pub rewinds: u8,
    pub epochs: u8,
    /// Answers that are lost.
    pub lost_answers: u8,
    /// Gateways that are killed.
    pub kills: u8,
}

/// A gateway's row of `reported_marks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mark {
    #[default]
    None,
    /// Takes orders.
    Registered,
    Reported(u8),
}

/// A call of `reserve.lua`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    #[default]
    None,
    /// On its way to Redis, with this epoch.
    Sent(u8),
    /// Accepted; the answer is on its way.
    Accepted(Reservation),
}

/// The progress of reading the ledger's row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Read {
    #[default]
    None,
    /// Has read this epoch, and whether it is open.
    Row(u8, bool),
    /// Reported; this epoch is to be begun.
    Reported(u8),
}

/// A gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gateway {
    killed: bool,
    /// The epoch it sells in, or 0.
    selling_epoch: u8,
    /// The last epoch it sold in, and the highest seq it saw.
    last: Option<(u8, u8)>,
    read: Read,
    call: Call,
    marks: [Mark; EPOCHS],
}

/// The state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Counted {
    epoch: u8,
    open: bool,
    stored: Set,
    redis_epoch: u8,
    /// Whether Redis is open and has not been rewound.
    redis_open: bool,
    seq: u8,
    orders: Set,
    accepted: [Option<(u8, u8)>; RESERVATIONS_MAX],
    /// Reservations whose buyers got an answer.
    answered: Set,
    gateways: [Gateway; GATEWAYS],
    rewinds: u8,
    lost_answers: u8,
    kills: u8,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkStep {
    /// A gateway reads the ledger's row.
    Read(usize),
    /// It stops selling, and reports.
    Report(usize),
    /// It sells in the epoch it has read.
    Begin(usize),
    Send(usize),
    /// Redis runs its call.
    Run(usize),
    Answer(usize),
    LoseAnswer(usize),
    Kill(usize),
    /// A consumer stores and settles an order.
    Store(Reservation),
    /// A rebuild closes the ledger.
    Close,
    /// It closes, drains and opens Redis.
    Rebuild,
    Empty,
    /// Redis loses the last it accepted.
    LoseLast,
}

/// The count of an ended epoch.
struct Count {
    lost: u32,
    exact: bool,
}

impl Model for Marks {
    type State = Counted;
    type Action = MarkStep;

    fn init_states(&self) -> Vec<Counted> {
        vec![Counted {
            epoch: 1,
            open: true,
            stored: Set::default(),
            redis_epoch: 1,
            redis_open: true,
            seq: 0,
            orders: Set::default(),
            accepted: [None; RESERVATIONS_MAX],
            answered: Set::default(),
            gateways: Default::default(),
            rewinds: self.rewinds,
            lost_answers: self.lost_answers,
            kills: self.kills,
        }]
    }

    fn actions(&self, state: &Counted, steps: &mut Vec<MarkStep>) {
        for index in 0..GATEWAYS {
            steps.extend([MarkStep::Read(index), MarkStep::Report(index), MarkStep::Begin(index)]);
            steps.extend([MarkStep::Send(index), MarkStep::Run(index), MarkStep::Answer(index)]);
            steps.extend([MarkStep::LoseAnswer(index), MarkStep::Kill(index)]);
        }
        steps.extend(state.orders.iter().map(MarkStep::Store));
        steps.extend([MarkStep::Close, MarkStep::Rebuild, MarkStep::Empty, MarkStep::LoseLast]);
    }

    fn next_state(&self, last: &Counted, step: MarkStep) -> Option<Counted> {
        let mut state = last.clone();
        match step {
            MarkStep::Read(index)
            | MarkStep::Report(index)
            | MarkStep::Begin(index)
            | MarkStep::Send(index)
            | MarkStep::Run(index)
            | MarkStep::Answer(index)
            | MarkStep::LoseAnswer(index)
            | MarkStep::Kill(index) => self.gateway(&mut state, index, step)?,
            MarkStep::Store(reservation) => {
                let allowed = state.redis_open && state.redis_epoch == state.epoch;
                (allowed && state.orders.remove(reservation)).then_some(())?;
                state.stored.add(reservation);
            }
            MarkStep::Close => {
                state.epoch =
                    (state.open && state.epoch < self.epochs).then_some(state.epoch + 1)?;
                state.open = false;
            }
            MarkStep::Rebuild => {
                (!state.open).then_some(())?;
                state.stored = state.stored.or(state.orders);
                state.orders = Set::default();
                (state.redis_epoch, state.redis_open, state.seq) = (state.epoch, true, 0);
                state.open = true;
            }
            MarkStep::Empty => state.rewind(Set::default())?,
            MarkStep::LoseLast => {
                let mut orders = state.orders;
                let newest = orders.iter().last()?;
                orders.remove(newest);
                state.rewind(orders)?;
            }
        }
        state.gateways.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(EXACT, |_, state: &Counted| {
                state.ended().all(|epoch| {
                    let count = state.count(epoch);
                    !count.exact
                        || count.lost >= state.in_no_store(epoch).and(state.answered).count()
                })
            }),
            Property::always(COMPLETE, |model: &Self, state: &Counted| {
                let all_arrived = state.lost_answers == model.lost_answers;
                state.ended().all(|epoch| {
                    let count = state.count(epoch);
                    let whole = count.lost == state.in_no_store(epoch).count();
                    whole || !count.exact || !all_arrived
                })
            }),
            Property::always(LOWER_BOUND, |_, state: &Counted| {
                state
                    .ended()
                    .all(|epoch| state.count(epoch).lost <= state.in_no_store(epoch).count())
            }),
            Property::sometimes(COUNTED, |_, state: &Counted| {
                let exact = |count: Count| count.exact && count.lost > 0;
                state.ended().any(|epoch| exact(state.count(epoch)))
            }),
            Property::sometimes(INEXACT, |_, state: &Counted| {
                let at_least = |count: Count| !count.exact && count.lost > 0;
                state.ended().any(|epoch| at_least(state.count(epoch)))
            }),
            Property::sometimes(UNANSWERED, |_, state: &Counted| {
                let answered = |epoch| state.in_no_store(epoch).without(state.answered);
                state.ended().any(|epoch| !answered(epoch).is_empty())
            }),
        ]
    }
}

impl Marks {
    fn gateway(&self, state: &mut Counted, index: usize, step: MarkStep) -> Option<()> {
        let mut gateway = state.gateways[index];
        if gateway.killed {
            return None;
        }
        match (step, gateway.read, gateway.call) {
            (MarkStep::Read(_), Read::None, _) => {
                gateway.read = Read::Row(state.epoch, state.open);
            }
            (MarkStep::Report(_), Read::Row(epoch, open), _) => {
                gateway.read = self.read_row(&mut gateway, epoch, open);
            }
            (MarkStep::Begin(_), Read::Reported(epoch), _) => {
                gateway.read = Read::None;
                gateway.selling_epoch = epoch;
                gateway.last = gateway.last.max(Some((epoch, 0)));
            }
            (MarkStep::Send(_), _, Call::None) if gateway.selling_epoch > 0 => {
                gateway.call = Call::Sent(gateway.selling_epoch);
            }
            (MarkStep::Run(_), _, Call::Sent(epoch)) => {
                gateway.call = self.reserve(state, epoch)?;
            }
            (MarkStep::Answer(_), _, Call::Accepted(reservation)) => {
                gateway.call = Call::None;
                gateway.last = gateway.last.max(state.accepted[usize::from(reservation)]);
                state.answered.add(reservation);
            }
            (MarkStep::LoseAnswer(_), _, Call::Accepted(_)) => {
                state.lost_answers = state.lost_answers.checked_sub(1)?;
                gateway.call = Call::None;
            }
            (MarkStep::Kill(_), ..) => {
                state.kills = state.kills.checked_sub(1)?;
                let marks = gateway.marks;
                gateway = Gateway { killed: true, marks, ..Gateway::default() };
            }
            _ => return None,
        }
        state.gateways[index] = gateway;
        Some(())
    }

    /// `Recovery::apply_epochs`, from what was read to the report.
    fn read_row(&self, gateway: &mut Gateway, epoch: u8, open: bool) -> Read {
        let last = gateway.last.map_or(0, |(epoch, _)| epoch);
        // An epoch that was open is never closed; only a later epoch is.
        if epoch < last || (epoch == last && !open) {
            return Read::None;
        }
        if epoch == last {
            gateway.selling_epoch = epoch;
            return Read::None;
        }
        gateway.selling_epoch = 0;
        if self.waits_for_answers && gateway.call != Call::None {
            return Read::None;
        }
        if let Some((epoch, seq)) = gateway.last {
            gateway.report(epoch, Mark::Reported(seq));
        }
        if !open {
            return Read::None;
        }
        if self.registers_first {
            gateway.report(epoch, Mark::Registered);
        }
        Read::Reported(epoch)
    }

    /// `reserve.lua`: the call that it leads to.
    fn reserve(&self, state: &mut Counted, epoch: u8) -> Option<Call> {
        if !state.redis_open || state.redis_epoch != epoch {
            return Some(Call::None);
        }
        let limit = RESERVATIONS_MAX.min(usize::from(self.reservations));
        let place = state.accepted[..limit].iter().position(Option::is_none)?;
        let reservation = u8::try_from(place).ok()?;
        state.seq += 1;
        state.accepted[place] = Some((epoch, state.seq));
        state.orders.add(reservation);
        Some(Call::Accepted(reservation))
    }
}

impl Gateway {
    /// A lower mark changes nothing.
    fn report(&mut self, epoch: u8, mark: Mark) {
        let row = &mut self.marks[usize::from(epoch)];
        *row = mark.max(*row);
    }
}

impl Counted {
    fn rewind(&mut self, orders: Set) -> Option<()> {
        self.rewinds = self.rewinds.checked_sub(1)?;
        self.orders = orders;
        self.redis_open = false;
        Some(())
    }

    /// The epochs that a rebuild has ended.
    fn ended(&self) -> impl Iterator<Item = u8> + use<> {
        1..if self.open { self.epoch } else { 1 }
    }

    fn of(&self, epoch: u8) -> Set {
        let mut all = Set::default();
        for (reservation, id) in (0..).zip(&self.accepted) {
            if id.is_some_and(|(accepted_in, _)| accepted_in == epoch) {
                all.add(reservation);
            }
        }
        all
    }

    /// Accepted, and neither stored nor in Redis.
    fn in_no_store(&self, epoch: u8) -> Set {
        self.of(epoch).without(self.stored).without(self.orders)
    }

    /// `Ledger::lost`.
    fn count(&self, epoch: u8) -> Count {
        let marks = self.gateways.map(|gateway| gateway.marks[usize::from(epoch)]);
        let rows = self.of(epoch).and(self.stored);
        let row_seq = |row: Reservation| self.accepted[usize::from(row)].map_or(0, |(_, seq)| seq);
        let mark_seq = |mark: &Mark| if let Mark::Reported(seq) = mark { *seq } else { 0 };
        let highest = marks.iter().map(mark_seq).chain(rows.iter().map(row_seq)).max();
        let registered = marks.contains(&Mark::Registered);
        let reported = marks.iter().any(|mark| *mark != Mark::None);
        let lost = u32::from(highest.unwrap_or(0)).saturating_sub(rows.count());
        Count { lost, exact: reported && !registered }
    }
}

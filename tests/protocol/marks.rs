//! R10 as a model of its own: two gateways, their marks, and the count of what was lost. A whole rebuild
//! is two steps here; its parts are in the other model.

use stateright::{Model, Property};

use crate::state::{MOST, Reservation, Set};

pub const EXACT: &str = "where every gateway reported, all that was told and is nowhere is counted";
pub const WHOLE: &str = "where every answer arrived, the count is what is nowhere";
pub const AT_LEAST: &str = "nothing is counted that is somewhere";
pub const COUNTED: &str = "a loss is counted exactly";
pub const NOT_HEARD: &str = "a loss is at least so much, for a gateway has not reported";
pub const NOT_TOLD: &str = "an accept that nobody was told of is lost";

const GATEWAYS: usize = 2;
const EPOCHS: usize = 4;

/// The protocol of the marks, in a world of some size.
#[derive(Clone, Debug)]
pub struct Marks {
    /// A gateway stands in the ledger before it takes its first order of an epoch.
    pub stands_first: bool,
    /// A gateway reports only when the answer under way has come.
    pub waits_for_answers: bool,
    pub reservations: u8,
    pub rewinds: u8,
    pub epochs: u8,
    /// Answers that get lost on their way.
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
    Stands,
    Reported(u8),
}

/// A call of `reserve.lua`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    #[default]
    None,
    /// Under way to Redis, under this epoch.
    Sent(u8),
    /// Accepted; the answer is under way.
    Accepted(Reservation),
}

/// What a look at the ledger leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Look {
    #[default]
    None,
    /// Saw this epoch, and whether it is open.
    Saw(u8, bool),
    /// Reported; this epoch is to be begun.
    Reported(u8),
}

/// A gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gateway {
    killed: bool,
    /// The epoch it sells in; 0: none.
    believes: u8,
    /// The last epoch it believed in, and its highest seq seen.
    last: Option<(u8, u8)>,
    look: Look,
    call: Call,
    marks: [Mark; EPOCHS],
}

/// The world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Counted {
    epoch: u8,
    open: bool,
    stored: Set,
    redis_epoch: u8,
    /// Whether Redis has not lost its past, and is not closed.
    redis_open: bool,
    seq: u8,
    orders: Set,
    accepted: [Option<(u8, u8)>; MOST],
    /// Whose buyers got an answer.
    told: Set,
    gateways: [Gateway; GATEWAYS],
    rewinds: u8,
    lost_answers: u8,
    kills: u8,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkStep {
    /// A gateway reads the ledger's row.
    Look(usize),
    /// It stops believing, and reports.
    Report(usize),
    /// It believes in what it saw.
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
    /// It seizes, drains and opens.
    Mend,
    Empty,
    /// Redis loses the last it accepted.
    LoseLast,
}

/// What the ledger says of an ended epoch.
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
            accepted: [None; MOST],
            told: Set::default(),
            gateways: Default::default(),
            rewinds: self.rewinds,
            lost_answers: self.lost_answers,
            kills: self.kills,
        }]
    }

    fn actions(&self, state: &Counted, steps: &mut Vec<MarkStep>) {
        for who in 0..GATEWAYS {
            steps.extend([MarkStep::Look(who), MarkStep::Report(who), MarkStep::Begin(who)]);
            steps.extend([MarkStep::Send(who), MarkStep::Run(who), MarkStep::Answer(who)]);
            steps.extend([MarkStep::LoseAnswer(who), MarkStep::Kill(who)]);
        }
        steps.extend(state.orders.iter().map(MarkStep::Store));
        steps.extend([MarkStep::Close, MarkStep::Mend, MarkStep::Empty, MarkStep::LoseLast]);
    }

    fn next_state(&self, last: &Counted, step: MarkStep) -> Option<Counted> {
        let mut state = last.clone();
        match step {
            MarkStep::Look(who)
            | MarkStep::Report(who)
            | MarkStep::Begin(who)
            | MarkStep::Send(who)
            | MarkStep::Run(who)
            | MarkStep::Answer(who)
            | MarkStep::LoseAnswer(who)
            | MarkStep::Kill(who) => self.gateway(&mut state, who, step)?,
            MarkStep::Store(reservation) => {
                let may = state.redis_open && state.redis_epoch == state.epoch;
                (may && state.orders.remove(reservation)).then_some(())?;
                state.stored.add(reservation);
            }
            MarkStep::Close => {
                state.epoch =
                    (state.open && state.epoch < self.epochs).then_some(state.epoch + 1)?;
                state.open = false;
            }
            MarkStep::Mend => {
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
                    !count.exact || count.lost >= state.nowhere(epoch).and(state.told).count()
                })
            }),
            Property::always(WHOLE, |model: &Self, state: &Counted| {
                let all_arrived = state.lost_answers == model.lost_answers;
                state.ended().all(|epoch| {
                    let count = state.count(epoch);
                    let whole = count.lost == state.nowhere(epoch).count();
                    whole || !count.exact || !all_arrived
                })
            }),
            Property::always(AT_LEAST, |_, state: &Counted| {
                state.ended().all(|epoch| state.count(epoch).lost <= state.nowhere(epoch).count())
            }),
            Property::sometimes(COUNTED, |_, state: &Counted| {
                let exact = |count: Count| count.exact && count.lost > 0;
                state.ended().any(|epoch| exact(state.count(epoch)))
            }),
            Property::sometimes(NOT_HEARD, |_, state: &Counted| {
                let at_least = |count: Count| !count.exact && count.lost > 0;
                state.ended().any(|epoch| at_least(state.count(epoch)))
            }),
            Property::sometimes(NOT_TOLD, |_, state: &Counted| {
                let told = |epoch| state.nowhere(epoch).without(state.told);
                state.ended().any(|epoch| !told(epoch).is_empty())
            }),
        ]
    }
}

impl Marks {
    fn gateway(&self, state: &mut Counted, who: usize, step: MarkStep) -> Option<()> {
        let mut gateway = state.gateways[who];
        if gateway.killed {
            return None;
        }
        match (step, gateway.look, gateway.call) {
            (MarkStep::Look(_), Look::None, _) => {
                gateway.look = Look::Saw(state.epoch, state.open);
            }
            (MarkStep::Report(_), Look::Saw(epoch, open), _) => {
                gateway.look = self.believe(&mut gateway, epoch, open);
            }
            (MarkStep::Begin(_), Look::Reported(epoch), _) => {
                gateway.look = Look::None;
                gateway.believes = epoch;
                gateway.last = gateway.last.max(Some((epoch, 0)));
            }
            (MarkStep::Send(_), _, Call::None) if gateway.believes > 0 => {
                gateway.call = Call::Sent(gateway.believes);
            }
            (MarkStep::Run(_), _, Call::Sent(epoch)) => {
                gateway.call = self.reserve(state, epoch)?;
            }
            (MarkStep::Answer(_), _, Call::Accepted(reservation)) => {
                gateway.call = Call::None;
                gateway.last = gateway.last.max(state.accepted[usize::from(reservation)]);
                state.told.add(reservation);
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
        state.gateways[who] = gateway;
        Some(())
    }

    /// `Recovery::believe`, from what was read to the report.
    fn believe(&self, gateway: &mut Gateway, epoch: u8, open: bool) -> Look {
        let last = gateway.last.map_or(0, |(epoch, _)| epoch);
        // An epoch that was open once is never closed: only a later one is.
        if epoch < last || (epoch == last && !open) {
            return Look::None;
        }
        if epoch == last {
            gateway.believes = epoch;
            return Look::None;
        }
        gateway.believes = 0;
        if self.waits_for_answers && gateway.call != Call::None {
            return Look::None;
        }
        if let Some((epoch, seq)) = gateway.last {
            gateway.report(epoch, Mark::Reported(seq));
        }
        if !open {
            return Look::None;
        }
        if self.stands_first {
            gateway.report(epoch, Mark::Stands);
        }
        Look::Reported(epoch)
    }

    /// `reserve.lua`: the call that it leads to.
    fn reserve(&self, state: &mut Counted, epoch: u8) -> Option<Call> {
        if !state.redis_open || state.redis_epoch != epoch {
            return Some(Call::None);
        }
        let most = MOST.min(usize::from(self.reservations));
        let place = state.accepted[..most].iter().position(Option::is_none)?;
        let reservation = u8::try_from(place).ok()?;
        state.seq += 1;
        state.accepted[place] = Some((epoch, state.seq));
        state.orders.add(reservation);
        Some(Call::Accepted(reservation))
    }
}

impl Gateway {
    /// A lower mark than before changes nothing.
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
            if id.is_some_and(|(life, _)| life == epoch) {
                all.add(reservation);
            }
        }
        all
    }

    /// Accepted, and neither stored nor in Redis.
    fn nowhere(&self, epoch: u8) -> Set {
        self.of(epoch).without(self.stored).without(self.orders)
    }

    /// `Ledger::lost`.
    fn count(&self, epoch: u8) -> Count {
        let marks = self.gateways.map(|gateway| gateway.marks[usize::from(epoch)]);
        let rows = self.of(epoch).and(self.stored);
        let row_seq = |row: Reservation| self.accepted[usize::from(row)].map_or(0, |(_, seq)| seq);
        let mark_seq = |mark: &Mark| if let Mark::Reported(seq) = mark { *seq } else { 0 };
        let highest = marks.iter().map(mark_seq).chain(rows.iter().map(row_seq)).max();
        let stands = marks.contains(&Mark::Stands);
        let reported = marks.iter().any(|mark| *mark != Mark::None);
        let lost = u32::from(highest.unwrap_or(0)).saturating_sub(rows.count());
        Count { lost, exact: reported && !stands }
    }
}

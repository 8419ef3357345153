//! What can happen: each step is one script, one transaction, or one turn of fate. Between any two of
//! them anything else may happen.

mod consumer;
mod fate;
mod gateway;
mod rebuilder;
mod releaser;

use stateright::{Model, Property};

pub use self::{
    consumer::ConsumerStep, fate::FateStep, gateway::GatewayStep, rebuilder::RebuilderStep,
    releaser::ReleaserStep,
};
use crate::{
    properties,
    rules::{Bounds, Rules},
    state::{Reservation, State},
};

/// The protocol under some rules, in a world of some size.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
}

/// Who does what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Gateway(GatewayStep),
    Consumer(usize, ConsumerStep),
    Releaser(usize, ReleaserStep),
    Rebuilder(usize, RebuilderStep),
    Fate(FateStep),
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(&self.bounds)]
    }

    /// Candidates: what cannot happen in a state is refused by `next_state`.
    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        steps.extend(gateway::STEPS.map(Step::Gateway));
        fate::steps(state, |step| steps.push(Step::Fate(step)));
        for who in 0..self.bounds.consumers {
            consumer::steps(state, who, |step| steps.push(Step::Consumer(who, step)));
        }
        for who in 0..self.bounds.releasers {
            releaser::steps(state, who, |step| steps.push(Step::Releaser(who, step)));
        }
        for who in 0..self.bounds.rebuilders {
            rebuilder::steps(state, who, |step| steps.push(Step::Rebuilder(who, step)));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let happened = match step {
            Step::Gateway(step) => self.gateway(&mut state, step),
            Step::Consumer(who, step) => self.consumer(&mut state, who, step),
            Step::Releaser(who, step) => self.releaser(&mut state, who, step),
            Step::Rebuilder(who, step) => self.rebuilder(&mut state, who, step),
            Step::Fate(step) => self.fate(&mut state, step),
        };
        happened.map(|()| state.normalised())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Protocol {
    /// Whether a script of some gateway or worker is let in now: somebody may believe in what Redis is.
    pub fn is_let_in(&self, state: &State) -> bool {
        self.selling_epoch(state).is_some()
    }

    /// The epoch in which Redis sells to those who believe in it.
    pub fn selling_epoch(&self, state: &State) -> Option<u8> {
        state.redis.open_in(&self.rules).filter(|epoch| state.ledger.is_believed(*epoch))
    }

    /// The epoch under which somebody who has read this order stores or voids it now, if the ledger lets
    /// him. Orders of an earlier life than his own are forgotten, those of a later one wait: so he
    /// believes in the order's own.
    pub fn may_settle(&self, state: &State, reservation: Reservation) -> bool {
        let life = state.entry_id(reservation).epoch;
        state.ledger.is_believed(life) && state.ledger.passes(&self.rules, life)
    }
}

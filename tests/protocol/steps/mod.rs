//! What can happen: each step is one script, one transaction, or one turn of fate. Between any two of
//! them anything else may happen.

mod consumer;
mod fault;
mod gateway;
mod rebuilder;
mod releaser;

use stateright::{Model, Property};

pub use self::{
    consumer::ConsumerStep, fault::FaultStep, gateway::GatewayStep, rebuilder::RebuilderStep,
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
    Fault(FaultStep),
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
        fault::steps(state, |step| steps.push(Step::Fault(step)));
        for index in 0..self.bounds.consumers {
            consumer::steps(state, index, |step| steps.push(Step::Consumer(index, step)));
        }
        for index in 0..self.bounds.releasers {
            releaser::steps(state, index, |step| steps.push(Step::Releaser(index, step)));
        }
        for index in 0..self.bounds.rebuilders {
            rebuilder::steps(state, index, |step| steps.push(Step::Rebuilder(index, step)));
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let happened = match step {
            Step::Gateway(step) => self.gateway(&mut state, step),
            Step::Consumer(index, step) => self.consumer(&mut state, index, step),
            Step::Releaser(index, step) => self.releaser(&mut state, index, step),
            Step::Rebuilder(index, step) => self.rebuilder(&mut state, index, step),
            Step::Fault(step) => self.fault(&mut state, step),
        };
        happened.map(|()| state.normalised())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Protocol {
    /// Whether a script of some gateway or worker is let in now: somebody may believe in what Redis is.
    pub fn is_open(&self, state: &State) -> bool {
        self.selling_epoch(state).is_some()
    }

    /// The epoch in which Redis sells to those who believe in it.
    pub fn selling_epoch(&self, state: &State) -> Option<u8> {
        state.redis.open_epoch(&self.rules).filter(|epoch| state.ledger.was_ever_open(*epoch))
    }

    /// The epoch under which somebody who has read this order stores or voids it now, if the ledger lets
    /// him. Orders of an earlier life than his own are forgotten, those of a later one wait: so he
    /// believes in the order's own.
    pub fn may_settle(&self, state: &State, reservation: Reservation) -> bool {
        let epoch = state.entry_id(reservation).epoch;
        state.ledger.was_ever_open(epoch) && state.ledger.passes(&self.rules, epoch)
    }
}

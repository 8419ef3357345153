//! The steps of the model: each is one script, one transaction, or one fault. Between any two of them any other
//! step may happen.

mod change;
mod consumer;
mod fault;
mod gateway;
mod rebuilder;
mod releaser;

use stateright::{Model, Property};

pub use self::{
    change::ChangeStep, consumer::ConsumerStep, fault::FaultStep, gateway::GatewayStep,
    rebuilder::RebuilderStep, releaser::ReleaserStep,
};
use crate::{
    hold_properties, properties,
    rules::{Bounds, Rules},
    state::{Reservation, State},
};

/// The protocol under some rules, within bounds.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
}

/// A step of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Gateway(GatewayStep),
    Consumer(usize, ConsumerStep),
    Releaser(usize, ReleaserStep),
    Rebuilder(usize, RebuilderStep),
    Change(ChangeStep),
    Fault(FaultStep),
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(&self.bounds)]
    }

    /// Candidates; `next_state` refuses those that cannot happen in a state. It copies the state for each of them, so
    /// those that the bounds exclude are left out.
    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        gateway::steps(state, &self.bounds, |step| steps.push(Step::Gateway(step)));
        if self.bounds.holds.allowed {
            change::steps(state, self, |step| steps.push(Step::Change(step)));
        }
        fault::steps(state, &self.bounds, |step| steps.push(Step::Fault(step)));
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
            Step::Change(step) => self.change(&mut state, step),
            Step::Fault(step) => self.fault(&mut state, step),
        };
        happened.map(|()| state.normalised())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = properties::all();
        if self.bounds.holds.allowed {
            properties.extend(hold_properties::all());
        }
        properties
    }
}

impl Protocol {
    /// Whether a script of a gateway or worker passes the fence now.
    pub fn is_open(&self, state: &State) -> bool {
        self.selling_epoch(state).is_some()
    }

    /// The epoch in which Redis sells.
    pub fn selling_epoch(&self, state: &State) -> Option<u8> {
        state.redis.open_epoch(&self.rules).filter(|epoch| state.ledger.was_ever_open(*epoch))
    }

    /// Whether a process that has read this order may store or void it now. It does so only in the order's own
    /// epoch: orders of earlier epochs are dropped, and those of later ones wait.
    pub fn may_settle(&self, state: &State, reservation: Reservation) -> bool {
        let epoch = state.entry_id(reservation).epoch;
        state.ledger.was_ever_open(epoch) && state.ledger.passes(&self.rules, epoch)
    }
}

//! What became of a call.

use std::{collections::BTreeMap, sync::Arc};

/// The group that an outcome belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The call succeeded: accepted, or a duplicate of an accepted one, or an empty call.
    Succeeded,
    /// The service decided against it, finally: sold out and every other `FAILED_PRECONDITION`.
    Refused,
    /// The service answered with any other error.
    Failed,
    /// There was no answer: the connection was lost, or the call took longer than its timeout.
    Unanswered,
}

impl Kind {
    /// Every group.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Refused, Self::Failed, Self::Unanswered];

    /// Its name in a report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unanswered => "unanswered",
        }
    }

    /// Whether callers would call it an error: neither a success nor a final decision.
    pub fn is_error(self) -> bool {
        matches!(self, Self::Failed | Self::Unanswered)
    }
}

/// What became of a call: `accepted`, `duplicate`, `ok` (an empty call), the reason of a refusal (`SOLD_OUT`), the gRPC
/// status of an error without reason (`UNAVAILABLE`), or why there was no answer (`timeout`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// Its group.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
}

impl Outcome {
    pub(super) fn new(kind: Kind, name: &str) -> Self {
        Self { kind, name: name.into() }
    }
}

/// How many calls had each outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcomes(BTreeMap<Outcome, u64>);

impl Outcomes {
    /// How many calls there are in all.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// How many calls had the outcome of this name.
    pub fn named(&self, name: &str) -> u64 {
        self.iter().filter(|(outcome, _)| &*outcome.name == name).map(|(_, count)| count).sum()
    }

    /// How many calls had an outcome of this group.
    pub fn of(&self, kind: Kind) -> u64 {
        self.iter().filter(|(outcome, _)| outcome.kind == kind).map(|(_, count)| count).sum()
    }

    /// How many calls were answered.
    pub fn answered(&self) -> u64 {
        self.total() - self.of(Kind::Unanswered)
    }

    /// How many calls ended with an error.
    pub fn errors(&self) -> u64 {
        self.iter().filter(|(outcome, _)| outcome.kind.is_error()).map(|(_, count)| count).sum()
    }

    /// Every outcome with its count, by group and name.
    pub fn iter(&self) -> impl Iterator<Item = (&Outcome, u64)> {
        self.0.iter().map(|(outcome, count)| (outcome, *count))
    }

    pub(super) fn add(&mut self, outcome: &Outcome, count: u64) {
        match self.0.get_mut(outcome) {
            Some(total) => *total += count,
            None => {
                self.0.insert(outcome.clone(), count);
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (outcome, count) in other.iter() {
            self.add(outcome, count);
        }
    }
}

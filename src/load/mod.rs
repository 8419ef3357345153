//! A load generator: calls a running service over many connections and reports what was answered, and how fast.
//!
//! [`run`] carries out a [`Plan`] and returns a [`Report`]. A closed loop ([`Pace::Closed`]) has a fixed number of callers,
//! each of which makes its next call when the last one is answered. An open loop ([`Pace::Open`]) starts calls at a rate,
//! whether or not earlier ones are answered. Its latency is measured from the time at which a call was to start, so a
//! service that stops for a second shows a second in the latency, and not only fewer calls.
//!
//! The work of one thread is in `worker`: it has its own connections (`connection`) and callers (`caller`), which share
//! nothing with other threads but the budget of calls.
//!
//! Must never: prepare or change anything at the service but by the calls of the plan, or leave out a call that failed.
//!
//! ```no_run
//! use std::time::Duration;
//! use tokio_util::sync::CancellationToken;
//! use yoink::load::{self, Pace, Plan};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), load::LoadError> {
//! let mut plan = Plan::new("127.0.0.1:50051", ["sneaker-42"]);
//! plan.pace = Pace::Open { rate: 5_000.0 };
//! plan.duration = Some(Duration::from_secs(10));
//! let report = load::run(plan, CancellationToken::new(), |second| {
//!     println!("{} answers, p99 {:?}", second.answered, second.p99);
//! })
//! .await?;
//! println!("{} accepted, p95 {:?}", report.accepted(), report.latency_at(0.95));
//! # Ok(())
//! # }
//! ```

mod backlog;
mod caller;
mod choice;
mod connection;
mod credential;
mod html;
mod json;
mod message;
mod outcome;
mod plan;
mod plot;
mod recorder;
mod report;
mod run;
mod schedule;
mod status;
mod worker;

pub use credential::{Credential, CredentialError};
pub use outcome::{Kind, Outcome, Outcomes};
pub use plan::{Call, Choice, LoadError, Pace, Plan, Users};
pub use report::{ConnectionCounts, Report, Second};
pub use run::run;

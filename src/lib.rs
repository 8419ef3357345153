//! Yoink sells a limited number of units to far more buyers than there are units, and stays exact.
//!
//! The modules, in the order in which a reservation passes them (`docs/ARCHITECTURE.md` describes the whole):
//!
//! - [`domain`]: data types and decisions, without effects
//! - [`config`], [`telemetry`]: settings, logs
//! - [`redis`]: connections, every key, and the one way to run a script on them, behind the fence
//! - [`stock`]: takes units and gives them back; [`stream`]: carries accepted orders; [`ledger`]: stores
//!   them in Postgres. These three do not import one another
//! - [`lifecycle`]: opens, probes, closes and fills a partition in Redis
//! - [`ack`]: when an accepted reservation is answered
//! - [`catalogue`], [`recovery`], [`dead_letters`]: products, opening and rebuilding partitions, dead entries
//! - [`audit`]: checks that nothing is lost and nothing is sold twice
//! - [`app`]: connects, builds and runs the service; [`tasks`]: background tasks
//! - [`servers`]: private Redis and Postgres for `dev`, `demo` and the tests

pub mod ack;
pub mod app;
pub mod audit;
pub mod catalogue;
pub mod cli;
pub mod config;
mod crash_point;
pub mod dead_letters;
pub mod domain;
mod durability;
pub mod grpc;
pub mod ledger;
pub mod lifecycle;
pub mod recovery;
pub mod redis;
pub mod servers;
pub mod stock;
pub mod stream;
pub mod tasks;
pub mod telemetry;
pub mod worker;

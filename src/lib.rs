//! Yoink sells a limited number of units to far more buyers than there are units, and stays exact.
//!
//! A map, in the order of a reservation's way (`docs/ARCHITECTURE.md` tells the whole):
//!
//! - [`domain`]: the nouns and decisions, pure
//! - [`config`], [`telemetry`]: settings, logs
//! - [`redis`]: connections, every key, and the one way to run a script on them, behind the fence
//! - [`stock`]: takes units and gives them back; [`stream`]: carries accepted orders; [`ledger`]: stores
//!   them in Postgres. These three never see one another
//! - [`lifecycle`]: opens, probes, closes and fills a partition in Redis
//! - [`ack`]: when an accepted reservation is answered
//! - [`catalogue`], [`recovery`], [`dead_letters`]: products, the life of a partition, dead entries
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
pub mod grpc;
pub mod ledger;
pub mod lifecycle;
pub mod recovery;
pub mod redis;
pub mod servers;
pub mod stock;
pub mod stream;
pub mod telemetry;
pub mod worker;

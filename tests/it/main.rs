//! Integration tests on a real Redis and a real Postgres, which the tests start themselves.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod harness;

mod ack;
mod addresses;
mod archive;
mod auth;
mod bad_input;
mod catalogue;
mod commands;
mod compose_volumes;
mod confinement;
mod connection_age;
mod dead_letters;
mod dead_letters_bulk;
mod dead_letters_record;
mod deploy;
mod end_to_end;
mod environment;
mod fault;
mod idempotency;
mod ids;
mod import;
mod install;
mod kubernetes;
mod ledger;
mod limits;
mod load;
mod matrix;
mod metadata;
mod metrics;
mod model;
mod overload;
mod owners;
mod paging;
mod poison;
mod poolers;
mod privileges;
mod rolling;
mod sale;
mod schema;
mod scripts;
mod secrets;
mod spread;
mod tls;
mod topology;
mod traces;
mod values;

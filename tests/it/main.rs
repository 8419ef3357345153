//! Integration tests on a real Redis and a real Postgres, which the tests start themselves.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod harness;

mod ack;
mod bad_input;
mod catalogue;
mod commands;
mod deploy;
mod desk;
mod desk_bulk;
mod desk_record;
mod end_to_end;
mod fault;
mod idempotency;
mod import;
mod ledger;
mod limits;
mod metrics;
mod model;
mod overload;
mod poison;
mod poolers;
mod sale;
mod schema;
mod scripts;
mod tls;
mod traces;

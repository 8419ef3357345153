//! Tests with the real tools that people use with Yoink; `make tools` installs them under `.tools/`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the other tests; each uses its part")]
mod harness;
#[path = "../it/auth/signer.rs"]
#[allow(dead_code, reason = "shared with the other tests; each uses its part")]
mod signer;

mod alerts;
mod authentication;
mod bench;
mod beside;
mod clients;
mod compose;
mod dashboards;
mod edge;
mod envoy;
mod examples;
mod generations;
mod headers;
mod jwt;
mod kubernetes;
mod listening;
mod listing;
mod load;
mod prometheus;
mod readme;
mod reproducible;
mod rest;
mod running_load;
mod sbom;
mod scaling;

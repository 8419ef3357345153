//! TLS: the listeners, the load generator, Redis and Postgres, with certificates of throw-away authorities.

mod certificate_end;
mod certificate_roles;
mod client_certificates;
mod content_types;
mod listeners;
mod postgres;
mod redis;
mod reload;
mod secrets;

use std::path::PathBuf;

use crate::harness::{Authority, Validity};

/// An authority (`ca.pem`) and what it signed for 127.0.0.1 (`server.pem`, `server.key`).
pub fn certificates() -> PathBuf {
    let authority = Authority::new();
    authority.issue("server", &["127.0.0.1"], Validity::Now);
    authority.dir().to_owned()
}

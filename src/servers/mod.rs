//! Private redis-server and postgres processes for `dev`, `demo` and the tests: on loopback, on free
//! ports, in a directory of the caller. The kernel ends them when this process ends for any reason.
//!
//! Must never: touch a server it did not start.

mod child;
mod postgres;
mod redis;

pub use self::{
    postgres::PostgresServer,
    redis::{AppendFsync, RedisServer},
};

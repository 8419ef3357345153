//! A connection for plain commands, which metrics time and count by name.

use std::time::Instant;

use ::redis::{Arg, Cmd, Pipeline, RedisFuture, Value, aio::ConnectionLike};
use futures_util::FutureExt as _;

use super::Connection;

/// A handle on the connection of every partition; clones share it.
#[derive(Clone)]
pub struct Commands(pub Connection);

impl ConnectionLike for Commands {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            let started = Instant::now();
            let reply = self.0.req_packed_command(command).await;
            let name = match command.args_iter().next() {
                Some(Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
                Some(_) | None => "other".to_owned(),
            };
            let error = reply.as_ref().err().map(|error| error.category().to_owned());
            self.0.metrics().record_command(name, started.elapsed(), error);
            reply
        }
        .boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

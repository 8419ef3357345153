//! Which commands Redis does not permit to the user of this program. Redis checks a command when it is called, so a missing
//! permission may show in the middle of a script, or hours after a start.
//!
//! Must never: change a key.

use futures_util::future::join_all;
use redis::{Cmd, RedisError, Value};

use super::Lifecycle;
use crate::{
    domain::Partition,
    redis::{Key, RedisCallError, script},
};

// The commands of scripts that are not permitted, separated by commas.
script!(PERMISSIONS: Option<String> = "permissions", include_str!("../../lua/permissions.lua"), [Scratch] {
    ["permitted"] => None,
    ["refused", commands] => Some(commands.to_owned()),
});

/// In place of a key that is never written.
const SCRATCH: &str = "{scratch}";

/// What this program calls outside of scripts and what no script calls, in a form that has no effect: it finds no key, no
/// script or no group. `SCRIPT LOAD` and `EVAL` add a script that does nothing to those that Redis knows. Commands that
/// may be refused are left out: CONFIG GET and ACL DRYRUN.
const PLAIN: [&[&str]; 11] = [
    &["PING"],
    &["EVAL", "return 1", "0"],
    &["EVALSHA", "0", "0"],
    &["SCRIPT", "LOAD", "return 1"],
    &["HSCAN", SCRATCH, "0"],
    &["WAIT", "0", "0"],
    &["XINFO", "CONSUMERS", SCRATCH, "group"],
    &["XREADGROUP", "GROUP", "group", "consumer", "STREAMS", SCRATCH, ">"],
    &["CLUSTER", "INFO"],
    &["CLUSTER", "NODES"],
    &["CLUSTER", "SLOTS"],
];

/// Commands that this program needs and that a master of Redis refuses to its user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{at}Redis does not permit commands that this program uses ({commands}): give the user of redis_url the permissions of \
     the user yoink in deploy/redis.acl"
)]
pub struct NotPermitted {
    /// The name of the master and a colon; empty if the master has no name.
    at: String,
    commands: String,
}

impl Lifecycle {
    /// What the user of this program needs and a master of Redis does not permit; `None` if everything is permitted. Each
    /// master is asked, at the same time. One that does not answer is left out, as long as another one answers.
    pub async fn not_permitted(&self) -> Result<Option<NotPermitted>, RedisCallError> {
        let masters = self.partitions.masters().into_iter();
        let checks = masters.filter_map(|(_, partitions)| {
            Some(self.not_permitted_for(partitions.into_iter().next()?))
        });
        let checks: Vec<_> = checks.collect();
        let (mut answered, mut failure) = (false, None);
        for check in join_all(checks).await {
            match check {
                Ok(None) => answered = true,
                Ok(refused) => return Ok(refused),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if !answered => Err(error),
            _ => Ok(None),
        }
    }

    /// As [`Lifecycle::not_permitted`], by the master of one partition.
    pub async fn not_permitted_for(
        &self,
        partition: Partition,
    ) -> Result<Option<NotPermitted>, RedisCallError> {
        // In the slot of the partition, which this master has.
        let scratch = self.partitions.key(partition, Key::Scratch);
        // Not measured: that Redis refuses a command for its arguments is no error.
        let mut connection = self.partitions.connection(partition).0;
        let master = self.partitions.master(partition);
        let mut refused = Vec::new();
        for words in PLAIN {
            // This program asks only the nodes of a cluster for it.
            if !self.partitions.is_cluster() && words.first() == Some(&"CLUSTER") {
                continue;
            }
            let mut command = Cmd::new();
            for word in words {
                command.arg(if *word == SCRATCH { scratch.as_str() } else { word });
            }
            let reply: Result<Value, _> = command.query_async(&mut connection).await;
            match reply {
                Err(error) if is_denied(&error) => refused.extend(denied(words, &error)),
                // Another refusal by Redis shows that the command is permitted.
                Err(error) if error.code().is_none() => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        match self.partitions.call_script(partition, &PERMISSIONS, &[]).await {
            Ok(of_scripts) => refused.splice(0..0, of_scripts).for_each(drop),
            // The script was not run: it could not be called or loaded, as found above, or not on its keys.
            Err(RedisCallError::Unavailable { source, .. }) if is_denied(&source) => {
                if !refused.iter().any(|name| name == "EVALSHA" || name == "SCRIPT LOAD") {
                    refused.splice(0..0, denied(&["EVALSHA"], &source)).for_each(drop);
                }
            }
            Err(error) => return Err(error),
        }
        let at = if master.is_empty() { master } else { format!("{master}: ") };
        Ok((!refused.is_empty()).then(|| NotPermitted { at, commands: refused.join(", ") }))
    }
}

fn is_denied(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// The name of a command that is not permitted; as in `lua/permissions.lua`.
fn denied(words: &[&str], error: &RedisError) -> Option<String> {
    let (name, arguments) = words.split_first()?;
    let subcommand = arguments.first().filter(|_| ["CLUSTER", "SCRIPT", "XINFO"].contains(name));
    let name = subcommand.map_or((*name).to_owned(), |subcommand| format!("{name} {subcommand}"));
    let is_key = error.detail().is_some_and(|detail| detail.contains(" key"));
    Some(if is_key { format!("{name} on its keys") } else { name })
}

//! Which commands Redis does not permit to the user of this program. Redis checks a command when it is called, so a missing
//! permission may show in the middle of a script, or hours after a start.
//!
//! Must never: change a key.

use redis::{Cmd, RedisError, Value};

use super::Lifecycle;
use crate::redis::{Key, RedisCallError, script};

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
const PLAIN: [&[&str]; 8] = [
    &["PING"],
    &["EVAL", "return 1", "0"],
    &["EVALSHA", "0", "0"],
    &["SCRIPT", "LOAD", "return 1"],
    &["HSCAN", SCRATCH, "0"],
    &["WAIT", "0", "0"],
    &["XINFO", "CONSUMERS", SCRATCH, "group"],
    &["XREADGROUP", "GROUP", "group", "consumer", "STREAMS", SCRATCH, ">"],
];

/// Commands that this program needs and that Redis refuses to its user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Redis does not permit commands that this program uses ({0}): give the user of redis_url the permissions of the user \
     yoink in deploy/redis.acl"
)]
pub struct NotPermitted(String);

impl Lifecycle {
    /// What the user of this connection needs and Redis does not permit; `None` if everything is permitted.
    pub async fn not_permitted(&self) -> Result<Option<NotPermitted>, RedisCallError> {
        let Some(first) = self.partitions.count().all().next() else { return Ok(None) };
        let scratch = self.partitions.key(first, Key::Scratch);
        // Not measured: that Redis refuses a command for its arguments is no error.
        let mut connection = self.partitions.connection().0;
        let mut refused = Vec::new();
        for words in PLAIN {
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
        match self.partitions.call_script(first, &PERMISSIONS, &[]).await {
            Ok(of_scripts) => refused.splice(0..0, of_scripts).for_each(drop),
            // The script was not run: it could not be called or loaded, as found above, or not on its keys.
            Err(RedisCallError::Unavailable { source, .. }) if is_denied(&source) => {
                if !refused.iter().any(|name| name == "EVALSHA" || name == "SCRIPT LOAD") {
                    refused.splice(0..0, denied(&["EVALSHA"], &source)).for_each(drop);
                }
            }
            Err(error) => return Err(error),
        }
        Ok((!refused.is_empty()).then(|| NotPermitted(refused.join(", "))))
    }
}

fn is_denied(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// The name of a command that is not permitted; as in `lua/permissions.lua`.
fn denied(words: &[&str], error: &RedisError) -> Option<String> {
    let (name, arguments) = words.split_first()?;
    let subcommand = arguments.first().filter(|_| ["SCRIPT", "XINFO"].contains(name));
    let name = subcommand.map_or((*name).to_owned(), |subcommand| format!("{name} {subcommand}"));
    let is_key = error.detail().is_some_and(|detail| detail.contains(" key"));
    Some(if is_key { format!("{name} on its keys") } else { name })
}

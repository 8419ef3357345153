//! What the servers' own settings let us promise: some refuse the start, some lower what is promised, and
//! that is said aloud.

use std::collections::HashMap;

use redis::RedisError;

use super::Stores;
use crate::{
    fence::Partitions,
    ledger::{LedgerError, LedgerSettings},
};

/// How long an accepted order can be lost, by what the server does with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    /// What it promises: a label of `yoink_durability`.
    pub(super) mode: &'static str,
    /// Why nothing may be sold with it.
    pub(super) refusals: Vec<String>,
    /// Why it promises less than it could.
    pub(super) warnings: Vec<&'static str>,
}

/// Every mode of Redis; the last one where it does not tell.
pub(super) const REDIS_MODES: [&str; 4] = ["always", "everysec", "memory", "unknown"];
/// Every mode of Postgres.
pub(super) const LEDGER_MODES: [&str; 2] = ["synchronous", "asynchronous"];

/// The settings that matter; none where the server does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RedisSettings {
    maxmemory_policy: Option<String>,
    appendonly: Option<String>,
    appendfsync: Option<String>,
    no_appendfsync_on_rewrite: Option<String>,
}

impl RedisSettings {
    async fn read(partitions: &Partitions) -> Result<Self, RedisError> {
        let mut connection = partitions.connection();
        let mut one = async |name: &str| -> Result<Option<String>, RedisError> {
            let mut command = redis::cmd("CONFIG");
            let answer = command.arg("GET").arg(name).query_async(&mut connection).await;
            match answer {
                Ok(answer) => {
                    let mut answer: HashMap<String, String> = answer;
                    Ok(answer.remove(name))
                }
                // Some that are rented out do not let anybody ask.
                Err(error) if matches!(error.code(), Some("ERR" | "NOPERM")) => Ok(None),
                Err(error) => Err(error),
            }
        };
        Ok(Self {
            maxmemory_policy: one("maxmemory-policy").await?,
            appendonly: one("appendonly").await?,
            appendfsync: one("appendfsync").await?,
            no_appendfsync_on_rewrite: one("no-appendfsync-on-rewrite").await?,
        })
    }

    fn judge(&self) -> Judgement {
        let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
        match self.maxmemory_policy.as_deref() {
            Some("noeviction") => {}
            Some(policy) => refusals.push(format!(
                "Redis's maxmemory-policy is {policy}: it may throw stock and orders away; \
                 set it to noeviction"
            )),
            None => warnings.push("Redis does not tell its settings (CONFIG GET is refused)"),
        }
        let mode = match (self.appendonly.as_deref(), self.appendfsync.as_deref()) {
            (Some("no"), _) => {
                warnings.push("Redis has no append-only file: a restart loses what is not stored");
                "memory"
            }
            (_, Some("no")) => {
                warnings.push("Redis's appendfsync is no: a crash of its machine loses much");
                "memory"
            }
            (Some("yes"), Some("always")) => "always",
            (Some("yes"), Some("everysec")) => "everysec",
            _ => "unknown",
        };
        let on_rewrite = self.no_appendfsync_on_rewrite.as_deref() == Some("yes");
        let mode = match mode {
            "always" | "everysec" if on_rewrite => {
                warnings.push(
                    "Redis's no-appendfsync-on-rewrite is yes: nothing is made durable while \
                     it rewrites its file",
                );
                "memory"
            }
            mode => mode,
        };
        Judgement { mode, refusals, warnings }
    }
}

fn judge_ledger(settings: &LedgerSettings) -> Judgement {
    let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
    if settings.read_only {
        refusals.push("Postgres is read-only, or a standby: orders cannot be stored".to_owned());
    }
    let version = settings.version / 10_000;
    if version < 13 {
        refusals.push(format!("Postgres is of version {version}; 13 or newer is needed"));
    }
    if settings.synchronous_commit == "off" {
        warnings.push("Postgres's synchronous_commit is off: a crash loses stored orders");
    }
    if !settings.fsync {
        warnings.push("Postgres's fsync is off: a crash of its machine destroys the ledger");
    }
    let mode = if warnings.is_empty() { "synchronous" } else { "asynchronous" };
    Judgement { mode, refusals, warnings }
}

/// Reads and judges Redis's settings.
///
/// # Errors
///
/// When it does not answer.
pub(super) async fn of_redis(stores: &Stores) -> Result<Judgement, RedisError> {
    Ok(RedisSettings::read(stores.stock.partitions()).await?.judge())
}

/// How many replicas have caught up with Redis.
///
/// # Errors
///
/// When it does not answer.
pub(super) async fn replicas(stores: &Stores) -> Result<u32, RedisError> {
    let mut info = redis::cmd("INFO");
    let mut connection = stores.stock.partitions().connection();
    let told: String = info.arg("replication").query_async(&mut connection).await?;
    let online = |line: &&str| line.starts_with("slave") && line.contains(",state=online,");
    Ok(u32::try_from(told.lines().filter(online).count()).unwrap_or(u32::MAX))
}

/// Reads and judges Postgres's settings.
///
/// # Errors
///
/// When it does not answer.
pub(super) async fn of_ledger(stores: &Stores) -> Result<Judgement, LedgerError> {
    Ok(judge_ledger(&stores.ledger.settings().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(policy: &str, appendonly: &str, fsync: &str, rewrite: &str) -> Judgement {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let settings = RedisSettings {
            maxmemory_policy: some(policy),
            appendonly: some(appendonly),
            appendfsync: some(fsync),
            no_appendfsync_on_rewrite: some(rewrite),
        };
        settings.judge()
    }

    #[test]
    fn what_is_promised_is_what_the_settings_keep() {
        let mode = |appendonly, fsync, rewrite| {
            let judged = redis("noeviction", appendonly, fsync, rewrite);
            assert!(judged.refusals.is_empty());
            assert!(REDIS_MODES.contains(&judged.mode));
            (judged.mode, judged.warnings.len())
        };
        assert_eq!(mode("yes", "always", "no"), ("always", 0));
        assert_eq!(mode("yes", "everysec", "no"), ("everysec", 0));
        assert_eq!(mode("yes", "no", "no"), ("memory", 1));
        assert_eq!(mode("no", "always", "no"), ("memory", 1));
        assert_eq!(mode("yes", "always", "yes"), ("memory", 1));
        assert_eq!(redis("", "", "", "").mode, "unknown");
    }

    #[test]
    fn a_redis_that_may_evict_is_refused() {
        for policy in ["allkeys-lru", "volatile-ttl", "allkeys-random"] {
            assert_eq!(redis(policy, "yes", "always", "no").refusals.len(), 1);
        }
    }

    #[test]
    fn a_ledger_that_cannot_be_written_is_refused_and_a_forgetful_one_is_told() {
        let good = LedgerSettings {
            version: 150_004,
            read_only: false,
            synchronous_commit: "on".to_owned(),
            fsync: true,
        };
        assert_eq!(judge_ledger(&good).mode, "synchronous");
        assert_eq!(
            judge_ledger(&LedgerSettings { read_only: true, ..good.clone() }).refusals.len(),
            1
        );
        assert_eq!(
            judge_ledger(&LedgerSettings { version: 120_001, ..good.clone() }).refusals.len(),
            1
        );
        let off = LedgerSettings { synchronous_commit: "off".to_owned(), ..good.clone() };
        assert_eq!(
            (judge_ledger(&off).mode, judge_ledger(&off).warnings.len()),
            ("asynchronous", 1)
        );
        assert_eq!(judge_ledger(&LedgerSettings { fsync: false, ..good }).mode, "asynchronous");
    }
}

//! What Redis reports of itself, in INFO and, where that is not enough, in CONFIG GET, and what follows from it.

use std::collections::HashMap;

use redis::{FromRedisValue, InfoDict, RedisError};

use super::Assessment;
use crate::redis::Commands;

/// The state and the settings that matter; `None` where Redis does not report them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RedisState {
    /// Its address was found, by Sentinels or in a cluster; otherwise the settings name it.
    is_discovered: bool,
    mode: Option<String>,
    role: Option<String>,
    primary: Option<String>,
    run_id: Option<String>,
    /// How often settings were changed since its start (7.0 and newer).
    config_set_calls: u64,
    /// Replicas that have caught up.
    pub(crate) replicas: u32,
    maxmemory_policy: Option<String>,
    /// More memory is in use than `maxmemory`.
    is_full: bool,
    /// Redis has an append-only file.
    aof_enabled: Option<bool>,
    /// That file is being rewritten, or will be as soon as another child process of Redis has ended.
    is_rewriting: bool,
    aof_write_fails: bool,
    snapshot_fails: bool,
    appendfsync: Option<String>,
    no_appendfsync_on_rewrite: Option<String>,
    /// The user `default`, as whom Redis reads its append-only file, may run the commands in it (7.0 and newer).
    default_user_may_write: Option<bool>,
}

/// A value of CONFIG GET; `None` where it is refused, as by some managed servers.
async fn config(connection: &mut Commands, name: &str) -> Result<Option<String>, RedisError> {
    let mut command = redis::cmd("CONFIG");
    match command.arg("GET").arg(name).query_async(connection).await {
        Ok(answer) => {
            let mut answer: HashMap<String, String> = answer;
            Ok(answer.remove(name))
        }
        Err(error) if matches!(error.code(), Some("ERR" | "NOPERM")) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the user `default` may write; `None` where Redis does not report it.
async fn default_user_may_write(connection: &mut Commands) -> Result<Option<bool>, RedisError> {
    let mut command = redis::cmd("ACL");
    command.arg("DRYRUN").arg("default").arg("HSET").arg("key").arg("field").arg("value");
    match command.query_async::<String>(connection).await {
        Ok(answer) => Ok(Some(answer == "OK")),
        Err(error) if matches!(error.code(), Some("ERR" | "NOPERM")) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Calls of CONFIG SET, from `cmdstat_config|set:calls=2,usec=…`.
fn config_set_calls(statistics: &InfoDict) -> u64 {
    let line: Option<String> = statistics.get("cmdstat_config|set");
    let calls = line.as_deref().and_then(|line| line.strip_prefix("calls=")?.split(',').next());
    calls.and_then(|calls| calls.parse().ok()).unwrap_or(0)
}

fn field<T: FromRedisValue + Default>(info: &InfoDict, name: &str) -> T {
    info.get(name).unwrap_or_default()
}

impl RedisState {
    /// Reads the state from Redis.
    pub(crate) async fn read(mut connection: Commands) -> Result<Self, RedisError> {
        let info: InfoDict = redis::cmd("INFO").query_async(&mut connection).await?;
        let mut statistics = redis::cmd("INFO");
        let statistics: InfoDict =
            statistics.arg("commandstats").query_async(&mut connection).await?;
        let is_discovered = connection.0.is_discovered();
        let mut this = Self { is_discovered, ..Self::from_info(&info) };
        this.config_set_calls = config_set_calls(&statistics);
        this.appendfsync = config(&mut connection, "appendfsync").await?;
        let name = "no-appendfsync-on-rewrite";
        this.no_appendfsync_on_rewrite = config(&mut connection, name).await?;
        this.default_user_may_write = default_user_may_write(&mut connection).await?;
        if this.maxmemory_policy.is_none() {
            this.maxmemory_policy = config(&mut connection, "maxmemory-policy").await?;
        }
        if this.snapshot_fails {
            // A snapshot that fails stops writes only where snapshots are configured.
            let stops = config(&mut connection, "stop-writes-on-bgsave-error").await?;
            let points = config(&mut connection, "save").await?;
            this.snapshot_fails =
                stops.as_deref() == Some("yes") && points.is_some_and(|points| !points.is_empty());
        }
        Ok(this)
    }

    fn from_info(info: &InfoDict) -> Self {
        let text = |name: &str| info.get::<String>(name);
        let is = |name: &str, value: &str| text(name).as_deref() == Some(value);
        let replicas = info.iter().filter(|(name, value)| {
            let line = String::from_redis_value_ref(value).unwrap_or_default();
            name.starts_with("slave") && line.contains(",state=online,")
        });
        let (used, limit): (u64, u64) = (field(info, "used_memory"), field(info, "maxmemory"));
        let counted = used.saturating_sub(field(info, "mem_not_counted_for_evict"));
        let primary = text("master_host").zip(text("master_port"));
        Self {
            is_discovered: false,
            mode: text("redis_mode"),
            role: text("role"),
            primary: primary.map(|(host, port)| format!("{host}:{port}")),
            run_id: text("run_id"),
            config_set_calls: 0,
            replicas: u32::try_from(replicas.count()).unwrap_or(u32::MAX),
            maxmemory_policy: text("maxmemory_policy"),
            is_full: limit > 0 && counted > limit,
            aof_enabled: text("aof_enabled").map(|enabled| enabled == "1"),
            is_rewriting: is("aof_rewrite_in_progress", "1") || is("aof_rewrite_scheduled", "1"),
            aof_write_fails: is("aof_last_write_status", "err"),
            snapshot_fails: is("rdb_last_bgsave_status", "err"),
            appendfsync: None,
            no_appendfsync_on_rewrite: None,
            default_user_may_write: None,
        }
    }

    /// `master` or `slave`, as Redis reports it.
    pub(crate) fn role(&self) -> &str {
        self.role.as_deref().unwrap_or("unknown")
    }

    /// What Redis promises. `completeness` holds when the append-only file was last seen to be complete.
    pub(crate) fn assess(&self, completeness: &mut AofCompleteness) -> Assessment {
        let mut warnings = Vec::new();
        if self.maxmemory_policy.is_none() || self.appendfsync.is_none() {
            warnings.push("some settings of Redis are unknown: it refuses CONFIG GET");
        }
        let configured_mode = self.configured_mode(&mut warnings);
        let is_complete = completeness.check(self);
        let mode = match configured_mode {
            "always" | "everysec" if !is_complete => {
                warnings.push(
                    "Redis's append-only file may not be complete before the rewrite that is under \
                     way has ended: until then a restart of Redis may lose what is not stored",
                );
                "memory"
            }
            mode => mode,
        };
        Assessment {
            mode,
            configured_mode,
            refusals: self.may_evict().into_iter().collect(),
            unusable: self.unusable().into_iter().collect(),
            outages: self.outages(),
            warnings,
            ..Assessment::default()
        }
    }

    fn may_evict(&self) -> Option<String> {
        let policy = self.maxmemory_policy.as_deref().filter(|policy| *policy != "noeviction")?;
        Some(format!(
            "Redis's maxmemory-policy is {policy}: it may delete stock and orders; set it to noeviction"
        ))
    }

    /// What the settings promise once the append-only file is complete.
    fn configured_mode(&self, warnings: &mut Vec<&'static str>) -> &'static str {
        if self.aof_enabled == Some(false) {
            warnings.push("Redis has no append-only file: a restart loses what is not stored");
            return "memory";
        }
        let mode = match self.appendfsync.as_deref() {
            Some("no") => {
                warnings.push("Redis's appendfsync is no: a crash of its machine loses what was not written to disk yet");
                return "memory";
            }
            Some("always") if self.aof_enabled.is_some() => "always",
            Some("everysec") if self.aof_enabled.is_some() => "everysec",
            _ => return "unknown",
        };
        if self.default_user_may_write == Some(false) {
            warnings.push(
                "Redis's user default may not run every command: unless Redis has the fix of its issue 14541, a \
                 restart drops what scripts have written; give that user the rules off ~* &* +@all",
            );
            return "memory";
        }
        if self.no_appendfsync_on_rewrite.as_deref() == Some("yes") {
            warnings.push(
                "Redis's no-appendfsync-on-rewrite is yes: nothing is written to disk while it \
                 rewrites its append-only file",
            );
            return "memory";
        }
        mode
    }

    /// Why this server can never be used.
    fn unusable(&self) -> Option<String> {
        match (self.mode.as_deref(), self.role.as_deref()) {
            (Some("sentinel"), _) => Some(
                "redis_url is the address of a Sentinel: write redis+sentinel://host:port/<master name>"
                    .to_owned(),
            ),
            (Some("cluster"), _) if !self.is_discovered => Some(
                "redis_url is the address of a node of a Redis Cluster: write redis+cluster://host:port"
                    .to_owned(),
            ),
            (_, Some("slave")) if !self.is_discovered => Some(format!(
                "redis_url is the address of a replica: set it to the master ({}), or to an address that \
                 follows a failover",
                self.primary.as_deref().unwrap_or("unknown")
            )),
            _ => None,
        }
    }

    /// Why nothing can be sold for now.
    fn outages(&self) -> Vec<String> {
        let is_demoted = self.is_discovered && self.role.as_deref() == Some("slave");
        let outages = [
            (is_demoted, "Redis is a replica now: its master is not known yet"),
            (self.is_full, "Redis is out of memory (maxmemory) and refuses every write"),
            (
                self.aof_write_fails,
                "Redis cannot write its append-only file and refuses every write: is its disk full?",
            ),
            (
                self.snapshot_fails,
                "Redis cannot save its snapshot and refuses every write \
                 (stop-writes-on-bgsave-error): is its disk full?",
            ),
        ];
        outages.into_iter().filter(|(holds, _)| *holds).map(|(_, why)| why.to_owned()).collect()
    }
}

/// The instance whose file was last seen to be complete, and its count of CONFIG SET then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AofCompleteness {
    seen: Option<(String, u64)>,
}

impl AofCompleteness {
    /// Whether a restart would find everything in the file. After `CONFIG SET appendonly yes`, Redis writes to a
    /// temporary file until the first rewrite has ended, and INFO shows that as it shows an ordinary rewrite. So a
    /// rewrite counts as the first one if it was in progress when this process read INFO first, or if it began
    /// together with a CONFIG SET.
    fn check(&mut self, state: &RedisState) -> bool {
        let now = state.run_id.clone().map(|run_id| (run_id, state.config_set_calls));
        match (state.aof_enabled, state.is_rewriting) {
            (Some(true), false) => {
                self.seen = now;
                true
            }
            (Some(true), true) => now.is_some() && self.seen == now,
            (Some(false) | None, _) => {
                self.seen = None;
                false
            }
        }
    }
}

/// Warnings about settings that make Redis slow, or partitions fenced, without need.
pub(crate) async fn setting_warnings(mut connection: Commands) -> Result<Vec<String>, RedisError> {
    let mut warnings = Vec::new();
    for (name, wanted, why) in [
        ("lazyfree-lazy-expire", "yes", "Redis answers nothing while it frees a large key"),
        (
            "repl-backlog-ttl",
            "0",
            "every partition is fenced that many seconds after the last replica disconnects",
        ),
    ] {
        match config(&mut connection, name).await? {
            Some(set) if set == wanted => {}
            Some(set) => {
                warnings.push(format!("Redis's {name} is {set}; set it to {wanted}, or {why}"));
            }
            None => {
                warnings.push(format!("Redis does not report its {name}; it should be {wanted}"));
            }
        }
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durability::REDIS_MODES;

    const HEALTHY: &str = "redis_mode:standalone\r\nrun_id:a\r\nrole:master\r\nmaxmemory:0\r\n\
        used_memory:1000\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n\
        aof_rewrite_in_progress:0\r\naof_rewrite_scheduled:0\r\naof_last_write_status:ok\r\n";

    fn state(info: &str, fsync: &str, on_rewrite: &str) -> RedisState {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        RedisState {
            appendfsync: some(fsync),
            no_appendfsync_on_rewrite: some(on_rewrite),
            ..RedisState::from_info(&InfoDict::new(info))
        }
    }

    fn assess(info: &str, fsync: &str, on_rewrite: &str) -> Assessment {
        state(info, fsync, on_rewrite).assess(&mut AofCompleteness::default())
    }

    #[test]
    fn durability_mode_follows_the_settings() {
        let mode = |enabled: &str, fsync, rewrite| {
            let info = HEALTHY.replace("aof_enabled:1", enabled);
            let assessed = assess(&info, fsync, rewrite);
            assert!(assessed.refusals.is_empty() && assessed.unusable.is_empty());
            assert!(REDIS_MODES.contains(&assessed.mode));
            (assessed.mode, assessed.warnings.len())
        };
        assert_eq!(mode("aof_enabled:1", "always", "no"), ("always", 0));
        assert_eq!(mode("aof_enabled:1", "everysec", "no"), ("everysec", 0));
        assert_eq!(mode("aof_enabled:1", "no", "no"), ("memory", 1));
        assert_eq!(mode("aof_enabled:0", "always", "no"), ("memory", 1));
        assert_eq!(mode("aof_enabled:1", "always", "yes"), ("memory", 1));
        assert_eq!(mode("aof_enabled:1", "", ""), ("unknown", 1));
        assert_eq!(mode("nothing:1", "always", "no"), ("unknown", 0));
    }

    #[test]
    fn redis_that_may_evict_is_refused_whatever_reports_its_policy() {
        for policy in ["allkeys-lru", "volatile-ttl", "allkeys-random"] {
            let info = HEALTHY.replace("noeviction", policy);
            assert_eq!(assess(&info, "always", "no").refusals.len(), 1);
            assert_eq!(assess(&info, "", "").refusals.len(), 1);
        }
    }

    #[test]
    fn unusable_server_is_refused_with_what_to_configure_instead() {
        for (from, to, reason) in [
            ("standalone", "sentinel", "redis+sentinel://"),
            ("standalone", "cluster", "redis+cluster://"),
            ("master", "slave\r\nmaster_host:a\r\nmaster_port:1", "(a:1)"),
        ] {
            let assessed = assess(&HEALTHY.replace(from, to), "always", "no");
            assert_eq!(assessed.unusable.len(), 1, "{to}");
            assert!(assessed.unusable[0].contains(reason), "{assessed:?}");
        }
    }

    #[test]
    fn redis_that_refuses_writes_is_an_outage() {
        let full = HEALTHY.replace("maxmemory:0", "maxmemory:999");
        assert_eq!(assess(&full, "always", "no").outages.len(), 1);
        let uncounted = format!("{full}mem_not_counted_for_evict:2\r\n");
        assert!(assess(&uncounted, "always", "no").outages.is_empty());
        let failing = HEALTHY.replace("write_status:ok", "write_status:err");
        assert_eq!(assess(&failing, "always", "no").outages.len(), 1);
        assert!(assess(HEALTHY, "always", "no").outages.is_empty());
    }

    #[test]
    fn rewrite_keeps_the_mode_only_if_the_file_was_complete_before_it() {
        let rewriting = HEALTHY.replace("in_progress:0", "in_progress:1");
        let scheduled = HEALTHY.replace("scheduled:0", "scheduled:1");
        let (mut aof, mut sets) = (AofCompleteness::default(), 0);
        let mut mode = |info: &str, more_sets: u64| {
            sets += more_sets;
            let state = RedisState { config_set_calls: sets, ..state(info, "always", "no") };
            let assessed = state.assess(&mut aof);
            assert_eq!(
                assessed.configured_mode,
                if info.contains("enabled:0") { "memory" } else { "always" }
            );
            assessed.mode
        };
        assert_eq!(mode(&rewriting, 0), "memory", "in progress before the first check");
        assert_eq!(mode(&scheduled, 0), "memory", "to be tried again");
        assert_eq!(mode(HEALTHY, 0), "always");
        assert_eq!(mode(&rewriting, 0), "always", "an ordinary one");
        assert_eq!(mode(&rewriting, 1), "memory", "the file may have been off in between");
        assert_eq!(mode(HEALTHY, 0), "always");
        assert_eq!(mode(&HEALTHY.replace("enabled:1", "enabled:0"), 0), "memory");
        assert_eq!(mode(&rewriting, 0), "memory", "the first file");
        assert_eq!(mode(HEALTHY, 0), "always");
        assert_eq!(mode(&rewriting.replace("run_id:a", "run_id:b"), 0), "memory", "another one");
    }

    #[test]
    fn default_user_that_may_not_write_makes_redis_durable_in_memory_only() {
        for (may_write, mode) in [(Some(true), "always"), (None, "always"), (Some(false), "memory")]
        {
            let state = state(HEALTHY, "always", "no");
            let state = RedisState { default_user_may_write: may_write, ..state };
            assert_eq!(state.assess(&mut AofCompleteness::default()).mode, mode);
        }
    }

    #[test]
    fn config_set_calls_are_counted() {
        let line = "# Commandstats\r\ncmdstat_config|set:calls=12,usec=100\r\n";
        assert_eq!(config_set_calls(&InfoDict::new(line)), 12);
        assert_eq!(config_set_calls(&InfoDict::new("cmdstat_config|get:calls=1,usec=1\r\n")), 0);
    }
}

//! Assesses the settings of Postgres.

use super::Assessment;
use crate::ledger::LedgerSettings;

/// What Postgres promises with these settings.
pub(crate) fn assess_postgres(settings: &LedgerSettings) -> Assessment {
    let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
    if settings.read_only {
        refusals.push("Postgres is read-only, or a standby: orders cannot be stored".to_owned());
    }
    let version = settings.version / 10_000;
    if version < 13 {
        refusals.push(format!("Postgres has version {version}; 13 or newer is needed"));
    }
    if settings.synchronous_commit == "off" {
        warnings.push("Postgres's synchronous_commit is off: a crash loses stored orders");
    }
    if !settings.fsync {
        warnings.push("Postgres's fsync is off: a crash of its machine destroys the ledger");
    }
    let mode = if warnings.is_empty() { "synchronous" } else { "asynchronous" };
    Assessment { mode, configured_mode: mode, refusals, warnings, ..Assessment::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_that_cannot_store_is_refused_and_one_that_may_lose_commits_is_asynchronous() {
        let good = LedgerSettings {
            version: 150_004,
            read_only: false,
            synchronous_commit: "on".to_owned(),
            fsync: true,
        };
        let assess = |settings| {
            let assessed = assess_postgres(&settings);
            (assessed.mode, assessed.refusals.len(), assessed.warnings.len())
        };
        let read_only = LedgerSettings { read_only: true, ..good.clone() };
        let old = LedgerSettings { version: 120_001, ..good.clone() };
        let off = LedgerSettings { synchronous_commit: "off".to_owned(), ..good.clone() };
        let no_fsync = LedgerSettings { fsync: false, ..good.clone() };
        assert_eq!(assess(good), ("synchronous", 0, 0));
        assert_eq!(assess(read_only), ("synchronous", 1, 0));
        assert_eq!(assess(old), ("synchronous", 1, 0));
        assert_eq!(assess(off), ("asynchronous", 0, 1));
        assert_eq!(assess(no_fsync), ("asynchronous", 0, 1));
    }
}

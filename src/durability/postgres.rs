//! Judges the settings of Postgres.

use super::Judgement;
use crate::ledger::LedgerSettings;

/// What Postgres promises with these settings.
pub(crate) fn judge_postgres(settings: &LedgerSettings) -> Judgement {
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
    Judgement { mode, configured_mode: mode, refusals, warnings, ..Judgement::default() }
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
        let judge = |settings| {
            let judged = judge_postgres(&settings);
            (judged.mode, judged.refusals.len(), judged.warnings.len())
        };
        assert_eq!(judge(good.clone()), ("synchronous", 0, 0));
        assert_eq!(
            judge(LedgerSettings { read_only: true, ..good.clone() }),
            ("synchronous", 1, 0)
        );
        assert_eq!(
            judge(LedgerSettings { version: 120_001, ..good.clone() }),
            ("synchronous", 1, 0)
        );
        let off = LedgerSettings { synchronous_commit: "off".to_owned(), ..good.clone() };
        assert_eq!(judge(off), ("asynchronous", 0, 1));
        assert_eq!(judge(LedgerSettings { fsync: false, ..good }), ("asynchronous", 0, 1));
    }
}

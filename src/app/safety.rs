//! What the servers' own settings let us promise: some refuse the start, some lower what is promised, and
//! that is said aloud.

use super::Stores;
use crate::ledger::{LedgerError, LedgerSettings};

/// How long an accepted order can be lost, by what the server does with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    /// What it promises: a label of `yoink_durability`.
    pub(super) mode: &'static str,
    /// What it will promise, by its settings, as soon as its log is complete.
    pub(super) later: &'static str,
    /// Why nothing may be sold with it.
    pub(super) refusals: Vec<String>,
    /// Why nothing can ever be sold with it: it is not the server that is needed.
    pub(super) unusable: Vec<String>,
    /// Why nothing can be sold for now.
    pub(super) outages: Vec<String>,
    /// Why it promises less than it could.
    pub(super) warnings: Vec<&'static str>,
}

/// Every mode of Redis; the last one where it does not tell.
pub(super) const REDIS_MODES: [&str; 4] = ["always", "everysec", "memory", "unknown"];
/// Every mode of Postgres.
pub(super) const LEDGER_MODES: [&str; 2] = ["synchronous", "asynchronous"];

/// What Postgres promises by these settings.
pub(super) fn judge_ledger(settings: &LedgerSettings) -> Judgement {
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
    let (unusable, outages) = (Vec::new(), Vec::new());
    Judgement { mode, later: mode, refusals, unusable, outages, warnings }
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

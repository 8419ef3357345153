//! Which dead entries: some by reservation id, or all that match a filter.

use std::{str::FromStr, time::Duration};

use jiff::{Span, SpanRelativeTo};

use crate::{
    domain::{ProductId, ReservationId},
    stream::DeadEntry,
};

/// A SQLSTATE with which Postgres refused orders; `none` for orders that Postgres did not refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlstateFilter(String);

/// A text that is not a SQLSTATE filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a SQLSTATE, five characters of 0-9 and A-Z, or `none`")]
pub struct SqlstateError;

impl FromStr for SqlstateFilter {
    type Err = SqlstateError;

    fn from_str(text: &str) -> Result<Self, SqlstateError> {
        let valid = |c: u8| c.is_ascii_digit() || c.is_ascii_uppercase();
        match text {
            "none" => Ok(Self(String::new())),
            _ if text.len() == 5 && text.bytes().all(valid) => Ok(Self(text.to_owned())),
            _ => Err(SqlstateError),
        }
    }
}

/// Conditions; several together must all be met.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct DeadFilter {
    /// Orders of this product.
    #[arg(long)]
    pub product: Option<ProductId>,
    /// Refused with this SQLSTATE; `none`: not refused by Postgres.
    #[arg(long)]
    pub sqlstate: Option<SqlstateFilter>,
    /// Moved to the dead stream at least this long ago by the clock of Redis: 90s, 10m, 2h, 1d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub older_than: Option<Duration>,
}

/// Parses an age; a day has 24 hours.
fn age(text: &str) -> Result<Duration, String> {
    let bad = || "is not an age such as 90s, 10m, 2h or 1d".to_owned();
    let span: Span = text.parse().map_err(|_| bad())?;
    let age = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| bad())?;
    Duration::try_from(age).map_err(|_| bad())
}

impl DeadFilter {
    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn matches(&self, dead: &DeadEntry, now_ms: i64) -> bool {
        let product = self.product.as_ref();
        let age_ms = |age: Duration| i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        product.is_none_or(|id| dead.entry.field("p") == Some(id.as_str()))
            && self.sqlstate.as_ref().is_none_or(|state| dead.sqlstate() == state.0)
            && self
                .older_than
                .is_none_or(|age| dead.moved_at_ms() <= now_ms.saturating_sub(age_ms(age)))
    }
}

/// Which dead entries to read.
#[derive(Debug, Clone)]
pub enum Selection {
    /// Those of these reservations.
    Ids(Vec<ReservationId>),
    /// All that match, of those that are dead when the cursor comes to their partition.
    All(DeadFilter),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::PartitionCount, stream::Entry};

    fn dead(product: &str, sqlstate: &str, at_ms: i64) -> DeadEntry {
        let at = at_ms.to_string();
        let fields = [("p", product), ("sqlstate", sqlstate), ("at", at.as_str())];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        DeadEntry { partition, entry: Entry { id: "1-1".to_owned(), fields } }
    }

    #[test]
    fn filter_matches_entries_that_meet_every_condition() {
        let entry = dead("shoe", "23514", 1000);
        let filter = |product: &str, sqlstate: &str, seconds| DeadFilter {
            product: (!product.is_empty()).then(|| product.parse().unwrap()),
            sqlstate: (!sqlstate.is_empty()).then(|| sqlstate.parse().unwrap()),
            older_than: Some(Duration::from_secs(seconds)),
        };
        assert!(DeadFilter::default().matches(&entry, 0));
        assert!(filter("shoe", "23514", 2).matches(&entry, 3000), "the limit itself matches");
        assert!(!filter("shoe", "23514", 2).matches(&entry, 2999));
        assert!(!filter("hat", "", 0).matches(&entry, 3000));
        assert!(!filter("", "22001", 0).matches(&entry, 3000));
        assert!(!filter("", "none", 0).matches(&entry, 3000));
        assert!(filter("", "none", 0).matches(&dead("shoe", "", 1000), 3000));
        assert!(!filter("", "", u64::MAX).matches(&entry, i64::MAX));
    }

    #[test]
    fn age_is_a_number_and_a_unit() {
        let ages = [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("1h 30m", 5400)];
        for (text, seconds) in ages.into_iter().chain([("0s", 0), ("PT5M", 300)]) {
            assert_eq!(age(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for bad in ["", "10", "-10m", "10m ago", "1mo", "1y", "soon", "99999999999999d"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sqlstate_filter_is_five_characters_or_none() {
        for good in ["23514", "XX000", "none"] {
            assert!(good.parse::<SqlstateFilter>().is_ok(), "{good}");
        }
        for bad in ["", "2351", "235140", "xx000", "2351é", "23 14", "NONE"] {
            assert_eq!(bad.parse::<SqlstateFilter>(), Err(SqlstateError), "{bad}");
        }
    }
}

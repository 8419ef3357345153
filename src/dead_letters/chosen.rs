//! Which dead entries: some by name, or all that a filter lets through, page by page.
//!
//! Must never: hold more than a page of entries, or chase entries that are buried while it walks.

use std::{collections::VecDeque, str::FromStr, time::Duration};

use super::{DeadLetterError, DeadLetters};
use crate::{
    domain::{Partition, ProductId, ReservationId},
    stream::DeadEntry,
};

/// Entries or ids a page.
pub const PAGE: usize = 500;
/// Entries that are looked at for one page of a list.
const SCANNED_MAX: usize = 20 * PAGE;

/// What Postgres said of an order: a SQLSTATE, or `none` for what was not Postgres's doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlstateFilter(String);

/// A text that is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a SQLSTATE, five characters of 0-9 and A-Z, or `none`")]
pub struct SqlstateError;

impl FromStr for SqlstateFilter {
    type Err = SqlstateError;

    fn from_str(text: &str) -> Result<Self, SqlstateError> {
        let of_state = |c: u8| c.is_ascii_digit() || c.is_ascii_uppercase();
        match text {
            "none" => Ok(Self(String::new())),
            _ if text.len() == 5 && text.bytes().all(of_state) => Ok(Self(text.to_owned())),
            _ => Err(SqlstateError),
        }
    }
}

/// Lets through what is all of this; what is not given does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadFilter {
    /// Orders of this product.
    pub product: Option<ProductId>,
    /// Refused with this SQLSTATE.
    pub sqlstate: Option<SqlstateFilter>,
    /// Buried at least so long ago, by the clock of Redis, which also said when they were buried.
    pub older_than: Option<Duration>,
}

impl DeadFilter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an entry passes, at this time.
    fn passes(&self, dead: &DeadEntry, now_ms: i64) -> bool {
        let product = self.product.as_ref();
        let product = product.is_none_or(|id| dead.entry.field("p") == Some(id.as_str()));
        let sqlstate = self.sqlstate.as_ref().is_none_or(|state| dead.sqlstate() == state.0);
        product
            && sqlstate
            && self.older_than.is_none_or(|age| {
                let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
                dead.moved_at_ms() <= now_ms.saturating_sub(age_ms)
            })
    }
}

/// Which dead entries something is done to.
#[derive(Debug, Clone)]
pub enum Chosen {
    /// Those of these reservations.
    These(Vec<ReservationId>),
    /// All that pass, as far as they are dead when the walk comes to their partition.
    All(DeadFilter),
}

/// A place in the dead streams: a partition and, once something of it was seen, the id seen last.
pub type Place = (Partition, Option<String>);

/// Some of the entries that were chosen.
#[derive(Debug, Default)]
pub struct Page {
    /// The entries.
    pub entries: Vec<DeadEntry>,
    /// Reservations that were named and are not among the dead.
    pub gone: u64,
}

/// A walk over the dead entries that were chosen.
pub struct Walk<'a> {
    dead_letters: &'a DeadLetters,
    left: Left<'a>,
}

enum Left<'a> {
    These(&'a [ReservationId]),
    All(Stroll<'a>),
}

impl Walk<'_> {
    /// The next page, which may be empty; `None` at the end.
    ///
    /// # Errors
    ///
    /// When Redis is away, or a partition is fenced.
    pub async fn next(&mut self) -> Result<Option<Page>, DeadLetterError> {
        match &mut self.left {
            Left::These([]) => Ok(None),
            Left::These(ids) => {
                let (these, rest) = ids.split_at(ids.len().min(PAGE));
                *ids = rest;
                let mut page = Page::default();
                for id in these {
                    match self.dead_letters.find(*id).await? {
                        Some(dead) => page.entries.push(dead),
                        None => page.gone += 1,
                    }
                }
                Ok(Some(page))
            }
            Left::All(stroll) => {
                let entries = stroll.next(self.dead_letters).await?;
                Ok(entries.map(|entries| Page { entries, gone: 0 }))
            }
        }
    }
}

/// A walk over the dead streams, one after the other.
struct Stroll<'a> {
    filter: &'a DeadFilter,
    now_ms: i64,
    partitions: VecDeque<Partition>,
    after: Option<String>,
    /// The newest entry when the walk came to this partition: it ends there.
    last: Option<String>,
    count: usize,
    looked: usize,
}

impl<'a> Stroll<'a> {
    async fn start(
        dead_letters: &DeadLetters,
        filter: &'a DeadFilter,
        from: Option<Place>,
        count: usize,
    ) -> Result<Self, DeadLetterError> {
        let now_ms = match filter.older_than {
            Some(_) => dead_letters.streams.now_ms().await?,
            None => 0,
        };
        let all = dead_letters.streams.partitions().count();
        // A product's orders are all in one partition.
        let only = filter.product.as_ref().map(|product| all.of(product));
        let first = from.as_ref().map(|(partition, _)| *partition);
        let partitions: VecDeque<Partition> = all
            .all()
            .filter(|p| only.is_none_or(|only| *p == only) && first.is_none_or(|first| *p >= first))
            .collect();
        // A place in a partition that is not walked is no place in the next one.
        let after = from.filter(|(first, _)| partitions.front() == Some(first)).and_then(|f| f.1);
        Ok(Self { filter, now_ms, partitions, after, last: None, count, looked: 0 })
    }

    async fn next(
        &mut self,
        dead_letters: &DeadLetters,
    ) -> Result<Option<Vec<DeadEntry>>, DeadLetterError> {
        while let Some(&partition) = self.partitions.front() {
            let range = (self.after.as_deref(), self.last.as_deref());
            let page = dead_letters.streams.dead(partition, range, self.count).await?;
            self.last = self.last.take().or(page.newest);
            let mut entries = page.entries;
            if let Some(last) = entries.last() {
                self.after = Some(last.dead_id().to_owned());
                self.looked += entries.len();
                entries.retain(|dead| self.filter.passes(dead, self.now_ms));
                return Ok(Some(entries));
            }
            self.partitions.pop_front();
            (self.after, self.last) = (None, None);
        }
        Ok(None)
    }
}

impl DeadLetters {
    /// Walks over the dead entries that were chosen.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn walk<'a>(&'a self, chosen: &'a Chosen) -> Result<Walk<'a>, DeadLetterError> {
        let left = match chosen {
            Chosen::These(ids) => Left::These(ids),
            Chosen::All(filter) => Left::All(Stroll::start(self, filter, None, PAGE).await?),
        };
        Ok(Walk { dead_letters: self, left })
    }

    /// A page of at most `size` dead entries that pass, from a place on, and the place where the next
    /// one starts. It may be short, even empty, and not the last: only so many entries are looked at.
    ///
    /// # Errors
    ///
    /// When Redis is away, or a partition is fenced.
    pub async fn page(
        &self,
        filter: &DeadFilter,
        from: Option<Place>,
        size: usize,
    ) -> Result<(Vec<DeadEntry>, Option<Place>), DeadLetterError> {
        let count = if filter.is_empty() { size + 1 } else { PAGE };
        let mut stroll = Stroll::start(self, filter, from, count).await?;
        let mut found = Vec::new();
        while stroll.looked < SCANNED_MAX {
            let Some(page) = stroll.next(self).await? else { return Ok((found, None)) };
            found.extend(page);
            if found.len() > size {
                found.truncate(size);
                let last = found.last();
                let next = last.map(|last| (last.partition, Some(last.dead_id().to_owned())));
                return Ok((found, next));
            }
        }
        let next = stroll.partitions.front().map(|partition| (*partition, stroll.after));
        Ok((found, next))
    }
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
    fn a_filter_lets_through_what_is_all_of_it() {
        let entry = dead("shoe", "23514", 1000);
        let filter = |product: &str, sqlstate: &str, seconds| DeadFilter {
            product: (!product.is_empty()).then(|| product.parse().unwrap()),
            sqlstate: (!sqlstate.is_empty()).then(|| sqlstate.parse().unwrap()),
            older_than: Some(Duration::from_secs(seconds)),
        };
        assert!(DeadFilter::default().passes(&entry, 0));
        assert!(filter("shoe", "23514", 2).passes(&entry, 3000), "two seconds are two seconds");
        assert!(!filter("shoe", "23514", 2).passes(&entry, 2999));
        assert!(!filter("hat", "", 0).passes(&entry, 3000));
        assert!(!filter("", "22001", 0).passes(&entry, 3000));
        assert!(!filter("", "none", 0).passes(&entry, 3000));
        assert!(filter("", "none", 0).passes(&dead("shoe", "", 1000), 3000));
        assert!(!filter("", "", u64::MAX).passes(&entry, i64::MAX));
    }

    #[test]
    fn a_sqlstate_has_five_characters() {
        for good in ["23514", "XX000", "none"] {
            assert!(good.parse::<SqlstateFilter>().is_ok(), "{good}");
        }
        for bad in ["", "2351", "235140", "xx000", "2351é", "23 14", "NONE"] {
            assert_eq!(bad.parse::<SqlstateFilter>(), Err(SqlstateError), "{bad}");
        }
    }
}

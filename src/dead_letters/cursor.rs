//! Reads selected dead entries page by page.
//!
//! Must never: hold more than a page of entries, or read entries that are moved to a dead stream after
//! the cursor reached it.

use std::collections::VecDeque;

use super::{DeadFilter, DeadLetterError, DeadLetters, Selection};
use crate::{
    domain::{Partition, ReservationId},
    stream::DeadEntry,
};

/// The size of a page: entries read, or ids looked up.
pub const PAGE: usize = 500;
/// The most entries that are read for one page of a list.
const SCANNED_MAX: usize = 20 * PAGE;

/// Where to continue a list: after an entry of a partition's dead stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The partition.
    pub partition: Partition,
    /// The id of the entry in `dead`.
    pub dead_id: String,
}

/// Some of the selected entries.
#[derive(Debug, Default)]
pub struct Page {
    /// The entries.
    pub entries: Vec<DeadEntry>,
    /// How many named reservations have no dead entry.
    pub not_found: u64,
}

/// Reads the named reservations first, then the dead streams of its partitions.
pub struct Cursor<'a> {
    dead_letters: &'a DeadLetters,
    ids: &'a [ReservationId],
    filter: DeadFilter,
    now_ms: i64,
    partitions: VecDeque<Partition>,
    /// The last entry read from the first of `partitions`.
    after: Option<String>,
    /// The newest entry of the first of `partitions` when the cursor reached it. Later entries are not read.
    newest: Option<String>,
    page_size: usize,
    scanned: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor over nothing.
    fn new(dead_letters: &'a DeadLetters, page_size: usize) -> Self {
        Self {
            dead_letters,
            ids: &[],
            filter: DeadFilter::default(),
            now_ms: 0,
            partitions: VecDeque::new(),
            after: None,
            newest: None,
            page_size,
            scanned: 0,
        }
    }

    async fn over_streams(
        dead_letters: &'a DeadLetters,
        filter: DeadFilter,
        from: Option<Position>,
        page_size: usize,
    ) -> Result<Self, DeadLetterError> {
        let count = dead_letters.streams.partitions().count();
        // All orders of a product are in one partition.
        let only = filter.product.as_ref().map(|product| count.of(product));
        let first = from.as_ref().map(|from| from.partition);
        let partitions: VecDeque<Partition> = count
            .all()
            .filter(|p| only.is_none_or(|only| *p == only) && first.is_none_or(|first| *p >= first))
            .collect();
        // Where partitions are on several masters, their clocks are assumed to agree.
        let now_ms = match (filter.older_than, partitions.front()) {
            (Some(_), Some(first)) => dead_letters.streams.now_ms(*first).await?,
            (None, _) | (_, None) => 0,
        };
        // The position applies only to its own partition.
        let after = from.filter(|from| partitions.front() == Some(&from.partition));
        let after = after.map(|from| from.dead_id);
        Ok(Self { filter, now_ms, partitions, after, ..Self::new(dead_letters, page_size) })
    }

    /// The next page, which may be empty; `None` after the last.
    pub async fn next_page(&mut self) -> Result<Option<Page>, DeadLetterError> {
        if !self.ids.is_empty() {
            return self.find_named().await.map(Some);
        }
        while let Some(&partition) = self.partitions.front() {
            let (after, newest) = (self.after.as_deref(), self.newest.as_deref());
            let streams = &self.dead_letters.streams;
            let read = streams.dead(partition, after, newest, self.page_size).await?;
            self.newest = self.newest.take().or(read.newest);
            let mut entries = read.entries;
            if let Some(last) = entries.last() {
                self.after = Some(last.dead_id().to_owned());
                self.scanned += entries.len();
                entries.retain(|dead| self.filter.matches(dead, self.now_ms));
                return Ok(Some(Page { entries, not_found: 0 }));
            }
            self.partitions.pop_front();
            (self.after, self.newest) = (None, None);
        }
        Ok(None)
    }

    async fn find_named(&mut self) -> Result<Page, DeadLetterError> {
        let (ids, rest) = self.ids.split_at(self.ids.len().min(self.page_size));
        self.ids = rest;
        let mut page = Page::default();
        for id in ids {
            match self.dead_letters.find(*id).await? {
                Some(dead) => page.entries.push(dead),
                None => page.not_found += 1,
            }
        }
        Ok(page)
    }
}

impl DeadLetters {
    /// A cursor over the selected entries.
    pub async fn cursor<'a>(
        &'a self,
        selection: &'a Selection,
    ) -> Result<Cursor<'a>, DeadLetterError> {
        match selection {
            Selection::Ids(ids) => Ok(Cursor { ids, ..Cursor::new(self, PAGE) }),
            Selection::All(filter) => Cursor::over_streams(self, filter.clone(), None, PAGE).await,
        }
    }

    /// A cursor over every dead entry of one partition, in pages of `page_size`.
    pub fn cursor_of(&self, partition: Partition, page_size: usize) -> Cursor<'_> {
        Cursor { partitions: VecDeque::from([partition]), ..Cursor::new(self, page_size) }
    }

    /// At most `size` dead entries that match the filter, after a position, and the position of the next
    /// page. A page may have fewer entries, even none, and not be the last: the number of entries that
    /// are read for it is limited.
    pub async fn list(
        &self,
        filter: &DeadFilter,
        from: Option<Position>,
        size: usize,
    ) -> Result<(Vec<DeadEntry>, Option<Position>), DeadLetterError> {
        let page_size = if filter.is_empty() { size + 1 } else { PAGE };
        let mut cursor = Cursor::over_streams(self, filter.clone(), from, page_size).await?;
        let mut found = Vec::new();
        while cursor.scanned < SCANNED_MAX {
            let Some(page) = cursor.next_page().await? else { return Ok((found, None)) };
            found.extend(page.entries);
            if found.len() > size {
                found.truncate(size);
                let next = found.last().map(|last| Position {
                    partition: last.partition,
                    dead_id: last.dead_id().to_owned(),
                });
                return Ok((found, next));
            }
        }
        let next = cursor.partitions.front().zip(cursor.after);
        Ok((found, next.map(|(&partition, dead_id)| Position { partition, dead_id })))
    }
}

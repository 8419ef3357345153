//! Products are spread over partitions; each partition sells, stores and recovers by itself.

use super::ProductId;

/// One partition, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(u16);

impl Partition {
    /// The partition as a number.
    pub fn number(self) -> u16 {
        self.0
    }

    /// The partition as an index into something with one element a partition.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of an opening of a partition; 0 before the first. Each rebuild raises it, and no number is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The last epoch that fits a reservation id; one rebuild per minute reaches it after two years.
    pub const MAX: Self = Self((1 << 20) - 1);
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition in one of its epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionEpoch {
    /// The partition.
    pub partition: Partition,
    /// Its epoch.
    pub epoch: Epoch,
}

/// How many partitions there are: 1 to 4,096, fixed when the database is first initialised.
///
/// ```
/// use yoink::domain::{IdError, PartitionCount};
///
/// let count = PartitionCount::try_from(8).unwrap();
/// assert_eq!(count.of(&"sneaker-42".parse()?).number(), 2);
/// assert_eq!(count.all().count(), 8);
/// assert!(count.get_partition(8).is_none());
///
/// let error = PartitionCount::try_from(0).unwrap_err();
/// assert_eq!(error.to_string(), "must be 1 to 4096, not 0");
/// # Ok::<(), IdError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionCount(u16);

/// A partition count outside 1 to 4,096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 4096, not {0}")]
pub struct PartitionCountError(u32);

impl TryFrom<u32> for PartitionCount {
    type Error = PartitionCountError;

    fn try_from(count: u32) -> Result<Self, PartitionCountError> {
        match u16::try_from(count) {
            Ok(count @ 1..=4096) => Ok(Self(count)),
            Ok(_) | Err(_) => Err(PartitionCountError(count)),
        }
    }
}

impl PartitionCount {
    /// The count as a number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Every partition, in order.
    pub fn all(self) -> impl Iterator<Item = Partition> + Clone {
        (0..self.0).map(Partition)
    }

    /// The partition with this number, if there is one.
    pub fn get_partition(self, number: u16) -> Option<Partition> {
        (number < self.0).then_some(Partition(number))
    }

    /// The partition of a product: CRC-32 (as in zlib) of its id, modulo the count.
    pub fn of(self, product: &ProductId) -> Partition {
        let crc = crc32fast::hash(product.as_str().as_bytes());
        // Below the count, so the low 16 bits are all of it.
        let [low, high, ..] = (crc % u32::from(self.0)).to_le_bytes();
        Partition(u16::from_le_bytes([low, high]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_of_a_product_is_its_zlib_crc_modulo_the_count() {
        // python3 -c 'import zlib; print(zlib.crc32(b"sneaker-42") % 8)'
        let count = PartitionCount::try_from(8).unwrap();
        for (id, partition) in [("sneaker-42", 2), ("123456789", 6), ("a", 3)] {
            assert_eq!(count.of(&id.parse().unwrap()).number(), partition, "{id}");
        }
    }

    #[test]
    fn counts_outside_the_range_are_refused() {
        for bad in [0, 4097, u32::MAX] {
            assert!(PartitionCount::try_from(bad).is_err());
        }
        let count = PartitionCount::try_from(4096).unwrap();
        assert_eq!(count.all().count(), 4096);
        assert!(count.get_partition(4096).is_none());
    }
}

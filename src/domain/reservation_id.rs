//! A reservation's id finds its stream entry with one XRANGE and its row with one primary-key read.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use super::{
    Epoch, Partition,
    base64::{from_base64, to_base64},
};

const EPOCH_BITS: u32 = 20;
const SEQ_BITS: u32 = 36;
const RANDOM_BITS: u32 = 54;
/// The digits of the random part as text, after a `~`.
const RANDOM_DIGITS: u32 = 9;
/// Bits of a UUIDv8 below its version field, apart from the variant.
const LOW_BITS: u32 = 62;

/// Partition (12 bits), epoch (20), seq (36) and random bits (54) in a UUIDv8 (RFC 9562), in this order,
/// so that ids of one partition and epoch sort by seq. Identity is the whole id, never (epoch, seq) alone.
///
/// As text it is a hyphenated UUID of 36 characters, and no other form is accepted. Its random part cannot be guessed,
/// so a caller who names an id has received it.
///
/// ```
/// use yoink::domain::{Epoch, ReservationId, ReservationIdError};
///
/// let id = ReservationId::new(2, Epoch(1), 17, 0x2a)?;
/// assert_eq!((id.partition(), id.epoch(), id.seq()), (2, Epoch(1), 17));
/// assert_eq!(id.entry_id(), "1-17");
///
/// let text = id.to_string();
/// assert_eq!(text.parse::<ReservationId>()?, id);
/// assert_eq!("order-1".parse::<ReservationId>(), Err(ReservationIdError::NotAUuid));
/// # Ok::<(), ReservationIdError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReservationId {
    partition: u16,
    epoch: Epoch,
    seq: u64,
    random: u64,
}

/// Why a value is not a reservation id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReservationIdError {
    /// Not a UUID in its usual form.
    #[error("is not a UUID")]
    NotAUuid,
    /// A UUID of another version or variant.
    #[error("is not a reservation id")]
    NotAReservationId,
    /// A part does not fit its bits.
    #[error("has a value for its {0} that a reservation id cannot hold")]
    OutOfRange(&'static str),
}

impl ReservationId {
    /// An id from its parts.
    pub fn new(
        partition: u16,
        epoch: Epoch,
        seq: u64,
        random: u64,
    ) -> Result<Self, ReservationIdError> {
        let fits = [
            ("partition", partition < 4096),
            ("epoch", epoch.0 > 0 && epoch <= Epoch::MAX),
            ("seq", seq < 1 << SEQ_BITS),
            ("random part", random < 1 << RANDOM_BITS),
        ];
        match fits.iter().find(|(_, fits)| !fits) {
            Some((part, _)) => Err(ReservationIdError::OutOfRange(part)),
            None => Ok(Self { partition, epoch, seq, random }),
        }
    }

    /// The id of the order that has this id in the orders stream (`<epoch>-<seq>`) and this random part as text;
    /// `None` if no order can have them. Earlier versions wrote the random part in hexadecimal.
    pub fn from_entry(partition: Partition, entry_id: &str, random: &str) -> Option<Self> {
        let (epoch, seq) = entry_id.split_once('-')?;
        let (epoch, seq) = (Epoch(epoch.parse().ok()?), seq.parse().ok()?);
        let random = match random.strip_prefix('~') {
            Some(digits) => from_base64(digits)?,
            None => u64::from_str_radix(random, 16).ok()?,
        };
        Self::new(partition.number(), epoch, seq, random).ok()
    }

    /// A random part as text, in Redis: `~` and its digits to base 64. Redis holds it of each order, and this is shorter
    /// than hexadecimal.
    pub fn random_text(random: u64) -> String {
        format!("~{}", to_base64(random, RANDOM_DIGITS))
    }

    /// Fresh random bits for a new id, from the operating system's generator by way of a CSPRNG.
    pub fn draw_random() -> u64 {
        // The low 62 bits of a UUIDv4 are random.
        Uuid::new_v4().as_u64_pair().1 & ((1 << RANDOM_BITS) - 1)
    }

    /// The first and the last UUID that an id of this partition may have.
    pub fn range_of(partition: Partition) -> (Uuid, Uuid) {
        let (partition, full) = (partition.number(), u64::MAX);
        let first = Self { partition, epoch: Epoch(0), seq: 0, random: 0 };
        let epoch = Epoch::MAX;
        let (seq, random) = (full >> (64 - SEQ_BITS), full >> (64 - RANDOM_BITS));
        (first.to_uuid(), Self { partition, epoch, seq, random }.to_uuid())
    }

    /// The first and the last UUID of its partition, epoch and seq, with any random part.
    pub fn range_of_seq(&self) -> (Uuid, Uuid) {
        let last = u64::MAX >> (64 - RANDOM_BITS);
        (Self { random: 0, ..*self }.to_uuid(), Self { random: last, ..*self }.to_uuid())
    }

    /// The number of its partition.
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// The epoch it was accepted in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Its number among the accepted reservations of its partition and epoch, from 1.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The part that cannot be guessed.
    pub fn random(&self) -> u64 {
        self.random
    }

    /// The id of its entry in the orders stream, `<epoch>-<seq>`.
    pub fn entry_id(&self) -> String {
        format!("{}-{}", self.epoch, self.seq)
    }

    /// As a UUIDv8.
    pub fn to_uuid(&self) -> Uuid {
        let bits = u128::from(self.partition) << (EPOCH_BITS + SEQ_BITS + RANDOM_BITS)
            | u128::from(self.epoch.0) << (SEQ_BITS + RANDOM_BITS)
            | u128::from(self.seq) << RANDOM_BITS
            | u128::from(self.random);
        let (a, rest) = (bits >> 74, bits & ((1 << 74) - 1));
        let (b, c) = (rest >> LOW_BITS, rest & ((1 << LOW_BITS) - 1));
        Uuid::from_u128(a << 80 | 0x8 << 76 | b << 64 | 0b10 << LOW_BITS | c)
    }

    /// From a UUIDv8 that `to_uuid` made; any other UUID is an error.
    pub fn from_uuid(uuid: Uuid) -> Result<Self, ReservationIdError> {
        let raw = uuid.as_u128();
        if raw >> 76 & 0xf != 0x8 || raw >> LOW_BITS & 0b11 != 0b10 {
            return Err(ReservationIdError::NotAReservationId);
        }
        let bits = raw >> 80 << 74 | (raw >> 64 & 0xfff) << LOW_BITS | raw & ((1 << LOW_BITS) - 1);
        let part = |shift: u32, width: u32| {
            u64::try_from(bits >> shift & ((1 << width) - 1)).unwrap_or(u64::MAX)
        };
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let partition = part(EPOCH_BITS + SEQ_BITS + RANDOM_BITS, 12);
        Self::new(
            u16::try_from(partition).unwrap_or(u16::MAX),
            Epoch(number(part(SEQ_BITS + RANDOM_BITS, EPOCH_BITS))),
            part(RANDOM_BITS, SEQ_BITS),
            part(0, RANDOM_BITS),
        )
        .map_err(|_| ReservationIdError::NotAReservationId)
    }
}

impl fmt::Display for ReservationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_uuid().hyphenated().fmt(f)
    }
}

impl FromStr for ReservationId {
    type Err = ReservationIdError;

    fn from_str(text: &str) -> Result<Self, ReservationIdError> {
        // Only the hyphenated form: one reservation has one name.
        if text.len() != 36 {
            return Err(ReservationIdError::NotAUuid);
        }
        let uuid = Uuid::try_parse(text).map_err(|_| ReservationIdError::NotAUuid)?;
        Self::from_uuid(uuid)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::PartitionCount;

    #[test]
    fn each_random_bit_differs_from_id_to_id() {
        // A random bit is equal in all of them with a probability of 2 to the power of -199.
        let drawn: Vec<_> = (0..200).map(|_| ReservationId::draw_random()).collect();
        let ones = drawn.iter().fold(0, |bits, random| bits | random);
        let always = drawn.iter().fold(u64::MAX, |bits, random| bits & random);
        assert_eq!((ones, always), ((1 << RANDOM_BITS) - 1, 0));
    }

    proptest! {
        #[test]
        fn id_is_parsed_from_its_own_text(
            partition in 0u16..4096, epoch in 1u32..1 << 20,
            seq in 0u64..1 << 36, random in 0u64..1 << 54,
        ) {
            let id = ReservationId::new(partition, Epoch(epoch), seq, random).unwrap();
            prop_assert_eq!(id.to_string().parse::<ReservationId>().unwrap(), id);
            prop_assert_eq!(id.to_uuid().get_version_num(), 8);
            prop_assert_eq!(id.entry_id(), format!("{epoch}-{seq}"));
        }

        #[test]
        fn ids_of_one_epoch_sort_by_seq(a in 0u64..1 << 36, b in 0u64..1 << 36, r in 0u64..1 << 54) {
            let id = |seq| ReservationId::new(7, Epoch(3), seq, r).unwrap().to_uuid();
            prop_assert_eq!(id(a).cmp(&id(b)), a.cmp(&b));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<ReservationId>();
        }
    }

    #[test]
    fn range_of_a_partition_contains_exactly_its_ids() {
        let count = PartitionCount::try_from(8).unwrap();
        let (first, last) = ReservationId::range_of(count.get_partition(3).unwrap());
        let id = |partition, epoch, seq, random| {
            ReservationId::new(partition, Epoch(epoch), seq, random).unwrap().to_uuid()
        };
        let (seq, random) = ((1 << 36) - 1, (1 << 54) - 1);
        assert!(first < id(3, 1, 0, 0) && id(3, (1 << 20) - 1, seq, random) == last);
        assert!(id(2, (1 << 20) - 1, seq, random) < first && last < id(4, 1, 0, 0));
    }

    #[test]
    fn other_uuids_are_refused() {
        let v4 = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
        assert_eq!(v4.parse::<ReservationId>(), Err(ReservationIdError::NotAReservationId));
        assert_eq!("nonsense".parse::<ReservationId>(), Err(ReservationIdError::NotAUuid));
        let braced = format!("{{{v4}}}");
        assert_eq!(braced.parse::<ReservationId>(), Err(ReservationIdError::NotAUuid));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        assert!(ReservationId::new(4096, Epoch(1), 1, 1).is_err());
        assert!(ReservationId::new(0, Epoch(0), 1, 1).is_err());
        assert!(ReservationId::new(0, Epoch(1 << 20), 1, 1).is_err());
        assert!(ReservationId::new(0, Epoch(1), 1 << 36, 1).is_err());
        assert!(ReservationId::new(0, Epoch(1), 1, 1 << 54).is_err());
    }
}

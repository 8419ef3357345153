//! What Redis remembers of the order of a request id. Redis holds one for each order, so it is short: with at most 30
//! characters, the value of a hash's field takes 32 bytes of Redis, and otherwise 48.

use super::{
    Partition, ReservationId,
    base64::{from_base64, to_base64},
};

/// The digits of a time: they suffice until the year 2109.
const TIME_DIGITS: u32 = 7;

/// The text for a request id: `<epoch>-<seq> <random> <time of the accept, to base 64>`. `lua/reserve.lua` writes the same.
pub fn claim_text(id: ReservationId, reserved_at_ms: i64) -> String {
    let time = to_base64(u64::try_from(reserved_at_ms).unwrap_or(0), TIME_DIGITS);
    format!("{} {} {time}", id.entry_id(), ReservationId::random_text(id.random()))
}

/// The order and the time in the three parts of such a text. Earlier versions wrote the time in decimal, with 13 digits.
pub fn parse_claim(partition: Partition, parts: [&str; 3]) -> Option<(ReservationId, i64)> {
    let [entry_id, random, time] = parts;
    let id = ReservationId::from_entry(partition, entry_id, random)?;
    let reserved_at_ms = match from_base64(time) {
        Some(time) => i64::try_from(time).ok()?,
        None => time.parse().ok()?,
    };
    Some((id, reserved_at_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Epoch, PartitionCount};

    #[test]
    fn claim_is_read_from_its_own_text() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let id = ReservationId::new(3, Epoch(2), 123_456_789, (1 << 54) - 1).unwrap();
        let text = claim_text(id, 1_700_000_000_000);
        assert_eq!(text, "2-123456789 ~ooooooooo H_?iFP0");
        assert!(text.len() <= 30, "{text}");
        let parts: Vec<&str> = text.split(' ').collect();
        let parsed = parse_claim(partition, parts.try_into().unwrap());
        assert_eq!(parsed, Some((id, 1_700_000_000_000)));
        assert_eq!(parse_claim(partition, ["2-7", "ff", "p"]), None);
    }

    #[test]
    fn claim_of_an_earlier_version_is_read() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let id = ReservationId::new(3, Epoch(2), 7, 0xff).unwrap();
        let parsed = parse_claim(partition, ["2-7", "ff", "1700000000000"]);
        assert_eq!(parsed, Some((id, 1_700_000_000_000)));
    }
}

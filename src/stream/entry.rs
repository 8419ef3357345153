//! An element of a stream, and the order in it.

use crate::domain::{Order, Partition, ReservationId};

/// The newest format that this program reads, and the one that it writes: `t` is the time, which Redis stores as a number,
/// and `o` has the other parts of the order. In formats 1 and 2 each part is a field of its own.
pub const FORMAT: u32 = 3;

/// The parts of `o` in their order, by the names that they have as fields. They are separated by spaces, which no id has.
/// A part that the order does not have is empty, or missing at the end. One field costs Redis and this program less than
/// seven.
const PACKED: [&str; 7] = ["r", "p", "u", "l", "w", "q", "c"];

/// The names and values of an entry; what is not UTF-8 was replaced.
pub(super) type Fields = Vec<(String, String)>;

/// Elements of a script's reply as names and values.
pub(super) fn fields(elements: &[&str]) -> Option<Fields> {
    let pair = |pair: &[&str]| match *pair {
        [name, value] => Some((name.to_owned(), value.to_owned())),
        _ => None,
    };
    elements.chunks(2).map(pair).collect()
}

/// An entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id in that stream.
    pub id: String,
    /// Names and values; what is not UTF-8 was replaced.
    pub fields: Fields,
}

/// Why there is no order in an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A newer version of this program wrote it, and must handle it.
    #[error(
        "the entry has format {0}, and this program reads formats up to {FORMAT}: start a worker of the newer version"
    )]
    NewerFormat(u32),
    /// This program did not write it.
    #[error("the entry has no valid {0}: this program did not write it")]
    Malformed(&'static str),
}

/// An entry as the client library returns it; a deleted one has no fields.
pub(super) type RawEntry = (String, Option<Vec<Vec<u8>>>);

impl Entry {
    pub(super) fn from_raw((id, fields): RawEntry) -> Option<Self> {
        let text = |bytes| {
            String::from_utf8(bytes)
                .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
        };
        let mut elements = fields?.into_iter().map(text);
        let pairs = std::iter::from_fn(|| Some((elements.next()?, elements.next()?)));
        Some(Self { id, fields: pairs.collect() })
    }

    /// The value of a field, or of a part of `o`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.unpacked().into_iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// Every field with its value; in place of `o`, its parts.
    pub fn unpacked(&self) -> Vec<(&str, &str)> {
        let mut unpacked = Vec::with_capacity(16);
        for (name, value) in &self.fields {
            if name == "o"
                && let Some(parts) = unpack(value)
            {
                let parts = PACKED.into_iter().zip(parts);
                unpacked.extend(parts.filter(|(_, value)| !value.is_empty()));
            } else {
                unpacked.push((name.as_str(), value.as_str()));
            }
        }
        unpacked
    }

    /// The identity of the order that was accepted as `<epoch>-<seq>` (`orders_id`: its id in `orders`).
    pub fn reservation_id(
        &self,
        partition: Partition,
        orders_id: &str,
    ) -> Result<ReservationId, EntryError> {
        ReservationId::from_entry(partition, orders_id, self.field("r").unwrap_or_default())
            .ok_or(EntryError::Malformed("id or random part"))
    }

    /// The order in it; `orders_id` is the id that it has or had in `orders`.
    pub fn order(&self, partition: Partition, orders_id: &str) -> Result<Order, EntryError> {
        let fields = self.unpacked();
        let field = |name| fields.iter().find(|(field, _)| *field == name).map(|(_, value)| *value);
        let malformed = EntryError::Malformed;
        match field("v").and_then(|v| v.parse().ok()) {
            Some(1..=FORMAT) => {}
            Some(newer) if newer > FORMAT => return Err(EntryError::NewerFormat(newer)),
            Some(_) | None => return Err(malformed("format")),
        }
        let (product, user) = (field("p").map(str::parse), field("u").map(str::parse));
        let request = field("q").map(str::parse).transpose();
        let random = field("r").unwrap_or_default();
        let id = ReservationId::from_entry(partition, orders_id, random);
        Ok(Order {
            id: id.ok_or(malformed("id or random part"))?,
            product: product.and_then(Result::ok).ok_or(malformed("product"))?,
            user: user.and_then(Result::ok).ok_or(malformed("user"))?,
            request: request.map_err(|_| malformed("request id"))?,
            reserved_at_ms: field("t").and_then(|t| t.parse().ok()).ok_or(malformed("time"))?,
            traceparent: field("c").filter(|c| !c.is_empty()).map(str::to_owned),
        })
    }

    /// When its unit was taken, in milliseconds since 1970.
    pub fn reserved_at_ms(&self) -> Option<i64> {
        self.field("t").and_then(|t| t.parse().ok())
    }

    /// The fields of the entry, with the parts of `o` in its place, one `name=value` a line, for a later analysis.
    pub fn to_bytes(&self) -> Vec<u8> {
        let lines = self.unpacked().into_iter().map(|(name, value)| format!("{name}={value}\n"));
        lines.collect::<String>().into_bytes()
    }
}

/// The parts of a value of `o`; `None` if there are more.
fn unpack(packed: &str) -> Option<[&str; PACKED.len()]> {
    let mut parts = packed.split(' ');
    let unpacked = std::array::from_fn(|_| parts.next().unwrap_or_default());
    parts.next().is_none().then_some(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Epoch, PartitionCount};

    fn partition() -> Partition {
        PartitionCount::try_from(8).unwrap().get_partition(3).unwrap()
    }

    fn entry(fields: &[(&str, &str)]) -> Entry {
        let fields = fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Entry { id: "2-7".into(), fields }
    }

    const COMPLETE_ENTRY: [(&str, &str); 7] = [
        ("v", "1"),
        ("p", "shoe"),
        ("u", "ann"),
        ("r", "ff"),
        ("t", "1000"),
        ("q", "a:1"),
        ("w", "0"),
    ];

    #[test]
    fn entry_gives_the_order_that_was_written() {
        let order = entry(&COMPLETE_ENTRY).order(partition(), "2-7").unwrap();
        assert_eq!(order.id, ReservationId::new(3, Epoch(2), 7, 0xff).unwrap());
        assert_eq!((order.product.as_str(), order.user.as_str()), ("shoe", "ann"));
        assert_eq!(order.request.unwrap().as_str(), "a:1");
        assert_eq!(order.reserved_at_ms, 1000);
    }

    #[test]
    fn entry_of_format_2_gives_ids_of_the_wider_alphabet() {
        let mut wider = COMPLETE_ENTRY;
        (wider[0].1, wider[1].1, wider[2].1, wider[5].1) =
            ("2", "shoe:a+b", "gid://shop/1", "a/%|b");
        let order = entry(&wider).order(partition(), "2-7").unwrap();
        assert_eq!((order.product.as_str(), order.user.as_str()), ("shoe:a+b", "gid://shop/1"));
        assert_eq!(order.request.unwrap().as_str(), "a/%|b");
    }

    #[test]
    fn entry_of_format_3_gives_the_order_of_its_one_field() {
        let order = "ff shoe:a+b gid://shop/1 1 41561 a/%|b 00-ab-cd-01";
        let packed = entry(&[("v", "3"), ("t", "1000"), ("o", order), ("id", "2-7")]);
        let order = packed.order(partition(), "2-7").unwrap();
        assert_eq!(order.id, ReservationId::new(3, Epoch(2), 7, 0xff).unwrap());
        assert_eq!((order.product.as_str(), order.user.as_str()), ("shoe:a+b", "gid://shop/1"));
        assert_eq!(order.request.unwrap().as_str(), "a/%|b");
        assert_eq!(order.reserved_at_ms, 1000);
        assert_eq!(order.traceparent.as_deref(), Some("00-ab-cd-01"));
        assert_eq!((packed.field("w"), packed.field("id")), (Some("41561"), Some("2-7")));
        let bytes = "v=3\nt=1000\nr=ff\np=shoe:a+b\nu=gid://shop/1\nl=1\nw=41561\nq=a/%|b\nc=00-ab-cd-01\nid=2-7\n";
        assert_eq!(packed.to_bytes(), bytes.as_bytes());
        let least = entry(&[("v", "3"), ("t", "1000"), ("o", "ff shoe ann")]);
        let order = least.order(partition(), "2-7").unwrap();
        assert_eq!((order.request, order.traceparent, least.field("l")), (None, None, None));
    }

    #[test]
    fn entry_whose_one_field_has_other_parts_has_no_order() {
        for other in ["", "ff shoe", " shoe ann", "ff shoe ann     ", "ff shoe ann 1 2 a b c"] {
            let entry = entry(&[("v", "3"), ("t", "1000"), ("o", other)]);
            let error = entry.order(partition(), "2-7").unwrap_err();
            assert!(matches!(error, EntryError::Malformed(_)), "{other}");
        }
    }

    #[test]
    fn entry_of_another_program_has_no_order() {
        for missing in ["p", "u", "r", "t", "v"] {
            let fields: Vec<_> =
                COMPLETE_ENTRY.into_iter().filter(|(name, _)| *name != missing).collect();
            let error = entry(&fields).order(partition(), "2-7").unwrap_err();
            assert!(matches!(error, EntryError::Malformed(_)), "{missing}");
        }
        let mut newer = COMPLETE_ENTRY;
        newer[0].1 = "4";
        assert_eq!(entry(&newer).order(partition(), "2-7"), Err(EntryError::NewerFormat(4)));
        for id in ["", "7", "0-1", "1700000000000-0", "a-b"] {
            assert!(entry(&COMPLETE_ENTRY).order(partition(), id).is_err(), "{id}");
        }
    }

    #[test]
    fn deleted_entry_is_skipped_and_bytes_that_are_not_utf8_are_replaced() {
        assert_eq!(Entry::from_raw(("1-1".into(), None)), None);
        let raw = ("1-1".into(), Some(vec![b"p".to_vec(), vec![0xff]]));
        assert_eq!(Entry::from_raw(raw).unwrap().field("p"), Some("\u{fffd}"));
    }
}

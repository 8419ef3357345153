//! Properties of entries and of replies of scripts: an order is read as it is written, and any other data is refused
//! without a panic.

use proptest::prelude::*;
use redis::Value;

use super::{
    Entry, EntryError, cut, dead, drain,
    entry::{Fields, fields},
    group, read,
};
use crate::{
    domain::{Epoch, Order, Partition, PartitionCount, ReservationId},
    redis::{RedisCallError, Script},
};

const PRODUCT_ID: &str = "[A-Za-z0-9._~:+@-]{1,128}";
const PRINTABLE_ID: &str = "[!-~]{1,128}";

fn partition() -> Partition {
    PartitionCount::try_from(8).unwrap().get_partition(3).unwrap()
}

/// Names and values as Lua writes them, in the newest format or as an earlier version wrote the one before.
fn written(order: &Order, packed: bool) -> Fields {
    let random = order.id.random();
    let random = if packed { ReservationId::random_text(random) } else { format!("{random:x}") };
    let parts = [
        ("r", random),
        ("p", order.product.to_string()),
        ("u", order.user.to_string()),
        ("l", String::new()),
        ("w", String::new()),
        ("q", order.request.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("c", order.traceparent.clone().unwrap_or_default()),
    ];
    let mut all = vec![("t".to_owned(), order.reserved_at_ms.to_string())];
    if packed {
        let values: Vec<_> = parts.into_iter().map(|(_, value)| value).collect();
        all.push(("v".to_owned(), "3".to_owned()));
        all.push(("o".to_owned(), values.join(" ").trim_end().to_owned()));
    } else {
        all.push(("v".to_owned(), "2".to_owned()));
        let present = parts.into_iter().filter(|(_, value)| !value.is_empty());
        all.extend(present.map(|(name, value)| (name.to_owned(), value)));
    }
    all
}

fn any_order() -> impl Strategy<Value = Order> {
    let id = (1_u32..1 << 20, 0_u64..1 << 36, 0_u64..1 << 54);
    let ids = (PRODUCT_ID, PRINTABLE_ID, prop::option::of(PRINTABLE_ID));
    let trace = prop::option::of("00-[0-9a-f]{32}-[0-9a-f]{16}-01");
    (id, ids, any::<i64>(), trace).prop_map(
        |((epoch, seq, random), ids, reserved_at_ms, traceparent)| {
            let (product, user, request) = ids;
            Order {
                id: ReservationId::new(3, Epoch(epoch), seq, random).unwrap(),
                product: product.parse().unwrap(),
                user: user.parse().unwrap(),
                request: request.map(|request| request.parse().unwrap()),
                reserved_at_ms,
                traceparent,
            }
        },
    )
}

/// An element of a reply: what a script gives, or anything.
fn element() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "ok",
        "fenced",
        "closed",
        "none",
        "found",
        "read",
        "moved",
        "gone",
        "not_applied",
        "discarded",
        "removed",
        "has_pending",
        "waiting",
        "product",
        "order",
        "dead",
        "bucket",
        "no_bucket",
        "p",
        "u",
        "o",
        "v",
        "1-1",
        "",
    ];
    prop_oneof![
        prop::sample::select(WORDS).prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
        (0..6_u8).prop_map(|number| number.to_string()),
        ".{0,12}",
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        Just(Value::Okay),
        any::<i64>().prop_map(Value::Int),
        prop::collection::vec(any::<u8>(), 0..8).prop_map(Value::BulkString),
        element().prop_map(|text| Value::BulkString(text.into())),
        element().prop_map(Value::SimpleString),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(Value::Array))
}

fn reply(elements: &[String]) -> Value {
    Value::Array(elements.iter().map(|text| Value::BulkString(text.clone().into())).collect())
}

/// A reply has a meaning, or is reported as one that the script never gives.
fn assert_parsed<T>(script: &Script<T>, reply: &Value) {
    match script.parse(reply) {
        Ok(_) | Err(RedisCallError::Fenced(_) | RedisCallError::Malformed(_)) => {}
        Err(error @ RedisCallError::Unavailable { .. }) => panic!("{error}"),
    }
}

fn assert_each_script_parses(reply: &Value) {
    assert_parsed(&cut::CUT, reply);
    assert_parsed(&dead::MOVE_TO_DEAD, reply);
    assert_parsed(&dead::DEAD, reply);
    assert_parsed(&dead::DISCARD, reply);
    assert_parsed(&drain::DRAIN, reply);
    assert_parsed(&group::SETTLE, reply);
    assert_parsed(&group::ADOPT, reply);
    assert_parsed(&group::REMOVE_CONSUMER, reply);
    assert_parsed(&read::FIND, reply);
}

/// An entry has an order that could have been written, or a reason why it has none.
fn assert_read_or_refused(entry: &Entry) {
    match entry.order(partition(), &entry.id) {
        Ok(order) => {
            let again = Entry { id: order.id.entry_id(), fields: written(&order, false) };
            assert_eq!(again.order(partition(), &again.id), Ok(order));
        }
        Err(EntryError::NewerFormat(format)) => assert!(format > super::FORMAT),
        Err(EntryError::Malformed(_)) => {}
    }
    let _id = entry.reservation_id(partition(), &entry.id);
    let _shown = (entry.to_bytes(), entry.reserved_at_ms());
}

proptest! {
    #[test]
    fn order_is_read_from_its_entry_as_it_was_written(
        order in any_order(), packed in any::<bool>(),
    ) {
        let entry = Entry { id: order.id.entry_id(), fields: written(&order, packed) };
        prop_assert_eq!(entry.order(partition(), &entry.id), Ok(order));
    }

    #[test]
    fn entry_with_any_fields_has_an_order_or_a_reason(
        elements in prop::collection::vec(element(), 0..16), id in element(),
    ) {
        let raw = elements.iter().map(|text| text.clone().into_bytes()).collect();
        let entry = Entry::from_raw((id, Some(raw))).unwrap();
        prop_assert_eq!(entry.fields.len(), elements.len() / 2);
        assert_read_or_refused(&entry);
    }

    #[test]
    fn entry_with_one_other_field_has_an_order_or_a_reason(
        order in any_order(), packed in any::<bool>(), at in any::<prop::sample::Index>(),
        value in element(),
    ) {
        let mut fields = written(&order, packed);
        let at = at.index(fields.len());
        fields[at].1 = value;
        assert_read_or_refused(&Entry { id: order.id.entry_id(), fields });
    }

    #[test]
    fn entry_of_any_bytes_does_not_panic(
        raw in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
    ) {
        let entry = Entry::from_raw(("1-1".to_owned(), Some(raw))).unwrap();
        let _order = entry.order(partition(), "1-1");
    }

    #[test]
    fn fields_of_a_reply_are_read_as_they_are_written(
        pairs in prop::collection::vec((element(), element()), 0..8),
    ) {
        let elements = pairs.iter().flat_map(|(name, value)| [name.as_str(), value]);
        let elements: Vec<&str> = elements.collect();
        prop_assert_eq!(fields(&elements), Some(pairs.clone()));
        // With one element more, a value is missing.
        prop_assert_eq!(fields(&[&elements[..], &["p"]].concat()), None);
    }

    #[test]
    fn reply_with_any_elements_is_parsed_or_malformed(
        elements in prop::collection::vec(element(), 0..12),
    ) {
        assert_each_script_parses(&reply(&elements));
    }

    #[test]
    fn reply_of_any_type_is_parsed_or_malformed(value in any_value()) {
        assert_each_script_parses(&value);
    }
}

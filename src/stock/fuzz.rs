//! Properties of the answers of scripts about stock: a decision is read as it was written, and any other answer is
//! malformed.

use std::time::Duration;

use proptest::prelude::*;
use redis::Value;

use super::{
    products, read, release,
    reserve::{self, decode},
};
use crate::{
    domain::{
        Epoch, Outcome, Partition, PartitionCount, PartitionEpoch, ReservationId, claim_text,
    },
    mutated::mutated_text,
    redis::{RedisCallError, Script},
};

const ANSWERS: &[&str] = &[
    "accepted 7 12 1700000000000",
    "duplicate 1-5 ~000000abc H_?iFP0 12",
    "duplicate 1-5 abc 1700000000000 12",
    "lost_or_unknown 1-5 ~000000abc",
    "sold_out",
    "limit_reached 2",
    "sale_not_open 1700000000000",
    "sale_closed 1700000000000",
    "backlog_full 17",
    "not_applied OOM command not allowed",
];

fn partition() -> Partition {
    PartitionCount::try_from(8).unwrap().get_partition(3).unwrap()
}

fn decoded(answer: &str) -> Option<super::Decision> {
    let at = PartitionEpoch { partition: partition(), epoch: Epoch(2) };
    decode(answer, at, 0xabc, |_| Duration::ZERO)
}

fn assert_parsed<T>(script: &Script<T>, reply: &Value) {
    match script.parse(reply) {
        Ok(_) | Err(RedisCallError::Fenced(_) | RedisCallError::Malformed(_)) => {}
        Err(error @ RedisCallError::Unavailable { .. }) => panic!("{error}"),
    }
}

proptest! {
    #[test]
    fn decision_is_read_as_it_was_written(
        seq in 0_u64..1 << 36, epoch in 1_u32..1 << 20, random in 0_u64..1 << 54,
        at in 0_i64..1 << 42, remaining in any::<i64>(),
    ) {
        let answer = format!("accepted {seq} {remaining} {at}");
        let Some(Ok(Outcome::Accepted(receipt))) = decoded(&answer) else { panic!("{answer}") };
        let id = ReservationId::new(3, Epoch(2), seq, 0xabc).unwrap();
        prop_assert_eq!(receipt.reservation_id, id);
        prop_assert_eq!((receipt.remaining, receipt.reserved_at_ms), (remaining, at));
        let id = ReservationId::new(3, Epoch(epoch), seq, random).unwrap();
        let answer = format!("duplicate {} {remaining}", claim_text(id, at));
        let Some(Ok(Outcome::Duplicate(receipt))) = decoded(&answer) else { panic!("{answer}") };
        prop_assert_eq!(receipt.reservation_id, id);
        prop_assert_eq!((receipt.remaining, receipt.reserved_at_ms), (remaining, at));
    }

    #[test]
    fn answer_of_any_text_does_not_panic(answer in mutated_text(ANSWERS)) {
        let _decision = decoded(&answer);
    }

    #[test]
    fn reply_with_any_elements_is_parsed_or_malformed(
        elements in prop::collection::vec(mutated_text(ANSWERS), 0..6),
    ) {
        let words = elements.iter().flat_map(|text| text.split(' '));
        for parts in [words.collect::<Vec<_>>(), elements.iter().map(String::as_str).collect()] {
            let parts = parts.into_iter().map(|part| Value::BulkString(part.into()));
            let reply = Value::Array(parts.collect());
            assert_parsed(&reserve::RESERVE, &reply);
            assert_parsed(&read::READ_STOCK, &reply);
            assert_parsed(&products::SET_SUPPLY, &reply);
            assert_parsed(&products::WRITE_TERMS, &reply);
            assert_parsed(&release::RELEASE, &reply);
        }
    }
}

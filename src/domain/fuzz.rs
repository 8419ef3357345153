//! Properties of ids, prices, times and texts: each is accepted exactly as documented, and written as it is read.

use proptest::prelude::*;

use super::{
    Epoch, IdError, OperatorText, PartitionCount, Price, PriceError, ProductId, RequestId,
    ReservationId, UserId, claim_text, parse_claim, parse_rfc3339_ms, split_field,
};
use crate::mutated::mutated_text;

const IDS: &[&str] =
    &["sneaker-42", "auth0|5f7c8ec7c33c6c004bbafe82", "gid://shop/1", "a%2Fb", "shoe:a+b"];
const RESERVATION_IDS: &[&str] =
    &["00200001-0000-8000-807e-14e19590ce5a", "7c9e6679-7425-40de-944b-e07fc1f90ae7"];
const CLAIMS: &[&str] = &["2-123456789 ~ooooooooo H_?iFP0", "2-7 ff 1700000000000"];
const PRICES: &[&str] =
    &["199.99", "0", "0.0001", "922337203685477", "922337203685477.5807", "1e3", "-1"];
const TIMES: &[&str] = &[
    "2026-11-27T18:00:00Z",
    "2026-11-27T19:00:00.5+01:00",
    "1970-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999Z",
    "2026-11-27 18:00:00-00:00",
    "2026-12-31T23:59:60Z",
];

proptest! {
    #[test]
    fn id_is_accepted_exactly_if_its_characters_are_allowed(
        text in prop_oneof![mutated_text(IDS), "[!-~]{0,140}"],
    ) {
        let length = (1..=128).contains(&text.len());
        let printable = length && text.bytes().all(|byte| byte.is_ascii_graphic());
        let in_product = |byte: u8| byte.is_ascii_alphanumeric() || b"._~:+@-".contains(&byte);
        let product = length && text.bytes().all(in_product);
        prop_assert_eq!(text.parse::<ProductId>().is_ok(), product);
        prop_assert_eq!(text.parse::<UserId>().is_ok(), printable);
        prop_assert_eq!(text.parse::<RequestId>().is_ok(), printable);
        match text.parse::<UserId>() {
            Ok(id) => prop_assert_eq!(id.to_string(), text),
            Err(IdError::BadCharacter { at, .. }) => {
                prop_assert!(!text.as_bytes()[at].is_ascii_graphic());
            }
            Err(IdError::Empty | IdError::TooLong { .. }) => prop_assert!(!length),
        }
    }

    #[test]
    fn reservation_id_of_any_text_is_its_own_text_or_refused(
        text in mutated_text(RESERVATION_IDS),
    ) {
        if let Ok(id) = text.parse::<ReservationId>() {
            prop_assert_eq!(id.to_string(), text.to_lowercase());
            prop_assert_eq!(ReservationId::from_uuid(id.to_uuid()), Ok(id));
        }
    }

    #[test]
    fn claim_is_read_as_it_was_written_by_this_version_and_an_earlier_one(
        epoch in 1_u32..1 << 20, seq in 0_u64..1 << 36, random in 0_u64..1 << 54,
        at in 1_000_000_000_000_i64..1 << 42,
    ) {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let id = ReservationId::new(3, Epoch(epoch), seq, random).unwrap();
        let earlier = format!("{epoch}-{seq} {random:x} {at}");
        for text in [claim_text(id, at), earlier] {
            let parts: Vec<&str> = text.split(' ').collect();
            let read = parse_claim(partition, parts.try_into().unwrap());
            prop_assert_eq!(read, Some((id, at)));
        }
    }

    #[test]
    fn claim_of_any_text_does_not_panic(text in mutated_text(CLAIMS)) {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        if let Ok(parts) = text.split(' ').collect::<Vec<_>>().try_into() {
            let _order = parse_claim(partition, parts);
        }
    }

    #[test]
    fn field_of_any_text_does_not_panic(text in mutated_text(IDS)) {
        let _ids = split_field(&text);
    }

    #[test]
    fn price_is_exact(units in 0..922_337_203_685_477_i64, cents in 0..100_i32) {
        let price = Price::parse(&format!("{units}.{cents:02}"), "EUR").unwrap();
        prop_assert_eq!((price.units(), price.nanos()), (units, cents * 10_000_000));
        prop_assert_eq!(Price::from_money(units, cents * 10_000_000, "EUR"), Ok(price));
        prop_assert_eq!(Price::stored(&price.to_string(), "EUR"), Ok(price));
    }

    #[test]
    fn price_of_any_text_is_written_as_it_is_read(
        amount in mutated_text(PRICES), currency in "[A-Z]{3}|.{0,4}",
    ) {
        match Price::parse(&amount, &currency) {
            Ok(price) => prop_assert_eq!(Price::stored(&price.to_string(), &currency), Ok(price)),
            Err(PriceError::TooManyDecimals { decimals, .. }) => prop_assert!(decimals < 4),
            Err(_) => {}
        }
    }

    #[test]
    fn time_of_any_text_is_from_1970_to_9999_or_refused(text in mutated_text(TIMES)) {
        if let Ok(ms) = parse_rfc3339_ms(&text) {
            prop_assert!((0..253_402_300_800_000).contains(&ms));
        }
    }

    #[test]
    fn text_of_an_operator_is_kept_or_refused(text in ".{0,210}") {
        if let Ok(parsed) = text.parse::<OperatorText>() {
            prop_assert_eq!(parsed.to_string(), text);
        }
    }
}

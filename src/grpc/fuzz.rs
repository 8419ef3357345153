//! Properties of what callers send beside messages: page tokens and the idempotency key.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use tonic::metadata::{MetadataMap, MetadataValue};

use super::{idempotency_key, page_token::PagedList};
use crate::mutated::{mutated, mutated_text};

const TOKENS: &[&str] = &["AQAAAAA", "AXQd2Yd1aG9lLTc", "AXQd2Yd1aG9lLTc=", ""];
const KEYS: &[&str] = &["order-1", "\"order-1\"", "\"a\\\"b\\\\c\"", " \"a\" ", "\"a\";p=1"];

proptest! {
    #[test]
    fn position_is_read_from_its_token_and_from_no_changed_one(
        name in ".{0,12}", filters in prop::collection::vec(".{0,12}", 0..4),
        position in ".{0,200}", byte in any::<prop::sample::Index>(), bit in 0..8_u8,
    ) {
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        let list = PagedList::new(&name, &filters);
        let token = list.token(&position);
        let read = |token: &str| list.position(token, |text| Some(text.to_owned()));
        prop_assert_eq!(read(&token), Ok(Some(position)));
        // The checksum finds every change of one bit.
        let mut changed = URL_SAFE_NO_PAD.decode(&token).unwrap();
        let at = byte.index(changed.len());
        changed[at] ^= 1 << bit;
        prop_assert!(read(&URL_SAFE_NO_PAD.encode(changed)).is_err());
    }

    #[test]
    fn token_of_any_text_does_not_panic(token in mutated_text(TOKENS)) {
        let list = PagedList::new("products", &["shoe"]);
        let _position = list.position(&token, |text| Some(text.to_owned()));
    }

    #[test]
    fn idempotency_key_is_the_same_with_and_without_quotation_marks(key in "[!-~]{1,128}") {
        let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
        let mut metadata = MetadataMap::new();
        metadata.append("idempotency-key", quoted.parse().unwrap());
        prop_assert_eq!(idempotency_key::request_id(&metadata, "").unwrap(), key.as_str());
        // A key that begins with a quotation mark is always a quoted string.
        if !key.starts_with('"') {
            metadata.append("idempotency-key", key.parse().unwrap());
            prop_assert_eq!(idempotency_key::request_id(&metadata, &key).unwrap(), key.as_str());
        }
    }

    #[test]
    fn idempotency_key_of_any_bytes_is_a_request_id_or_refused(bytes in mutated(KEYS)) {
        let Ok(value) = MetadataValue::try_from(bytes.as_slice()) else { return Ok(()) };
        let mut metadata = MetadataMap::new();
        metadata.append("idempotency-key", value);
        match idempotency_key::request_id(&metadata, "") {
            Ok(key) => prop_assert!(key.parse::<crate::domain::RequestId>().is_ok()),
            Err((name, _)) => prop_assert_eq!(name, "idempotency-key"),
        }
    }
}

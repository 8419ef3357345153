//! Properties of what callers send beside messages: page tokens, the idempotency key, and the addresses of proxies.

use std::net::{IpAddr, SocketAddr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use tonic::metadata::{MetadataMap, MetadataValue};

use super::{idempotency_key, limits::client_address, page_token::PagedList};
use crate::mutated::{mutated, mutated_text};

const TOKENS: &[&str] = &["AQAAAAA", "AXQd2Yd1aG9lLTc", "AXQd2Yd1aG9lLTc=", ""];
const KEYS: &[&str] = &["order-1", "\"order-1\"", "\"a\\\"b\\\\c\"", " \"a\" ", "\"a\";p=1"];
const FORWARDED: &[&str] = &[
    "192.0.2.7",
    "192.0.2.7, 10.0.0.2",
    "10.0.0.3:51234,10.0.0.2",
    "[2001:db8::1]:80, ::ffff:10.0.0.4",
    "unknown",
];

/// As the limits count an address: IPv6 by its network.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(whole) => IpAddr::V6((u128::from(whole) & !u128::from(u64::MAX)).into()),
        whole @ IpAddr::V4(_) => whole,
    }
}

fn written(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

proptest! {
    #[test]
    fn address_of_any_header_is_written_in_it_or_that_of_the_peer(
        headers in prop::collection::vec(mutated_text(FORWARDED), 0..3),
        peer in prop::sample::select(&["10.0.0.1", "::ffff:10.0.0.1", "192.0.2.1", "2001:db8::9"]),
    ) {
        let (peer, trusted) = (peer.parse::<IpAddr>().unwrap(), ["10.0.0.0/8".parse().unwrap()]);
        let found = client_address(peer, headers.iter().map(String::as_str), &trusted);
        if peer.to_canonical().to_string() != "10.0.0.1" {
            prop_assert_eq!(found, counted(peer));
        }
        let hops = headers.iter().flat_map(|header| header.split(',')).filter_map(written);
        let mut possible = hops.chain([peer]).map(counted);
        prop_assert!(possible.any(|address| address == found), "{} of {:?}", found, headers);
    }

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

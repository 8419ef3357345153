//! Properties of import files: a catalogue is read as it was written, and each problem of any other file has a position.

use proptest::prelude::*;
use serde_json::json;

use super::parse;
use crate::{domain::NewProduct, mutated::mutated};

const CSV: &[&str] = &[
    "product_id,name,price,currency,units\nshoe,\"Shoe, red\",199.99,EUR,500\nhat,Hat,5,JPY,7\n",
    "product_id,name,price,currency,units,per_user_limit,opens_at,closes_at\r\n\
     a,A,1,EUR,1,2,2026-11-27T18:00:00Z,2026-11-27T20:00:00+01:00\r\n",
    "\u{feff}units,currency,price,name,product_id,\n1,EUR,1,\"a\"\"b\nc\",x,\n",
];
const JSON: &[&str] = &[
    r#"[{"product_id":"shoe","name":"Shoe","price":199.99,"currency":"EUR","units":500,
         "per_user_limit":null}]"#,
    r#"[{"product_id":"a","name":"\u00e9\ud83c\udff4","price":"1","currency":"EUR","units":"1",
         "opens_at":"2026-11-27T18:00:00Z"},{"units":1e3}]"#,
];

/// Id, name, price in cents, units, limit: what a file may have.
type Row = (String, String, u32, u32, u16);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = ("[a-z0-9._~:+@-]{1,12}", "[ -~é]{0,10}x", any::<u32>(), any::<u32>(), 0..1000_u16);
    prop::collection::vec(row, 1..5).prop_map(|mut rows| {
        for (at, row) in rows.iter_mut().enumerate() {
            row.0 = format!("{at}-{}", row.0);
        }
        rows
    })
}

fn assert_read(products: &[NewProduct], rows: &[Row]) {
    assert_eq!(products.len(), rows.len());
    for (product, (id, name, cents, units, limit)) in products.iter().zip(rows) {
        let sale = &product.sale;
        assert_eq!((product.id.as_str(), &sale.name), (id.as_str(), name));
        assert_eq!(sale.price.to_string(), format!("{}.{:02}00", cents / 100, cents % 100));
        assert_eq!(product.units, i64::from(*units));
        assert_eq!(sale.per_user_limit, Some(u32::from(*limit)).filter(|limit| *limit > 0));
    }
}

/// Every problem names a line and a column.
fn assert_read_or_refused(bytes: &[u8], is_json: bool) {
    if let Err(problems) = parse(bytes, is_json) {
        assert!(!problems.is_empty());
        for problem in problems {
            let numbers =
                problem.strip_prefix("line ").and_then(|rest| rest.split_once(", column "));
            let (line, rest) = numbers.unwrap_or_else(|| panic!("{problem}"));
            let column: String = rest.chars().take_while(char::is_ascii_digit).collect();
            assert!(line.parse::<usize>().is_ok_and(|line| line > 0), "{problem}");
            assert!(column.parse::<usize>().is_ok_and(|column| column > 0), "{problem}");
            let broken = problem.chars().any(char::is_control);
            assert!(!broken, "{problem:?}");
        }
    }
}

proptest! {
    #[test]
    fn catalogue_is_read_as_it_was_written(rows in rows()) {
        let mut csv = "product_id,name,price,currency,units,per_user_limit\n".to_owned();
        let mut elements = Vec::new();
        for (id, name, cents, units, limit) in &rows {
            let price = format!("{}.{:02}", cents / 100, cents % 100);
            let quoted = name.replace('"', "\"\"");
            csv.push_str(&format!("{id},\"{quoted}\",{price},EUR,{units},{limit}\n"));
            elements.push(json!({
                "product_id": id, "name": name, "price": price, "currency": "EUR", "units": units,
                "per_user_limit": limit,
            }));
        }
        let json = serde_json::to_vec(&elements).unwrap();
        for (bytes, is_json) in [(csv.as_bytes(), false), (&json, true)] {
            let read = parse(bytes, is_json);
            prop_assert!(read.is_ok(), "{:?}", read.err());
            let products: Vec<_> = read.unwrap().into_iter().map(|(_, product)| product).collect();
            assert_read(&products, &rows);
        }
    }

    #[test]
    fn csv_file_of_any_bytes_is_read_or_refused_with_positions(bytes in mutated(CSV)) {
        assert_read_or_refused(&bytes, false);
    }

    #[test]
    fn json_file_of_any_bytes_is_read_or_refused_with_positions(bytes in mutated(JSON)) {
        assert_read_or_refused(&bytes, true);
    }
}

//! Which products a file has, and which message each mistake in it gets.

use super::*;

const HEADER: &str = "product_id,name,price,currency,units,per_user_limit,opens_at,closes_at\n";

fn products(text: &str, is_json: bool) -> Vec<NewProduct> {
    let parsed = parse(text.as_bytes(), is_json).unwrap_or_else(|problems| panic!("{problems:?}"));
    parsed.into_iter().map(|(_, product)| product).collect()
}

fn problems(bytes: impl AsRef<[u8]>, is_json: bool) -> Problems {
    parse(bytes.as_ref(), is_json).unwrap_err()
}

/// The only problem of a file.
fn only_problem(bytes: impl AsRef<[u8]>, is_json: bool) -> String {
    let problems = problems(bytes, is_json);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

fn json_row(field: &str, value: &str) -> String {
    let mut fields = vec![
        ("product_id", "\"a\""),
        ("name", "\"A\""),
        ("price", "1"),
        ("currency", "\"EUR\""),
        ("units", "1"),
    ];
    fields.retain(|(name, _)| *name != field);
    fields.push((field, value));
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("[{{{}}}]", fields.join(","))
}

fn csv_row(field: &str, value: &str) -> String {
    let cells = HEADER.trim_end().split(',').zip(["a", "A", "1", "EUR", "1", "", "", ""]);
    let cells: Vec<_> =
        cells.map(|(name, cell)| if name == field { value } else { cell }).collect();
    format!("{HEADER}{}\n", cells.join(","))
}

#[test]
fn last_three_columns_may_be_missing_or_empty() {
    let short = products("product_id,name,price,currency,units\nshoe,Shoe,199.99,EUR,500\n", false);
    let long = products(&format!("{HEADER}shoe,Shoe,199.99,EUR,500,,,\n"), false);
    assert_eq!(short, long);
    assert_eq!(short[0].units, 500);
    let json = r#"[{"product_id":"shoe","name":"Shoe","price":199.99,"currency":"EUR","units":500,
                    "per_user_limit":null}]"#;
    assert_eq!(products(json, true), short);
}

#[test]
fn window_and_limit_are_read() {
    let text = format!("{HEADER}a,A,1,EUR,1,2,2026-11-27T18:00:00Z,2026-11-27T20:00:00+01:00\n");
    let sale = &products(&text, false)[0].sale;
    assert_eq!(sale.per_user_limit, Some(2));
    assert_eq!(sale.closes_at_ms.unwrap() - sale.opens_at_ms.unwrap(), 3_600_000);
}

#[test]
fn price_keeps_its_digits_from_csv_and_json() {
    let exact = "1234567890123.4567";
    // A euro has fewer decimals.
    let csv = csv_row("price", exact).replace("EUR", "CLF");
    assert_eq!(products(&csv, false)[0].sale.price.to_string(), exact);
    for value in [exact.to_owned(), format!("\"{exact}\"")] {
        let json = json_row("price", &value).replace("EUR", "CLF");
        let product = &products(&json, true)[0];
        assert_eq!(product.sale.price.to_string(), exact);
    }
    assert_eq!(products(&json_row("units", "9007199254740992"), true)[0].units, 1 << 53);
}

#[test]
fn number_with_anything_but_digits_is_refused_in_csv_and_json() {
    for field in ["price", "units", "per_user_limit"] {
        for value in ["1e3", ".5", "5.", "+5", "-0", "-1", " 5", "0x5", "５"] {
            let message = only_problem(csv_row(field, value), false);
            assert!(message.starts_with("line 2, column ") && message.contains(field), "{message}");
            let message = only_problem(json_row(field, &format!("\"{value}\"")), true);
            assert!(message.starts_with("line 1, column ") && message.contains(field), "{message}");
        }
        // Some of these are numbers in JSON, some are not.
        for value in ["1e3", "1E3", "1e+3", "-0", "-1", "true", "[1]", ".5", "5.", "+5"] {
            let message = only_problem(json_row(field, value), true);
            assert!(message.starts_with("line 1, column "), "{field} {value}: {message}");
        }
    }
    for field in ["units", "per_user_limit"] {
        for message in
            [only_problem(csv_row(field, "1.0"), false), only_problem(json_row(field, "1.0"), true)]
        {
            assert!(message.contains("digits only"), "{message}");
        }
        let message = only_problem(csv_row(field, "99999999999999999999"), false);
        assert!(message.contains(&format!("({field}): {field} is too large")), "{message}");
    }
}

#[test]
fn every_wrong_row_is_reported_with_line_and_column() {
    let text = format!(
        "{HEADER}a b,A,1,EUR,1,,,\nok,OK,1,EUR,1,,,\nc,C,x,EUR,1,,,\nd,D,1,EUR,0,,,\n\
         e,E,1,EUR,1,,noon,\nok,OK,1,EUR,1,,,\nf,F,1,EUR\ng,G,1,EUR,9007199254740993,,,\n\
         h,H,1,eur,1,,,\n"
    );
    let problems = problems(text, false);
    let positions: Vec<&str> = problems.iter().map(|p| p.split(": ").next().unwrap()).collect();
    assert_eq!(
        positions,
        [
            "line 2, column 1 (product_id)",
            "line 4, column 3 (price)",
            "line 5, column 5 (units)",
            "line 6, column 7 (opens_at)",
            "line 7, column 1 (product_id)",
            "line 8, column 4",
            "line 9, column 5 (units)",
            "line 10, column 4 (currency)",
        ]
    );
    assert!(
        problems[4].ends_with("ok is already in line 3, column 1 (product_id)"),
        "{}",
        problems[4]
    );
    assert_eq!(
        problems[7],
        "line 10, column 4 (currency): price has an unknown currency: \
         write an ISO 4217 code in capital letters, such as EUR"
    );
}

#[test]
fn line_is_right_with_every_line_end_and_after_blank_lines() {
    let rows = ["product_id,name,price,currency,units", "a,A,1,EUR,1", "", "\"b\",B,x,EUR,1"];
    for end in ["\n", "\r\n", "\r"] {
        for blank in 0..3 {
            let text = end.repeat(blank) + &rows.join(end) + end;
            let expected = format!("line {}, column 3 (price)", 4 + blank);
            let message = only_problem(&text, false);
            assert!(message.starts_with(&expected), "{text:?}: {message}");
            let header = end.repeat(blank) + "id,name" + end;
            let expected = format!("line {}, column 1: \"id\" is not a column", 1 + blank);
            assert!(problems(&header, false)[0].starts_with(&expected), "{header:?}");
        }
        let text = format!("{}{end}\"a\",\"A{end}B\",x,EUR,1{end}b,B,x,EUR,1{end}", rows[0]);
        let problems = problems(text, false);
        assert!(problems[1].starts_with("line 4, column 3"), "{problems:?}");
        let json = format!("{end}[{end}  {{\"product_id\": \"a\",{end}   \"price\": true}}]");
        let message = only_problem(json, true);
        assert!(message.starts_with("line 4, column 13 (price): "), "{message}");
        let message = only_problem(format!("[{end}{{\"ü\" 1}}]"), true);
        assert!(message.starts_with("line 2, column 6: expected `:`"), "{message}");
    }
}

#[test]
fn empty_rows_and_an_empty_last_column_are_ignored_and_half_filled_rows_refused() {
    let plain = products("product_id,name,price,currency,units\na,A,1,EUR,1\n", false);
    for same in [
        "product_id,name,price,currency,units\na,A,1,EUR,1\n,,,,\n",
        "product_id,name,price,currency,units\n,,,,\na,A,1,EUR,1\n , ,,,\n\n",
        "product_id,name,price,currency,units,\na,A,1,EUR,1,\n,,,,,\n",
        "product_id,name,price,currency,units,\na,A,1,EUR,1\n",
        "product_id,name,price,currency,units\na,A,1,EUR,1,\n",
    ] {
        assert_eq!(products(same, false), plain, "{same:?}");
    }
    let half =
        only_problem("product_id,name,price,currency,units\na,A,1,EUR,1\nb,,1,EUR,1\n", false);
    assert_eq!(half, "line 3, column 2 (name): name is empty");
    let extra = only_problem("product_id,name,price,currency,units,\na,A,1,EUR,1,2\n", false);
    assert!(extra.starts_with("line 2, column 6: \"2\" is in a column"), "{extra}");
    let short = only_problem("product_id,name,price,currency,units\na,A,1,EUR\n", false);
    assert_eq!(short, "line 2, column 4: the row has 4 columns, the header has 5");
}

#[test]
fn wrong_encoding_or_separator_is_reported() {
    let latin_1 = b"product_id,name,price,currency,units\r\na,Caf\xe9,1,EUR,1\r\n";
    let expected = "line 2, column 6: the byte 0xe9 is not UTF-8: save the file as UTF-8";
    assert_eq!(only_problem(latin_1, false), expected);
    assert_eq!(problems(latin_1, true)[0], expected);
    let text = "product_id,name,price,currency,units\na,A,1,EUR,1\n";
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for bytes in [
        [b"\xff\xfe".as_slice(), &little].concat(),
        [b"\xfe\xff".as_slice(), &big].concat(),
        little,
        big,
    ] {
        assert!(only_problem(bytes, false).contains("the file is UTF-16: save the file as UTF-8"));
    }
    let marked = [b"\xef\xbb\xbf".as_slice(), text.as_bytes()].concat();
    assert_eq!(parse(&marked, false).unwrap().len(), 1);
    let message = only_problem(text.replace(',', ";"), false);
    assert_eq!(
        message,
        "line 1, column 1: semicolons separate the columns: save the file with commas"
    );
    let message = only_problem(text.replace(',', "\t"), false);
    assert_eq!(message, "line 1, column 1: tabs separate the columns: save the file with commas");
}

#[test]
fn wrong_header_or_missing_rows_are_refused() {
    let message = problems("id,name\n1,x\n", false);
    assert!(message[0].starts_with("line 1, column 1: \"id\" is not a column"), "{message:?}");
    assert!(message[1..].iter().all(|message| message.ends_with("is missing")), "{message:?}");
    let message = only_problem(HEADER.replace("opens_at", "units"), false);
    assert_eq!(message, "line 1, column 7: the column units appears twice");
    let none = "line 1, column 1: the file has no products";
    assert_eq!(only_problem(HEADER, false), none);
    assert!(only_problem("", false).contains("the file is empty"));
    assert_eq!(only_problem("[]", true), none);
    let hostile = problems("a\u{1b}[31m,name\n", false);
    assert!(!hostile[0].contains('\u{1b}') && hostile[0].contains("\\u{1b}"), "{hostile:?}");
}

#[test]
fn wrong_json_is_reported_with_line_and_column() {
    let object = |text: &str| only_problem(format!("[\n{text}]"), true);
    assert_eq!(only_problem("{}", true), "line 1, column 1: the file must be an array of objects");
    assert!(only_problem("[{", true).starts_with("line 1, column 2: EOF while parsing"));
    assert_eq!(object(" 7"), "line 2, column 2: this must be an object");
    let twice = r#"{"price": 1, "product_id": "a", "price": 2}"#;
    assert_eq!(object(twice), "line 2, column 42 (price): the key price appears twice");
    let unknown = r#"{"colour\u001b": "red"}"#;
    assert!(object(unknown).starts_with("line 2, column 18: \"colour\\u{1b}\" is not a key"));
    assert_eq!(object(r#"{"product_id":"a"}"#), "line 2, column 1: the key name is missing");
    let wrong = json_row("price", "1.23456").replace(",\"price\"", ",\n\"price\"");
    assert!(only_problem(wrong, true).starts_with("line 2, column 9 (price): price "));
}

#[test]
fn only_the_first_problems_of_a_file_are_listed() {
    let listed = listed((0..70).map(|n| n.to_string()).collect());
    assert_eq!(listed.lines().count(), 51);
    assert!(listed.ends_with("and 20 more"));
}

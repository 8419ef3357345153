//! Random inputs for the properties of parsers (`fuzz.rs` in several modules): samples with random changes, which are
//! closer to what a parser accepts than random bytes.

use proptest::{prelude::*, sample::Index};

/// What is often handled in a wrong way.
const TOKENS: &[&str] = &[
    " ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\0",
    "\\",
    "'",
    "\"",
    "\"\"",
    "%",
    "%2",
    "%25",
    "%zz",
    "%00",
    "%FF",
    "=",
    "&",
    "?",
    "#",
    "/",
    "//",
    "://",
    "@",
    ":",
    ",",
    ";",
    ".",
    "-",
    "+",
    "_",
    "|",
    "*",
    "[",
    "]",
    "{",
    "}",
    "<",
    "0",
    "-0",
    "-1",
    "1e400",
    "0x10",
    "NaN",
    "65536",
    "4294967296",
    "9223372036854775808",
    "18446744073709551616",
    "é",
    "ß",
    "\u{feff}",
    "\u{202e}",
    "\u{1f3f4}",
    "\u{0301}",
    "true",
    "null",
];

/// A piece of text in place of some bytes.
type Change = (Index, usize, Vec<u8>);

fn change(samples: &'static [&'static str]) -> impl Strategy<Value = Change> {
    let of_a_sample = (prop::sample::select(samples), any::<(Index, Index)>()).prop_map(
        |(sample, (one, other))| {
            let (one, other) = (one.index(sample.len() + 1), other.index(sample.len() + 1));
            sample.as_bytes()[one.min(other)..one.max(other)].to_vec()
        },
    );
    let piece = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 1..4),
        prop::sample::select(TOKENS).prop_map(|token| token.as_bytes().to_vec()),
        of_a_sample,
    ];
    (any::<Index>(), 0..8_usize, piece)
}

/// One of the samples with up to eight changes.
pub(crate) fn mutated(samples: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec(change(samples), 0..8);
    (prop::sample::select(samples), changes).prop_map(|(sample, changes)| {
        let mut bytes = sample.as_bytes().to_vec();
        for (at, removed, piece) in changes {
            let start = at.index(bytes.len() + 1);
            let end = (start + removed).min(bytes.len());
            bytes.splice(start..end, piece);
        }
        bytes
    })
}

/// As [`mutated`], as text: what is not UTF-8 is replaced.
pub(crate) fn mutated_text(samples: &'static [&'static str]) -> impl Strategy<Value = String> {
    mutated(samples).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

//! A catalogue as JSON: an array of objects. A number keeps the text that it has in the file.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    Problems, Row,
    position::{Cursor, Position},
    row::{COLUMNS, Cell, REQUIRED, quoted},
};

/// The rows of a file, or what is wrong with the whole of it.
pub(super) fn rows(text: &str) -> Result<Vec<Result<Row, String>>, Problems> {
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| {
        let what = if error.is_data() {
            "the file must be an array of objects".to_owned()
        } else {
            message(&error)
        };
        vec![format!("{}: {what}", position(text, &error))]
    })?;
    let mut cursor = Cursor::new(text.as_bytes());
    Ok(elements.into_iter().map(|element| row(text, &mut cursor, element)).collect())
}

/// Where the parser stopped. The parser counts only lines that end with LF, and counts columns in bytes.
fn position(text: &str, error: &serde_json::Error) -> Position {
    let before = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let offset = before.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
    Cursor::new(text.as_bytes()).position_at(offset.min(text.len()))
}

/// The message of the parser without its own position.
fn message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split(" at line ").next().unwrap_or_default().to_owned()
}

/// Where a value begins in the text that it was read from.
fn offset(text: &str, value: &RawValue) -> usize {
    value.get().as_ptr().addr().saturating_sub(text.as_ptr().addr())
}

fn row(text: &str, cursor: &mut Cursor<'_>, element: &RawValue) -> Result<Row, String> {
    let begin = cursor.position_at(offset(text, element));
    let Ok(Entries(entries)) = serde_json::from_str::<Entries<'_>>(element.get()) else {
        return Err(format!("{begin}: this must be an object"));
    };
    let mut cells: [Option<Cell>; 8] = Default::default();
    for (key, value) in entries {
        let position = cursor.position_at(offset(text, value));
        let Some(at) = COLUMNS.iter().position(|known| *known == key) else {
            let known = COLUMNS.join(", ");
            return Err(format!("{position}: {} is not a key; the keys are {known}", quoted(&key)));
        };
        let name = COLUMNS[at];
        if cells[at].is_some() {
            return Err(format!("{position} ({name}): the key {name} appears twice"));
        }
        let text = scalar(value)
            .ok_or_else(|| format!("{position} ({name}): {name} must be text or a number"))?;
        cells[at] = Some(Cell { text, position });
    }
    for (cell, name) in cells.iter().zip(COLUMNS).take(REQUIRED) {
        if cell.is_none() {
            return Err(format!("{begin}: the key {name} is missing"));
        }
    }
    let missing = || Cell { text: String::new(), position: begin };
    Ok(Row { cells: cells.map(|cell| cell.unwrap_or_else(missing)) })
}

/// Text, or a number as it is written; null is the empty text.
fn scalar(value: &RawValue) -> Option<String> {
    match value.get().as_bytes().first()? {
        b'"' => serde_json::from_str(value.get()).ok(),
        b'n' => Some(String::new()),
        b'-' | b'0'..=b'9' => Some(value.get().to_owned()),
        _ => None,
    }
}

/// The keys of an object and their values as they are written, also keys that appear twice.
struct Entries<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries<'de>, M::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}

//! A catalogue as CSV. Lines may end with LF, CRLF or CR; blank rows, and empty cells in columns without a name, are
//! ignored.

use csv::{ByteRecord, ReaderBuilder, Trim};

use super::{
    Problems, Row,
    position::{Cursor, Position},
    row::{COLUMNS, Cell, REQUIRED, quoted},
};

/// The rows of a file, or what is wrong with its header.
pub(super) fn rows(text: &str) -> Result<Vec<Result<Row, String>>, Problems> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(Trim::None)
        .from_reader(text.as_bytes());
    let mut cursor = Cursor::new(text.as_bytes());
    let (mut header, mut rows) = (None, Vec::new());
    let mut record = ByteRecord::new();
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Err(vec![error.to_string()]),
        }
        let line = cursor.position_at(begin(text, &record)).line;
        let cells: Vec<&str> =
            record.iter().map(|cell| std::str::from_utf8(cell).unwrap_or_default()).collect();
        match &header {
            None => header = Some(Header::read(line, &cells)?),
            // Spreadsheets leave such rows below a table.
            Some(_) if cells.iter().all(|cell| cell.trim().is_empty()) => {}
            Some(header) => rows.push(header.row(line, &cells)),
        }
    }
    match header {
        Some(_) => Ok(rows),
        None => {
            Err(vec!["line 1, column 1: the file is empty: it must begin with a header".into()])
        }
    }
}

/// Where a record begins: for the reader, the end of the line before it and blank lines are part of it.
fn begin(text: &str, record: &ByteRecord) -> usize {
    let position = record.position().map_or(0, csv::Position::byte);
    let start = usize::try_from(position).unwrap_or(0).min(text.len());
    let ends = text.as_bytes()[start..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    start + ends.count()
}

/// The columns of a file.
struct Header {
    /// Columns of the file by the columns of a catalogue.
    columns: [Option<usize>; 8],
    /// Columns up to the last one that has a name.
    width: usize,
}

impl Header {
    fn read(line: usize, cells: &[&str]) -> Result<Self, Problems> {
        let separated = |by: char| cells.iter().any(|cell| cell.contains(by));
        for (separator, name) in [(';', "semicolons"), ('\t', "tabs")] {
            if separated(separator) {
                return Err(vec![format!(
                    "line {line}, column 1: {name} separate the columns: save the file with commas"
                )]);
            }
        }
        let (mut columns, mut width, mut problems) = ([None; 8], 0, Problems::new());
        for (at, cell) in cells.iter().enumerate().filter(|(_, cell)| !cell.trim().is_empty()) {
            width = at + 1;
            let position = Position { line, column: at + 1 };
            match COLUMNS.iter().position(|column| column == cell) {
                None => {
                    let known = COLUMNS.join(", ");
                    let cell = quoted(cell);
                    problems.push(format!(
                        "{position}: {cell} is not a column; the columns are {known}"
                    ));
                }
                Some(column) if columns[column].is_some() => {
                    problems.push(format!("{position}: the column {cell} appears twice"));
                }
                Some(column) => columns[column] = Some(at),
            }
        }
        for (column, name) in columns.iter().zip(COLUMNS).take(REQUIRED) {
            if column.is_none() {
                problems.push(format!("line {line}, column 1: the column {name} is missing"));
            }
        }
        if problems.is_empty() { Ok(Self { columns, width }) } else { Err(problems) }
    }

    fn row(&self, line: usize, cells: &[&str]) -> Result<Row, String> {
        if cells.len() < self.width {
            return Err(format!(
                "line {line}, column {}: the row has {} columns, the header has {}",
                cells.len(),
                cells.len(),
                self.width
            ));
        }
        let unnamed = |at: &usize| !self.columns.contains(&Some(*at));
        let mut extra = (0..cells.len()).filter(unnamed);
        if let Some(at) = extra.find(|at| !cells[*at].trim().is_empty()) {
            let (cell, column) = (quoted(cells[at]), at + 1);
            return Err(format!(
                "line {line}, column {column}: {cell} is in a column that the header does not name"
            ));
        }
        let begin = self.columns[0].unwrap_or(0);
        let cell = |at: Option<usize>| Cell {
            text: at.map_or_else(String::new, |at| cells[at].to_owned()),
            position: Position { line, column: at.unwrap_or(begin) + 1 },
        };
        Ok(Row { cells: self.columns.map(cell) })
    }
}

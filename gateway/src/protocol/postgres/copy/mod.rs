//! The data of COPY: text, csv and binary, read wherever CopyData messages cut it.
//!
//! Two readers. [`Rewriter`] is for what leaves the target: it holds back a row until it is whole, hands
//! its masked values to the caller and writes them again as the server would have. [`Blanker`] is for what
//! evidence shows of an agent's data: it changes bytes in place, length by length, and holds back nothing.
//!
//! Source: `src/backend/commands/copyto.c` and `copyfromparse.c` of PostgreSQL, and the chapter on COPY in
//! its manual.

use bytes::BytesMut;
use memchr::memchr3;

mod binary;
mod blank;
mod field;

pub use blank::Blanker;

/// The longest row that is held back to be masked.
pub const LONGEST_ROW: usize = 16 << 20;

/// What to do with a value: gets the number of its column and its bytes. `None` leaves it, `Some(None)` makes it NULL.
pub type Edit<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Option<Option<Vec<u8>>>;

/// How the data is written; the options of the statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    Text {
        delimiter: u8,
        null: Vec<u8>,
        header: bool,
    },
    Csv {
        delimiter: u8,
        null: Vec<u8>,
        quote: u8,
        escape: u8,
        header: bool,
    },
    Binary,
}

impl Format {
    fn has_header(&self) -> bool {
        match self {
            Format::Text { header, .. } | Format::Csv { header, .. } => *header,
            Format::Binary => false,
        }
    }
}

/// Data that is not what the statement asked for, or cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    #[error("a row of COPY data is longer than the {LONGEST_ROW} bytes that can be masked")]
    LongRow,
    #[error("a row of COPY data has {found} values in place of {expected}")]
    Width { expected: usize, found: usize },
    #[error("the COPY data is not in binary format")]
    Binary,
    #[error("the COPY data ends in the middle of a row")]
    Unfinished,
}

/// Finds where values and rows end, byte by byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lexer {
    delimiter: u8,
    kind: Kind,
    /// The byte before took the meaning of the next one away.
    escaped: bool,
    quoted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// `escape` is `None` where it is the quote itself: then two quotes in a row close and open.
    Csv {
        quote: u8,
        escape: Option<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Value,
    EndOfValue,
    EndOfRow,
}

impl Lexer {
    /// `None` for the binary format.
    fn new(format: &Format) -> Option<Self> {
        let (delimiter, kind) = match *format {
            Format::Text { delimiter, .. } => (delimiter, Kind::Text),
            Format::Csv {
                delimiter,
                quote,
                escape,
                ..
            } => {
                let escape = (escape != quote).then_some(escape);
                (delimiter, Kind::Csv { quote, escape })
            }
            Format::Binary => return None,
        };
        Some(Self {
            delimiter,
            kind,
            escaped: false,
            quoted: false,
        })
    }

    /// How many bytes follow that are part of a value, whatever stands before and behind them.
    fn plain(&self, bytes: &[u8]) -> usize {
        match self.kind {
            Kind::Text if !self.escaped => {
                memchr3(b'\\', b'\n', self.delimiter, bytes).unwrap_or(bytes.len())
            }
            _ => 0,
        }
    }

    fn step(&mut self, byte: u8) -> Step {
        match self.kind {
            Kind::Text => {
                if std::mem::take(&mut self.escaped) {
                    return Step::Value;
                }
                self.escaped = byte == b'\\';
            }
            Kind::Csv { quote, escape } => {
                if self.quoted && escape == Some(byte) {
                    self.escaped = !self.escaped;
                }
                if byte == quote && !self.escaped {
                    self.quoted = !self.quoted;
                }
                if escape != Some(byte) {
                    self.escaped = false;
                }
                if self.quoted {
                    return Step::Value;
                }
            }
        }
        match byte {
            b'\n' => Step::EndOfRow,
            byte if byte == self.delimiter => Step::EndOfValue,
            _ => Step::Value,
        }
    }
}

/// Rewrites values of a COPY that leaves the target.
#[derive(Debug)]
pub struct Rewriter {
    format: Format,
    /// How many values a row has.
    width: usize,
    /// Those that are edited, in order.
    columns: Vec<usize>,
    shape: Shape,
    /// The beginning of a row whose end has not come.
    held: BytesMut,
    rows: u64,
}

#[derive(Debug)]
enum Shape {
    Lines {
        lexer: Lexer,
        /// Where the values of the held row end, as far as it has been read.
        ends: Vec<usize>,
        read: usize,
        /// The first line names the columns.
        header: bool,
    },
    Binary(binary::Rows),
}

impl Rewriter {
    /// `columns` are the places of those values, of the `width` in a row, that are to be edited.
    pub fn new(format: Format, width: usize, mut columns: Vec<usize>) -> Self {
        columns.sort_unstable();
        columns.dedup();
        let shape = match Lexer::new(&format) {
            Some(lexer) => Shape::Lines {
                lexer,
                ends: Vec::new(),
                read: 0,
                header: format.has_header(),
            },
            None => Shape::Binary(binary::Rows::default()),
        };
        Self {
            format,
            width,
            columns,
            shape,
            held: BytesMut::new(),
            rows: 0,
        }
    }

    /// Rows that were whole so far, without a header line.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes a piece of data and writes to `out` what is whole of it. `edit` is asked about every value
    /// of the columns to be edited that is not NULL.
    ///
    /// # Errors
    /// Data that does not fit the statement, of which nothing may be delivered.
    pub fn feed(
        &mut self,
        data: &[u8],
        out: &mut BytesMut,
        edit: Edit<'_>,
    ) -> Result<(), CopyError> {
        self.held.extend_from_slice(data);
        match &mut self.shape {
            Shape::Binary(rows) => {
                self.rows += rows.take(&mut self.held, self.width, &self.columns, out, edit)?;
            }
            Shape::Lines { .. } => self.lines(out, edit)?,
        }
        if self.held.len() > LONGEST_ROW {
            return Err(CopyError::LongRow);
        }
        Ok(())
    }

    /// No more data comes.
    ///
    /// # Errors
    /// A row without its end.
    pub fn finish(&self) -> Result<(), CopyError> {
        let ended = match &self.shape {
            Shape::Lines { .. } => self.held.is_empty(),
            Shape::Binary(rows) => rows.have_ended(),
        };
        match ended {
            true => Ok(()),
            false => Err(CopyError::Unfinished),
        }
    }

    fn lines(&mut self, out: &mut BytesMut, edit: Edit<'_>) -> Result<(), CopyError> {
        let Shape::Lines {
            lexer,
            ends,
            read,
            header,
        } = &mut self.shape
        else {
            return Ok(());
        };
        loop {
            *read += lexer.plain(self.held.get(*read..).unwrap_or_default());
            let Some(byte) = self.held.get(*read) else {
                return Ok(());
            };
            let step = lexer.step(*byte);
            *read += 1;
            if step == Step::Value {
                continue;
            }
            ends.push(*read - 1);
            if step == Step::EndOfValue {
                continue;
            }
            if *read > LONGEST_ROW {
                return Err(CopyError::LongRow);
            }
            let row = self.held.split_to(*read);
            *read = 0;
            if std::mem::take(header) {
                out.extend_from_slice(&row);
            } else if ends.len() == self.width {
                rewrite(&self.format, &row, ends, &self.columns, out, edit);
                self.rows += 1;
            } else {
                return Err(CopyError::Width {
                    expected: self.width,
                    found: ends.len(),
                });
            }
            ends.clear();
        }
    }
}

/// One row, its end of line included; `ends` is where its values end.
fn rewrite(
    format: &Format,
    row: &[u8],
    ends: &[usize],
    columns: &[usize],
    out: &mut BytesMut,
    edit: Edit<'_>,
) {
    let mut written = 0;
    for column in columns {
        let before = column.checked_sub(1).map(|before| ends.get(before));
        let start = before.map_or(Some(0), |end| Some(end? + 1));
        let Some((start, end)) = start.zip(ends.get(*column).copied()) else {
            continue;
        };
        let raw = row.get(start..end).unwrap_or_default();
        let decoded = field::decode(format, raw);
        let Some(value) = decoded.and_then(|value| edit(*column, &value)) else {
            continue;
        };
        // Everything since the last one, with its delimiters.
        out.extend_from_slice(row.get(written..start).unwrap_or_default());
        let alone = ends.len() == 1;
        field::encode(format, value.as_deref(), alone, out);
        written = end;
    }
    out.extend_from_slice(row.get(written..).unwrap_or_default());
}

#[cfg(test)]
mod tests;

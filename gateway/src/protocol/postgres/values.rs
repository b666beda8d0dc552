//! Values: what the bytes of a parameter say, as the text PostgreSQL would print.
//!
//! Both formats of the protocol end here as text: evidence shows it, policies compare it. The text is
//! that of a session with PostgreSQL's own defaults: ISO dates, time zone UTC, hexadecimal bytea, the C
//! locale's money. What has no text here is shown as its bytes in hexadecimal, and said to be.
//!
//! Sources: the `*send` and `*out` functions below `src/backend/utils/adt` in PostgreSQL.

use std::borrow::Cow;
use std::fmt::Write;

use self::nested::{Array, Multirange, Range};
use self::types::{Form, form_of};
use crate::protocol::cursor::{Cursor, Malformed};

mod moment;
mod nested;
mod network;
mod number;
#[cfg(test)]
mod tests;
mod types;

pub use types::name;

/// How a value's bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Binary,
}

impl Format {
    /// There is no third one: the server refuses other codes.
    pub fn of(code: i16) -> Option<Self> {
        match code {
            0 => Some(Self::Text),
            1 => Some(Self::Binary),
            _ => None,
        }
    }
}

/// A value's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded<'a> {
    pub text: Cow<'a, str>,
    /// The text ends where the value does, and not at the limit.
    pub whole: bool,
    /// The text is the bytes in hexadecimal: their type has no other text here, or they do not fit it.
    pub hex: bool,
}

/// The text of a value, at most `limit` bytes of it. A type of 0 is one nobody named.
pub fn decode(type_oid: u32, format: Format, bytes: &[u8], limit: usize) -> Decoded<'_> {
    let form = match format {
        Format::Text => Some(Form::Text),
        Format::Binary => form_of(type_oid),
    };
    let Some(form) = form else {
        return hexadecimal(bytes, limit);
    };
    match text_within(form, bytes) {
        Some(text) => std::str::from_utf8(text).map_or_else(
            |_| hexadecimal(bytes, limit),
            |text| {
                let shown = beginning(text, limit);
                Decoded {
                    text: Cow::Borrowed(shown),
                    whole: shown.len() == text.len(),
                    hex: false,
                }
            },
        ),
        None => {
            let mut out = Text::new(limit);
            match write(form, bytes, &mut out) {
                Ok(()) => out.decoded(),
                Err(_) => hexadecimal(bytes, limit),
            }
        }
    }
}

/// Whether `look` finds something in a value: it is shown the text of each scalar in it until it says
/// yes. Of a number that is mostly zeros nobody sent it is shown the beginning.
pub fn any_scalar(
    type_oid: u32,
    format: Format,
    bytes: &[u8],
    look: &mut dyn FnMut(&str) -> bool,
) -> bool {
    let found = match (format, form_of(type_oid)) {
        (Format::Binary, Some(Form::Array)) => any_element(bytes, look),
        (Format::Binary, Some(Form::Range(of))) => any_bound(of, bytes, look),
        (Format::Binary, Some(Form::Multirange(of))) => any_range(of, bytes, look),
        _ => {
            let limit = match text_within_any(type_oid, format, bytes) {
                Some(text) => text.len(),
                // Two bytes of a numeric are four digits.
                None => bytes.len().saturating_mul(4).saturating_add(64),
            };
            Ok(look(&decode(type_oid, format, bytes, limit).text))
        }
    };
    // What does not fit its type is nothing the server will take.
    found.unwrap_or(false)
}

fn any_element(bytes: &[u8], look: &mut dyn FnMut(&str) -> bool) -> Result<bool, Malformed> {
    let mut array = Array::read(bytes)?;
    while let Some(element) = array.next_element()? {
        if element.is_some_and(|element| any_scalar(array.element, Format::Binary, element, look)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn any_bound(of: u32, bytes: &[u8], look: &mut dyn FnMut(&str) -> bool) -> Result<bool, Malformed> {
    let range = Range::read(bytes)?;
    let mut bounds = range.lower.into_iter().chain(range.upper);
    Ok(bounds.any(|bound| any_scalar(of, Format::Binary, bound, look)))
}

fn any_range(of: u32, bytes: &[u8], look: &mut dyn FnMut(&str) -> bool) -> Result<bool, Malformed> {
    let mut ranges = Multirange::read(bytes)?;
    while let Some(range) = ranges.next_range()? {
        if any_bound(of, range, look)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn text_within_any(type_oid: u32, format: Format, bytes: &[u8]) -> Option<&[u8]> {
    match format {
        Format::Text => Some(bytes),
        Format::Binary => text_within(form_of(type_oid)?, bytes),
    }
}

/// The part of a value that is its text already.
fn text_within(form: Form, bytes: &[u8]) -> Option<&[u8]> {
    match (form, bytes) {
        (Form::Text, text) => Some(text),
        // jsonb and jsonpath: a version, of which there is one.
        (Form::Versioned, [1, text @ ..]) => Some(text),
        // "char" with no character in it.
        (Form::Char, [0]) => Some(&[]),
        (Form::Char, [_]) => Some(bytes),
        _ => None,
    }
}

fn beginning(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn hexadecimal(bytes: &[u8], limit: usize) -> Decoded<'static> {
    let mut out = Text::new(limit);
    out.bytes(bytes);
    Decoded {
        hex: true,
        ..out.decoded()
    }
}

/// A value in its binary form.
fn write(form: Form, bytes: &[u8], out: &mut Text) -> Result<(), Malformed> {
    let mut cursor = Cursor::new(bytes);
    match form {
        Form::Bool => out.push(match cursor.u8("bool")? {
            0 => "f",
            _ => "t",
        }),
        Form::Int2 => out.put(format_args!("{}", cursor.i16("int2")?)),
        Form::Int4 => out.put(format_args!("{}", cursor.i32("int4")?)),
        Form::Int8 => out.put(format_args!("{}", cursor.i64("int8")?)),
        Form::Oid => out.put(format_args!("{}", cursor.u32("oid")?)),
        Form::Xid8 => out.put(format_args!("{}", cursor.u64("xid8")?)),
        Form::Float4 => number::float4(f32::from_bits(cursor.u32("float4")?), out),
        Form::Float8 => number::float8(f64::from_bits(cursor.u64("float8")?), out),
        Form::Numeric => number::numeric(&mut cursor, out)?,
        Form::Money => number::money(cursor.i64("money")?, out),
        Form::Bits => number::bits(&mut cursor, out)?,
        Form::Lsn => {
            let (high, low) = (cursor.u32("pg_lsn")?, cursor.u32("pg_lsn")?);
            out.put(format_args!("{high:X}/{low:X}"));
        }
        Form::Bytea => {
            out.bytes(bytes);
            return Ok(());
        }
        Form::Uuid => network::uuid(&mut cursor, out)?,
        Form::Mac => {
            network::mac(bytes, out);
            return Ok(());
        }
        Form::Address => network::address(&mut cursor, out)?,
        Form::Date => moment::date(cursor.i32("date")?, out),
        Form::Time => moment::time(cursor.i64("time")?, out)?,
        Form::TimeTz => moment::timetz(&mut cursor, out)?,
        Form::Timestamp => moment::timestamp(cursor.i64("timestamp")?, "", out),
        Form::TimestampTz => moment::timestamp(cursor.i64("timestamptz")?, "+00", out),
        Form::Interval => moment::interval(&mut cursor, out)?,
        Form::Array => return nested::array(bytes, out),
        Form::Range(of) => return nested::range(of, bytes, out),
        Form::Multirange(of) => return nested::multirange(of, bytes, out),
        Form::Text | Form::Versioned | Form::Char => {
            return Err(Malformed::Value {
                what: "text",
                value: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
            });
        }
    }
    cursor.end()
}

/// Text that stops growing at its limit.
#[derive(Debug)]
struct Text {
    text: String,
    limit: usize,
    whole: bool,
}

impl Text {
    fn new(limit: usize) -> Self {
        Self {
            text: String::new(),
            limit,
            whole: true,
        }
    }

    fn push(&mut self, text: &str) {
        let room = self.limit.saturating_sub(self.text.len());
        let fits = match self.whole {
            true => beginning(text, room),
            // A shorter piece behind one that was cut would make another text.
            false => "",
        };
        self.whole &= fits.len() == text.len();
        self.text.push_str(fits);
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // `write_str` never fails.
        let _ = self.write_fmt(text);
    }

    /// As `bytea_output = hex` prints them.
    fn bytes(&mut self, bytes: &[u8]) {
        self.push("\\x");
        for chunk in bytes.chunks(512) {
            if !self.whole {
                return;
            }
            self.push(&hex::encode(chunk));
        }
    }

    fn decoded(self) -> Decoded<'static> {
        Decoded {
            text: Cow::Owned(self.text),
            whole: self.whole,
            hex: false,
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.push(text);
        Ok(())
    }
}

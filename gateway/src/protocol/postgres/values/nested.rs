//! Values made of values: arrays, ranges, multiranges.
//!
//! How deep they nest is bounded by their kinds, never by the bytes: an array holds no arrays, a range
//! holds scalars.

use super::types::{Form, form_of};
use super::{Format, Text, decode};
use crate::protocol::cursor::{Cursor, Malformed};

/// `MAXDIM` of PostgreSQL.
const MOST_DIMENSIONS: u32 = 6;

/// An array's header, and what follows it.
pub(super) struct Array<'a> {
    /// The type of its elements.
    pub element: u32,
    dimensions: Vec<Dimension>,
    left: usize,
    rest: Cursor<'a>,
}

struct Dimension {
    length: usize,
    lower: i32,
}

impl<'a> Array<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = Cursor::new(bytes);
        let impossible = |what, value: u32| Malformed::Value {
            what,
            value: value.into(),
        };
        let count = rest.u32("number of dimensions")?;
        if count > MOST_DIMENSIONS {
            return Err(impossible("number of dimensions", count));
        }
        rest.u32("array flags")?;
        let element = rest.u32("element type")?;
        if form_of(element) == Some(Form::Array) {
            return Err(impossible("element type", element));
        }
        let mut dimensions = Vec::new();
        for _ in 0..count {
            let length = rest.u32("array length")?;
            let lower = rest.i32("array bound")?;
            dimensions.push(Dimension {
                length: usize::try_from(length).unwrap_or(usize::MAX),
                lower,
            });
        }
        let elements = dimensions
            .iter()
            .map(|dimension| dimension.length)
            .reduce(usize::saturating_mul)
            .unwrap_or(0);
        Ok(Self {
            element,
            dimensions,
            left: elements,
            rest,
        })
    }

    pub(super) fn next_element(&mut self) -> Result<Option<Option<&'a [u8]>>, Malformed> {
        if self.left == 0 {
            self.rest.end()?;
            return Ok(None);
        }
        self.left -= 1;
        self.rest.value("array element").map(Some)
    }
}

pub(super) fn array(bytes: &[u8], out: &mut Text) -> Result<(), Malformed> {
    let mut array = Array::read(bytes)?;
    if array.left == 0 {
        out.push("{}");
        return array.next_element().map(|_| ());
    }
    if array
        .dimensions
        .iter()
        .any(|dimension| dimension.lower != 1)
    {
        for Dimension { length, lower } in &array.dimensions {
            let upper = i64::try_from(*length).unwrap_or(i64::MAX);
            let upper = upper.saturating_add((*lower).into()).saturating_sub(1);
            out.put(format_args!("[{lower}:{upper}]"));
        }
        out.push("=");
    }
    // How many elements a pair of braces encloses, the outermost first.
    let mut enclosed = Vec::new();
    let mut product = 1_usize;
    for dimension in array.dimensions.iter().rev() {
        product = product.saturating_mul(dimension.length);
        enclosed.insert(0, product);
    }
    let mut index = 0;
    while let Some(element) = array.next_element()? {
        if index > 0 {
            out.push(",");
        }
        for _ in enclosed.iter().filter(|count| is_at_border(index, **count)) {
            out.push("{");
        }
        match element {
            None => out.push("NULL"),
            Some(bytes) => {
                let text = inner(array.element, bytes, out.limit)?;
                push_element(&text, out);
            }
        }
        index += 1;
        for _ in enclosed.iter().filter(|count| is_at_border(index, **count)) {
            out.push("}");
        }
        if !out.whole {
            return Ok(());
        }
    }
    Ok(())
}

fn is_at_border(index: usize, count: usize) -> bool {
    index.is_multiple_of(count)
}

/// A value inside of another, which is not known if this one is not.
fn inner(type_oid: u32, bytes: &[u8], limit: usize) -> Result<String, Malformed> {
    // One byte more than the whole may have: then the whole is cut, too.
    let decoded = decode(type_oid, Format::Binary, bytes, limit.saturating_add(1));
    match decoded.hex {
        true => Err(Malformed::Value {
            what: "type",
            value: type_oid.into(),
        }),
        false => Ok(decoded.text.into_owned()),
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// Quoted where it would be read as something else (`array_out`).
fn push_element(text: &str, out: &mut Text) {
    let special = |c| is_space(c) || matches!(c, '"' | '\\' | '{' | '}' | ',');
    if !text.is_empty() && !text.eq_ignore_ascii_case("null") && !text.contains(special) {
        return out.push(text);
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    out.put(format_args!("\"{escaped}\""));
}

const EMPTY: u8 = 0x01;
const LOWER_INCLUSIVE: u8 = 0x02;
const UPPER_INCLUSIVE: u8 = 0x04;
const LOWER_INFINITE: u8 = 0x08;
const UPPER_INFINITE: u8 = 0x10;

/// A range's flags and the bounds that it has.
pub(super) struct Range<'a> {
    flags: u8,
    pub lower: Option<&'a [u8]>,
    pub upper: Option<&'a [u8]>,
}

impl<'a> Range<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let flags = cursor.u8("range flags")?;
        let mut bound = |infinite| match flags & (EMPTY | infinite) {
            0 => cursor.value("range bound"),
            _ => Ok(None),
        };
        let range = Self {
            flags,
            lower: bound(LOWER_INFINITE)?,
            upper: bound(UPPER_INFINITE)?,
        };
        cursor.end()?;
        Ok(range)
    }
}

pub(super) fn range(of: u32, bytes: &[u8], out: &mut Text) -> Result<(), Malformed> {
    let range = Range::read(bytes)?;
    if range.flags & EMPTY != 0 {
        out.push("empty");
        return Ok(());
    }
    let bracket = |flag, inclusive, exclusive| match range.flags & flag {
        0 => exclusive,
        _ => inclusive,
    };
    out.push(bracket(LOWER_INCLUSIVE, "[", "("));
    if let Some(lower) = range.lower {
        push_bound(&inner(of, lower, out.limit)?, out);
    }
    out.push(",");
    if let Some(upper) = range.upper {
        push_bound(&inner(of, upper, out.limit)?, out);
    }
    out.push(bracket(UPPER_INCLUSIVE, "]", ")"));
    Ok(())
}

/// Quoted where it would be read as something else (`range_bound_escape`).
fn push_bound(text: &str, out: &mut Text) {
    let special = |c| is_space(c) || matches!(c, '"' | '\\' | '(' | ')' | '[' | ']' | ',');
    if !text.is_empty() && !text.contains(special) {
        return out.push(text);
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\"\"");
    out.put(format_args!("\"{escaped}\""));
}

/// Ranges, one after the other.
pub(super) struct Multirange<'a> {
    left: u32,
    rest: Cursor<'a>,
}

impl<'a> Multirange<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = Cursor::new(bytes);
        let left = rest.u32("number of ranges")?;
        Ok(Self { left, rest })
    }

    pub(super) fn next_range(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        if self.left == 0 {
            self.rest.end()?;
            return Ok(None);
        }
        self.left -= 1;
        // A range is never NULL, nor without its flags.
        Ok(Some(self.rest.value("range")?.unwrap_or_default()))
    }
}

pub(super) fn multirange(of: u32, bytes: &[u8], out: &mut Text) -> Result<(), Malformed> {
    let mut ranges = Multirange::read(bytes)?;
    let mut separator = "{";
    while let Some(bytes) = ranges.next_range()? {
        out.push(separator);
        range(of, bytes, out)?;
        separator = ",";
        if !out.whole {
            return Ok(());
        }
    }
    if separator == "{" {
        out.push("{");
    }
    out.push("}");
    Ok(())
}

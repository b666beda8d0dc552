//! One value, as text and csv write it.

use bytes::{BufMut, BytesMut};

use super::Format;

/// The value that stands in the data as `raw`; `None` is NULL. A binary value is never written this way.
pub(super) fn decode(format: &Format, raw: &[u8]) -> Option<Vec<u8>> {
    match format {
        Format::Text { null, .. } => (raw != null).then(|| unescaped(raw)),
        Format::Csv {
            null,
            quote,
            escape,
            ..
        } => {
            let quoted = raw.contains(quote);
            (quoted || raw != null).then(|| unquoted(raw, *quote, *escape))
        }
        Format::Binary => None,
    }
}

/// Writes a value as the server would without FORCE_QUOTE. Whether the value that stood there was in quotes
/// makes no difference: with `DELIMITER '4'` its quotes would tell that it has a 4.
pub(super) fn encode(format: &Format, value: Option<&[u8]>, alone: bool, out: &mut BytesMut) {
    match (format, value) {
        (Format::Text { null, .. } | Format::Csv { null, .. }, None) => out.extend_from_slice(null),
        (Format::Text { delimiter, .. }, Some(value)) => escape_text(value, *delimiter, out),
        (
            Format::Csv {
                delimiter,
                null,
                quote,
                escape,
                ..
            },
            Some(value),
        ) => {
            let special = |byte: &u8| [*delimiter, *quote, b'\n', b'\r'].contains(byte);
            let quotes = value == null || (alone && value == b"\\.") || value.iter().any(special);
            match quotes {
                true => quote_csv(value, *quote, *escape, out),
                false => out.extend_from_slice(value),
            }
        }
        (Format::Binary, _) => {}
    }
}

/// `CopyReadAttributesText`.
fn unescaped(raw: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            value.push(*byte);
            continue;
        }
        let Some((letter, after)) = rest.split_first() else {
            value.push(b'\\');
            break;
        };
        rest = after;
        match letter {
            b'0'..=b'7' => {
                let (number, length) = digits(letter, rest, 8, 2);
                value.push(number);
                rest = rest.get(length..).unwrap_or_default();
            }
            b'x' if rest.first().is_some_and(u8::is_ascii_hexdigit) => {
                let (number, length) = digits(&b'0', rest, 16, 2);
                value.push(number);
                rest = rest.get(length..).unwrap_or_default();
            }
            b'b' => value.push(0x08),
            b'f' => value.push(0x0c),
            b'n' => value.push(b'\n'),
            b'r' => value.push(b'\r'),
            b't' => value.push(b'\t'),
            b'v' => value.push(0x0b),
            other => value.push(*other),
        }
    }
    value
}

/// The number that `first` and at most `most` digits behind it make, and how many those are.
fn digits(first: &u8, rest: &[u8], radix: u32, most: usize) -> (u8, usize) {
    let digit = |byte: &u8| char::from(*byte).to_digit(radix);
    let mut number = digit(first).unwrap_or(0);
    let mut length = 0;
    for next in rest.iter().take(most).map_while(digit) {
        number = (number * radix + next) & 0xff;
        length += 1;
    }
    (u8::try_from(number).unwrap_or(0), length)
}

/// `CopyReadAttributesCSV`: quotes may open and close anywhere in a value.
fn unquoted(raw: &[u8], quote: u8, escape: u8) -> Vec<u8> {
    let mut value = Vec::with_capacity(raw.len());
    let mut quoted = false;
    let mut bytes = raw.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = match quoted && byte == escape {
            true => bytes.next_if(|next| *next == quote || *next == escape),
            false => None,
        };
        match escaped {
            Some(literal) => value.push(literal),
            None if byte == quote => quoted = !quoted,
            None => value.push(byte),
        }
    }
    value
}

/// `CopyAttributeOutText`.
fn escape_text(value: &[u8], delimiter: u8, out: &mut BytesMut) {
    for byte in value {
        let letter = match byte {
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x0b => b'v',
            b'\\' => b'\\',
            byte if *byte == delimiter => delimiter,
            byte => {
                out.put_u8(*byte);
                continue;
            }
        };
        out.put_u8(b'\\');
        out.put_u8(letter);
    }
}

/// `CopyAttributeOutCSV`.
fn quote_csv(value: &[u8], quote: u8, escape: u8, out: &mut BytesMut) {
    out.put_u8(quote);
    for byte in value {
        if *byte == quote || *byte == escape {
            out.put_u8(escape);
        }
        out.put_u8(*byte);
    }
    out.put_u8(quote);
}

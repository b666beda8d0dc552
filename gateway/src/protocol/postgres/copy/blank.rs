//! What evidence shows of an agent's COPY data.

use super::binary::{EXTENSION, HEADER};
use super::{Format, Lexer, Step, field};

/// Blanks values in the data of a COPY … FROM STDIN, in place and length by length.
///
/// A value that lies whole in one message is blanked if it is secret. Of one that is cut by the end of a
/// message, and of data whose format is not known, every digit is: whether its parts make a card number
/// could be told only by holding it back, and it may be as long as the server allows.
#[derive(Debug)]
pub struct Blanker {
    format: Option<Format>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Unknown,
    Line {
        lexer: Lexer,
        /// The value began in an earlier message.
        cut: bool,
    },
    Binary(Binary),
}

#[derive(Debug, Clone, Copy)]
enum Binary {
    Header {
        seen: usize,
        length: Number,
    },
    Extension {
        left: usize,
    },
    Count(Number),
    Length {
        values: usize,
        number: Number,
    },
    Value {
        values: usize,
        left: usize,
        cut: bool,
    },
    /// Behind the last row, or not binary data at all.
    End,
}

/// A number whose bytes may come one by one.
#[derive(Debug, Clone, Copy, Default)]
struct Number {
    value: u32,
    bytes: usize,
}

impl Number {
    fn push(&mut self, byte: u8) -> usize {
        self.value = self.value << 8 | u32::from(byte);
        self.bytes += 1;
        self.bytes
    }
}

impl Blanker {
    /// `None`: a format that is not known.
    pub fn new(format: Option<Format>) -> Self {
        let place = match &format {
            None => Place::Unknown,
            Some(format) => match Lexer::new(format) {
                Some(lexer) => Place::Line { lexer, cut: false },
                None => Place::Binary(Binary::Header {
                    seen: 0,
                    length: Number::default(),
                }),
            },
        };
        Self { format, place }
    }

    /// The body of the next CopyData.
    pub fn blank(&mut self, data: &mut [u8], is_secret: impl Fn(&[u8]) -> bool) {
        match (&mut self.place, &self.format) {
            (Place::Line { lexer, cut }, Some(format)) => {
                let mut rest = data;
                while let Some(end) = rest
                    .iter()
                    .position(|byte| lexer.step(*byte) != Step::Value)
                {
                    let (value, after) = rest.split_at_mut(end);
                    match std::mem::take(cut) {
                        true => blank_digits(value),
                        false => blank_field(format, value, &is_secret),
                    }
                    rest = after.get_mut(1..).unwrap_or_default();
                }
                *cut |= !rest.is_empty();
                blank_digits(rest);
            }
            (Place::Binary(place), _) => {
                let mut rest = data;
                while !rest.is_empty() {
                    rest = place.take(rest, &is_secret);
                }
            }
            (Place::Unknown | Place::Line { .. }, _) => blank_digits(data),
        }
    }
}

fn blank_field(format: &Format, raw: &mut [u8], is_secret: impl Fn(&[u8]) -> bool) {
    if field::decode(format, raw).is_some_and(|value| is_secret(&value)) {
        raw.fill(b'*');
    }
}

fn blank_digits(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| byte.is_ascii_digit()) {
        *byte = b'*';
    }
}

impl Binary {
    /// Takes at least one byte; returns the rest.
    fn take<'d>(&mut self, data: &'d mut [u8], is_secret: impl Fn(&[u8]) -> bool) -> &'d mut [u8] {
        if let Binary::Value { values, left, cut } = *self {
            let here = left.min(data.len());
            let (value, rest) = data.split_at_mut(here);
            if cut || here < left {
                blank_digits(value);
            } else if is_secret(value) {
                value.fill(b'*');
            }
            *self = match left - here {
                0 => Self::after_value(values),
                left => Binary::Value {
                    values,
                    left,
                    cut: true,
                },
            };
            return rest;
        }
        let Some((byte, rest)) = data.split_first_mut() else {
            return &mut [];
        };
        *self = match *self {
            Binary::Header { seen, mut length } => {
                if seen >= EXTENSION {
                    length.push(*byte);
                }
                match (seen + 1 == HEADER, usize::try_from(length.value)) {
                    (false, _) => Binary::Header {
                        seen: seen + 1,
                        length,
                    },
                    (true, Ok(0)) => Binary::Count(Number::default()),
                    (true, Ok(left)) => Binary::Extension { left },
                    (true, Err(_)) => Binary::End,
                }
            }
            Binary::Extension { left: ..=1 } => Binary::Count(Number::default()),
            Binary::Extension { left } => Binary::Extension { left: left - 1 },
            Binary::Count(mut count) => match (count.push(*byte), count.value) {
                (1, _) => Binary::Count(count),
                // -1, or a number no table has columns of.
                (_, 0x8000..) => Binary::End,
                (_, values) => Self::after_value(usize::try_from(values).unwrap_or(0) + 1),
            },
            Binary::Length { values, mut number } => match (number.push(*byte), number.value) {
                (..=3, _) => Binary::Length { values, number },
                (_, u32::MAX) => Self::after_value(values),
                (_, 0x8000_0000..) => Binary::End,
                (_, 0) => Self::after_value(values),
                (_, length) => Binary::Value {
                    values,
                    left: usize::try_from(length).unwrap_or(usize::MAX),
                    cut: false,
                },
            },
            Binary::End | Binary::Value { .. } => {
                blank_digits(std::slice::from_mut(byte));
                Binary::End
            }
        };
        rest
    }

    /// `values`: how many of the row were to come, the one that has ended included.
    fn after_value(values: usize) -> Self {
        match values {
            ..=1 => Binary::Count(Number::default()),
            _ => Binary::Length {
                values: values - 1,
                number: Number::default(),
            },
        }
    }
}

//! Rows in binary format: a signature, then per row a count and values with their lengths, then -1.

use bytes::{Buf, BufMut, BytesMut};

use super::{CopyError, Edit};

pub(super) const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Signature, flags, and the length of an extension that follows.
pub(super) const HEADER: usize = 19;

/// Where the length of the extension stands.
pub(super) const EXTENSION: usize = 15;

#[derive(Debug, Default)]
pub(super) struct Rows {
    part: Part,
    /// With fewer bytes than this there is no whole row.
    needed: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Header,
    Rows,
    /// The trailer has come.
    End,
}

/// What is found at the beginning of the bytes held.
enum Found {
    /// A row of this many bytes.
    Row(usize),
    Trailer,
    /// It is not whole before there are this many bytes.
    Part(usize),
}

impl Rows {
    pub(super) fn have_ended(&self) -> bool {
        self.part == Part::End
    }

    /// Moves what is whole from `held` to `out`; returns how many rows that was.
    pub(super) fn take(
        &mut self,
        held: &mut BytesMut,
        width: usize,
        columns: &[usize],
        out: &mut BytesMut,
        edit: Edit<'_>,
    ) -> Result<u64, CopyError> {
        let mut rows = 0;
        while held.len() >= self.needed {
            match self.part {
                Part::Header => match header(held)? {
                    Some(length) => {
                        out.extend_from_slice(&held.split_to(length));
                        self.part = Part::Rows;
                        self.needed = 0;
                    }
                    None => self.needed = held.len() + 1,
                },
                Part::Rows => match find(held, width)? {
                    Found::Row(length) => {
                        rewrite(&held.split_to(length), width, columns, out, edit);
                        rows += 1;
                        self.needed = 0;
                    }
                    Found::Trailer => {
                        out.extend_from_slice(&held.split_to(2));
                        self.part = Part::End;
                        self.needed = 0;
                    }
                    Found::Part(needed) => self.needed = needed,
                },
                Part::End if held.is_empty() => break,
                Part::End => return Err(CopyError::Binary),
            }
        }
        Ok(rows)
    }
}

/// The length of the header, once it is whole.
fn header(held: &[u8]) -> Result<Option<usize>, CopyError> {
    let seen = held.len().min(SIGNATURE.len());
    if held.get(..seen) != SIGNATURE.get(..seen) {
        return Err(CopyError::Binary);
    }
    let Some(length) = number(held, EXTENSION) else {
        return Ok(None);
    };
    let extension = usize::try_from(length).map_err(|_| CopyError::Binary)?;
    if extension > super::LONGEST_ROW {
        return Err(CopyError::LongRow);
    }
    let whole = HEADER + extension;
    Ok((held.len() >= whole).then_some(whole))
}

fn find(held: &[u8], width: usize) -> Result<Found, CopyError> {
    let Some(count) = held.get(..2) else {
        return Ok(Found::Part(2));
    };
    let count = <[u8; 2]>::try_from(count).map_or(0, i16::from_be_bytes);
    if count == -1 {
        return Ok(Found::Trailer);
    }
    if usize::try_from(count) != Ok(width) {
        return Err(CopyError::Width {
            expected: width,
            found: usize::try_from(count).unwrap_or(0),
        });
    }
    let mut at: usize = 2;
    for _ in 0..width {
        let Some(length) = number(held, at) else {
            return Ok(Found::Part(at.saturating_add(4)));
        };
        at = at.saturating_add(4);
        if length < -1 {
            return Err(CopyError::Binary);
        }
        // -1 is NULL.
        at = at.saturating_add(usize::try_from(length).unwrap_or(0));
        if at > super::LONGEST_ROW {
            return Err(CopyError::LongRow);
        }
    }
    Ok(match held.len() >= at {
        true => Found::Row(at),
        false => Found::Part(at),
    })
}

fn rewrite(row: &[u8], width: usize, columns: &[usize], out: &mut BytesMut, edit: Edit<'_>) {
    let mut rest = row;
    out.extend_from_slice(rest.get(..2).unwrap_or_default());
    rest.advance(rest.len().min(2));
    for column in 0..width {
        let length = number(rest, 0).unwrap_or(-1);
        rest.advance(rest.len().min(4));
        let Ok(length) = usize::try_from(length) else {
            out.put_i32(-1);
            continue;
        };
        let value = rest.get(..length).unwrap_or_default();
        let edited = match columns.binary_search(&column) {
            Ok(_) => edit(column, value),
            Err(_) => None,
        };
        match edited {
            None => put(out, value),
            Some(Some(edited)) => put(out, &edited),
            Some(None) => out.put_i32(-1),
        }
        rest.advance(rest.len().min(length));
    }
}

fn put(out: &mut BytesMut, value: &[u8]) {
    // No longer than a row.
    out.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
    out.extend_from_slice(value);
}

/// The number of four bytes at `at`.
fn number(bytes: &[u8], at: usize) -> Option<i32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    <[u8; 4]>::try_from(bytes).ok().map(i32::from_be_bytes)
}

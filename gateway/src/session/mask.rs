//! Mask: what the target said, cleared for delivery.
//!
//! Only this file makes a [`Masked`]. Rows are rewritten where their RowDescription names a masked
//! column as the origin; every other message passes as it is, but for errors that could quote a value.
//!
//! The rewriting is the same in text and in binary: what a mask leaves behind is text, which is sent as
//! its own bytes in both, or NULL.

use bytes::BytesMut;

use super::buffers::Gathered;
use crate::policy::masking::{Takes, Transform};
use crate::protocol::postgres::backend::{self, Field, RowDescription};
use crate::protocol::postgres::values::Format;
use crate::protocol::postgres::{Message, Piece, ProtocolError, encode};
use crate::sql;

/// Bytes that may be recorded and delivered.
#[derive(Debug)]
pub struct Masked(Gathered);

impl Masked {
    pub(super) fn into_bytes(self) -> Gathered {
        self.0
    }
}

/// A masked column as the target's catalogue has it.
#[derive(Debug, Clone)]
pub struct MaskedColumn {
    pub name: String,
    pub transform: Transform,
    /// Whether its type can hold the text a mask leaves behind, and sends it as its own bytes in binary,
    /// too; others become NULL.
    pub text_like: bool,
}

/// varchar and char(n) by their OIDs: those with a length.
const VARCHAR: u32 = 1043;
const BPCHAR: u32 = 1042;

/// A modifier counts four bytes of a header that is long gone (`VARHDRSZ`).
const MODIFIER_HEADER: i32 = 4;

impl MaskedColumn {
    fn takes(&self, field: &Field) -> Takes {
        if !self.text_like {
            return Takes::Nothing;
        }
        let length = usize::try_from(field.type_modifier.saturating_sub(MODIFIER_HEADER));
        match (field.type_oid, length) {
            (VARCHAR, Ok(length)) => Takes::UpTo(length),
            (BPCHAR, Ok(length)) => Takes::Padded(length),
            _ => Takes::Text,
        }
    }
}

/// How the rows of one result are masked.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    columns: Vec<Planned>,
    width: usize,
    /// A masked column comes in a format that is neither text nor binary.
    unreadable: bool,
}

#[derive(Debug, Clone)]
struct Planned {
    index: usize,
    transform: Transform,
    takes: Takes,
}

impl Plan {
    /// `masked` finds the rule for a column.
    pub fn new(
        description: &RowDescription,
        masked: impl Fn(&Field) -> Option<MaskedColumn>,
    ) -> Self {
        let mut plan = Plan {
            width: description.fields.len(),
            ..Plan::default()
        };
        for (index, field) in description.fields.iter().enumerate() {
            let Some(column) = masked(field) else {
                continue;
            };
            plan.unreadable |= Format::of(field.format).is_none();
            plan.columns.push(Planned {
                index,
                transform: column.transform,
                takes: column.takes(field),
            });
        }
        plan
    }

    /// Whether rows pass as they are, whatever is in them.
    pub fn changes_nothing(&self) -> bool {
        self.columns.is_empty()
    }
}

/// Gathers what one read from the target turns into.
#[derive(Debug, Default)]
pub struct Delivery {
    bytes: Gathered,
}

impl Delivery {
    pub fn unchanged(&mut self, message: &Message) {
        self.bytes.push(message.bytes());
    }

    /// A part of a message that passes as it is.
    pub fn piece(&mut self, piece: &Piece) {
        self.bytes.push(piece.bytes());
    }

    /// A DataRow, its masked columns replaced. Returns how many values were.
    ///
    /// # Errors
    /// A row that does not fit its description, or a masked column in an unknown format: nothing is
    /// delivered.
    pub fn row(&mut self, message: &Message, plan: &Plan) -> Result<u64, ProtocolError> {
        if plan.columns.is_empty() {
            self.unchanged(message);
            return Ok(0);
        }
        if plan.unreadable {
            return Err(ProtocolError::Refused(
                "the target sent a masked column in an unknown format",
            ));
        }
        let values: Vec<Option<&[u8]>> = backend::data_row(message)?.collect::<Result<_, _>>()?;
        if values.len() != plan.width {
            return Err(ProtocolError::Refused(
                "the target sent a row that does not fit its description",
            ));
        }
        let mut replaced: Vec<(usize, Option<Vec<u8>>)> = Vec::with_capacity(plan.columns.len());
        for column in &plan.columns {
            if let Some(Some(value)) = values.get(column.index) {
                replaced.push((column.index, column.transform.apply(value, column.takes)));
            }
        }
        let mut row = values;
        for (index, value) in &replaced {
            if let Some(slot) = row.get_mut(*index) {
                *slot = value.as_deref();
            }
        }
        self.own(|out| encode::data_row(out, row.iter().copied()));
        Ok(u64::try_from(replaced.len()).unwrap_or(u64::MAX))
    }

    /// An error or notice of a session with masks. Those about masked tables that quote values
    /// (constraint violations, conversions) lose the parts that do; card numbers go from all of them.
    pub fn error(&mut self, message: &Message, touches_masked: bool) -> Result<(), ProtocolError> {
        let fields = backend::error_fields(message)?;
        let sqlstate = backend::sqlstate(&fields);
        let class = sqlstate.get(..2).unwrap_or_default();
        let quotes_values = touches_masked && matches!(class, "22" | "23" | "44" | "XX" | "P0");
        let hidden = format!("value withheld by masking (SQLSTATE {sqlstate})");
        let kept: Vec<(u8, Vec<u8>)> = fields
            .iter()
            .filter(|(code, _)| !(quotes_values && matches!(code, b'D' | b'W' | b'q' | b'H')))
            .map(|(code, value)| match code {
                // The message of a constraint violation names the constraint alone.
                b'M' if quotes_values && class != "23" => (*code, hidden.clone().into_bytes()),
                _ => (*code, without_cards(value)),
            })
            .collect();
        if kept
            .iter()
            .map(|(code, value)| (*code, &value[..]))
            .eq(fields)
        {
            self.unchanged(message);
            return Ok(());
        }
        let kept: Vec<(u8, &[u8])> = kept
            .iter()
            .map(|(code, value)| (*code, &value[..]))
            .collect();
        self.own(|out| encode::notice(out, message.tag(), &kept));
        Ok(())
    }

    /// Bytes gathered so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A message of the gateway's own.
    pub fn own(&mut self, write: impl FnOnce(&mut BytesMut)) {
        self.bytes.write(write);
    }

    pub fn finish(&mut self) -> Masked {
        Masked(std::mem::take(&mut self.bytes))
    }
}

fn without_cards(value: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(value) {
        Ok(text) => sql::without_cards(text).into_bytes(),
        Err(_) => value.to_vec(),
    }
}

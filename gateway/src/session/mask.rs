//! Mask: what the target said, cleared for delivery.
//!
//! Only this file makes a [`Masked`]. Rows are rewritten where their RowDescription names a masked
//! column as the origin; every other message passes as it is, but for errors that could quote a value.

use bytes::{Bytes, BytesMut};

mod copied;

pub use copied::{Copied, CopyPlan};

use crate::policy::masking::Transform;
use crate::protocol::postgres::backend::{self, Field, RowDescription};
use crate::protocol::postgres::{Message, ProtocolError, encode};
use crate::sql;

/// Bytes that may be recorded and delivered.
#[derive(Debug)]
pub struct Masked(Bytes);

impl Masked {
    pub(super) fn into_bytes(self) -> Bytes {
        self.0
    }
}

/// A masked column as the target's catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedColumn {
    pub name: String,
    pub transform: Transform,
    /// Whether its type can hold the text a mask leaves behind; others become NULL.
    pub text_like: bool,
}

/// How the rows of one result are masked.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    columns: Vec<(usize, MaskedColumn)>,
    width: usize,
    binary: Option<String>,
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
            if field.format != 0 {
                plan.binary = Some(column.name.clone());
            }
            plan.columns.push((index, column));
        }
        plan
    }

    /// A masked column that was asked for in binary, which cannot be masked yet.
    pub fn binary(&self) -> Option<&str> {
        self.binary.as_deref()
    }
}

/// Gathers what one read from the target turns into.
#[derive(Debug, Default)]
pub struct Delivery {
    bytes: BytesMut,
}

impl Delivery {
    pub fn unchanged(&mut self, message: &Message) {
        self.bytes.extend_from_slice(message.bytes());
    }

    /// A DataRow, its masked columns replaced. Returns how many values were.
    ///
    /// # Errors
    /// A row that does not fit its description, or a masked column in binary: nothing is delivered.
    pub fn row(&mut self, message: &Message, plan: &Plan) -> Result<u64, ProtocolError> {
        if plan.columns.is_empty() {
            self.unchanged(message);
            return Ok(0);
        }
        if plan.binary.is_some() {
            return Err(ProtocolError::Refused(
                "the target sent a masked column in binary, which cannot be masked",
            ));
        }
        let values: Vec<Option<&[u8]>> = backend::data_row(message)?.collect::<Result<_, _>>()?;
        if values.len() != plan.width {
            return Err(ProtocolError::Refused(
                "the target sent a row that does not fit its description",
            ));
        }
        let mut replaced: Vec<(usize, Option<Vec<u8>>)> = Vec::with_capacity(plan.columns.len());
        for (index, column) in &plan.columns {
            if let Some(Some(value)) = values.get(*index) {
                replaced.push((*index, column.transform.apply(value, column.text_like)));
            }
        }
        let mut row = values;
        for (index, value) in &replaced {
            if let Some(slot) = row.get_mut(*index) {
                *slot = value.as_deref();
            }
        }
        encode::data_row(&mut self.bytes, row.iter().copied());
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
        encode::notice(&mut self.bytes, message.tag(), &kept);
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
        write(&mut self.bytes);
    }

    pub fn finish(&mut self) -> Masked {
        Masked(self.bytes.split().freeze())
    }
}

fn without_cards(value: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(value) {
        Ok(text) => sql::without_cards(text).into_bytes(),
        Err(_) => value.to_vec(),
    }
}

//! COPY … TO STDOUT: its data names no columns, so which of them are masked is known from the statement.

use std::sync::Arc;

use super::{Delivery, MaskedColumn};
use crate::protocol::postgres::backend::CopyResponse;
use crate::protocol::postgres::copy::{Format, Rewriter};
use crate::protocol::postgres::{Message, ProtocolError, encode};

/// How the data of one COPY is masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlan {
    format: Format,
    width: usize,
    columns: Vec<(usize, MaskedColumn)>,
}

impl CopyPlan {
    /// `columns` by their place among the `width` columns of a row.
    pub fn new(format: Format, width: usize, columns: Vec<(usize, MaskedColumn)>) -> Self {
        Self {
            format,
            width,
            columns,
        }
    }

    pub fn places(&self) -> Vec<usize> {
        self.columns.iter().map(|(place, _)| *place).collect()
    }
}

/// A COPY whose data is on its way.
#[derive(Debug)]
pub struct Copied {
    plan: Arc<CopyPlan>,
    rewriter: Rewriter,
}

impl Copied {
    /// # Errors
    /// The target is about to send something else than what was planned for.
    pub fn begin(plan: Arc<CopyPlan>, response: &CopyResponse) -> Result<Self, ProtocolError> {
        let binary = plan.format == Format::Binary;
        if response.binary != binary || response.columns != plan.width {
            return Err(ProtocolError::Refused(
                "the target sends COPY data in another shape than the statement says, so it cannot be masked",
            ));
        }
        let rewriter = Rewriter::new(plan.format.clone(), plan.width, plan.places());
        Ok(Self { plan, rewriter })
    }

    pub fn rows(&self) -> u64 {
        self.rewriter.rows()
    }

    /// # Errors
    /// Data that ended in the middle of a row.
    pub fn finish(&self) -> Result<(), ProtocolError> {
        Ok(self.rewriter.finish()?)
    }
}

impl Delivery {
    /// A piece of COPY data, its masked values replaced; a row whose end has not come is held back. Returns
    /// how many values were replaced.
    ///
    /// # Errors
    /// Data that does not fit the statement: nothing is delivered.
    pub fn copied(&mut self, message: &Message, copied: &mut Copied) -> Result<u64, ProtocolError> {
        let mut masked = 0;
        let columns = &copied.plan.columns;
        let rewriter = &mut copied.rewriter;
        let mut edit = |place, value: &[u8]| {
            let (_, column) = columns.iter().find(|(at, _)| *at == place)?;
            masked += 1;
            Some(column.transform.apply(value, column.takes_any_length()))
        };
        let mut fed = Ok(());
        self.bytes.write(|bytes| {
            fed = encode::copied(bytes, |out| rewriter.feed(message.body(), out, &mut edit));
        });
        fed?;
        Ok(masked)
    }
}

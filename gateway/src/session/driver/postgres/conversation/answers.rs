//! The target's side: every answer is matched with what it answers.

use std::sync::Arc;

use super::Conversation;
use super::pending::{Operation, Pending, Removed, Results};
use crate::audit::event::StatementOutcome;
use crate::policy::Denial;
use crate::protocol::postgres::backend::{self, Field, RowDescription};
use crate::protocol::postgres::encode::{ErrorText, Severity};
use crate::protocol::postgres::{HEADER, Message, Piece, ProtocolError, encode};
use crate::session::mask::{Delivery, Plan};
use crate::session::record::Outcome;

impl Conversation {
    /// Takes one message from the target: what the agent gets goes to `delivery`, statements that
    /// ended to `done`.
    ///
    /// # Errors
    /// A message that answers nothing that was asked: the two sides are out of step, and no later
    /// message could be attributed.
    pub fn answer(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
        done: &mut Vec<Outcome>,
    ) -> Result<(), ProtocolError> {
        self.past_copy_ends();
        match message.tag() {
            b'A' => delivery.unchanged(message),
            b'S' => {
                self.parameter(message)?;
                delivery.unchanged(message);
            }
            b'N' => self.error_text(message, delivery)?,
            b'E' => self.error(message, delivery, done)?,
            b'Z' => {
                let status = backend::transaction_status(message)?;
                self.ready(message, done)?;
                // Portals end with their transaction.
                if status == b'I' && self.pending.is_empty() {
                    self.portals.clear();
                }
                delivery.unchanged(message);
            }
            b'T' => self.row_description(message, delivery)?,
            b'D' => self.data(message, delivery, true)?,
            b'd' => self.data(message, delivery, false)?,
            b'C' => self.complete(message, delivery, done, StatementOutcome::Ok)?,
            b'I' => self.complete(message, delivery, done, StatementOutcome::Ok)?,
            b's' => self.complete(message, delivery, done, StatementOutcome::Suspended)?,
            b'V' => self.function_result(message, delivery, done)?,
            b'n' => self.no_data(message, delivery)?,
            b'1' | b'2' | b'3' => self.acknowledged(message, delivery)?,
            b't' => self.parameter_types(message, delivery)?,
            b'G' => self.copy_in(message, delivery)?,
            b'H' | b'c' => match self.pending.front() {
                Some(Pending::Query { .. } | Pending::Execute { .. }) => {
                    delivery.unchanged(message);
                }
                _ => return Err(out_of_step(message)),
            },
            _ => return Err(out_of_step(message)),
        }
        Ok(())
    }

    /// Settings that change how a statement's text is read.
    fn parameter(&mut self, message: &Message) -> Result<(), ProtocolError> {
        let (name, value) = backend::parameter_status(message)?;
        match name {
            b"standard_conforming_strings" if value != b"on" => self.strings_are_uncertain(),
            b"client_encoding" if !super::super::parameters::encoding_is_safe(value) => {
                return Err(ProtocolError::Refused(
                    "client_encoding must be UTF8 or another ASCII-safe encoding",
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a message describes columns of a table that is younger than the catalogue: masks cannot
    /// be planned before it is renewed.
    pub fn outdates_catalogue(&self, message: &Message) -> Result<bool, ProtocolError> {
        if message.tag() != b'T' || !self.catalogue.masks_anything() {
            return Ok(false);
        }
        let description = RowDescription::parse(message)?;
        let mut origins = description.fields.iter().map(|field| field.table_oid);
        Ok(origins.any(|table| self.catalogue.is_unknown(table)))
    }

    /// The session is over: whatever was still running has no known end.
    pub fn abandon(&mut self) -> Vec<Outcome> {
        let mut done = Vec::new();
        for pending in self.pending.drain(..) {
            match pending {
                Pending::Query { operations, .. } => done.extend(
                    operations
                        .into_iter()
                        .map(|it| it.done(StatementOutcome::Aborted, None, None)),
                ),
                Pending::Execute { operation, .. } => {
                    done.extend(operation.map(|it| it.done(StatementOutcome::Aborted, None, None)));
                }
                _ => {}
            }
        }
        done
    }

    fn acknowledged(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        let expected = match self.pending.front() {
            Some(Pending::Parse { .. }) => b'1',
            Some(Pending::Bind { .. }) => b'2',
            Some(Pending::Close { .. }) => b'3',
            _ => return Err(out_of_step(message)),
        };
        if message.tag() != expected {
            return Err(out_of_step(message));
        }
        self.pending.pop_front();
        delivery.unchanged(message);
        Ok(())
    }

    /// What a statement's parameters are: the first half of the answer to its Describe.
    fn parameter_types(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        let types = backend::parameter_types(message)?;
        match self.pending.front() {
            Some(Pending::Describe { statement }) => {
                if let Some(statement) = statement {
                    statement.describe_parameter_types(types);
                }
                delivery.unchanged(message);
                Ok(())
            }
            _ => Err(out_of_step(message)),
        }
    }

    fn row_description(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        match self.pending.front() {
            Some(Pending::Describe { .. }) => {
                RowDescription::parse(message)?;
                self.pending.pop_front();
                delivery.unchanged(message);
            }
            Some(Pending::OwnDescribe { .. }) => {
                let plan = self.plan_of(message)?;
                self.columns_known(plan);
            }
            Some(Pending::Query { .. }) => {
                self.plan = self.plan_of(message)?;
                delivery.unchanged(message);
            }
            _ => return Err(out_of_step(message)),
        }
        Ok(())
    }

    fn no_data(&mut self, message: &Message, delivery: &mut Delivery) -> Result<(), ProtocolError> {
        match self.pending.front() {
            Some(Pending::Describe { .. }) => {
                self.pending.pop_front();
                delivery.unchanged(message);
            }
            Some(Pending::OwnDescribe { .. }) => self.columns_known(Arc::default()),
            _ => return Err(out_of_step(message)),
        }
        Ok(())
    }

    fn columns_known(&mut self, plan: Arc<Plan>) {
        self.plan = plan;
        let Some(Pending::OwnDescribe { rows }) = self.pending.pop_front() else {
            return;
        };
        if let Some(plan) = rows.get() {
            self.plan = Arc::clone(plan);
        }
    }

    fn plan_of(&self, message: &Message) -> Result<Arc<Plan>, ProtocolError> {
        let description = RowDescription::parse(message)?;
        let masked = |field: &Field| self.catalogue.masked(field);
        Ok(Arc::new(Plan::new(&description, masked)))
    }

    /// Whether a message that is too long to be held may pass in pieces: nothing in it is read or changed.
    pub fn passes_unread(&self, tag: u8) -> bool {
        match tag {
            b'd' => true,
            b'D' => self.plan.changes_nothing(),
            _ => false,
        }
    }

    /// A part of such a message.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn piece(&mut self, piece: &Piece, delivery: &mut Delivery) -> Result<(), ProtocolError> {
        if piece.is_first() {
            let operation = self.running(piece.tag())?;
            operation.rows += u64::from(piece.tag() == b'D');
            operation.bytes += payload(piece.total());
        }
        delivery.piece(piece);
        Ok(())
    }

    /// The statement whose data comes from the target.
    fn running(&mut self, tag: u8) -> Result<&mut Operation, ProtocolError> {
        self.past_copy_ends();
        let operation = self.pending.front_mut().and_then(Pending::running);
        operation.ok_or(ProtocolError::Unexpected { tag })
    }

    fn past_copy_ends(&mut self) {
        while matches!(self.pending.front(), Some(Pending::CopyEnd)) {
            self.pending.pop_front();
        }
    }

    /// A DataRow, or a piece of COPY output.
    fn data(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
        row: bool,
    ) -> Result<(), ProtocolError> {
        let operation = self.pending.front_mut().and_then(Pending::running);
        let operation = operation.ok_or_else(|| out_of_step(message))?;
        let before = delivery.len();
        if row {
            operation.rows += 1;
            operation.masked += delivery.row(message, &self.plan)?;
        } else {
            delivery.unchanged(message);
        }
        operation.bytes += payload(delivery.len() - before);
        Ok(())
    }

    /// CommandComplete, EmptyQueryResponse or PortalSuspended.
    fn complete(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
        done: &mut Vec<Outcome>,
        outcome: StatementOutcome,
    ) -> Result<(), ProtocolError> {
        let tag = match message.tag() {
            b'C' => Some(String::from_utf8_lossy(backend::command_tag(message)?).into_owned()),
            _ => None,
        };
        match self.pending.front_mut() {
            // A text without statements has no operation, and is answered by `I`.
            Some(Pending::Query {
                operations,
                results,
                ..
            }) => match (operations.make_contiguous(), results) {
                (_, Results::Value) => return Err(out_of_step(message)),
                ([last], Results::Uncounted) => last.tag = tag.or(last.tag.take()),
                _ => {
                    if let Some(operation) = operations.pop_front() {
                        done.push(operation.done(outcome, None, tag));
                    }
                }
            },
            Some(Pending::Execute {
                operation, rows, ..
            }) => {
                if outcome == StatementOutcome::Suspended {
                    rows.get_or_init(|| Arc::clone(&self.plan));
                }
                done.extend(operation.take().map(|it| it.done(outcome, None, tag)));
                self.pending.pop_front();
            }
            _ => return Err(out_of_step(message)),
        }
        delivery.unchanged(message);
        Ok(())
    }

    /// The value of a function call. Those of targets with masks are refused: a value has no origin.
    fn function_result(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
        done: &mut Vec<Outcome>,
    ) -> Result<(), ProtocolError> {
        let operation = match self.pending.front_mut() {
            Some(Pending::Query {
                operations,
                results: Results::Value,
                ..
            }) => operations.pop_front(),
            _ => None,
        };
        let mut operation = operation.ok_or_else(|| out_of_step(message))?;
        operation.bytes = u64::try_from(message.body().len()).unwrap_or(u64::MAX);
        done.push(operation.done(StatementOutcome::Ok, None, None));
        delivery.unchanged(message);
        Ok(())
    }

    /// The server waits for COPY data, and from here on ignores every Sync until the data ends.
    fn copy_in(&mut self, message: &Message, delivery: &mut Delivery) -> Result<(), ProtocolError> {
        if !matches!(
            self.pending.front(),
            Some(Pending::Query { .. } | Pending::Execute { .. })
        ) {
            return Err(out_of_step(message));
        }
        let end = self
            .pending
            .iter()
            .position(|pending| matches!(pending, Pending::CopyEnd));
        let mut index = 0;
        self.pending.retain(|pending| {
            let inside = end.is_none_or(|end| index <= end);
            index += 1;
            !(inside && matches!(pending, Pending::Sync | Pending::CopyEnd))
        });
        self.syncs = self
            .pending
            .iter()
            .filter(|pending| matches!(pending, Pending::Sync))
            .count();
        self.copy_in = end.is_none();
        delivery.unchanged(message);
        Ok(())
    }

    fn error(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
        done: &mut Vec<Outcome>,
    ) -> Result<(), ProtocolError> {
        let fields = backend::error_fields(message)?;
        let sqlstate = backend::sqlstate(&fields);
        // Only an ordinary error can be the one a replaced message provoked.
        let ordinary = fields.contains(&(b'S', b"ERROR")) || fields.contains(&(b'V', b"ERROR"));
        self.copy_in = false;
        self.copy_data = false;
        match self.pending.front_mut() {
            Some(Pending::Denied {
                denial,
                ends_with_ready,
            }) if ordinary => {
                let (denial, ends_with_ready) = (denial.clone(), *ends_with_ready);
                if !ends_with_ready {
                    self.skip_to_sync();
                }
                delivery.own(|out| encode::error_response(out, &refusal(&denial)));
                return Ok(());
            }
            Some(Pending::Query { operations, .. }) => {
                let mut operations = std::mem::take(operations).into_iter();
                let failed = operations.next();
                done.extend(failed.map(|it| it.failed(sqlstate)));
                done.extend(operations.map(|it| it.done(StatementOutcome::Skipped, None, None)));
            }
            Some(Pending::Execute { operation, .. }) => {
                done.extend(operation.take().map(|it| it.failed(sqlstate)));
                self.skip_to_sync();
            }
            // The end of a transaction failed; ReadyForQuery follows at once.
            Some(Pending::Sync) | None => {}
            Some(_) => self.skip_to_sync(),
        }
        self.error_text(message, delivery)
    }

    /// The server answers nothing more before the next Sync.
    fn skip_to_sync(&mut self) {
        self.failed = true;
    }

    fn error_text(
        &mut self,
        message: &Message,
        delivery: &mut Delivery,
    ) -> Result<(), ProtocolError> {
        if !self.catalogue.masks_anything() {
            delivery.unchanged(message);
            return Ok(());
        }
        let sensitive = match self.pending.front() {
            Some(
                Pending::Query { sensitive, .. }
                | Pending::Bind { sensitive, .. }
                | Pending::Execute { sensitive, .. },
            ) => *sensitive,
            Some(Pending::Parse { allowed, .. }) => allowed.sensitive(),
            _ => true,
        };
        let of_masked_table = backend::error_fields(message)?
            .iter()
            .any(|(code, table)| *code == b't' && self.catalogue.is_masked_table(table));
        delivery.error(message, sensitive || of_masked_table)
    }

    /// ReadyForQuery: a simple query, or everything up to a Sync, is over.
    fn ready(&mut self, message: &Message, done: &mut Vec<Outcome>) -> Result<(), ProtocolError> {
        self.copy_data = false;
        if std::mem::take(&mut self.failed) {
            let sync = self
                .pending
                .iter()
                .position(|pending| matches!(pending, Pending::Sync))
                .ok_or_else(|| out_of_step(message))?;
            let over: Vec<Pending> = self.pending.drain(..=sync).collect();
            self.syncs -= 1;
            self.undo(over, done);
            return Ok(());
        }
        match self.pending.pop_front() {
            Some(Pending::Query { operations, .. }) => {
                done.extend(operations.into_iter().map(Operation::over));
                Ok(())
            }
            Some(Pending::Sync) => {
                self.syncs -= 1;
                Ok(())
            }
            Some(Pending::Denied {
                ends_with_ready: true,
                ..
            }) => Ok(()),
            _ => Err(out_of_step(message)),
        }
    }

    /// Takes back what the failed message and the skipped ones behind it would have changed.
    fn undo(&mut self, over: Vec<Pending>, done: &mut Vec<Outcome>) {
        let mut skipped = Vec::new();
        for pending in over.into_iter().rev() {
            match pending {
                Pending::Execute {
                    operation: Some(operation),
                    ..
                } => skipped.push(operation.done(StatementOutcome::Skipped, None, None)),
                Pending::Query { operations, .. } => skipped.extend(
                    operations
                        .into_iter()
                        .rev()
                        .map(|it| it.done(StatementOutcome::Skipped, None, None)),
                ),
                undone => self.restore(undone),
            }
        }
        done.extend(skipped.into_iter().rev());
    }
}

impl Conversation {
    /// Takes back what one message that did not run did to the names. What was known of a name is not
    /// restored when statements since then may have given it another meaning.
    fn restore(&mut self, undone: Pending) {
        let current = self.naming;
        match undone {
            Pending::Parse {
                name,
                allowed,
                replaced,
                naming,
            } => {
                let known = self.statements.get(&name);
                if known.is_some_and(|known| Arc::ptr_eq(known, &allowed)) {
                    match replaced.filter(|_| naming == current) {
                        Some(replaced) => self.statements.insert(name, replaced),
                        None => self.statements.remove(&name),
                    };
                }
            }
            Pending::Bind {
                portal,
                rows,
                replaced,
                naming,
                ..
            } => {
                let known = self.portals.get(&portal);
                if known.is_some_and(|known| Arc::ptr_eq(&known.rows, &rows)) {
                    match replaced {
                        Some(replaced) => {
                            self.portals
                                .insert(portal, replaced.known_since(naming == current));
                        }
                        None => drop(self.portals.remove(&portal)),
                    }
                }
            }
            Pending::Close {
                name,
                removed: Some(Removed::Statement(removed)),
                naming,
            } if naming == current => {
                self.statements.entry(name).or_insert(removed);
            }
            Pending::Close {
                name,
                removed: Some(Removed::Portal(removed)),
                naming,
            } => {
                let removed = removed.known_since(naming == current);
                self.portals.entry(name).or_insert(removed);
            }
            _ => {}
        }
    }
}

/// The error an agent sees in place of the one the server was made to give.
fn refusal(denial: &Denial) -> ErrorText<'_> {
    ErrorText {
        severity: Severity::Error,
        sqlstate: "42501",
        message: &denial.message,
        detail: Some(&denial.detail),
        hint: Some(&denial.hint),
    }
}

/// Of a message of this length.
fn payload(length: usize) -> u64 {
    u64::try_from(length.saturating_sub(HEADER)).unwrap_or(u64::MAX)
}

fn out_of_step(message: &Message) -> ProtocolError {
    ProtocolError::Unexpected { tag: message.tag() }
}

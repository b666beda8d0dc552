//! The target's side: every answer is matched with what it answers.

use std::sync::Arc;

use super::Conversation;
use super::names::{At, End};
use super::pending::{Operation, Pending, Results};
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
                // Portals end with their transaction, but for cursors WITH HOLD.
                if status == b'I' {
                    self.portals.retain(|portal| portal.hold);
                }
                delivery.unchanged(message);
            }
            b'T' => self.row_description(message, delivery)?,
            b'D' => self.data(message, delivery)?,
            b'd' => self.copied(message, delivery)?,
            b'c' => self.copied_all(message, delivery)?,
            b'H' => self.copy_out(message, delivery)?,
            b'W' => self.copy_both(message, delivery)?,
            b'C' => self.complete(message, delivery, done, StatementOutcome::Ok)?,
            b'I' => self.complete(message, delivery, done, StatementOutcome::Ok)?,
            b's' => self.complete(message, delivery, done, StatementOutcome::Suspended)?,
            b'V' => self.function_result(message, delivery, done)?,
            b'n' => self.no_data(message, delivery)?,
            b'1' | b'2' | b'3' => self.acknowledged(message, delivery)?,
            b't' => self.parameter_types(message, delivery)?,
            b'G' => self.copy_in(message, delivery)?,
            _ => return Err(out_of_step(message)),
        }
        Ok(())
    }

    /// Settings that change how a statement's text is read.
    pub fn parameter(&mut self, message: &Message) -> Result<(), ProtocolError> {
        let (name, value) = backend::parameter_status(message)?;
        match name {
            b"standard_conforming_strings" if value != b"on" => self.strings_are_uncertain(),
            b"client_encoding" if !super::super::parameters::encoding_is_safe(value) => {
                return Err(ProtocolError::Refused(
                    "client_encoding must be UTF8 or another ASCII-safe encoding",
                ));
            }
            // In UTF8 the gateway reads a text; SQL_ASCII says that nothing is converted.
            b"client_encoding" if !matches!(value, b"UTF8" | b"SQL_ASCII") => {
                self.names_are_converted();
            }
            b"server_encoding" if !matches!(value, b"UTF8" | b"SQL_ASCII") => {
                self.names_are_converted();
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
        let done = self.pending.pop_front();
        self.settle(done.as_ref().and_then(Pending::message), End::Done);
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
            Some(Pending::Describe { statement, .. }) => {
                if let Some(statement) = statement {
                    statement.describe_parameter_types(types);
                }
                delivery.unchanged(message);
                Ok(())
            }
            Some(Pending::OwnQuestion { .. }) => Ok(()),
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
                let plan = self.plan_of(message)?;
                self.columns_known(plan);
                delivery.unchanged(message);
            }
            Some(Pending::OwnDescribe { .. }) => {
                let plan = self.plan_of(message)?;
                self.columns_known(plan);
            }
            Some(Pending::OwnQuestion { .. }) => drop(self.pending.pop_front()),
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
                self.columns_known(Arc::default());
                delivery.unchanged(message);
            }
            Some(Pending::OwnDescribe { .. }) => self.columns_known(Arc::default()),
            Some(Pending::OwnQuestion { .. }) => drop(self.pending.pop_front()),
            _ => return Err(out_of_step(message)),
        }
        Ok(())
    }

    /// A portal's columns are told; those of a statement say nothing of the rows that come next.
    fn columns_known(&mut self, plan: Arc<Plan>) {
        let portal = match self.pending.pop_front() {
            Some(Pending::OwnDescribe { portal }) => portal,
            Some(Pending::Describe {
                portal: Some(portal),
                ..
            }) => portal,
            _ => return,
        };
        self.plan = plan;
        // All that went before is answered, so this is the portal that will run.
        let known = self.portals.settled(&portal).iter();
        if let Some(plan) = known.filter_map(|it| it.rows.get()).next() {
            self.plan = Arc::clone(plan);
        }
    }

    fn plan_of(&self, message: &Message) -> Result<Arc<Plan>, ProtocolError> {
        let description = RowDescription::parse(message)?;
        let masked = |field: &Field| self.catalogue.masked(field);
        Ok(Arc::new(Plan::new(&description, masked)))
    }

    /// Whether a message that is too long to be held may pass in pieces: nothing in it is changed.
    pub fn passes_unread(&self, tag: u8) -> bool {
        match tag {
            b'd' => !self.masks_copy(),
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
            let unexpected = ProtocolError::Unexpected { tag: piece.tag() };
            let operation = self.running().ok_or(unexpected)?;
            operation.rows += u64::from(!operation.replicates);
            operation.bytes += payload(piece.total());
        }
        delivery.piece(piece);
        Ok(())
    }

    /// A DataRow.
    fn data(&mut self, message: &Message, delivery: &mut Delivery) -> Result<(), ProtocolError> {
        let operation = self
            .pending
            .front_mut()
            .and_then(|pending| pending.operations().next())
            .ok_or_else(|| out_of_step(message))?;
        let before = delivery.len();
        operation.rows += 1;
        operation.masked += delivery.row(message, &self.plan)?;
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
        self.no_copy();
        match self.pending.front_mut() {
            // A text without statements has no operation, and is answered by `I`.
            Some(Pending::Query {
                message: number,
                ended,
                operations,
                results,
                ..
            }) => match (operations.make_contiguous(), results) {
                (_, Results::Value) => return Err(out_of_step(message)),
                ([last], Results::Uncounted) => last.tag = tag.or(last.tag.take()),
                _ => {
                    if let Some(operation) = operations.pop_front() {
                        done.push(operation.done(outcome, None, tag));
                        let upto = At {
                            message: *number,
                            part: *ended,
                        };
                        *ended += 1;
                        self.statements.settle(upto, End::Done);
                        self.portals.settle(upto, End::Done);
                    }
                }
            },
            Some(Pending::Execute {
                message: number,
                operation,
                portal,
                ..
            }) => {
                let number = *number;
                if outcome == StatementOutcome::Suspended {
                    for it in self.portals.settled(portal) {
                        it.rows.get_or_init(|| Arc::clone(&self.plan));
                    }
                }
                done.extend(operation.take().map(|it| it.done(outcome, None, tag)));
                self.pending.pop_front();
                self.settle(Some(number), End::Done);
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
        self.no_copy();
        // The server closes: what is behind the statement that it was at has not run.
        let fatal = [b"FATAL", b"PANIC"].iter().any(|severity| {
            fields.contains(&(b'V', &severity[..])) || fields.contains(&(b'S', &severity[..]))
        });
        let failed = self.pending.front().and_then(Pending::message);
        self.settle(failed, End::Failed);
        if self.pending.front().is_some_and(Pending::drops_unnamed) && is_of_text(&sqlstate) {
            self.statements.forget(b"");
        }
        match self.pending.front_mut() {
            Some(Pending::Denied { denial, refused }) if ordinary => {
                let (denial, refused) = (denial.clone(), *refused);
                if !refused.ends_with_ready() {
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
            Some(Pending::OwnQuestion {
                cursor: Some(cursor),
            }) if sqlstate == "34000" => {
                let text = format!("cursor \"{cursor}\" does not exist");
                self.skip_to_sync();
                delivery.own(|out| encode::error_response(out, &no_such_cursor(&text)));
                return Ok(());
            }
            // The end of a transaction failed; ReadyForQuery follows at once.
            Some(Pending::Sync) | None => {}
            Some(_) => self.skip_to_sync(),
        }
        if fatal {
            let unrun = self.pending.iter_mut().skip(1).flat_map(Pending::take);
            done.extend(unrun.map(|it| it.done(StatementOutcome::Skipped, None, None)));
        }
        self.error_text(message, delivery)
    }

    /// The server answers nothing more before the next Sync.
    fn skip_to_sync(&mut self) {
        self.failed = true;
    }

    /// An ErrorResponse or a NoticeResponse: its text may quote values that are masked.
    pub fn error_text(
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
                | Pending::Parse { sensitive, .. }
                | Pending::Bind { sensitive, .. }
                | Pending::Execute { sensitive, .. },
            ) => *sensitive,
            _ => true,
        };
        let of_masked_table = backend::error_fields(message)?
            .iter()
            .any(|(code, table)| *code == b't' && self.catalogue.is_masked_table(table));
        delivery.error(message, sensitive || of_masked_table)
    }

    /// ReadyForQuery: a simple query, or everything up to a Sync, is over.
    fn ready(&mut self, message: &Message, done: &mut Vec<Outcome>) -> Result<(), ProtocolError> {
        self.no_copy();
        if std::mem::take(&mut self.failed) {
            let sync = self
                .pending
                .iter()
                .position(|pending| matches!(pending, Pending::Sync))
                .ok_or_else(|| out_of_step(message))?;
            let over: Vec<Pending> = self.pending.drain(..=sync).collect();
            self.syncs -= 1;
            let last = over.iter().rev().find_map(Pending::message);
            self.settle(last, End::Skipped);
            skipped(over, done);
            return Ok(());
        }
        match self.pending.pop_front() {
            Some(Pending::Query {
                message: number,
                operations,
                ..
            }) => {
                // After an error nothing is left of its changes.
                self.settle(Some(number), End::Done);
                done.extend(operations.into_iter().map(Operation::over));
                Ok(())
            }
            Some(Pending::Sync) => {
                self.syncs -= 1;
                Ok(())
            }
            Some(Pending::Denied { refused, .. }) if refused.ends_with_ready() => Ok(()),
            _ => Err(out_of_step(message)),
        }
    }

    fn settle(&mut self, message: Option<u64>, end: End) {
        if let Some(message) = message {
            self.statements.settle(At::end_of(message), end);
            self.portals.settle(At::end_of(message), end);
        }
    }
}

/// The statements among what the server has skipped.
fn skipped(over: Vec<Pending>, done: &mut Vec<Outcome>) {
    let skip = |it: Operation| it.done(StatementOutcome::Skipped, None, None);
    for pending in over {
        match pending {
            Pending::Execute { operation, .. } => done.extend(operation.map(skip)),
            Pending::Query { operations, .. } => done.extend(operations.into_iter().map(skip)),
            _ => {}
        }
    }
}

/// Whether the server has surely looked at a text, and so dropped what that was to replace: its syntax or names
/// are wrong, or it came in a failed transaction. A text that is too long, or that the server's encoding has no
/// letters for, is refused as it is received, and replaces nothing. To keep a name that is gone grants nothing;
/// one that is forgotten would run as a stranger.
fn is_of_text(sqlstate: &str) -> bool {
    sqlstate.starts_with("42") || sqlstate == "25P02"
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

/// What SQL says of a cursor that is not there; the protocol speaks of portals.
fn no_such_cursor(message: &str) -> ErrorText<'_> {
    ErrorText {
        severity: Severity::Error,
        sqlstate: "34000",
        message,
        detail: None,
        hint: None,
    }
}

fn out_of_step(message: &Message) -> ProtocolError {
    ProtocolError::Unexpected { tag: message.tag() }
}

//! Agent to target: every message is read, decided, put on record, and sent.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Incoming, RelayError, Session};
use crate::audit::event::StatementProtocol;
use crate::policy::Denial;
use crate::protocol::postgres::frontend::{Bind, Call, Frontend};
use crate::protocol::postgres::{Frame, HEADER, Message, Piece, ProtocolError, encode};
use crate::session::decide::{Allowed, Denied, Judge, Permit, Ruling, Shown};
use crate::session::driver::postgres::bound::{self, Bound};
use crate::session::driver::postgres::catalogue::{Catalogue, Catalogues};
use crate::session::forward::forward;
use crate::session::record::Outcome;

/// Requests are forwarded at the latest when this many bytes are gathered.
const BATCH: usize = 64 << 10;

/// Agent to target, until the agent says goodbye or closes.
pub async fn requests<R, W>(
    session: &Session,
    judge: &Judge,
    catalogues: &Catalogues,
    agent: &mut R,
    target: &mut W,
    mut said: Incoming,
) -> Result<(), RelayError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut requests = Requests {
        session,
        judge,
        catalogues,
        target,
        batch: Permit::default(),
        schema_moves: false,
    };
    loop {
        // COPY data alone needs no look at the whole of it.
        while let Some(frame) = said.next(|tag| tag == b'd').map_err(RelayError::Agent)? {
            let next = match &frame {
                Frame::Whole(message) => requests.take(message).await?,
                Frame::Piece(piece) => requests.copy_piece(piece).await?,
            };
            if next == Next::End {
                requests.send().await?;
                let _ = requests.target.shutdown().await;
                return Ok(());
            }
        }
        requests.send().await?;
        let read = said.read(agent).await.map_err(RelayError::AgentIo)?;
        if read == 0 {
            let _ = requests.target.shutdown().await;
            return match said.is_complete() {
                true => Ok(()),
                false => Err(RelayError::Agent(ProtocolError::Refused(
                    "the connection ended in the middle of a message",
                ))),
            };
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    More,
    End,
}

struct Requests<'a, W> {
    session: &'a Session,
    judge: &'a Judge,
    catalogues: &'a Catalogues,
    target: &'a mut W,
    batch: Permit,
    /// Once a session has changed the schema it is not known when its change takes effect: from then on
    /// the catalogue is read anew for each of its statements.
    schema_moves: bool,
}

impl<W: AsyncWrite + Unpin> Requests<'_, W> {
    async fn take(&mut self, message: &Message) -> Result<Next, RelayError> {
        self.room().await?;
        let parsed = Frontend::parse(message).map_err(RelayError::Agent)?;
        let conversation = || self.session.conversation();
        match parsed {
            Frontend::Query { text } => self.query(message, text).await?,
            Frontend::Parse { name, text, types } => self.parse(message, name, text, types).await?,
            Frontend::Bind(bind) => self.bind(message, &bind)?,
            Frontend::Execute { portal, .. } => self.execute(message, portal).await?,
            Frontend::Describe(object) => {
                conversation().describe(object);
                self.control(message, Shown::AsSent)?;
            }
            Frontend::Close(object) => {
                conversation().close(object);
                self.control(message, Shown::AsSent)?;
            }
            Frontend::Sync => {
                conversation().sync().map_err(RelayError::Agent)?;
                self.control(message, Shown::AsSent)?;
            }
            Frontend::Flush => self.control(message, Shown::AsSent)?,
            Frontend::CopyData => self.copy_data(message)?,
            Frontend::CopyDone | Frontend::CopyFail => {
                conversation().copy_end();
                self.control(message, Shown::AsSent)?;
            }
            Frontend::FunctionCall(call) => self.call(message, &call).await?,
            Frontend::Terminate => {
                self.control(message, Shown::AsSent)?;
                return Ok(Next::End);
            }
            Frontend::Password => {
                return Err(RelayError::Agent(ProtocolError::Unexpected { tag: b'p' }));
            }
        }
        if self.session.conversation().is_overfull() {
            return Err(RelayError::Agent(ProtocolError::Refused(
                "too many prepared statements or portals are open at once; close those no longer used",
            )));
        }
        if self.batch.len() >= BATCH {
            self.send().await?;
        }
        Ok(Next::More)
    }

    /// Waits while too much is in flight.
    async fn room(&mut self) -> Result<(), RelayError> {
        while self.session.conversation().is_full() {
            self.send().await?;
            let answered = self.session.answered.notified();
            if self.session.conversation().is_full() {
                answered.await;
            }
        }
        Ok(())
    }

    async fn query(&mut self, message: &Message, text: &[u8]) -> Result<(), RelayError> {
        match self.rule(text).await? {
            Ruling::Allowed(allowed) => {
                let (first, skipped) = self.session.conversation().query(&allowed);
                self.session
                    .recorder
                    .intents(&allowed, first, StatementProtocol::Simple, None)?;
                self.results(&skipped)?;
                let shown = allowed.evidence().map(|text| {
                    let mut out = BytesMut::new();
                    encode::query(&mut out, text);
                    out
                });
                self.batch
                    .and(Permit::allowed(&allowed, message, shown_as(shown.as_ref())));
            }
            Ruling::Denied(denied) => {
                let mut shown = BytesMut::new();
                encode::query(&mut shown, &denied.evidence);
                self.deny(&denied, true)?;
                self.batch.and(Permit::refused_query(&shown));
            }
        }
        Ok(())
    }

    async fn parse(
        &mut self,
        message: &Message,
        name: &[u8],
        text: &[u8],
        types: Vec<u32>,
    ) -> Result<(), RelayError> {
        match self.rule(text).await? {
            Ruling::Allowed(allowed) => {
                allowed.give_parameter_types(types);
                let shown = allowed.evidence().map(|text| {
                    let mut out = BytesMut::new();
                    encode::parse(&mut out, name, text);
                    out
                });
                self.session
                    .conversation()
                    .parse(name, Arc::clone(&allowed));
                self.batch
                    .and(Permit::allowed(&allowed, message, shown_as(shown.as_ref())));
            }
            Ruling::Denied(denied) => {
                let mut shown = BytesMut::new();
                encode::parse(&mut shown, name, &denied.evidence);
                self.deny(&denied, false)?;
                self.batch.and(Permit::refused_extended(&shown));
            }
        }
        Ok(())
    }

    fn bind(&mut self, message: &Message, bind: &Bind<'_>) -> Result<(), RelayError> {
        let keeping = self.session.conversation().keeping(bind.statement);
        let parameters = &bind.parameters;
        let for_policies = self.judge.policies.looks_at_parameters();
        let bound = Bound::read(parameters, &keeping, for_policies);
        let mut conversation = self.session.conversation();
        conversation.bind(bind.portal, bind.statement, bound);
        drop(conversation);
        let secrets = bound::secrets(parameters, &keeping);
        if !secrets.contains(&true) {
            return self.control(message, Shown::AsSent);
        }
        let shown = without_values(message, parameters.start, &secrets);
        self.control(message, Shown::Instead(&shown))
    }

    async fn execute(&mut self, message: &Message, portal: &[u8]) -> Result<(), RelayError> {
        let catalogue = self.catalogue().await?;
        let execution = self.session.conversation().execution(portal);
        if let Some(bound) = &execution.bound
            && let Err(denied) = self.rule_parameters(&execution.allowed, bound, &catalogue)
        {
            self.deny(&denied, false)?;
            let shown = BytesMut::from(&message.bytes()[..]);
            self.batch.and(Permit::refused_extended(&shown));
            return Ok(());
        }
        if catalogue.masks_anything() {
            self.session.conversation().own_describe(&execution);
            self.batch.and(Permit::own_describe(portal));
        }
        let (first, skipped) = self.session.conversation().execute(&execution);
        self.session.recorder.intents(
            &execution.allowed,
            first,
            StatementProtocol::Extended,
            execution.bound.as_ref().map(|bound| bound.bindings()),
        )?;
        self.results(&skipped)?;
        self.control(message, Shown::AsSent)
    }

    /// A statement was decided when it was prepared, without its parameters: where a policy goes by them,
    /// it is decided again with each set of them.
    fn rule_parameters(
        &self,
        allowed: &Allowed,
        bound: &Bound,
        catalogue: &Catalogue,
    ) -> Result<(), Box<Denied>> {
        if bound.is_empty() || !self.judge.policies.looks_at_parameters() {
            return Ok(());
        }
        let derived = catalogue.derived();
        self.judge.rule_parameters(allowed, derived, bound.facts())
    }

    fn results(&self, outcomes: &[Outcome]) -> Result<(), RelayError> {
        for outcome in outcomes {
            self.session.recorder.result(outcome)?;
        }
        Ok(())
    }

    fn copy_data(&mut self, message: &Message) -> Result<(), RelayError> {
        self.session.conversation().copy_data();
        if !self.session.conversation().catalogue().masks_anything() {
            return self.control(message, Shown::AsSent);
        }
        let mut shown = BytesMut::new();
        let note = format!("[{} bytes withheld]", message.body().len());
        encode::withheld(&mut shown, b'd', &note);
        self.control(message, Shown::Instead(&shown))
    }

    /// A part of a CopyData that is too long to be held.
    async fn copy_piece(&mut self, piece: &Piece) -> Result<Next, RelayError> {
        if piece.is_first() {
            self.room().await?;
            self.session.conversation().copy_data();
        }
        let withheld = match self.session.conversation().catalogue().masks_anything() {
            true => Some(withheld_copy(piece)),
            false => None,
        };
        let permit = Permit::piece(piece, shown_as(withheld.as_ref()));
        let unexpected = ProtocolError::Unexpected { tag: piece.tag() };
        self.batch.and(permit.ok_or(RelayError::Agent(unexpected))?);
        if self.batch.len() >= BATCH {
            self.send().await?;
        }
        Ok(Next::More)
    }

    /// A function call is decided as the SELECT that it amounts to.
    async fn call(&mut self, message: &Message, call: &Call<'_>) -> Result<(), RelayError> {
        let catalogue = self.catalogue().await?;
        let function = match catalogue.masks_anything() {
            true => Err("the value it returns cannot be masked"),
            false => self
                .catalogues
                .function(call.function)
                .await?
                .ok_or("the target has no function of that number"),
        };
        let function = match function {
            Ok(function) => function,
            Err(why) => return self.refuse_call(message, &undecided_call(why)),
        };
        let arguments = &call.arguments;
        let keeping = self
            .session
            .conversation()
            .keeping_arguments(function.arguments.into());
        let for_policies = self.judge.policies.looks_at_parameters();
        let bound = Bound::read(arguments, &keeping, for_policies);
        let numbers = 1..=arguments.values.len();
        let list: Vec<String> = numbers.map(|n| format!("${n}")).collect();
        let text = format!("SELECT {}({})", function.name, list.join(", "));
        let allowed = match self.rule(text.as_bytes()).await? {
            Ruling::Allowed(allowed) => allowed,
            Ruling::Denied(denied) => return self.refuse_call(message, &denied),
        };
        if let Err(denied) = self.rule_parameters(&allowed, &bound, &catalogue) {
            return self.refuse_call(message, &denied);
        }
        let (first, skipped) = self.session.conversation().call(&allowed);
        let bindings = Some(bound.bindings());
        self.session
            .recorder
            .intents(&allowed, first, StatementProtocol::Call, bindings)?;
        self.results(&skipped)?;
        let secrets = bound::secrets(arguments, &keeping);
        let shown = without_values(message, arguments.start, &secrets);
        self.batch
            .and(Permit::allowed(&allowed, message, Shown::Instead(&shown)));
        Ok(())
    }

    fn refuse_call(&mut self, message: &Message, denied: &Denied) -> Result<(), RelayError> {
        self.deny(denied, true)?;
        let mut shown = BytesMut::new();
        let note = format!("[{} bytes withheld]", message.body().len());
        encode::withheld(&mut shown, b'F', &note);
        self.batch.and(Permit::refused_call(&shown));
        Ok(())
    }

    /// The catalogue as it is now: a prepared statement is read anew by the server when its tables
    /// change, so an Execute needs it as much as a new text does.
    async fn catalogue(&self) -> Result<Arc<Catalogue>, RelayError> {
        let catalogue = match self.schema_moves {
            true => self.catalogues.renewed().await?,
            false => self.catalogues.current().await?,
        };
        self.session
            .conversation()
            .update_catalogue(Arc::clone(&catalogue));
        Ok(catalogue)
    }

    async fn rule(&mut self, text: &[u8]) -> Result<Ruling, RelayError> {
        let strings = self.session.conversation().strings();
        let analysed = match self.judge.read(text, strings).await {
            Ok(analysed) => analysed,
            Err(denied) => return Ok(Ruling::Denied(denied)),
        };
        let mut catalogue = self.catalogue().await?;
        if !analysed.tables().all(|table| catalogue.knows(table)) {
            catalogue = self.catalogues.renewed().await?;
            self.session
                .conversation()
                .update_catalogue(Arc::clone(&catalogue));
        }
        let ruling = self.judge.rule(text, analysed, catalogue.derived());
        if let Ruling::Allowed(allowed) = &ruling {
            self.schema_moves |= changes_schema(allowed);
            // SET standard_conforming_strings is unknown too: what follows it is read before the server
            // reports the change.
            if allowed.is_unknown() {
                self.session.conversation().strings_are_uncertain();
            }
        }
        Ok(ruling)
    }

    fn deny(&self, denied: &Denied, ends_with_ready: bool) -> Result<(), RelayError> {
        let stmt = self
            .session
            .conversation()
            .denied(denied.denial.clone(), ends_with_ready);
        self.session.recorder.denied(stmt, denied)?;
        Ok(())
    }

    fn control(&mut self, message: &Message, shown: Shown<'_>) -> Result<(), RelayError> {
        let permit = Permit::control(message, shown).ok_or(RelayError::Agent(
            ProtocolError::Unexpected { tag: message.tag() },
        ))?;
        self.batch.and(permit);
        Ok(())
    }

    /// Puts what is gathered on record and sends it.
    async fn send(&mut self) -> Result<(), RelayError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let recorded = self
            .session
            .recorder
            .request(std::mem::take(&mut self.batch))?;
        forward(self.target, recorded)
            .await
            .map_err(RelayError::TargetIo)
    }
}

/// One remark for all of the message.
fn withheld_copy(piece: &Piece) -> BytesMut {
    let mut shown = BytesMut::new();
    if piece.is_first() {
        let note = format!("[{} bytes withheld]", piece.total() - HEADER);
        encode::withheld(&mut shown, b'd', &note);
    }
    shown
}

fn shown_as(instead: Option<&BytesMut>) -> Shown<'_> {
    instead.map_or(Shown::AsSent, Shown::Instead)
}

/// Statements that leave the schema as it is. After any other (DDL, arbitrary code) the catalogue is read
/// for every statement of the session, which takes several times as long as the statement itself.
const LEAVES_SCHEMA: [&str; 22] = [
    "sql:select",
    "sql:insert",
    "sql:update",
    "sql:delete",
    "sql:merge",
    "sql:truncate",
    "sql:copy-to",
    "sql:copy-from",
    "sql:set",
    "sql:show",
    "sql:transaction",
    "sql:explain",
    // Neither statements that can be prepared nor cursors' change it.
    "sql:prepare",
    "sql:execute",
    "sql:deallocate",
    "sql:declare",
    "sql:fetch",
    "sql:close",
    "sql:listen",
    "sql:unlisten",
    "sql:notify",
    "sql:lock",
];

/// Whether it may change which columns are masked.
fn changes_schema(allowed: &Allowed) -> bool {
    let mut verbs = allowed
        .statements()
        .iter()
        .flat_map(|statement| &statement.verbs);
    verbs.any(|verb| !LEAVES_SCHEMA.contains(&verb.as_str()))
}

/// A Bind or FunctionCall whose secret values are blanked, length by length. `start` is where they begin in
/// its body.
fn without_values(message: &Message, start: usize, secrets: &[bool]) -> BytesMut {
    let mut shown = BytesMut::from(&message.bytes()[..]);
    let mut at = HEADER + start;
    for secret in secrets {
        let Some(length) = shown.get(at..at + 4) else {
            break;
        };
        let length = <[u8; 4]>::try_from(length).map_or(-1, i32::from_be_bytes);
        at += 4;
        let length = usize::try_from(length).unwrap_or(0);
        if *secret && let Some(value) = shown.get_mut(at..at + length) {
            value.fill(b'*');
        }
        at += length;
    }
    shown
}

fn undecided_call(why: &str) -> Denied {
    Denied {
        denial: Denial {
            rule: "sql:function-call".to_owned(),
            message: "this function call outside of SQL is not allowed".to_owned(),
            detail: format!("Rule sql:function-call: {why}."),
            hint: "Call the function in a SELECT instead.".to_owned(),
        },
        statement: "FunctionCall".to_owned(),
        evidence: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::postgres::{Sender, decode};

    #[test]
    fn cursors_and_prepared_statements_leave_the_schema_as_it_is() {
        for (verb, changes) in [
            ("sql:declare", false),
            ("sql:fetch", false),
            ("sql:execute", false),
            ("sql:deallocate", false),
            ("sql:ddl", true),
            ("sql:do", true),
            ("sql:call", true),
            ("sql:discard", true),
            ("sql:unknown", true),
            ("sql:two-phase", true),
        ] {
            assert_eq!(changes_schema(&Allowed::of_verb(verb)), changes, "{verb}");
        }
    }

    #[test]
    fn secret_values_are_blanked_length_by_length() {
        let mut bytes = BytesMut::new();
        bytes.extend_from_slice(b"B\0\0\0\x29\0\0\0\0\0\x02\0\0\0\x10");
        bytes.extend_from_slice(b"4111111111111111\0\0\0\x05hello\0\0");
        let message = decode(&mut bytes, Sender::Frontend, 1 << 20)
            .expect("in order")
            .expect("whole");
        let Ok(Frontend::Bind(bind)) = Frontend::parse(&message) else {
            panic!("not a Bind");
        };
        let start = bind.parameters.start;
        let shown = without_values(&message, start, &[true, false]);
        assert!(shown.ends_with(b"****************\0\0\0\x05hello\0\0"));
        let shown = without_values(&message, start, &[true, true]);
        assert!(shown.ends_with(b"*****\0\0"));
    }
}

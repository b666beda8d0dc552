//! Agent to target: every message is read, decided, put on record, and sent.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{READ, RelayError, Session};
use crate::audit::event::StatementProtocol;
use crate::policy::Denial;
use crate::protocol::postgres::frontend::{Bind, Call, Frontend, Object};
use crate::protocol::postgres::{HEADER, Message, ProtocolError, Sender, decode, encode};
use crate::session::decide::{
    Allowed, Analysed, Denied, Judge, Meaning, Permit, Ruling, Runs, Shown, portal_shown,
};
use crate::session::driver::postgres::catalogue::{Catalogue, Catalogues};
use crate::session::driver::postgres::conversation::Execution;
use crate::session::forward::forward;
use crate::session::record::Outcome;
use crate::sql::{self, Naming};

/// Requests are forwarded at the latest when this many bytes are gathered.
const BATCH: usize = 64 << 10;

/// Agent to target, until the agent says goodbye or closes.
pub async fn requests<R, W>(
    session: &Session,
    judge: &Judge,
    catalogues: &Catalogues,
    agent: &mut R,
    target: &mut W,
    mut buffer: BytesMut,
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
        while let Some(message) =
            decode(&mut buffer, Sender::Frontend).map_err(RelayError::Agent)?
        {
            if requests.take(&message).await? == Next::End {
                requests.send().await?;
                let _ = requests.target.shutdown().await;
                return Ok(());
            }
        }
        requests.send().await?;
        buffer.reserve(READ);
        let read = agent
            .read_buf(&mut buffer)
            .await
            .map_err(RelayError::AgentIo)?;
        if read == 0 {
            let _ = requests.target.shutdown().await;
            return match buffer.is_empty() {
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
            Frontend::Parse { name, text } => self.parse(message, name, text).await?,
            Frontend::Bind(bind) => self.bind(message, &bind)?,
            Frontend::Execute { portal, .. } => self.execute(message, portal).await?,
            Frontend::Describe(_) => {
                conversation().describe();
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
            Frontend::FunctionCall(call) => self.call(message, call).await?,
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
        let (ruling, stranger) = self.rule_query(text, StatementProtocol::Simple).await?;
        match ruling {
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
                if let Some(stranger) = stranger {
                    return self.deny_by_name(&denied, &shown, &stranger);
                }
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
    ) -> Result<(), RelayError> {
        let (ruling, statements) = self.rule_parse(text).await?;
        match ruling {
            Ruling::Allowed(allowed) => {
                let shown = allowed.evidence().map(|text| {
                    let mut out = BytesMut::new();
                    encode::parse(&mut out, name, text);
                    out
                });
                self.session
                    .conversation()
                    .parse(name, &statements, allowed.sensitive());
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
        let sensitive = self.session.conversation().bind(
            bind.portal,
            bind.statement,
            bind.parameters,
            bind.binary_results,
        );
        if bind.parameters == 0 {
            return self.control(message, Shown::AsSent);
        }
        let shown = match sensitive {
            true => without_values(message, bind.values.start, bind.parameters, |_| true),
            false => without_values(message, bind.values.start, bind.parameters, holds_card),
        };
        self.control(message, Shown::Instead(&shown))
    }

    async fn execute(&mut self, message: &Message, portal: &[u8]) -> Result<(), RelayError> {
        let catalogue = self.catalogue().await?;
        let masks = catalogue.masks_anything();
        let execution = self.session.conversation().execution(portal);
        let allowed = match self.rule_execution(&execution, &catalogue).await? {
            Ruling::Allowed(allowed) => allowed,
            Ruling::Denied(denied) => return self.refuse_execution(message, &execution, &denied),
        };
        if masks && let Some(column) = self.describe(portal, &execution).await? {
            let denied = binary_masked(&allowed, &column);
            self.deny(&denied, false)?;
            let shown = BytesMut::from(&message.bytes()[..]);
            self.batch.and(Permit::refused_extended(&shown));
            return Ok(());
        }
        let (first, skipped) = self.session.conversation().execute(&execution, &allowed);
        self.session.recorder.intents(
            &allowed,
            first,
            StatementProtocol::Extended,
            execution.parameters,
        )?;
        self.results(&skipped)?;
        self.control(message, Shown::AsSent)
    }

    /// May what this portal stands for run? It was decided when it was prepared; since then policies, the
    /// schema, or what it runs by name may have changed.
    async fn rule_execution(
        &mut self,
        execution: &Execution,
        catalogue: &Arc<Catalogue>,
    ) -> Result<Ruling, RelayError> {
        let catalogue = match knows_all(catalogue, execution) {
            true => Arc::clone(catalogue),
            false => self.renewed().await?,
        };
        let mut allowed = Vec::with_capacity(1);
        for (meaning, runs) in &execution.alternatives {
            match self.judge.rule_again(meaning, runs, catalogue.derived()) {
                Ruling::Allowed(one) => allowed.push(one),
                denied @ Ruling::Denied(_) => return Ok(denied),
            }
        }
        if execution.unknown {
            match self.judge.rule_unknown(portal_shown(execution.portal())) {
                Ruling::Allowed(one) => allowed.push(one),
                denied @ Ruling::Denied(_) => return Ok(denied),
            }
        }
        Ok(Ruling::Allowed(match allowed.is_empty() {
            true => Arc::new(Allowed::no_such_portal(execution.portal())),
            false => Allowed::one_of(&allowed),
        }))
    }

    /// A portal that may not exist is asked for first: if it does not, the server's own error says so.
    fn refuse_execution(
        &mut self,
        message: &Message,
        execution: &Execution,
        denied: &Denied,
    ) -> Result<(), RelayError> {
        if execution.alternatives.is_empty() {
            self.session.conversation().own_question();
            self.batch
                .and(Permit::own_describe(execution.portal(), false));
        }
        self.deny(denied, false)?;
        let shown = BytesMut::from(&message.bytes()[..]);
        self.batch.and(Permit::refused_extended(&shown));
        Ok(())
    }

    fn results(&self, outcomes: &[Outcome]) -> Result<(), RelayError> {
        for outcome in outcomes {
            self.session.recorder.result(outcome)?;
        }
        Ok(())
    }

    /// Asks for the portal's columns ahead of its rows. Where rows may come in binary the answer is
    /// waited for, because a masked column in binary must not even be executed; its name comes back.
    async fn describe(
        &mut self,
        portal: &[u8],
        execution: &Execution,
    ) -> Result<Option<String>, RelayError> {
        let wait = execution.binary;
        let answer = self.session.conversation().own_describe(execution, wait);
        self.batch.and(Permit::own_describe(portal, wait));
        let Some(answer) = answer else {
            return Ok(None);
        };
        self.send().await?;
        // Dropped unanswered: the server is skipping to the next Sync and will skip the Execute too.
        Ok(answer.await.unwrap_or_default())
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

    /// A function call is decided as the SELECT that it amounts to.
    async fn call(&mut self, message: &Message, call: Call) -> Result<(), RelayError> {
        match self.rule_call(call).await? {
            Ruling::Allowed(allowed) => {
                let (first, skipped) = self.session.conversation().call(&allowed);
                self.session.recorder.intents(
                    &allowed,
                    first,
                    StatementProtocol::Call,
                    Some(call.arguments),
                )?;
                self.results(&skipped)?;
                let shown = without_values(message, call.values, call.arguments, holds_card);
                self.batch
                    .and(Permit::allowed(&allowed, message, Shown::Instead(&shown)));
            }
            Ruling::Denied(denied) => {
                self.deny(&denied, true)?;
                let mut shown = BytesMut::new();
                let note = format!("[{} bytes withheld]", message.body().len());
                encode::withheld(&mut shown, b'F', &note);
                self.batch.and(Permit::refused_call(&shown));
            }
        }
        Ok(())
    }

    async fn rule_call(&mut self, call: Call) -> Result<Ruling, RelayError> {
        if self.catalogue().await?.masks_anything() {
            return Ok(Ruling::Denied(Box::new(undecided_call(
                "the value it returns cannot be masked",
            ))));
        }
        let Some(name) = self.catalogues.function(call.function).await? else {
            return Ok(Ruling::Denied(Box::new(undecided_call(
                "the target has no function of that number",
            ))));
        };
        let arguments: Vec<String> = (1..=call.arguments).map(|n| format!("${n}")).collect();
        let text = format!("SELECT {name}({})", arguments.join(", "));
        let (ruling, _) = self
            .rule_query(text.as_bytes(), StatementProtocol::Call)
            .await?;
        Ok(ruling)
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

    /// The catalogue, asked anew.
    async fn renewed(&self) -> Result<Arc<Catalogue>, RelayError> {
        let catalogue = self.catalogues.renewed().await?;
        self.session
            .conversation()
            .update_catalogue(Arc::clone(&catalogue));
        Ok(catalogue)
    }

    /// Decides the text of a simple query. What an EXECUTE or FETCH in it runs is decided with it.
    /// Where all that is against it is a name that code may have made, or nobody, that comes back.
    async fn rule_query(
        &mut self,
        text: &[u8],
        protocol: StatementProtocol,
    ) -> Result<(Ruling, Option<Naming>), RelayError> {
        let (analysed, catalogue) = match self.read(text).await? {
            Ok(read) => read,
            Err(denied) => return Ok((Ruling::Denied(denied), None)),
        };
        let runs = {
            let mut conversation = self.session.conversation();
            match protocol {
                StatementProtocol::Call => conversation.follow_call(analysed.statements()),
                _ => conversation.follow_query(analysed.statements()),
            }
        };
        let naming = match (analysed.statements(), &runs[..]) {
            ([only], [runs]) if runs.statements.is_empty() => Some(only.naming().clone()),
            _ => None,
        };
        let ruling = self
            .judge
            .rule_running(text, analysed, &runs, catalogue.derived());
        let stranger = match &ruling {
            Ruling::Allowed(allowed) => {
                self.note_effects(allowed);
                None
            }
            Ruling::Denied(denied) => {
                let mut conversation = self.session.conversation();
                conversation.retract();
                naming.filter(|_| denied.is_of_unknown_name() && conversation.is_idle())
            }
        };
        Ok((ruling, stranger))
    }

    /// A name that may not exist is asked for first: if it does not, the server's own error says so.
    fn deny_by_name(
        &mut self,
        denied: &Denied,
        shown: &BytesMut,
        stranger: &Naming,
    ) -> Result<(), RelayError> {
        let (object, cursor) = match stranger {
            Naming::Fetch(name) => (Object::Portal(name.as_bytes()), Some(name.clone())),
            Naming::Execute(name) => (Object::Statement(name.as_bytes()), None),
            _ => {
                self.deny(denied, true)?;
                self.batch.and(Permit::refused_query(shown));
                return Ok(());
            }
        };
        let mut conversation = self.session.conversation();
        let stmt = conversation.denied_by_name(denied.denial.clone(), cursor);
        drop(conversation);
        self.session.recorder.denied(stmt, denied)?;
        self.batch.and(Permit::refused_by_name(shown, object));
        Ok(())
    }

    /// Decides a text that is to be prepared, and returns its statements.
    async fn rule_parse(&mut self, text: &[u8]) -> Result<(Ruling, Vec<Arc<Meaning>>), RelayError> {
        let (analysed, catalogue) = match self.read(text).await? {
            Ok(read) => read,
            Err(denied) => return Ok((Ruling::Denied(denied), Vec::new())),
        };
        let statements = analysed.statements().to_vec();
        let runs: Vec<Runs> = {
            let conversation = self.session.conversation();
            let follow = |meaning: &Arc<Meaning>| conversation.follow_parse(meaning);
            statements.iter().map(follow).collect()
        };
        let ruling = self
            .judge
            .rule_running(text, analysed, &runs, catalogue.derived());
        if let Ruling::Allowed(allowed) = &ruling {
            self.note_effects(allowed);
        }
        Ok((ruling, statements))
    }

    /// What the parsers make of a text, and a catalogue that knows its tables.
    async fn read(
        &mut self,
        text: &[u8],
    ) -> Result<Result<(Analysed, Arc<Catalogue>), Box<Denied>>, RelayError> {
        let strings = self.session.conversation().strings();
        let analysed = match self.judge.read(text, strings).await {
            Ok(analysed) => analysed,
            Err(denied) => return Ok(Err(denied)),
        };
        let mut catalogue = self.catalogue().await?;
        if !analysed.tables().all(|table| catalogue.knows(table)) {
            catalogue = self.renewed().await?;
        }
        Ok(Ok((analysed, catalogue)))
    }

    fn note_effects(&mut self, allowed: &Allowed) {
        self.schema_moves |= changes_schema(allowed);
        // SET standard_conforming_strings is unknown too: what follows it is read before the server
        // reports the change.
        if allowed.is_unknown() {
            self.session.conversation().strings_are_uncertain();
        }
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

fn knows_all(catalogue: &Catalogue, execution: &Execution) -> bool {
    let mut run = execution
        .alternatives
        .iter()
        .flat_map(|(meaning, runs)| runs.statements.iter().chain([meaning]));
    run.all(|meaning| meaning.tables().all(|table| catalogue.knows(table)))
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
fn without_values(
    message: &Message,
    start: usize,
    count: usize,
    is_secret: impl Fn(&[u8]) -> bool,
) -> BytesMut {
    let mut shown = BytesMut::from(&message.bytes()[..]);
    let mut at = HEADER + start;
    for _ in 0..count {
        let Some(length) = shown.get(at..at + 4) else {
            break;
        };
        let length = <[u8; 4]>::try_from(length).map_or(-1, i32::from_be_bytes);
        at += 4;
        let length = usize::try_from(length).unwrap_or(0);
        if let Some(value) = shown.get_mut(at..at + length)
            && is_secret(value)
        {
            value.fill(b'*');
        }
        at += length;
    }
    shown
}

/// Card numbers stand in no evidence, as literals and as parameters alike.
fn holds_card(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| sql::without_cards(text) != text)
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

fn binary_masked(allowed: &Allowed, column: &str) -> Denied {
    let statement = allowed
        .statements()
        .first()
        .map(|statement| statement.text.clone())
        .unwrap_or_default();
    Denied {
        denial: Denial {
            rule: "mask:binary".to_owned(),
            message: format!("column {column} is masked and was asked for in binary format"),
            detail: "Rule mask:binary: masked columns can be returned in text format only."
                .to_owned(),
            hint: format!(
                "Leave {column} out of the select list, or ask for text results (asyncpg: set a text codec; psycopg: binary=False; JDBC: binaryTransfer=false)."
            ),
        },
        evidence: statement.clone(),
        statement,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_card_number_among_parameters_is_not_evidence() {
        let mut bytes = BytesMut::new();
        bytes.extend_from_slice(b"B\0\0\0\x29\0\0\0\0\0\x02\0\0\0\x10");
        bytes.extend_from_slice(b"4111111111111111\0\0\0\x05hello\0\0");
        let message = decode(&mut bytes, Sender::Frontend)
            .expect("in order")
            .expect("whole");
        let Ok(Frontend::Bind(bind)) = Frontend::parse(&message) else {
            panic!("not a Bind");
        };
        let (start, count) = (bind.values.start, bind.parameters);
        let shown = without_values(&message, start, count, holds_card);
        assert!(shown.ends_with(b"****************\0\0\0\x05hello\0\0"));
        let shown = without_values(&message, start, count, |_| true);
        assert!(shown.ends_with(b"*****\0\0"));
    }
}

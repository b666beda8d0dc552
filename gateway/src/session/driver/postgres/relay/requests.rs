//! Agent to target: every message is read, decided, put on record, and sent.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{READ, RelayError, Session};
use crate::audit::event::StatementProtocol;
use crate::policy::Denial;
use crate::protocol::postgres::frontend::{Bind, Call, Frontend};
use crate::protocol::postgres::{HEADER, Message, ProtocolError, Sender, decode, encode};
use crate::session::decide::{Allowed, Denied, Judge, Permit, REPLICATION, Ruling, Shown};
use crate::session::driver::postgres::catalogue::{Catalogue, Catalogues};
use crate::session::driver::postgres::conversation::{Data, Execution, Synced};
use crate::session::driver::postgres::replication;
use crate::session::forward::forward;
use crate::session::record::Outcome;
use crate::sql;

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
        let read = loop {
            if !requests.session.conversation().keeps_sync() {
                break agent.read_buf(&mut buffer).await;
            }
            // The agent may wait for what its Sync brings, if the COPY fails.
            tokio::select! {
                read = agent.read_buf(&mut buffer) => break read,
                () = session.answered.notified() => requests.owed_sync(true).await?,
            }
        }
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
        self.owed_sync(matches!(message.tag(), b'd' | b'c' | b'f' | b'S' | b'H'))
            .await?;
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
            Frontend::Sync => self.sync(message).await?,
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
        let replicates = self
            .session
            .replication
            .as_ref()
            .zip(replication::command(text));
        let ruling = match replicates {
            Some((rule, command)) => {
                Ruling::Allowed(Arc::new(Allowed::replication(&command, rule)))
            }
            None => self.rule(text).await?,
        };
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
        match self.rule(text).await? {
            Ruling::Allowed(allowed) => {
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
        if masks && let Some(column) = self.describe(portal, &execution).await? {
            let denied = binary_masked(&execution.allowed, &column);
            self.deny(&denied, false)?;
            let shown = BytesMut::from(&message.bytes()[..]);
            self.batch.and(Permit::refused_extended(&shown));
            return Ok(());
        }
        let (first, skipped) = self.session.conversation().execute(&execution);
        self.session.recorder.intents(
            &execution.allowed,
            first,
            StatementProtocol::Extended,
            execution.parameters,
        )?;
        self.results(&skipped)?;
        self.control(message, Shown::AsSent)
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
        let data = self.session.conversation().copy_data(message.body());
        let mut shown = BytesMut::new();
        match data {
            Data::AsSent => return self.control(message, Shown::AsSent),
            Data::Blanked(body) => encode::copy_data(&mut shown, &body),
            Data::Withheld => {
                let note = format!("[{} bytes withheld]", message.body().len());
                encode::withheld(&mut shown, b'd', &note);
            }
        }
        self.control(message, Shown::Instead(&shown))
    }

    /// Behind a COPY the server's word is waited for: whether it will answer a Sync depends on it.
    async fn sync(&mut self, message: &Message) -> Result<(), RelayError> {
        let awaits = self.session.conversation().awaits_copy();
        if awaits == Some(true) {
            self.batch.and(Permit::own_flush());
        }
        while self.session.conversation().awaits_copy().is_some() {
            self.send().await?;
            let answered = self.session.answered.notified();
            if self.session.conversation().awaits_copy().is_some() {
                answered.await;
            }
        }
        let synced = self.session.conversation().sync();
        match synced.map_err(RelayError::Agent)? {
            Synced::Sent => self.control(message, Shown::AsSent),
            Synced::Kept => {
                self.batch.and(Permit::kept(message));
                Ok(())
            }
        }
    }

    /// Sends the Sync that was kept, if it must be.
    async fn owed_sync(&mut self, next_is_data: bool) -> Result<(), RelayError> {
        if self.session.conversation().owes_sync(next_is_data) {
            self.batch.and(Permit::own_sync());
            self.send().await?;
        }
        Ok(())
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
        self.rule(text.as_bytes()).await
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
        if analysed.copies_whole_table() || !analysed.tables().all(|table| catalogue.knows(table)) {
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

fn shown_as(instead: Option<&BytesMut>) -> Shown<'_> {
    instead.map_or(Shown::AsSent, Shown::Instead)
}

/// Statements that leave the schema as it is. After any other (DDL, arbitrary code) the catalogue is read
/// for every statement of the session, which takes several times as long as the statement itself.
const LEAVES_SCHEMA: [&str; 23] = [
    REPLICATION,
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

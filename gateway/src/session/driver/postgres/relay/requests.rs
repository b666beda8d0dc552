//! Agent to target: every message is read, decided, put on record, and sent.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Incoming, RelayError, Session};
use crate::audit::event::StatementProtocol;
use crate::policy::Denial;
use crate::protocol::postgres::frontend::{Bind, Call, Frontend, Object};
use crate::protocol::postgres::{Frame, HEADER, Message, Piece, ProtocolError, encode};
use crate::session::decide::{
    Allowed, Analysed, Denied, Found, Judge, Known, Meaning, Permit, REPLICATION, Ruling, Runs,
    Sent, Shown, portal_shown,
};
use crate::session::driver::postgres::bound::{self, Bound};
use crate::session::driver::postgres::catalogue::{Catalogue, Catalogues};
use crate::session::driver::postgres::conversation::{
    Alternative, Data, Execution, Refused, Synced,
};
use crate::session::driver::postgres::replication;
use crate::session::forward::forward;
use crate::session::record::Outcome;
use crate::sql::strings::Strings;
use crate::sql::{Naming, Table};

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
        known: Known::default(),
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
        let read = loop {
            if !requests.session.conversation().keeps_sync() {
                break said.read(agent).await;
            }
            // The agent may wait for what its Sync brings, if the COPY fails.
            tokio::select! {
                read = said.read(agent) => break read,
                () = session.answered.notified() => requests.owed_sync(true).await?,
            }
        }
        .map_err(RelayError::AgentIo)?;
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
    known: Known,
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
            Frontend::Sync => self.sync(message).await?,
            Frontend::Flush => self.control(message, Shown::AsSent)?,
            Frontend::CopyData => self.copy_data(message)?,
            Frontend::CopyDone | Frontend::CopyFail => {
                conversation().copy_end();
                self.control(message, Shown::AsSent)?;
            }
            Frontend::FunctionCall(call) => Box::pin(self.call(message, &call)).await?,
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
        let (ruling, stranger) = match replicates {
            Some((rule, command)) => {
                let allowed = Allowed::replication(&command, rule);
                (Ruling::Allowed(Arc::new(allowed)), None)
            }
            None => self.rule_query(text).await?,
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
                if let Some(stranger) = stranger {
                    return self.deny_by_name(&denied, &shown, &stranger);
                }
                self.deny(&denied, Refused::Query)?;
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
        let (ruling, statements) = self.rule_parse(text).await?;
        match ruling {
            Ruling::Allowed(allowed) => {
                for statement in &statements {
                    statement.give_parameter_types(&types);
                }
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
                if name.is_empty() {
                    self.deny(&denied, Refused::UnnamedParse)?;
                    self.batch.and(Permit::refused_unnamed_parse(&shown));
                } else {
                    self.deny(&denied, Refused::Extended)?;
                    self.batch.and(Permit::refused_extended(&shown));
                }
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
        let allowed = match self.rule_execution(&execution, &catalogue).await? {
            Ruling::Allowed(allowed) => allowed,
            Ruling::Denied(denied) => return self.refuse_execution(message, &execution, &denied),
        };
        if catalogue.masks_anything() && !self.session.conversation().is_described(&execution) {
            self.session.conversation().own_describe(&execution);
            self.batch.and(Permit::own_describe(portal));
        }
        let (first, skipped) = self.session.conversation().execute(&execution, &allowed);
        self.session.recorder.intents(
            &allowed,
            first,
            StatementProtocol::Extended,
            execution.bound.as_ref().map(|bound| bound.bindings()),
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
        for Alternative {
            meaning,
            runs,
            bound,
        } in &execution.alternatives
        {
            let parameters = bound.as_deref();
            let parameters = parameters.map_or(Some(&[][..]), |bound| self.facts_of(bound));
            let derived = catalogue.derived();
            match self.judge.rule_again(meaning, runs, derived, parameters) {
                Ruling::Allowed(one) => allowed.push(one),
                denied @ Ruling::Denied(_) => return Ok(denied),
            }
        }
        if execution.unknown {
            match self
                .judge
                .rule_unknown(portal_shown(execution.portal()), self.facts_of_nobody())
            {
                Ruling::Allowed(one) => allowed.push(one),
                denied @ Ruling::Denied(_) => return Ok(denied),
            }
        }
        Ok(Ruling::Allowed(match allowed.is_empty() {
            true => Arc::new(Allowed::no_such_portal(execution.portal())),
            false => Allowed::one_of(&allowed),
        }))
    }

    /// The parameters as policies see them, where any policy looks; `None` when there are too many to be
    /// looked at.
    fn facts_of<'b>(&self, bound: &'b Bound) -> Option<&'b [String]> {
        match self.judge.policies.looks_at_parameters() {
            true => bound.facts(),
            false => Some(&[]),
        }
    }

    /// The same for a portal of which nothing is known.
    fn facts_of_nobody(&self) -> Option<&'static [String]> {
        (!self.judge.policies.looks_at_parameters()).then_some(&[])
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
            self.batch.and(Permit::own_describe(execution.portal()));
        }
        self.deny(denied, Refused::Extended)?;
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

    /// A part of a CopyData that is too long to be held.
    async fn copy_piece(&mut self, piece: &Piece) -> Result<Next, RelayError> {
        if piece.is_first() {
            self.room().await?;
            self.owed_sync(true).await?;
        }
        let data = self.session.conversation().copy_data(piece.data());
        let shown = match data {
            Data::AsSent => None,
            Data::Blanked(data) => Some(piece.with(&data)),
            Data::Withheld => Some(withheld_copy(piece)),
        };
        let permit = Permit::piece(piece, shown_as(shown.as_ref()));
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
        let allowed = match self.rule_call(text.as_bytes(), &bound).await? {
            Ruling::Allowed(allowed) => allowed,
            Ruling::Denied(denied) => return self.refuse_call(message, &denied),
        };
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
        self.deny(denied, Refused::Call)?;
        let mut shown = BytesMut::new();
        let note = format!("[{} bytes withheld]", message.body().len());
        encode::withheld(&mut shown, b'F', &note);
        self.batch.and(Permit::refused_call(&shown));
        Ok(())
    }

    /// Decides a call by its function first, and by its arguments where policies look at them.
    async fn rule_call(&mut self, text: &[u8], bound: &Bound) -> Result<Ruling, RelayError> {
        let (analysed, catalogue) = match self.read(text).await? {
            Ok(read) => read,
            Err(denied) => return Ok(Ruling::Denied(denied)),
        };
        let statements = analysed.statements().to_vec();
        let runs = self.session.conversation().follow_call(&statements);
        let derived = catalogue.derived();
        let ruling = self.judge.rule_running(text, analysed, &runs, derived);
        let ruling = match (ruling, &statements[..], &runs[..]) {
            (Ruling::Allowed(_), [only], [runs]) => {
                let parameters = self.facts_of(bound);
                self.judge.rule_again(only, runs, derived, parameters)
            }
            (ruling, ..) => ruling,
        };
        match &ruling {
            Ruling::Allowed(allowed) => self.note_effects(allowed),
            Ruling::Denied(_) => self.session.conversation().retract(),
        }
        Ok(ruling)
    }

    /// The catalogue as it is now: a prepared statement is read anew by the server when its tables
    /// change, so an Execute needs it as much as a new text does.
    async fn catalogue(&self) -> Result<Arc<Catalogue>, RelayError> {
        let catalogue = match self.schema_moves {
            true => Box::pin(self.catalogues.renewed()).await?,
            false => self.catalogues.current().await?,
        };
        self.session.conversation().update_catalogue(&catalogue);
        Ok(catalogue)
    }

    /// The catalogue, asked anew.
    async fn renewed(&self) -> Result<Arc<Catalogue>, RelayError> {
        let catalogue = Box::pin(self.catalogues.renewed()).await?;
        self.session.conversation().update_catalogue(&catalogue);
        Ok(catalogue)
    }

    /// Decides the text of a simple query. What an EXECUTE or FETCH in it runs is decided with it.
    /// Where all that is against it is a name that code may have made, or nobody, that comes back.
    async fn rule_query(&mut self, text: &[u8]) -> Result<(Ruling, Option<Naming>), RelayError> {
        let plain = self.plain(text);
        if let Some((meaning, allowed)) = self.known(Sent::Query, plain).await? {
            self.session.conversation().follow_query(&[meaning]);
            return Ok((Ruling::Allowed(allowed), None));
        }
        let (analysed, catalogue) = match Box::pin(self.read(text)).await? {
            Ok(read) => read,
            Err(denied) => return Ok((Ruling::Denied(denied), None)),
        };
        let statements = analysed.statements().to_vec();
        let runs = self.session.conversation().follow_query(&statements);
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
                if let (Some(text), [only]) = (plain, &statements[..]) {
                    let derived = catalogue.derived();
                    self.known.learn(Sent::Query, text, only, allowed, derived);
                }
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
                self.deny(denied, Refused::Query)?;
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
        let plain = self.plain(text);
        if let Some((meaning, allowed)) = self.known(Sent::ToBePrepared, plain).await? {
            return Ok((Ruling::Allowed(allowed), vec![meaning]));
        }
        let (analysed, catalogue) = match Box::pin(self.read(text)).await? {
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
            if let (Some(text), [only]) = (plain, &statements[..]) {
                let derived = catalogue.derived();
                self.judge.keep(only, allowed, derived);
                self.known
                    .learn(Sent::ToBePrepared, text, only, allowed, derived);
            }
        }
        Ok((ruling, statements))
    }

    /// A statement like one that was allowed.
    async fn known(
        &mut self,
        sent: Sent,
        plain: Option<&str>,
    ) -> Result<Option<Found>, RelayError> {
        let Some(text) = plain.filter(|_| !self.schema_moves) else {
            return Ok(None);
        };
        let catalogue = self.catalogue().await?;
        let knows = |table: &Table| catalogue.knows(table);
        Ok(self.known.find(sent, text, catalogue.derived(), knows))
    }

    /// The text, if it means the same wherever it stands.
    fn plain<'t>(&self, text: &'t [u8]) -> Option<&'t str> {
        let strings = self.session.conversation().strings();
        let text = std::str::from_utf8(text).ok()?;
        (strings == Strings::Standard).then_some(text)
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
        let known = analysed.tables().all(|table| catalogue.knows(table));
        if analysed.copies_whole_table() || !known {
            catalogue = self.renewed().await?;
        }
        Ok(Ok((analysed, catalogue)))
    }

    fn note_effects(&mut self, allowed: &Allowed) {
        self.schema_moves |= changes_schema(allowed);
        // SET standard_conforming_strings is unknown too, and SET client_encoding: what follows it is read
        // before the server reports the change.
        if allowed.is_unknown() {
            let mut conversation = self.session.conversation();
            conversation.strings_are_uncertain();
            conversation.names_are_converted();
        }
    }

    fn deny(&self, denied: &Denied, refused: Refused) -> Result<(), RelayError> {
        let stmt = self
            .session
            .conversation()
            .denied(denied.denial.clone(), refused);
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

fn knows_all(catalogue: &Catalogue, execution: &Execution) -> bool {
    let mut run = execution
        .alternatives
        .iter()
        .flat_map(|it| it.runs.statements.iter().chain([&it.meaning]));
    run.all(|meaning| meaning.tables().all(|table| catalogue.knows(table)))
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
        .flat_map(|statement| &*statement.verbs);
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

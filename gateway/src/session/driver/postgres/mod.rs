//! PostgreSQL: one session from greeting to goodbye.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use self::cancel::{Backend, Issued};
use self::catalogue::Catalogues;
use self::conversation::Conversation;
use self::greeting::{Greeting, GreetingError, fatal};
use self::relay::{RelayError, Session};
use self::upstream::{Connection, Dial, UpstreamError};
use crate::app::Gateway;
use crate::audit::event::{Event, SessionId, SessionOutcome, Stage, Who};
use crate::config::Target;
use crate::policy::{Denial, Verdict};
use crate::protocol::postgres::encode::{ErrorText, Severity};
use crate::protocol::postgres::startup::Startup;
use crate::protocol::postgres::{backend, encode};
use crate::session::decide::Judge;
use crate::session::forward::forward;
use crate::session::identify::Identified;
use crate::session::mask::Delivery;
use crate::session::record::{EvidenceError, Recorder, denial_event};
use crate::session::watch;
use crate::store::recordings::RecordingWriter;

pub mod cancel;
pub mod catalogue;
mod conversation;
mod greeting;
mod parameters;
mod relay;
pub mod upstream;

/// Runs one connection of an identified agent.
pub async fn serve(identified: Identified, gateway: &Gateway) {
    let mut opening = Opening::new(&identified, gateway);
    let mut socket = identified.into_socket();
    let mut buffer = BytesMut::new();
    match greet(&mut socket, &mut buffer).await {
        Ok(Greeting::Session(startup)) => match opening.open(&startup, gateway).await {
            Ok(open) => open.run(socket, buffer, gateway).await,
            Err(refusal) => {
                opening.deny(refusal.stage, &refusal.denial, gateway);
                greeting::refuse(socket, &refusal.text()).await;
            }
        },
        Ok(Greeting::Cancel { pid, key }) => opening.cancel(pid, &key, gateway).await,
        Ok(Greeting::Nothing) => {
            tracing::debug!(session = %opening.session, "closed without a word")
        }
        Err(error) => {
            let denial = malformed_greeting(&error);
            opening.deny(Stage::Protocol, &denial, gateway);
            greeting::refuse(socket, &fatal(&denial, "08P01")).await;
        }
    }
}

/// Reads what the client wants, only to tell it no.
pub async fn refuse(mut socket: TcpStream, denial: &Denial) {
    let mut buffer = BytesMut::new();
    match greet(&mut socket, &mut buffer).await {
        Ok(Greeting::Session(_)) | Err(_) => {
            greeting::refuse(socket, &fatal(denial, "28000")).await;
        }
        Ok(Greeting::Cancel { .. } | Greeting::Nothing) => {}
    }
}

async fn greet(socket: &mut TcpStream, buffer: &mut BytesMut) -> Result<Greeting, GreetingError> {
    match tokio::time::timeout(watch::STARTUP, greeting::read(socket, buffer)).await {
        Ok(greeting) => greeting,
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the start-up packet did not come in time",
        )
        .into()),
    }
}

fn malformed_greeting(error: &GreetingError) -> Denial {
    Denial {
        rule: "protocol:startup".to_owned(),
        message: "the connection does not begin as PostgreSQL's protocol does".to_owned(),
        detail: error.to_string(),
        hint: "Use a PostgreSQL client.".to_owned(),
    }
}

/// A session that is not open yet.
#[derive(Debug)]
struct Opening {
    session: SessionId,
    accepted_at: std::time::Instant,
    original: SocketAddr,
    who: Who,
    principal: crate::policy::Principal,
    target: Arc<Target>,
}

/// Why a session is not opened, and what the client hears.
#[derive(Debug)]
struct Refusal {
    stage: Stage,
    sqlstate: &'static str,
    denial: Denial,
}

impl Refusal {
    fn text(&self) -> ErrorText<'_> {
        fatal(&self.denial, self.sqlstate)
    }
}

fn refusal(
    stage: Stage,
    sqlstate: &'static str,
    rule: &str,
    message: String,
    detail: String,
    hint: &str,
) -> Refusal {
    Refusal {
        stage,
        sqlstate,
        denial: Denial {
            rule: rule.to_owned(),
            message,
            detail,
            hint: hint.to_owned(),
        },
    }
}

impl Opening {
    fn new(identified: &Identified, _gateway: &Gateway) -> Self {
        let accepted = identified.accepted();
        Self {
            session: accepted.session(),
            accepted_at: accepted.at(),
            original: accepted.flow().original,
            who: identified.who().clone(),
            principal: identified.principal().clone(),
            target: Arc::clone(identified.target()),
        }
    }

    fn deny(&self, stage: Stage, denial: &Denial, gateway: &Gateway) {
        tracing::warn!(session = %self.session, agent = self.who.agent, rule = denial.rule, "session refused");
        let event = denial_event(Some(self.session), &self.who, stage, None, None, denial);
        if let Err(error) = gateway.log.append(&event, SystemTime::now()) {
            tracing::error!(%error, "a denial could not be written");
        }
    }

    /// Decides the connection, logs in at the target, and puts the session on record.
    async fn open(&mut self, startup: &Startup, gateway: &Gateway) -> Result<Open, Refusal> {
        if startup.major != 3 {
            return Err(refusal(
                Stage::Startup,
                "0A000",
                "protocol:version",
                format!(
                    "unsupported frontend protocol {}.{}",
                    startup.major, startup.minor
                ),
                "Only protocol 3 is spoken here.".to_owned(),
                "Use a current PostgreSQL client.",
            ));
        }
        let parameters = parameters::accept(startup).map_err(|refused| {
            refusal(
                Stage::Startup,
                "42501",
                "startup:parameter",
                format!("start-up parameter \"{}\" is not allowed", refused.name),
                format!("Rule startup:parameter: {}.", refused.reason),
                "Connect without it.",
            )
        })?;
        self.who.database = Some(parameters.database.clone());
        self.who.db_user = Some(parameters.user.clone());
        let (judge, rule) = self.judge(&parameters, gateway)?;
        let dial = self.dial(&parameters.database, gateway)?;
        let catalogues = gateway.catalogues(&dial);
        let connection = upstream::connect(&dial, &parameters.settings)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let catalogue = catalogues.current().await.map_err(|error| {
            refusal(
                Stage::Upstream,
                "08006",
                "target:catalogue",
                format!(
                    "masking of target \"{}\" cannot be set up",
                    self.target.name
                ),
                error.to_string(),
                "Ask the operator to look at the gateway's log.",
            )
        })?;
        let recorder = self
            .record(&connection, &dial, rule, gateway)
            .map_err(|error| {
                refusal(
                    Stage::Storage,
                    "53100",
                    "evidence:unwritable",
                    "the session cannot be recorded, so it cannot be opened".to_owned(),
                    error.to_string(),
                    "Ask the operator to look at the gateway's disk.",
                )
            })?;
        let key = gateway.cancel_keys.issue(Backend {
            agent: self.principal.agent.clone(),
            dial,
            pid: connection.backend_pid,
            key: connection.backend_key.clone(),
        });
        Ok(Open {
            session: self.session,
            judge,
            catalogues,
            connection,
            key,
            unsupported: (startup.minor > 0 || !parameters.unsupported.is_empty())
                .then_some(parameters.unsupported),
            shared: Session {
                conversation: Mutex::new(Conversation::new(catalogue)),
                recorder: Arc::new(recorder),
                answered: Notify::new(),
            },
        })
    }

    fn judge(
        &self,
        parameters: &parameters::Accepted,
        gateway: &Gateway,
    ) -> Result<(Judge, String), Refusal> {
        if let Some(only) = &self.target.database
            && *only != parameters.database
        {
            return Err(refusal(
                Stage::Connect,
                "42501",
                "target:database",
                format!("database \"{}\" is not open to agents", parameters.database),
                format!(
                    "Rule target:database: target \"{}\" allows database \"{only}\" alone.",
                    self.target.name
                ),
                "Connect to that database.",
            ));
        }
        let judge = Judge {
            policies: Arc::clone(&gateway.policies),
            principal: self.principal.clone(),
            target: Arc::clone(&self.target),
            database: parameters.database.clone(),
            analyst: Arc::clone(&gateway.analyst),
        };
        match judge.connect(&parameters.user) {
            Verdict::Allow { rule } => Ok((judge, rule)),
            Verdict::Deny(denial) => Err(Refusal {
                stage: Stage::Connect,
                sqlstate: "42501",
                denial,
            }),
        }
    }

    fn dial(&self, database: &str, gateway: &Gateway) -> Result<Dial, Refusal> {
        gateway
            .dial(&self.target, self.original, database)
            .ok_or_else(|| {
                refusal(
                    Stage::Upstream,
                    "08001",
                    "target:credential",
                    format!("target \"{}\" is not ready", self.target.name),
                    "Its credential, TLS roots or address could not be loaded.".to_owned(),
                    "Ask the operator to run `sluice check`.",
                )
            })
    }

    fn unreachable(&self, error: &UpstreamError) -> Refusal {
        tracing::warn!(session = %self.session, target = self.target.name, %error, "no connection to the target");
        // A missing database is the agent's own mistake: it hears the server's words.
        let said = match error {
            UpstreamError::Refused { sqlstate, message } if sqlstate == "3D000" => {
                backend::error_fields(message).ok().and_then(|fields| {
                    fields
                        .iter()
                        .find(|(code, _)| *code == b'M')
                        .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
                })
            }
            _ => None,
        };
        let sqlstate = if said.is_some() { "3D000" } else { "08006" };
        refusal(
            Stage::Upstream,
            sqlstate,
            "target:unreachable",
            said.unwrap_or_else(|| format!("no connection to target \"{}\"", self.target.name)),
            error.to_string(),
            "This is between the gateway and the target: ask the operator.",
        )
    }

    /// Creates the recording and writes `session.open`.
    fn record(
        &self,
        connection: &Connection,
        dial: &Dial,
        rule: String,
        gateway: &Gateway,
    ) -> Result<Recorder, EvidenceError> {
        let meta = serde_json::json!({
            "session": self.session,
            "protocol": "postgres",
            "who": self.who,
        });
        let writer = RecordingWriter::create(
            &gateway.config.storage.recordings,
            self.session,
            &meta,
            SystemTime::now(),
        )?;
        gateway.log.append(
            &Event::SessionOpen {
                session: self.session,
                who: self.who.clone(),
                original: self.original.to_string(),
                policy_sha256: gateway.policies.hash.clone(),
                rule,
                upstream: dial.address.to_string(),
                backend_pid: i32::try_from(connection.backend_pid).unwrap_or(0),
                tls: connection.tls,
                recording: format!("{}.slrec", self.session),
            },
            SystemTime::now(),
        )?;
        Ok(Recorder::new(
            Arc::clone(&gateway.log),
            self.session,
            self.who.clone(),
            writer,
            self.accepted_at,
        ))
    }

    async fn cancel(&self, pid: u32, key: &[u8], gateway: &Gateway) {
        let Some(backend) = gateway.cancel_keys.find(pid, key, &self.principal.agent) else {
            let denial = Denial {
                rule: "cancel:unknown-key".to_owned(),
                message: "the cancel request names no session of this agent".to_owned(),
                detail: format!("Process id {pid}."),
                hint: "Cancel with the connection that runs the statement.".to_owned(),
            };
            self.deny(Stage::Protocol, &denial, gateway);
            return;
        };
        if let Err(error) = upstream::cancel(&backend.dial, backend.pid, &backend.key).await {
            tracing::warn!(session = %self.session, %error, "a cancel request did not reach the target");
        }
    }
}

/// A session that is open on both sides.
#[derive(Debug)]
struct Open {
    session: SessionId,
    judge: Judge,
    catalogues: Arc<Catalogues>,
    connection: Connection,
    key: Issued,
    /// Options the client asked for and does not get; present when it must be told.
    unsupported: Option<Vec<String>>,
    shared: Session,
}

impl Open {
    async fn run(self, socket: TcpStream, buffer: BytesMut, gateway: &Gateway) {
        tracing::info!(session = %self.session, agent = self.judge.principal.agent, target = self.judge.target.name, "session open");
        let recorder = Arc::clone(&self.shared.recorder);
        let session = self.session;
        let (outcome, reason) = self.relay(socket, buffer, gateway).await;
        tracing::info!(%session, ?outcome, reason, "session closed");
        if let Err(error) = recorder.close(outcome, reason) {
            tracing::error!(%session, %error, "the end of a session could not be written");
        }
    }

    async fn relay(
        self,
        socket: TcpStream,
        buffer: BytesMut,
        gateway: &Gateway,
    ) -> (SessionOutcome, Option<String>) {
        let welcome = self.welcome();
        let Open {
            judge,
            catalogues,
            connection,
            key: _key,
            shared,
            ..
        } = self;
        let Connection {
            mut reader,
            mut writer,
            buffer: early,
            ..
        } = connection;
        let (mut agent_reader, mut agent_writer) = socket.into_split();
        let ended = {
            let agent_writer = &mut agent_writer;
            let relayed = async {
                let mut welcome = welcome;
                let recorded = shared.recorder.response(welcome.finish())?;
                forward(agent_writer, recorded)
                    .await
                    .map_err(RelayError::AgentIo)?;
                let requests = relay::requests(
                    &shared,
                    &judge,
                    &catalogues,
                    &mut agent_reader,
                    &mut writer,
                    buffer,
                );
                let responses = relay::responses(&shared, &mut reader, agent_writer, early);
                tokio::pin!(requests, responses);
                tokio::select! {
                    said = &mut requests => {
                        said?;
                        // The goodbye is passed on; what the target still has to say is delivered.
                        let _ = tokio::time::timeout(watch::GOODBYE, responses).await;
                        Ok(())
                    }
                    said = &mut responses => said,
                }
            };
            tokio::select! {
                ended = relayed => Ended::Relay(ended),
                () = gateway.stopping() => Ended::Shutdown,
            }
        };
        for outcome in shared
            .conversation
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .abandon()
        {
            if let Err(error) = shared.recorder.result(&outcome) {
                tracing::error!(%error, "the end of a statement could not be written");
            }
        }
        ended.say(&shared.recorder, &mut agent_writer).await
    }

    /// What a client hears when it is let in.
    fn welcome(&self) -> Delivery {
        let mut delivery = Delivery::default();
        if let Some(unsupported) = &self.unsupported {
            let names: Vec<&str> = unsupported.iter().map(String::as_str).collect();
            delivery.own(|out| encode::negotiate_version(out, &names));
        }
        delivery.own(encode::authentication_ok);
        for parameter in &self.connection.parameters {
            delivery.unchanged(parameter);
        }
        delivery.own(|out| encode::backend_key(out, self.key.pid(), self.key.secret()));
        delivery.own(encode::ready_for_query);
        delivery
    }
}

enum Ended {
    Relay(Result<(), RelayError>),
    Shutdown,
}

impl Ended {
    /// Tells the agent, where it would otherwise just see the line go dead, and names the outcome.
    async fn say<W: tokio::io::AsyncWrite + Unpin>(
        self,
        recorder: &Recorder,
        agent: &mut W,
    ) -> (SessionOutcome, Option<String>) {
        let (outcome, sqlstate, message) = match &self {
            Ended::Relay(Ok(())) => return (SessionOutcome::Closed, None),
            Ended::Relay(Err(error @ RelayError::AgentIo(_))) => {
                return (SessionOutcome::Closed, Some(error.to_string()));
            }
            Ended::Shutdown => (
                SessionOutcome::Shutdown,
                "57P01",
                "the gateway is shutting down",
            ),
            Ended::Relay(Err(RelayError::Agent(error) | RelayError::Target(error))) => {
                let (stage, denial) = relay::protocol_denial(error);
                if let Err(error) = recorder.deny(stage, None, None, &denial) {
                    tracing::error!(%error, "a denial could not be written");
                }
                (
                    SessionOutcome::ProtocolError,
                    "08P01",
                    "the connection does not follow PostgreSQL's protocol",
                )
            }
            Ended::Relay(Err(RelayError::TargetIo(_))) => (
                SessionOutcome::Error,
                "08006",
                "the connection to the target broke",
            ),
            Ended::Relay(Err(RelayError::Evidence(_))) => (
                SessionOutcome::Error,
                "53100",
                "the session cannot be recorded any more, so it ends",
            ),
            Ended::Relay(Err(RelayError::Catalogue(_))) => (
                SessionOutcome::Error,
                "08006",
                "the target's catalogue cannot be read, so masking cannot be guaranteed",
            ),
        };
        let reason = match &self {
            Ended::Relay(Err(error)) => error.to_string(),
            _ => message.to_owned(),
        };
        farewell(recorder, agent, sqlstate, message, &reason).await;
        (outcome, Some(reason))
    }
}

async fn farewell<W: tokio::io::AsyncWrite + Unpin>(
    recorder: &Recorder,
    agent: &mut W,
    sqlstate: &str,
    message: &str,
    detail: &str,
) {
    let error = ErrorText {
        severity: Severity::Fatal,
        sqlstate,
        message,
        detail: Some(detail),
        hint: None,
    };
    let mut delivery = Delivery::default();
    delivery.own(|out| encode::error_response(out, &error));
    let sent = match recorder.response(delivery.finish()) {
        Ok(recorded) => forward(agent, recorded).await,
        // The disk refuses: these words of the gateway's own are the only bytes that go unrecorded.
        Err(_) => {
            let mut out = BytesMut::new();
            encode::error_response(&mut out, &error);
            watch::within(watch::GOODBYE, "a farewell", agent.write_all(&out)).await
        }
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "a farewell did not reach its agent");
    }
    let _ = agent.shutdown().await;
}

//! Opening: from an identified agent's StartupMessage to a session that is logged in and on record.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::cancel::{Backend, Cancelled, Issued, KeyLength};
use super::catalogue::Catalogue;
use super::conversation::Conversation;
use super::greeting::fatal;
use super::open::Open;
use super::parameters;
use super::relay::Session;
use super::replication::Replication;
use super::upstream::{Connection, Dial};
use crate::app::Gateway;
use crate::audit::event::{Event, SessionId, Stage, Who};
use crate::config::Target;
use crate::policy::{Denial, Login, Principal, Verdict};
use crate::protocol::postgres::encode::ErrorText;
use crate::protocol::postgres::startup::{MAJOR, NEWEST_MINOR, Startup};
use crate::session::decide::{Derived, Judge, Ruling};
use crate::session::identify::Identified;
use crate::session::keepalive;
use crate::session::record::{EvidenceError, Recorder, denial_event};
use crate::sql::strings::Strings;
use crate::store::recordings::{self, RecordingWriter};

mod reach;

/// A session that is not open yet.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) session: SessionId,
    accepted_at: Instant,
    original: SocketAddr,
    /// The name that the agent connected to, if it was a name.
    host: Option<String>,
    who: Who,
    principal: Principal,
    target: Arc<Target>,
    /// The version of TLS that the agent speaks.
    agent_tls: Option<&'static str>,
}

/// Why a session is not opened, and what the client hears.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) stage: Stage,
    sqlstate: Box<str>,
    pub(super) denial: Denial,
}

impl Refusal {
    pub(super) fn new(stage: Stage, sqlstate: &'static str, denial: Denial) -> Self {
        Self {
            stage,
            sqlstate: sqlstate.into(),
            denial,
        }
    }

    pub(super) fn text(&self) -> ErrorText<'_> {
        fatal(&self.denial, &self.sqlstate)
    }
}

fn refusal(
    stage: Stage,
    sqlstate: impl Into<Box<str>>,
    rule: &str,
    message: String,
    detail: String,
    hint: &str,
) -> Refusal {
    Refusal {
        stage,
        sqlstate: sqlstate.into(),
        denial: Denial {
            rule: rule.to_owned(),
            message,
            detail,
            hint: hint.to_owned(),
        },
    }
}

impl Opening {
    pub(super) fn new(identified: &Identified) -> Self {
        let accepted = identified.accepted();
        Self {
            session: accepted.session(),
            accepted_at: accepted.at(),
            original: accepted.flow().original,
            host: identified.host().map(str::to_owned),
            who: identified.who().clone(),
            principal: identified.principal().clone(),
            target: Arc::clone(identified.target()),
            agent_tls: None,
        }
    }

    /// The agent came with TLS of this version, or with none.
    pub(super) fn came_with(&mut self, tls: Option<&'static str>) {
        self.agent_tls = tls;
    }

    pub(super) fn agent(&self) -> &str {
        &self.principal.agent
    }

    /// Whether the agent's version of the protocol is spoken here.
    pub(super) fn version(startup: &Startup) -> Result<(), Refusal> {
        if startup.major == MAJOR {
            return Ok(());
        }
        Err(refusal(
            Stage::Startup,
            "0A000",
            "protocol:version",
            format!(
                "unsupported frontend protocol {}.{}: server supports {MAJOR}.0 to {MAJOR}.{NEWEST_MINOR}",
                startup.major, startup.minor
            ),
            "Only protocol 3 is spoken here, and a request for encryption is answered once."
                .to_owned(),
            "Use a current PostgreSQL client.",
        ))
    }

    /// An agent's socket is this host's own, but a network namespace can be far away.
    pub(super) fn keep_alive(&self, socket: &TcpStream) {
        if let Err(error) = keepalive::set(socket, self.target.keepalive) {
            tracing::debug!(session = %self.session, %error, "keep-alive was refused");
        }
    }

    pub(super) fn deny(&self, stage: Stage, denial: &Denial, gateway: &Gateway) {
        tracing::warn!(session = %self.session, agent = self.who.agent, rule = denial.rule, "session refused");
        let event = denial_event(Some(self.session), &self.who, stage, None, None, denial);
        self.write(&event, gateway);
    }

    /// The connection ended before it asked for anything.
    pub(super) fn silent(&self, gateway: &Gateway) {
        let event = Event::ConnectionSilent {
            connection: self.session,
            who: self.who.clone(),
        };
        self.write(&event, gateway);
    }

    /// Whether the event is on record.
    fn write(&self, event: &Event, gateway: &Gateway) -> bool {
        match gateway.log.append(event) {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(session = %self.session, %error, "an event could not be written");
                false
            }
        }
    }

    /// Decides the connection, logs in at the target, and puts the session on record.
    pub(super) async fn open(
        &mut self,
        startup: &Startup,
        gateway: &Gateway,
    ) -> Result<(Box<Open>, Connection), Refusal> {
        let parameters = parameters::accept(startup).map_err(|refused| {
            refusal(
                Stage::Startup,
                "42501",
                match refused.name.eq_ignore_ascii_case("replication") {
                    true => "startup:replication",
                    false => "startup:parameter",
                },
                format!("start-up parameter \"{}\" is not allowed", refused.name),
                format!("{}.", refused.reason),
                refused.hint,
            )
        })?;
        self.permit_replication(&parameters)?;
        self.who.database = Some(parameters.database.clone());
        self.who.db_user = Some(parameters.user.clone());
        let (judge, rule, login) = self.judge(&parameters, gateway)?;
        Self::permit_settings(&judge, &parameters).await?;
        let place = self.place(gateway)?;
        let mut settings = parameters.settings.clone();
        let replication = parameters.replication;
        settings.extend(replication.map(|it| ("replication".to_owned(), it.value().to_owned())));
        let (dial, mut connection) = self
            .connect(&judge.database, &login, &settings, gateway)
            .await?;
        connection.place = Some(place);
        let catalogues = gateway.catalogues(&dial);
        // It takes no SQL, so no names are looked up.
        if parameters.replication != Some(Replication::Physical) {
            self.plain_search_path(&mut connection).await?;
        }
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
        let conversation = Self::conversation(&connection, catalogue)?;
        let recorder = self
            .record(&connection, &dial, &parameters, rule.clone(), gateway)
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
        let key = self.issue_key(&connection, dial, startup, gateway)?;
        let open = Open {
            session: self.session,
            judge,
            catalogues,
            key,
            shared: Session {
                conversation: Mutex::new(conversation),
                recorder: Arc::new(recorder),
                answered: Notify::new(),
                delivering: AtomicBool::new(false),
                replication: parameters.replication.map(|_| rule),
            },
        };
        Ok((Box::new(open), connection))
    }

    /// A role may have settings of its own: what the target says of them at the login holds from the start.
    fn conversation(
        connection: &Connection,
        catalogue: Arc<Catalogue>,
    ) -> Result<Conversation, Refusal> {
        let mut conversation = Conversation::new(catalogue);
        let announced = connection.announced.iter();
        for parameter in announced.filter(|message| message.tag() == b'S') {
            conversation.parameter(parameter).map_err(|error| {
                refusal(
                    Stage::Upstream,
                    "42501",
                    "target:encoding",
                    "statements cannot be read as the target would read them".to_owned(),
                    format!("Rule target:encoding: {error}."),
                    "Connect with client_encoding UTF8; or let the operator reset that of the database role.",
                )
            })?;
        }
        Ok(conversation)
    }

    fn permit_replication(&self, parameters: &parameters::Accepted) -> Result<(), Refusal> {
        let name = &self.target.name;
        let refused = |why: String, hint| {
            Err(refusal(
                Stage::Startup,
                "42501",
                "startup:replication",
                "replication connections are not open to agents".to_owned(),
                format!("Rule startup:replication: {why}."),
                hint,
            ))
        };
        match (parameters.replication, self.target.replication) {
            (None, _) => Ok(()),
            (Some(_), false) => refused(
                format!("target \"{name}\" does not allow them"),
                "An operator can set `replication = true` for the target.",
            ),
            (Some(_), true) if !self.target.masks.is_empty() => refused(
                format!("target \"{name}\" has masked columns, which they would show in clear"),
                "An operator can name another target without masks.",
            ),
            (Some(_), true) => Ok(()),
        }
    }

    /// A key that the agent can cancel this session with.
    fn issue_key(
        &self,
        connection: &Connection,
        dial: Dial,
        startup: &Startup,
        gateway: &Gateway,
    ) -> Result<Issued, Refusal> {
        let length = match startup.spoken_minor() {
            0 | 1 => KeyLength::Four,
            _ => KeyLength::ThirtyTwo,
        };
        let backend = Backend {
            session: self.session,
            agent: self.principal.agent.clone(),
            dial,
            pid: connection.backend_pid,
            key: connection.backend_key.clone(),
        };
        gateway.cancel_keys.issue(backend, length).map_err(|error| {
            refusal(
                Stage::Startup,
                "53000",
                "cancel:no-key",
                "no key for cancel requests can be made".to_owned(),
                error.to_string(),
                "Ask the operator to look at the gateway's log.",
            )
        })
    }

    /// May this agent have a session here, and as whom? From here on `who` has the database that is opened.
    fn judge(
        &mut self,
        parameters: &parameters::Accepted,
        gateway: &Gateway,
    ) -> Result<(Judge, String, Login), Refusal> {
        let mut judge = Judge {
            policies: Arc::clone(&gateway.policies),
            principal: self.principal.clone(),
            target: Arc::clone(&self.target),
            database: parameters.database.clone(),
            analyst: Arc::clone(&gateway.analyst),
        };
        let (rule, login) = match judge.connect(&parameters.user, parameters.replication.is_some())
        {
            Verdict::Allow { rule, login } => (rule, login),
            Verdict::Deny(denial) => {
                return Err(Refusal {
                    stage: Stage::Connect,
                    sqlstate: "42501".into(),
                    denial,
                });
            }
        };
        if let Some(database) = &login.database
            && *database != judge.database
        {
            self.who.database_asked = self.who.database.replace(database.clone());
            judge.database.clone_from(database);
        }
        // The server takes no database for the log of all of them.
        if let Some(only) = &self.target.database
            && parameters.replication != Some(Replication::Physical)
            && *only != judge.database
        {
            return Err(refusal(
                Stage::Connect,
                "42501",
                "target:database",
                format!("database \"{}\" is not open to agents", judge.database),
                format!(
                    "Rule target:database: target \"{}\" allows database \"{only}\" alone.",
                    self.target.name
                ),
                "Connect to that database.",
            ));
        }
        Ok((judge, rule, login))
    }

    /// A setting brought along is decided as the SET that it amounts to.
    async fn permit_settings(
        judge: &Judge,
        parameters: &parameters::Accepted,
    ) -> Result<(), Refusal> {
        for (name, value) in &parameters.settings {
            let quoted = value.replace('\'', "''");
            let text = format!("SET {name} TO '{quoted}'");
            let ruling = match judge.read(text.as_bytes(), Strings::Standard).await {
                Ok(analysed) => judge.rule(text.as_bytes(), analysed, &Derived::default()),
                Err(denied) => Ruling::Denied(denied),
            };
            if let Ruling::Denied(denied) = ruling {
                return Err(Refusal {
                    stage: Stage::Startup,
                    sqlstate: "42501".into(),
                    denial: denied.denial,
                });
            }
        }
        Ok(())
    }

    /// Creates the recording and writes `session.open`.
    fn record(
        &self,
        connection: &Connection,
        dial: &Dial,
        parameters: &parameters::Accepted,
        rule: String,
        gateway: &Gateway,
    ) -> Result<Recorder, EvidenceError> {
        let meta = serde_json::json!({
            "protocol": "postgres",
            "agent": self.who.agent,
            "subject": self.who.subject,
            "target": self.who.target,
            "database": self.who.database,
        });
        let writer = RecordingWriter::create(
            &gateway.config.storage.recordings,
            self.session,
            &meta,
            SystemTime::now(),
        )?;
        gateway.log.append(&Event::SessionOpen {
            session: self.session,
            who: self.who.clone(),
            original: self.original.to_string(),
            host: self.host.clone(),
            policy_sha256: gateway.policies.hash.clone(),
            rule,
            upstream: dial.address.to_string(),
            backend_pid: i32::try_from(connection.backend_pid).unwrap_or(0),
            tls: connection.tls(),
            agent_tls: self.agent_tls.map(str::to_owned),
            replication: parameters.replication.is_some(),
            recording: recordings::file_name(self.session),
        })?;
        Recorder::new(
            Arc::clone(&gateway.log),
            self.session,
            &self.who,
            writer,
            self.accepted_at,
        )
    }

    pub(super) async fn cancel(&self, pid: u32, key: &[u8], gateway: &Gateway) {
        let (agent, who) = (&self.principal.agent, self.who.clone());
        let keys = &gateway.cancel_keys;
        let (rule, message, hint) = match keys.request(pid, key, agent, who, &gateway.log).await {
            Cancelled::PassedOn => return,
            Cancelled::Unknown => (
                "cancel:unknown-key",
                "the cancel request names no session of this agent",
                "Cancel with the connection that runs the statement.",
            ),
            Cancelled::TooMany => (
                "cancel:too-many",
                "the agent makes more cancel requests than are passed on",
                "Wait a second.",
            ),
        };
        let denial = Denial {
            rule: rule.to_owned(),
            message: message.to_owned(),
            detail: format!("Process id {pid}."),
            hint: hint.to_owned(),
        };
        self.deny(Stage::Protocol, &denial, gateway);
    }
}

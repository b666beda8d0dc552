//! Opening: from an identified agent's StartupMessage to a session that is logged in and on record.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;

use super::cancel::Backend;
use super::conversation::Conversation;
use super::greeting::fatal;
use super::open::Open;
use super::parameters;
use super::relay::Session;
use super::replication::Replication;
use super::upstream::{self, Connection, Dial, UpstreamError};
use crate::app::Gateway;
use crate::audit::event::{Event, SessionId, Stage, Who};
use crate::config::Target;
use crate::intercept::dns::DnsError;
use crate::policy::{Denial, Principal, Verdict};
use crate::protocol::postgres::backend;
use crate::protocol::postgres::encode::ErrorText;
use crate::protocol::postgres::startup::Startup;
use crate::session::decide::{Derived, Judge, Ruling};
use crate::session::identify::Identified;
use crate::session::record::{EvidenceError, Recorder, denial_event};
use crate::session::watch;
use crate::sql::strings::Strings;
use crate::store::recordings::{self, RecordingWriter};

/// Where the session looks up names that have no schema, in order; pg_catalog is left out.
const SCHEMAS: &str =
    "SELECT pg_catalog.unnest(pg_catalog.current_schemas(false))::pg_catalog.text";

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
}

/// Why a session is not opened, and what the client hears.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) stage: Stage,
    sqlstate: &'static str,
    pub(super) denial: Denial,
}

impl Refusal {
    pub(super) fn text(&self) -> ErrorText<'_> {
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
    ) -> Result<Open, Refusal> {
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
                match refused.name.eq_ignore_ascii_case("replication") {
                    true => "startup:replication",
                    false => "startup:parameter",
                },
                format!("start-up parameter \"{}\" is not allowed", refused.name),
                format!("{}.", refused.reason),
                "Connect without it.",
            )
        })?;
        self.permit_replication(&parameters)?;
        self.who.database = Some(parameters.database.clone());
        self.who.db_user = Some(parameters.user.clone());
        let (judge, rule) = self.judge(&parameters, gateway)?;
        Self::permit_settings(&judge, &parameters).await?;
        let (dial, mut connection) = self.connect(&parameters, gateway).await?;
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
        let key = gateway.cancel_keys.issue(Backend {
            session: self.session,
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
                delivering: AtomicBool::new(false),
                replication: parameters.replication.map(|_| rule),
            },
        })
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

    fn judge(
        &self,
        parameters: &parameters::Accepted,
        gateway: &Gateway,
    ) -> Result<(Judge, String), Refusal> {
        // The server takes no database for the log of all of them.
        if let Some(only) = &self.target.database
            && parameters.replication != Some(Replication::Physical)
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
        match judge.connect(&parameters.user, parameters.replication.is_some()) {
            Verdict::Allow { rule } => Ok((judge, rule)),
            Verdict::Deny(denial) => Err(Refusal {
                stage: Stage::Connect,
                sqlstate: "42501",
                denial,
            }),
        }
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
                    sqlstate: "42501",
                    denial: denied.denial,
                });
            }
        }
        Ok(())
    }

    /// Logs in at the first address of the target that can be reached. Whoever refuses a login speaks for the
    /// target: another address is not asked.
    async fn connect(
        &self,
        parameters: &parameters::Accepted,
        gateway: &Gateway,
    ) -> Result<(Dial, Connection), Refusal> {
        let dns = gateway.identities.dns();
        let addresses = dns
            .dial_addresses(&self.target, self.host.as_deref(), self.original)
            .await
            .map_err(|error| self.unresolved(&error))?;
        let mut settings = parameters.settings.clone();
        settings.extend(
            parameters
                .replication
                .map(|it| ("replication".to_owned(), it.value().to_owned())),
        );
        let begun = Instant::now();
        let mut failed = None;
        for address in addresses {
            if failed.is_some() && begun.elapsed() > watch::DIAL {
                break;
            }
            let dial = self.dial(address, &parameters.database, gateway)?;
            match upstream::connect(&dial, &settings).await {
                Ok(connection) => return Ok((dial, connection)),
                Err(error @ UpstreamError::Dial(_)) => {
                    tracing::warn!(session = %self.session, %address, %error, "an address of the target does not answer");
                    failed = Some(error);
                }
                Err(error) => return Err(self.unreachable(&error)),
            }
        }
        let none = || UpstreamError::Dial(std::io::ErrorKind::AddrNotAvailable.into());
        Err(self.unreachable(&failed.unwrap_or_else(none)))
    }

    fn dial(
        &self,
        address: SocketAddr,
        database: &str,
        gateway: &Gateway,
    ) -> Result<Dial, Refusal> {
        gateway
            .dial(&self.target, address, self.host.as_deref(), database)
            .ok_or_else(|| {
                refusal(
                    Stage::Upstream,
                    "08001",
                    "target:credential",
                    format!("target \"{}\" is not ready", self.target.name),
                    "Its credential or TLS roots could not be loaded.".to_owned(),
                    "Ask the operator to run `sluice check`.",
                )
            })
    }

    fn unresolved(&self, error: &DnsError) -> Refusal {
        tracing::warn!(session = %self.session, target = self.target.name, %error, "no address of the target");
        refusal(
            Stage::Upstream,
            "08001",
            "target:unresolved",
            format!(
                "target \"{}\" has no address to connect to",
                self.target.name
            ),
            error.to_string(),
            "This is between the gateway and its resolver: ask the operator.",
        )
    }

    /// Names without a schema are decided as tables of `public`. A role whose search_path finds them
    /// elsewhere (`ALTER ROLE … SET search_path`, or a schema of the role's own name) would run
    /// something else than what was decided.
    async fn plain_search_path(&self, connection: &mut Connection) -> Result<(), Refusal> {
        let rows = upstream::ask(connection, SCHEMAS)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let schemas: Vec<&str> = rows
            .iter()
            .flatten()
            .map(|schema| schema.as_deref().unwrap_or_default())
            .collect();
        if let [] | ["public"] = schemas[..] {
            return Ok(());
        }
        Err(refusal(
            Stage::Upstream,
            "42501",
            "target:search-path",
            format!(
                "target \"{}\" looks tables up in other schemas than public",
                self.target.name
            ),
            format!(
                "Rule target:search-path: the database role's search_path is {}.",
                schemas.join(", ")
            ),
            "Ask the operator to give the role the search_path \"public\"; other schemas can be named in statements.",
        ))
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
            tls: connection.tls,
            replication: parameters.replication.is_some(),
            recording: recordings::file_name(self.session),
        })?;
        Ok(Recorder::new(
            Arc::clone(&gateway.log),
            self.session,
            self.who.clone(),
            writer,
            self.accepted_at,
        ))
    }

    pub(super) async fn cancel(&self, pid: u32, key: &[u8], gateway: &Gateway) {
        let (agent, who) = (&self.principal.agent, self.who.clone());
        let keys = &gateway.cancel_keys;
        if !keys.cancel(pid, key, agent, who, &gateway.log).await {
            let denial = Denial {
                rule: "cancel:unknown-key".to_owned(),
                message: "the cancel request names no session of this agent".to_owned(),
                detail: format!("Process id {pid}."),
                hint: "Cancel with the connection that runs the statement.".to_owned(),
            };
            self.deny(Stage::Protocol, &denial, gateway);
        }
    }
}

//! An open session, from the welcome to the last leaf.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::agent_stream::AgentStream;
use super::cancel::Issued;
use super::catalogue::Catalogues;
use super::greeting::fatal;
use super::idle::Activity;
use super::relay::{self, Incoming, RelayError, Session, TargetClosed};
use super::upstream::Connection;
use crate::app::Gateway;
use crate::audit::event::{SessionId, SessionOutcome};
use crate::policy::Denial;
use crate::protocol::postgres::copy::CopyError;
use crate::protocol::postgres::encode::{ErrorText, Severity};
use crate::protocol::postgres::{ProtocolError, Sender, encode};
use crate::session::decide::Judge;
use crate::session::forward::forward;
use crate::session::mask::Delivery;
use crate::session::record::Recorder;
use crate::session::watch;

/// Why an agent may have left as soon as it was let in.
const NOT_A_WORD: &str = "the agent left without a word when it was let in; if its client requires a login (channel_binding=require, require_auth), set the agent's postgres_password_file";

/// A session that is open on both sides.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) session: SessionId,
    pub(super) judge: Judge,
    pub(super) catalogues: Arc<Catalogues>,
    pub(super) key: Issued,
    pub(super) shared: Session,
}

impl Open {
    pub(super) async fn run(
        self: Box<Self>,
        connection: Connection,
        stream: AgentStream,
        buffer: BytesMut,
        gateway: &Gateway,
    ) {
        tracing::info!(session = %self.session, agent = self.judge.principal.agent, target = self.judge.target.name, "session open");
        let recorder = Arc::clone(&self.shared.recorder);
        let session = self.session;
        let (outcome, reason) = self.relay(connection, stream, buffer, gateway).await;
        tracing::info!(%session, ?outcome, reason, "session closed");
        if let Err(error) = recorder.close(outcome, reason) {
            tracing::error!(%session, %error, "the end of a session could not be written");
        }
    }

    async fn relay(
        self: Box<Self>,
        mut connection: Connection,
        stream: AgentStream,
        buffer: BytesMut,
        gateway: &Gateway,
    ) -> (SessionOutcome, Option<String>) {
        let welcome = self.welcome(&connection);
        // The agent is told them, and that is all they are for.
        connection.announced = Vec::new();
        // What is in its box stays there.
        let Open {
            judge,
            catalogues,
            shared,
            ..
        } = &*self;
        let (agent_reader, mut agent_writer) = stream.into_split();
        let (said, buffered) = (agent_reader.said(), buffer.len());
        let activity = Activity::new();
        let mut agent_reader = activity.of(agent_reader);
        let idle_timeout = judge.target.idle_timeout;
        let limit = usize::try_from(judge.target.max_message).unwrap_or(usize::MAX);
        let ended = {
            let Connection {
                reader,
                mut writer,
                buffer: early,
                ..
            } = connection;
            let mut reader = activity.of(reader);
            let agent_writer = &mut agent_writer;
            let relayed = async {
                let mut welcome = welcome.map_err(RelayError::Target)?;
                let recorded = shared.recorder.response(welcome.finish())?;
                drop(welcome);
                forward(agent_writer, recorded)
                    .await
                    .map_err(RelayError::AgentIo)?;
                // Boxed: a future that is moved about lies in the session's memory as often as it was moved.
                let requests = Box::pin(relay::requests(
                    shared,
                    judge,
                    catalogues,
                    &mut agent_reader,
                    &mut writer,
                    Incoming::new(Sender::Frontend, limit, buffer),
                ));
                let responses = Box::pin(relay::responses(
                    shared,
                    catalogues,
                    &mut reader,
                    agent_writer,
                    Incoming::new(Sender::Backend, limit, early),
                ));
                until_one_leaves(shared, requests, responses).await
            };
            tokio::select! {
                ended = relayed => ended.unwrap_or_else(Ended::Failed),
                () = gateway.stopping() => Ended::Shutdown,
                () = activity.over(idle_timeout, || shared.is_busy()) => Ended::Idle,
            }
        };
        for outcome in shared
            .conversation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .abandon()
        {
            if let Err(error) = shared.recorder.result(&outcome) {
                tracing::error!(%error, "the end of a statement could not be written");
            }
        }
        let silent = buffered == 0 && !said.anything();
        // Boxed: it comes once, and its memory would be held from the beginning.
        let said = Box::pin(ended.say(shared, judge, &mut agent_writer));
        let (outcome, reason) = said.await;
        // With TLS a connection that just ends looks as if somebody had cut it.
        let _ = tokio::time::timeout(watch::GOODBYE, agent_writer.shutdown()).await;
        if let Ended::Failed(RelayError::Agent(_)) = ended {
            // It may be in the middle of sending: a reset would take the farewell with it.
            let mut nowhere = tokio::io::sink();
            let rest = Box::pin(tokio::io::copy(&mut agent_reader, &mut nowhere));
            let _ = tokio::time::timeout(watch::GOODBYE, rest).await;
        }
        let reason = reason.or_else(|| silent.then(|| NOT_A_WORD.to_owned()));
        (outcome, reason)
    }

    /// What a client hears when it is let in.
    fn welcome(&self, connection: &Connection) -> Result<Delivery, ProtocolError> {
        let mut delivery = Delivery::default();
        delivery.own(encode::authentication_ok);
        for message in &connection.announced {
            match message.tag() {
                b'N' => self.shared.notice(message, &mut delivery)?,
                _ => delivery.unchanged(message),
            }
        }
        delivery.own(|out| encode::backend_key(out, self.key.pid(), self.key.secret()));
        delivery.own(encode::ready_for_query);
        Ok(delivery)
    }
}

/// Runs both directions until the session is over on one side, and lets the other one finish.
async fn until_one_leaves(
    session: &Session,
    requests: impl Future<Output = Result<(), RelayError>>,
    responses: impl Future<Output = Result<TargetClosed, RelayError>>,
) -> Result<Ended, RelayError> {
    tokio::pin!(requests, responses);
    let said = tokio::select! {
        said = &mut requests => said,
        closed = &mut responses => return closed.map(Ended::Target),
    };
    match said {
        // The goodbye has been passed on. The target answers what was asked before it, as it would an
        // agent of its own that no longer sends, and closes.
        Ok(()) => {
            let late = async {
                session.settled().await;
                tokio::time::sleep(watch::GOODBYE).await;
            };
            tokio::select! {
                closed = responses => match closed {
                    Ok(TargetClosed { fatal: None }) => Ok(Ended::Left),
                    Ok(closed) => Ok(Ended::Target(closed)),
                    Err(_) if session.is_settled() => Ok(Ended::Left),
                    Err(error) => Err(error),
                },
                () = late => Ok(Ended::Left),
            }
        }
        // The target takes nothing more. Most likely it has said why.
        Err(RelayError::TargetIo(error)) => {
            let late = async {
                loop {
                    tokio::time::sleep(watch::GOODBYE).await;
                    if !session.delivering.load(Ordering::Relaxed) {
                        return;
                    }
                }
            };
            tokio::select! {
                closed = responses => match closed {
                    Ok(closed @ TargetClosed { fatal: Some(_) }) => Ok(Ended::Target(closed)),
                    Ok(_) | Err(RelayError::TargetIo(_)) => Err(RelayError::TargetIo(error)),
                    Err(other) => Err(other),
                },
                () = late => Err(RelayError::TargetIo(error)),
            }
        }
        Err(error) => Err(error),
    }
}

enum Ended {
    /// The agent said goodbye, or just closed.
    Left,
    Target(TargetClosed),
    Failed(RelayError),
    Shutdown,
    Idle,
}

impl Ended {
    /// Tells the agent, where it would otherwise just see the line go dead, and names the outcome.
    async fn say<W: AsyncWrite + Unpin>(
        &self,
        session: &Session,
        judge: &Judge,
        agent: &mut W,
    ) -> (SessionOutcome, Option<String>) {
        let recorder = &session.recorder;
        let (outcome, sqlstate, message) = match self {
            Ended::Left => return (SessionOutcome::Closed, None),
            Ended::Failed(error @ RelayError::AgentIo(_)) => {
                return (SessionOutcome::Closed, Some(error.to_string()));
            }
            // The agent has heard it from the target, or sees the same end of the connection.
            Ended::Target(TargetClosed { fatal }) => {
                let reason = match fatal {
                    Some(sqlstate) => format!("the target ended the session: FATAL {sqlstate}"),
                    None => "the target closed the connection".to_owned(),
                };
                return (SessionOutcome::Error, Some(reason));
            }
            Ended::Shutdown => (
                SessionOutcome::Shutdown,
                "57P01",
                "the gateway is shutting down".to_owned(),
            ),
            Ended::Idle => (
                SessionOutcome::Idle,
                "57P05",
                "terminating connection due to idle-session timeout".to_owned(),
            ),
            Ended::Failed(RelayError::Target(ProtocolError::Copy(CopyError::LongRow))) => (
                SessionOutcome::Error,
                "54000",
                "a row of COPY data is too long to be masked".to_owned(),
            ),
            Ended::Failed(RelayError::Agent(error) | RelayError::Target(error)) => {
                let (stage, denial) = relay::protocol_denial(error, &judge.target.name);
                if let Err(error) = recorder.deny(stage, None, None, &denial) {
                    tracing::error!(%error, "a denial could not be written");
                }
                if !session.delivering.load(Ordering::Relaxed) {
                    farewell(recorder, agent, &denied(error, &denial)).await;
                }
                return (SessionOutcome::ProtocolError, Some(denial.detail));
            }
            Ended::Failed(RelayError::TargetIo(_)) => (
                SessionOutcome::Error,
                "08006",
                format!(
                    "the connection between the gateway and target \"{}\" broke",
                    judge.target.name
                ),
            ),
            Ended::Failed(RelayError::Evidence(_)) => (
                SessionOutcome::Error,
                "53100",
                "the session cannot be recorded any more, so it ends".to_owned(),
            ),
            Ended::Failed(RelayError::Catalogue(_)) => (
                SessionOutcome::Error,
                "08006",
                "the target's catalogue cannot be read, so masking cannot be guaranteed".to_owned(),
            ),
        };
        let reason = match self {
            Ended::Failed(error) => error.to_string(),
            _ => message.clone(),
        };
        if !session.delivering.load(Ordering::Relaxed) {
            let error = ErrorText {
                severity: Severity::Fatal,
                sqlstate,
                message: &message,
                detail: Some(&reason),
                hint: None,
            };
            farewell(recorder, agent, &error).await;
        }
        (outcome, Some(reason))
    }
}

/// 54000 is `program_limit_exceeded`, 08P01 `protocol_violation`.
fn denied<'a>(error: &ProtocolError, denial: &'a Denial) -> ErrorText<'a> {
    match error {
        ProtocolError::TooLong { .. } => fatal(denial, "54000"),
        _ => fatal(denial, "08P01"),
    }
}

async fn farewell<W: AsyncWrite + Unpin>(
    recorder: &Recorder,
    agent: &mut W,
    error: &ErrorText<'_>,
) {
    let mut delivery = Delivery::default();
    delivery.own(|out| encode::error_response(out, error));
    let sent = watch::within(watch::GOODBYE, "a farewell", async {
        match recorder.response(delivery.finish()) {
            Ok(recorded) => forward(agent, recorded).await,
            // The disk refuses: these words of the gateway's own are the only bytes that go unrecorded.
            Err(_) => {
                let mut out = BytesMut::new();
                encode::error_response(&mut out, error);
                agent.write_all(&out).await
            }
        }
    });
    if let Err(error) = sent.await {
        tracing::debug!(%error, "a farewell did not reach its agent");
    }
    let _ = agent.shutdown().await;
}

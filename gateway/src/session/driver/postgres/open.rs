//! An open session, from the welcome to the last leaf.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cancel::Issued;
use super::catalogue::Catalogues;
use super::relay::{self, RelayError, Session};
use super::upstream::Connection;
use crate::app::Gateway;
use crate::audit::event::{SessionId, SessionOutcome};
use crate::protocol::postgres::ProtocolError;
use crate::protocol::postgres::copy::CopyError;
use crate::protocol::postgres::encode;
use crate::protocol::postgres::encode::{ErrorText, Severity};
use crate::session::decide::Judge;
use crate::session::forward::forward;
use crate::session::mask::Delivery;
use crate::session::record::Recorder;
use crate::session::watch;

/// A session that is open on both sides.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) session: SessionId,
    pub(super) judge: Judge,
    pub(super) catalogues: Arc<Catalogues>,
    pub(super) connection: Connection,
    pub(super) key: Issued,
    /// Options the client asked for and does not get; present when it must be told.
    pub(super) unsupported: Option<Vec<String>>,
    pub(super) shared: Session,
}

impl Open {
    pub(super) async fn run(self, socket: TcpStream, buffer: BytesMut, gateway: &Gateway) {
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
                let responses =
                    relay::responses(&shared, &catalogues, &mut reader, agent_writer, early);
                tokio::pin!(requests, responses);
                tokio::select! {
                    said = &mut requests => {
                        if let Err(RelayError::TargetIo(error)) = said {
                            // Most likely it has said why it takes nothing more.
                            let responses = tokio::time::timeout(watch::GOODBYE, responses);
                            return responses.await.unwrap_or(Err(RelayError::TargetIo(error)));
                        }
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
            .unwrap_or_else(PoisonError::into_inner)
            .abandon()
        {
            if let Err(error) = shared.recorder.result(&outcome) {
                tracing::error!(%error, "the end of a statement could not be written");
            }
        }
        ended.say(&shared, &mut agent_writer).await
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
    async fn say<W: AsyncWrite + Unpin>(
        self,
        session: &Session,
        agent: &mut W,
    ) -> (SessionOutcome, Option<String>) {
        let recorder = &session.recorder;
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
            Ended::Relay(Err(RelayError::Target(ProtocolError::Copy(CopyError::LongRow)))) => (
                SessionOutcome::Error,
                "54000",
                "a row of COPY data is too long to be masked",
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
        if !session.delivering.load(Ordering::Relaxed) {
            farewell(recorder, agent, sqlstate, message, &reason).await;
        }
        (outcome, Some(reason))
    }
}

async fn farewell<W: AsyncWrite + Unpin>(
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

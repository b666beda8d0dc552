//! The agent's login, which proves nothing: who it is was proven before. Some clients insist on it all the same
//! (`channel_binding=require`, `require_auth=scram-sha-256`); for an agent with a `postgres_password_file` the
//! gateway plays the server's part in SCRAM, with the password that the agent believes in.
//!
//! What is said here is never recorded. SCRAM has no way to let another password pass: it is refused.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::agent_stream::AgentStream;
use crate::policy::Denial;
use crate::protocol::postgres::encode;
use crate::protocol::postgres::scram::{Demand, ScramError};
use crate::protocol::postgres::startup;
use crate::session::watch::{self, within};

/// Bytes of randomness in the gateway's part of the nonce, as many as PostgreSQL takes.
const NONCE: usize = 18;

/// Why an agent did not come through its login.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    #[error(transparent)]
    Scram(#[from] ScramError),
    #[error(transparent)]
    Protocol(#[from] crate::protocol::postgres::ProtocolError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no randomness for a nonce")]
    Randomness,
}

impl LoginError {
    /// What the client hears, in the server's words where it has some, and its SQLSTATE.
    pub(super) fn refusal(&self, agent: &str, role: &str) -> (Denial, &'static str) {
        let denial = |message: String, hint: &str| Denial {
            rule: "startup:password".to_owned(),
            message,
            detail: format!("Rule startup:password: {self}."),
            hint: hint.to_owned(),
        };
        match self {
            LoginError::Scram(ScramError::Password) => (
                denial(
                    format!("password authentication failed for user \"{role}\""),
                    &format!(
                        "This agent is asked for the password in agents.{agent}.postgres_password_file, which is not the database's own: give the client that one, or ask the operator to remove the key."
                    ),
                ),
                "28P01",
            ),
            LoginError::Scram(ScramError::Binding(_)) => (
                denial(
                    "SCRAM channel binding check failed".to_owned(),
                    "Something between the client and the gateway changes what they say.",
                ),
                "28000",
            ),
            LoginError::Scram(ScramError::Malformed(_) | ScramError::Mechanism)
            | LoginError::Protocol(_) => (
                denial(
                    "malformed authentication message".to_owned(),
                    "Use a PostgreSQL client that knows SCRAM-SHA-256.",
                ),
                "08P01",
            ),
            LoginError::Scram(ScramError::Unsupported(_)) => (
                denial(
                    "the client requires something of SCRAM that is not supported".to_owned(),
                    "Use SCRAM-SHA-256, or SCRAM-SHA-256-PLUS with tls-server-end-point.",
                ),
                "0A000",
            ),
            LoginError::Io(_) | LoginError::Randomness => (
                denial(
                    "the login did not come to its end".to_owned(),
                    "Give the client a password; any client that knows SCRAM-SHA-256 can log in.",
                ),
                "28000",
            ),
        }
    }
}

/// Demands the password and has the client prove that it knows it. AuthenticationOk is left to the welcome.
pub(super) async fn demand(
    demand: Demand<'_>,
    stream: &mut AgentStream,
    buffer: &mut BytesMut,
) -> Result<(), LoginError> {
    within(watch::STARTUP, "the login", async {
        Ok(play(demand, stream, buffer).await)
    })
    .await?
}

async fn play(
    demand: Demand<'_>,
    stream: &mut AgentStream,
    buffer: &mut BytesMut,
) -> Result<(), LoginError> {
    let mut out = BytesMut::new();
    encode::authentication_sasl(&mut out, demand.mechanisms());
    say(stream, &mut out).await?;
    let challenge = demand.challenge(&answer(stream, buffer).await?, &nonce()?)?;
    encode::authentication_sasl_continue(&mut out, challenge.message());
    say(stream, &mut out).await?;
    let proof = challenge.verify(&answer(stream, buffer).await?)?;
    encode::authentication_sasl_final(&mut out, &proof);
    say(stream, &mut out).await?;
    Ok(())
}

async fn say(stream: &mut AgentStream, out: &mut BytesMut) -> std::io::Result<()> {
    stream.write_all(&out.split()).await?;
    stream.flush().await
}

async fn answer(stream: &mut AgentStream, buffer: &mut BytesMut) -> Result<Bytes, LoginError> {
    loop {
        if let Some(answer) = startup::decode_answer(buffer)? {
            return Ok(answer);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "the client left when it was asked for a password",
            )
            .into());
        }
    }
}

fn nonce() -> Result<String, LoginError> {
    use base64::Engine as _;
    let mut bytes = [0; NONCE];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| LoginError::Randomness)?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

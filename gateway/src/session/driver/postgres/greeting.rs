//! The agent's side of the start: what it says before it is let in, and how it is told no.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::agent_stream::AgentStream;
use crate::policy::Denial;
use crate::protocol::postgres::encode::{ErrorText, Severity};
use crate::protocol::postgres::startup::{self, FirstPacket, Startup};
use crate::protocol::postgres::{ProtocolError, encode};
use crate::session::watch::{self, within};

/// What a connection turned out to be for.
#[derive(Debug)]
pub enum Greeting {
    Session(Startup),
    Cancel {
        pid: u32,
        key: Vec<u8>,
    },
    /// The peer left before saying anything; libpq does so after a refused GSSENCRequest at times.
    Nothing,
}

#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads up to the StartupMessage or CancelRequest, answering `N` to SSL and GSSAPI requests.
///
/// `buffer` keeps what follows, which is nothing from an orderly client.
pub async fn read(
    stream: &mut AgentStream,
    buffer: &mut BytesMut,
) -> Result<Greeting, GreetingError> {
    let (mut ssl, mut gss) = (false, false);
    loop {
        let Some(packet) = first_packet(stream, buffer).await? else {
            return Ok(Greeting::Nothing);
        };
        let asked_before = match packet {
            FirstPacket::Startup(startup) => return Ok(Greeting::Session(startup)),
            FirstPacket::Cancel { pid, key } => return Ok(Greeting::Cancel { pid, key }),
            FirstPacket::SslRequest => std::mem::replace(&mut ssl, true),
            FirstPacket::GssEncRequest => std::mem::replace(&mut gss, true),
        };
        if asked_before {
            return Err(ProtocolError::Refused("encryption was requested twice").into());
        }
        // Bytes sent ahead of our answer would be read as if they had come encrypted
        // (CVE-2021-23214): whoever sends them is not an orderly client.
        if !buffer.is_empty() {
            return Err(
                ProtocolError::Refused("received data after a request for encryption").into(),
            );
        }
        within(watch::WRITE, "an answer", stream.write_all(b"N")).await?;
    }
}

async fn first_packet(
    stream: &mut AgentStream,
    buffer: &mut BytesMut,
) -> Result<Option<FirstPacket>, GreetingError> {
    loop {
        if let Some(packet) = startup::decode(buffer)? {
            return Ok(Some(packet));
        }
        if stream.read_buf(buffer).await? == 0 {
            return match buffer.is_empty() {
                true => Ok(None),
                false => Err(ProtocolError::Refused("the start-up packet is cut short").into()),
            };
        }
    }
}

/// Tells a client that it gets no session, as a server would, and closes.
pub async fn refuse(mut stream: AgentStream, error: &ErrorText<'_>) {
    let mut out = BytesMut::new();
    encode::error_response(&mut out, error);
    let sent = within(watch::STARTUP, "a refusal", async {
        stream.write_all(&out).await?;
        stream.shutdown().await?;
        // Until the client closes: a reset would take the refusal with it.
        let mut rest = [0; 512];
        while stream.read(&mut rest).await? > 0 {}
        Ok(())
    })
    .await;
    if let Err(error) = sent {
        tracing::debug!(%error, "a refusal did not reach its client");
    }
}

/// A denial as a fatal error; 28000 is `invalid_authorization_specification`.
pub fn fatal<'a>(denial: &'a Denial, sqlstate: &'a str) -> ErrorText<'a> {
    ErrorText {
        severity: Severity::Fatal,
        sqlstate,
        message: &denial.message,
        detail: Some(&denial.detail),
        hint: Some(&denial.hint),
    }
}

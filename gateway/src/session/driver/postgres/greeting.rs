//! The agent's side of the start: what it says before it is let in, and how it is told no.
//!
//! ```text
//! first byte 0x16          TLS at once, then a packet
//! SSLRequest               S, TLS, then a packet            at most once, and not inside TLS
//! GSSENCRequest            N, then a packet                 at most once, and not inside TLS
//! StartupMessage           a session
//! CancelRequest            no answer
//! ```

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::agent_stream::AgentStream;
use super::reception::{Beginning, HandshakeError, Reception};
use crate::credentials::authority::Leaf;
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

/// A connection whose client has said what it is for.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) greeting: Greeting,
    pub(super) stream: AgentStream,
    /// What follows, which is nothing from an orderly client.
    pub(super) buffer: BytesMut,
    /// What its TLS was made with.
    pub(super) leaf: Option<Arc<Leaf>>,
}

/// A connection that could not be understood.
#[derive(Debug)]
pub(super) struct Misunderstood {
    pub(super) error: GreetingError,
    /// To say so on, if it can still carry that.
    pub(super) stream: Option<AgentStream>,
}

#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no TLS with the client: {0}")]
    Tls(#[from] HandshakeError),
}

/// Reads up to the StartupMessage or CancelRequest.
pub(super) async fn read(
    socket: TcpStream,
    reception: &Reception<'_>,
) -> Result<Greeted, Box<Misunderstood>> {
    let deadline = Instant::now() + watch::STARTUP;
    let direct = match begins_with_tls(&socket, deadline).await {
        Ok(direct) => direct,
        Err(error) => return Err(misunderstood(error, AgentStream::Plain(socket))),
    };
    let mut buffer = BytesMut::new();
    let mut ssl_allowed = !direct;
    let mut gss_allowed = !direct;
    let (mut stream, mut leaf) = match direct {
        true => encrypted(reception, socket, Beginning::Direct, deadline).await?,
        false => (AgentStream::Plain(socket), None),
    };
    loop {
        let greeting = match first_packet(&mut stream, &mut buffer, deadline).await {
            Err(error) => return Err(misunderstood(error, stream)),
            Ok(None) => Greeting::Nothing,
            Ok(Some(FirstPacket::Cancel { pid, key })) => Greeting::Cancel { pid, key },
            Ok(Some(FirstPacket::Startup(startup))) => Greeting::Session(startup),
            Ok(Some(FirstPacket::SslRequest)) if ssl_allowed => {
                if let Err(error) = answer(b'S', &mut stream, &buffer).await {
                    return Err(misunderstood(error, stream));
                }
                (ssl_allowed, gss_allowed) = (false, false);
                if let AgentStream::Plain(socket) = stream {
                    (stream, leaf) =
                        encrypted(reception, socket, Beginning::Requested, deadline).await?;
                }
                continue;
            }
            Ok(Some(FirstPacket::GssEncRequest)) if gss_allowed => {
                if let Err(error) = answer(b'N', &mut stream, &buffer).await {
                    return Err(misunderstood(error, stream));
                }
                gss_allowed = false;
                continue;
            }
            Ok(Some(FirstPacket::SslRequest)) => Greeting::Session(Startup::of_ssl_request()),
            Ok(Some(FirstPacket::GssEncRequest)) => Greeting::Session(Startup::of_gss_request()),
        };
        return Ok(Greeted {
            greeting,
            stream,
            buffer,
            leaf,
        });
    }
}

fn misunderstood(error: GreetingError, stream: AgentStream) -> Box<Misunderstood> {
    Box::new(Misunderstood {
        error,
        stream: Some(stream),
    })
}

/// Looks without taking: TLS wants to read the byte, too.
async fn begins_with_tls(socket: &TcpStream, deadline: Instant) -> Result<bool, GreetingError> {
    let mut first = [0];
    let read = in_time(deadline, socket.peek(&mut first)).await?;
    Ok(read > 0 && first == [startup::TLS_HANDSHAKE])
}

async fn in_time<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout_at(deadline, work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the start-up packet did not come in time",
        )),
    }
}

async fn encrypted(
    reception: &Reception<'_>,
    socket: TcpStream,
    beginning: Beginning,
    deadline: Instant,
) -> Result<(AgentStream, Option<Arc<Leaf>>), Box<Misunderstood>> {
    let shaken = reception.shake_hands(socket, beginning, deadline).await;
    shaken
        .map(|(stream, leaf)| (stream, Some(leaf)))
        .map_err(|error| {
            Box::new(Misunderstood {
                error: error.into(),
                stream: None,
            })
        })
}

/// Answers a request for encryption.
///
/// # Errors
/// Bytes sent ahead of the answer: they would be read as if they had come encrypted (CVE-2021-23214), so whoever
/// sends them is not an orderly client.
async fn answer(
    letter: u8,
    stream: &mut AgentStream,
    behind: &BytesMut,
) -> Result<(), GreetingError> {
    if !behind.is_empty() {
        return Err(ProtocolError::Refused(
            "received unencrypted data after a request for encryption",
        )
        .into());
    }
    within(watch::STARTUP, "an answer", stream.write_all(&[letter])).await?;
    Ok(())
}

async fn first_packet(
    stream: &mut AgentStream,
    buffer: &mut BytesMut,
    deadline: Instant,
) -> Result<Option<FirstPacket>, GreetingError> {
    loop {
        if let Some(packet) = startup::decode(buffer)? {
            return Ok(Some(packet));
        }
        if in_time(deadline, stream.read_buf(buffer)).await? == 0 {
            return match buffer.is_empty() {
                true => Ok(None),
                false => Err(ProtocolError::Refused("the start-up packet is cut short").into()),
            };
        }
    }
}

/// Tells a client that it gets no session, as a server would, and closes.
pub(super) async fn refuse(mut stream: AgentStream, error: &ErrorText<'_>) {
    let mut out = BytesMut::new();
    encode::error_response(&mut out, error);
    let sent = within(watch::STARTUP, "a refusal", async {
        stream.write_all(&out).await?;
        stream.flush().await?;
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
pub(super) fn fatal<'a>(denial: &'a Denial, sqlstate: &'a str) -> ErrorText<'a> {
    ErrorText {
        severity: Severity::Fatal,
        sqlstate,
        message: &denial.message,
        detail: Some(&denial.detail),
        hint: Some(&denial.hint),
    }
}

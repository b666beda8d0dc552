//! The connection below the login: TCP to one address, and TLS where the target's mode says so.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::binding;
use super::login::Channel;
use super::{Connection, Dial, UpstreamError};
use crate::config::TlsMode;
use crate::protocol::postgres::encode;
use crate::session::keepalive;

/// Dials and, where the target wants it, turns on TLS.
pub(super) async fn open(dial: &Dial) -> Result<Connection, UpstreamError> {
    let mut socket = TcpStream::connect(dial.address)
        .await
        .map_err(UpstreamError::Dial)?;
    socket.set_nodelay(true)?;
    keepalive::set(&socket, dial.target.keepalive)?;
    let Some(config) = &dial.tls else {
        return Ok(plain(socket));
    };
    let mut request = BytesMut::new();
    encode::ssl_request(&mut request);
    socket.write_all(&request).await?;
    // Exactly one byte: anything more would be data slipped in before TLS (CVE-2021-23222).
    match (socket.read_u8().await?, dial.target.tls.mode) {
        (b'S', _) => {}
        (b'N', TlsMode::Prefer) => return Ok(plain(socket)),
        (b'N', _) => return Err(UpstreamError::NoTls),
        // Too busy for either, or it does not know the request: an ErrorResponse follows, unread because
        // nothing vouches for it.
        _ => return Err(UpstreamError::NoTlsAnswer),
    }
    let name = server_name(dial)?;
    let stream = TlsConnector::from(Arc::clone(config))
        .connect(name, socket)
        .await
        .map_err(UpstreamError::Tls)?;
    Ok(secured(dial, stream))
}

fn plain(socket: TcpStream) -> Connection {
    let (reader, writer) = socket.into_split();
    Connection::new(Box::new(reader), Box::new(writer), Channel::Plain)
}

fn secured(dial: &Dial, stream: TlsStream<TcpStream>) -> Connection {
    let (_, tls) = stream.get_ref();
    let certificate = tls.peer_certificates().and_then(<[_]>::first);
    let channel = Channel::Tls {
        verified: dial.target.tls.proves_the_server(),
        end_point: certificate.and_then(|certificate| binding::server_end_point(certificate)),
    };
    let (reader, writer) = tokio::io::split(stream);
    Connection::new(Box::new(reader), Box::new(writer), channel)
}

/// The name that is asked for, and that the target's certificate must carry with `verify-full`.
fn server_name(dial: &Dial) -> Result<ServerName<'static>, UpstreamError> {
    let target = &dial.target;
    let name = (target.tls.server_name.clone())
        .or_else(|| target.dial.as_ref().map(|dial| dial.host.clone()))
        .or_else(|| dial.host.clone())
        .unwrap_or_else(|| dial.address.ip().to_string());
    ServerName::try_from(name)
        .map_err(|error| UpstreamError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))
}

//! The agent's connection: as it came, or inside TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp;
use tokio_rustls::server::TlsStream;

/// Both directions in one.
#[derive(Debug)]
pub enum AgentStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What the agent says.
#[derive(Debug)]
pub enum AgentReader {
    Plain(tcp::OwnedReadHalf),
    Tls(tokio::io::ReadHalf<Box<TlsStream<TcpStream>>>),
}

/// What the agent hears. Dropped, it closes this direction only; of TLS, both with the reader.
#[derive(Debug)]
pub enum AgentWriter {
    Plain(tcp::OwnedWriteHalf),
    Tls(tokio::io::WriteHalf<Box<TlsStream<TcpStream>>>),
}

impl AgentStream {
    /// Two halves that can be used at the same time.
    pub fn into_split(self) -> (AgentReader, AgentWriter) {
        match self {
            AgentStream::Plain(socket) => {
                let (reader, writer) = socket.into_split();
                (AgentReader::Plain(reader), AgentWriter::Plain(writer))
            }
            AgentStream::Tls(stream) => {
                let (reader, writer) = tokio::io::split(stream);
                (AgentReader::Tls(reader), AgentWriter::Tls(writer))
            }
        }
    }

    /// The version of TLS in the words of `pg_stat_ssl`; `None` without TLS.
    pub fn tls_version(&self) -> Option<&'static str> {
        use rustls::ProtocolVersion;
        match self {
            AgentStream::Plain(_) => None,
            AgentStream::Tls(stream) => Some(match stream.get_ref().1.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "unknown",
            }),
        }
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AgentStream::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            AgentStream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            AgentStream::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            AgentStream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AgentStream::Plain(socket) => Pin::new(socket).poll_flush(cx),
            AgentStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AgentStream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            AgentStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for AgentReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AgentReader::Plain(half) => Pin::new(half).poll_read(cx, buffer),
            AgentReader::Tls(half) => Pin::new(half).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for AgentWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            AgentWriter::Plain(half) => Pin::new(half).poll_write(cx, bytes),
            AgentWriter::Tls(half) => Pin::new(half).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AgentWriter::Plain(half) => Pin::new(half).poll_flush(cx),
            AgentWriter::Tls(half) => Pin::new(half).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AgentWriter::Plain(half) => Pin::new(half).poll_shutdown(cx),
            AgentWriter::Tls(half) => Pin::new(half).poll_shutdown(cx),
        }
    }
}

//! The agent's connection: as it came, or inside TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
pub struct AgentReader {
    half: ReadHalf,
    said: Said,
}

#[derive(Debug)]
enum ReadHalf {
    Plain(tcp::OwnedReadHalf),
    Tls(tokio::io::ReadHalf<Box<TlsStream<TcpStream>>>),
}

/// Whether the agent has said anything since its connection was split.
#[derive(Debug, Clone, Default)]
pub struct Said(Arc<AtomicBool>);

impl Said {
    pub fn anything(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
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
        let (half, writer) = match self {
            AgentStream::Plain(socket) => {
                let (reader, writer) = socket.into_split();
                (ReadHalf::Plain(reader), AgentWriter::Plain(writer))
            }
            AgentStream::Tls(stream) => {
                let (reader, writer) = tokio::io::split(stream);
                (ReadHalf::Tls(reader), AgentWriter::Tls(writer))
            }
        };
        let said = Said::default();
        (AgentReader { half, said }, writer)
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

/// Many clients close without TLS's goodbye. That is an end like any other: where one message ends is said in the
/// message, so nothing that was cut off passes for whole.
fn ended(polled: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
    match polled {
        Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Poll::Ready(Ok(()))
        }
        polled => polled,
    }
}

impl AgentReader {
    pub fn said(&self) -> Said {
        self.said.clone()
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
            AgentStream::Tls(stream) => ended(Pin::new(stream).poll_read(cx, buffer)),
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
        let before = buffer.filled().len();
        let reader = self.get_mut();
        let polled = match &mut reader.half {
            ReadHalf::Plain(half) => Pin::new(half).poll_read(cx, buffer),
            ReadHalf::Tls(half) => ended(Pin::new(half).poll_read(cx, buffer)),
        };
        if buffer.filled().len() > before {
            reader.said.0.store(true, Ordering::Relaxed);
        }
        polled
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

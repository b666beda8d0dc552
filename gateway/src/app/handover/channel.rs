//! The socket between the two processes: `SOCK_SEQPACKET`, so that a message comes whole or not at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt};
use nix::unistd::{Pid, geteuid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::broker::packet::{self, Incoming};

/// How long the other side may take to read. It does nothing else on this socket.
const WRITE: Duration = Duration::from_secs(5);

/// Messages that wait to be looked at.
const INBOX: usize = 64;

/// A message and the descriptors that came with it.
pub type Packet<T> = (T, Vec<OwnedFd>);

#[derive(Debug, Clone)]
pub struct Channel {
    socket: Arc<UnixStream>,
}

impl Channel {
    /// One end for this process, the other for the one it starts.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (own, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Channel::over(own)?, other))
    }

    /// Over the socket that a predecessor left; answers its process too.
    pub fn inherited(socket: OwnedFd) -> io::Result<(Channel, Pid)> {
        let kind = getsockopt(&socket, sockopt::SockType)?;
        let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
        if kind != SockType::SeqPacket || peer.uid() != geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "standard input is not the socket of a gateway of the same user",
            ));
        }
        Ok((Channel::over(socket)?, Pid::from_raw(peer.pid())))
    }

    fn over(socket: OwnedFd) -> io::Result<Channel> {
        let socket = UnixStream::from(socket);
        socket.set_write_timeout(Some(WRITE))?;
        Ok(Channel {
            socket: Arc::new(socket),
        })
    }

    /// Blocks while the other side does not read, for a few seconds at most.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        packet::send(&self.socket, message, descriptors)
    }

    /// Waits for one message.
    pub fn receive<T: DeserializeOwned>(&self, patience: Duration) -> io::Result<Packet<T>> {
        self.socket.set_read_timeout(Some(patience))?;
        let message = self.next();
        self.socket.set_read_timeout(None)?;
        message
    }

    /// Everything that comes from now on; ends when the other side is gone. A thread of its own reads,
    /// because the socket's other users block too.
    pub fn inbox<T: DeserializeOwned + Send + 'static>(
        &self,
    ) -> io::Result<mpsc::Receiver<Packet<T>>> {
        let (sender, inbox) = mpsc::channel(INBOX);
        let channel = self.clone();
        let read = move || {
            let error = loop {
                match channel.next() {
                    Ok(packet) => match sender.blocking_send(packet) {
                        Ok(()) => {}
                        Err(_) => return,
                    },
                    Err(error) => break error,
                }
            };
            tracing::debug!(%error, "the hand-over's socket ended");
        };
        std::thread::Builder::new()
            .name("handover".to_owned())
            .spawn(read)?;
        Ok(inbox)
    }

    fn next<T: DeserializeOwned>(&self) -> io::Result<Packet<T>> {
        loop {
            match packet::receive_with_descriptors(&self.socket) {
                Ok((Incoming::Message(message), descriptors)) => return Ok((message, descriptors)),
                Ok((Incoming::Closed, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((Incoming::Malformed(what), _)) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::super::message::{ToPredecessor, ToSuccessor};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (own, other) = Channel::pair().unwrap();
        let (other, peer) = Channel::inherited(other).unwrap();
        assert_eq!(peer, nix::unistd::getpid());
        let file = File::open("/dev/null").unwrap();
        own.send(&ToSuccessor::Maps {}, &[file.as_fd(), file.as_fd()])
            .unwrap();
        let (message, descriptors) = other.receive::<ToSuccessor>(PATIENCE).unwrap();
        assert!(matches!(message, ToSuccessor::Maps {}));
        assert_eq!(descriptors.len(), 2);
    }

    #[test]
    fn the_inbox_ends_with_the_other_side() {
        let (own, other) = Channel::pair().unwrap();
        let (other, _) = Channel::inherited(other).unwrap();
        let mut inbox = own.inbox::<ToPredecessor>().unwrap();
        other.send(&ToPredecessor::Ready {}, &[]).unwrap();
        drop(other);
        let first = inbox.blocking_recv();
        assert!(matches!(first, Some((ToPredecessor::Ready {}, _))));
        assert!(inbox.blocking_recv().is_none());
    }

    #[test]
    fn nonsense_is_an_error_and_silence_has_an_end() {
        let (own, other) = Channel::pair().unwrap();
        let silent = own.receive::<ToPredecessor>(Duration::from_millis(50));
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        for nonsense in ["{}", "ready", r#"{"say":"ready","now":true}"#] {
            let mut raw = File::from(other.try_clone().unwrap());
            raw.write_all(nonsense.as_bytes()).unwrap();
            let error = own.receive::<ToPredecessor>(PATIENCE).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{nonsense}");
        }
    }

    #[test]
    fn only_a_gateways_socket_is_taken_over() {
        let file = File::open("/dev/null").unwrap();
        assert!(Channel::inherited(file.into()).is_err());
        let (stream, _other) = UnixStream::pair().unwrap();
        let error = Channel::inherited(stream.into()).unwrap_err();
        assert!(error.to_string().contains("standard input"), "{error}");
    }
}

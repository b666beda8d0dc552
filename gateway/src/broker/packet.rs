//! One message on a `SOCK_SEQPACKET` socket: all of it or nothing, so there is no framing to get wrong.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::MAX_MESSAGE;
use crate::intercept::descriptors;

/// What came in.
#[derive(Debug)]
pub enum Incoming<T> {
    Message(T),
    /// The other side closed the connection.
    Closed,
    /// Too large, or not what was agreed; the text says what is wrong.
    Malformed(String),
}

/// Sends one message. The descriptors are duplicated: the caller's own stay its own.
pub fn send<T: Serialize>(
    socket: &UnixStream,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let numbers: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(&bytes)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &parts,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Waits for one message, as long as the socket's timeout allows. There is no room for descriptors: what
/// somebody sends along, the kernel throws away.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Incoming<T>> {
    let mut buffer = vec![0; MAX_MESSAGE + 1];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    Ok(read(buffer.get(..length).unwrap_or_default()))
}

/// The same, with the descriptors that came along.
pub fn receive_with_descriptors<T: DeserializeOwned>(
    socket: &UnixStream,
) -> io::Result<(Incoming<T>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MAX_MESSAGE + 1];
    let (length, received) = descriptors::receive(socket.as_fd(), &mut buffer)?;
    Ok((read(buffer.get(..length).unwrap_or_default()), received))
}

/// A message that fills the buffer was cut: the buffer has room for one byte more than is allowed.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Incoming<T> {
    if bytes.is_empty() {
        return Incoming::Closed;
    }
    if bytes.len() > MAX_MESSAGE {
        return Incoming::Malformed(format!("a message is larger than {MAX_MESSAGE} bytes"));
    }
    match serde_json::from_slice(bytes) {
        Ok(message) => Incoming::Message(message),
        Err(error) => Incoming::Malformed(format!("not a message of this protocol: {error}")),
    }
}

//! Watch: no wait without an end.

use std::future::Future;
use std::io;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use tokio::net::TcpStream;

/// How long a client may take to say who it wants to be; PostgreSQL's `authentication_timeout` is 60 s.
pub const STARTUP: Duration = Duration::from_secs(30);
/// How long establishing who connected may take: an agent's own file system may sit below its program.
pub const IDENTIFY: Duration = Duration::from_secs(15);
/// How long dialling a target and logging in there may take.
pub const DIAL: Duration = Duration::from_secs(15);
/// How long one address of a target may take to accept a connection, before the next one is tried.
pub const REACH: Duration = Duration::from_secs(5);
/// How long a write outside of a session, or to say how it ended, may wait for a peer that does not read.
/// Within a session there is no such limit, as there is none in the server: see [`super::forward`].
pub const WRITE: Duration = Duration::from_secs(300);
/// How long the target may take to close after the client said goodbye and everything was answered, and how
/// long a client may take to hear why its session ended.
pub const GOODBYE: Duration = Duration::from_secs(5);
/// How long the analysis of one operation may take.
pub const ANALYSIS: Duration = Duration::from_secs(10);

/// An agent that is silent for this many seconds is asked whether it is there,
const SILENT: u32 = 60;
/// and again after so many,
const AGAIN: u32 = 10;
/// until this many questions went unanswered.
const UNANSWERED: u32 = 6;

/// Has the kernel notice when the peer's machine, or its network namespace, is gone.
pub fn keep_alive(socket: &TcpStream) -> nix::Result<()> {
    setsockopt(socket, KeepAlive, &true)?;
    setsockopt(socket, TcpKeepIdle, &SILENT)?;
    setsockopt(socket, TcpKeepInterval, &AGAIN)?;
    setsockopt(socket, TcpKeepCount, &UNANSWERED)
}

/// Waits for `work`, but no longer than `limit`.
///
/// # Errors
/// `TimedOut`, naming `what` took too long.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{what} took longer than {} s", limit.as_secs()),
        )),
    }
}

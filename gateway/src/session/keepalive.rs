//! Keep-alive: a peer that is gone is noticed, also by a session in which nothing is said.

use std::io;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{
    KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout,
};
use tokio::net::TcpStream;

use super::watch;

/// How often a silent peer is asked before it counts as gone.
const PROBES: u32 = 6;

/// Has the kernel ask the other end after `silence` whether it is still there.
///
/// `TCP_USER_TIMEOUT` also bounds how long sent bytes may stay unacknowledged. The kernel counts a peer that is
/// there and does not read (its window is zero) the same way, so it must not be less than the gateway itself
/// waits for one: a server may read nothing while it waits for a lock.
pub fn set(socket: &TcpStream, silence: Duration) -> io::Result<()> {
    let seconds = u32::try_from(silence.as_secs()).unwrap_or(u32::MAX).max(1);
    let interval = (seconds / PROBES).max(1);
    let patience = (silence + watch::WRITE).as_millis();
    setsockopt(socket, TcpKeepIdle, &seconds)?;
    setsockopt(socket, TcpKeepInterval, &interval)?;
    setsockopt(socket, TcpKeepCount, &PROBES)?;
    setsockopt(
        socket,
        TcpUserTimeout,
        &u32::try_from(patience).unwrap_or(u32::MAX),
    )?;
    setsockopt(socket, KeepAlive, &true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_silent_peer_is_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        set(&socket, Duration::from_secs(60)).unwrap();
        assert!(getsockopt(&socket, KeepAlive).unwrap());
        assert_eq!(getsockopt(&socket, TcpKeepIdle).unwrap(), 60);
        assert_eq!(getsockopt(&socket, TcpKeepInterval).unwrap(), 10);
        assert_eq!(getsockopt(&socket, TcpKeepCount).unwrap(), 6);
        assert_eq!(getsockopt(&socket, TcpUserTimeout).unwrap(), 360_000);
    }
}

//! Who may write the log: two advisory locks on the file.
//!
//! Every gateway holds [`WRITERS`] for as long as it has the log open: for writing if it is the only one,
//! for reading if it shares the log with a gateway that takes over or drains. Those who share hold [`TURN`]
//! for each line.
//!
//! These are locks of open file descriptions (fcntl(2), `F_OFD_SETLK`), not flock(2): changing one from
//! writing to reading and back is atomic, so no other process can get in between, and a process that dies
//! loses its locks at once.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// The bytes that stand for the locks; they lock no content.
const WRITERS: libc::off_t = 0;
const TURN: libc::off_t = 1;

/// How long the others may take for a line. They hold the lock for one write(2); longer means that one of
/// them was stopped in the middle of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a gateway holds the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Alone,
    Shared,
}

/// Takes the log, or changes how it is held. `false`: somebody else's hold does not allow it, nothing
/// changed.
pub(super) fn hold(file: &File, hold: Hold) -> io::Result<bool> {
    let kind = match hold {
        Hold::Alone => libc::F_WRLCK,
        Hold::Shared => libc::F_RDLCK,
    };
    set(file, WRITERS, kind)
}

/// Whether any gateway holds the log.
pub(super) fn is_held(file: &File) -> io::Result<bool> {
    let mut lock = lock(WRITERS, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// The right to write one line, given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    file: &'a File,
}

/// Waits for the right to write one line.
///
/// # Errors
/// `TimedOut` when another gateway does not give it back.
pub(super) fn turn(file: &File) -> io::Result<Turn<'_>> {
    let since = Instant::now();
    let mut pause = Duration::from_micros(20);
    while !set(file, TURN, libc::F_WRLCK)? {
        if since.elapsed() > PATIENCE {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "another gateway has not finished its line: was its process stopped?",
            ));
        }
        // fcntl's own waiting has no deadline. Long pauses would starve this one beside a busy gateway.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_micros(500));
    }
    Ok(Turn { file })
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Err(error) = set(self.file, TURN, libc::F_UNLCK) {
            tracing::error!(%error, "the log's lock could not be given back");
        }
    }
}

fn set(file: &File, byte: libc::off_t, kind: i32) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock(byte, kind))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "libc declares the constants wider than the fields they are for"
)]
fn lock(byte: libc::off_t, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

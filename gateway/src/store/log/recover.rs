//! What others left in the log: lines this gateway did not write, half a line, sessions without an end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::late::Late;
use super::{Log, LogError, LogReader, State, Tail, io_error};
use crate::audit::chain::{self, Record, Verifier};
use crate::audit::event::{Event, SessionId};
use crate::audit::ledger::{Ledger, Session};
use crate::store::recordings::Digest;

/// What gateways that are gone did not finish.
#[derive(Debug, Default)]
pub(super) struct Left {
    starts: Vec<u64>,
    sessions: Vec<Session>,
}

impl Left {
    pub(super) fn by(ledger: &Ledger) -> Left {
        Left {
            starts: ledger.running().collect(),
            sessions: ledger.open_sessions().cloned().collect(),
        }
    }
}

impl Log {
    /// Reads and checks the whole lines of `file`, to go on after them.
    pub(super) fn continuing(file: File, path: PathBuf) -> Result<Log, LogError> {
        let tail = Tail {
            next: 1,
            head: chain::GENESIS,
            end: 0,
            state: State::Open,
            others: Some(Ledger::default()),
            inviting: false,
        };
        let log = Log {
            file,
            path,
            tail: Mutex::new(tail),
            late: Late::default(),
            failed: AtomicBool::new(false),
        };
        log.read(&mut log.tail())?;
        Ok(log)
    }

    /// Takes what other gateways appended. The caller has its turn, or is alone.
    pub(super) fn catch_up(&self, tail: &mut Tail, now: SystemTime) -> Result<(), LogError> {
        let size = self.file.metadata().map_err(io_error("read", &self.path))?;
        if size.len() == tail.end {
            return Ok(());
        }
        if size.len() < tail.end {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "lines were cut off");
            return Err(io_error("continue", &self.path)(cut));
        }
        // Whoever began a line and is not writing it now never will.
        match self.read(tail)? {
            torn if torn.is_empty() => Ok(()),
            torn => self.replace_torn_line(tail, &torn, now),
        }
    }

    /// Takes the whole lines behind the tail, and answers what follows them.
    fn read(&self, tail: &mut Tail) -> Result<Vec<u8>, LogError> {
        let failed = || io_error("read", &self.path);
        let file = self.file.try_clone().map_err(failed())?;
        let mut reader = LogReader::at(file, tail.end);
        let mut verifier = Verifier::after(tail.next - 1, tail.head);
        while let Some(line) = reader.next_line().map_err(failed())? {
            verifier.line(line).map_err(|link| LogError::Broken {
                path: self.path.clone(),
                link,
            })?;
            // An event of a newer version says nothing about sessions that this one could finish.
            if let Some(others) = &mut tail.others
                && let Ok(record) = Record::parse(line)
            {
                others.apply(&record);
                others.forget_ended();
            }
            tail.advance(1, line.len() + 1, verifier.summary().head);
        }
        Ok(reader.tail().to_vec())
    }

    /// Writes `log.recovered` over the torn line. It carries those bytes in hex and so is longer: nothing
    /// of them is left, and none of them is lost should this gateway die here too.
    fn replace_torn_line(
        &self,
        tail: &mut Tail,
        torn: &[u8],
        now: SystemTime,
    ) -> Result<(), LogError> {
        let torn_bytes = hex::encode(torn);
        let line = chain::encode(
            tail.next,
            now,
            &Event::LogRecovered { torn_bytes },
            tail.head,
        )?;
        // A file opened for appending cannot be written anywhere else.
        OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|file| {
                reserve(&file, tail.end, line.bytes.len())?;
                file.write_all_at(&line.bytes, tail.end)
            })
            .map_err(io_error("recover", &self.path))?;
        tail.advance(1, line.bytes.len(), line.hash);
        Ok(())
    }

    /// Writes the ends that gateways which are gone could not write.
    pub(super) fn finish(
        &self,
        left: Left,
        now: SystemTime,
        seal: impl Fn(SessionId) -> Option<Digest>,
    ) -> Result<(), LogError> {
        let mut open_sessions: Vec<_> = left.sessions.iter().map(|open| open.session).collect();
        // Which of several gateways that are gone had a session open is not in the log: the newest is told.
        for last_start_seq in left.starts.into_iter().rev() {
            let crashed = Event::GatewayCrashed {
                last_start_seq,
                open_sessions: std::mem::take(&mut open_sessions),
            };
            self.append_at(now, &crashed)?;
        }
        for session in &left.sessions {
            let recording = seal(session.session).map(|digest| (digest.sha256, digest.frames));
            self.append_at(now, &session.crashed(recording))?;
        }
        self.sync()
    }
}

/// Makes sure of the room first: a disk that is full in the middle of the write would lose both lines.
fn reserve(file: &File, offset: u64, length: usize) -> io::Result<()> {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(io::ErrorKind::FileTooLarge.into());
    };
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

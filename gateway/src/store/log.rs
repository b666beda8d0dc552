//! The evidence log on disk: `<log>/log.jsonl`, one event per line, only ever appended to.
//!
//! An event is in the file before [`Log::append`] returns, by one write(2) for all that are appended together: whoever dies afterwards, the
//! kernel has it. What nothing waits for may come a little later ([`late`]). A write that fails or ends short closes the log: every later append fails too, until
//! [`Log::reopen`] has found the disk well. A gateway that cannot write evidence refuses work.
//!
//! One gateway writes a log, and knows by heart where its chain ends. During a hand-over there are several:
//! the one that serves and those that still drain. Then each line takes a turn ([`lock`]), and whoever has
//! it first reads and checks what the others wrote. When the others are gone, the last one finishes what
//! they could not ([`recover`]), as the next start does for a gateway that died alone: a torn last line
//! becomes the content of `log.recovered`, a start without a stop gets its `gateway.crashed`, and every
//! session left open its `session.close`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::audit::chain::{BrokenLink, Draft, Hash};
use crate::audit::event::{Event, SessionId};
use crate::audit::ledger::Ledger;
use crate::store::recordings::Digest;

mod late;
mod lock;
mod reader;
mod recover;
#[cfg(test)]
mod tests;

pub use reader::LogReader;

use late::Late;
use lock::Hold;
use recover::Left;

/// A gateway that is being replaced needs a moment to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The log file in the log's directory.
pub fn file_in(dir: &Path) -> PathBuf {
    dir.join("log.jsonl")
}

/// Whether a gateway holds the log in `dir`.
pub fn in_use(dir: &Path) -> io::Result<bool> {
    lock::is_held(&File::open(file_in(dir))?)
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is in use: another gateway writes it", path.display())]
    InUse { path: PathBuf },
    #[error(
        "{}: {link}. The log is not continued; `sluice audit verify` shows more. To go on, move the \
         directory aside and keep it as evidence", path.display()
    )]
    Broken { path: PathBuf, link: BrokenLink },
    #[error("{} was written only in part ({written} of {wanted} bytes): is the disk full?", path.display())]
    Short {
        path: PathBuf,
        written: usize,
        wanted: usize,
        /// How many lines are there whole.
        lines: usize,
    },
    #[error("{} takes no events since an earlier write failed; is there room on the disk?", path.display())]
    Closed { path: PathBuf },
    #[error(
        "{} could not be written to the disk itself, nobody knows how much of it is there: see to the \
         disk, then restart the gateway", path.display()
    )]
    Lost { path: PathBuf },
    #[error("the event cannot be serialised: {0}")]
    Event(#[from] serde_json::Error),
}

impl LogError {
    /// How many of the lines that were to be written are in the file nevertheless.
    fn whole_lines(&self) -> usize {
        match self {
            LogError::Short { lines, .. } => *lines,
            _ => 0,
        }
    }
}

/// The log, open for appending from any number of tasks.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    tail: Mutex<Tail>,
    late: Late,
    /// An append failed. Apart from the tail, whose lock may have to wait for another gateway.
    failed: AtomicBool,
}

/// Where the next line goes.
#[derive(Debug)]
struct Tail {
    next: u64,
    head: Hash,
    /// Length of the file up to there.
    end: u64,
    state: State,
    /// The other gateways that write this log too, as far as their lines tell. Lines of this gateway's own
    /// are never applied, so what is unfinished here when the others are gone is theirs.
    others: Option<Ledger>,
    /// Another gateway is about to join, so this one does not settle.
    inviting: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A write failed; what it left behind is cleaned up once it may be tried again.
    Closed,
    /// fdatasync failed: nobody knows which pages were written.
    Lost,
}

impl Log {
    /// Opens the log in `dir` (created with mode 0700) and finishes what a dead gateway left.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Log, LogError> {
        Log::open_sealing(dir, now, |_| None)
    }

    /// As [`Log::open`]; `seal` digests the recording of a session whose gateway died
    /// ([`crate::store::recordings::digest`]), so that its `session.close` vouches for the file.
    ///
    /// Where gateways that were handed over still drain, the log is shared with them ([`Log::join`]).
    pub fn open_sealing(
        dir: &Path,
        now: SystemTime,
        seal: impl Fn(SessionId) -> Option<Digest>,
    ) -> Result<Log, LogError> {
        let path = file_in(dir);
        let file = create(dir, &path).map_err(io_error("open", &path))?;
        let hold = wait_for_hold(&file, &path)?;
        let log = Log::continuing(file, path)?;
        if hold == Hold::Alone {
            log.settle(now, seal)?;
        }
        Ok(log)
    }

    /// Opens a log that its gateway shares ([`Log::share`]), without finishing anything: the others live.
    pub fn join(dir: &Path) -> Result<Log, LogError> {
        let path = file_in(dir);
        let file = open_file(&path).map_err(io_error("open", &path))?;
        match lock::hold(&file, Hold::Shared).map_err(io_error("lock", &path))? {
            true => Log::continuing(file, path),
            false => Err(LogError::InUse { path }),
        }
    }

    /// From now on other gateways may write the log too ([`Log::join`]), and this one does not settle before
    /// [`Log::expect_nobody`].
    pub fn share(&self) -> Result<(), LogError> {
        let mut tail = self.tail();
        let held = lock::hold(&self.file, Hold::Shared).map_err(io_error("lock", &self.path))?;
        // Nobody else can hold it for writing: this gateway holds it.
        if !held {
            return Err(LogError::InUse {
                path: self.path.clone(),
            });
        }
        tail.others.get_or_insert_default();
        tail.inviting = true;
        Ok(())
    }

    /// No other gateway will join.
    pub fn expect_nobody(&self) {
        self.tail().inviting = false;
    }

    /// Whether this gateway is the only one that writes the log. If it shared the log and the others are
    /// gone by now, it becomes the only one, and finishes what they left.
    pub fn settle(
        &self,
        now: SystemTime,
        seal: impl Fn(SessionId) -> Option<Digest>,
    ) -> Result<bool, LogError> {
        let left = {
            let mut tail = self.tail();
            if tail.others.is_none() {
                return Ok(true);
            }
            if tail.inviting
                || !lock::hold(&self.file, Hold::Alone).map_err(io_error("lock", &self.path))?
            {
                return Ok(false);
            }
            self.catch_up(&mut tail, now)?;
            Left::by(&tail.others.take().unwrap_or_default())
        };
        // Without the lock: digesting recordings takes its time. Should this gateway die meanwhile, the
        // next one finds what is left.
        self.finish(left, now, seal)?;
        Ok(true)
    }

    /// Appends the event and returns its sequence number. It is in the file when this returns.
    pub fn append(&self, event: &Event) -> Result<u64, LogError> {
        self.append_at(SystemTime::now(), event)
    }

    fn append_at(&self, time: SystemTime, event: &Event) -> Result<u64, LogError> {
        let draft = Draft::new(time, event)?;
        self.append_drafts(time, vec![draft])
    }

    /// Appends events next to each other and by one write, with the late ones that wait before them; answers
    /// the number of the last one. All of them are in the file when this returns. `time` is that of the last one.
    pub fn append_drafts(&self, time: SystemTime, drafts: Vec<Draft>) -> Result<u64, LogError> {
        let mut tail = self.tail();
        self.check(&tail)?;
        let mut lines = self.late.take();
        let late = lines.len();
        lines.extend(drafts);
        // Stays so if anything below fails, or panics.
        tail.state = State::Closed;
        let appended = self.link(&mut tail, time, &lines);
        match &appended {
            Ok(_) => tail.state = State::Open,
            Err(error) => {
                self.failed.store(true, Ordering::Relaxed);
                lines.truncate(late);
                lines.drain(..error.whole_lines().min(late));
                self.late.put_back(lines);
            }
        }
        appended
    }

    fn link(&self, tail: &mut Tail, time: SystemTime, drafts: &[Draft]) -> Result<u64, LogError> {
        let _turn = self.turn(tail)?;
        if tail.others.is_some() {
            self.catch_up(tail, time)?;
        }
        self.write(tail, drafts)
    }

    /// Whether the next append can work.
    pub fn is_open(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    /// Opens the log again after a failed write, which may have left half a line.
    pub fn reopen(&self, now: SystemTime) -> Result<(), LogError> {
        let mut tail = self.tail();
        if tail.state == State::Closed {
            let _turn = self.turn(&tail)?;
            self.catch_up(&mut tail, now)?;
            tail.state = State::Open;
            self.failed.store(false, Ordering::Relaxed);
        }
        self.check(&tail)
    }

    /// Waits until everything appended so far is on the disk itself (fdatasync; blocks). After a failure
    /// the log stays closed: nobody knows which pages were written.
    pub fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|error| {
            self.tail().state = State::Lost;
            self.failed.store(true, Ordering::Relaxed);
            io_error("write", &self.path)(error)
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Nothing to wait for, unless there are others.
    fn turn(&self, tail: &Tail) -> Result<Option<lock::Turn<'_>>, LogError> {
        let shared = tail.others.is_some();
        let turn = shared.then(|| lock::turn(&self.file)).transpose();
        turn.map_err(io_error("lock", &self.path))
    }

    fn write(&self, tail: &mut Tail, drafts: &[Draft]) -> Result<u64, LogError> {
        let mut lines = Vec::new();
        let (mut seq, mut head) = (tail.next, tail.head);
        for draft in drafts {
            head = draft.link_into(seq, head, &mut lines);
            seq += 1;
        }
        let written = write_once(&self.file, &lines).map_err(io_error("write", &self.path))?;
        if written < lines.len() {
            let whole = lines.iter().take(written).filter(|byte| **byte == b'\n');
            return Err(LogError::Short {
                path: self.path.clone(),
                written,
                wanted: lines.len(),
                lines: whole.count(),
            });
        }
        tail.advance(seq - tail.next, written, head);
        Ok(seq - 1)
    }

    fn check(&self, tail: &Tail) -> Result<(), LogError> {
        let path = self.path.clone();
        match tail.state {
            State::Open => Ok(()),
            State::Closed => Err(LogError::Closed { path }),
            State::Lost => Err(LogError::Lost { path }),
        }
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tail {
    /// Lines of `length` bytes, newlines included, were added; the last one's hash is `hash`.
    fn advance(&mut self, lines: u64, length: usize, hash: Hash) {
        self.next += lines;
        self.head = hash;
        self.end += length as u64;
    }
}

fn create(dir: &Path, path: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let file = open_file(path)?;
    // The name of a new file survives a power cut only when its directory is written too.
    File::open(dir)?.sync_all()?;
    Ok(file)
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Alone if possible, shared if all others share.
fn wait_for_hold(file: &File, path: &Path) -> Result<Hold, LogError> {
    let since = Instant::now();
    let take = |hold| lock::hold(file, hold).map_err(io_error("lock", path));
    loop {
        if take(Hold::Alone)? {
            return Ok(Hold::Alone);
        }
        if since.elapsed() >= LOCK_PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match take(Hold::Shared)? {
        true => Ok(Hold::Shared),
        false => Err(LogError::InUse {
            path: path.to_owned(),
        }),
    }
}

fn write_once(mut file: &File, line: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(line) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        doing,
        path,
        source,
    }
}

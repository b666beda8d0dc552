//! The evidence log on disk: `<log>/log.jsonl`, one event per line, only ever appended to.
//!
//! An event is in the file, by one write(2), before [`Log::append`] returns: whoever dies afterwards, the
//! kernel has it. A write that fails or ends short poisons the log: every later append fails too, and a
//! gateway that cannot write evidence refuses work.
//!
//! Only one gateway writes a log, held by a flock on the file. When it opens the log it finishes what a
//! gateway before it could not: a torn last line becomes the content of `log.recovered`, a start without
//! a stop gets its `gateway.crashed`, and every session left open its `session.close`.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::audit::chain::{self, BrokenLink, Draft, Hash, Record, Verifier};
use crate::audit::event::{Event, SessionId};
use crate::audit::ledger::Ledger;
use crate::store::recordings::Digest;

mod reader;

pub use reader::LogReader;

/// Readers may hold the lock for an instant to see whether a gateway runs, and a gateway that is being
/// replaced needs a moment to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The log file in the log's directory.
pub fn file_in(dir: &Path) -> PathBuf {
    dir.join("log.jsonl")
}

/// Whether a gateway holds the log in `dir`.
pub fn in_use(dir: &Path) -> io::Result<bool> {
    match File::open(file_in(dir))?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
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
    },
    #[error("{} takes no more events, since an earlier write failed; restart the gateway when the disk is well", path.display())]
    Poisoned { path: PathBuf },
    #[error("the event cannot be serialised: {0}")]
    Event(#[from] serde_json::Error),
}

/// The log, open for appending from any number of tasks.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    tail: Mutex<Tail>,
}

/// Where the next line goes.
#[derive(Debug)]
struct Tail {
    next: u64,
    head: Hash,
    poisoned: bool,
}

impl Log {
    /// Opens the log in `dir` (created with mode 0700) and finishes what a dead gateway left.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Log, LogError> {
        Log::open_sealing(dir, now, |_| None)
    }

    /// As [`Log::open`]; `seal` digests the recording of a session whose gateway died
    /// ([`crate::store::recordings::digest`]), so that its `session.close` vouches for the file.
    pub fn open_sealing(
        dir: &Path,
        now: SystemTime,
        seal: impl Fn(SessionId) -> Option<Digest>,
    ) -> Result<Log, LogError> {
        let path = file_in(dir);
        let file = create(dir, &path).map_err(io_error("open", &path))?;
        lock(&file, &path)?;
        let past = read_past(dir, &path)?;
        let log = Log {
            file,
            path,
            tail: Mutex::new(Tail {
                next: past.verifier.summary().events + 1,
                head: past.verifier.summary().head,
                poisoned: false,
            }),
        };
        log.recover(&past, now, seal)?;
        Ok(log)
    }

    /// Appends the event and returns its sequence number. It is in the file when this returns.
    pub fn append(&self, event: &Event) -> Result<u64, LogError> {
        self.append_at(SystemTime::now(), event)
    }

    fn append_at(&self, time: SystemTime, event: &Event) -> Result<u64, LogError> {
        let draft = Draft::new(time, event)?;
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let path = || self.path.clone();
        if tail.poisoned {
            return Err(LogError::Poisoned { path: path() });
        }
        let line = draft.link(tail.next, tail.head);
        // Also stays set should anything below panic.
        tail.poisoned = true;
        let written = write_once(&self.file, &line.bytes).map_err(io_error("write", &self.path))?;
        if written < line.bytes.len() {
            return Err(LogError::Short {
                path: path(),
                written,
                wanted: line.bytes.len(),
            });
        }
        let seq = tail.next;
        *tail = Tail {
            next: seq + 1,
            head: line.hash,
            poisoned: false,
        };
        Ok(seq)
    }

    /// Waits until everything appended so far is on the disk itself (fdatasync; blocks). A failure poisons
    /// the log: after it nobody knows which pages were written.
    pub fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|error| {
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.poisoned = true;
            io_error("write", &self.path)(error)
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn recover(
        &self,
        past: &Past,
        now: SystemTime,
        seal: impl Fn(SessionId) -> Option<Digest>,
    ) -> Result<(), LogError> {
        if !past.torn.is_empty() {
            self.replace_torn_line(past, now)?;
        }
        let open: Vec<_> = past.ledger.open_sessions().collect();
        if let Some(last_start_seq) = past.ledger.running_since() {
            let open_sessions = open.iter().map(|session| session.session).collect();
            let crashed = Event::GatewayCrashed {
                last_start_seq,
                open_sessions,
            };
            self.append_at(now, &crashed)?;
        }
        for session in open {
            let recording = seal(session.session).map(|digest| (digest.sha256, digest.frames));
            self.append_at(now, &session.crashed(recording))?;
        }
        self.sync()
    }

    /// Writes `log.recovered` over the torn line. It carries those bytes in hex and so is longer: nothing
    /// of them is left, and none of them is lost should this gateway die here too.
    fn replace_torn_line(&self, past: &Past, now: SystemTime) -> Result<(), LogError> {
        let torn_bytes = hex::encode(&past.torn);
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event::LogRecovered { torn_bytes };
        let line = chain::encode(tail.next, now, &event, tail.head)?;
        // A file opened for appending cannot be written anywhere else.
        OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|file| file.write_all_at(&line.bytes, past.whole_bytes))
            .map_err(io_error("recover", &self.path))?;
        tail.next += 1;
        tail.head = line.hash;
        Ok(())
    }
}

/// What the file holds when it is opened.
struct Past {
    verifier: Verifier,
    ledger: Ledger,
    /// Length of its whole lines.
    whole_bytes: u64,
    /// What follows them.
    torn: Vec<u8>,
}

fn read_past(dir: &Path, path: &Path) -> Result<Past, LogError> {
    let failed = || io_error("read", path);
    let mut reader = LogReader::open(dir).map_err(failed())?;
    let mut past = Past {
        verifier: Verifier::default(),
        ledger: Ledger::default(),
        whole_bytes: 0,
        torn: Vec::new(),
    };
    while let Some(line) = reader.next_line().map_err(failed())? {
        past.verifier.line(line).map_err(|link| LogError::Broken {
            path: path.to_owned(),
            link,
        })?;
        // An event of a newer version says nothing about sessions that this one could finish.
        if let Ok(record) = Record::parse(line) {
            past.ledger.apply(&record);
            past.ledger.forget_ended();
        }
        past.whole_bytes += line.len() as u64 + 1;
    }
    past.torn = reader.tail().to_vec();
    Ok(past)
}

fn create(dir: &Path, path: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    // The name of a new file survives a power cut only when its directory is written too.
    File::open(dir)?.sync_all()?;
    Ok(file)
}

fn lock(file: &File, path: &Path) -> Result<(), LogError> {
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(io_error("lock", path)(error)),
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(LogError::InUse {
                    path: path.to_owned(),
                });
            }
        }
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

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::time::UNIX_EPOCH;

    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::{SigSet, Signal};

    use super::*;
    use crate::audit::event::SessionOutcome;
    use crate::audit::event::tests::{close, deny, intent, open, result, session, start};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn events(dir: &Path) -> Vec<Event> {
        let log = std::fs::read(file_in(dir)).unwrap();
        chain::verify(&log).unwrap();
        let lines = log.split_inclusive(|byte| *byte == b'\n');
        lines
            .map(|line| Record::parse(line).unwrap().event)
            .collect()
    }

    fn append_all(dir: &Path, events: &[Event]) {
        let log = Log::open(dir, now()).unwrap();
        for event in events {
            log.append(event).unwrap();
        }
    }

    /// Runs the test `name` of this file again as a child process, which finds `dir` in its environment.
    fn child(name: &str, dir: &Path) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", &format!("store::log::tests::{name}")])
            .env("SLUICE_LOG_CHILD", dir)
            .stdout(Stdio::null());
        command
    }

    fn in_child() -> Option<PathBuf> {
        env::var_os("SLUICE_LOG_CHILD").map(PathBuf::from)
    }

    #[test]
    fn a_log_goes_on_where_it_ended() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("log");
        let stop = Event::GatewayStop {
            reason: "SIGTERM".into(),
        };
        let first = [
            start(),
            open(1),
            intent(1, 1, "select 1"),
            result(1, 1),
            close(1),
            stop,
        ];
        append_all(&dir, &first);
        let log = Log::open(&dir, now()).unwrap();
        assert_eq!(log.append(&start()).unwrap(), 7);
        log.sync().unwrap();
        assert_eq!(events(&dir), [&first[..], &[start()]].concat());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(log.path())), (0o700, 0o600));
    }

    #[test]
    fn only_one_gateway_writes_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), now()).unwrap();
        assert!(in_use(dir.path()).unwrap());
        let second = Log::open(dir.path(), now()).unwrap_err();
        assert!(matches!(second, LogError::InUse { .. }), "{second}");
        drop(log);
        assert!(Log::open(dir.path(), now()).is_ok());
    }

    #[test]
    fn what_a_dead_gateway_left_open_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        append_all(
            dir.path(),
            &[
                start(),
                open(1),
                close(1),
                open(2),
                intent(2, 1, "select 1"),
                deny(2, 2, "drop"),
            ],
        );
        let sealed = Digest {
            sha256: "ef".repeat(32),
            frames: 5,
            bytes: 1,
        };
        drop(Log::open_sealing(dir.path(), now(), |_| Some(sealed.clone())).unwrap());
        let events = events(dir.path());
        assert_eq!(
            events[6],
            Event::GatewayCrashed {
                last_start_seq: 1,
                open_sessions: vec![session(2)],
            }
        );
        let Event::SessionClose {
            session: closed,
            outcome,
            statements,
            denied,
            recording_sha256,
            recording_frames,
            ..
        } = &events[7]
        else {
            panic!("{:?}", events[7]);
        };
        assert_eq!((*closed, *outcome), (session(2), SessionOutcome::Crashed));
        assert_eq!((*statements, *denied), (2, 1));
        assert_eq!(recording_sha256.as_ref(), Some(&sealed.sha256));
        assert_eq!(*recording_frames, 5);
        // Nothing is left to do the next time.
        drop(Log::open(dir.path(), now()).unwrap());
        assert_eq!(self::events(dir.path()).len(), 8);
    }

    #[test]
    fn a_recovery_that_died_half_way_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let crashed = Event::GatewayCrashed {
            last_start_seq: 1,
            open_sessions: vec![session(1), session(2)],
        };
        append_all(dir.path(), &[start(), open(1), open(2), crashed, close(1)]);
        drop(Log::open(dir.path(), now()).unwrap());
        let events = events(dir.path());
        assert_eq!(events.len(), 6);
        assert_eq!(events[5].session(), Some(session(2)));
    }

    #[test]
    fn a_line_torn_anywhere_is_kept_and_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        append_all(dir.path(), &[start(), open(1), close(1)]);
        let whole = std::fs::read(file_in(dir.path())).unwrap();
        let last = whole.len() - whole.rsplit(|b| *b == b'\n').nth(1).unwrap().len() - 1;
        for cut in [last + 1, last + 10, whole.len() - 70, whole.len() - 1] {
            std::fs::write(file_in(dir.path()), &whole[..cut]).unwrap();
            append_all(dir.path(), &[start()]);
            let events = events(dir.path());
            let torn_bytes = hex::encode(&whole[last..cut]);
            assert_eq!(
                events[2],
                Event::LogRecovered { torn_bytes },
                "cut at {cut}"
            );
            assert!(matches!(events[3], Event::GatewayCrashed { .. }));
            assert_eq!(events[4].session(), Some(session(1)));
            assert_eq!(events[5], start());
        }
    }

    #[test]
    fn a_tampered_log_is_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        append_all(dir.path(), &[start(), open(1), close(1)]);
        let text = std::fs::read_to_string(file_in(dir.path())).unwrap();
        let tampered = text.replacen("report-bot", "other-bot", 1);
        std::fs::write(file_in(dir.path()), &tampered).unwrap();
        let error = Log::open(dir.path(), now()).unwrap_err();
        assert!(error.to_string().contains("line 2: edited"), "{error}");
        assert_eq!(
            std::fs::read_to_string(file_in(dir.path())).unwrap(),
            tampered
        );
    }

    #[test]
    fn many_tasks_append_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), now()).unwrap();
        let long = "x".repeat(1 << 20);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (log, long) = (&log, &long);
                scope.spawn(move || {
                    for stmt in 0..50 {
                        log.append(&intent(n, stmt, "select 1")).unwrap();
                    }
                    log.append(&intent(n, 50, long)).unwrap();
                });
            }
        });
        assert_eq!(events(dir.path()).len(), 8 * 51);
    }

    #[test]
    fn a_failed_write_poisons_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), now()).unwrap();
        let good = std::mem::replace(
            &mut log.file,
            OpenOptions::new().write(true).open("/dev/full").unwrap(),
        );
        let error = log.append(&start()).unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        log.file = good;
        let error = log.append(&start()).unwrap_err();
        assert!(matches!(error, LogError::Poisoned { .. }), "{error}");
    }

    #[test]
    fn a_full_disk_poisons_the_log_and_the_next_start_recovers() {
        if let Some(dir) = in_child() {
            // Without a limit on files the disk would have to be filled for real; the kernel cuts the
            // write short at the limit just as it does at the last free block.
            let mut signals = SigSet::empty();
            signals.add(Signal::SIGXFSZ);
            signals.thread_block().unwrap();
            let log = Log::open(&dir, now()).unwrap();
            log.append(&start()).unwrap();
            setrlimit(Resource::RLIMIT_FSIZE, 5_000, 5_000).unwrap();
            let error = (0..).find_map(|n| log.append(&intent(1, n, "select 1")).err());
            assert!(matches!(error, Some(LogError::Short { .. })), "{error:?}");
            let error = log.append(&start()).unwrap_err();
            assert!(matches!(error, LogError::Poisoned { .. }), "{error}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let name = "a_full_disk_poisons_the_log_and_the_next_start_recovers";
        assert!(child(name, dir.path()).status().unwrap().success());
        assert_eq!(std::fs::metadata(file_in(dir.path())).unwrap().len(), 5_000);
        drop(Log::open(dir.path(), now()).unwrap());
        let events = events(dir.path());
        let recovered = events
            .iter()
            .position(|event| matches!(event, Event::LogRecovered { .. }));
        assert_eq!(recovered, Some(events.len() - 2));
        assert!(matches!(events.last(), Some(Event::GatewayCrashed { .. })));
    }

    #[test]
    fn a_killed_gateway_leaves_a_log_that_verifies() {
        if let Some(dir) = in_child() {
            let log = Log::open(&dir, now()).unwrap();
            log.append(&start()).unwrap();
            log.append(&open(1)).unwrap();
            for n in 0.. {
                log.append(&intent(1, n, &"x".repeat(20_000))).unwrap();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        for round in 1..=3u64 {
            let name = "a_killed_gateway_leaves_a_log_that_verifies";
            let mut gateway = child(name, dir.path()).spawn().unwrap();
            let since = Instant::now();
            let size = || std::fs::metadata(file_in(dir.path())).map_or(0, |file| file.len());
            while size() < round * 3_000_000 && since.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(5));
            }
            gateway.kill().unwrap();
            gateway.wait().unwrap();
            drop(Log::open(dir.path(), now()).unwrap());
            let events = events(dir.path());
            let count =
                |wanted: fn(&Event) -> bool| events.iter().filter(|e| wanted(e)).count() as u64;
            assert_eq!(count(|e| matches!(e, Event::GatewayCrashed { .. })), round);
            assert_eq!(count(|e| matches!(e, Event::SessionClose { .. })), round);
        }
    }
}

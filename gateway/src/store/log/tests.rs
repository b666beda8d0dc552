//! What the log promises, also when its writer is killed or its disk is full.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use super::*;
use crate::audit::chain::{self, Record};
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
        pid: Some(42),
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
fn events_that_are_appended_together_stand_together() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), now()).unwrap();
    let all = [open(1), intent(1, 1, "select 1"), intent(1, 2, "select 2")];
    let drafts = all.iter().map(|event| Draft::new(now(), event).unwrap());
    assert_eq!(log.append_drafts(now(), drafts.collect()).unwrap(), 3);
    assert_eq!(log.append(&result(1, 1)).unwrap(), 4);
    assert_eq!(events(dir.path()), [&all[..], &[result(1, 1)]].concat());
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
fn a_failed_write_closes_the_log_until_it_is_opened_again() {
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
    assert!(matches!(error, LogError::Closed { .. }), "{error}");
    assert!(!log.is_open());
    (&log.file).write_all(b"half a line").unwrap();
    log.reopen(now()).unwrap();
    log.append(&start()).unwrap();
    let torn_bytes = hex::encode("half a line");
    assert_eq!(
        events(dir.path()),
        [Event::LogRecovered { torn_bytes }, start()]
    );
}

fn late(log: &Log, statements: std::ops::RangeInclusive<u64>) {
    append_late(log, statements).unwrap();
}

fn append_late(log: &Log, statements: std::ops::RangeInclusive<u64>) -> Result<(), LogError> {
    log.append_late(statements.map(|n| Draft::new(now(), &result(1, n)).unwrap()))
}

#[test]
fn late_lines_come_before_the_next_line_and_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), now()).unwrap();
    late(&log, 1..=2);
    late(&log, 3..=3);
    assert_eq!(events(dir.path()), []);
    assert_eq!(log.append(&start()).unwrap(), 4);
    late(&log, 4..=4);
    assert_eq!(log.append(&start()).unwrap(), 6);
    let (one, two, three, four) = (result(1, 1), result(1, 2), result(1, 3), result(1, 4));
    let expected = [one, two, three, start(), four, start()];
    assert_eq!(events(dir.path()), expected);
}

#[test]
fn too_many_late_lines_do_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), now()).unwrap();
    late(&log, 1..=10_000);
    assert_eq!(events(dir.path()).len(), 10_000);
}

#[tokio::test]
async fn late_lines_are_written_when_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = std::sync::Arc::new(Log::open(dir.path(), now()).unwrap());
    let writer = std::sync::Arc::clone(&log);
    let writing = tokio::spawn(async move { writer.write_late_lines().await });
    for n in 1..=3 {
        late(&log, n..=n);
        while events(dir.path()).len() < usize::try_from(n).unwrap() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    writing.abort();
}

#[test]
fn late_lines_that_cannot_be_written_are_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), now()).unwrap();
    late(&log, 1..=2);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let good = std::mem::replace(&mut log.file, full);
    log.append(&intent(1, 9, "select 1")).unwrap_err();
    log.append(&intent(1, 9, "select 1")).unwrap_err();
    // Whoever ends a statement now is told, so that its agent is not; the line is kept all the same.
    let error = append_late(&log, 3..=3).unwrap_err();
    assert!(matches!(error, LogError::Closed { .. }), "{error}");
    log.file = good;
    log.reopen(now()).unwrap();
    log.append(&start()).unwrap();
    // Not the intents: those statements did not run.
    let expected = [result(1, 1), result(1, 2), result(1, 3), start()];
    assert_eq!(events(dir.path()), expected);
}

#[test]
fn late_lines_that_were_written_before_the_disk_was_full_are_not_written_twice() {
    if let Some(dir) = in_child() {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGXFSZ);
        signals.thread_block().unwrap();
        let log = Log::open(&dir, now()).unwrap();
        log.append(&result(1, 1)).unwrap();
        let line = std::fs::metadata(file_in(&dir)).unwrap().len();
        late(&log, 2..=4);
        setrlimit(Resource::RLIMIT_FSIZE, 5 * line / 2, 1 << 30).unwrap();
        let error = log.append(&intent(1, 9, "select 1")).unwrap_err();
        assert!(matches!(error, LogError::Short { lines: 1, .. }), "{error}");
        setrlimit(Resource::RLIMIT_FSIZE, 1 << 30, 1 << 30).unwrap();
        log.reopen(now()).unwrap();
        log.append(&start()).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "late_lines_that_were_written_before_the_disk_was_full_are_not_written_twice";
    assert!(child(name, dir.path()).status().unwrap().success());
    let events = events(dir.path());
    let results = (1..=4).map(|n| result(1, n));
    let others = |event: &&Event| !matches!(event, Event::LogRecovered { .. });
    let expected: Vec<Event> = results.chain([start()]).collect();
    let found: Vec<Event> = events.iter().filter(others).cloned().collect();
    assert_eq!((found, events.len()), (expected, 6));
}

#[test]
fn a_full_disk_closes_the_log_and_the_next_start_recovers() {
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
        assert!(matches!(error, LogError::Closed { .. }), "{error}");
        assert!(log.reopen(now()).is_err() && !log.is_open());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "a_full_disk_closes_the_log_and_the_next_start_recovers";
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
        let count = |wanted: fn(&Event) -> bool| events.iter().filter(|e| wanted(e)).count() as u64;
        assert_eq!(count(|e| matches!(e, Event::GatewayCrashed { .. })), round);
        assert_eq!(count(|e| matches!(e, Event::SessionClose { .. })), round);
    }
}

/// A process that shares the log with this one: appends `open(n)`, then intents for ever.
fn sharer(name: &str, dir: &Path) -> std::process::Child {
    child(name, dir).spawn().unwrap()
}

fn count(events: &[Event], wanted: fn(&Event) -> bool) -> usize {
    events.iter().filter(|event| wanted(event)).count()
}

#[test]
fn two_processes_write_one_chain() {
    const LINES: u64 = 400;
    let write = |log: &Log, session: u8| {
        std::thread::scope(|scope| {
            for thread in 0..3 {
                scope.spawn(move || {
                    for stmt in 0..LINES {
                        let text = "x".repeat(usize::try_from(stmt * 7 % 3000).unwrap());
                        log.append(&intent(session + thread, stmt, &text)).unwrap();
                    }
                });
            }
        });
    };
    if let Some(dir) = in_child() {
        let log = Log::join(&dir).unwrap();
        log.append(&start()).unwrap();
        write(&log, 10);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), now()).unwrap();
    log.append(&start()).unwrap();
    assert!(matches!(Log::join(dir.path()), Err(LogError::InUse { .. })));
    log.share().unwrap();
    let mut second = sharer("two_processes_write_one_chain", dir.path());
    write(&log, 1);
    assert!(second.wait().unwrap().success());
    assert!(in_use(dir.path()).unwrap());
    assert!(!log.settle(now(), |_| None).unwrap(), "somebody may join");
    log.expect_nobody();
    assert!(log.settle(now(), |_| None).unwrap());
    log.append(&intent(1, LINES, "alone again")).unwrap();
    let events = events(dir.path());
    let intents = count(&events, |event| matches!(event, Event::StmtIntent { .. }));
    assert_eq!(intents as u64, 2 * 3 * LINES + 1);
    // The other's start had no stop.
    let crashed = count(&events, |event| {
        matches!(event, Event::GatewayCrashed { .. })
    });
    assert_eq!(crashed, 1);
}

#[test]
fn a_sharer_that_is_killed_is_finished_by_the_one_that_stays() {
    let name = "a_sharer_that_is_killed_is_finished_by_the_one_that_stays";
    if let Some(dir) = in_child() {
        let log = Log::join(&dir).unwrap();
        log.append(&start()).unwrap();
        log.append(&open(9)).unwrap();
        for n in 0.. {
            log.append(&intent(9, n, &"y".repeat(300_000))).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), now()).unwrap();
    log.append(&start()).unwrap();
    log.append(&open(1)).unwrap();
    for round in 1..=4 {
        log.share().unwrap();
        let mut second = sharer(name, dir.path());
        let size = || std::fs::metadata(file_in(dir.path())).unwrap().len();
        let since = Instant::now();
        let until = size() + 5_000_000 + round * 12_345;
        while size() < until && since.elapsed() < Duration::from_secs(20) {
            log.append(&intent(1, round, "meanwhile")).unwrap();
            std::thread::sleep(Duration::from_micros(300));
        }
        log.expect_nobody();
        assert!(!log.settle(now(), |_| None).unwrap(), "it lives");
        second.kill().unwrap();
        second.wait().unwrap();
        log.append(&intent(1, round, "afterwards")).unwrap();
        assert!(log.settle(now(), |_| None).unwrap());
    }
    log.append(&close(1)).unwrap();
    let events = events(dir.path());
    let crashed = |session: &SessionId| {
        let of = |event: &&Event| matches!(event, Event::SessionClose { outcome: SessionOutcome::Crashed, .. } if event.session() == Some(*session));
        events.iter().filter(of).count()
    };
    assert_eq!((crashed(&session(9)), crashed(&session(1))), (4, 0));
    assert!(matches!(events.last(), Some(Event::SessionClose { .. })));
}

#[test]
fn a_line_torn_by_another_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), now()).unwrap();
    log.append(&start()).unwrap();
    log.share().unwrap();
    let second = Log::join(dir.path()).unwrap();
    second.append(&start()).unwrap();
    let mut file = OpenOptions::new()
        .append(true)
        .open(file_in(dir.path()))
        .unwrap();
    file.write_all(b"{\"time\":\"2026").unwrap();
    log.append(&open(1)).unwrap();
    second.append(&open(2)).unwrap();
    let written = events(dir.path());
    let torn = hex::encode("{\"time\":\"2026");
    assert_eq!(written[2], Event::LogRecovered { torn_bytes: torn });
    assert_eq!(written[3..], [open(1), open(2)]);
}

#[test]
fn a_gateway_starts_beside_one_that_drains_and_finishes_it_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let draining = Log::open(dir.path(), now()).unwrap();
    draining.append(&start()).unwrap();
    draining.append(&open(1)).unwrap();
    draining.append(&open(2)).unwrap();
    draining.share().unwrap();
    let log = Log::open(dir.path(), now()).unwrap();
    log.append(&start()).unwrap();
    log.append(&open(3)).unwrap();
    draining.append(&close(1)).unwrap();
    assert!(!log.settle(now(), |_| None).unwrap());
    drop(draining);
    assert!(log.settle(now(), |_| None).unwrap());
    let written = events(dir.path());
    let closed: Vec<_> = written
        .iter()
        .filter(|event| matches!(event, Event::SessionClose { .. }))
        .map(Event::session)
        .collect();
    assert_eq!(closed, [Some(session(1)), Some(session(2))]);
    let third = Log::open(dir.path(), now()).unwrap_err();
    assert!(matches!(third, LogError::InUse { .. }), "{third}");
}

#[test]
fn a_log_that_was_cut_is_not_continued_by_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), now()).unwrap();
    log.append(&start()).unwrap();
    log.append(&open(1)).unwrap();
    log.share().unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(file_in(dir.path()))
        .unwrap();
    file.set_len(50).unwrap();
    let error = log.append(&close(1)).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
    assert!(!log.is_open());
}

//! What is written before anything happens: the recording and the log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Instant, SystemTime};

use criterion::{BenchmarkId, Criterion, Throughput};
use gateway::audit::event::{Event, SessionId, StatementOutcome, Who};
use gateway::recording::frame::Direction;
use gateway::store::log::Log;
use gateway::store::recordings::RecordingWriter;
use serde_json::json;

/// A file is begun again at this size, so that a bench does not fill the disk.
const LONGEST: u64 = 1 << 30;

pub fn bench(criterion: &mut Criterion) {
    // Not in memory: the page cache of the disk is where recordings go.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let folder = folder.unwrap_or_else(|error| panic!("{error}"));
    recorder(criterion, folder.path());
    leaves(criterion, &folder.path().join("log"));
}

fn recorder(criterion: &mut Criterion, folder: &Path) {
    let mut group = criterion.benchmark_group("recording append");
    for size in [128, 4 << 10, 64 << 10, 256 << 10] {
        let bytes = vec![0x5a; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("bytes", size), |bencher| {
            let (mut writer, mut path) = begin(folder);
            let mut written = 0;
            bencher.iter(|| {
                let appended = writer.append(Direction::TargetToAgent, &bytes, SystemTime::now());
                appended.unwrap_or_else(|error| panic!("{error}"));
                written += size as u64;
                if written > LONGEST {
                    remove(&path);
                    (writer, path) = begin(folder);
                    written = 0;
                }
            });
            remove(&path);
        });
    }
    group.finish();
}

fn begin(folder: &Path) -> (RecordingWriter, PathBuf) {
    let now = SystemTime::now();
    let writer = RecordingWriter::create(folder, SessionId::new(now), &json!({}), now);
    let writer = writer.unwrap_or_else(|error| panic!("{error}"));
    let path = writer.path().to_owned();
    (writer, path)
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap_or_else(|error| panic!("{error}"));
}

/// One writer, and several at once: what they share is the time of one write.
fn leaves(criterion: &mut Criterion, folder: &Path) {
    let log = Log::open(folder, SystemTime::now());
    let log = Arc::new(log.unwrap_or_else(|error| panic!("{error}")));
    let mut group = criterion.benchmark_group("leaf append");
    group.throughput(Throughput::Elements(1));
    for writers in [1u64, 2, 8, 32] {
        group.bench_function(BenchmarkId::new("writers", writers), |bencher| {
            bencher.iter_custom(|leaves| {
                let begun = Instant::now();
                thread::scope(|scope| {
                    for writer in 0..writers {
                        let share = leaves / writers + u64::from(writer < leaves % writers);
                        let log = &log;
                        scope.spawn(move || append(log, share));
                    }
                });
                begun.elapsed()
            });
        });
    }
    group.finish();
}

fn append(log: &Log, leaves: u64) {
    let event = result();
    for _ in 0..leaves {
        log.append(&event).unwrap_or_else(|error| panic!("{error}"));
    }
}

fn result() -> Event {
    Event::StmtResult {
        session: SessionId::new(SystemTime::now()),
        who: Who {
            agent: Some("report-bot".to_owned()),
            subject: Some("report-bot@corp".to_owned()),
            groups: vec!["reporting".to_owned()],
            client: "127.0.0.1:50000".to_owned(),
            target: Some("shop".to_owned()),
            database: Some("shop".to_owned()),
            ..Who::default()
        },
        stmt: 1,
        outcome: StatementOutcome::Ok,
        sqlstate: None,
        tag: Some("SELECT 1".to_owned()),
        rows: 1,
        bytes: 12,
        masked: 0,
        duration_us: 120,
    }
}

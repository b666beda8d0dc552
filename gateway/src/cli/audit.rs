//! `sluice audit verify`: is the evidence what was written? The chain of the log, line by line, and the
//! digest of every recording that a `session.close` vouches for.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::Globals;
use super::tail::{open_log, quiet_when_reader_leaves};
use crate::audit::chain::{Hash, Record, Verifier};
use crate::audit::event::{Event, SessionId};
use crate::recording::frame::Ending;
use crate::recording::terminal::{Paint, Tone, count, printable, printable_json};
use crate::store::log;
use crate::store::recordings::{self, RecordingReader};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Find the first broken link of the log, and recordings that are not what was recorded
    Verify(VerifyArgs),
}

#[derive(clap::Args, Debug)]
struct VerifyArgs {
    /// The log must contain this head, noted earlier: shows that its end was not cut off
    #[arg(long, value_name = "HASH")]
    head: Option<Hash>,
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let Command::Verify(args) = args.command;
    quiet_when_reader_leaves(print(&args, globals))
}

fn print(args: &VerifyArgs, globals: &Globals) -> Result<ExitCode> {
    let storage = globals.load_config()?.storage;
    let report = verify(&storage.log, &storage.recordings, args.head)?;
    let mut out = io::stdout().lock();
    if globals.json {
        let json = serde_json::to_string(&report)?;
        writeln!(out, "{}", printable_json(&json))?;
    } else {
        out.write_all(text(&report, Paint::for_stdout()).as_bytes())?;
    }
    Ok(match report.ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    ok: bool,
    events: u64,
    /// The hash of the last good line.
    head: String,
    recordings_verified: u64,
    /// Each of them is proof that something was changed or lost.
    problems: Vec<String>,
    /// Worth knowing, no harm.
    notes: Vec<String>,
}

/// What the log says about a session's recording.
enum Vouched {
    /// The session is open, or its end names no digest.
    No,
    Digest(String),
}

fn verify(log_dir: &Path, recordings_dir: &Path, head: Option<Hash>) -> Result<Report> {
    let mut report = Report::default();
    let vouched = verify_log(log_dir, head, &mut report)?;
    verify_recordings(recordings_dir, &vouched, &mut report)?;
    report.ok = report.problems.is_empty();
    Ok(report)
}

fn verify_log(
    dir: &Path,
    head: Option<Hash>,
    report: &mut Report,
) -> Result<BTreeMap<SessionId, Vouched>> {
    let mut verifier = match head {
        Some(head) => Verifier::default().expect_head(head),
        None => Verifier::default(),
    };
    let mut vouched = BTreeMap::new();
    let mut reader = open_log(dir)?;
    let mut broken = None;
    while let Some(line) = reader.next_line()? {
        if let Err(link) = verifier.line(line) {
            broken = Some(link);
            break;
        }
        if let Ok(record) = Record::parse(line) {
            note_recording(&record.event, &mut vouched);
        }
    }
    if broken.is_none() && !reader.tail().is_empty() {
        if log::in_use(dir).context("cannot see whether a gateway writes the log")? {
            let note = "the last line is being written by the running gateway; it was not checked";
            report.notes.push(note.into());
        } else {
            broken = Some(verifier.torn(reader.tail()));
            let note = "the next start of the gateway keeps a torn line in a log.recovered event";
            report.notes.push(note.into());
        }
    }
    let summary = verifier.summary();
    report.events = summary.events;
    report.head = summary.head.to_string();
    if let Some(link) = broken {
        report.problems.push(link.to_string());
        let note = "nothing from that line on is evidence, nor was it checked";
        report.notes.push(note.into());
    } else if let Some(head) = head.filter(|_| !summary.expected_head_seen) {
        let problem = format!("no line has the hash {head}: the log was cut off or replaced");
        report.problems.push(problem);
    }
    Ok(vouched)
}

fn note_recording(event: &Event, vouched: &mut BTreeMap<SessionId, Vouched>) {
    let Some(session) = event.session() else {
        return;
    };
    let found = match event {
        Event::SessionClose {
            recording_sha256: Some(digest),
            ..
        } => Vouched::Digest(digest.clone()),
        _ if vouched.contains_key(&session) => return,
        _ => Vouched::No,
    };
    vouched.insert(session, found);
}

fn verify_recordings(
    dir: &Path,
    vouched: &BTreeMap<SessionId, Vouched>,
    report: &mut Report,
) -> Result<()> {
    let log_is_whole = report.problems.is_empty();
    let mut there = match recordings::list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        list => list.with_context(|| format!("cannot read {}", dir.display()))?,
    };
    for (session, vouched) in vouched {
        let Vouched::Digest(expected) = vouched else {
            continue;
        };
        match there.binary_search(session) {
            Err(_) => {
                let problem = format!("recording {session}: missing");
                report.problems.push(problem);
            }
            Ok(_) => verify_recording(dir, *session, expected, report),
        }
    }
    // Of a broken log the rest is not known: any recording may belong to it.
    if !log_is_whole {
        return Ok(());
    }
    there.retain(|session| !matches!(vouched.get(session), Some(Vouched::Digest(_))));
    let (unsealed, strange): (Vec<SessionId>, Vec<SessionId>) = there
        .into_iter()
        .partition(|session| vouched.contains_key(session));
    if !unsealed.is_empty() {
        let open = count(unsealed.len() as u64, "recording");
        report.notes.push(format!(
            "{open} of sessions that are open or ended without a digest"
        ));
    }
    report.notes.extend(
        strange
            .iter()
            .map(|session| format!("recording {session}: the log has no such session")),
    );
    Ok(())
}

fn verify_recording(dir: &Path, session: SessionId, expected: &str, report: &mut Report) {
    let digest = RecordingReader::open(dir, session).and_then(RecordingReader::digest);
    match digest {
        Ok((digest, _)) if digest.sha256 == expected => report.recordings_verified += 1,
        Ok((_, Ending::Damaged(damaged))) => report
            .problems
            .push(format!("recording {session}: changed at {damaged}")),
        Ok((digest, _)) => report.problems.push(format!(
            "recording {session}: changed: the log says sha256 {expected}, the file has {}",
            digest.sha256
        )),
        Err(error) => report
            .problems
            .push(format!("recording {session}: {error}")),
    }
}

fn text(report: &Report, paint: Paint) -> String {
    let Report { events, head, .. } = report;
    let mut text = if report.ok {
        let ok = paint.tone(Tone::Good, "ok");
        format!("audit verify: {ok} ({events} events, head {head})\n")
    } else {
        let failed = paint.tone(Tone::Bad, "FAILED");
        let problems = count(report.problems.len() as u64, "problem");
        format!("audit verify: {failed} ({problems}; {events} events intact, head {head})\n")
    };
    for problem in &report.problems {
        text += &paint.tone(Tone::Bad, format!("  ✗ {}", printable(problem)));
        text.push('\n');
    }
    if report.recordings_verified > 0 {
        let verified = count(report.recordings_verified, "recording");
        text += &format!("  ✓ {verified} as recorded\n");
    }
    for note in &report.notes {
        text += &paint.tone(Tone::Dim, format!("  · {}", printable(note)));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::SystemTime;

    use serde_json::Value;

    use super::*;
    use crate::audit::event::tests::{close, open, session, start};
    use crate::recording::frame::Direction;
    use crate::store::log::Log;
    use crate::store::recordings::RecordingWriter;

    struct Installation {
        root: tempfile::TempDir,
    }

    impl Installation {
        /// A log with one closed session, and its recording.
        fn new() -> Installation {
            let installation = Installation {
                root: tempfile::tempdir().unwrap(),
            };
            let now = SystemTime::now();
            let log = Log::open(&installation.log(), now).unwrap();
            let mut writer =
                RecordingWriter::create(&installation.recordings(), session(1), &Value::Null, now)
                    .unwrap();
            log.append(&start()).unwrap();
            log.append(&open(1)).unwrap();
            writer.append(Direction::AgentToTarget, b"Q", now).unwrap();
            let digest = writer.finish(now).unwrap();
            let mut close = close(1);
            if let Event::SessionClose {
                recording_sha256, ..
            } = &mut close
            {
                *recording_sha256 = Some(digest.sha256);
            }
            log.append(&close).unwrap();
            installation
        }

        fn log(&self) -> PathBuf {
            self.root.path().join("log")
        }

        fn recordings(&self) -> PathBuf {
            self.root.path().join("recordings")
        }

        fn recording(&self, n: u8) -> PathBuf {
            self.recordings().join(recordings::file_name(session(n)))
        }

        fn verify(&self) -> Report {
            verify(&self.log(), &self.recordings(), None).unwrap()
        }

        fn edit_log(&self, edit: impl Fn(String) -> String) {
            let file = log::file_in(&self.log());
            let text = fs::read_to_string(&file).unwrap();
            fs::write(file, edit(text)).unwrap();
        }
    }

    #[test]
    fn whole_evidence_is_ok() {
        let report = Installation::new().verify();
        assert!(report.ok, "{report:?}");
        let text = text(&report, Paint::PLAIN);
        let expected = format!(
            "audit verify: ok (3 events, head {})\n  ✓ 1 recording as recorded\n",
            report.head
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn what_was_changed_is_named() {
        type Tamper = fn(&Installation);
        let table: &[(&str, Tamper, &str)] = &[
            (
                "a line edited",
                |i| i.edit_log(|text| text.replacen("report-bot", "other", 1)),
                "line 2: edited",
            ),
            (
                "a line removed",
                |i| i.edit_log(|text| text.lines().skip(1).map(|l| l.to_owned() + "\n").collect()),
                "line 1: 1 line(s) removed",
            ),
            (
                "the end torn, no gateway running",
                |i| i.edit_log(|text| text[..text.len() - 9].to_owned()),
                "line 3: torn",
            ),
            (
                "a recording removed",
                |i| fs::remove_file(i.recording(1)).unwrap(),
                "recording 0198c5a2-7b1e-7c3d-9f00-5d1c2b3a4e01: missing",
            ),
            (
                "all recordings removed",
                |i| fs::remove_dir_all(i.recordings()).unwrap(),
                "recording 0198c5a2-7b1e-7c3d-9f00-5d1c2b3a4e01: missing",
            ),
            (
                "a recording replaced",
                |i| {
                    fs::remove_file(i.recording(1)).unwrap();
                    let now = SystemTime::now();
                    RecordingWriter::create(&i.recordings(), session(1), &Value::Null, now)
                        .unwrap()
                        .finish(now)
                        .unwrap();
                },
                "changed: the log says sha256",
            ),
            (
                "a recording edited",
                |i| {
                    let mut bytes = fs::read(i.recording(1)).unwrap();
                    let last = bytes.len() - 1;
                    bytes[last] ^= 1;
                    fs::write(i.recording(1), bytes).unwrap();
                },
                "checksum mismatch",
            ),
        ];
        for (name, tamper, expected) in table {
            let installation = Installation::new();
            tamper(&installation);
            let report = installation.verify();
            assert!(!report.ok, "{name}");
            let text = text(&report, Paint::PLAIN);
            assert!(
                text.starts_with("audit verify: FAILED (1 problem; "),
                "{name}: {text}"
            );
            assert!(text.contains(expected), "{name}: {text}");
        }
    }

    #[test]
    fn a_running_gateway_may_be_in_the_middle_of_a_line() {
        let installation = Installation::new();
        let _gateway = Log::open(&installation.log(), SystemTime::now()).unwrap();
        installation.edit_log(|text| text + "{\"time\":\"2026");
        let report = installation.verify();
        assert!(report.ok, "{report:?}");
        assert!(
            report
                .notes
                .iter()
                .any(|note| note.contains("being written")),
            "{report:?}"
        );
    }

    #[test]
    fn recordings_the_log_does_not_vouch_for_are_mentioned() {
        let installation = Installation::new();
        let now = SystemTime::now();
        let log = Log::open(&installation.log(), now).unwrap();
        log.append(&open(2)).unwrap();
        for n in [2, 3] {
            RecordingWriter::create(&installation.recordings(), session(n), &Value::Null, now)
                .unwrap();
        }
        let report = installation.verify();
        assert!(report.ok);
        assert!(
            report
                .notes
                .iter()
                .any(|note| note.starts_with("1 recording of sessions"))
        );
        assert!(
            report
                .notes
                .iter()
                .any(|note| note.contains("4e03: the log has no such"))
        );
    }

    #[test]
    fn a_noted_head_must_be_there() {
        let installation = Installation::new();
        let (log, recordings) = (installation.log(), installation.recordings());
        let head: Hash = installation.verify().head.parse().unwrap();
        assert!(verify(&log, &recordings, Some(head)).unwrap().ok);
        installation.edit_log(|text| text.lines().take(2).map(|l| l.to_owned() + "\n").collect());
        let report = verify(&log, &recordings, Some(head)).unwrap();
        assert!(report.problems[0].contains("cut off"), "{report:?}");
    }
}

//! `sluice replay`: what an agent and a target said to each other, from the recording.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Globals;
use super::tail::{open_log, quiet_when_reader_leaves};
use crate::audit::chain::Record;
use crate::audit::event::{Event, SessionId};
use crate::recording::frame::{Direction, Ending, Kind};
use crate::recording::postgres_text::{Conversation, Detail, Message, Page};
use crate::recording::terminal::{Paint, Tone, count, one_line, printable_json, size};
use crate::store::recordings::{self, Next, OwnedFrame, RecordingReader};

const POLL: Duration = Duration::from_millis(200);
/// A pause between two statements is not replayed longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The session's id, the beginning or end of it, or a recording file
    #[arg(value_name = "ID")]
    session: String,
    /// Show the recorded bytes of every frame, not what they mean
    #[arg(long)]
    raw: bool,
    /// Also show the protocol's housekeeping, and long values whole
    #[arg(long)]
    all: bool,
    /// Keep the pace of the session, X times as fast
    #[arg(long, value_name = "X", value_parser = positive)]
    speed: Option<f64>,
    /// Go on while the session is recorded
    #[arg(long, short)]
    follow: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match speed.is_finite() && speed > 0.0 {
        true => Ok(speed),
        false => Err("must be greater than 0".into()),
    }
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    quiet_when_reader_leaves(replay(&args, globals))
}

fn replay(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let mut reader = open(args, globals)?;
    let mut setter = Setter::new(args, globals.json);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut previous = None;
    let mut session = None;
    let ending = loop {
        match reader.next_part()? {
            Next::Meta(meta) => {
                session = session_of(&meta);
                out.write_all(setter.meta(&meta).as_bytes())?;
            }
            Next::Frame(frame) => {
                if let Some(pause) =
                    pause(args.speed, previous.replace(frame.unix_ns), frame.unix_ns)
                {
                    out.flush()?;
                    std::thread::sleep(pause);
                }
                out.write_all(setter.frame(&frame).as_bytes())?;
            }
            Next::Nothing(Ending::Unfinished | Ending::Torn { .. }) if args.follow => {
                out.flush()?;
                std::thread::sleep(POLL);
            }
            Next::Nothing(ending) => break ending,
        }
    };
    let (digest, _) = reader.digest()?;
    let vouched = session.and_then(|session| vouched(session, globals).ok().flatten());
    let agrees = vouched.map(|vouched| vouched == digest.sha256);
    out.write_all(
        setter
            .end(&ending, digest.frames, &digest.sha256, agrees)
            .as_bytes(),
    )?;
    out.flush()?;
    Ok(match (ending, agrees) {
        (Ending::Damaged(_), _) | (_, Some(false)) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

fn open(args: &Args, globals: &Globals) -> Result<RecordingReader> {
    if args.session.contains(['/', '.']) {
        return Ok(RecordingReader::open_file(&PathBuf::from(&args.session))?);
    }
    let dir = globals.load_config()?.storage.recordings;
    let sessions = recordings::list(&dir)
        .with_context(|| format!("cannot read the recordings in {}", dir.display()))?;
    let session = SessionId::resolve(&args.session, sessions)?;
    Ok(RecordingReader::open(&dir, session)?)
}

fn session_of(meta: &Value) -> Option<SessionId> {
    meta.get("session")?.as_str()?.parse().ok()
}

/// The digest the log has for the session's recording. A file from elsewhere has no log here.
fn vouched(session: SessionId, globals: &Globals) -> Result<Option<String>> {
    let dir: &Path = &globals.load_config()?.storage.log;
    let mut reader = open_log(dir)?;
    let mut found = None;
    while let Some(line) = reader.next_line()? {
        if let Ok(Record {
            event:
                Event::SessionClose {
                    session: closed,
                    recording_sha256,
                    ..
                },
            ..
        }) = Record::parse(line)
            && closed == session
        {
            found = recording_sha256;
        }
    }
    Ok(found)
}

fn pause(speed: Option<f64>, previous: Option<u64>, now: u64) -> Option<Duration> {
    let (speed, previous) = speed.zip(previous)?;
    let recorded = Duration::from_nanos(now.saturating_sub(previous));
    let pause = Duration::try_from_secs_f64(recorded.as_secs_f64() / speed);
    Some(pause.unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE))
}

/// Sets frames in the wanted form.
struct Setter {
    form: Form,
    paint: Paint,
    conversation: Conversation,
    page: Page,
    frames: u64,
    began: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Text,
    Raw,
    Json,
    RawJson,
}

impl Setter {
    fn new(args: &Args, json: bool) -> Setter {
        let form = match (json, args.raw) {
            (false, false) => Form::Text,
            (false, true) => Form::Raw,
            (true, false) => Form::Json,
            (true, true) => Form::RawJson,
        };
        let detail = match args.all {
            true => Detail::Everything,
            false => Detail::Readable,
        };
        Setter::of(form, Paint::for_stdout(), detail)
    }

    fn of(form: Form, paint: Paint, detail: Detail) -> Setter {
        Setter {
            form,
            paint,
            conversation: Conversation::default(),
            page: Page::new(paint, detail),
            frames: 0,
            began: None,
        }
    }

    fn is_json(&self) -> bool {
        matches!(self.form, Form::Json | Form::RawJson)
    }

    fn meta(&self, meta: &Value) -> String {
        if self.is_json() {
            return line(&json!({"recording": meta}));
        }
        let members = meta.as_object().into_iter().flatten();
        let members: Vec<String> = members
            .filter_map(|(name, value)| Some(format!("{name} {}", scalar(value)?)))
            .collect();
        let text = one_line(&members.join(" · "));
        self.paint.tone(Tone::Dim, text) + "\n\n"
    }

    fn frame(&mut self, frame: &OwnedFrame) -> String {
        self.frames += 1;
        match self.form {
            Form::Text => self.text(frame),
            Form::Raw => self.raw(frame),
            Form::Json | Form::RawJson => self.json(frame),
        }
    }

    fn text(&mut self, frame: &OwnedFrame) -> String {
        let Some(direction) = frame.kind.direction() else {
            return self.page.note(frame.unix_ns, &note(frame));
        };
        let messages = self.conversation.listen(direction, &frame.payload);
        messages
            .into_iter()
            .map(|message| self.page.message(frame.unix_ns, direction, message))
            .collect()
    }

    fn raw(&mut self, frame: &OwnedFrame) -> String {
        let us = frame
            .unix_ns
            .saturating_sub(*self.began.get_or_insert(frame.unix_ns))
            / 1_000;
        let head = format!(
            "#{} +{}.{:06}s {} {}",
            self.frames,
            us / 1_000_000,
            us % 1_000_000,
            kind(frame.kind),
            size(frame.payload.len() as u64)
        );
        self.paint.tone(Tone::Bold, head) + "\n" + &hexdump(&frame.payload)
    }

    fn json(&mut self, frame: &OwnedFrame) -> String {
        let time = jiff::Timestamp::from_nanosecond(frame.unix_ns.into()).unwrap_or_default();
        let mut object = json!({
            "frame": self.frames,
            "time": format!("{time:.6}"),
            "unix_ns": frame.unix_ns,
            "kind": kind(frame.kind),
            "bytes": frame.payload.len(),
        });
        let (name, content) = match (self.form, frame.kind.direction()) {
            (_, None) => ("note", note(frame)),
            (Form::RawJson, Some(_)) => ("hex", json!(hex::encode(&frame.payload))),
            (_, Some(direction)) => ("messages", self.messages(direction, &frame.payload)),
        };
        if let Some(members) = object.as_object_mut() {
            members.insert(name.into(), content);
        }
        line(&object)
    }

    fn messages(&mut self, direction: Direction, payload: &[u8]) -> Value {
        let messages = self.conversation.listen(direction, payload);
        messages.iter().map(Message::to_json).collect()
    }

    /// How the recording ends, and whether the log agrees.
    fn end(&mut self, ending: &Ending, frames: u64, sha256: &str, agrees: Option<bool>) -> String {
        let (state, tone) = match ending {
            Ending::Finished => ("finished".into(), Tone::Good),
            Ending::Unfinished => ("not finished: open, or cut off".into(), Tone::Warning),
            Ending::Torn { bytes, .. } => {
                let text = format!(
                    "cut off within a frame ({} of it are there)",
                    size(*bytes as u64)
                );
                (text, Tone::Warning)
            }
            Ending::Damaged(damaged) => (format!("damaged at {damaged}"), Tone::Bad),
        };
        let (log, log_tone) = match agrees {
            Some(true) => ("as the log says", Tone::Good),
            Some(false) => ("NOT what the log says", Tone::Bad),
            None => ("no digest in the log yet", Tone::Dim),
        };
        if self.is_json() {
            return line(
                &json!({"end": state, "frames": frames, "sha256": sha256, "matches_log": agrees}),
            );
        }
        let rest = match self.form {
            Form::Text => self.page.end(),
            _ => String::new(),
        };
        format!(
            "{rest}\nrecording {}, {}, sha256 {sha256}: {}\n",
            self.paint.tone(tone, state),
            count(frames, "frame"),
            self.paint.tone(log_tone, log),
        )
    }
}

fn note(frame: &OwnedFrame) -> Value {
    let text = String::from_utf8_lossy(&frame.payload);
    serde_json::from_slice(&frame.payload).unwrap_or_else(|_| json!({"note": text}))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        other => Some(other.to_string()),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::AgentToTarget => "agent→target",
        Kind::TargetToAgent => "target→agent",
        Kind::Note => "note",
        Kind::End => "end",
    }
}

fn line(value: &Value) -> String {
    printable_json(&value.to_string()).into_owned() + "\n"
}

fn hexdump(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).zip((0..).step_by(16));
    lines
        .map(|(chunk, offset)| {
            let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            let text: String = chunk
                .iter()
                .map(|byte| match byte {
                    b' '..=b'~' => char::from(*byte),
                    _ => '.',
                })
                .collect();
            format!("  {offset:08x}  {:<47}  {text}\n", hex.join(" "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, payload: &[u8]) -> OwnedFrame {
        OwnedFrame {
            kind,
            unix_ns: 1_767_225_600_000_000_000,
            payload: payload.to_vec(),
        }
    }

    fn setter(form: Form) -> Setter {
        Setter::of(form, Paint::PLAIN, Detail::Readable)
    }

    #[test]
    fn each_form_shows_the_frame() {
        let query = frame(Kind::AgentToTarget, b"Q\0\0\0\x0dselect 1\0");
        let table = [
            (Form::Text, "+0.000000s  → query       select 1\n"),
            (
                Form::Raw,
                "#1 +0.000000s agent→target 14 B\n  00000000  51 00 00 00 0d 73 65 6c 65 63 74 20 31 00        Q....select 1.\n",
            ),
            (
                Form::Json,
                "{\"frame\":1,\"time\":\"2026-01-01T00:00:00.000000Z\",\"unix_ns\":1767225600000000000,\"kind\":\"agent→target\",\"bytes\":14,\"messages\":[{\"message\":\"query\",\"text\":\"select 1\"}]}\n",
            ),
            (
                Form::RawJson,
                "{\"frame\":1,\"time\":\"2026-01-01T00:00:00.000000Z\",\"unix_ns\":1767225600000000000,\"kind\":\"agent→target\",\"bytes\":14,\"hex\":\"510000000d73656c656374203100\"}\n",
            ),
        ];
        for (form, expected) in table {
            assert_eq!(setter(form).frame(&query), expected);
        }
    }

    #[test]
    fn the_heading_and_the_end_tell_where_the_recording_stands() {
        let meta = json!({"session": "s", "agent": "report-bot\u{1b}", "groups": ["x"]});
        assert_eq!(
            setter(Form::Text).meta(&meta),
            "session s · agent report-bot\\u{1b}\n\n"
        );
        let end = setter(Form::Text).end(&Ending::Finished, 3, "ab", Some(true));
        assert_eq!(
            end,
            "\nrecording finished, 3 frames, sha256 ab: as the log says\n"
        );
        let end = setter(Form::Text).end(&Ending::Unfinished, 1, "ab", None);
        assert!(end.contains("not finished"), "{end}");
    }

    #[test]
    fn pauses_follow_the_speed_and_stay_short() {
        let ms = |ms: u64| Some(ms * 1_000_000);
        let table = [
            ("first frame", Some(1.0), None, None),
            ("no speed", None, ms(0), None),
            (
                "as it was",
                Some(1.0),
                ms(100),
                Some(Duration::from_millis(100)),
            ),
            (
                "twice as fast",
                Some(2.0),
                ms(100),
                Some(Duration::from_millis(50)),
            ),
            (
                "an hour later",
                Some(1.0),
                ms(3_600_000),
                Some(LONGEST_PAUSE),
            ),
            ("very slow", Some(1e-300), ms(100), Some(LONGEST_PAUSE)),
        ];
        for (name, speed, gap, expected) in table {
            let previous = gap.map(|_| 1_000);
            let now = 1_000 + gap.unwrap_or(0);
            assert_eq!(pause(speed, previous, now), expected, "{name}");
        }
        for bad in ["0", "-1", "nan", "inf", "x"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_note_that_is_not_json_is_still_shown() {
        let text = setter(Form::Text).frame(&frame(Kind::Note, b"\xff oops"));
        assert!(text.contains("! note"), "{text}");
        assert!(text.contains("oops"), "{text}");
    }
}

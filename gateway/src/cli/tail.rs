//! `sluice tail`: the evidence log, one readable line per event, live with `--follow`.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Globals;
use crate::audit::chain::Record;
use crate::audit::oneline::{self, Length};
use crate::recording::terminal::{Paint, printable, printable_json};
use crate::store::log::{self, LogReader};

const POLL: Duration = Duration::from_millis(200);
const DEFAULT_LINES: usize = 100;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only this session: its id, or the beginning or end of it
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Go on as events are written
    #[arg(long, short)]
    follow: bool,
    /// Begin with the last N events [default: 100, or all of a session]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Show long statements whole
    #[arg(long)]
    full: bool,
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    quiet_when_reader_leaves(tail(&args, globals))
}

/// A reader such as `head` that has seen enough is no error.
pub(super) fn quiet_when_reader_leaves(result: Result<ExitCode>) -> Result<ExitCode> {
    result.or_else(|error| match error.downcast_ref::<io::Error>() {
        Some(io) if io.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        _ => Err(error),
    })
}

/// Opens the log for reading, or says where it was looked for.
pub(super) fn open_log(dir: &std::path::Path) -> Result<LogReader> {
    LogReader::open(dir).map_err(|error| {
        let hint = hint(&error);
        let file = log::file_in(dir);
        anyhow::Error::new(error).context(format!("cannot read the log {}{hint}", file.display()))
    })
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (`sluice run` creates it)",
        io::ErrorKind::PermissionDenied => " (run this as root)",
        _ => "",
    }
}

fn tail(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let dir = globals.load_config()?.storage.log;
    let mut reader = open_log(&dir)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let setter = Setter::new(args, globals);
    // Without a number a session is shown from its beginning, as it is read.
    let begin = match (args.lines, &args.session) {
        (None, Some(_)) => None,
        (lines, _) => Some(lines.unwrap_or(DEFAULT_LINES)),
    };
    let mut last = VecDeque::new();
    let mut found = false;
    while let Some(line) = reader.next_line()? {
        let Some(text) = setter.set(line) else {
            continue;
        };
        found = true;
        match begin {
            None => writeln!(out, "{text}")?,
            Some(begin) => {
                last.push_back(text);
                last.drain(..last.len().saturating_sub(begin));
            }
        }
    }
    if let (false, false, Some(query)) = (found, args.follow, &args.session) {
        bail!("no session matches {query:?}; `sluice sessions` lists them");
    }
    for text in last {
        writeln!(out, "{text}")?;
    }
    out.flush()?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        std::thread::sleep(POLL);
        while let Some(line) = reader.next_line()? {
            if let Some(text) = setter.set(line) {
                writeln!(out, "{text}")?;
            }
        }
        out.flush()?;
    }
}

/// Chooses lines of the log and sets them for reading.
struct Setter<'a> {
    session: Option<&'a str>,
    style: Style,
}

enum Style {
    Text(Paint, Length),
    /// The log's own lines, byte for byte: they can be checked.
    Json,
    /// The same for a person's terminal.
    PrintableJson,
}

impl Setter<'_> {
    fn new<'a>(args: &'a Args, globals: &Globals) -> Setter<'a> {
        let length = if args.full {
            Length::Whole
        } else {
            Length::Cut
        };
        let style = match (globals.json, io::stdout().is_terminal()) {
            (true, true) => Style::PrintableJson,
            (true, false) => Style::Json,
            (false, _) => Style::Text(Paint::for_stdout(), length),
        };
        Setter {
            session: args.session.as_deref(),
            style,
        }
    }

    /// The text for a line of the log; None if it is not of the wanted session.
    fn set(&self, line: &[u8]) -> Option<String> {
        let record = Record::parse(line);
        if let Some(query) = self.session {
            let session = record.as_ref().ok()?.event.session()?;
            if !session.matches(query) {
                return None;
            }
        }
        let raw = String::from_utf8_lossy(line);
        Some(match (&self.style, record) {
            (Style::Json, _) => raw.into_owned(),
            (Style::PrintableJson, _) => printable_json(&raw).into_owned(),
            (Style::Text(paint, length), Ok(record)) => oneline::format(&record, *paint, *length),
            // Of a newer version, or not of the log: shown, not dropped.
            (Style::Text(..), Err(_)) => printable(&raw).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::audit::chain::{GENESIS, encode};
    use crate::audit::event::tests::{intent, session, start};

    fn set(session: Option<&str>, style: Style, line: &[u8]) -> Option<String> {
        Setter { session, style }.set(line)
    }

    #[test]
    fn lines_are_chosen_by_session_and_set_in_a_style() {
        let text = || Style::Text(Paint::PLAIN, Length::Cut);
        let statement = "select '\u{9b}31m'";
        let line = encode(1, SystemTime::now(), &intent(1, 1, statement), GENESIS).unwrap();
        let line = line.bytes.strip_suffix(b"\n").unwrap();
        let (short, other) = (session(1).short(), session(2).short());
        assert!(
            set(None, text(), line)
                .unwrap()
                .contains("select '\\u{9b}31m'")
        );
        assert!(set(Some(&short), text(), line).is_some());
        assert!(set(Some(&other), text(), line).is_none());
        assert_eq!(set(None, Style::Json, line).unwrap().as_bytes(), line);
        let shown = set(None, Style::PrintableJson, line).unwrap();
        assert!(shown.contains("'\\u009b31m'"), "{shown}");

        let start = encode(1, SystemTime::now(), &start(), GENESIS)
            .unwrap()
            .bytes;
        assert!(set(Some(&short), text(), &start).is_none());
        let unknown = b"{\"event\":\"new.kind\"}\x1b";
        assert_eq!(
            set(None, text(), unknown).unwrap(),
            "{\"event\":\"new.kind\"}\\u{1b}"
        );
    }

    #[test]
    fn what_to_do_without_a_log() {
        let hint = |kind: io::ErrorKind| hint(&kind.into());
        assert_eq!(hint(io::ErrorKind::NotFound), " (`sluice run` creates it)");
        assert_eq!(hint(io::ErrorKind::PermissionDenied), " (run this as root)");
        assert_eq!(hint(io::ErrorKind::IsADirectory), "");
    }

    #[test]
    fn a_reader_that_leaves_is_no_error() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(quiet_when_reader_leaves(Err(broken.into())).is_ok());
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(quiet_when_reader_leaves(Err(full.into())).is_err());
    }
}

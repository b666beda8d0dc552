//! `sluice sessions`: every session of the log as a table.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use jiff::Timestamp;

use super::Globals;
use super::tail::{open_log, quiet_when_reader_leaves};
use crate::audit::chain::Record;
use crate::audit::event::SessionOutcome;
use crate::audit::ledger::{Ledger, Session, State};
use crate::recording::terminal::{Paint, Tone, duration, one_line, printable_json};
use crate::store::log;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only the newest N
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    quiet_when_reader_leaves(sessions(&args, globals))
}

fn sessions(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let dir = globals.load_config()?.storage.log;
    let mut reader = open_log(&dir)?;
    let mut ledger = Ledger::default();
    while let Some(line) = reader.next_line()? {
        if let Ok(record) = Record::parse(line) {
            ledger.apply(&record);
        }
    }
    // Read after the log: a gateway that starts now closes what the one before left open.
    let gateway_runs = log::in_use(&dir)?;
    let mut sessions: Vec<Session> = ledger.sessions().cloned().collect();
    sessions.sort_by_key(|session| session.started);
    for session in sessions.iter_mut().filter(|s| s.state == State::Open) {
        if gateway_runs {
            let age = Timestamp::now().duration_since(session.started);
            session.duration_us = u64::try_from(age.as_micros()).unwrap_or(0);
        } else {
            session.state = State::Ended(SessionOutcome::Crashed);
        }
    }
    let skip = sessions.len() - args.lines.unwrap_or(usize::MAX).min(sessions.len());
    let sessions = sessions.get(skip..).unwrap_or_default();

    let mut out = io::BufWriter::new(io::stdout().lock());
    if globals.json {
        for session in sessions {
            let json = serde_json::to_string(session)?;
            writeln!(out, "{}", printable_json(&json))?;
        }
    } else if sessions.is_empty() {
        writeln!(out, "no sessions yet")?;
    } else {
        out.write_all(table(sessions, Paint::for_stdout()).as_bytes())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

const HEADING: [&str; 12] = [
    "SESSION", "STATE", "AGENT", "SUBJECT", "TARGET", "DATABASE", "STARTED", "DURATION", "STMTS",
    "DENIED", "ROWS", "MASKED",
];
/// From this column on cells are numbers, set to the right.
const NUMBERS: usize = 7;

fn table(sessions: &[Session], paint: Paint) -> String {
    let rows: Vec<[String; 12]> = sessions.iter().map(cells).collect();
    let mut widths = HEADING.map(|name| name.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heading = HEADING.map(str::to_owned);
    let mut text = set(&heading, &widths, |_, cell| paint.tone(Tone::Dim, cell));
    for (session, row) in sessions.iter().zip(&rows) {
        text += &set(row, &widths, |column, cell| {
            paint.tone(tone(session, column), cell)
        });
    }
    text
}

fn cells(session: &Session) -> [String; 12] {
    let or_dash = |text: &Option<String>| text.as_deref().map_or("-".into(), one_line);
    let who = &session.who;
    [
        session.session.short(),
        state(session.state).into(),
        or_dash(&who.agent),
        or_dash(&who.subject),
        or_dash(&who.target),
        or_dash(&who.database),
        format!("{:.0}", session.started),
        duration(session.duration_us),
        session.statements.to_string(),
        session.denied.to_string(),
        session.rows.to_string(),
        session.masked.to_string(),
    ]
}

fn state(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::Refused => "refused",
        State::Ended(SessionOutcome::Closed) => "closed",
        State::Ended(SessionOutcome::Denied) => "denied",
        State::Ended(SessionOutcome::Error) => "error",
        State::Ended(SessionOutcome::ProtocolError) => "protocol-error",
        State::Ended(SessionOutcome::Shutdown) => "shutdown",
        State::Ended(SessionOutcome::Idle) => "idle",
        State::Ended(SessionOutcome::Crashed) => "crashed",
    }
}

fn tone(session: &Session, column: usize) -> Tone {
    match (column, session.state) {
        (0, _) => Tone::Id,
        (1, State::Open) => Tone::Good,
        (1, State::Refused | State::Ended(SessionOutcome::Crashed | SessionOutcome::Denied)) => {
            Tone::Bad
        }
        (1, State::Ended(SessionOutcome::Error | SessionOutcome::ProtocolError)) => Tone::Warning,
        (2, _) => Tone::Bold,
        (9, _) if session.denied > 0 => Tone::Bad,
        _ => Tone::Plain,
    }
}

fn set(row: &[String], widths: &[usize], paint: impl Fn(usize, String) -> String) -> String {
    let cells = row.iter().zip(widths).enumerate();
    let cells: Vec<String> = cells
        .map(|(column, (cell, width))| match column < NUMBERS {
            true => paint(column, format!("{cell:<width$}")),
            false => paint(column, format!("{cell:>width$}")),
        })
        .collect();
    cells.join("  ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::event::Event;
    use crate::audit::event::tests::{close, deny, intent, open};

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        let events: [Event; 5] = [
            open(1),
            intent(1, 1, "select 1"),
            close(1),
            open(2),
            deny(2, 1, "x"),
        ];
        for (event, seq) in events.into_iter().zip(1u32..) {
            let time = Timestamp::from_second(1_767_225_600 + i64::from(seq)).unwrap();
            ledger.apply(&Record {
                time,
                event,
                seq: seq.into(),
            });
        }
        ledger
    }

    #[test]
    fn sessions_are_a_table() {
        let sessions: Vec<Session> = ledger().sessions().cloned().collect();
        let text = table(&sessions, Paint::PLAIN);
        let expected = "\
SESSION   STATE   AGENT       SUBJECT          TARGET  DATABASE  STARTED               DURATION  STMTS  DENIED  ROWS  MASKED
2b3a4e01  closed  report-bot  report-bot@corp  shop    shop      2026-01-01T00:00:01Z     1.9 s      2       1     3       3
2b3a4e02  open    report-bot  report-bot@corp  shop    shop      2026-01-01T00:00:04Z     1.0 s      1       1     0       0
";
        assert_eq!(text, expected, "\n{text}");
        let coloured = table(&sessions, Paint::COLOURS);
        assert!(coloured.contains("\u{1b}[31m     1\u{1b}[0m"), "{coloured}");
    }
}

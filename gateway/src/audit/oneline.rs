//! One event, one line, for somebody who watches: when, which session, which agent, what was decided,
//! what was run and what came back. Denials stand out and name their rule.
//!
//! ```text
//! 2026-01-01T00:00:00.003703Z 3a4e01aa report-bot   ✓ #1 select   SELECT name FROM customers
//! 2026-01-01T00:00:00.004938Z 3a4e01aa report-bot   ← #1 ok       SELECT 3 · 3 rows · 3 masked · 4.2 ms
//! 2026-01-01T00:00:00.006172Z 3a4e01aa report-bot   ✗ #2 denied   default-deny: … ‹DROP TABLE customers›
//! ```

use super::chain::Record;
use super::event::{Event, SessionOutcome, StatementOutcome, Who};
use crate::recording::terminal::{Paint, Tone, count, cut, duration, one_line, size};

/// Statements are cut to this many characters; the log has them whole.
const STATEMENT: usize = 120;
const AGENT: usize = 12;

/// Whether long statements are shown whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Cut,
    Whole,
}

/// What the line says, without when and who.
struct Said {
    mark: char,
    tone: Tone,
    stmt: Option<u64>,
    label: String,
    text: String,
}

/// The line of `record`, without a newline.
pub fn format(record: &Record, paint: Paint, length: Length) -> String {
    let said = say(&record.event, length);
    let session = record.event.session().map(|id| id.short());
    let agent = agent(&record.event);
    let (time, session) = (format!("{:.6}", record.time), session.unwrap_or("-".into()));
    let stmt = said.stmt.map_or(String::new(), |n| format!("#{n} "));
    let what = format!("{} {:<11}", said.mark, stmt + &said.label);
    [
        paint.tone(Tone::Dim, time),
        paint.tone(Tone::Id, format!("{session:<8}")),
        paint.tone(
            Tone::Bold,
            format!("{:<AGENT$}", cut(&one_line(agent), AGENT)),
        ),
        paint.tone(said.tone, what),
        match said.tone {
            Tone::Bad => paint.tone(Tone::Bad, said.text),
            _ => said.text,
        },
    ]
    .join(" ")
    .trim_end()
    .to_owned()
}

/// Whom the line is about: an agent, "?" where it is not known which, or the gateway itself.
fn agent(event: &Event) -> &str {
    let agent = match event {
        Event::KernelDenied { agent, .. } | Event::NetnsRegistered { agent, .. } => agent,
        _ => match event.who() {
            Some(who) => &who.agent,
            None => return "gateway",
        },
    };
    agent.as_deref().unwrap_or("?")
}

fn say(event: &Event, length: Length) -> Said {
    match event {
        Event::GatewayStart {
            version,
            pid,
            policy_sha256,
            ..
        } => {
            let policy: String = one_line(policy_sha256).chars().take(12).collect();
            let text = format!("sluice {version}, pid {pid}, policy {policy}");
            said('▶', Tone::Good, None, "start", text)
        }
        Event::GatewayHandover {
            successor,
            open_sessions,
            ..
        } => {
            let open = count(*open_sessions, "session");
            let text = format!("pid {successor} goes on; {open} to end here");
            said('▷', Tone::Plain, None, "handover", text)
        }
        Event::KernelDenied {
            reason,
            count: times,
            samples,
            ..
        } => {
            let sample = samples.first().map_or(String::new(), |call| {
                let to = call.destination.as_deref().unwrap_or("?");
                format!(" · {} to {}", one_line(&call.comm), one_line(to))
            });
            let text = format!("{} ×{times}{sample}", one_line(reason));
            said('✗', Tone::Bad, None, "kernel", text)
        }
        Event::DnsQuery {
            name,
            qtype,
            rcode,
            answers,
            rule,
            count: times,
            ..
        } => {
            let answers = answers.join(" ");
            let times = match times {
                0 | 1 => String::new(),
                times => format!("×{times}"),
            };
            let text = [
                qtype,
                name,
                rcode,
                &answers,
                rule.as_deref().unwrap_or_default(),
                &times,
            ]
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(one_line)
            .collect::<Vec<_>>()
            .join(" ");
            said('?', Tone::Dim, None, "dns", text)
        }
        Event::NetnsRegistered { netns_cookie, .. } => {
            let text = format!("listening in network namespace {netns_cookie}");
            said('+', Tone::Plain, None, "netns", text)
        }
        Event::GuardAlarm { problems, frozen } => {
            let frozen = if *frozen { "agents frozen: " } else { "" };
            let text = format!("{frozen}{}", one_line(&problems.join("; ")));
            said('‼', Tone::Bad, None, "alarm", text)
        }
        Event::GuardCleared {} => said(
            '▶',
            Tone::Good,
            None,
            "cleared",
            "interception is whole".to_owned(),
        ),
        Event::GatewayHandoverFailed { reason, .. } => {
            let text = format!("{}; the gateway goes on as before", one_line(reason));
            said('‼', Tone::Bad, None, "handover", text)
        }
        Event::GatewayStop { reason, .. } => said('■', Tone::Plain, None, "stop", one_line(reason)),
        Event::GatewayCrashed { open_sessions, .. } => {
            let open = count(open_sessions.len() as u64, "session");
            let text = format!("the gateway before died with {open} open");
            said('‼', Tone::Bad, None, "crashed", text)
        }
        Event::LogRecovered { torn_bytes } => {
            let text = format!(
                "a torn line of {} was kept",
                size(torn_bytes.len() as u64 / 2)
            );
            said('‼', Tone::Warning, None, "recovered", text)
        }
        Event::SessionOpen {
            who,
            rule,
            upstream,
            host,
            tls,
            ..
        } => {
            let tls = if *tls { " (tls)" } else { "" };
            let host = host
                .as_deref()
                .map_or(String::new(), |host| format!("{} at ", one_line(host)));
            let text = format!(
                "{} at {host}{}{tls}{} · {}",
                place(who),
                one_line(upstream),
                process(who),
                one_line(rule)
            );
            said('●', Tone::Good, None, "open", text)
        }
        Event::StmtIntent {
            stmt,
            statement,
            verbs,
            params,
            ..
        } => {
            let verbs: Vec<&str> = verbs
                .iter()
                .map(|verb| verb.strip_prefix("sql:").unwrap_or(verb))
                .collect();
            let params = params.filter(|n| *n > 0).map_or(String::new(), |n| {
                format!(" · {}", count(n as u64, "parameter"))
            });
            let text = shortened(statement, length) + &params;
            said(
                '✓',
                Tone::Good,
                Some(*stmt),
                &one_line(&verbs.join(",")),
                text,
            )
        }
        Event::StmtResult { stmt, .. } => result(*stmt, event),
        Event::Deny {
            who,
            stmt,
            statement,
            rule,
            reason,
            ..
        } => {
            let statement = statement.as_deref().map_or(String::new(), |statement| {
                format!(" ‹{}›", shortened(statement, length))
            });
            let from = match stmt {
                Some(_) => String::new(),
                None => process(who),
            };
            let text = format!("{}: {}{from}{statement}", one_line(rule), one_line(reason));
            said('✗', Tone::Bad, *stmt, "denied", text)
        }
        Event::CancelRequest { who, .. } => said(
            '◇',
            Tone::Plain,
            None,
            "cancel",
            format!("requested{}", process(who)),
        ),
        Event::ConnectionSilent { who, .. } => {
            let text = format!("ended before it asked for anything{}", process(who));
            said('·', Tone::Dim, None, "silent", text)
        }
        Event::SessionClose { .. } => close(event),
    }
}

fn result(number: u64, event: &Event) -> Said {
    let Event::StmtResult {
        outcome,
        sqlstate,
        tag,
        rows,
        bytes,
        masked,
        duration_us,
        ..
    } = event
    else {
        return said(' ', Tone::Plain, None, "", String::new());
    };
    let (label, tone) = match outcome {
        StatementOutcome::Ok => ("ok", Tone::Plain),
        StatementOutcome::Error => ("error", Tone::Warning),
        StatementOutcome::Skipped => ("skipped", Tone::Dim),
        StatementOutcome::Suspended => ("suspended", Tone::Plain),
        StatementOutcome::Aborted => ("aborted", Tone::Warning),
    };
    let mut parts: Vec<String> = [sqlstate, tag]
        .into_iter()
        .flatten()
        .map(|text| one_line(text))
        .collect();
    if *rows > 0 || *bytes > 0 {
        parts.push(format!("{}, {}", count(*rows, "row"), size(*bytes)));
    }
    if *masked > 0 {
        parts.push(format!("{masked} masked"));
    }
    parts.push(duration(*duration_us));
    said('←', tone, Some(number), label, parts.join(" · "))
}

fn close(event: &Event) -> Said {
    let Event::SessionClose {
        outcome,
        reason,
        statements,
        denied,
        rows,
        masked,
        duration_us,
        ..
    } = event
    else {
        return said(' ', Tone::Plain, None, "", String::new());
    };
    let (label, tone) = match outcome {
        SessionOutcome::Closed => ("close", Tone::Plain),
        SessionOutcome::Shutdown => ("shutdown", Tone::Plain),
        SessionOutcome::Idle => ("idle", Tone::Plain),
        SessionOutcome::Denied => ("close", Tone::Bad),
        SessionOutcome::Error => ("error", Tone::Warning),
        SessionOutcome::ProtocolError => ("protocol", Tone::Warning),
        SessionOutcome::Crashed => ("crashed", Tone::Bad),
    };
    let mut parts = vec![count(*statements, "statement")];
    if *denied > 0 {
        parts.push(format!("{denied} denied"));
    }
    parts.push(count(*rows, "row"));
    if *masked > 0 {
        parts.push(format!("{masked} masked"));
    }
    parts.push(duration(*duration_us));
    parts.extend(reason.as_deref().map(one_line));
    said('○', tone, None, label, parts.join(" · "))
}

fn said(mark: char, tone: Tone, stmt: Option<u64>, label: &str, text: String) -> Said {
    Said {
        mark,
        tone,
        stmt,
        label: label.to_owned(),
        text,
    }
}

fn shortened(statement: &str, length: Length) -> String {
    match length {
        Length::Whole => one_line(statement),
        // What is cut away need not be prepared for showing: a statement can be megabytes.
        Length::Cut => {
            let start: String = statement.chars().take(4 * STATEMENT).collect();
            let cut_already = start.len() < statement.len();
            let shown = one_line(&start);
            match cut_already && shown.chars().count() <= STATEMENT {
                true => shown + "…",
                false => cut(&shown, STATEMENT).into_owned(),
            }
        }
    }
}

fn place(who: &Who) -> String {
    let target = one_line(who.target.as_deref().unwrap_or("?"));
    match &who.database {
        Some(database) => format!("{target}/{}", one_line(database)),
        None => target,
    }
}

/// Where the connection came from: the process if it is known.
fn process(who: &Who) -> String {
    let process = who.process.as_ref();
    let comm = process.and_then(|process| process.get("comm")?.as_str());
    let pid = process.and_then(|process| process.get("tgid")?.as_u64());
    match (comm, pid) {
        (Some(comm), Some(pid)) => format!(" from {}[{pid}]", one_line(comm)),
        _ if who.client.is_empty() => String::new(),
        _ => format!(" from {}", one_line(&who.client)),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::event::Stage;
    use super::super::event::tests::{close, deny, intent, open, result, start};
    use super::*;

    fn line(event: Event, paint: Paint) -> String {
        let time = Timestamp::from_microsecond(1_767_225_600_003_703).unwrap();
        let record = Record {
            time,
            event,
            seq: 1,
        };
        format(&record, paint, Length::Cut)
    }

    #[test]
    fn events_are_lines_an_operator_reads() {
        let refused = Event::Deny {
            session: None,
            who: Who::default(),
            stage: Stage::Accept,
            stmt: None,
            statement: None,
            rule: "no-flow".into(),
            reason: "the connection was not redirected here".into(),
            hint: None,
        };
        let crashed = Event::GatewayCrashed {
            last_start_seq: 1,
            open_sessions: vec![],
        };
        let table = [
            (
                start(),
                "-        gateway      ▶ start       sluice 0.1.0, pid 42, policy cdcdcdcdcdcd",
            ),
            (
                open(1),
                "2b3a4e01 report-bot   ● open        shop/shop at 127.0.0.1:5432 from psql[7] · agents-may-connect",
            ),
            (
                intent(1, 1, "SELECT name\n  FROM customers"),
                "2b3a4e01 report-bot   ✓ #1 select   SELECT name FROM customers",
            ),
            (
                result(1, 1),
                "2b3a4e01 report-bot   ← #1 ok       SELECT 3 · 3 rows, 120 B · 3 masked · 4.2 ms",
            ),
            (
                deny(1, 2, "DROP TABLE customers"),
                "2b3a4e01 report-bot   ✗ #2 denied   default-deny: no policy permits sql:ddl ‹DROP TABLE customers›",
            ),
            (
                refused,
                "-        ?            ✗ denied      no-flow: the connection was not redirected here",
            ),
            (
                close(1),
                "2b3a4e01 report-bot   ○ close       2 statements · 1 denied · 3 rows · 3 masked · 1.9 s",
            ),
            (
                crashed,
                "-        gateway      ‼ crashed     the gateway before died with 0 sessions open",
            ),
            (
                Event::LogRecovered {
                    torn_bytes: "00".repeat(7),
                },
                "-        gateway      ‼ recovered   a torn line of 7 B was kept",
            ),
            (
                Event::KernelDenied {
                    agent: Some("report-bot".into()),
                    cgroup: None,
                    cgroup_id: 7,
                    reason: "no-target".into(),
                    count: 2,
                    samples: vec![],
                },
                "-        report-bot   ✗ kernel      no-target ×2",
            ),
            (
                Event::NetnsRegistered {
                    netns_cookie: 4097,
                    agent: None,
                    cgroup_id: 7,
                    tgid: 8,
                },
                "-        ?            + netns       listening in network namespace 4097",
            ),
            (
                Event::GatewayStop {
                    reason: "SIGTERM".into(),
                    pid: None,
                },
                "-        gateway      ■ stop        SIGTERM",
            ),
        ];
        for (event, expected) in table {
            let expected = format!("2026-01-01T00:00:00.003703Z {expected}");
            assert_eq!(line(event, Paint::PLAIN), expected);
        }
    }

    #[test]
    fn a_denial_is_red_and_a_hostile_statement_is_not_obeyed() {
        let event = deny(1, 2, "\u{1b}[32mDROP\u{1b}[0m\r\n2026-01-01 ✓ select");
        let text = line(event, Paint::COLOURS);
        assert!(text.contains("\u{1b}[31m✗ #2 denied"), "{text}");
        assert!(text.contains("\u{1b}[31mdefault-deny: "), "{text}");
        assert!(
            text.contains("‹\\u{1b}[32mDROP\\u{1b}[0m 2026-01-01 ✓ select›"),
            "{text}"
        );
        assert!(!text.contains('\n'));
    }

    #[test]
    fn a_long_statement_is_cut_and_says_so() {
        for statement in [
            "x".repeat(1 << 20),
            " ".repeat(2_000) + "x",
            "x ".repeat(300),
        ] {
            let text = line(intent(1, 1, &statement), Paint::PLAIN);
            assert!(text.ends_with('…'), "{text}");
            assert!(text.chars().count() < 200, "{text}");
        }
        assert_eq!(shortened("select 1", Length::Cut), "select 1");
        assert_eq!(shortened(&"x".repeat(500), Length::Whole).len(), 500);
    }
}

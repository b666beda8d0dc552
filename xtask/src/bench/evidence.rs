//! A figure counts only if the evidence behind it is whole: every statement in the log, every byte that was on the
//! sockets in a recording, no clear value where a mask is, and a log that verifies.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::recordings::{self, Recorded};
use super::site::{Site, Way};
use super::sockets;

/// How long the last sessions may take to end after their clients have.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the gateway says to a server for itself, and hears from it, when it opens a session: at most.
const OWN_OPENING: u64 = 4096;

/// And with each statement: a Describe, and its answer, where masks have to know what a portal returns.
const OWN_QUESTION: u64 = 16;
const OWN_ANSWER: u64 = 512;

/// The same for a connection without a session, with which it reads the catalogue; and how many of those may end
/// during one run.
const OWN_CATALOGUE: u64 = 256 << 10;
const OWN_CONNECTIONS: u64 = 2;

thread_local! {
    /// Sessions whose recordings were verified and then removed, for want of disk.
    static REMOVED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// What one run must have left.
#[derive(Debug, Clone)]
pub struct Expected {
    /// What ran, for messages.
    pub what: String,
    pub statements: u64,
    /// The length of the client's StartupMessage.
    pub startup: u64,
    /// Masked values in all results.
    pub masked: u64,
}

/// What the log has gained.
#[derive(Debug, Default)]
struct Gained {
    intents: u64,
    results: u64,
    opened: u64,
    masked: u64,
    from_agents: u64,
    to_agents: u64,
    closed: Vec<String>,
}

/// How things were before a run.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// Where the log ended.
    log: u64,
    /// The server's connections, those that others keep open.
    connections: usize,
}

/// Sockets that end from now on are counted.
pub fn mark(site: &Site<'_>) -> Result<Mark> {
    site.sockets.forget(site.stage, site.sink.port)?;
    Ok(Mark {
        log: fs::metadata(log(site))?.len(),
        connections: sockets::open_at(site.database.port)?,
    })
}

fn log(site: &Site<'_>) -> PathBuf {
    site.installation.log().join("log.jsonl")
}

fn recordings_folder(site: &Site<'_>) -> PathBuf {
    site.installation.log().with_file_name("recordings")
}

/// Through the gateway the log has gained one intent and one result per statement, and each session's recording
/// holds what its sockets carried; on the other ways nothing was gained.
pub fn check(site: &Site<'_>, way: &Way, before: Mark, expected: &Expected) -> Result<()> {
    let statements = if way.is_gateway() {
        expected.statements
    } else {
        0
    };
    let (mut reading, begun) = (Reading::since(site, before)?, Instant::now());
    loop {
        let gained = reading.go_on()?;
        let told = (gained.intents, gained.results);
        let ended = gained.opened == gained.closed.len() as u64;
        if told == (statements, statements) && ended && sockets_have_ended(site, gained)? {
            return match way.is_gateway() {
                true => whole(site, expected, gained),
                false => server_is_rid_of_it(site, way, before),
            };
        }
        ensure!(
            begun.elapsed() < PATIENCE && gained.intents <= statements,
            "{} on {}: {statements} statements ran, the log has {} intents and {} results; {} sessions opened, {} closed, sockets {:?}",
            expected.what,
            way.name,
            gained.intents,
            gained.results,
            gained.opened,
            gained.closed.len(),
            site.sockets.sent(None, Some(site.listen))?,
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// The next run's sockets are not to be taken for this one's: the server's ends close after the client's, and the kernel
/// tells of both when it has time.
fn server_is_rid_of_it(site: &Site<'_>, way: &Way, before: Mark) -> Result<()> {
    let (server, begun) = (site.database.port, Instant::now());
    loop {
        let closed = sockets::open_at(server)? <= before.connections;
        let (clients, _) = site.sockets.sent(None, Some(server))?;
        let (servers, _) = site.sockets.sent(Some(server), None)?;
        let told = way.pools || (clients > 0 && clients == servers);
        if (closed && told) || begun.elapsed() > PATIENCE {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn sockets_have_ended(site: &Site<'_>, gained: &Gained) -> Result<bool> {
    let sessions = gained.closed.len() as u64;
    let (listen, server) = (site.listen, site.database.port);
    for (local, peer) in [
        (None, Some(listen)),
        (Some(listen), None),
        (None, Some(server)),
        (Some(server), None),
    ] {
        if site.sockets.sent(local, peer)?.0 < sessions {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Bytes on the sockets are bytes in the recordings are bytes in the log.
fn whole(site: &Site<'_>, expected: &Expected, gained: &Gained) -> Result<()> {
    let what = &expected.what;
    let sessions = gained.closed.len() as u64;
    let recorded = recordings::count(&recordings_folder(site), &gained.closed)?;
    let told = Recorded {
        files: sessions,
        from_agents: gained.from_agents,
        to_agents: gained.to_agents,
    };
    ensure!(
        recorded == told,
        "{what}: the log tells of {told:?}, the files hold {recorded:?}"
    );
    ensure!(
        gained.masked == expected.masked,
        "{what}: {} values were masked, not {}",
        gained.masked,
        expected.masked
    );
    let (listen, server) = (site.listen, site.database.port);
    let from_agents = site.sockets.sent(None, Some(listen))?;
    let to_agents = site.sockets.sent(Some(listen), None)?;
    let on_agents_side = (
        (sessions, recorded.from_agents + sessions * expected.startup),
        (sessions, recorded.to_agents),
    );
    ensure!(
        (from_agents, to_agents) == on_agents_side,
        "{what}: agents' sockets carried {from_agents:?} and {to_agents:?}, by the recordings it would be {on_agents_side:?}"
    );
    let to_server = site.sockets.sent(None, Some(server))?;
    let from_server = site.sockets.sent(Some(server), None)?;
    for (sent, recorded, each) in [
        (to_server, recorded.from_agents, OWN_QUESTION),
        (from_server, recorded.to_agents, OWN_ANSWER),
    ] {
        let own = sent.1.checked_sub(recorded);
        let own = own.with_context(|| {
            format!("{what}: the server's sockets carried {sent:?}, {recorded} bytes are recorded")
        })?;
        let connections = sent.0.saturating_sub(sessions);
        ensure!(
            connections <= OWN_CONNECTIONS
                && own
                    <= sessions * OWN_OPENING + gained.intents * each + connections * OWN_CATALOGUE,
            "{what}: the server's sockets carried {sent:?} for {sessions} sessions, {recorded} bytes are recorded"
        );
    }
    Ok(())
}

/// What the log tells since a mark, read as it grows.
struct Reading {
    lines: BufReader<File>,
    line: String,
    gained: Gained,
    /// What pgbench asks about the tables before it starts, and its answers, are left out.
    questions: u64,
}

impl Reading {
    fn since(site: &Site<'_>, before: Mark) -> Result<Self> {
        let mut file = File::open(log(site))?;
        file.seek(SeekFrom::Start(before.log))?;
        Ok(Self {
            lines: BufReader::with_capacity(1 << 20, file),
            line: String::new(),
            gained: Gained::default(),
            questions: 0,
        })
    }

    /// Reads what has come since the last time.
    fn go_on(&mut self) -> Result<&Gained> {
        loop {
            self.lines.read_line(&mut self.line)?;
            // What has no end yet is being written: its rest follows the next time.
            if !self.line.ends_with('\n') {
                return Ok(&self.gained);
            }
            self.take()?;
            self.line.clear();
        }
    }

    fn take(&mut self) -> Result<()> {
        let line = &self.line;
        if line.contains(r#""event":"stmt.intent""#) {
            match line.contains("pg_catalog.") || line.contains("count(*)") {
                true => self.questions += 1,
                false => self.gained.intents += 1,
            }
        } else if line.contains(r#""event":"stmt.result""#) {
            match self.questions {
                0 => self.gained.results += 1,
                _ => self.questions -= 1,
            }
        } else if line.contains(r#""event":"session.open""#) {
            self.gained.opened += 1;
        } else if line.contains(r#""event":"session.close""#) {
            self.gained.close(&serde_json::from_str(line)?)?;
        }
        Ok(())
    }
}

impl Gained {
    fn close(&mut self, leaf: &Value) -> Result<()> {
        let number = |name: &str| {
            let number = leaf.get(name).and_then(Value::as_u64);
            number.with_context(|| format!("session.close has no {name}: {leaf}"))
        };
        self.from_agents += number("bytes_in")?;
        self.to_agents += number("bytes_out")?;
        self.masked += number("masked")?;
        let session = leaf.get("session").and_then(Value::as_str);
        self.closed
            .push(session.context("session.close names it")?.to_owned());
        Ok(())
    }
}

/// The whole log, by the product's own verifier.
pub fn verify(site: &Site<'_>) -> Result<String> {
    let output = site
        .installation
        .sluice(["audit", "verify", "--json"])
        .output()?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "audit verify: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })?;
    let problems = report["problems"].as_array().cloned().unwrap_or_default();
    let unexpected: Vec<&str> = REMOVED.with_borrow(|removed| {
        let problems = problems.iter().filter_map(Value::as_str);
        problems
            .filter(|problem| !is_removed(problem, removed))
            .collect()
    });
    ensure!(
        !problems.is_empty() || output.status.success(),
        "audit verify failed: {report}"
    );
    ensure!(
        unexpected.is_empty(),
        "the log does not verify: {unexpected:?}"
    );
    Ok(format!(
        "{} events and {} recordings verified",
        report["events"], report["recordings_verified"]
    ))
}

/// `recording ID: missing`, of one that was removed here.
fn is_removed(problem: &str, removed: &BTreeSet<String>) -> bool {
    let id = problem
        .strip_prefix("recording ")
        .and_then(|rest| rest.strip_suffix(": missing"));
    id.is_some_and(|id| removed.contains(id))
}

/// Verifies everything, then removes the recordings since `before`: gigabytes would not fit on every disk.
pub fn verify_and_remove(site: &Site<'_>, before: Mark) -> Result<()> {
    verify(site)?;
    let mut reading = Reading::since(site, before)?;
    let closed = reading.go_on()?.closed.clone();
    recordings::remove(&recordings_folder(site), &closed)?;
    REMOVED.with_borrow_mut(|removed| removed.extend(closed));
    Ok(())
}

/// The length of a StartupMessage with these parameters (protocol 3.0, 55.7 of PostgreSQL's manual).
pub fn startup(parameters: &[&str]) -> u64 {
    let strings: usize = parameters.iter().map(|it| it.len() + 1).sum();
    8 + strings as u64 + 1
}

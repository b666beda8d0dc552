//! The bench's own client: `xtask bench client TASK …`, in a process of its own, so that it can be an agent's.
//!
//! It does what pgbench does not: take a large result without keeping it, hold sessions open, and time connects. What
//! it found out is one line of JSON on its standard output.

use std::io::{BufRead as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::report;

mod tally;
mod wire;

pub use tally::MARK;
use wire::Session;

/// Between a connect, its close and the next connect, so that whoever accepts has finished with what was before.
const PAUSE: Duration = Duration::from_millis(1);

pub fn run(words: &[&str]) -> Result<()> {
    let found = match words {
        ["result", format, sql] => result(format, sql)?,
        ["hold", count] => hold(count.parse()?)?,
        ["connects", count] => connects(count.parse()?)?,
        ["logins", count] => logins(count.parse()?)?,
        _ => bail!("the client's tasks are result, hold, connects and logins"),
    };
    println!("{found}");
    Ok(())
}

/// One statement's whole answer.
fn result(format: &str, sql: &str) -> Result<Value> {
    let mut session = Session::open()?;
    let begun = Instant::now();
    match format {
        "text" | "copy" => session.query(sql)?,
        "binary" => session.query_binary(sql)?,
        _ => bail!("a result is text, binary or copy, not {format}"),
    }
    let tally = session.answer()?;
    let seconds = begun.elapsed().as_secs_f64();
    session.close()?;
    Ok(json!({
        "seconds": seconds,
        "bytes": tally.bytes,
        "rows": tally.rows,
        "marks": tally.marks,
    }))
}

/// Opens sessions and keeps them. After each line it says, the other side looks at the gateway and answers with one.
fn hold(count: usize) -> Result<Value> {
    let mut sessions = Vec::new();
    for index in 0..count {
        let session = Session::open().with_context(|| format!("session {} of {count}", index + 1));
        sessions.push(session?);
    }
    say_and_wait("open")?;
    for session in &mut sessions {
        session.query("SELECT 1")?;
        ensure!(session.answer()?.rows == 1, "a session has lost its answer");
    }
    say_and_wait("worked")?;
    for session in sessions {
        session.close()?;
    }
    Ok(json!({ "sessions": count }))
}

fn say_and_wait(word: &str) -> Result<()> {
    println!("{word}");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(())
}

/// connect(2) and close(2) alone: nothing is sent, and nobody on the other side is waited for.
fn connects(count: usize) -> Result<Value> {
    let address = wire::address()?;
    let (mut connects, mut closes) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let begun = Instant::now();
        let socket = TcpStream::connect(&address)?;
        connects.push(begun.elapsed().as_secs_f64() * 1e6);
        thread::sleep(PAUSE);
        let begun = Instant::now();
        drop(socket);
        closes.push(begun.elapsed().as_secs_f64() * 1e6);
        thread::sleep(PAUSE);
    }
    Ok(json!({ "connect": quartiles(connects), "close": quartiles(closes) }))
}

/// From connect to the first ReadyForQuery.
fn logins(count: usize) -> Result<Value> {
    let mut micros = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        let session = Session::open()?;
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
        session.close()?;
    }
    Ok(quartiles(micros))
}

fn quartiles(micros: Vec<f64>) -> Value {
    let spread = report::Spread::of(micros);
    json!({ "median": spread.median, "q1": spread.q1, "q3": spread.q3 })
}

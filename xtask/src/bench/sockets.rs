//! How many bytes each connection carried, by the kernel's own account.
//!
//! Sockets are counted as they end: the kernel tells whoever listens (sock_diag(7), the destroy group; `ss --events`)
//! what tcp_info(7) says of them then. It costs the relayed bytes nothing, and nobody in between has a say in it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::demo::leftovers::Stage;

/// One end of a connection that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub local: u16,
    pub peer: u16,
    /// Payload bytes, each counted once however often it was sent.
    pub sent: u64,
}

/// The ends seen since they were last asked for.
pub struct Sockets {
    ended: Arc<Mutex<Vec<Ended>>>,
}

impl Sockets {
    pub fn watch(stage: &Stage) -> Result<Self> {
        let mut ss = Command::new("setpriv")
            .args(["--pdeathsig=KILL", "--", "stdbuf", "-oL"])
            .args([
                "ss",
                "--events",
                "--tcp",
                "--info",
                "--numeric",
                "--no-header",
                "--oneline",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting ss, of iproute2")?;
        let lines = ss.stdout.take().context("stdout is a pipe")?;
        stage.adopt(ss)?;
        let ended = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&ended);
        thread::spawn(move || collect(lines, &collected));
        // It says nothing when it has begun to listen.
        thread::sleep(Duration::from_millis(300));
        Ok(Self { ended })
    }

    pub fn forget(&self) {
        self.lock().clear();
    }

    /// How many ends there were with this local and peer port, and what they sent. `None` is any port.
    pub fn sent(&self, local: Option<u16>, peer: Option<u16>) -> (u64, u64) {
        let ended = self.lock();
        let fits = |end: &&Ended| {
            local.is_none_or(|port| port == end.local) && peer.is_none_or(|port| port == end.peer)
        };
        let sent = ended.iter().filter(fits).map(|end| end.sent);
        sent.fold((0, 0), |(ends, total), sent| (ends + 1, total + sent))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Ended>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections with this local port that are still open on some side.
pub fn open_at(port: u16) -> Result<usize> {
    let ends = |file: &str| -> Result<usize> {
        let text = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        Ok(text.lines().filter(|line| is_open_at(line, port)).count())
    };
    Ok(ends("/proc/net/tcp")? + ends("/proc/net/tcp6")?)
}

/// proc(5): `sl: local remote state …`, hexadecimal; 0A listens, 06 only waits for stray segments.
fn is_open_at(line: &str, port: u16) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let local = words.next().and_then(|local| local.rsplit(':').next());
    let local = local.and_then(|hex| u16::from_str_radix(hex, 16).ok());
    let state = words.nth(1).unwrap_or_default();
    local == Some(port) && state != "0A" && state != "06"
}

fn collect(lines: ChildStdout, ended: &Mutex<Vec<Ended>>) {
    for line in BufReader::new(lines).lines().map_while(Result::ok) {
        if let Some(end) = parse(&line) {
            ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(end);
        }
    }
}

/// A line of `ss`: state, two queues, the addresses of both ends, and words like `bytes_sent:777`.
fn parse(line: &str) -> Option<Ended> {
    let mut words = line.split_whitespace();
    let port = |address: &str| address.rsplit(':').next()?.parse().ok();
    let local = port(words.nth(3)?)?;
    let peer = port(words.next()?)?;
    let (mut sent, mut again) = (0, 0);
    for word in words {
        if let Some(count) = word.strip_prefix("bytes_sent:") {
            sent = count.parse().ok()?;
        } else if let Some(count) = word.strip_prefix("bytes_retrans:") {
            again = count.parse().ok()?;
        }
    }
    Some(Ended {
        local,
        peer,
        sent: sent - again,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_no_connections() {
        let line =
            |state: &str| format!("   0: 0100007F:5790 0100007F:C2F4 {state} 00000000:00000000");
        assert!(is_open_at(&line("01"), 0x5790));
        assert!(!is_open_at(&line("0A"), 0x5790));
        assert!(!is_open_at(&line("01"), 0xC2F4));
    }

    #[test]
    fn reads_the_lines_of_ss() {
        let line = "UNCONN 0      0      127.0.0.1:59665 [::ffff:127.0.0.1]:55570 wscale:10,10 rto:204 cwnd:12 bytes_sent:777 bytes_retrans:7 bytes_acked:778 bytes_received:1001";
        let expected = Ended {
            local: 59665,
            peer: 55570,
            sent: 770,
        };
        assert_eq!(parse(line), Some(expected));
        // A listener has no peer.
        assert_eq!(
            parse("UNCONN 0 0 127.0.0.1:59665 0.0.0.0:* rto:1000 mss:536"),
            None
        );
    }
}

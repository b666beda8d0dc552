//! How many bytes each connection carried, by the kernel's own account.
//!
//! Sockets are counted as they end: the kernel tells whoever listens (sock_diag(7), the destroy group; `ss --events`)
//! what tcp_info(7) says of them then. It costs the relayed bytes nothing, and nobody in between has a say in it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::demo::leftovers::Stage;

/// How long the kernel may take to tell of a socket that has ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// One end of a connection that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub local: u16,
    pub peer: u16,
    /// Payload bytes, each counted once however often it was sent.
    pub sent: u64,
}

/// The ends seen since they were last forgotten.
pub struct Sockets {
    /// What `ss` says. A pipe would hold it up whenever nobody reads, and then it loses events.
    file: PathBuf,
    seen: Mutex<Seen>,
}

struct Seen {
    lines: BufReader<File>,
    line: String,
    ended: Vec<Ended>,
}

impl Sockets {
    pub fn watch(stage: &Stage) -> Result<Self> {
        let file = stage.folder().join("sockets");
        File::create(&file)?;
        let lines = BufReader::new(File::open(&file)?);
        let sockets = Self {
            file,
            seen: Mutex::new(Seen {
                lines,
                line: String::new(),
                ended: Vec::new(),
            }),
        };
        sockets.start(stage)?;
        Ok(sockets)
    }

    fn start(&self, stage: &Stage) -> Result<()> {
        let file = OpenOptions::new().append(true).open(&self.file)?;
        let ss = Command::new("setpriv")
            .args(["--pdeathsig=KILL", "--"])
            // Before everybody else: the kernel does not wait for it.
            .args(["nice", "-n", "-19", "stdbuf", "-oL", "ss"])
            .args(["--events", "--tcp", "--info", "--numeric"])
            .args(["--no-header", "--oneline"])
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(Stdio::null())
            .spawn()
            .context("starting ss, of iproute2")?;
        stage.adopt(ss)
    }

    /// Forgets everything, once it is certain that events come through: a connection to `sink` is told of.
    pub fn forget(&self, stage: &Stage, sink: u16) -> Result<()> {
        for _ in 0..10 {
            if self.hears_of(sink)? {
                self.seen().ended.clear();
                return Ok(());
            }
            // It ends when events come faster than it reads.
            self.start(stage)?;
            thread::sleep(Duration::from_millis(300));
        }
        bail!("the kernel's events of sockets do not arrive")
    }

    fn hears_of(&self, sink: u16) -> Result<bool> {
        let socket = TcpStream::connect(("127.0.0.1", sink))?;
        let own = socket.local_addr()?.port();
        drop(socket);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.sent(Some(own), Some(sink))?.0 > 0 {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(false)
    }

    /// How many ends there were with this local and peer port, and what they sent. `None` is any port.
    pub fn sent(&self, local: Option<u16>, peer: Option<u16>) -> Result<(u64, u64)> {
        let mut seen = self.seen();
        seen.go_on()?;
        let fits = |end: &&Ended| {
            local.is_none_or(|port| port == end.local) && peer.is_none_or(|port| port == end.peer)
        };
        let sent = seen.ended.iter().filter(fits).map(|end| end.sent);
        Ok(sent.fold((0, 0), |(ends, total), sent| (ends + 1, total + sent)))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn go_on(&mut self) -> Result<()> {
        loop {
            self.lines.read_line(&mut self.line)?;
            if !self.line.ends_with('\n') {
                return Ok(());
            }
            self.ended.extend(parse(&self.line));
            self.line.clear();
        }
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

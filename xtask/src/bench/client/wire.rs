//! As much of PostgreSQL's protocol as the bench's client needs, on a blocking socket.

use std::env;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};

use super::tally::Tally;

/// Larger than any socket buffer hands out at once: the client should not be what is measured.
const BUFFER: usize = 256 << 10;

/// Where libpq's variables say that the server is.
pub fn address() -> Result<String> {
    Ok(format!("{}:{}", variable("PGHOST")?, variable("PGPORT")?))
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name} is not set"))
}

/// A session that is logged in. The server asks for no password.
pub struct Session {
    socket: TcpStream,
}

impl Session {
    pub fn open() -> Result<Self> {
        let socket = TcpStream::connect(address()?)?;
        socket.set_nodelay(true)?;
        let mut session = Self { socket };
        session.socket.write_all(&startup()?)?;
        session.answer()?;
        Ok(session)
    }

    pub fn query(&mut self, sql: &str) -> Result<()> {
        let text = message(b'Q', &[sql.as_bytes(), b"\0"]);
        Ok(self.socket.write_all(&text)?)
    }

    /// Parse, Bind with every column in binary, Describe, Execute and Sync, in one write.
    pub fn query_binary(&mut self, sql: &str) -> Result<()> {
        let mut messages = message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]);
        // No names, no parameters, one format for all columns: binary.
        messages.extend(message(b'B', &[b"\0\0", &[0, 0, 0, 0, 0, 1, 0, 1]]));
        messages.extend(message(b'D', &[b"P\0"]));
        messages.extend(message(b'E', &[b"\0", &[0; 4]]));
        messages.extend(message(b'S', &[]));
        Ok(self.socket.write_all(&messages)?)
    }

    /// Reads until the server is ready for the next statement.
    pub fn answer(&mut self) -> Result<Tally> {
        // A session that is held should cost its client little: most answers are short.
        let mut buffer = vec![0; 4096];
        let mut tally = Tally::default();
        while !tally.is_ready() {
            let read = self.socket.read(&mut buffer)?;
            ensure!(read > 0, "the connection was closed before the answer");
            tally.take(&buffer[..read])?;
            if tally.bytes > BUFFER as u64 && buffer.len() < BUFFER {
                buffer.resize(BUFFER, 0);
            }
        }
        Ok(tally)
    }

    /// Says goodbye and waits until the other side has gone too.
    pub fn close(mut self) -> Result<()> {
        self.socket.write_all(&message(b'X', &[]))?;
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest)?;
        ensure!(rest.is_empty(), "something came after the goodbye");
        Ok(())
    }
}

/// StartupMessage, protocol 3.0.
fn startup() -> Result<Vec<u8>> {
    let mut body = vec![0, 3, 0, 0];
    for (name, value) in [
        ("user", variable("PGUSER")?),
        ("database", variable("PGDATABASE")?),
    ] {
        body.extend(format!("{name}\0{value}\0").bytes());
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4)?;
    Ok([&length.to_be_bytes()[..], &body].concat())
}

fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = body.len() as u32 + 4;
    let mut bytes = vec![tag];
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

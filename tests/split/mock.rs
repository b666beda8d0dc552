//! A mock of a server: it says what the server has said, each message cut, without having understood a word.
//!
//! It knows where it is by how much it has been told: an answer follows when as many bytes have come as
//! before that answer in the recording. The nth session is cut behind the nth byte of each message; the last but
//! one is not cut at all, so that an answer's messages come together, and the last comes byte by byte.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::tee::Recorded;

/// Long enough for the gateway to wake up and read.
const PAUSE: Duration = Duration::from_millis(1);

const PATIENCE: Duration = Duration::from_secs(60);

/// How the gateway's question to the catalogue begins, which it asks over a connection of its own.
const CATALOGUE: &[u8] = b"WITH RECURSIVE rule";

pub struct Mock {
    port: u16,
    script: Arc<Script>,
}

struct Script {
    greeting: Vec<u8>,
    /// Of the longest message.
    longest: usize,
    /// The answer to the catalogue's question, which is asked again and again.
    catalogue: Vec<u8>,
    session: Vec<Turn>,
    connections: AtomicUsize,
    sessions: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// What the server says once it has been told so many bytes.
struct Turn {
    told: usize,
    says: Vec<u8>,
}

impl Mock {
    /// Of the server behind connections of which one is a session and the others ask for the catalogue.
    pub fn of(connections: Vec<Recorded>) -> Mock {
        let (catalogues, mut sessions): (Vec<Recorded>, Vec<Recorded>) = connections
            .into_iter()
            .partition(|it| contains(&it.of_the_client(), CATALOGUE));
        assert_eq!(sessions.len(), 1, "one session was recorded");
        let mut session = turns(&sessions.remove(0));
        let greeting = session.remove(0).says;
        let catalogue = catalogues.first().map(|it| turns(it).remove(1).says);
        let said = session.iter().map(|turn| &turn.says).chain([&greeting]);
        let longest = said.flat_map(|said| messages(said)).map(<[u8]>::len).max();
        let script = Arc::new(Script {
            greeting,
            longest: longest.unwrap_or(0),
            catalogue: catalogue.unwrap_or_default(),
            session,
            connections: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            failures: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::clone(&script);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = Arc::clone(&shared);
                thread::spawn(move || {
                    if let Err(error) = script.act(stream) {
                        let mut failures = script.failures.lock().expect("nobody panics");
                        failures.push(error);
                    }
                });
            }
        });
        Mock { port, script }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many sessions it takes: the longest message can be cut in one place less than it has bytes.
    pub fn places(&self) -> usize {
        self.script.longest + 1
    }

    pub fn failures(&self) -> Vec<String> {
        self.script.failures.lock().expect("nobody panics").clone()
    }
}

impl Script {
    fn act(&self, mut stream: TcpStream) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("the gateway's connection: {error}");
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut told = Vec::new();
        if !listen(&mut stream, &mut told, 8)? {
            return Ok(());
        }
        let startup = i32::from_be_bytes([told[0], told[1], told[2], told[3]]);
        let startup = usize::try_from(startup).map_err(|_| "no start-up packet")?;
        listen(&mut stream, &mut told, startup)?;
        // Whose connection it is, it says only now.
        let place = 1 + self.connections.fetch_add(1, Ordering::Relaxed);
        self.say(&mut stream, &self.greeting, place)
            .map_err(failed)?;
        if !listen(&mut stream, &mut told, startup + 5)? {
            return Ok(());
        }
        // A session begins with a query, too.
        if told[startup] == b'Q' {
            let length = &told[startup + 1..startup + 5];
            let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
            let end = startup + 1 + usize::try_from(length).map_err(|_| "no length")?;
            listen(&mut stream, &mut told, end)?;
            if contains(&told, CATALOGUE) {
                return self.catalogue(stream, told, end);
            }
        }
        let place = 1 + self.sessions.fetch_add(1, Ordering::Relaxed);
        for turn in &self.session {
            if !listen(&mut stream, &mut told, turn.told)? {
                return Err(format!(
                    "the gateway left after {} of {} bytes",
                    told.len(),
                    turn.told
                ));
            }
            self.say(&mut stream, &turn.says, place).map_err(failed)?;
        }
        // A server closes when it has been told goodbye.
        while listen(&mut stream, &mut told, usize::MAX)? {}
        let _ = stream.shutdown(Shutdown::Both);
        Ok(())
    }

    fn say(&self, stream: &mut TcpStream, said: &[u8], place: usize) -> std::io::Result<()> {
        let pieces = match place > self.longest {
            true => said.chunks(1).map(<[u8]>::to_vec).collect(),
            false => cut(said, place),
        };
        for piece in pieces {
            stream.write_all(&piece)?;
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The same question, the same answer.
    fn catalogue(
        &self,
        mut stream: TcpStream,
        mut told: Vec<u8>,
        mut end: usize,
    ) -> Result<(), String> {
        loop {
            stream
                .write_all(&self.catalogue)
                .map_err(|error| error.to_string())?;
            let start = end;
            if !listen(&mut stream, &mut told, start + 5)? {
                return Ok(());
            }
            let length = [
                told[start + 1],
                told[start + 2],
                told[start + 3],
                told[start + 4],
            ];
            end = start + 1 + usize::try_from(u32::from_be_bytes(length)).unwrap_or(0);
            listen(&mut stream, &mut told, end)?;
        }
    }
}

/// Reads until `count` bytes have come in all; no, if the other side ends before.
fn listen(stream: &mut TcpStream, told: &mut Vec<u8>, count: usize) -> Result<bool, String> {
    let mut buffer = [0; 16 << 10];
    while told.len() < count {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(read) => told.extend_from_slice(&buffer[..read]),
            Err(_) if count == usize::MAX => return Ok(false),
            Err(error) => return Err(format!("after {} bytes: {error}", told.len())),
        }
    }
    Ok(true)
}

/// The server's part, with what each part waits for.
fn turns(recorded: &Recorded) -> Vec<Turn> {
    let mut turns: Vec<Turn> = Vec::new();
    let mut told = 0;
    for said in &recorded.0 {
        if said.by_the_client {
            told += said.bytes.len();
            continue;
        }
        match turns.last_mut().filter(|turn| turn.told == told) {
            Some(turn) => turn.says.extend_from_slice(&said.bytes),
            None => turns.push(Turn {
                told,
                says: said.bytes.clone(),
            }),
        }
    }
    turns
}

/// Every message in two, where it is long enough: what is left of one travels with the beginning of the next.
fn cut(said: &[u8], place: usize) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut rest = Vec::new();
    for message in messages(said) {
        match message.split_at_checked(place) {
            Some((head, tail)) if !tail.is_empty() => {
                rest.extend_from_slice(head);
                pieces.push(std::mem::replace(&mut rest, tail.to_vec()));
            }
            _ => rest.extend_from_slice(message),
        }
    }
    pieces.push(rest);
    pieces
}

pub fn messages(mut said: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while said.len() >= 5 {
        let length = u32::from_be_bytes([said[1], said[2], said[3], said[4]]);
        let length = 1 + usize::try_from(length).expect("a length");
        let (message, rest) = said.split_at(length.min(said.len()));
        found.push(message);
        said = rest;
    }
    if !said.is_empty() {
        found.push(said);
    }
    found
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

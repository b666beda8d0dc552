//! A relay between two sockets that keeps what was said, in order.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What one side said in one read.
#[derive(Clone)]
pub struct Said {
    pub by_the_client: bool,
    pub bytes: Vec<u8>,
}

/// One connection's conversation so far.
#[derive(Clone, Default)]
pub struct Recorded(pub Vec<Said>);

impl Recorded {
    pub fn of_the_client(&self) -> Vec<u8> {
        self.said(true)
    }

    pub fn of_the_server(&self) -> Vec<u8> {
        self.said(false)
    }

    fn said(&self, by_the_client: bool) -> Vec<u8> {
        let said = self.0.iter();
        let said = said.filter(|said| said.by_the_client == by_the_client);
        said.flat_map(|said| said.bytes.clone()).collect()
    }
}

type Connections = Arc<Mutex<Vec<Arc<Mutex<Recorded>>>>>;

pub struct Tee {
    port: u16,
    connections: Connections,
}

impl Tee {
    pub fn in_front_of(server: u16) -> Tee {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let connections = Connections::default();
        let all = Arc::clone(&connections);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    return;
                };
                let recorded = Arc::default();
                all.lock()
                    .expect("nobody panics")
                    .push(Arc::clone(&recorded));
                relay(&client, &server, true, &recorded);
                relay(&server, &client, false, &recorded);
            }
        });
        Tee { port, connections }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The conversations of the connections that there were.
    pub fn take(&self) -> Vec<Recorded> {
        let connections = std::mem::take(&mut *self.connections.lock().expect("nobody panics"));
        let recorded = connections
            .iter()
            .map(|it| it.lock().expect("nobody panics").clone());
        recorded.collect()
    }
}

fn relay(from: &TcpStream, to: &TcpStream, by_the_client: bool, recorded: &Arc<Mutex<Recorded>>) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be cloned");
    let (mut from, mut to) = (clone(from), clone(to));
    let _ = to.set_nodelay(true);
    let recorded = Arc::clone(recorded);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let bytes = buffer[..count].to_vec();
            // On record first, so that an answer never stands before what it answers.
            let said = Said {
                by_the_client,
                bytes: bytes.clone(),
            };
            recorded.lock().expect("nobody panics").0.push(said);
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

//! Bytes from outside are hostile, the agent's and the target's alike: they may end their session, with a
//! leaf that says so, and nothing else.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::harness::program::eventually;
use crate::harness::{Gateway, Postgres, Script, Setup};

#[test]
fn malformed_bytes_of_an_agent_end_their_session_only() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    let script = Script::plain(&gateway, "hostile.py", include_str!("clients/hostile.py"));
    let port = server.port().to_string();
    let seen = gateway
        .as_agent(script.words(["127.0.0.1", &port]))
        .succeeds();
    let cases = seen.lines();
    assert!(cases.len() >= 40, "{seen}");
    for case in cases {
        let mut words = case.splitn(3, ' ');
        let (local_port, verdict) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let name = words.next().unwrap_or("");
        assert_eq!(verdict, "closed", "{name}: {seen}");
        let client = format!(":{local_port}");
        eventually(
            &format!("a leaf about: {name}"),
            Duration::from_secs(10),
            || {
                gateway.events().iter().find_map(|event| {
                    let ends = matches!(event.name(), "session.close" | "deny");
                    (ends && event.text("client").ends_with(&client)).then_some(())
                })
            },
        );
    }
    gateway.is_alive();
    gateway
        .psql(["SELECT 'unimpressed'"])
        .succeeds()
        .prints("unimpressed");
    let opened = gateway.events().count("session.open");
    gateway.wait_for(opened, "session.close");
}

#[test]
fn malformed_bytes_of_a_target_end_their_session_only() {
    const READY: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    let cases: &[(&str, &[&[u8]])] = &[
        ("closes at once", &[]),
        (
            "answers with nonsense",
            &[b"HTTP/1.1 400 Bad Request\r\n\r\n"],
        ),
        (
            "asks for an unknown authentication",
            &[b"R\0\0\0\x08\0\0\0\x63"],
        ),
        (
            "asks for SCRAM without a mechanism",
            &[b"R\0\0\0\x09\0\0\0\x0a\0"],
        ),
        ("truncates its greeting", &[b"R\0\0\0\x08\0\0"]),
        ("a length of 0", &[READY, b"T\0\0\0\0"]),
        ("a length of 3", &[READY, b"T\0\0\0\x03"]),
        ("a length of 2^31-1", &[READY, b"D\x7f\xff\xff\xff"]),
        ("a negative length", &[READY, b"D\xff\xff\xff\xff"]),
        (
            "more columns than there are bytes",
            &[READY, b"T\0\0\0\x06\x7f\xff"],
        ),
        (
            "a row without a description",
            &[READY, b"D\0\0\0\x0a\0\x01\x7f\xff\xff\xff"],
        ),
        ("an unknown message", &[READY, b"\x01\0\0\0\x04"]),
        ("copies both ways", &[READY, b"W\0\0\0\x07\0\0\0"]),
        (
            "answers what nobody asked",
            &[READY, b"Z\0\0\0\x05IZ\0\0\0\x05IC\0\0\0\x05\0"],
        ),
        ("truncates a row", &[READY, b"D\0\0\0\xff\0\x01"]),
    ];
    for (name, script) in cases {
        let port = malicious_server(script);
        let mut gateway = Setup::in_front_of_port(port).start();
        let address = format!("host=127.0.0.1 port={port} user=x dbname=shop");
        gateway
            .as_agent(["psql", "-X", "-d", &address, "-c", "SELECT 1"])
            .fails();
        eventually(
            &format!("a leaf about a target that {name}"),
            Duration::from_secs(10),
            || {
                let events = gateway.events();
                (events.count("session.close") + events.count("deny") > 0).then_some(())
            },
        );
        gateway.is_alive();
    }
}

/// A server that greets the gateway with `parts`: all but the first after the next thing it is sent.
fn malicious_server(parts: &[&[u8]]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            misbehave(stream, &parts);
        }
    });
    port
}

fn misbehave(mut stream: TcpStream, parts: &[Vec<u8>]) {
    let patience = Some(Duration::from_secs(5));
    stream.set_read_timeout(patience).expect("it is ours");
    for part in parts {
        let asked = stream.read(&mut [0; 4096]).unwrap_or(0);
        if asked == 0 || stream.write_all(part).is_err() {
            return;
        }
    }
}

//! Where a message is cut into packets changes nothing: recorded conversations of real clients, cut at every
//! byte, in both directions, are answered as they are in one piece.
//!
//! A conversation is recorded at the start of each test, between the client and the server, and then sent by
//! hand through the gateway. For the other direction a mock of the server sends what the server said, cut.

mod mock;
mod tee;

use std::time::Duration;

use crate::deny_table::{POLICY, TABLES};
use crate::harness::program::{Ended, run_with_input, run_within};
use crate::harness::{Authentication, Gateway, Postgres, Script, Setup};
use mock::Mock;
use tee::Tee;

/// For some hundred sessions on a busy machine.
const DEADLINE: Duration = Duration::from_secs(200);

/// The server's messages are cut at so many places at the least.
const PLACES: usize = 100;

/// Masked columns of several types, beside the shop's card numbers: NULL where a type has no masked form.
const ACCOUNTS: &str = "
CREATE TABLE accounts (id integer, pan text, balance numeric, born date, tags text[], note text);
INSERT INTO accounts VALUES
    (1, '4111111111111111', 12.50, '2000-02-29', '{a,b}', 'one'),
    (2, 'short', -1, NULL, '{}', E'two\\twith\\nmore \\\\ \",\"'),
    (3, NULL, NULL, '1999-12-31', NULL, '');
GRANT SELECT ON accounts TO PUBLIC;
";

const MASKED: [(&str, &str); 4] = [
    ("public.accounts.pan", "keep_last(4)"),
    ("public.accounts.balance", "redact"),
    ("public.accounts.born", "redact"),
    ("public.accounts.tags", "redact"),
];

#[test]
fn what_psql_says_is_cut_anywhere() {
    let site = Site::new();
    site.cut(&site.psql());
}

#[test]
fn what_psycopg_says_is_cut_anywhere() {
    let site = Site::new();
    site.cut(&site.psycopg());
}

#[test]
fn what_asyncpg_says_is_cut_anywhere() {
    let site = Site::new();
    site.cut(&site.asyncpg());
}

#[test]
fn what_the_server_says_to_psql_is_cut_anywhere() {
    let site = Site::new();
    site.cut_the_server(&site.psql());
}

#[test]
fn what_the_server_says_to_psycopg_is_cut_anywhere() {
    let site = Site::new();
    site.cut_the_server(&site.psycopg());
}

#[test]
fn what_the_server_says_to_asyncpg_is_cut_anywhere() {
    let site = Site::new();
    site.cut_the_server(&site.asyncpg());
}

/// What a client and the server have said to each other directly.
struct Conversation {
    sent: Vec<u8>,
    /// The types of the server's messages, but for the cancel key.
    answered: String,
}

/// A server, whatever stands in front of it for the gateway to dial, and a gateway.
struct Site {
    server: Postgres,
    /// Between the gateway and the server, or the client and the server.
    tee: Tee,
    gateway: Gateway,
}

impl Site {
    fn new() -> Site {
        let server = Postgres::asking_for(Authentication::Trust);
        server.admin(TABLES);
        server.admin(ACCOUNTS);
        let tee = Tee::in_front_of(server.port());
        let gateway = gateway_in_front_of(tee.port());
        Site {
            server,
            tee,
            gateway,
        }
    }

    /// What psql sends, recorded.
    fn psql(&self) -> Conversation {
        let mut psql = std::process::Command::new("psql");
        psql.args(["-X", "-A", "-t", "-d", &self.conninfo()]);
        let script = include_str!("clients/deny_converse.sql");
        self.recorded(run_with_input(psql, script.as_bytes()))
    }

    fn psycopg(&self) -> Conversation {
        let script = Script::with_drivers(
            &self.gateway,
            "deny_converse_psycopg.py",
            include_str!("clients/deny_converse_psycopg.py"),
        );
        self.recorded(self.server.directly(script.words([&self.conninfo()[..]])))
    }

    fn asyncpg(&self) -> Conversation {
        let script = Script::with_drivers(
            &self.gateway,
            "deny_converse_asyncpg.py",
            include_str!("clients/deny_converse_asyncpg.py"),
        );
        let port = self.tee.port().to_string();
        self.recorded(self.server.directly(script.words(["127.0.0.1", &port])))
    }

    /// The clerk's, past the gateway.
    fn conninfo(&self) -> String {
        let port = self.tee.port();
        format!(
            "host=127.0.0.1 port={port} user=shop_clerk dbname=shop sslmode=disable gssencmode=disable"
        )
    }

    fn recorded(&self, client: Ended) -> Conversation {
        client.succeeds();
        let mut connections = self.tee.take();
        assert_eq!(connections.len(), 1, "one connection");
        let recorded = connections.remove(0);
        let answers = recorded.of_the_server();
        let answers = mock::messages(&answers).into_iter();
        let tags = answers.map(|message| char::from(message[0]));
        Conversation {
            sent: recorded.of_the_client(),
            answered: tags.filter(|tag| *tag != 'K').collect(),
        }
    }

    /// Sends it through the gateway, cut at every place.
    fn cut(&self, conversation: &Conversation) {
        let port = self.tee.port().to_string();
        let seen = replay(&self.gateway, conversation, &port, &[]);
        println!("{}", seen.text());
        assert!(seen.text().contains(" ways, 0 different"), "{seen}");
        assert!(ways(&seen) > 20, "{seen}");
    }

    /// Sends it through another gateway, to a mock that says what the server has said to this one.
    fn cut_the_server(&self, conversation: &Conversation) {
        let port = self.tee.port().to_string();
        replay(&self.gateway, conversation, &port, &["as it is", "0"]);
        let mock = Mock::of(self.tee.take());
        let gateway = gateway_in_front_of(mock.port());
        let port = mock.port().to_string();
        assert!(mock.places() > PLACES, "{}", mock.places());
        let times = mock.places().to_string();
        let seen = replay(&gateway, conversation, &port, &["as it is", &times]);
        println!("{}{} places in the server's messages", seen.text(), times);
        assert!(seen.text().contains(" ways, 0 different"), "{seen}");
        assert_eq!(mock.failures(), Vec::<String>::new());
    }
}

/// Denials and masks, which rewrite what is said, are part of it.
fn gateway_in_front_of(port: u16) -> Gateway {
    let mut setup = Setup::in_front_of_port(port).policy("allow-all");
    for (column, with) in MASKED {
        setup = setup.masking(column, with);
    }
    let mut gateway = setup.install();
    gateway.write_policy("denied", POLICY);
    gateway.sluice(["guard", "load"]).succeeds();
    gateway.start();
    gateway
}

/// Runs the script that sends a conversation again, as the agent.
fn replay(gateway: &Gateway, conversation: &Conversation, port: &str, more: &[&str]) -> Ended {
    let script = Script::plain(
        gateway,
        "deny_split.py",
        include_str!("clients/deny_split.py"),
    );
    let file = gateway.public_folder("clients").join("conversation");
    std::fs::write(&file, hex::encode(&conversation.sent)).expect("the folder is ours");
    let file = file.display().to_string();
    let mut words = vec!["127.0.0.1", port, &file[..]];
    words.extend(more);
    let command = gateway.agent_command(script.words(words));
    let seen = run_within(DEADLINE, command, b"").succeeds();
    // What is rewritten is cut, too.
    assert!(masked(&seen) >= 3, "{seen}");
    // The clerk was denied what the agent is: uncut, the gateway's answers are the server's.
    let answered = seen.lines();
    let answered = answered
        .iter()
        .find_map(|line| line.strip_prefix("answered "));
    assert_eq!(answered, Some(&conversation.answered[..]), "{seen}");
    seen
}

/// How many values came masked, if none came in clear.
fn masked(seen: &Ended) -> usize {
    let lines = seen.lines();
    let count = lines
        .iter()
        .find_map(|line| line.strip_suffix(" values masked, 0 in clear"));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// How many ways of cutting were tried.
fn ways(seen: &Ended) -> usize {
    let lines = seen.lines();
    let total = lines.last().and_then(|line| line.split(' ').next());
    total.and_then(|count| count.parse().ok()).unwrap_or(0)
}

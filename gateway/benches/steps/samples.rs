//! Statements, rows and everything a decision needs, of any size.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use gateway::config::{self, Target};
use gateway::policy::{PolicySet, Principal};
use gateway::protocol::postgres::backend::{Field, RowDescription};
use gateway::session::decide::{Analyst, Judge};

/// What pgbench -S sends.
pub const SELECT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 314159;";

/// A statement of about this many bytes: a list of numbers, as clients that build IN lists send them.
pub fn statement(bytes: usize) -> String {
    let mut text = "SELECT abalance FROM pgbench_accounts WHERE aid IN (1".to_owned();
    let mut number = 100_000;
    while text.len() + 8 < bytes {
        let _ = write!(text, ", {number}");
        number += 1;
    }
    text + ")"
}

/// A DataRow with this many text values of `width` bytes.
pub fn row(columns: u16, width: usize) -> Vec<u8> {
    let mut body = columns.to_be_bytes().to_vec();
    for column in 0..columns {
        body.extend((width as i32).to_be_bytes());
        body.extend((0..width).map(|at| b'0' + ((usize::from(column) + at) % 10) as u8));
    }
    let mut row = vec![b'D'];
    row.extend((body.len() as u32 + 4).to_be_bytes());
    row.extend(body);
    row
}

pub fn description(columns: u16) -> RowDescription {
    let fields = (0..columns).map(|column| Field {
        name: format!("column{column}").into_bytes(),
        table_oid: 16_384,
        attribute: i16::try_from(column).unwrap_or(i16::MAX),
        type_oid: 25,
        type_modifier: -1,
        format: 0,
    });
    RowDescription {
        fields: fields.collect(),
    }
}

/// The same bytes again and again, at least `bytes` of them.
pub fn stream(message: &[u8], bytes: usize) -> BytesMut {
    BytesMut::from(&message.repeat(bytes.div_ceil(message.len()))[..])
}

const CONFIGURATION: &str = r#"
[identity.corp]
issuer = "https://issuer.example"
audience = "sluice"
jwks = "/etc/sluice/jwks.json"

[agents.bot]
identity = "corp"
token_file = "/run/bot.jwt"

[targets.shop]
protocol = "postgres"
addresses = ["127.0.0.1:5432"]
credential = { user = "app", password_file = "/etc/pw" }

[[targets.shop.mask]]
column = "public.customers.email"
with = "redact"
"#;

fn target() -> Arc<Target> {
    let config = config::parse(CONFIGURATION, Path::new("sluice.toml"));
    let config = config.unwrap_or_else(|errors| panic!("{errors}"));
    Arc::clone(&config.targets["shop"])
}

/// A session's judge, with the policies that ship.
pub fn judge() -> Judge {
    let profile = include_str!("../../../policies/read-only.cedar");
    let policies = PolicySet::parse(&[(PathBuf::from("read-only.cedar"), profile.to_owned())]);
    Judge {
        policies: Arc::new(policies.unwrap_or_else(|errors| panic!("{errors:?}"))),
        principal: Principal {
            agent: "bot".to_owned(),
            subject: "bot@corp".to_owned(),
            groups: vec!["reporting".to_owned()],
            process: Default::default(),
        },
        target: target(),
        database: "shop".to_owned(),
        analyst: Analyst::start(1).unwrap_or_else(|error| panic!("{error}")),
    }
}

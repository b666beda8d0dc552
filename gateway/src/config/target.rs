//! Targets: the resources agents reach, under which addresses, with which credential, behind which masks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use super::address::Address;
use super::credential::{self, CredentialSource};
use super::errors::Problem;
use super::section::{At, Section};
use super::target_tls::{self, TargetTls};
use super::values::{self, Root};
use crate::policy::masking::{self, MaskRule};

/// `[targets.NAME]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub protocol: Protocol,
    /// What agents dial; never empty, and no other target has one of them.
    pub addresses: Vec<Address>,
    /// Where the gateway dials instead of the original destination.
    pub dial: Option<Address>,
    /// If set, the only database that may be opened.
    pub database: Option<String>,
    pub tls: TargetTls,
    pub credential: CredentialSource,
    /// What policies may have the gateway log in with instead, by name.
    pub credentials: BTreeMap<String, CredentialSource>,
    /// How long all addresses together may take from dialling to the end of the login.
    pub connect_timeout: Duration,
    /// A session in which nothing is said for this long is ended; `None`: it may idle for ever.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may be silent before TCP asks whether its other end is still there.
    pub keepalive: Duration,
    /// Sessions at one time; `None`: as many as the gateway and the target have room for.
    pub max_connections: Option<usize>,
    pub masks: Vec<MaskRule>,
    /// Whether the target's names may resolve to loopback, link-local or metadata addresses. Addresses that
    /// are written as numbers always may.
    pub allow_local: bool,
    /// Whether agents may open replication connections, which are relayed unread.
    pub replication: bool,
    /// The longest message relayed in either direction, in bytes, header included.
    pub max_message: u32,
}

/// PostgreSQL's own limit for the messages that have no smaller one (`MaxAllocSize`), with the header.
const MAX_MESSAGE: u32 = 0x3fff_ffff + 5;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

const KEEPALIVE: Duration = Duration::from_secs(60);

/// In seconds; whoever wants to wait longer means for ever.
const YEAR: i64 = 365 * 86400;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Postgres,
}

/// All targets, or `None` if one of them could not be read.
pub(super) fn read_all(
    sections: Vec<(String, Section<'_>)>,
    listen_port: u16,
    root: Root<'_>,
) -> Option<BTreeMap<String, Arc<Target>>> {
    let mut owners = Owners {
        listen_port,
        taken: BTreeMap::new(),
    };
    let targets: Vec<_> = sections
        .into_iter()
        .map(|(name, section)| read(name, section, root, &mut owners))
        .collect();
    targets
        .into_iter()
        .map(|target| target.map(|target| (target.name.clone(), Arc::new(target))))
        .collect()
}

fn read(
    name: String,
    mut section: Section<'_>,
    root: Root<'_>,
    owners: &mut Owners,
) -> Option<Target> {
    let protocol = section.require("protocol", |value| {
        values::choice(value, &[("postgres", Protocol::Postgres)])
    });
    let addresses = read_addresses(&name, &mut section, owners);
    let dial = section.take("dial", values::parsed);
    let database = section.take("database", values::owned_text);
    let tls = target_tls::read(section.table("tls"), root);
    let credential = credential::read_default(&mut section, root, &tls);
    let credentials = credential::read_named(&mut section, root, &tls);
    let seconds = |value: &DeValue<'_>, max| values::number(value, 1, max).map(Duration::from_secs);
    let connect_timeout = section.take("connect_timeout_seconds", |value| seconds(value, 600));
    let idle_timeout = section.take("idle_timeout_seconds", |value| seconds(value, YEAR));
    let keepalive = section.take("keepalive_seconds", |value| seconds(value, 7200));
    let max_connections = section.take("max_connections", |value| {
        values::number(value, 1, 1_000_000)
    });
    let masks = read_masks(&mut section);
    let allow_local = section.take("allow_local", values::boolean);
    let replication = section.take("replication", values::boolean);
    let max_message = section.take("max_message_bytes", |value| {
        values::number(value, 1 << 16, i64::from(MAX_MESSAGE))
    });
    if replication == Some(true) && !masks.is_empty() {
        let problem = Problem::new("cannot be true for a target with masks")
            .hint("replication is relayed unread, so nothing in it could be masked; make a second target without masks");
        section.refuse(section.offset_of("replication"), "replication", problem);
    }
    section.finish();
    Some(Target {
        name,
        protocol: protocol?,
        addresses: addresses?,
        dial,
        database,
        tls,
        credential: credential?,
        credentials: credentials?,
        connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        idle_timeout,
        keepalive: keepalive.unwrap_or(KEEPALIVE),
        max_connections,
        masks,
        allow_local: allow_local.unwrap_or(false),
        replication: replication.unwrap_or(false),
        max_message: max_message.unwrap_or(MAX_MESSAGE),
    })
}

/// Which target answers to an address: exactly one, or the flow's destination would not say which is meant.
#[derive(Debug)]
struct Owners {
    listen_port: u16,
    /// address → target, and the line it is at
    taken: BTreeMap<Address, (String, usize)>,
}

impl Owners {
    fn claim(&mut self, address: &Address, target: &str, line: usize) -> Result<(), Problem> {
        let loopback =
            address.host == "localhost" || address.ip().is_some_and(|ip: IpAddr| ip.is_loopback());
        if loopback && address.port == self.listen_port {
            return Err(Problem::new(format!(
                "contains {address}, where the gateway itself listens"
            ))
            .hint("change gateway.listen_port, or write the target's own address"));
        }
        match self
            .taken
            .insert(address.clone(), (target.to_owned(), line))
        {
            None => Ok(()),
            Some((owner, line)) if owner == target => Err(Problem::new(format!(
                "contains {address} twice (first in line {line})"
            ))),
            Some((owner, line)) => Err(Problem::new(format!(
                "contains {address}, which already belongs to target {owner:?} (line {line})"
            ))
            .hint("an address leads to one target; use separate ports or host names")),
        }
    }
}

fn read_addresses(
    target: &str,
    section: &mut Section<'_>,
    owners: &mut Owners,
) -> Option<Vec<Address>> {
    if !section.has("addresses") {
        return section.require("addresses", |_| Ok(Vec::new()));
    }
    let entries: Vec<At<Address>> = section.list("addresses", values::parsed)?;
    if entries.is_empty() {
        let problem = Problem::new("is empty, so no agent could reach this target");
        section.refuse(section.offset_of("addresses"), "addresses", problem);
    }
    for At { value, offset } in &entries {
        if let Err(problem) = owners.claim(value, target, section.line(*offset)) {
            section.refuse(*offset, "addresses", problem);
        }
    }
    Some(entries.into_iter().map(|entry| entry.value).collect())
}

fn read_masks(section: &mut Section<'_>) -> Vec<MaskRule> {
    let mut masks: Vec<MaskRule> = Vec::new();
    for mut entry in section.table_array("mask") {
        let column = entry.require("column", mask_column);
        let transform = entry.require("with", mask_transform);
        if let (Some((schema, table, column)), Some(transform)) = (column, transform) {
            let rule = MaskRule {
                schema,
                table,
                column,
                transform,
            };
            let same = |other: &MaskRule| {
                (&other.schema, &other.table, &other.column)
                    == (&rule.schema, &rule.table, &rule.column)
            };
            if masks.iter().any(same) {
                let problem = Problem::new("is masked twice").hint("keep one of the two rules");
                entry.refuse(entry.offset_of("column"), "column", problem);
            }
            masks.push(rule);
        }
        entry.finish();
    }
    masks
}

fn mask_column(value: &DeValue<'_>) -> Result<(String, String, String), Problem> {
    masking::parse_column(values::text(value)?)
        .map_err(|error| Problem::new(format!("cannot be used: {error}")))
}

fn mask_transform(value: &DeValue<'_>) -> Result<masking::Transform, Problem> {
    let transform = values::text(value)?.parse();
    transform.map_err(|error| Problem::new(format!("cannot be used: {error}")))
}

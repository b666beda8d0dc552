//! Everything that can fail, before anybody notices: no listener is used and no leaf is written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use tokio::sync::{mpsc, watch};

use super::Gateway;
use super::edge::{Edge, Senses};
use super::handover::Program;
use super::health::{self, Health};
use super::listeners::Resolver;
use super::pulse::Pulse;
use super::serve::{Signals, Unopened};
use super::start::{Origin, Start};
use super::upstreams;
use crate::audit::event::Event;
use crate::broker;
use crate::config::Config;
use crate::credentials::agent_password;
use crate::credentials::authority::Authority;
use crate::identity::cgroup::AgentTree;
use crate::identity::token::Keyring;
use crate::intercept::cgroup::cgroup2_mount;
use crate::intercept::dns::Dns;
use crate::policy::PolicySet;
use crate::protocol::postgres::scram::Verifier;
use crate::session::decide::Analyst;
use crate::session::driver::postgres::cancel::CancelKeys;
use crate::session::identify::Identities;
use crate::store::log::Log;
use crate::store::recordings;

/// A gateway that lacks nothing but its listeners.
#[derive(Debug)]
pub struct Composed {
    /// The leaf with which it begins.
    pub started: Event,
    /// Where the listeners come from.
    pub origin: Origin,
    pub unopened: Unopened,
}

pub async fn compose(start: Start) -> Result<Composed> {
    // Before anything that takes its time.
    let signals = Signals::catch()?;
    let program = Program::this().context("finding this program's own path")?;
    let Start {
        config,
        policies,
        broker,
        maps,
        estate,
        origin,
    } = start;
    let started = start_leaf(&config, &policies, &origin);
    let log = Arc::new(open_log(&config, &origin)?);
    let (health, examination) = Health::watch(
        Arc::clone(&broker),
        maps.id()?,
        Arc::clone(&log),
        &config.storage,
    );
    let tree = Arc::new(AgentTree::new(
        &cgroup2_mount()?,
        &config.kernel.agents_cgroup,
        config.agents.values().cloned(),
    ));
    let dns = Dns::new(&config, Arc::clone(&tree), Arc::clone(&log))?;
    let (cancel_keys, strays) = match origin {
        Origin::Broker(_) => (CancelKeys::default(), None),
        Origin::Predecessor(_) => CancelKeys::with_predecessor(),
    };
    let senses = Senses {
        dns: Arc::clone(&dns),
        tree: Arc::clone(&tree),
        log: Arc::clone(&log),
        broker: Arc::clone(&broker),
        counters: Arc::new(maps.counters),
    };
    let identities = identities(&config, tree, Arc::clone(&dns), broker);
    let (stop, stopping) = watch::channel(false);
    let gateway = Gateway {
        identities: Arc::new(identities),
        upstreams: upstreams::load(&config)?,
        policies: Arc::new(policies),
        log,
        flows: maps.flows,
        analyst: Analyst::start(std::thread::available_parallelism().map_or(2, usize::from))
            .context("starting the analysis threads")?,
        cancel_keys: Arc::new(cancel_keys),
        authority: open_authority(&config)?,
        logins: logins(&config)?,
        catalogues: Mutex::default(),
        stop: stopping,
        config,
    };
    let (registering, registered) = mpsc::channel(16);
    dns.prepare().await;
    health.examined().await;
    // Whatever else is wrong may be over soon; a successor's maps stay what they are.
    if health.are_maps_replaced() {
        bail!(health::REPLACED);
    }
    Ok(Composed {
        started,
        origin,
        unopened: Unopened {
            gateway: Arc::new(gateway),
            signals,
            resolver: Resolver {
                dns,
                datagrams: Arc::new(maps.datagrams),
            },
            edge: Edge::new(senses, maps.targets, maps.events, registering.clone()),
            pulse: Pulse::new(maps.heartbeat, Arc::clone(&health)),
            health,
            examination,
            registering,
            registered,
            strays,
            stop,
            program,
            estate: Arc::new(estate),
        },
    })
}

fn open_authority(config: &Config) -> Result<Authority> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.context("reading the host's name")?;
    Authority::open(&config.tls, host.trim(), SystemTime::now())
        .context("preparing the local certificate authority")
}

/// Passwords themselves are not kept.
fn logins(config: &Config) -> Result<HashMap<String, Verifier>> {
    let mut logins = HashMap::new();
    for agent in config.agents.values() {
        if let Some(file) = &agent.postgres_password_file {
            let password = agent_password::load(file)
                .with_context(|| format!("preparing agent \"{}\"", agent.name))?;
            let verifier = Verifier::of(password.expose()).context("deriving a SCRAM verifier")?;
            logins.insert(agent.name.clone(), verifier);
        }
    }
    Ok(logins)
}

fn start_leaf(config: &Config, policies: &PolicySet, origin: &Origin) -> Event {
    Event::GatewayStart {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        config_sha256: config.sha256.clone(),
        policy_sha256: policies.hash.clone(),
        predecessor: match origin {
            Origin::Broker(_) => None,
            Origin::Predecessor(predecessor) => Some(predecessor.pid()),
        },
    }
}

/// A successor shares its predecessor's log, and finishes nothing that is only being drained.
fn open_log(config: &Config, origin: &Origin) -> Result<Log> {
    let log = match origin {
        Origin::Predecessor(_) => Log::join(&config.storage.log),
        Origin::Broker(_) => {
            let recordings = config.storage.recordings.clone();
            let digest = |session| recordings::digest(&recordings, session).ok();
            Log::open_sealing(&config.storage.log, SystemTime::now(), digest)
        }
    };
    log.context("opening the evidence log")
}

fn identities(
    config: &Config,
    tree: Arc<AgentTree>,
    dns: Arc<Dns>,
    broker: Arc<broker::Client>,
) -> Identities {
    let keyrings = config
        .identities
        .iter()
        .map(|(name, issuer)| (name.clone(), Keyring::new(Arc::clone(issuer))))
        .collect();
    Identities::new(tree, keyrings, dns, broker)
}

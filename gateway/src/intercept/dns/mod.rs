//! The agents' resolver: the only one they can reach, whichever they ask.
//!
//! The kernel programs send what agents send to port 53, over UDP or TCP, to the gateway. It knows the names of the
//! agent's targets and nothing else, and asks nobody on an agent's behalf, so a name carries nothing out. What it
//! says is, by default, a [synthetic](synthetic) address: one that was made for this agent and this name. When the
//! agent connects to it, the gateway knows the name exactly, for protocols that do not carry it (PostgreSQL), for
//! hosts that share an address, and whatever the name leads to by then. The gateway itself [resolves](pins) the name,
//! keeps the answer, and dials only where a name [may lead](local).
//!
//! [`Dns::target_of`] is the way back, from the address that was dialled to the target and the name;
//! [`Dns::dial_addresses`] is the way on. With `dns.mode = "pass"` agents are told the real addresses, and a
//! target is known by those.
//!
//! One question: bytes → [query] → [ruling] → leaf → [reply] → bytes. Everything in that line but the leaf is pure.
//! [serve] holds the sockets.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::{Address, Agent, Config, DnsMode, Target};
use crate::identity::cgroup::AgentTree;
use crate::store::log::Log;

mod evidence;
mod limit;
mod local;
mod names;
mod pins;
mod query;
mod real;
mod reply;
mod ruling;
mod serve;
mod synthetic;
mod system;

pub use serve::Origins;

use evidence::Sample;
use limit::{Gathered, Limiter};
use local::forbidden;
use names::{Names, is_localhost};
use pins::{LookupError, Pins};
use real::{Meaning, Real, may_lead};
use synthetic::{Synthetic, is_synthetic};
use system::System;

/// As many as the kernel's table of destinations holds.
const MAX_DESTINATIONS: usize = 65_536;

/// How long the kernel's table may take to follow [`Dns::destinations`]: an agent that connects the moment it has
/// an answer must not be refused because the table does not have the address yet.
const SETTLE: Duration = Duration::from_millis(100);

/// How often real addresses are looked at; whether they are resolved again is up to their pins.
const REFRESH: Duration = Duration::from_secs(1);

/// How many questions may wait for an answer at a time; more wait in the socket's buffer.
const MAX_WAITING: usize = 1024;

/// What went wrong with names, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error(
        "agents and targets make {0} destinations, more than the {MAX_DESTINATIONS} the kernel's table holds: \
         give each agent only the targets it needs (agents.NAME.targets)"
    )]
    TooManyDestinations(usize),
    #[error(transparent)]
    Exhausted(#[from] synthetic::Exhausted),
    #[error(
        "target \"{target}\" has the address {address}, which lies in the range of synthetic addresses: \
         give it a name instead, or set dns.mode = \"pass\""
    )]
    InSyntheticRange { target: String, address: Address },
    #[error(
        "target \"{target}\" has the name {name}, with a label of more than {max} characters, which agents \
         may not ask for: raise dns.max_label"
    )]
    LabelTooLong {
        target: String,
        name: String,
        max: usize,
    },
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(
        "{name} leads to {address} ({reason}), where names must not lead: write the address as numbers, or \
         set targets.{target}.allow_local = true if it is really there"
    )]
    Local {
        name: String,
        address: IpAddr,
        reason: &'static str,
        target: String,
    },
}

/// What an agent meant by the address it dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialled {
    Target {
        target: Arc<Target>,
        /// The name it was given the address for; `None` if the address stands in the configuration.
        host: Option<String>,
    },
    /// A synthetic address that was made for another agent.
    Foreign,
    /// A real address that names of several targets lead to.
    Ambiguous(BTreeSet<String>),
    Unknown,
}

/// Whether a gateway with this configuration could name its targets: what [`Dns::new`] would object to.
pub fn check(config: &Config) -> Result<(), DnsError> {
    Meanings::of(config).map(drop)
}

/// What follows from the configuration alone.
struct Meanings {
    names: Names,
    /// None in pass mode.
    synthetic: Option<Synthetic>,
    destinations: BTreeSet<SocketAddr>,
}

impl Meanings {
    fn of(config: &Config) -> Result<Self, DnsError> {
        refuse_long_labels(config)?;
        let names = Names::new(config.targets.values());
        let mut destinations: BTreeSet<SocketAddr> = names.literals().collect();
        let synthetic = match config.dns.mode {
            DnsMode::Pass => None,
            DnsMode::Synthetic => {
                refuse_synthetic_literals(config)?;
                let synthetic = Synthetic::new(&owners(config, &names))?;
                destinations.extend(synthetic_destinations(config, &names, &synthetic));
                Some(synthetic)
            }
        };
        if destinations.len() > MAX_DESTINATIONS {
            return Err(DnsError::TooManyDestinations(destinations.len()));
        }
        Ok(Self {
            names,
            synthetic,
            destinations,
        })
    }
}

/// Names, addresses, and the sockets' other end.
#[derive(Debug)]
pub struct Dns {
    names: Names,
    /// None in pass mode.
    synthetic: Option<Synthetic>,
    real: Mutex<Real>,
    pins: Pins,
    destinations: watch::Sender<Arc<BTreeSet<SocketAddr>>>,
    ttl: Duration,
    max_label: usize,
    tree: Arc<AgentTree>,
    log: Arc<Log>,
    limiter: Mutex<Limiter<Sample>>,
    strays: Mutex<Gathered<SocketAddr>>,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Dns {
    pub fn new(
        config: &Config,
        tree: Arc<AgentTree>,
        log: Arc<Log>,
    ) -> Result<Arc<Self>, DnsError> {
        Self::with_lookup(config, tree, log, Box::new(System::default()))
    }

    fn with_lookup(
        config: &Config,
        tree: Arc<AgentTree>,
        log: Arc<Log>,
        lookup: Box<dyn pins::Lookup>,
    ) -> Result<Arc<Self>, DnsError> {
        let Meanings {
            names,
            synthetic,
            destinations,
        } = Meanings::of(config)?;
        Ok(Arc::new(Self {
            pins: Pins::new(lookup, resolved_names(config)),
            names,
            synthetic,
            real: Mutex::default(),
            destinations: watch::Sender::new(Arc::new(destinations)),
            ttl: config.dns.ttl,
            max_label: config.dns.max_label,
            tree,
            log,
            limiter: Mutex::new(Limiter::new(config.dns.queries_per_second)),
            strays: Mutex::default(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            connections: Arc::new(Semaphore::new(serve::MAX_CONNECTIONS)),
        }))
    }

    /// What agents may connect to: listed addresses, synthetic addresses, in pass mode resolved ones. The kernel's
    /// table has to hold it before an agent can use it.
    pub fn destinations(&self) -> watch::Receiver<Arc<BTreeSet<SocketAddr>>> {
        self.destinations.subscribe()
    }

    /// What the agent meant. Whether it may reach that target is for others to say.
    pub fn target_of(&self, agent: &Agent, dialled: SocketAddr) -> Dialled {
        if let Some(synthetic) = &self.synthetic
            && is_synthetic(dialled.ip())
        {
            return match synthetic.owner(dialled.ip()) {
                Some(owner) if owner.agent != agent.name => Dialled::Foreign,
                Some(owner) => self.named(&owner.name, dialled.port()),
                None => Dialled::Unknown,
            };
        }
        self.plain(Some(agent), dialled)
    }

    /// The target behind an address whoever dialled it: enough to say no in the target's protocol.
    pub fn speaker_of(&self, dialled: SocketAddr) -> Option<Arc<Target>> {
        let owner = self.synthetic.as_ref().and_then(|s| s.owner(dialled.ip()));
        let meant = match owner {
            Some(owner) => self.named(&owner.name, dialled.port()),
            None => self.plain(None, dialled),
        };
        match meant {
            Dialled::Target { target, .. } => Some(target),
            Dialled::Foreign | Dialled::Ambiguous(_) | Dialled::Unknown => None,
        }
    }

    fn named(&self, name: &str, port: u16) -> Dialled {
        match self.names.target(name, port) {
            Some(target) => Dialled::Target {
                target: Arc::clone(target),
                host: Some(name.to_owned()),
            },
            None => Dialled::Unknown,
        }
    }

    /// An address that is no synthetic one: listed, or in pass mode resolved.
    fn plain(&self, agent: Option<&Agent>, dialled: SocketAddr) -> Dialled {
        if let Some(target) = self.names.literal(dialled) {
            return Dialled::Target {
                target: Arc::clone(target),
                host: None,
            };
        }
        match self.real().meaning(&self.names, agent, dialled) {
            Meaning::Target { target, name } => Dialled::Target {
                target,
                host: Some(name),
            },
            Meaning::Ambiguous(targets) => Dialled::Ambiguous(targets),
            Meaning::Nothing => Dialled::Unknown,
        }
    }

    /// Where to dial for an agent that meant `target`, by the name `host` if it came through one: in the order in
    /// which to try. Never empty.
    ///
    /// # Errors
    /// When the name cannot be resolved, or leads where names must not lead.
    pub async fn dial_addresses(
        &self,
        target: &Target,
        host: Option<&str>,
        dialled: SocketAddr,
    ) -> Result<Vec<SocketAddr>, DnsError> {
        let (host, port) = match (&target.dial, host) {
            (Some(dial), _) => match dial.ip() {
                Some(ip) => return Ok(vec![SocketAddr::new(ip, dial.port)]),
                None => (dial.host.as_str(), dial.port),
            },
            (None, Some(host)) if is_synthetic(dialled.ip()) => (host, dialled.port()),
            // The agent was told a real address, which was checked then, or named a listed one.
            (None, _) => return Ok(vec![dialled]),
        };
        let pinned = self.pins.addresses(host).await?;
        let permitted = |ip: &&IpAddr| is_localhost(host) || may_lead(target, **ip);
        let addresses: Vec<SocketAddr> = pinned
            .addresses
            .iter()
            .filter(permitted)
            .map(|ip| SocketAddr::new(*ip, port))
            .collect();
        match (addresses.is_empty(), pinned.addresses.first()) {
            (true, Some(first)) => Err(self.local(target, host, *first)),
            _ => Ok(addresses),
        }
    }

    fn local(&self, target: &Target, name: &str, address: IpAddr) -> DnsError {
        let error = DnsError::Local {
            name: name.to_owned(),
            address,
            reason: forbidden(address).map_or("not allowed", local::Forbidden::reason),
            target: target.name.clone(),
        };
        tracing::warn!(%error, "a name leads where it must not");
        error
    }

    /// Pass mode: resolves every name once, so that agents that were there before are not refused. Call it before
    /// the kernel's table is written for the first time.
    pub async fn prepare(self: &Arc<Self>) {
        if self.synthetic.is_some() {
            return;
        }
        let mut resolving = JoinSet::new();
        for (name, _) in self.names.all() {
            let (dns, name) = (Arc::clone(self), name.to_owned());
            resolving.spawn(async move { dns.learn(&name).await });
        }
        // What has no answer now is asked for again, at the latest by whoever needs it.
        while resolving.join_next().await.is_some() {}
    }

    /// Pass mode: keeps the destinations current, for as long as it is polled.
    pub async fn refresh(self: Arc<Self>) {
        if self.synthetic.is_some() {
            return std::future::pending().await;
        }
        loop {
            self.prepare().await;
            if self.real().forget(Instant::now()) {
                self.publish();
            }
            tokio::time::sleep(REFRESH).await;
        }
    }

    /// The real addresses of a name, known to the kernel when this returns.
    async fn learn(&self, name: &str) -> Result<pins::Pinned, DnsError> {
        let pinned = self.pins.addresses(name).await?;
        let now = Instant::now();
        // Clients keep an address for the time they were told, counted from when they were told.
        let until = pinned.until.max(now) + self.ttl;
        let learned = self.real().learn(name, &pinned.addresses, now, until);
        if learned.news {
            self.publish();
        }
        tokio::time::sleep_until((learned.since + SETTLE).into()).await;
        Ok(pinned)
    }

    fn publish(&self) {
        let real = self.real();
        let mut destinations: BTreeSet<SocketAddr> = self.names.literals().collect();
        destinations.extend(real.destinations(&self.names));
        if destinations.len() > MAX_DESTINATIONS {
            let error = DnsError::TooManyDestinations(destinations.len());
            tracing::error!(%error, "destinations are left as they were");
            return;
        }
        self.destinations.send_if_modified(|current| {
            let changed = **current != destinations;
            *current = Arc::new(destinations);
            changed
        });
    }

    fn real(&self) -> MutexGuard<'_, Real> {
        self.real.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every agent with every name it may resolve.
fn owners(config: &Config, names: &Names) -> BTreeSet<(String, String)> {
    let of = |agent: &Arc<Agent>| {
        let owner = agent.name.clone();
        let names = names.names_of(agent).into_iter();
        names
            .map(|name| (owner.clone(), name.to_owned()))
            .collect::<Vec<_>>()
    };
    config.agents.values().flat_map(of).collect()
}

fn synthetic_destinations(
    config: &Config,
    names: &Names,
    synthetic: &Synthetic,
) -> BTreeSet<SocketAddr> {
    let mut destinations = BTreeSet::new();
    for agent in config.agents.values() {
        for name in names.names_of(agent) {
            let Some(pair) = synthetic.of(&agent.name, name) else {
                continue;
            };
            for (port, _) in names.reachable(agent, name) {
                destinations.insert(SocketAddr::new(pair.v4.into(), port));
                destinations.insert(SocketAddr::new(pair.v6.into(), port));
            }
        }
    }
    destinations
}

fn refuse_synthetic_literals(config: &Config) -> Result<(), DnsError> {
    for target in config.targets.values() {
        let synthetic = |address: &&Address| address.ip().is_some_and(is_synthetic);
        if let Some(address) = target.addresses.iter().find(synthetic) {
            return Err(DnsError::InSyntheticRange {
                target: target.name.clone(),
                address: address.clone(),
            });
        }
    }
    Ok(())
}

/// A name that nobody could ask for is a target that nobody could reach.
fn refuse_long_labels(config: &Config) -> Result<(), DnsError> {
    let max = config.dns.max_label;
    for target in config.targets.values() {
        let too_long = |address: &&Address| {
            address.ip().is_none() && address.host.split('.').any(|label| label.len() > max)
        };
        if let Some(address) = target.addresses.iter().find(too_long) {
            return Err(DnsError::LabelTooLong {
                target: target.name.clone(),
                name: address.host.clone(),
                max,
            });
        }
    }
    Ok(())
}

/// The names that the gateway itself may have to resolve.
fn resolved_names(config: &Config) -> BTreeSet<String> {
    config
        .targets
        .values()
        .flat_map(|target| target.addresses.iter().chain(&target.dial))
        .filter(|address| address.ip().is_none())
        .map(|address| address.host.clone())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;

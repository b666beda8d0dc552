//! The composition root: config → stores → kernel edge → listeners → drain.
//!
//! ```text
//! start      before the first thread: inherit or greet, become the gateway's user, harden
//! upstreams  how targets are reached            listeners  where agents' connections arrive
//! health     may agents connect at all?         pulse      tells the kernel so, twice a second
//! serve      the accept loop                    drain      the way out
//! handover/  SIGHUP: a successor takes over without a connect lost
//! notify     what the service manager hears
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use tokio::sync::{mpsc, watch};

use crate::audit::event::Event;
use crate::config::{Address, Config, Target};
use crate::identity::cgroup::AgentTree;
use crate::identity::token::Keyring;
use crate::intercept::FlowTable;
use crate::intercept::cgroup::cgroup2_mount;
use crate::policy::PolicySet;
use crate::session::decide::Analyst;
use crate::session::driver::postgres::cancel::CancelKeys;
use crate::session::driver::postgres::catalogue::Catalogues;
use crate::session::driver::postgres::upstream::Dial;
use crate::session::identify::Identities;
use crate::store::log::Log;
use crate::store::recordings;

mod drain;
mod handover;
mod health;
mod listeners;
mod notify;
mod pulse;
mod serve;
mod start;
mod upstreams;

pub use handover::{Herald, Predecessor};
pub use start::{Start, prepare};

use handover::Program;
use health::Health;
use listeners::Listeners;
use pulse::Pulse;
use serve::{End, Parts, Server, Signals};
use start::Origin;
use upstreams::Upstream;

/// What every session uses. Nothing here changes while the gateway runs.
#[derive(Debug)]
pub struct Gateway {
    pub config: Config,
    pub policies: Arc<PolicySet>,
    pub log: Arc<Log>,
    pub flows: FlowTable,
    pub identities: Arc<Identities>,
    pub analyst: Arc<Analyst>,
    pub cancel_keys: Arc<CancelKeys>,
    upstreams: HashMap<String, Upstream>,
    catalogues: Mutex<HashMap<(String, String, SocketAddr), Arc<Catalogues>>>,
    stop: watch::Receiver<bool>,
}

impl Gateway {
    pub fn dial(&self, target: &Arc<Target>, original: SocketAddr, database: &str) -> Option<Dial> {
        let upstream = self.upstreams.get(&target.name)?;
        Some(Dial {
            target: Arc::clone(target),
            address: upstream.dial.unwrap_or(original),
            database: database.to_owned(),
            credential: Arc::clone(&upstream.credential),
            tls: upstream.tls.clone(),
        })
    }

    /// The catalogue of one target database, shared by its sessions.
    pub fn catalogues(&self, dial: &Dial) -> Arc<Catalogues> {
        let key = (
            dial.target.name.clone(),
            dial.database.clone(),
            dial.address,
        );
        let mut catalogues = self
            .catalogues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = catalogues
            .entry(key)
            .or_insert_with(|| Arc::new(Catalogues::new(dial.clone())));
        Arc::clone(known)
    }

    /// Returns when the gateway has been told to stop.
    pub async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // The sender lives as long as `run`; without it there is nothing left to serve either.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// Runs the gateway until it is told to stop, or has handed over and drained.
pub async fn run(start: Start) -> Result<()> {
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
    let log = Arc::new(open_log(&config, &origin)?);
    let (health, examination) = Health::watch(broker, Arc::clone(&log), &config.storage);
    let mut started = Event::GatewayStart {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        config_sha256: config.sha256.clone(),
        policy_sha256: policies.hash.clone(),
        predecessor: None,
    };
    let (cancel_keys, strays) = CancelKeys::with_predecessor();
    let (stop_sender, stop) = watch::channel(false);
    let gateway = Arc::new(Gateway {
        identities: Arc::new(identities(&config).await?),
        upstreams: upstreams::load(&config).await?,
        policies: Arc::new(policies),
        log: Arc::clone(&log),
        flows: maps.flows,
        analyst: Analyst::start(std::thread::available_parallelism().map_or(2, usize::from))
            .context("starting the analysis threads")?,
        cancel_keys: Arc::new(cancel_keys),
        catalogues: Mutex::default(),
        stop,
        config,
    });
    health.examined().await;
    let (listeners, gone) = match origin {
        Origin::Broker(listeners) => (vec![listeners], None),
        Origin::Predecessor(predecessor) => {
            if let Event::GatewayStart { predecessor: of, .. } = &mut started {
                *of = Some(predecessor.pid());
            }
            // A failure until here leaves no trace in the log: it is the predecessor's to report.
            let (listeners, gone) = predecessor.take_over().await?;
            (listeners, Some(gone))
        }
    };
    log.append(&started)?;
    let (more, registered) = mpsc::channel(16);
    let mut server = Server::new(
        gateway,
        signals,
        Parts {
            listeners: Listeners::open(listeners)?,
            pulse: Pulse::new(maps.heartbeat, Arc::clone(&health)),
            health,
            registered,
            stop: stop_sender,
            program,
            estate,
        },
    );
    server.pulse.beat();
    match gone {
        Some(gone) => server.predecessor = Some(gone.serving(strays, more.clone())?),
        None => notify::ready(),
    }
    println!("sluice: ready on {}", server.listeners.addresses());
    let reason = match server.serve().await {
        End::Told(signal) => {
            server.stop(signal).await;
            signal
        }
        End::HandedOver(successor) => {
            // The successor does it now, and this gateway must not take the log for itself.
            examination.abort();
            server.drain(successor).await
        }
    };
    log.append(&Event::GatewayStop {
        reason: reason.to_owned(),
        pid: Some(std::process::id()),
    })?;
    log.sync()?;
    Ok(())
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

async fn identities(config: &Config) -> Result<Identities> {
    let mount = cgroup2_mount()?;
    let tree = AgentTree::new(
        &mount,
        &config.kernel.agents_cgroup,
        config.agents.values().cloned(),
    );
    let keyrings = config
        .identities
        .iter()
        .map(|(name, issuer)| (name.clone(), Keyring::new(Arc::clone(issuer))))
        .collect();
    let mut targets: HashMap<SocketAddr, Arc<Target>> = HashMap::new();
    for target in config.targets.values() {
        for address in &target.addresses {
            for resolved in resolve(address).await? {
                if let Some(other) = targets.insert(resolved, Arc::clone(target))
                    && other.name != target.name
                {
                    bail!(
                        "{resolved} is an address of both target \"{}\" and target \"{}\"",
                        other.name,
                        target.name
                    );
                }
            }
        }
    }
    Ok(Identities::new(tree, keyrings, targets))
}

async fn resolve(address: &Address) -> Result<Vec<SocketAddr>> {
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host((address.host.as_str(), address.port))
        .await
        .with_context(|| format!("resolving {}", address.host))?
        .collect();
    if resolved.is_empty() {
        bail!("{} has no address", address.host);
    }
    Ok(resolved)
}


//! The composition root: config → stores → kernel edge → listeners → drain.
//!
//! ```text
//! start      before the first thread: inherit or greet, become the gateway's user, harden
//! upstreams  how targets are reached            listeners  where agents' connections arrive
//! health     may agents connect at all?         pulse      tells the kernel so, twice a second
//! serve      the accept loop                    drain      the way out
//! edge       what only the gateway that serves does with the kernel's maps
//! handover/  SIGHUP: a successor takes over without a connect lost
//! notify     what the service manager hears
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};

use crate::audit::event::Event;
use crate::broker;
use crate::config::{Config, Target};
use crate::identity::cgroup::AgentTree;
use crate::identity::token::Keyring;
use crate::intercept::FlowTable;
use crate::intercept::cgroup::cgroup2_mount;
use crate::intercept::dns::Dns;
use crate::policy::PolicySet;
use crate::session::decide::Analyst;
use crate::session::driver::postgres::cancel::CancelKeys;
use crate::session::driver::postgres::catalogue::Catalogues;
use crate::session::driver::postgres::upstream::Dial;
use crate::session::identify::Identities;
use crate::store::log::Log;
use crate::store::recordings;

mod drain;
mod edge;
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

use edge::{Edge, Senses};
use handover::Program;
use health::Health;
use listeners::{Listeners, Resolver};
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
    /// How to log in at an address of the target. `host`: the name the agent connected to, if it was a name.
    pub fn dial(
        &self,
        target: &Arc<Target>,
        address: SocketAddr,
        host: Option<&str>,
        database: &str,
    ) -> Option<Dial> {
        let upstream = self.upstreams.get(&target.name)?;
        Some(Dial {
            target: Arc::clone(target),
            address,
            host: host.map(str::to_owned),
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
    let (health, examination) =
        Health::watch(Arc::clone(&broker), Arc::clone(&log), &config.storage);
    let mut started = Event::GatewayStart {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        config_sha256: config.sha256.clone(),
        policy_sha256: policies.hash.clone(),
        predecessor: None,
    };
    let tree = Arc::new(AgentTree::new(
        &cgroup2_mount()?,
        &config.kernel.agents_cgroup,
        config.agents.values().cloned(),
    ));
    let dns = Dns::new(&config, Arc::clone(&tree), Arc::clone(&log))?;
    let (cancel_keys, strays) = CancelKeys::with_predecessor();
    let (stop_sender, stop) = watch::channel(false);
    let gateway = Arc::new(Gateway {
        identities: Arc::new(identities(
            &config,
            Arc::clone(&tree),
            Arc::clone(&dns),
            Arc::clone(&broker),
        )),
        upstreams: upstreams::load(&config)?,
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
    dns.prepare().await;
    health.examined().await;
    let (listeners, gone) = match origin {
        Origin::Broker(listeners) => (vec![listeners], None),
        Origin::Predecessor(predecessor) => {
            if let Event::GatewayStart {
                predecessor: of, ..
            } = &mut started
            {
                *of = Some(predecessor.pid());
            }
            // A failure until here leaves no trace in the log: it is the predecessor's to report.
            let (listeners, gone) = predecessor.take_over().await?;
            (listeners, Some(gone))
        }
    };
    log.append(&started)?;
    let (more, registered) = mpsc::channel(16);
    let resolver = Resolver {
        dns: Arc::clone(&dns),
        datagrams: Arc::new(maps.datagrams),
    };
    let mut server = Server::new(
        gateway,
        signals,
        Parts {
            listeners: Listeners::open(resolver, listeners)?,
            edge: Edge::new(
                Senses {
                    dns,
                    tree,
                    log: Arc::clone(&log),
                    broker,
                    counters: Arc::new(maps.counters),
                },
                maps.targets,
                maps.events,
                more.clone(),
            ),
            pulse: Pulse::new(maps.heartbeat, Arc::clone(&health)),
            health,
            registered,
            stop: stop_sender,
            program,
            estate,
        },
    );
    server.edge.start()?;
    server.pulse.beat();
    match gone {
        Some(gone) => server.predecessor = Some(gone.serving(strays, more)?),
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

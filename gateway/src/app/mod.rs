//! The composition root: config → stores → kernel edge → listeners → drain.
//!
//! ```text
//! start      before the first thread: inherit or greet, become the gateway's user, harden
//! compose    everything that can fail, before anybody notices
//! upstreams  how targets are reached            listeners  where agents' connections arrive
//! workers    the threads that run sessions
//! health     may agents connect at all?         pulse      tells the kernel so, twice a second
//! serve      the accept loop                    drain      the way out
//! edge       what only the gateway that serves does with the kernel's maps
//! handover/  SIGHUP: a successor takes over without a connect lost
//! notify     what the service manager hears
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::sync::watch;

use crate::audit::event::Event;
use crate::broker;
use crate::config::{Config, Target};
use crate::credentials::authority::Authority;
use crate::intercept::FlowTable;
use crate::policy::PolicySet;
use crate::protocol::postgres::scram::Verifier;
use crate::session::decide::Analyst;
use crate::session::driver::postgres::cancel::CancelKeys;
use crate::session::driver::postgres::catalogue::Catalogues;
use crate::session::driver::postgres::upstream::Dial;
use crate::session::identify::Identities;
use crate::store::log::Log;

mod compose;
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
mod workers;

pub use handover::{Herald, Predecessor};
pub use start::{Start, prepare};
pub use upstreams::Place;

use compose::Composed;
use handover::Gone;
use serve::{End, Unopened};
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
    /// Makes certificates in the name of targets.
    pub authority: Authority,
    /// What agents with a password of their own are asked for, by agent.
    pub logins: HashMap<String, Verifier>,
    upstreams: HashMap<String, Upstream>,
    catalogues: Mutex<HashMap<Catalogued, Arc<Catalogues>>>,
    stop: watch::Receiver<bool>,
}

/// What a catalogue is the same for: target, database, address and role.
type Catalogued = (String, String, SocketAddr, String);

impl Gateway {
    /// A place for one more session at the target; `None` when all are taken. The gateway's own connections
    /// (a catalogue's, a cancel request's) take none.
    pub fn place(&self, target: &Target) -> Option<Place> {
        self.upstreams.get(&target.name)?.place()
    }

    /// How to log in at an address of the target. `host`: the name the agent connected to, if it was a name;
    /// `credential`: the name of another credential than the target's own.
    pub fn dial(
        &self,
        target: &Arc<Target>,
        address: SocketAddr,
        host: Option<&str>,
        database: &str,
        credential: Option<&str>,
    ) -> Option<Dial> {
        let upstream = self.upstreams.get(&target.name)?;
        Some(Dial {
            target: Arc::clone(target),
            address,
            host: host.map(str::to_owned),
            database: database.to_owned(),
            credential: upstream.credential(credential)?,
            tls: upstream.tls.clone(),
        })
    }

    /// The catalogue of one target database, shared by its sessions of one role.
    pub fn catalogues(&self, dial: &Dial) -> Arc<Catalogues> {
        let key = (
            dial.target.name.clone(),
            dial.database.clone(),
            dial.address,
            dial.credential.user.clone(),
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
    let Composed {
        started,
        origin,
        unopened,
    } = compose::compose(start).await?;
    // A failure until here leaves no trace in the log: a successor's is its predecessor's to report.
    let (listeners, gone) = origin.listeners().await?;
    let log = Arc::clone(&unopened.gateway.log);
    log.append(&started)?;
    let late = Arc::clone(&log);
    tokio::spawn(async move { late.write_late_lines().await });
    let ended = serve(unopened, listeners, gone).await;
    let reason = match &ended {
        Ok(reason) => (*reason).to_owned(),
        Err(error) => format!("{error:#}"),
    };
    log.append(&Event::GatewayStop {
        reason,
        pid: Some(std::process::id()),
    })?;
    log.sync()?;
    ended.map(drop)
}

/// From the first connection to the last; answers why it ended.
async fn serve(
    unopened: Unopened,
    listeners: Vec<broker::Listeners>,
    gone: Option<Gone>,
) -> Result<&'static str> {
    let mut server = unopened.open(listeners)?;
    server.edge.start()?;
    server.pulse.beat();
    match gone {
        Some(gone) => server.stay_in_touch(gone)?,
        None => notify::ready(),
    }
    println!("sluice: ready on {}", server.listeners.addresses());
    match server.serve().await {
        End::Told(signal) => {
            server.stop(signal).await;
            Ok(signal)
        }
        End::HandedOver(successor) => Ok(server.drain(successor).await),
    }
}

//! What only the gateway that serves does with the kernel's maps, and a predecessor leaves alone: it says
//! which destinations are redirected, writes what the kernel denied into the log, and has listeners made in
//! network namespaces that agents turn up in.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::audit::event::Event;
use crate::broker;
use crate::identity::cgroup::AgentTree;
use crate::intercept::denials::{self, NewNetns};
use crate::intercept::dns::Dns;
use crate::intercept::{CounterTable, EventRing, TargetTable};
use crate::store::log::Log;

/// Namespaces that wait for the broker; who is refused meanwhile tries again, and asks again.
const WAITING: usize = 64;

/// How many the broker is asked for at a time. Each may take it some seconds.
const ASKED_AT_ONCE: usize = 4;

/// Whom it asks and tells.
#[derive(Debug, Clone)]
pub struct Senses {
    pub dns: Arc<Dns>,
    pub tree: Arc<AgentTree>,
    pub log: Arc<Log>,
    pub broker: Arc<broker::Client>,
    pub counters: Arc<CounterTable>,
}

#[derive(Debug)]
pub struct Edge {
    senses: Senses,
    targets: Arc<TargetTable>,
    /// Here while nothing runs.
    events: Option<EventRing>,
    registered: mpsc::Sender<broker::Listeners>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    stop: watch::Sender<bool>,
    denials: JoinHandle<EventRing>,
    others: [JoinHandle<()>; 3],
}

impl Edge {
    /// Listeners in other namespaces go into `registered`.
    pub fn new(
        senses: Senses,
        targets: TargetTable,
        events: EventRing,
        registered: mpsc::Sender<broker::Listeners>,
    ) -> Self {
        Self {
            senses,
            targets: Arc::new(targets),
            events: Some(events),
            registered,
            running: None,
        }
    }

    /// The destinations are the kernel's when this returns.
    pub fn start(&mut self) -> Result<()> {
        let mut destinations = self.senses.dns.destinations();
        let wanted = destinations.borrow_and_update().clone();
        self.targets
            .replace(&wanted)
            .context("telling the kernel the destinations")?;
        let Some(events) = self.events.take() else {
            anyhow::bail!("the kernel's events are being read already");
        };
        let senses = &self.senses;
        let (stop, stopped) = watch::channel(false);
        let (found, namespaces) = mpsc::channel(WAITING);
        let denials = tokio::spawn(denials::watch(
            events,
            Arc::clone(&senses.counters),
            Arc::clone(&senses.tree),
            Arc::clone(&senses.log),
            found,
            stopped,
        ));
        let registrar = Registrar {
            senses: senses.clone(),
            registered: self.registered.clone(),
            room: Arc::new(Semaphore::new(ASKED_AT_ONCE)),
            asked: Arc::default(),
        };
        let others = [
            tokio::spawn(Arc::clone(&senses.dns).refresh()),
            tokio::spawn(follow(destinations, Arc::clone(&self.targets))),
            tokio::spawn(registrar.run(namespaces)),
        ];
        self.running = Some(Running {
            stop,
            denials,
            others,
        });
        Ok(())
    }

    /// Leaves everything to a successor. What the broker was asked for before still arrives.
    pub async fn stop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        let [refresh, follow, registrar] = running.others;
        for task in [refresh, follow] {
            task.abort();
            // Its last change to the map must not come after the successor's first.
            let _ = task.await;
        }
        running.stop.send_replace(true);
        match running.denials.await {
            Ok(events) => self.events = Some(events),
            Err(error) => tracing::error!(%error, "denials were no longer written"),
        }
        // Ends by itself, as nothing finds namespaces any more.
        drop(registrar);
    }
}

/// Keeps the kernel's table as the resolver wants it.
async fn follow(
    mut destinations: watch::Receiver<Arc<std::collections::BTreeSet<std::net::SocketAddr>>>,
    targets: Arc<TargetTable>,
) {
    while destinations.changed().await.is_ok() {
        let wanted = destinations.borrow_and_update().clone();
        if let Err(error) = targets.replace(&wanted) {
            tracing::error!(%error, "the kernel does not know all destinations: connects to some are refused");
        }
    }
}

/// Has listeners made where agents need them.
struct Registrar {
    senses: Senses,
    registered: mpsc::Sender<broker::Listeners>,
    room: Arc<Semaphore>,
    /// Namespaces the broker is being asked for.
    asked: Arc<Mutex<HashSet<u64>>>,
}

impl Registrar {
    async fn run(self, mut namespaces: mpsc::Receiver<NewNetns>) {
        while let Some(namespace) = namespaces.recv().await {
            if !self.asked().insert(namespace.netns_cookie) {
                continue;
            }
            let Ok(place) = Arc::clone(&self.room).acquire_owned().await else {
                return;
            };
            let senses = self.senses.clone();
            let registered = self.registered.clone();
            let asked = Arc::clone(&self.asked);
            tokio::spawn(async move {
                register(namespace, senses, registered).await;
                asked
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&namespace.netns_cookie);
                drop(place);
            });
        }
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn register(
    namespace: NewNetns,
    senses: Senses,
    registered: mpsc::Sender<broker::Listeners>,
) {
    let NewNetns {
        tgid,
        netns_cookie,
        cgroup_id,
    } = namespace;
    // The broker's answers, and directories of cgroups, take their time.
    let made = tokio::task::spawn_blocking(move || {
        let listeners = senses.broker.listen(tgid, netns_cookie)?;
        let located = senses.tree.locate(cgroup_id).ok();
        let event = Event::NetnsRegistered {
            netns_cookie,
            agent: located
                .and_then(|located| located.agent)
                .map(|agent| agent.name.clone()),
            cgroup_id,
            tgid,
        };
        Ok((listeners, senses.log.append(&event)))
    });
    match made.await {
        Ok(Ok((listeners, written))) => {
            if let Err(error) = written {
                tracing::error!(%error, netns_cookie, "a namespace's registration could not be written");
            }
            // The accept loop ends only when the gateway does.
            let _ = registered.send(listeners).await;
        }
        Ok(Err(error)) => {
            let error: broker::BrokerError = error;
            tracing::warn!(%error, netns_cookie, tgid, "agents of a network namespace are refused");
        }
        Err(error) => tracing::error!(%error, "asking the broker ended"),
    }
}

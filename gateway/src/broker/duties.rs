//! What each request does. Whatever it names is looked up anew: the gateway is trusted with agents' traffic,
//! not with the rest of the host.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::protocol::{Reply, Request, Sockets};
use super::watch::Watch;
use crate::config;
use crate::identity::process::{self, Handle};
use crate::intercept::netns::{self, NetnsError};
use crate::intercept::{self, InterceptError, Maps, MapsId, NetnsLookup};

/// Programs that are looked at at the same time. Each may take a thread for as long as a file system likes.
const MAX_INSPECTIONS: usize = 8;

/// Namespaces with listeners: on the whole, and of one agent, so that none can use up the others' share.
const MAX_NAMESPACES: usize = 1024;
const MAX_NAMESPACES_EACH: usize = 64;

/// How often in a row a namespace must be seen empty before it is given up.
const EMPTY_ROUNDS: u32 = 5;

/// Abandoned namespaces that the gateway is told about; older ones it has long been told.
const MAX_ABANDONED: usize = 256;

/// What goes back, and the descriptors with it.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    pub descriptors: Vec<OwnedFd>,
}

/// Why a request is refused. The text goes to the gateway and into its log.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the kernel programs are not in place: {}", .0.join("; "))]
    NotEnforced(Vec<String>),
    #[error("cannot listen for the gateway: {0}")]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Kernel(#[from] InterceptError),
    #[error("process {0} is gone")]
    Gone(u32),
    #[error("process {tgid} is not an agent's: it is in cgroup {cgroup:?}, not below {agents:?}")]
    Stranger {
        tgid: u32,
        cgroup: String,
        agents: String,
    },
    #[error("{0:?} is not below the agents' cgroup")]
    StrangeCgroup(String),
    #[error("{0} already has {MAX_NAMESPACES_EACH} network namespaces of {MAX_NAMESPACES} in all")]
    TooManyNamespaces(String),
}

#[derive(Debug)]
pub struct Duties {
    kernel: config::Kernel,
    port: u16,
    watch: Arc<Watch>,
    namespaces: Arc<Mutex<Namespaces>>,
    /// Held while sockets are made and registered: one at a time. The namespaces themselves are locked for
    /// moments only, because the gateway lives by hearing the state in time.
    binding: Mutex<()>,
    /// One clone is out for each inspection that runs.
    inspections: Arc<()>,
}

/// The namespaces beside the host's in which the gateway listens.
#[derive(Debug, Default)]
pub struct Namespaces {
    by_cookie: HashMap<u64, Namespace>,
    abandoned: Vec<u64>,
}

#[derive(Debug)]
struct Namespace {
    /// Of `/proc/PID/ns/net`. Not used again while the gateway's sockets keep the namespace.
    inode: u64,
    /// The child of the agents' cgroup that asked for it.
    subtree: String,
    empty_rounds: u32,
    /// Against squatters on the gateway's port; detached with this.
    _lookup: NetnsLookup,
}

impl Duties {
    pub fn new(
        kernel: config::Kernel,
        port: u16,
        watch: Arc<Watch>,
        namespaces: Arc<Mutex<Namespaces>>,
    ) -> Self {
        Self {
            kernel,
            port,
            watch,
            namespaces,
            binding: Mutex::default(),
            inspections: Arc::default(),
        }
    }

    pub fn answer(&self, request: Request) -> Answer {
        let answer = match request {
            Request::Hello {} => self.hello(),
            Request::Inspect {
                tgid,
                boot_ns,
                cgroup,
            } => self.inspect(tgid, boot_ns, cgroup),
            Request::Listen { tgid, netns_cookie } => self.listen(tgid, netns_cookie),
            Request::State {} => Ok(self.state()),
        };
        answer.unwrap_or_else(|refusal| {
            tracing::warn!("refused: {refusal}");
            Answer::bare(Reply::Refused {
                reason: refusal.to_string(),
            })
        })
    }

    /// Takes back what an answer promised that nobody received.
    pub fn undelivered(&self, answer: &Answer) {
        let (Reply::Endowment { sockets, .. } | Reply::Listeners { sockets }) = &answer.reply
        else {
            return;
        };
        self.lock().by_cookie.remove(&sockets.netns_cookie);
        let removed = intercept::register_netns(&self.kernel.pins, sockets.netns_cookie, None);
        if let Err(error) = removed {
            tracing::error!("a namespace stays registered that nobody listens in: {error}");
        }
    }

    fn hello(&self) -> Result<Answer, Refusal> {
        let problems = self.watch.verify_now();
        if !problems.is_empty() {
            return Err(Refusal::NotEnforced(problems));
        }
        let _turn = self.turn();
        let maps = Maps::open_pins(&self.kernel.pins)?;
        let sockets = netns::bind_here(self.port)?;
        // Whoever listened in the others before is gone: its port here is free.
        self.lock().by_cookie.clear();
        for cookie in intercept::registered_netns(&self.kernel.pins)? {
            intercept::register_netns(&self.kernel.pins, cookie, None)?;
        }
        intercept::publish_sockets(&self.kernel.pins, sockets.slots())?;
        self.register(&sockets)?;
        Ok(Answer::endowment(maps, sockets))
    }

    fn inspect(&self, tgid: u32, boot_ns: u64, cgroup: String) -> Result<Answer, Refusal> {
        if !is_below(&cgroup, &self.kernel.agents_cgroup) {
            return Err(Refusal::StrangeCgroup(cgroup));
        }
        let slot = Arc::clone(&self.inspections);
        // One is the broker's own.
        let origin = match Arc::strong_count(&slot) - 1 <= MAX_INSPECTIONS {
            true => process::origin(tgid, boot_ns, &cgroup),
            false => None,
        };
        drop(slot);
        Ok(Answer::bare(Reply::Process { origin }))
    }

    fn listen(&self, tgid: u32, netns_cookie: u64) -> Result<Answer, Refusal> {
        let gone = |_| Refusal::Gone(tgid);
        let process = Handle::open(tgid).ok_or(Refusal::Gone(tgid))?;
        let cgroup = process.cgroup().map_err(gone)?.unwrap_or_default();
        let Some(subtree) = subtree(&cgroup, &self.kernel.agents_cgroup) else {
            return Err(Refusal::Stranger {
                tgid,
                cgroup,
                agents: self.kernel.agents_cgroup.clone(),
            });
        };
        let netns = process.network().map_err(gone)?;
        let inode = netns.metadata().map_err(gone)?.ino();
        let _turn = self.turn();
        self.lock().admit(netns_cookie, subtree)?;
        let netns = OwnedFd::from(netns);
        let visited = netns.try_clone().map_err(gone)?;
        let sockets = netns::bind_in(visited, netns_cookie, self.port)?;
        let lookup = intercept::attach_lookup(&self.kernel.pins, netns.as_fd(), sockets.slots())?;
        self.register(&sockets)?;
        let namespace = Namespace {
            inode,
            subtree: subtree.to_owned(),
            empty_rounds: 0,
            _lookup: lookup,
        };
        self.lock().enter(netns_cookie, namespace);
        tracing::info!(netns_cookie, cgroup, "the gateway listens in a namespace");
        Ok(Answer::listeners(sockets))
    }

    fn state(&self) -> Answer {
        let (mut problems, frozen) = self.watch.state();
        // Not as of the last look: a gateway must not serve with maps that were replaced since.
        let maps = MapsId::pinned(&self.kernel.pins)
            .map_err(|error| problems.push(error.to_string()))
            .ok();
        Answer::bare(Reply::State {
            problems,
            frozen,
            abandoned: self.lock().abandoned.clone(),
            maps,
        })
    }

    fn register(&self, sockets: &netns::Sockets) -> Result<(), InterceptError> {
        let registration = Some(sockets.registration());
        intercept::register_netns(&self.kernel.pins, sockets.netns_cookie, registration)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.binding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Namespaces> {
        lock(&self.namespaces)
    }
}

/// Whatever a thread was doing when it panicked, each entry is whole.
pub fn lock(namespaces: &Mutex<Namespaces>) -> MutexGuard<'_, Namespaces> {
    namespaces.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Namespaces {
    fn admit(&self, cookie: u64, subtree: &str) -> Result<(), Refusal> {
        let others = || self.by_cookie.iter().filter(|(other, _)| **other != cookie);
        let own = others().filter(|(_, namespace)| namespace.subtree == subtree);
        match own.count() < MAX_NAMESPACES_EACH && others().count() < MAX_NAMESPACES {
            true => Ok(()),
            false => Err(Refusal::TooManyNamespaces(subtree.to_owned())),
        }
    }

    fn enter(&mut self, cookie: u64, namespace: Namespace) {
        self.abandoned.retain(|abandoned| *abandoned != cookie);
        self.by_cookie.insert(cookie, namespace);
    }

    pub fn is_empty(&self) -> bool {
        self.by_cookie.is_empty()
    }

    /// Gives up the namespaces that no agent is in any more: `inhabited` has the inodes of the others. Answers
    /// their cookies.
    pub fn sweep(&mut self, inhabited: &dyn Fn(u64) -> bool) -> Vec<u64> {
        for namespace in self.by_cookie.values_mut() {
            namespace.empty_rounds = match inhabited(namespace.inode) {
                true => 0,
                false => namespace.empty_rounds + 1,
            };
        }
        let empty = |_: &u64, namespace: &mut Namespace| namespace.empty_rounds >= EMPTY_ROUNDS;
        let gone: Vec<u64> = self
            .by_cookie
            .extract_if(empty)
            .map(|(cookie, _)| cookie)
            .collect();
        self.abandoned.extend(&gone);
        let surplus = self.abandoned.len().saturating_sub(MAX_ABANDONED);
        self.abandoned.drain(..surplus);
        gone
    }
}

impl Answer {
    fn bare(reply: Reply) -> Self {
        Self {
            reply,
            descriptors: Vec::new(),
        }
    }

    fn endowment(maps: Vec<OwnedFd>, sockets: netns::Sockets) -> Self {
        let count = maps.len();
        let (sockets, descriptors) = in_order(sockets);
        Self {
            reply: Reply::Endowment {
                maps: count,
                sockets,
            },
            descriptors: maps.into_iter().chain(descriptors).collect(),
        }
    }

    fn listeners(sockets: netns::Sockets) -> Self {
        let (sockets, descriptors) = in_order(sockets);
        Self {
            reply: Reply::Listeners { sockets },
            descriptors,
        }
    }
}

fn in_order(sockets: netns::Sockets) -> (Sockets, Vec<OwnedFd>) {
    let tcp: Vec<OwnedFd> = [sockets.tcp4].into_iter().chain(sockets.tcp6).collect();
    let udp: Vec<OwnedFd> = [sockets.udp4].into_iter().chain(sockets.udp6).collect();
    let announced = Sockets {
        netns_cookie: sockets.netns_cookie,
        tcp: tcp.len(),
        udp: udp.len(),
    };
    (announced, tcp.into_iter().chain(udp).collect())
}

fn is_below(cgroup: &str, agents: &str) -> bool {
    subtree(cgroup, agents).is_some()
}

/// The child of the agents' cgroup that `cgroup` is or is below; empty for the agents' cgroup itself, `None`
/// for any other.
fn subtree<'c>(cgroup: &'c str, agents: &str) -> Option<&'c str> {
    match cgroup.strip_prefix(agents)? {
        "" => Some(""),
        rest => rest.strip_prefix('/')?.split('/').next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_that_a_cgroup_belongs_to() {
        for (cgroup, expected) in [
            ("agents.slice", Some("")),
            ("agents.slice/bot", Some("bot")),
            ("agents.slice/bot/step-7", Some("bot")),
            ("agents.slice2/bot", None),
            ("agents.slic", None),
            ("system.slice/agents.slice/bot", None),
            ("../agents.slice/bot", None),
            ("", None),
        ] {
            assert_eq!(subtree(cgroup, "agents.slice"), expected, "{cgroup}");
        }
    }
}

//! Where agents' connections arrive: the host's own listeners, and those in other network namespaces.
//!
//! The host's are accepted from directly. Each of the others has a task that hands its connections over,
//! because one accept loop that asks thousands of listeners would be slow for everybody.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::handover::Estate;
use crate::broker;

/// Connections of other namespaces that wait for the accept loop; the rest waits in the backlogs.
const ARRIVALS: usize = 16;

/// Out of descriptors, most likely: connections wait in the backlog meanwhile.
pub const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A connection, or why there is none.
pub type Arrival = io::Result<(TcpStream, SocketAddr)>;

#[derive(Debug)]
pub struct Listeners {
    host: Namespace,
    others: BTreeMap<u64, Namespace>,
    arrived: mpsc::Sender<Arrival>,
    arrivals: mpsc::Receiver<Arrival>,
    /// Those that accept in other namespaces.
    tasks: JoinSet<()>,
    pause: watch::Sender<bool>,
}

/// The listeners of one network namespace.
#[derive(Debug)]
struct Namespace {
    cookie: u64,
    tcp: Vec<Arc<TcpListener>>,
    /// Questions to the resolver arrive here.
    udp: Vec<std::net::UdpSocket>,
    tasks: Vec<AbortHandle>,
}

impl Listeners {
    /// The first are the host's own.
    pub fn open(all: Vec<broker::Listeners>) -> io::Result<Self> {
        let mut all = all.into_iter();
        let host = all.next().ok_or(io::ErrorKind::NotFound)?;
        let (arrived, arrivals) = mpsc::channel(ARRIVALS);
        let mut listeners = Self {
            host: Namespace::open(host)?,
            others: BTreeMap::new(),
            arrived,
            arrivals,
            tasks: JoinSet::new(),
            pause: watch::Sender::new(false),
        };
        for other in all {
            listeners.add(other)?;
        }
        Ok(listeners)
    }

    /// Also accepts from those of another namespace.
    pub fn add(&mut self, listeners: broker::Listeners) -> io::Result<()> {
        let namespace = Namespace::open(listeners)?;
        let cookie = namespace.cookie;
        self.close(&[cookie]);
        self.others.insert(cookie, namespace);
        self.accept_from(cookie);
        Ok(())
    }

    /// Closes those of the namespaces with these cookies.
    pub fn close(&mut self, cookies: &[u64]) {
        for cookie in cookies {
            self.others.remove(cookie);
        }
    }

    /// The next connection, from whichever namespace.
    pub async fn accept(&mut self) -> Arrival {
        tokio::select! {
            accepted = accept_on(self.host.tcp.first()) => accepted,
            accepted = accept_on(self.host.tcp.get(1)) => accepted,
            // Never without a sender: one is held here.
            Some(arrival) = self.arrivals.recv() => arrival,
        }
    }

    /// Accepts nothing more: connections wait in the backlogs. Answers those that were accepted already.
    pub async fn pause(&mut self) -> Vec<Arrival> {
        self.pause.send_replace(true);
        let mut accepted = Vec::new();
        loop {
            tokio::select! {
                biased;
                Some(arrival) = self.arrivals.recv() => accepted.push(arrival),
                ended = self.tasks.join_next() => if ended.is_none() {
                    return accepted;
                },
            }
        }
    }

    /// Goes on after a pause.
    pub fn resume(&mut self) {
        self.pause.send_replace(false);
        let cookies: Vec<u64> = self.others.keys().copied().collect();
        for cookie in cookies {
            self.accept_from(cookie);
        }
    }

    fn accept_from(&mut self, cookie: u64) {
        let Some(namespace) = self.others.get_mut(&cookie) else {
            return;
        };
        for listener in &namespace.tcp {
            let pass_on = pass_on(
                Arc::clone(listener),
                self.arrived.clone(),
                self.pause.subscribe(),
            );
            namespace.tasks.push(self.tasks.spawn(pass_on));
        }
    }

    /// What a successor goes on with, the host's first.
    pub fn estate(&self) -> io::Result<Vec<Estate>> {
        let all = std::iter::once(&self.host).chain(self.others.values());
        all.map(Namespace::estate).collect()
    }

    /// The host's addresses, for people.
    pub fn addresses(&self) -> String {
        let addresses = self.host.tcp.iter().filter_map(|listener| listener.local_addr().ok());
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        addresses.join(" and ")
    }
}

impl Namespace {
    fn open(listeners: broker::Listeners) -> io::Result<Self> {
        let tcp = listeners.tcp.into_iter().map(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener).map(Arc::new)
        });
        Ok(Self {
            cookie: listeners.netns_cookie,
            tcp: tcp.collect::<io::Result<_>>()?,
            udp: listeners.udp,
            tasks: Vec::new(),
        })
    }

    fn estate(&self) -> io::Result<Estate> {
        let tcp = self.tcp.iter().map(|tcp| tcp.as_fd().try_clone_to_owned());
        let udp = self.udp.iter().map(|udp| udp.as_fd().try_clone_to_owned());
        Ok(Estate {
            netns_cookie: self.cookie,
            tcp: tcp.collect::<io::Result<_>>()?,
            udp: udp.collect::<io::Result<_>>()?,
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A connection that was accepted is passed on, also when there is a pause meanwhile.
async fn pass_on(
    listener: Arc<TcpListener>,
    arrived: mpsc::Sender<Arrival>,
    mut pause: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = pause.wait_for(|pause| *pause) => return,
        };
        let failed = accepted.is_err();
        if arrived.send(accepted).await.is_err() {
            return;
        }
        if failed {
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }
}

async fn accept_on(listener: Option<&Arc<TcpListener>>) -> Arrival {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

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

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::handover::Estate;
use crate::broker;
use crate::intercept::DatagramTable;
use crate::intercept::dns::Dns;

/// Connections of other namespaces that wait for the accept loop; the rest waits in the backlogs.
const ARRIVALS: usize = 16;

/// Out of descriptors, most likely: connections wait in the backlog meanwhile.
pub const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A connection, or why there is none.
pub type Arrival = io::Result<(TcpStream, SocketAddr)>;

/// Who answers the questions that arrive in datagrams.
#[derive(Debug, Clone)]
pub struct Resolver {
    pub dns: Arc<Dns>,
    pub datagrams: Arc<DatagramTable>,
}

#[derive(Debug)]
pub struct Listeners {
    resolver: Resolver,
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
    accepting: Vec<AbortHandle>,
    answering: JoinSet<()>,
}

impl Listeners {
    /// The first are the host's own.
    pub fn open(resolver: Resolver, all: Vec<broker::Listeners>) -> io::Result<Self> {
        let mut all = all.into_iter();
        let host = all.next().ok_or(io::ErrorKind::NotFound)?;
        let (arrived, arrivals) = mpsc::channel(ARRIVALS);
        let mut listeners = Self {
            resolver,
            host: Namespace::open(host)?,
            others: BTreeMap::new(),
            arrived,
            arrivals,
            tasks: JoinSet::new(),
            pause: watch::Sender::new(false),
        };
        listeners.host.answer_datagrams(&listeners.resolver)?;
        for other in all {
            listeners.add(other)?;
        }
        Ok(listeners)
    }

    /// Also accepts from those of another namespace.
    pub fn add(&mut self, listeners: broker::Listeners) -> io::Result<()> {
        let mut namespace = Namespace::open(listeners)?;
        namespace.answer_datagrams(&self.resolver)?;
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

    /// Accepts nothing more: connections and datagrams wait in the backlogs. Answers what was accepted
    /// already.
    pub async fn pause(&mut self) -> Vec<Arrival> {
        self.pause.send_replace(true);
        for namespace in std::iter::once(&mut self.host).chain(self.others.values_mut()) {
            namespace.answering.shutdown().await;
        }
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

    /// Leaves them to a successor: should it die, nothing listens, and connects fail at once.
    pub fn release(&mut self) {
        self.host.tcp.clear();
        self.host.udp.clear();
        self.others.clear();
    }

    /// Goes on after a pause.
    pub fn resume(&mut self) -> io::Result<()> {
        self.pause.send_replace(false);
        let cookies: Vec<u64> = self.others.keys().copied().collect();
        for cookie in cookies {
            self.accept_from(cookie);
        }
        for namespace in std::iter::once(&mut self.host).chain(self.others.values_mut()) {
            namespace.answer_datagrams(&self.resolver)?;
        }
        Ok(())
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
            namespace.accepting.push(self.tasks.spawn(pass_on));
        }
    }

    /// What a successor goes on with, the host's first.
    pub fn estate(&self) -> io::Result<Vec<Estate>> {
        let all = std::iter::once(&self.host).chain(self.others.values());
        all.map(Namespace::estate).collect()
    }

    /// The host's addresses, for people.
    pub fn addresses(&self) -> String {
        let addresses = self
            .host
            .tcp
            .iter()
            .filter_map(|listener| listener.local_addr().ok());
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
            accepting: Vec::new(),
            answering: JoinSet::new(),
        })
    }

    fn answer_datagrams(&mut self, resolver: &Resolver) -> io::Result<()> {
        for socket in &self.udp {
            let socket = socket.try_clone()?;
            socket.set_nonblocking(true)?;
            let socket = UdpSocket::from_std(socket)?;
            let Resolver { dns, datagrams } = resolver.clone();
            self.answering
                .spawn(dns.serve_udp(socket, self.cookie, datagrams));
        }
        Ok(())
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
        for task in &self.accepting {
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

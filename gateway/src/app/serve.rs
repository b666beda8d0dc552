//! The accept loop: connections in, the pulse, signals.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};

use super::Gateway;
use super::edge::Edge;
use super::handover::{Gone, HandoverError, Program, Successor};
use super::health::Health;
use super::listeners::{AFTER_FAILURE, Arrival, Listeners, Resolver};
use super::notify;
use super::pulse::Pulse;
use super::workers::Workers;
use crate::audit::event::Event;
use crate::broker;
use crate::session;
use crate::session::driver::postgres::cancel::Stray;

/// How many connections are told at the same time that all sessions are in use.
const MAX_REFUSALS: usize = 64;

/// A gateway that lacks nothing but its listeners.
#[derive(Debug)]
pub struct Unopened {
    pub gateway: Arc<Gateway>,
    pub signals: Signals,
    pub resolver: Resolver,
    pub edge: Edge,
    pub pulse: Pulse,
    pub health: Arc<Health>,
    pub examination: AbortHandle,
    pub registering: mpsc::Sender<broker::Listeners>,
    pub registered: mpsc::Receiver<broker::Listeners>,
    pub strays: Option<mpsc::Receiver<Stray>>,
    pub stop: watch::Sender<bool>,
    pub program: Program,
    pub estate: Arc<Vec<OwnedFd>>,
}

/// The gateway while it accepts.
#[derive(Debug)]
pub struct Server {
    pub(super) gateway: Arc<Gateway>,
    pub(super) listeners: Listeners,
    pub(super) edge: Edge,
    pub(super) pulse: Pulse,
    pub(super) sessions: JoinSet<()>,
    workers: Workers,
    pub(super) signals: Signals,
    /// Runs while a predecessor drains.
    pub(super) predecessor: Option<JoinHandle<()>>,
    /// Of the guard and the disk; ends with it.
    pub(super) examination: AbortHandle,
    /// Listeners of further network namespaces.
    pub(super) registered: mpsc::Receiver<broker::Listeners>,
    pub(super) stop: watch::Sender<bool>,
    registering: mpsc::Sender<broker::Listeners>,
    /// Cancel requests to ask the predecessor about.
    strays: Option<mpsc::Receiver<Stray>>,
    health: Arc<Health>,
    room: Room,
    program: Program,
    /// The kernel's maps, for a successor.
    estate: Arc<Vec<OwnedFd>>,
}

/// Why the accept loop ended.
#[derive(Debug)]
pub enum End {
    /// By this signal.
    Told(&'static str),
    HandedOver(Successor),
}

/// How many connections may be in progress.
#[derive(Debug)]
struct Room {
    sessions: Arc<Semaphore>,
    /// Connections being told that there is no room; past these the socket is reset.
    refusals: Arc<Semaphore>,
}

#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    // A file size limit shows as a failed write, which is handled, instead of ending the process.
    _file_size_limit: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Stop(&'static str),
    HandOver,
}

impl Signals {
    /// From now on the signals are requests. Early: SIGHUP would end a process that is not ready for it.
    pub(super) fn catch() -> Result<Self> {
        let caught = |kind| signal(kind).context("catching signals");
        Ok(Self {
            terminate: caught(SignalKind::terminate())?,
            interrupt: caught(SignalKind::interrupt())?,
            hangup: caught(SignalKind::hangup())?,
            _file_size_limit: caught(SignalKind::from_raw(libc::SIGXFSZ))?,
        })
    }

    pub(super) async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Request::Stop("SIGINT"),
            _ = self.hangup.recv() => Request::HandOver,
        }
    }
}

/// A successor on its way, on a task of its own.
type Raising = JoinHandle<Result<Successor, HandoverError>>;

impl Unopened {
    pub fn open(self, listeners: Vec<broker::Listeners>) -> Result<Server> {
        Ok(Server {
            listeners: Listeners::open(self.resolver, listeners)
                .context("opening the listeners")?,
            room: Room {
                sessions: Arc::new(Semaphore::new(self.gateway.config.gateway.max_sessions)),
                refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            },
            gateway: self.gateway,
            edge: self.edge,
            pulse: self.pulse,
            sessions: JoinSet::new(),
            workers: Workers::start().context("starting the session threads")?,
            signals: self.signals,
            predecessor: None,
            examination: self.examination,
            registered: self.registered,
            stop: self.stop,
            registering: self.registering,
            strays: self.strays,
            health: self.health,
            program: self.program,
            estate: self.estate,
        })
    }
}

impl Server {
    /// Says that this gateway accepts, and stays in touch with its predecessor until that has drained.
    pub fn stay_in_touch(&mut self, gone: Gone) -> Result<()> {
        if let Some(strays) = self.strays.take() {
            self.predecessor = Some(gone.serving(strays, self.registering.clone())?);
        }
        Ok(())
    }

    /// Accepts until a signal says otherwise.
    pub async fn serve(&mut self) -> End {
        let mut raising: Option<Raising> = None;
        let mut abandoned = self.health.abandoned();
        loop {
            tokio::select! {
                arrival = self.listeners.accept() => self.arrived(arrival).await,
                () = self.pulse.due() => self.pulse.beat(),
                Some(ended) = self.sessions.join_next() => report(ended),
                Some(listeners) = self.registered.recv() => self.listen(listeners),
                Ok(()) = abandoned.changed() => {
                    let cookies = abandoned.borrow_and_update().clone();
                    self.listeners.close(&cookies);
                }
                raised = raised(&mut raising) => {
                    raising = None;
                    if let Some(successor) = self.hand_over(raised).await {
                        return End::HandedOver(successor);
                    }
                }
                request = self.signals.next() => match request {
                    Request::Stop(signal) => {
                        if let Some(raising) = raising {
                            raising.abort();
                        }
                        return End::Told(signal);
                    }
                    Request::HandOver if raising.is_some() => {
                        tracing::warn!("SIGHUP: a successor is on its way already");
                    }
                    Request::HandOver => raising = Some(self.raise()),
                },
            }
        }
    }

    async fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            Ok((socket, peer)) => self.admit(socket, peer),
            Err(error) => {
                tracing::error!(%error, "accept failed");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }

    fn admit(&mut self, socket: TcpStream, peer: SocketAddr) {
        let shared = Arc::clone(&self.gateway);
        if let Ok(slot) = Arc::clone(&self.room.sessions).try_acquire_owned() {
            let session = |socket, seat| async move {
                session::serve(socket, shared).await;
                drop((slot, seat));
            };
            if let Err(error) = self.workers.run(socket, &mut self.sessions, session) {
                tracing::error!(%error, "a connection was reset: no thread can take it");
            }
        } else if let Ok(slot) = Arc::clone(&self.room.refusals).try_acquire_owned() {
            self.sessions.spawn(async move {
                session::refuse_full(socket, shared).await;
                drop(slot);
            });
        } else {
            session::accept::refuse_full(socket, peer, &self.gateway.log);
        }
    }

    fn listen(&mut self, listeners: broker::Listeners) {
        let netns_cookie = listeners.netns_cookie;
        if let Err(error) = self.listeners.add(listeners) {
            tracing::error!(%error, netns_cookie, "no listeners in a network namespace");
        }
    }

    /// Starts a successor; meanwhile everything goes on.
    fn raise(&self) -> Raising {
        tracing::info!("SIGHUP: starting a successor");
        notify::reloading();
        let (program, estate) = (self.program.clone(), Arc::clone(&self.estate));
        let log = Arc::clone(&self.gateway.log);
        tokio::spawn(async move {
            log.share()?;
            Successor::raise(program, estate).await
        })
    }

    /// From the moment a successor is ready, or is known not to be.
    async fn hand_over(&mut self, raised: Result<Successor, HandoverError>) -> Option<Successor> {
        let failure = match raised {
            Ok(successor) => match self.let_take_over(successor).await {
                Ok(successor) => return Some(successor),
                Err(error) => error,
            },
            Err(error) => error,
        };
        tracing::error!(%failure, "the hand-over FAILED, this gateway goes on as before");
        self.gateway.log.expect_nobody();
        let failed = Event::GatewayHandoverFailed {
            pid: std::process::id(),
            reason: failure.to_string(),
        };
        if let Err(error) = self.gateway.log.append(&failed) {
            tracing::error!(%error, "a failed hand-over could not be written");
        }
        notify::ready();
        None
    }

    /// As before the pause. Whatever fails here is loud, and the rest goes on.
    fn go_on(&mut self) {
        let resumed = self.listeners.resume().map_err(anyhow::Error::from);
        if let Err(error) = resumed.and_then(|()| self.edge.start()) {
            tracing::error!(%error, "not everything goes on after the failed hand-over: restart the gateway");
        }
    }

    /// Connects wait in the backlogs while this runs.
    async fn let_take_over(
        &mut self,
        mut successor: Successor,
    ) -> Result<Successor, HandoverError> {
        for arrival in self.listeners.pause().await {
            self.arrived(arrival).await;
        }
        self.edge.stop().await;
        // All the time that the kernel allows without a beat, from now.
        self.pulse.beat();
        let taken = match self.listeners.estate() {
            Ok(estate) => successor.take_over(estate).await,
            Err(cause) => Err(HandoverError::Io {
                doing: "duplicating the listeners",
                cause,
            }),
        };
        if let Err(error) = taken {
            successor.end().await;
            self.go_on();
            return Err(error);
        }
        self.listeners.release();
        Ok(successor)
    }
}

/// When the successor is ready, or has failed; never while there is none.
async fn raised(raising: &mut Option<Raising>) -> Result<Successor, HandoverError> {
    match raising {
        Some(task) => task.await.unwrap_or_else(|error| {
            Err(HandoverError::Io {
                doing: "starting a successor",
                cause: std::io::Error::other(error),
            })
        }),
        None => std::future::pending().await,
    }
}

pub(super) fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a session ended in a panic");
    }
}

//! In the gateway that hands over: the process that takes over from it.

use std::env;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::channel::{Channel, Packet};
use super::message::{ToPredecessor, ToSuccessor};
use super::{HandoverError, TAKE_OVER, io};
use crate::broker::Listeners;

/// How long a successor may take to read what it needs.
const READY: Duration = Duration::from_secs(30);

/// How long it may take to accept once it was told to. Connects wait all that time, and the last heartbeat
/// must not get stale meanwhile.
const SERVING: Duration = Duration::from_secs(2);

/// How this program was started: a successor is started the same way.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// Descriptors of the listeners of one network namespace.
#[derive(Debug)]
pub struct Estate {
    pub netns_cookie: u64,
    pub tcp: Vec<OwnedFd>,
    pub udp: Vec<OwnedFd>,
}

#[derive(Debug)]
pub struct Successor {
    child: Child,
    channel: Channel,
    inbox: mpsc::Receiver<Packet<ToPredecessor>>,
}

impl Program {
    /// To be asked early: once another file is moved to its place, the program's own path is no longer known.
    pub fn this() -> std::io::Result<Self> {
        Ok(Self {
            path: env::current_exe()?,
            arguments: env::args_os()
                .skip(1)
                .filter(|argument| argument != TAKE_OVER)
                .collect(),
        })
    }

    fn start(&self, maps: &[OwnedFd]) -> Result<(Child, Channel), HandoverError> {
        let (channel, other) = Channel::pair().map_err(io("making a socket for the successor"))?;
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .arg(TAKE_OVER)
            .stdin(Stdio::from(other))
            .spawn()
            .map_err(io("starting the successor"))?;
        let maps: Vec<BorrowedFd<'_>> = maps.iter().map(AsFd::as_fd).collect();
        match channel.send(&ToSuccessor::Maps {}, &maps) {
            Ok(()) => Ok((child, channel)),
            Err(cause) => {
                end(&mut child);
                Err(io("giving the successor the maps")(cause))
            }
        }
    }
}

impl Successor {
    /// Starts it, and waits until nothing is left that could fail.
    pub async fn raise(
        program: Program,
        maps: Arc<Vec<OwnedFd>>,
    ) -> Result<Successor, HandoverError> {
        let started = tokio::task::spawn_blocking(move || program.start(&maps)).await;
        let (mut child, channel) = started.map_err(panicked)??;
        let inbox = match channel.inbox() {
            Ok(inbox) => inbox,
            Err(cause) => {
                end(&mut child);
                return Err(io("reading the hand-over's socket")(cause));
            }
        };
        let mut successor = Successor {
            child,
            channel,
            inbox,
        };
        match successor.ready().await {
            Ok(()) => Ok(successor),
            Err(error) => {
                successor.end().await;
                Err(error)
            }
        }
    }

    async fn ready(&mut self) -> Result<(), HandoverError> {
        match self.hear("ready", READY).await? {
            ToPredecessor::Ready {} => Ok(()),
            other => Err(HandoverError::Garbled(format!("{other:?}"))),
        }
    }

    /// Gives it the listeners and waits until it accepts.
    pub async fn take_over(&mut self, estate: Vec<Estate>) -> Result<(), HandoverError> {
        let channel = self.channel.clone();
        let give = move || {
            for namespace in &estate {
                send_listeners(&channel, namespace)?;
            }
            channel.send(&ToSuccessor::Go {}, &[])
        };
        tokio::task::spawn_blocking(give)
            .await
            .map_err(panicked)?
            .map_err(io("giving the successor the listeners"))?;
        match self.hear("serving", SERVING).await? {
            ToPredecessor::Serving {} => Ok(()),
            other => Err(HandoverError::Garbled(format!("{other:?}"))),
        }
    }

    /// Gives it listeners that arrived late.
    pub async fn also_take(&self, listeners: Listeners) {
        let estate = Estate {
            netns_cookie: listeners.netns_cookie,
            tcp: listeners.tcp.into_iter().map(OwnedFd::from).collect(),
            udp: listeners.udp.into_iter().map(OwnedFd::from).collect(),
        };
        let channel = self.channel.clone();
        let sent = tokio::task::spawn_blocking(move || send_listeners(&channel, &estate)).await;
        if let Err(error) = sent.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            tracing::error!(%error, "listeners did not reach the successor");
        }
    }

    /// What it asks; `None` when it has ended.
    pub async fn question(&mut self) -> Option<ToPredecessor> {
        self.inbox.recv().await.map(|(question, _)| question)
    }

    /// Answers a [`ToPredecessor::Cancel`].
    pub fn answering(&self) -> impl FnOnce(u64, bool) + Send + 'static {
        let channel = self.channel.clone();
        move |request, found| {
            if let Err(error) = channel.send(&ToSuccessor::Cancelled { request, found }, &[]) {
                tracing::warn!(%error, "an answer did not reach the successor");
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends a successor that did not come up: it must not wake later and serve.
    pub async fn end(self) {
        let Self { mut child, .. } = self;
        if let Err(error) = tokio::task::spawn_blocking(move || end(&mut child)).await {
            tracing::error!(%error, "a successor was not ended");
        }
    }

    async fn hear(
        &mut self,
        what: &'static str,
        patience: Duration,
    ) -> Result<ToPredecessor, HandoverError> {
        let said = tokio::time::timeout(patience, self.inbox.recv()).await;
        match said {
            Ok(Some((ToPredecessor::Failed { reason }, _))) => Err(HandoverError::Refused(reason)),
            Ok(Some((message, _))) => Ok(message),
            Ok(None) => Err(HandoverError::Ended),
            Err(_) => Err(HandoverError::Late {
                what,
                seconds: patience.as_secs(),
            }),
        }
    }
}

fn send_listeners(channel: &Channel, listeners: &Estate) -> std::io::Result<()> {
    let all = listeners.tcp.iter().chain(&listeners.udp);
    let descriptors: Vec<BorrowedFd<'_>> = all.map(AsFd::as_fd).collect();
    let message = ToSuccessor::Listeners {
        netns_cookie: listeners.netns_cookie,
        tcp: listeners.tcp.len(),
    };
    channel.send(&message, &descriptors)
}

fn end(child: &mut Child) {
    // It may have ended by itself; either way it is waited for.
    let _ = child.kill();
    if let Err(error) = child.wait() {
        tracing::error!(%error, "a successor was not waited for");
    }
}

fn panicked(error: tokio::task::JoinError) -> HandoverError {
    io("a thread of the hand-over")(std::io::Error::other(error))
}

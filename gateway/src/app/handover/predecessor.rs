//! In the successor: the gateway that it takes over from.

use std::collections::HashMap;
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::channel::{Channel, Packet};
use super::message::{ToPredecessor, ToSuccessor};
use super::{HandoverError, io};
use crate::broker::Listeners;
use crate::session::driver::postgres::cancel::Stray;

/// The argument that tells a gateway to take over, from the process behind its standard input.
pub const TAKE_OVER: &str = "--take-over";

/// It sent its first message before this process could read.
const FIRST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    pid: u32,
    maps: Vec<OwnedFd>,
}

/// Tells the predecessor why this gateway does not come up.
#[derive(Debug)]
pub struct Herald(Channel);

/// The predecessor after it said go.
#[derive(Debug)]
pub struct Gone {
    channel: Channel,
    inbox: mpsc::Receiver<Packet<ToSuccessor>>,
}

impl Predecessor {
    /// The one behind standard input, which is empty from then on.
    pub fn inherited() -> Result<Self, HandoverError> {
        let failed = || io("taking over the socket on standard input");
        let socket = std::io::stdin().as_fd().try_clone_to_owned();
        let (channel, pid) = socket.and_then(Channel::inherited).map_err(failed())?;
        // The predecessor must be the only one who holds this end.
        File::open("/dev/null")
            .and_then(|nothing| Ok(nix::unistd::dup2_stdin(nothing)?))
            .map_err(failed())?;
        let first = channel.receive(FIRST).map_err(io("waiting for the maps"))?;
        match first {
            (ToSuccessor::Maps {}, maps) => Ok(Self {
                channel,
                pid: pid.as_raw().unsigned_abs(),
                maps,
            }),
            (other, _) => Err(HandoverError::Garbled(format!("{other:?}"))),
        }
    }

    pub fn herald(&self) -> Herald {
        Herald(self.channel.clone())
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The kernel's maps, once.
    pub fn maps(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.maps)
    }

    /// Says that everything is ready, and waits for the listeners, the host's first. Nobody accepts from
    /// when this returns.
    pub async fn take_over(self) -> Result<(Vec<Listeners>, Gone), HandoverError> {
        let Self { channel, .. } = self;
        let mut inbox = channel
            .inbox()
            .map_err(io("reading the hand-over's socket"))?;
        channel
            .send(&ToPredecessor::Ready {}, &[])
            .map_err(io("telling the predecessor"))?;
        let mut listeners = Vec::new();
        loop {
            match inbox.recv().await {
                Some((ToSuccessor::Listeners { netns_cookie, tcp }, descriptors)) => {
                    listeners.push(unpack(netns_cookie, tcp, descriptors)?);
                }
                Some((ToSuccessor::Go {}, _)) => return Ok((listeners, Gone { channel, inbox })),
                Some((other, _)) => return Err(HandoverError::Garbled(format!("{other:?}"))),
                None => return Err(HandoverError::NoPredecessor),
            }
        }
    }
}

impl Herald {
    pub fn failed(&self, why: &anyhow::Error) {
        // The predecessor finds out anyway; this is how it can say why.
        let reason = format!("{why:#}").chars().take(4000).collect();
        let _ = self.0.send(&ToPredecessor::Failed { reason }, &[]);
    }
}

impl Gone {
    /// Says that this gateway accepts, and stays in touch until the predecessor has drained. Cancel requests
    /// for its sessions come out of `strays`; listeners it still got go into `registered`.
    pub fn serving(
        self,
        strays: mpsc::Receiver<Stray>,
        registered: mpsc::Sender<Listeners>,
    ) -> Result<JoinHandle<()>, HandoverError> {
        self.channel
            .send(&ToPredecessor::Serving {}, &[])
            .map_err(io("telling the predecessor"))?;
        Ok(tokio::spawn(self.stay_in_touch(strays, registered)))
    }

    async fn stay_in_touch(
        mut self,
        mut strays: mpsc::Receiver<Stray>,
        registered: mpsc::Sender<Listeners>,
    ) {
        let mut asked: HashMap<u64, oneshot::Sender<bool>> = HashMap::new();
        let mut requests = 0..;
        loop {
            tokio::select! {
                packet = self.inbox.recv() => match packet {
                    Some((ToSuccessor::Listeners { netns_cookie, tcp }, descriptors)) => {
                        match unpack(netns_cookie, tcp, descriptors) {
                            // The accept loop ends only when the gateway does.
                            Ok(listeners) => drop(registered.send(listeners).await),
                            Err(error) => tracing::error!(%error, "listeners were lost"),
                        }
                    }
                    Some((ToSuccessor::Cancelled { request, found }, _)) => {
                        if let Some(asker) = asked.remove(&request) {
                            let _ = asker.send(found);
                        }
                    }
                    Some((other, _)) => tracing::error!(?other, "the predecessor makes no sense"),
                    None => break,
                },
                Some(stray) = strays.recv() => {
                    let request = requests.next().unwrap_or(u64::MAX);
                    asked.retain(|_, asker| !asker.is_closed());
                    asked.insert(request, stray.found);
                    self.ask(ToPredecessor::Cancel {
                        request,
                        pid: stray.pid,
                        key: stray.key,
                        agent: stray.agent,
                        who: Box::new(stray.who),
                    })
                    .await;
                }
            }
        }
        tracing::info!("the predecessor has ended");
    }

    /// Sending blocks when the predecessor does not read.
    async fn ask(&self, question: ToPredecessor) {
        let channel = self.channel.clone();
        let sent = tokio::task::spawn_blocking(move || channel.send(&question, &[])).await;
        if let Err(error) = sent.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            tracing::warn!(%error, "a cancel request did not reach the predecessor");
        }
    }
}

fn unpack(
    netns_cookie: u64,
    tcp: usize,
    mut descriptors: Vec<OwnedFd>,
) -> Result<Listeners, HandoverError> {
    if tcp == 0 || tcp > descriptors.len() {
        let what = format!("{tcp} listeners in {} descriptors", descriptors.len());
        return Err(HandoverError::Garbled(what));
    }
    let udp = descriptors.split_off(tcp);
    Ok(Listeners {
        netns_cookie,
        tcp: descriptors.into_iter().map(TcpListener::from).collect(),
        udp: udp.into_iter().map(UdpSocket::from).collect(),
    })
}

//! Cancel keys: the gateway hands out its own, and passes a cancel on only for their owner.
//!
//! A gateway that took over does not know the keys of sessions that its predecessor still drains: such a
//! request is a [`Stray`], which the predecessor is asked about.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::upstream::{self, Dial};
use crate::audit::event::{Event, SessionId, Who};
use crate::store::log::Log;

/// Cancel requests that wait for the predecessor.
const STRAYS: usize = 64;

/// How long the predecessor may take; it dials the target.
const PREDECESSOR: Duration = Duration::from_secs(20);

/// Whom a cancel request reaches.
#[derive(Debug, Clone)]
pub struct Backend {
    pub session: SessionId,
    pub agent: String,
    pub dial: Dial,
    pub pid: u32,
    pub key: Vec<u8>,
}

/// The keys of all open sessions.
#[derive(Debug, Default)]
pub struct CancelKeys {
    open: Mutex<HashMap<(u32, [u8; 4]), Backend>>,
    /// To the predecessor, if there is one.
    strays: Option<mpsc::Sender<Stray>>,
}

/// A cancel request whose key is none of this gateway's.
#[derive(Debug)]
pub struct Stray {
    pub pid: u32,
    pub key: Vec<u8>,
    /// Who asks; only its own sessions may be cancelled.
    pub agent: String,
    pub who: Who,
    /// Whether the predecessor knows the key.
    pub found: oneshot::Sender<bool>,
}

/// A key that is valid as long as this is held.
#[derive(Debug)]
pub struct Issued {
    keys: Arc<CancelKeys>,
    pid: u32,
    secret: [u8; 4],
}

impl CancelKeys {
    /// Those of a gateway with a predecessor, and the requests to ask it about.
    pub fn with_predecessor() -> (Self, Option<mpsc::Receiver<Stray>>) {
        let (sender, strays) = mpsc::channel(STRAYS);
        let keys = Self {
            open: Mutex::default(),
            strays: Some(sender),
        };
        (keys, Some(strays))
    }

    /// Passes a cancel request on to the target of its session, with a leaf. `false`: no session of `agent`
    /// has this key, neither here nor in the predecessor.
    pub async fn cancel(&self, pid: u32, key: &[u8], agent: &str, who: Who, log: &Log) -> bool {
        let Some(backend) = self.find(pid, key, agent) else {
            return self.ask_predecessor(pid, key, agent, who).await;
        };
        let session = backend.session;
        if let Err(error) = log.append(&Event::CancelRequest { session, who }) {
            tracing::error!(%session, %error, "a cancel request could not be written, so it is not passed on");
        } else if let Err(error) = upstream::cancel(&backend.dial, backend.pid, &backend.key).await
        {
            tracing::warn!(%session, %error, "a cancel request did not reach the target");
        }
        true
    }

    async fn ask_predecessor(&self, pid: u32, key: &[u8], agent: &str, who: Who) -> bool {
        let Some(strays) = &self.strays else {
            return false;
        };
        let (found, answer) = oneshot::channel();
        let stray = Stray {
            pid,
            key: key.to_vec(),
            agent: agent.to_owned(),
            who,
            found,
        };
        let ask = async {
            // Both fail when the predecessor is gone, and its sessions with it.
            strays.send(stray).await.is_ok() && answer.await.unwrap_or(false)
        };
        tokio::time::timeout(PREDECESSOR, ask)
            .await
            .unwrap_or(false)
    }

    /// The backend's own process id, which clients compare with `pg_backend_pid()` and with the sender of a
    /// notification, and a fresh random secret. Backends of several targets may have the same process id.
    pub fn issue(self: &Arc<Self>, backend: Backend) -> Issued {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = backend.pid;
        loop {
            // The other bytes of a version 4 UUID are not all random.
            let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
            let secret = [a, b, c, d];
            if let std::collections::hash_map::Entry::Vacant(free) = open.entry((pid, secret)) {
                free.insert(backend);
                return Issued {
                    keys: Arc::clone(self),
                    pid,
                    secret,
                };
            }
        }
    }

    /// The backend of a key, if `agent` owns it.
    fn find(&self, pid: u32, key: &[u8], agent: &str) -> Option<Backend> {
        let key: [u8; 4] = key.try_into().ok()?;
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&(pid, key))
            .filter(|backend| backend.agent == agent)
            .cloned()
    }
}

impl Issued {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        self.keys
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(self.pid, self.secret));
    }
}

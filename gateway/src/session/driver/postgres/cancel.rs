//! Cancel keys: the gateway hands out its own, and passes a cancel on only for their owner.
//!
//! A gateway that took over does not know the keys of sessions that its predecessor still drains: such a
//! request is a [`Stray`], which the predecessor is asked about.
//!
//! Every cancel request that finds its session is one more connection to the target, so an agent has only so many
//! in a second ([`RATE`]).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use tokio::sync::{mpsc, oneshot};

use super::upstream::{self, Dial};
use crate::audit::event::{Event, SessionId, Who};
use crate::store::log::Log;

/// Cancel requests that wait for the predecessor.
const STRAYS: usize = 64;

/// How long the predecessor may take; it dials the target.
const PREDECESSOR: Duration = Duration::from_secs(20);

/// Cancel requests that one agent may make in a second on average, and how many at once: a pool of clients that
/// all run into their time-out.
const RATE: f64 = 20.0;
const BURST: f64 = 200.0;

/// How long a key is: PostgreSQL's own are as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLength {
    /// Protocol 3.0 has room for no more.
    Four,
    /// From protocol 3.2 on.
    ThirtyTwo,
}

impl KeyLength {
    fn bytes(self) -> usize {
        match self {
            KeyLength::Four => 4,
            KeyLength::ThirtyTwo => 32,
        }
    }
}

/// What became of a cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It was passed on, or its predecessor passed it on.
    PassedOn,
    /// No session of this agent has this key, neither here nor in the predecessor.
    Unknown,
    /// The agent made too many.
    TooMany,
}

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
    /// By process id: backends of several targets may have the same.
    open: Mutex<HashMap<u32, Vec<Owned>>>,
    /// By agent.
    allowances: Mutex<HashMap<String, Allowance>>,
    /// To the predecessor, if there is one.
    strays: Option<mpsc::Sender<Stray>>,
}

#[derive(Debug)]
struct Owned {
    key: Vec<u8>,
    backend: Backend,
}

/// A token bucket.
#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn full(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * RATE).min(BURST);
        self.at = now;
        let some = self.left >= 1.0;
        if some {
            self.left -= 1.0;
        }
        some
    }
}

/// There is no randomness for a key.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no randomness")]
pub struct NoRandomness;

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
    secret: Vec<u8>,
}

impl CancelKeys {
    /// Those of a gateway with a predecessor, and the requests to ask it about.
    pub fn with_predecessor() -> (Self, Option<mpsc::Receiver<Stray>>) {
        let (sender, strays) = mpsc::channel(STRAYS);
        let keys = Self {
            open: Mutex::default(),
            allowances: Mutex::default(),
            strays: Some(sender),
        };
        (keys, Some(strays))
    }

    /// What an agent asked for: passes it on to the target of its session, with a leaf.
    pub async fn request(
        &self,
        pid: u32,
        key: &[u8],
        agent: &str,
        who: Who,
        log: &Log,
    ) -> Cancelled {
        let allowed = self
            .allowances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(agent.to_owned())
            .or_insert_with(|| Allowance::full(Instant::now()))
            .take(Instant::now());
        if !allowed {
            return Cancelled::TooMany;
        }
        match self.cancel(pid, key, agent, who, log).await {
            true => Cancelled::PassedOn,
            false => Cancelled::Unknown,
        }
    }

    /// `false`: no session of `agent` has this key, neither here nor in the predecessor.
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
    /// notification, and a fresh random secret.
    ///
    /// # Errors
    /// No randomness.
    pub fn issue(
        self: &Arc<Self>,
        backend: Backend,
        length: KeyLength,
    ) -> Result<Issued, NoRandomness> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = backend.pid;
        let owned = open.entry(pid).or_default();
        loop {
            let mut key = vec![0; length.bytes()];
            aws_lc_rs::rand::fill(&mut key).map_err(|_| NoRandomness)?;
            if owned.iter().all(|other| other.key != key) {
                owned.push(Owned {
                    key: key.clone(),
                    backend,
                });
                return Ok(Issued {
                    keys: Arc::clone(self),
                    pid,
                    secret: key,
                });
            }
        }
    }

    /// The backend of a key, if `agent` owns it. How long it takes says nothing about the key.
    fn find(&self, pid: u32, key: &[u8], agent: &str) -> Option<Backend> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&pid)?
            .iter()
            .filter(|owned| owned.backend.agent == agent)
            .find(|owned| verify_slices_are_equal(&owned.key, key).is_ok())
            .map(|owned| owned.backend.clone())
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
        let mut open = self
            .keys
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut owned) = open.entry(self.pid) {
            owned.get_mut().retain(|owned| owned.key != self.secret);
            if owned.get().is_empty() {
                owned.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_fills_again() {
        let start = Instant::now();
        let mut allowance = Allowance::full(start);
        let burst = (0..1000).filter(|_| allowance.take(start)).count();
        assert_eq!(burst, 200);
        let second = start + Duration::from_secs(1);
        let next = (0..1000).filter(|_| allowance.take(second)).count();
        assert_eq!(next, 20);
        let hour = start + Duration::from_secs(3600);
        let rested = (0..1000).filter(|_| allowance.take(hour)).count();
        assert_eq!(rested, 200);
        assert!(
            !allowance.take(start),
            "a clock that goes back gives nothing"
        );
    }
}

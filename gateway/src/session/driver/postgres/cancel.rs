//! Cancel keys: the gateway hands out its own, and passes a cancel on only for their owner.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::upstream::Dial;
use crate::audit::event::SessionId;

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
}

/// A key that is valid as long as this is held.
#[derive(Debug)]
pub struct Issued {
    keys: Arc<CancelKeys>,
    pid: u32,
    secret: [u8; 4],
}

impl CancelKeys {
    /// A fresh random process id and secret for `backend`.
    pub fn issue(self: &Arc<Self>, backend: Backend) -> Issued {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let [a, b, c, d, e, f, _, _, g, h, ..] = *uuid::Uuid::new_v4().as_bytes();
            // A process id is shown as a positive number.
            let pid = u32::from_be_bytes([a & 0x7f, b, c, d]);
            let secret = [e, f & 0x0f | g << 4, g, h];
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
    pub fn find(&self, pid: u32, key: &[u8], agent: &str) -> Option<Backend> {
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

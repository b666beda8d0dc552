//! How targets are reached: their credentials, their certificates, and how many sessions they take.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::{Config, CredentialSource, Target};
use crate::credentials::{self, Credential};

/// How one target is reached.
pub(super) struct Upstream {
    credential: Arc<Credential>,
    /// Those that policies name.
    named: HashMap<String, Arc<Credential>>,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// One permit per session, where their number is limited.
    places: Option<Arc<Semaphore>>,
}

/// A session's place at a target; given back when it is dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held, never read")] Option<OwnedSemaphorePermit>);

impl Upstream {
    /// What the gateway logs in with: the target's own credential, or the one of that name.
    pub(super) fn credential(&self, name: Option<&str>) -> Option<Arc<Credential>> {
        match name {
            None => Some(Arc::clone(&self.credential)),
            Some(name) => self.named.get(name).map(Arc::clone),
        }
    }

    /// A place for one more session, if there is one.
    pub(super) fn place(&self) -> Option<Place> {
        match &self.places {
            None => Some(Place(None)),
            Some(places) => {
                let permit = Arc::clone(places).try_acquire_owned();
                permit.ok().map(|permit| Place(Some(permit)))
            }
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("user", &self.credential.user)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// Every target's, by its name.
pub(super) fn load(config: &Config) -> Result<HashMap<String, Upstream>> {
    let mut upstreams = HashMap::new();
    for target in config.targets.values() {
        let upstream =
            upstream(target).with_context(|| format!("preparing target \"{}\"", target.name))?;
        upstreams.insert(target.name.clone(), upstream);
    }
    Ok(upstreams)
}

fn upstream(target: &Target) -> Result<Upstream> {
    let load = |source: &CredentialSource| credentials::load(source).map(Arc::new);
    let mut named = HashMap::new();
    for (name, source) in &target.credentials {
        let credential = load(source).with_context(|| format!("credential \"{name}\""))?;
        named.insert(name.clone(), credential);
    }
    Ok(Upstream {
        credential: load(&target.credential)?,
        named,
        tls: credentials::tls::client(&target.tls)?.map(Arc::new),
        places: target
            .max_connections
            .map(|places| Arc::new(Semaphore::new(places))),
    })
}

//! Before the first thread is started: inherit from a predecessor or greet the broker, become the gateway's
//! user, and keep secrets in this process.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::handover::{Gone, Predecessor};
use crate::broker::{self, Endowment, Listeners};
use crate::config::Config;
use crate::intercept::{self, Maps};
use crate::policy::PolicySet;
use crate::privileges::{self, Identity};
use crate::store;

/// What a gateway begins with.
#[derive(Debug)]
pub struct Start {
    pub(super) config: Config,
    pub(super) policies: PolicySet,
    pub(super) broker: Arc<broker::Client>,
    pub(super) maps: Maps,
    /// The descriptors of the maps, for a successor.
    pub(super) estate: Vec<OwnedFd>,
    pub(super) origin: Origin,
}

/// Where the listeners come from.
#[derive(Debug)]
pub(super) enum Origin {
    /// The broker made them.
    Broker(Listeners),
    /// They come when the predecessor is done with them.
    Predecessor(Predecessor),
}

impl Origin {
    /// The listeners, the host's first. Nobody accepts from them when this returns.
    pub(super) async fn listeners(self) -> Result<(Vec<Listeners>, Option<Gone>)> {
        match self {
            Origin::Broker(listeners) => Ok((vec![listeners], None)),
            Origin::Predecessor(predecessor) => {
                let (listeners, gone) = predecessor.take_over().await?;
                Ok((listeners, Some(gone)))
            }
        }
    }
}

/// Gives up every privilege, then reads what has to be read with none.
pub fn prepare(config: Config, predecessor: Option<Predecessor>) -> Result<Start> {
    give_up_privileges(&config)?;
    let policies = store::policies::load_for(&config).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the policies are refused:\n{}", lines.join("\n"))
    })?;
    let broker = Arc::new(broker::Client::new(&config.broker.socket));
    let (maps, origin) = match predecessor {
        Some(mut predecessor) => (predecessor.maps(), Origin::Predecessor(predecessor)),
        None => {
            let Endowment { maps, listeners } = broker.hello().context("asking the broker")?;
            (maps, Origin::Broker(listeners))
        }
    };
    let maps = Maps::from_fds(maps).context("taking over the kernel's maps")?;
    let estate = maps.fds().into_iter().map(|map| map.try_clone_to_owned());
    Ok(Start {
        estate: estate.collect::<Result<_, _>>()?,
        config,
        policies,
        broker,
        maps,
        origin,
    })
}

/// Only root needs the first half; it is the same for a gateway that a service manager starts as its user.
fn give_up_privileges(config: &Config) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        let user = privileges::lookup(&config.gateway.user)?;
        for (folder, mode) in [
            (&config.storage.log, 0o700),
            (&config.storage.recordings, 0o700),
            // Agents read the certificate in it; the key has a mode of its own.
            (&config.tls.directory, 0o755),
        ] {
            make_folder(folder, mode, user)
                .with_context(|| format!("preparing {}", folder.display()))?;
        }
    }
    intercept::join_gateway_cgroup(&config.kernel).context("joining the gateway's cgroup")?;
    privileges::become_user(&config.gateway.user)?;
    harden()
}

/// Whose folder it is stays as it was where there is one already, unless it is empty.
fn make_folder(folder: &Path, mode: u32, owner: Identity) -> std::io::Result<()> {
    if let Some(parent) = folder.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let untouched = folder.metadata()?.uid() == 0 && folder.read_dir()?.next().is_none();
    match untouched {
        true => chown(folder, Some(owner.uid), Some(owner.gid)),
        false => Ok(()),
    }
}

/// Secrets stay in this process: no core dumps, no reading through /proc or ptrace by its own user.
fn harden() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).context("turning core dumps off")?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)
        .context("setting the core size limit to 0")?;
    Ok(())
}

//! The composition root: config → stores → kernel edge → listeners → drain.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::audit::event::Event;
use crate::config::{Address, Config, Target, TargetTls};
use crate::credentials::{self, Credential};
use crate::identity::cgroup::AgentTree;
use crate::identity::token::Keyring;
use crate::intercept::cgroup::cgroup2_mount;
use crate::intercept::{self, FlowTable, guard};
use crate::policy::PolicySet;
use crate::session;
use crate::session::decide::Analyst;
use crate::session::driver::postgres::cancel::CancelKeys;
use crate::session::driver::postgres::catalogue::Catalogues;
use crate::session::driver::postgres::upstream::Dial;
use crate::session::identify::Identities;
use crate::store::log::Log;
use crate::store::recordings;

/// How long open sessions get to hear that the gateway stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How many connections are told at the same time that all sessions are in use.
const MAX_REFUSALS: usize = 64;

/// The system's trusted roots, for targets that name no `ca_file`.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What every session uses. Nothing here changes while the gateway runs.
#[derive(Debug)]
pub struct Gateway {
    pub config: Config,
    pub policies: Arc<PolicySet>,
    pub log: Arc<Log>,
    pub flows: FlowTable,
    pub identities: Arc<Identities>,
    pub analyst: Arc<Analyst>,
    pub cancel_keys: Arc<CancelKeys>,
    upstreams: HashMap<String, Upstream>,
    catalogues: Mutex<HashMap<(String, String, SocketAddr), Arc<Catalogues>>>,
    stop: watch::Receiver<bool>,
}

/// How one target is reached.
struct Upstream {
    credential: Arc<Credential>,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Where to dial; `None` means where the agent wanted to go.
    dial: Option<SocketAddr>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("user", &self.credential.user)
            .field("tls", &self.tls.is_some())
            .field("dial", &self.dial)
            .finish()
    }
}

impl Gateway {
    pub fn dial(&self, target: &Arc<Target>, original: SocketAddr, database: &str) -> Option<Dial> {
        let upstream = self.upstreams.get(&target.name)?;
        Some(Dial {
            target: Arc::clone(target),
            address: upstream.dial.unwrap_or(original),
            database: database.to_owned(),
            credential: Arc::clone(&upstream.credential),
            tls: upstream.tls.clone(),
        })
    }

    /// The catalogue of one target database, shared by its sessions.
    pub fn catalogues(&self, dial: &Dial) -> Arc<Catalogues> {
        let key = (
            dial.target.name.clone(),
            dial.database.clone(),
            dial.address,
        );
        let mut catalogues = self
            .catalogues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = catalogues
            .entry(key)
            .or_insert_with(|| Arc::new(Catalogues::new(dial.clone())));
        Arc::clone(known)
    }

    /// Returns when the gateway has been told to stop.
    pub async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // The sender lives as long as `run`; without it there is nothing left to serve either.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// Runs the gateway until it is told to stop.
pub async fn run(config: Config, policies: PolicySet) -> Result<()> {
    harden()?;
    guard::verify(&config.kernel)
        .context("the kernel programs are not in place: run `sluice guard load`")?;
    intercept::join_gateway_cgroup(&config.kernel).context("joining the gateway's cgroup")?;
    let flows = FlowTable::open(&config.kernel.pins).context("opening the kernel's flow table")?;
    let recordings = config.storage.recordings.clone();
    let digest = |session| recordings::digest(&recordings, session).ok();
    let log = Log::open_sealing(&config.storage.log, SystemTime::now(), digest)
        .context("opening the evidence log")?;
    let log = Arc::new(log);
    log.append(&Event::GatewayStart {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        config_sha256: config.sha256.clone(),
        policy_sha256: policies.hash.clone(),
        predecessor: None,
    })?;
    let (stop_sender, stop) = watch::channel(false);
    let port = config.gateway.listen_port;
    let gateway = Arc::new(Gateway {
        identities: Arc::new(identities(&config).await?),
        upstreams: upstreams(&config).await?,
        policies: Arc::new(policies),
        log: Arc::clone(&log),
        flows,
        analyst: Analyst::start(std::thread::available_parallelism().map_or(2, usize::from))
            .context("starting the analysis threads")?,
        cancel_keys: Arc::default(),
        catalogues: Mutex::default(),
        stop,
        config,
    });
    let outcome = serve(&gateway, port, stop_sender).await;
    let reason = match &outcome {
        Ok(reason) => (*reason).to_owned(),
        Err(error) => format!("{error:#}"),
    };
    log.append(&Event::GatewayStop {
        reason,
        pid: Some(std::process::id()),
    })?;
    log.sync()?;
    outcome.map(drop)
}

/// Secrets stay in this process: no core dumps, no reading through /proc or ptrace by its own user.
fn harden() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).context("turning core dumps off")?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)
        .context("setting the core size limit to 0")?;
    Ok(())
}

async fn serve(
    gateway: &Arc<Gateway>,
    port: u16,
    stop: watch::Sender<bool>,
) -> Result<&'static str> {
    let v4 = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    // Without IPv6 on this host agents cannot dial it either; the kernel programs stay fail-closed.
    let v6 = match listen(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!("no IPv6 listener: {error:#}");
            None
        }
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A file size limit shows as a failed write, which is handled, instead of ending the process.
    let _file_size_limit = signal(SignalKind::from_raw(libc::SIGXFSZ))?;
    println!("sluice: ready on 127.0.0.1:{port} and [::1]:{port}");
    let room = Room {
        sessions: Arc::new(Semaphore::new(gateway.config.gateway.max_sessions)),
        refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
    };
    let mut sessions = JoinSet::new();
    let reason = loop {
        let accepted = tokio::select! {
            accepted = v4.accept() => accepted,
            accepted = accept_on(v6.as_ref()) => accepted,
            Some(ended) = sessions.join_next() => {
                report(ended);
                continue;
            }
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
        };
        match accepted {
            Ok((socket, peer)) => admit(socket, peer, gateway, &room, &mut sessions),
            Err(error) => {
                // Out of descriptors, most likely: connections wait in the backlog meanwhile.
                tracing::error!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    tracing::info!(reason, open = sessions.len(), "stopping");
    let _ = stop.send(true);
    let drained = tokio::time::timeout(DRAIN, async {
        while let Some(ended) = sessions.join_next().await {
            report(ended);
        }
    });
    if drained.await.is_err() {
        tracing::warn!(open = sessions.len(), "sessions did not end in time");
    }
    Ok(reason)
}

/// How many connections may be in progress.
#[derive(Debug)]
struct Room {
    sessions: Arc<Semaphore>,
    /// Connections being told that there is no room; past these the socket is reset.
    refusals: Arc<Semaphore>,
}

fn admit(
    socket: TcpStream,
    peer: SocketAddr,
    gateway: &Arc<Gateway>,
    room: &Room,
    sessions: &mut JoinSet<()>,
) {
    let shared = Arc::clone(gateway);
    if let Ok(slot) = Arc::clone(&room.sessions).try_acquire_owned() {
        sessions.spawn(async move {
            session::serve(socket, shared).await;
            drop(slot);
        });
    } else if let Ok(slot) = Arc::clone(&room.refusals).try_acquire_owned() {
        sessions.spawn(async move {
            session::refuse_full(socket, shared).await;
            drop(slot);
        });
    } else {
        session::accept::refuse_full(socket, peer, &gateway.log);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a session ended in a panic");
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}

async fn accept_on(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn identities(config: &Config) -> Result<Identities> {
    let mount = cgroup2_mount()?;
    let tree = AgentTree::new(
        &mount,
        &config.kernel.agents_cgroup,
        config.agents.values().cloned(),
    );
    let keyrings = config
        .identities
        .iter()
        .map(|(name, issuer)| (name.clone(), Keyring::new(Arc::clone(issuer))))
        .collect();
    let mut targets: HashMap<SocketAddr, Arc<Target>> = HashMap::new();
    for target in config.targets.values() {
        for address in &target.addresses {
            for resolved in resolve(address).await? {
                if let Some(other) = targets.insert(resolved, Arc::clone(target))
                    && other.name != target.name
                {
                    bail!(
                        "{resolved} is an address of both target \"{}\" and target \"{}\"",
                        other.name,
                        target.name
                    );
                }
            }
        }
    }
    Ok(Identities::new(tree, keyrings, targets))
}

async fn resolve(address: &Address) -> Result<Vec<SocketAddr>> {
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host((address.host.as_str(), address.port))
        .await
        .with_context(|| format!("resolving {}", address.host))?
        .collect();
    if resolved.is_empty() {
        bail!("{} has no address", address.host);
    }
    Ok(resolved)
}

async fn upstreams(config: &Config) -> Result<HashMap<String, Upstream>> {
    let mut upstreams = HashMap::new();
    for target in config.targets.values() {
        let upstream = upstream(target)
            .await
            .with_context(|| format!("preparing target \"{}\"", target.name))?;
        upstreams.insert(target.name.clone(), upstream);
    }
    Ok(upstreams)
}

async fn upstream(target: &Target) -> Result<Upstream> {
    let dial = match &target.dial {
        Some(address) => resolve(address).await?.first().copied(),
        None => None,
    };
    let tls = match &target.tls {
        TargetTls::Disable => None,
        TargetTls::VerifyFull { ca_file, .. } => {
            let file = ca_file
                .clone()
                .unwrap_or_else(|| std::path::PathBuf::from(SYSTEM_ROOTS));
            Some(Arc::new(tls_client(&file)?))
        }
    };
    Ok(Upstream {
        credential: Arc::new(credentials::load(&target.credential)?),
        tls,
        dial,
    })
}

fn tls_client(roots_file: &std::path::Path) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(roots_file)
        .with_context(|| format!("reading {}", roots_file.display()))?;
    for certificate in certificates {
        let certificate =
            certificate.with_context(|| format!("reading {}", roots_file.display()))?;
        roots
            .add(certificate)
            .with_context(|| format!("a certificate in {}", roots_file.display()))?;
    }
    if roots.is_empty() {
        bail!("{} holds no certificate", roots_file.display());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

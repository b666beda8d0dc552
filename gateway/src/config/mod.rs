//! The configuration: the file's shape on one side, a validated value on the other.
//!
//! [`parse`] turns the text of `sluice.toml` into a [`Config`] in which everything has been checked that can
//! be checked without looking at the host: whoever holds a `Config` never asks again whether an address is
//! an address or an agent's identity exists. Operators fix a file in one go, so nothing stops at the first
//! error: each section is read key by key from the TOML tree, every problem goes into one report with its
//! line, and unknown keys are errors, because a typo that is ignored is a rule that is not enforced.
//!
//! [`load`] adds the two things that `parse` leaves out: reading the file, and moving a whole installation
//! below another root directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use toml::de::DeTable;

mod address;
mod agent;
mod credential;
mod errors;
mod gateway;
mod identity;
mod section;
mod target;
mod target_tls;
mod values;

pub use address::{Address, AddressError};
pub use agent::Agent;
pub use credential::{ChannelBinding, CredentialSource, LoginMethod};
pub use errors::{ConfigError, ConfigErrors};
pub use gateway::{
    Broker, Device, DeviceKind, Dns, DnsMode, Gateway, Kernel, Storage, Tls, UnixSockets,
};
pub use identity::{Algorithm, Issuer, JwksSource};
pub use target::{Protocol, Target};
pub use target_tls::{ClientCertificate, TargetTls, TlsMode};

use errors::Report;
use section::Section;
use values::Root;

/// More than any real configuration; keeps a wrong `--config` (a log, a device) out of memory.
const MAX_FILE: u64 = 1024 * 1024;

/// Everything the operator decided, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub gateway: Gateway,
    pub storage: Storage,
    /// Directory of the `*.cedar` files.
    pub policies: PathBuf,
    pub kernel: Kernel,
    pub broker: Broker,
    pub dns: Dns,
    pub tls: Tls,
    pub identities: BTreeMap<String, Arc<Issuer>>,
    pub agents: BTreeMap<String, Arc<Agent>>,
    pub targets: BTreeMap<String, Arc<Target>>,
    /// SHA-256 of the file's text in hex; the evidence log names it when the gateway starts.
    pub sha256: String,
}

/// Reads and validates the configuration file at `path`.
///
/// With a `root`, every absolute path in it and every default path is taken below that directory, so that a
/// second installation (a test, a demo) is a directory of its own. `kernel.pins` stays: BPF pins live where
/// bpffs is mounted.
pub fn load(path: &Path, root: Option<&Path>) -> Result<Config, ConfigErrors> {
    let text = read(path)?;
    parse_below(&text, path, Root(root))
}

/// Validates the text of a configuration file. `file` only names it in errors.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigErrors> {
    parse_below(text, file, Root(None))
}

fn read(path: &Path) -> Result<String, ConfigErrors> {
    let refuse = |message: String, hint: &str| ConfigErrors::whole_file(path, message, hint);
    let size = std::fs::metadata(path)
        .map_err(|error| {
            refuse(
                format!("cannot be read: {error}"),
                "name another file with --config, or an installation with --root; docs/sluice.example.toml is a start",
            )
        })?
        .len();
    if size > MAX_FILE {
        return Err(refuse(
            format!("has {size} bytes, more than the {MAX_FILE} a configuration may have"),
            "is this the right file?",
        ));
    }
    std::fs::read_to_string(path).map_err(|error| {
        refuse(
            format!("cannot be read: {error}"),
            "it must be a readable text file in UTF-8",
        )
    })
}

/// A file that is not TOML yields its syntax errors only: whatever else would be reported follows from them.
fn parse_below(text: &str, file: &Path, root: Root<'_>) -> Result<Config, ConfigErrors> {
    let report = Report::new(file, text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        report.syntax(error);
    }
    if syntax.is_empty() {
        let top = Section::top(document.get_ref(), &report);
        if let Some(config) = read_document(top, root, text) {
            return report.into_result(config);
        }
    }
    Err(report.into_errors())
}

/// Reads section after section; `None` if one of them could not be completed, which the report explains.
fn read_document(mut top: Section<'_>, root: Root<'_>, text: &str) -> Option<Config> {
    let gateway = gateway::read_gateway(top.table("gateway"));
    let storage = gateway::read_storage(top.table("storage"), root);
    let policies = gateway::read_policies(top.table("policies"), root);
    let kernel = gateway::read_kernel(top.table("kernel"));
    let broker = gateway::read_broker(top.table("broker"), root);
    let dns = gateway::read_dns(top.table("dns"));
    let tls = gateway::read_tls(top.table("tls"), root);
    let identities = identity::read_all(top.named_tables("identity"), root);
    let targets = target::read_all(top.named_tables("targets"), gateway.listen_port, root);
    let surroundings = agent::Surroundings {
        kernel: &kernel,
        gateway_user: &gateway.user,
        issuers: &identities,
        targets: targets.as_ref(),
        root,
    };
    let agents = agent::read_all(top.named_tables("agents"), &surroundings);
    top.finish();
    Some(Config {
        gateway,
        storage,
        policies,
        kernel,
        broker,
        dns,
        tls,
        identities: identities
            .into_iter()
            .map(|(name, issuer)| Some((name, issuer?)))
            .collect::<Option<_>>()?,
        agents: agents?,
        targets: targets?,
        sha256: hex::encode(Sha256::digest(text)),
    })
}

#[cfg(test)]
mod tests;

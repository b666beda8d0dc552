//! Agents: one cgroup subtree each, and the identity its processes must prove.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use toml::de::DeValue;

use super::errors::Problem;
use super::gateway::Kernel;
use super::identity::{Issuer, Issuers};
use super::section::Section;
use super::values::{self, Root};

/// `[agents.NAME]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub name: String,
    /// Relative to the cgroup v2 mount: `agents.slice/report-bot`.
    pub cgroup: String,
    pub issuer: Arc<Issuer>,
    pub token_file: PathBuf,
    /// If set, the token's `sub` must be exactly this.
    pub subject: Option<String>,
    /// The user that `sluice exec` becomes.
    pub run_as: String,
}

/// All agents, or `None` if one of them could not be read.
pub(super) fn read_all(
    sections: Vec<(String, Section<'_>)>,
    kernel: &Kernel,
    issuers: &Issuers,
    root: Root<'_>,
) -> Option<BTreeMap<String, Arc<Agent>>> {
    let mut owners = BTreeMap::new();
    let agents: Vec<_> = sections
        .into_iter()
        .map(|(name, section)| read(name, section, kernel, issuers, root, &mut owners))
        .collect();
    agents
        .into_iter()
        .map(|agent| agent.map(|agent| (agent.name.clone(), Arc::new(agent))))
        .collect()
}

/// `owners`: cgroup → the agent that has it.
fn read(
    name: String,
    mut section: Section<'_>,
    kernel: &Kernel,
    issuers: &Issuers,
    root: Root<'_>,
    owners: &mut BTreeMap<String, String>,
) -> Option<Agent> {
    let issuer = section.require("identity", |value| find_issuer(value, issuers));
    let token_file = section.require("token_file", |value| root.path(value));
    let cgroup = section.take("cgroup", values::cgroup);
    let subject = section.take("subject", values::owned_text);
    let run_as = section.take("run_as", user_name);

    let below = cgroup.unwrap_or_else(|| name.clone());
    let cgroup = format!("{}/{below}", kernel.agents_cgroup);
    if let Some(owner) = owners.get(&cgroup) {
        let problem = Problem::new(format!(
            "{below:?} is already the cgroup of agent {owner:?}"
        ))
        .hint("a process is known by its cgroup; give each agent its own, nested ones are fine");
        section.refuse(section.offset_of("cgroup"), "cgroup", problem);
    } else {
        owners.insert(cgroup.clone(), name.clone());
    }
    section.finish();
    Some(Agent {
        name,
        cgroup,
        issuer: issuer??,
        token_file: token_file?,
        subject,
        run_as: run_as.unwrap_or_else(|| "nobody".to_owned()),
    })
}

/// The outer error: no such identity. The inner `None`: it exists, and its own errors are reported there.
fn find_issuer(value: &DeValue<'_>, issuers: &Issuers) -> Result<Option<Arc<Issuer>>, Problem> {
    let name = values::text(value)?;
    issuers.get(name).cloned().ok_or_else(|| {
        let known: Vec<&String> = issuers.keys().collect();
        let hint = match known.is_empty() {
            true => format!("add a section [identity.{name}]"),
            false => values::suggest(name, &known),
        };
        Problem::new(format!("names the identity {name:?}, which does not exist")).hint(hint)
    })
}

/// What useradd(8) accepts, so that the name is safe on a command line; whether the user exists is the host's
/// to say.
fn user_name(value: &DeValue<'_>) -> Result<String, Problem> {
    let name = values::text(value)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match name.len() <= 32 && name.chars().all(fits) && !name.starts_with('-') {
        true => Ok(name.to_owned()),
        false => Err(Problem::new(format!("must be a user's name, not {name:?}"))),
    }
}

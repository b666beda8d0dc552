//! Agents: one cgroup subtree each, and the identity its processes must prove.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use toml::de::DeValue;

use super::errors::Problem;
use super::gateway::Kernel;
use super::identity::{Issuer, Issuers};
use super::section::{At, Section};
use super::target::Target;
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
    /// What the agent believes is its PostgreSQL password, for clients that insist on SCRAM.
    pub postgres_password_file: Option<PathBuf>,
    /// The targets it may reach, by name; all of them if absent.
    pub targets: Option<BTreeSet<String>>,
}

impl Agent {
    /// Whether the configuration lets this agent reach the target at all; policies decide the rest.
    pub fn may_reach(&self, target: &str) -> bool {
        self.targets
            .as_ref()
            .is_none_or(|targets| targets.contains(target))
    }
}

/// What an agent's section refers to.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) gateway_user: &'a str,
    pub(super) issuers: &'a Issuers,
    /// `None` when a target could not be read, which its own errors explain.
    pub(super) targets: Option<&'a BTreeMap<String, Arc<Target>>>,
    pub(super) root: Root<'a>,
}

/// All agents, or `None` if one of them could not be read.
pub(super) fn read_all(
    sections: Vec<(String, Section<'_>)>,
    surroundings: &Surroundings<'_>,
) -> Option<BTreeMap<String, Arc<Agent>>> {
    let mut owners = BTreeMap::new();
    let agents: Vec<_> = sections
        .into_iter()
        .map(|(name, section)| read(name, section, surroundings, &mut owners))
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
    surroundings: &Surroundings<'_>,
    owners: &mut BTreeMap<String, String>,
) -> Option<Agent> {
    let issuer = section.require("identity", |value| find_issuer(value, surroundings.issuers));
    let token_file = section.require("token_file", |value| surroundings.root.path(value));
    let cgroup = section.take("cgroup", values::cgroup);
    let subject = section.take("subject", values::owned_text);
    let run_as = section.take("run_as", values::user);
    let postgres_password_file = section.take("postgres_password_file", |value| {
        surroundings.root.path(value)
    });
    let targets = read_targets(&mut section, surroundings);

    let below = cgroup.unwrap_or_else(|| name.clone());
    let cgroup = format!("{}/{below}", surroundings.kernel.agents_cgroup);
    if let Some(owner) = owners.get(&cgroup) {
        let problem = Problem::new(format!(
            "{below:?} is already the cgroup of agent {owner:?}"
        ))
        .hint("a process is known by its cgroup; give each agent its own, nested ones are fine");
        section.refuse(section.offset_of("cgroup"), "cgroup", problem);
    } else {
        owners.insert(cgroup.clone(), name.clone());
    }
    let run_as = run_as.unwrap_or_else(|| "nobody".to_owned());
    if run_as == surroundings.gateway_user {
        let problem = Problem::new(format!("{run_as:?} is the gateway's own user"))
            .hint("an agent with the gateway's user id could stop it; give each a user of its own");
        section.refuse(section.offset_of("run_as"), "run_as", problem);
    }
    section.finish();
    Some(Agent {
        name,
        cgroup,
        issuer: issuer??,
        token_file: token_file?,
        subject,
        run_as,
        postgres_password_file,
        targets,
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

fn read_targets(
    section: &mut Section<'_>,
    surroundings: &Surroundings<'_>,
) -> Option<BTreeSet<String>> {
    let names: Vec<At<String>> = section.list("targets", values::owned_text)?;
    for At { value, offset } in &names {
        if let Some(known) = surroundings.targets
            && !known.contains_key(value)
        {
            let known: Vec<&String> = known.keys().collect();
            let problem = Problem::new(format!("names the target {value:?}, which does not exist"))
                .hint(values::suggest(value, &known));
            section.refuse(*offset, "targets", problem);
        }
    }
    Some(names.into_iter().map(|entry| entry.value).collect())
}

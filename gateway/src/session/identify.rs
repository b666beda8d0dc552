//! Identify: the agent of the cgroup, the token it must hold, the process that connected, the target.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpStream;

use super::accept::Accepted;
use super::watch::{self, within};
use crate::audit::event::{SessionId, Who};
use crate::broker;
use crate::config::{Agent, Target};
use crate::identity::cgroup::AgentTree;
use crate::identity::token::{self, Keyring};
use crate::intercept::Flow;
use crate::intercept::dns::{Dialled, Dns};
use crate::policy::{self, Denial, Principal};

/// A connection whose agent has proven who it is, and the target it wants.
#[derive(Debug)]
pub struct Identified {
    accepted: Accepted,
    who: Who,
    principal: Principal,
    target: Arc<Target>,
    host: Option<String>,
}

impl Identified {
    pub fn accepted(&self) -> &Accepted {
        &self.accepted
    }

    pub fn who(&self) -> &Who {
        &self.who
    }

    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The name that the agent connected to, where it was given the address for a name.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    pub fn into_socket(self) -> TcpStream {
        self.accepted.into_socket()
    }
}

/// A connection that gets no session, and why.
#[derive(Debug)]
pub struct Refused {
    pub socket: TcpStream,
    pub session: SessionId,
    pub who: Who,
    /// Known when the destination is a target: the refusal can be said in its protocol.
    pub target: Option<Arc<Target>>,
    /// What the agent dialled.
    pub original: SocketAddr,
    pub denial: Denial,
}

/// Everything needed to tell who somebody is.
#[derive(Debug)]
pub struct Identities {
    tree: Arc<AgentTree>,
    keyrings: HashMap<String, Keyring>,
    dns: Arc<Dns>,
    broker: Arc<broker::Client>,
}

impl Identities {
    /// `keyrings` by issuer name.
    pub fn new(
        tree: Arc<AgentTree>,
        keyrings: HashMap<String, Keyring>,
        dns: Arc<Dns>,
        broker: Arc<broker::Client>,
    ) -> Self {
        Self {
            tree,
            keyrings,
            dns,
            broker,
        }
    }

    /// Which target an address means, and where the gateway dials for it.
    pub fn dns(&self) -> &Arc<Dns> {
        &self.dns
    }
}

/// Proves who connected and finds what they want.
///
/// # Errors
/// The connection with the reason when it may have no session. Identity comes first: a stranger is not
/// told which targets exist.
pub async fn identify(
    accepted: Accepted,
    identities: &Arc<Identities>,
) -> Result<Identified, Box<Refused>> {
    let flow = accepted.flow().clone();
    let shared = Arc::clone(identities);
    // Token files, key sets and executables are read from disk: not on the session threads.
    let looked_up = tokio::task::spawn_blocking(move || look_up(&flow, &shared));
    let looked_up = within(watch::IDENTIFY, "identification", async {
        looked_up.await.map_err(std::io::Error::other)
    });
    let mut found = looked_up.await.unwrap_or_else(|error| {
        tracing::error!(%error, "identification failed");
        Found::refused(denial(
            "identity:failed",
            "the gateway could not establish who is connecting",
            "Identification did not come to an end.",
            "Ask the operator to look at the gateway's log.",
        ))
    });
    found.who.client = accepted.peer().to_string();
    let dialled = accepted.flow().original;
    let speaker = identities.dns.speaker_of(dialled);
    found.who.target = speaker.as_ref().map(|target| target.name.clone());
    let refusal = match found.proven {
        Ok((agent, principal)) => match reachable(&identities.dns, &agent, dialled) {
            Ok((target, host)) => {
                found.who.target = Some(target.name.clone());
                return Ok(Identified {
                    accepted,
                    who: found.who,
                    principal,
                    target,
                    host,
                });
            }
            Err(denial) => denial,
        },
        Err(denial) => denial,
    };
    Err(Box::new(Refused {
        session: accepted.session(),
        original: dialled,
        socket: accepted.into_socket(),
        who: found.who,
        target: speaker,
        denial: refusal,
    }))
}

/// Refuses a connection for want of a free session, before anything is looked up.
pub fn refuse_full(accepted: Accepted, identities: &Identities) -> Box<Refused> {
    let target = identities.dns.speaker_of(accepted.flow().original);
    Box::new(Refused {
        session: accepted.session(),
        original: accepted.flow().original,
        who: Who {
            client: accepted.peer().to_string(),
            target: target.as_ref().map(|target| target.name.clone()),
            ..Who::default()
        },
        target,
        denial: denial(
            "sessions:full",
            "all sessions of the gateway are in use",
            "Rule sessions:full: gateway.max_sessions is reached.",
            "Close a session, or try again later.",
        ),
        socket: accepted.into_socket(),
    })
}

/// What could be established: as much as there is of it is evidence even when it is not enough.
struct Found {
    who: Who,
    proven: Result<(Arc<Agent>, Principal), Denial>,
}

impl Found {
    fn refused(denial: Denial) -> Self {
        Self {
            who: Who::default(),
            proven: Err(denial),
        }
    }
}

fn look_up(flow: &Flow, identities: &Identities) -> Found {
    let located = match identities.tree.locate(flow.cgroup_id) {
        Ok(located) => located,
        Err(error) => {
            return Found::refused(denial(
                "agent:unknown",
                "this process belongs to no registered agent",
                &format!("Its cgroup cannot be found: {error}."),
                "Start the command with `sluice exec --agent NAME -- COMMAND`.",
            ));
        }
    };
    let process = identities.broker.inspect(flow, &located.cgroup_path);
    let mut who = Who {
        process: serde_json::to_value(&process).ok(),
        ..Who::default()
    };
    let Some(agent) = located.agent else {
        return Found {
            who,
            proven: Err(denial(
                "agent:unknown",
                "this process belongs to no registered agent",
                &format!("Its cgroup is {}.", located.cgroup_path),
                "Register the agent in sluice.toml, or start the command with `sluice exec --agent NAME`.",
            )),
        };
    };
    who.agent = Some(agent.name.clone());
    let principal = prove(&agent, process.facts(), identities);
    if let Ok(principal) = &principal {
        who.subject = Some(principal.subject.clone());
        who.groups.clone_from(&principal.groups);
    }
    let proven = principal.map(|principal| (agent, principal));
    Found { who, proven }
}

/// The agent's token, read and verified now: an expired one ends nothing that runs, but starts nothing.
fn prove(
    agent: &Agent,
    process: policy::Process,
    identities: &Identities,
) -> Result<Principal, Denial> {
    let refuse = |error: token::TokenError| {
        denial(
            error.reason(),
            &format!("agent \"{}\" has no valid token", agent.name),
            &error.to_string(),
            "Ask the operator to renew the agent's token; nothing in the command needs to change.",
        )
    };
    let keyring = identities
        .keyrings
        .get(&agent.issuer.name)
        .ok_or_else(|| unknown_issuer(agent))?;
    let claims = token::authenticate(agent, keyring, SystemTime::now()).map_err(refuse)?;
    Ok(Principal {
        agent: agent.name.clone(),
        subject: claims.subject,
        groups: claims.groups,
        process,
    })
}

fn unknown_issuer(agent: &Agent) -> Denial {
    denial(
        "identity:unknown-issuer",
        &format!("agent \"{}\" has no identity configured", agent.name),
        "The configuration names no issuer for it.",
        "Ask the operator to run `sluice check`.",
    )
}

/// The target that the agent meant by an address, if it may reach it, and the name it came through.
fn reachable(
    dns: &Dns,
    agent: &Agent,
    dialled: SocketAddr,
) -> Result<(Arc<Target>, Option<String>), Denial> {
    match dns.target_of(agent, dialled) {
        Dialled::Target { target, host } if agent.may_reach(&target.name) => Ok((target, host)),
        Dialled::Target { target, .. } => Err(denial(
            "target:not-for-agent",
            &format!(
                "target \"{}\" is not open to agent \"{}\"",
                target.name, agent.name
            ),
            "Rule target:not-for-agent: the agent's list of targets does not have it.",
            "Ask the operator to add it to the agent's targets in sluice.toml.",
        )),
        Dialled::Foreign => Err(denial(
            "dns:foreign-address",
            &format!("{dialled} is an address that was made for another agent"),
            "Rule dns:foreign-address: the gateway's resolver gives every agent addresses of its own.",
            "Connect by name, and let this process resolve it.",
        )),
        Dialled::Ambiguous(targets) => Err(denial(
            "target:ambiguous",
            &format!("{dialled} is an address of several targets"),
            &format!(
                "Rule target:ambiguous: names of {} lead to it, and nothing says which one is meant.",
                targets.into_iter().collect::<Vec<_>>().join(", ")
            ),
            "Ask the operator to set dns.mode = \"synthetic\", or to give the targets separate ports.",
        )),
        Dialled::Unknown => Err(denial(
            "target:unknown",
            &format!("{dialled} is not a target of this gateway"),
            "No target in the configuration answers to this address.",
            "Connect to a registered target by its name, or ask the operator to register this one.",
        )),
    }
}

fn denial(rule: &str, message: &str, detail: &str, hint: &str) -> Denial {
    Denial {
        rule: rule.to_owned(),
        message: message.to_owned(),
        detail: detail.to_owned(),
        hint: hint.to_owned(),
    }
}

//! What is written down of a question. An answer is given only when its leaf is in the log.

use std::net::SocketAddr;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::Dns;
use super::limit::{Gathered, Limiter, Shared};
use super::query::Question;
use super::reply::{Reply, rcode_name};
use crate::audit::event::{Event, Stage, Who};
use crate::identity::cgroup::Located;
use crate::intercept::Flow;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Who asked whom, how.
#[derive(Debug, Clone, PartialEq)]
pub struct Asker {
    pub who: Who,
    pub resolver: SocketAddr,
    pub transport: Transport,
}

impl Asker {
    /// Only what the kernel noted: reading and hashing the program for each question would cost more than it tells.
    pub fn new(
        flow: &Flow,
        located: Option<&Located>,
        client: SocketAddr,
        transport: Transport,
    ) -> Self {
        let process = serde_json::json!({
            "tgid": flow.tgid,
            "pid": flow.pid,
            "uid": flow.uid,
            "gid": flow.gid,
            "comm": flow.comm,
            "cgroup": located.map(|located| &located.cgroup_path),
        });
        let agent = located.and_then(|located| located.agent.as_ref());
        Self {
            who: Who {
                agent: agent.map(|agent| agent.name.clone()),
                process: Some(process),
                client: client.to_string(),
                ..Who::default()
            },
            resolver: flow.original,
            transport,
        }
    }
}

/// One question over the limit, for the line it shares with others.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub asker: Asker,
    pub name: String,
    pub kind: String,
}

impl Dns {
    /// Writes the leaf of one question; `false` when it could not be written.
    pub(super) fn note(
        &self,
        asker: &Asker,
        question: &Question,
        reply: &Reply,
        rule: Option<&str>,
    ) -> bool {
        self.write(&Event::DnsQuery {
            who: asker.who.clone(),
            resolver: asker.resolver.to_string(),
            transport: asker.transport.name().to_owned(),
            name: question.text(),
            qtype: kind_name(question.kind),
            rcode: rcode_name(reply.rcode),
            answers: reply.addresses.iter().map(ToString::to_string).collect(),
            rule: rule.map(str::to_owned),
            count: 1,
        })
    }

    /// Bytes that are no question.
    pub(super) fn note_malformed(&self, asker: &Asker, rcode: Option<ResponseCode>) -> bool {
        self.write(&Event::DnsQuery {
            who: asker.who.clone(),
            resolver: asker.resolver.to_string(),
            transport: asker.transport.name().to_owned(),
            name: String::new(),
            qtype: String::new(),
            rcode: rcode.map_or_else(String::new, rcode_name),
            answers: Vec::new(),
            rule: Some("dns:malformed".to_owned()),
            count: 1,
        })
    }

    /// Writes the line that questions over the limit share, or puts it back.
    pub(super) fn note_over(&self, shared: Shared<Sample>) {
        let Sample { asker, name, kind } = &shared.sample;
        let written = self.write(&Event::DnsQuery {
            who: asker.who.clone(),
            resolver: asker.resolver.to_string(),
            transport: asker.transport.name().to_owned(),
            name: name.clone(),
            qtype: kind.clone(),
            rcode: rcode_name(ResponseCode::Refused),
            answers: Vec::new(),
            rule: Some("dns:rate".to_owned()),
            count: shared.count,
        });
        if !written {
            let agent = asker.who.agent.clone();
            self.limiter()
                .put_back(Instant::now(), agent.as_deref(), shared);
        }
    }

    /// A datagram that no agent sent.
    pub(super) fn note_stray(&self, source: SocketAddr) {
        let stray = self.strays().add(Instant::now(), || source);
        if let Some(shared) = stray {
            self.write_strays(shared);
        }
    }

    fn write_strays(&self, shared: Shared<SocketAddr>) {
        let written = self.write(&Event::Deny {
            session: None,
            who: Who {
                client: shared.sample.to_string(),
                ..Who::default()
            },
            stage: Stage::Accept,
            stmt: None,
            statement: None,
            rule: "flow:none".to_owned(),
            reason: match shared.count {
                1 => "a datagram did not come through the kernel programs".to_owned(),
                n => format!("{n} datagrams did not come through the kernel programs"),
            },
            hint: None,
        });
        if !written {
            self.strays().put_back(shared);
        }
    }

    /// Writes the shared lines that have waited for a second.
    pub(super) fn write_due(&self) {
        let now = Instant::now();
        let due = self.limiter().due(now);
        due.into_iter()
            .for_each(|(_, shared)| self.note_over(shared));
        let strays = self.strays().due(now);
        strays
            .into_iter()
            .for_each(|shared| self.write_strays(shared));
    }

    /// Writes what still waits to be written; the gateway calls it before its last leaf.
    pub fn flush(&self) {
        let now = Instant::now();
        let rest = self.limiter().take(now);
        rest.into_iter()
            .for_each(|(_, shared)| self.note_over(shared));
        let strays = self.strays().take(now);
        strays
            .into_iter()
            .for_each(|shared| self.write_strays(shared));
    }

    fn write(&self, event: &Event) -> bool {
        match self.log.append(event) {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(%error, "a question could not be written down, so it is not answered");
                false
            }
        }
    }

    pub(super) fn limiter(&self) -> MutexGuard<'_, Limiter<Sample>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strays(&self) -> MutexGuard<'_, Gathered<SocketAddr>> {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn kind_name(kind: RecordType) -> String {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        known => known.to_string(),
    }
}

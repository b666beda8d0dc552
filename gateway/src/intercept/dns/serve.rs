//! The resolver's sockets: datagrams and connections that agents sent to port 53.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::evidence::{Asker, Sample, Transport, kind_name};
use super::limit::Admission;
use super::query::{MAX_QUERY, Malformed, Question, parse};
use super::reply::{Reply, refusal};
use super::ruling::{Family, Ruling, rule};
use super::{Dns, DnsError};
use crate::config::Agent;
use crate::identity::cgroup::Located;
use crate::intercept::{DatagramTable, Flow, InterceptError};

/// RFC 7766 §6.2.3 leaves it to the server; clients that have no more questions close by themselves.
const IDLE: Duration = Duration::from_secs(10);

/// A client that needs more asks again.
const MAX_QUERIES: usize = 100;

/// Connections at a time; more are closed at once. Clients use one for each truncated answer, and none is here.
pub(super) const MAX_CONNECTIONS: usize = 256;

/// How often lines that wait are looked at.
const TICK: Duration = Duration::from_millis(250);

/// Who sent a datagram: the kernel's table in a gateway, something simpler in tests.
pub trait Origins: Send + Sync + 'static {
    fn flow_of(
        &self,
        netns_cookie: u64,
        source: SocketAddr,
    ) -> Result<Option<Flow>, InterceptError>;
}

impl Origins for DatagramTable {
    fn flow_of(
        &self,
        netns_cookie: u64,
        source: SocketAddr,
    ) -> Result<Option<Flow>, InterceptError> {
        DatagramTable::flow_of(self, netns_cookie, source)
    }
}

impl Dns {
    /// Answers datagrams, for as long as it is polled. `netns_cookie`: of the namespace the socket is in.
    pub async fn serve_udp(
        self: Arc<Self>,
        socket: UdpSocket,
        netns_cookie: u64,
        datagrams: Arc<impl Origins>,
    ) {
        let socket = Arc::new(socket);
        // Whatever ends this, the exact counts are written.
        let _flushed = FlushAtEnd(Arc::clone(&self));
        let mut tick = tokio::time::interval(TICK);
        // One more than a query may have: a longer one shows as too long instead of as another one.
        let mut buffer = vec![0; MAX_QUERY + 1];
        loop {
            let (length, client) = tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok(received) => received,
                    Err(error) => {
                        tracing::error!(%error, "receiving agents' questions failed");
                        tokio::time::sleep(TICK).await;
                        continue;
                    }
                },
                _ = tick.tick() => {
                    self.write_due();
                    continue;
                }
            };
            let flow = match datagrams.flow_of(netns_cookie, client) {
                Ok(Some(flow)) => flow,
                Ok(None) => {
                    self.note_stray(client);
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, %client, "a datagram's flow cannot be read");
                    self.note_stray(client);
                    continue;
                }
            };
            let message = buffer.iter().take(length).copied().collect();
            self.answer_datagram(message, flow, client, &socket).await;
        }
    }

    /// Real addresses may have to be waited for; others are answered meanwhile.
    async fn answer_datagram(
        self: &Arc<Self>,
        message: Vec<u8>,
        flow: Flow,
        client: SocketAddr,
        socket: &Arc<UdpSocket>,
    ) {
        let Ok(place) = Arc::clone(&self.waiting).acquire_owned().await else {
            return;
        };
        let (dns, socket) = (Arc::clone(self), Arc::clone(socket));
        tokio::spawn(async move {
            let answer = dns.answer(message, flow, client, Transport::Udp).await;
            if let Some(answer) = answer
                && let Err(error) = socket.send_to(&answer, client).await
            {
                tracing::debug!(%error, %client, "an answer could not be sent");
            }
            drop(place);
        });
    }

    /// Answers the questions of one connection, in order.
    pub async fn serve_tcp(self: Arc<Self>, mut stream: TcpStream, flow: Flow) {
        let Ok(_place) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!("too many connections to the resolver at once");
            return;
        };
        if let Err(error) = self.converse(&mut stream, &flow).await {
            tracing::debug!(%error, "a connection to the resolver ended");
        }
    }

    async fn converse(self: &Arc<Self>, stream: &mut TcpStream, flow: &Flow) -> io::Result<()> {
        let client = stream.peer_addr()?;
        for _ in 0..MAX_QUERIES {
            let Some(message) = timeout(IDLE, read_framed(stream)).await?? else {
                return Ok(());
            };
            let cut_off = message.len() > MAX_QUERY;
            let answer = self.answer(message, flow.clone(), client, Transport::Tcp);
            // What cannot be answered ends the conversation: the client would wait.
            let Some(answer) = answer.await else {
                return Ok(());
            };
            timeout(IDLE, write_framed(stream, &answer)).await??;
            if cut_off {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The answer to one message, and its leaf. `None`: nothing is said.
    async fn answer(
        self: &Arc<Self>,
        message: Vec<u8>,
        flow: Flow,
        client: SocketAddr,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let located = self.locate(flow.cgroup_id).await;
        let agent = located.as_ref().and_then(|located| located.agent.clone());
        let asker = Asker::new(&flow, located.as_ref(), client, transport);
        let parsed = parse(&message);
        if !self.admit(&asker, &parsed) {
            let (id, op_code) = match &parsed {
                Ok(question) => {
                    return Reply::code(ResponseCode::Refused).encode(question, 0, usize::MAX);
                }
                Err(Malformed::Refusable { id, op_code, .. }) => (*id, *op_code),
                Err(Malformed::Unanswerable(_)) => return None,
            };
            return refusal(id, op_code, ResponseCode::Refused);
        }
        match parsed {
            Ok(question) => {
                self.answer_question(&asker, agent.as_deref(), &question)
                    .await
            }
            Err(Malformed::Unanswerable(_)) => {
                self.note_malformed(&asker, None);
                None
            }
            Err(Malformed::Refusable {
                id, op_code, rcode, ..
            }) => {
                let noted = self.note_malformed(&asker, Some(rcode));
                noted.then(|| refusal(id, op_code, rcode)).flatten()
            }
        }
    }

    /// Whether a message is within its agent's limit. What is not is counted.
    fn admit(&self, asker: &Asker, parsed: &Result<Question, Malformed>) -> bool {
        let sample = || {
            let (name, kind) = match parsed {
                Ok(question) => (question.text(), kind_name(question.kind)),
                Err(_) => (String::new(), String::new()),
            };
            Sample {
                asker: asker.clone(),
                name,
                kind,
            }
        };
        let agent = asker.who.agent.as_deref();
        let admission = self.limiter().admit(Instant::now(), agent, sample);
        match admission {
            Admission::Admitted => true,
            Admission::Over(line) => {
                line.into_iter().for_each(|shared| self.note_over(shared));
                false
            }
        }
    }

    async fn answer_question(
        &self,
        asker: &Asker,
        agent: Option<&Agent>,
        question: &Question,
    ) -> Option<Vec<u8>> {
        let (reply, rule) = match (rule(&self.names, agent, self.max_label, question), agent) {
            (Ruling::Addresses { name, family }, Some(agent)) => {
                match self.addresses(agent, &name, family).await {
                    Ok(reply) => (reply, None),
                    Err(error) => {
                        tracing::warn!(%error, agent = agent.name, "a name has no answer");
                        (Reply::code(ResponseCode::ServFail), Some("dns:unresolved"))
                    }
                }
            }
            (Ruling::Refused { rcode, rule }, _) => (Reply::code(rcode), Some(rule)),
            (Ruling::Nothing | Ruling::Addresses { .. }, _) => (Reply::nothing(), None),
        };
        let reply = match self.note(asker, question, &reply, rule) {
            true => reply,
            false => Reply::code(ResponseCode::ServFail),
        };
        let limit = match asker.transport {
            Transport::Udp => question.udp_limit(),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let ttl = u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX);
        reply.encode(question, ttl, limit)
    }

    /// What the agent is told a name's addresses are.
    async fn addresses(
        &self,
        agent: &Agent,
        name: &str,
        family: Family,
    ) -> Result<Reply, DnsError> {
        if let Some(synthetic) = &self.synthetic {
            let pair = synthetic.of(&agent.name, name);
            let address = pair.map(|pair| match family {
                Family::V4 => pair.v4.into(),
                Family::V6 => pair.v6.into(),
            });
            return Ok(Reply::addresses(address.into_iter().collect()));
        }
        let pinned = self.learn(name).await?;
        let reachable: Vec<_> = self.names.reachable(agent, name).collect();
        let told = pinned.addresses.into_iter().filter(|address| {
            address.is_ipv6() == (family == Family::V6)
                && reachable
                    .iter()
                    .any(|(_, target)| super::may_lead(target, *address))
        });
        Ok(Reply::addresses(told.collect()))
    }

    /// Looking for a cgroup that was not seen before walks directories: not on the sessions' threads.
    async fn locate(&self, cgroup_id: u64) -> Option<Located> {
        let tree = Arc::clone(&self.tree);
        let located = tokio::task::spawn_blocking(move || tree.locate(cgroup_id)).await;
        match located {
            Ok(Ok(located)) => Some(located),
            Ok(Err(error)) => {
                tracing::warn!(%error, "a question from an unknown cgroup");
                None
            }
            Err(error) => {
                tracing::error!(%error, "looking for a cgroup failed");
                None
            }
        }
    }
}

struct FlushAtEnd(Arc<Dns>);

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// One message after its length in two bytes (RFC 1035 §4.2.2). `None`: the client has closed.
async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    // Of a message that is too long no more is read than shows that it is.
    let mut message = vec![0; length.min(MAX_QUERY + 1)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

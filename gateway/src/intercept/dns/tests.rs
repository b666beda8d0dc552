//! The resolver as agents meet it: real sockets on loopback, a table in place of the kernel's.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use super::pins::{Found, Lookup, LookupError};
use super::query::{Edns, Question};
use super::*;
use crate::audit::event::Event;
use crate::config;
use crate::intercept::{Flow, FlowKind, InterceptError};
use crate::store::log::LogReader;

// -- building blocks ---------------------------------------------------------------------------------------

/// A configuration with these agents (and their targets, all if `None`), targets and further lines.
fn configuration(
    agents: &[(&str, Option<&[&str]>)],
    targets: &[(&str, &[&str])],
    more: &str,
) -> Config {
    let mut text = format!(
        "{more}\n[identity.corp]\nissuer = \"https://i.example\"\naudience = \"a\"\njwks = \"/j\"\n"
    );
    for (name, reachable) in agents {
        let _ = write!(
            text,
            "[agents.{name}]\nidentity = \"corp\"\ntoken_file = \"/t\"\n"
        );
        if let Some(reachable) = reachable {
            let _ = writeln!(text, "targets = {reachable:?}");
        }
    }
    for (name, addresses) in targets {
        let local = name.starts_with("local");
        let _ = write!(
            text,
            "[targets.{name}]\nprotocol = \"postgres\"\naddresses = {addresses:?}\nallow_local = {local}\n\
             credential = {{ user = \"u\", password_file = \"/p\" }}\n"
        );
    }
    config::parse(&text, Path::new("sluice.toml")).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn agent(name: &str, targets: Option<&[&str]>) -> Agent {
    let listed: Vec<(&str, &[&str])> = match targets {
        Some(targets) => targets.iter().map(|name| (*name, PLACEHOLDER)).collect(),
        None => Vec::new(),
    };
    let mut listed = listed;
    for (port, (_, addresses)) in listed.iter_mut().enumerate() {
        *addresses = PLACEHOLDERS[port];
    }
    let config = configuration(&[(name, targets)], &listed, "");
    Agent::clone(&config.agents[name])
}

const PLACEHOLDER: &[&str] = &[];
const PLACEHOLDERS: [&[&str]; 3] = [&["a.example:1"], &["a.example:2"], &["a.example:3"]];

pub(super) fn target(name: &str, addresses: &[&str]) -> Arc<Target> {
    let config = configuration(&[], &[(name, addresses)], "");
    Arc::clone(&config.targets[name])
}

pub(super) fn question(name: &str, kind: RecordType) -> Question {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    Question {
        id: 7,
        recursion_desired: true,
        checking_disabled: false,
        name,
        kind,
        class: DNSClass::IN,
        edns: Some(Edns {
            version: 0,
            payload: 1232,
        }),
    }
}

/// A resolver that answers what it is told to.
#[derive(Debug, Clone, Default)]
pub(super) struct Scripted(Arc<Mutex<(HashMap<String, Found>, usize)>>);

impl Scripted {
    pub(super) fn answer(&self, name: &str, addresses: &[&str], ttl: u64) {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let found = Found {
            addresses,
            ttl: Duration::from_secs(ttl),
        };
        self.0.lock().unwrap().0.insert(name.to_owned(), found);
    }

    /// How many lookups there were.
    pub(super) fn asked(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl Lookup for Scripted {
    fn lookup<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Found, LookupError>> + Send + 'a>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut script = self.0.lock().unwrap();
            script.1 += 1;
            let found = script.0.get(name).cloned();
            found.ok_or_else(|| pins::error(name, "no such name"))
        })
    }
}

/// Senders by their port.
#[derive(Debug, Default)]
struct Table(Mutex<HashMap<SocketAddr, Flow>>);

impl Origins for Table {
    fn flow_of(&self, cookie: u64, source: SocketAddr) -> Result<Option<Flow>, InterceptError> {
        let flow = self.0.lock().unwrap().get(&source).cloned();
        Ok(flow.filter(|flow| flow.netns_cookie == cookie))
    }
}

/// The resolver with its sockets, and directories in place of cgroups.
struct Fixture {
    dns: Arc<Dns>,
    script: Scripted,
    config: Config,
    table: Arc<Table>,
    udp: SocketAddr,
    tcp: SocketAddr,
    serving: Vec<JoinHandle<()>>,
    scratch: tempfile::TempDir,
}

const COOKIE: u64 = 42;

impl Fixture {
    async fn new(config: Config) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        for agent in config.agents.values() {
            std::fs::create_dir_all(scratch.path().join(&agent.cgroup)).unwrap();
        }
        std::fs::create_dir_all(scratch.path().join("agents.slice/nobody")).unwrap();
        let agents = config.agents.values().cloned();
        let tree = Arc::new(AgentTree::new(scratch.path(), "agents.slice", agents));
        let log = Log::open(&scratch.path().join("log"), std::time::SystemTime::now()).unwrap();
        let script = Scripted::default();
        let lookup = Box::new(script.clone());
        let dns = Dns::with_lookup(&config, tree, Arc::new(log), lookup).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let udp = socket.local_addr().unwrap();
        let table = Arc::new(Table::default());
        let serve = Arc::clone(&dns).serve_udp(socket, COOKIE, Arc::clone(&table));
        let mut fixture = Self {
            serving: vec![tokio::spawn(serve)],
            dns,
            script,
            config,
            table,
            udp,
            tcp: udp,
            scratch,
        };
        fixture.listen().await;
        fixture
    }

    /// Connections all come from the first agent.
    async fn listen(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.tcp = listener.local_addr().unwrap();
        let first = self.config.agents.keys().next().unwrap();
        let (dns, flow) = (Arc::clone(&self.dns), self.flow(first));
        self.serving.push(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&dns).serve_tcp(stream, flow.clone()));
            }
        }));
    }

    fn flow(&self, cgroup: &str) -> Flow {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.scratch.path().join("agents.slice").join(cgroup);
        let cgroup_id = std::fs::metadata(path).map_or(u64::MAX, |metadata| metadata.ino());
        Flow {
            original: "9.9.9.9:53".parse().unwrap(),
            kind: FlowKind::Dns,
            cgroup_id,
            subtree: cgroup_id,
            netns_cookie: COOKIE,
            socket_cookie: 1,
            tgid: 100,
            pid: 100,
            uid: 65534,
            gid: 65534,
            comm: "dig".to_owned(),
            boot_ns: 1,
        }
    }

    /// A socket that the kernel programs know as one of the cgroup's.
    async fn socket_of(&self, cgroup: &str) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.udp).await.unwrap();
        let source = socket.local_addr().unwrap();
        let flow = self.flow(cgroup);
        self.table.0.lock().unwrap().insert(source, flow);
        socket
    }

    async fn ask(&self, cgroup: &str, name: &str, kind: RecordType) -> Message {
        let socket = self.socket_of(cgroup).await;
        exchange(&socket, &bytes(name, kind)).await.unwrap()
    }

    /// The code and the addresses.
    async fn asked(
        &self,
        cgroup: &str,
        name: &str,
        kind: RecordType,
    ) -> (ResponseCode, Vec<IpAddr>) {
        let answer = self.ask(cgroup, name, kind).await;
        (answer.response_code, ips(&answer))
    }

    fn events(&self) -> Vec<Event> {
        let mut reader = LogReader::open(&self.scratch.path().join("log")).unwrap();
        let mut events = vec![];
        while let Some(line) = reader.next_line().unwrap() {
            events.push(serde_json::from_slice(line).unwrap());
        }
        events
    }

    /// `agent name type rcode answers rule ×count` of every question in the log.
    fn leaves(&self) -> Vec<String> {
        let line = |event: Event| match event {
            Event::DnsQuery {
                who,
                resolver,
                transport,
                name,
                qtype,
                rcode,
                answers,
                rule,
                count,
            } => {
                assert_eq!(resolver, "9.9.9.9:53");
                let (agent, rule) = (who.agent.unwrap_or_default(), rule.unwrap_or_default());
                let answers = answers.len();
                Some(format!(
                    "{agent} {transport} {name} {qtype} {rcode} {answers} {rule} x{count}"
                ))
            }
            _ => None,
        };
        self.events().into_iter().filter_map(line).collect()
    }

    fn target_of(&self, agent: &str, dialled: &str) -> String {
        self.means(agent, dialled.parse().unwrap())
    }

    fn means(&self, agent: &str, dialled: SocketAddr) -> String {
        match self.dns.target_of(&self.config.agents[agent], dialled) {
            Dialled::Target { target, host } => {
                format!("{} as {}", target.name, host.unwrap_or_default())
            }
            Dialled::Foreign => "foreign".to_owned(),
            Dialled::Ambiguous(names) => format!("{names:?}"),
            Dialled::Unknown => "unknown".to_owned(),
        }
    }

    async fn dials(
        &self,
        target: &str,
        host: Option<&str>,
        dialled: SocketAddr,
    ) -> Result<Vec<String>, String> {
        let target = &self.config.targets[target];
        let dialled = self.dns.dial_addresses(target, host, dialled).await;
        let texts =
            |addresses: Vec<SocketAddr>| addresses.iter().map(SocketAddr::to_string).collect();
        dialled.map(texts).map_err(|error| error.to_string())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

fn ips(answer: &Message) -> Vec<IpAddr> {
    let ip = |data: &RData| match data {
        RData::A(a) => IpAddr::from(a.0),
        RData::AAAA(aaaa) => IpAddr::from(aaaa.0),
        other => panic!("{other}"),
    };
    answer
        .answers
        .iter()
        .map(|record| ip(&record.data))
        .collect()
}

fn bytes(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    let name = Name::from_str(name).unwrap();
    message.add_query(hickory_proto::op::Query::query(name, kind));
    message.metadata.recursion_desired = true;
    message.to_vec().unwrap()
}

async fn exchange(socket: &UdpSocket, query: &[u8]) -> Option<Message> {
    socket.send(query).await.unwrap();
    let mut buffer = [0; 65_535];
    let received = tokio::time::timeout(Duration::from_secs(3), socket.recv(&mut buffer));
    let length = received.await.ok()?.unwrap();
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

async fn framed(stream: &mut TcpStream, query: &[u8]) -> Option<Message> {
    let length = u16::try_from(query.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).await.ok()?;
    stream.write_all(query).await.ok()?;
    let length = stream.read_u16().await.ok()?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await.ok()?;
    Some(Message::from_vec(&answer).unwrap())
}

fn two_agents(more: &str) -> Config {
    configuration(
        &[
            ("bot", Some(&["shop", "stock"])),
            ("clerk", Some(&["stock"])),
        ],
        &[
            ("shop", &["db.internal:5432", "10.0.0.7:5432"]),
            ("stock", &["db.internal:5433", "stock.example:5432"]),
        ],
        more,
    )
}

// -- what agents see ---------------------------------------------------------------------------------------

#[tokio::test]
async fn names_have_an_address_of_their_own_for_each_agent() {
    let fixture = Fixture::new(two_agents("")).await;
    let (code, v4) = fixture.asked("bot", "db.internal.", RecordType::A).await;
    let (_, v6) = fixture.asked("bot", "DB.internal.", RecordType::AAAA).await;
    assert_eq!((code, v4.len(), v6.len()), (ResponseCode::NoError, 1, 1));
    assert!(v4[0].is_ipv4() && v6[0].is_ipv6());
    assert!(is_synthetic(v4[0]) && is_synthetic(v6[0]));
    let (_, again) = fixture.asked("bot", "db.internal.", RecordType::A).await;
    assert_eq!(again, v4);
    let (_, clerks) = fixture.asked("clerk", "db.internal.", RecordType::A).await;
    assert_ne!(clerks, v4);

    let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
    for address in [v4[0], v6[0]] {
        assert_eq!(
            fixture.means("bot", at(address, 5432)),
            "shop as db.internal"
        );
        assert_eq!(
            fixture.means("bot", at(address, 5433)),
            "stock as db.internal"
        );
        assert_eq!(fixture.means("bot", at(address, 5434)), "unknown");
        assert_eq!(fixture.means("clerk", at(address, 5432)), "foreign");
        let speaker = fixture.dns.speaker_of(at(address, 5432)).unwrap();
        assert_eq!(speaker.name, "shop");
    }
    // Known to the resolver, and for the pipeline to refuse: the agent may not reach it.
    assert_eq!(
        fixture.means("clerk", at(clerks[0], 5432)),
        "shop as db.internal"
    );
    assert_eq!(fixture.target_of("bot", "10.0.0.7:5432"), "shop as ");
    assert_eq!(fixture.target_of("bot", "10.0.0.7:5433"), "unknown");
    assert_eq!(fixture.target_of("bot", "10.0.0.8:5432"), "unknown");
    assert_eq!(fixture.target_of("bot", "198.18.77.77:5432"), "unknown");

    let destinations = fixture.dns.destinations().borrow().clone();
    for port in [5432, 5433] {
        assert!(destinations.contains(&at(v4[0], port)) && destinations.contains(&at(v6[0], port)));
    }
    assert!(destinations.contains(&at(clerks[0], 5433)));
    assert!(
        !destinations.contains(&at(clerks[0], 5432)),
        "not for the clerk"
    );
    assert!(destinations.contains(&"10.0.0.7:5432".parse().unwrap()));
    // bot: db.internal with two ports, stock.example; clerk: db.internal, stock.example; one literal.
    assert_eq!(destinations.len(), 2 * (2 + 1 + 1 + 1) + 1);
    assert_eq!(
        fixture.script.asked(),
        0,
        "nobody else hears of agents' questions"
    );
}

#[tokio::test]
async fn addresses_survive_a_restart() {
    let (before, after) = (
        Fixture::new(two_agents("")).await,
        Fixture::new(two_agents("")).await,
    );
    for agent in ["bot", "clerk"] {
        let asked = before.asked(agent, "db.internal.", RecordType::A).await;
        assert_eq!(
            asked,
            after.asked(agent, "db.internal.", RecordType::A).await
        );
    }
}

#[tokio::test]
async fn every_question_is_a_leaf() {
    let fixture = Fixture::new(two_agents("")).await;
    for (cgroup, name, kind, expected) in [
        ("bot", "db.internal.", RecordType::A, ResponseCode::NoError),
        (
            "bot",
            "db.internal.",
            RecordType::HTTPS,
            ResponseCode::NoError,
        ),
        ("bot", "internal.", RecordType::A, ResponseCode::NoError),
        (
            "bot",
            "db.internal.corp.example.",
            RecordType::A,
            ResponseCode::NXDomain,
        ),
        (
            "clerk",
            "stock.example.",
            RecordType::AAAA,
            ResponseCode::NoError,
        ),
        (
            "nobody",
            "db.internal.",
            RecordType::A,
            ResponseCode::Refused,
        ),
        ("gone", "db.internal.", RecordType::A, ResponseCode::Refused),
    ] {
        let (code, _) = fixture.asked(cgroup, name, kind).await;
        assert_eq!(code, expected, "{cgroup} {name} {kind}");
    }
    let expected = [
        "bot udp db.internal A NOERROR 1  x1",
        "bot udp db.internal HTTPS NOERROR 0  x1",
        "bot udp internal A NOERROR 0  x1",
        "bot udp db.internal.corp.example A NXDOMAIN 0 dns:unknown-name x1",
        "clerk udp stock.example AAAA NOERROR 1  x1",
        " udp db.internal A REFUSED 0 agent:unknown x1",
        " udp db.internal A REFUSED 0 agent:unknown x1",
    ];
    assert_eq!(fixture.leaves(), expected);
}

#[tokio::test]
async fn tunnels_are_refused() {
    let fixture = Fixture::new(two_agents("")).await;
    let label = "a".repeat(41);
    for kind in [RecordType::TXT, RecordType::A, RecordType::NULL] {
        let name = format!("{label}.evil.example.");
        let (code, addresses) = fixture.asked("bot", &name, kind).await;
        assert_eq!((code, addresses), (ResponseCode::Refused, vec![]));
    }
    assert!(
        fixture
            .leaves()
            .iter()
            .all(|leaf| leaf.ends_with("dns:label-too-long x1"))
    );
    assert_eq!(fixture.script.asked(), 0);
}

#[tokio::test]
async fn hostile_datagrams() {
    let fixture = Fixture::new(two_agents("")).await;
    let socket = fixture.socket_of("bot").await;
    let good = bytes("db.internal.", RecordType::A);
    let mut two_questions = good.clone();
    two_questions[5] = 2;
    let answer = exchange(&socket, &two_questions).await.unwrap();
    assert_eq!(answer.response_code, ResponseCode::FormErr);
    let mut update = good.clone();
    update[2] = 0x28;
    let answer = exchange(&socket, &update).await.unwrap();
    assert_eq!(answer.response_code, ResponseCode::NotImp);
    let answer = exchange(&socket, &[0; 5000]).await.unwrap();
    assert_eq!(answer.response_code, ResponseCode::FormErr);
    // Answers to answers would go back and forth for ever.
    let mut response = good.clone();
    response[2] = 0x81;
    for silent in [&[][..], &[1, 2, 3], &response] {
        socket.send(silent).await.unwrap();
    }
    assert_eq!(exchange(&socket, &good).await.unwrap().answers.len(), 1);
    let leaves = fixture.leaves();
    let malformed = leaves.iter().filter(|leaf| leaf.contains("dns:malformed"));
    assert_eq!(malformed.count(), 6, "{leaves:#?}");
}

#[tokio::test]
async fn a_datagram_that_no_agent_sent_is_not_answered() {
    let fixture = Fixture::new(two_agents("")).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.connect(fixture.udp).await.unwrap();
    for _ in 0..20 {
        stranger
            .send(&bytes("db.internal.", RecordType::A))
            .await
            .unwrap();
    }
    // The same port in another network namespace is somebody else.
    let other = fixture.socket_of("bot").await;
    let source = other.local_addr().unwrap();
    fixture
        .table
        .0
        .lock()
        .unwrap()
        .get_mut(&source)
        .unwrap()
        .netns_cookie = 1;
    other
        .send(&bytes("db.internal.", RecordType::A))
        .await
        .unwrap();
    let mut nothing = [0; 512];
    let heard = tokio::time::timeout(Duration::from_millis(300), stranger.recv(&mut nothing));
    assert!(heard.await.is_err());
    fixture.dns.flush();
    let reasons: Vec<String> = fixture
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Deny { rule, reason, .. } if rule == "flow:none" => Some(reason),
            _ => None,
        })
        .collect();
    assert_eq!(
        reasons,
        [
            "a datagram did not come through the kernel programs",
            "20 datagrams did not come through the kernel programs"
        ]
    );
    assert!(fixture.leaves().is_empty());
}

#[tokio::test]
async fn questions_over_the_limit_are_refused_and_counted() {
    let fixture = Fixture::new(two_agents("[dns]\nqueries_per_second = 5")).await;
    let socket = fixture.socket_of("bot").await;
    let mut codes = HashMap::new();
    for _ in 0..60 {
        let answer = exchange(&socket, &bytes("db.internal.", RecordType::A))
            .await
            .unwrap();
        *codes.entry(answer.response_code).or_insert(0u64) += 1;
    }
    let (code, _) = fixture.asked("clerk", "db.internal.", RecordType::A).await;
    assert_eq!(code, ResponseCode::NoError, "agents do not share a limit");
    let refused = codes[&ResponseCode::Refused];
    assert!(refused >= 50, "{codes:?}");
    // Without any further question the rest is written within about a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let leaves = fixture.leaves();
    let shared: Vec<u64> = leaves
        .iter()
        .filter(|leaf| leaf.contains("dns:rate"))
        .map(|leaf| leaf.rsplit_once('x').unwrap().1.parse().unwrap())
        .collect();
    assert_eq!(shared.iter().sum::<u64>(), refused, "{leaves:#?}");
    assert!(shared.len() <= 4, "{shared:?}");
    let answered = leaves
        .iter()
        .filter(|leaf| leaf.starts_with("bot") && leaf.contains("NOERROR"));
    assert_eq!(answered.count() as u64, codes[&ResponseCode::NoError]);
}

#[tokio::test]
async fn what_waits_is_written_when_the_gateway_stops() {
    let fixture = Fixture::new(two_agents("[dns]\nqueries_per_second = 1")).await;
    let socket = fixture.socket_of("bot").await;
    for _ in 0..10 {
        exchange(&socket, &bytes("db.internal.", RecordType::A))
            .await
            .unwrap();
    }
    fixture.serving[0].abort();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let counts = fixture.leaves();
    let counts = counts.iter().map(|leaf| leaf.rsplit_once('x').unwrap().1);
    assert_eq!(counts.map(|n| n.parse::<u64>().unwrap()).sum::<u64>(), 10);
}

#[tokio::test]
async fn connections() {
    let fixture = Fixture::new(two_agents("[dns]\nqueries_per_second = 1000")).await;
    let good = bytes("db.internal.", RecordType::A);
    let mut stream = TcpStream::connect(fixture.tcp).await.unwrap();
    for _ in 0..100 {
        assert_eq!(framed(&mut stream, &good).await.unwrap().answers.len(), 1);
    }
    assert!(
        framed(&mut stream, &good).await.is_none(),
        "a hundred are enough"
    );
    assert!(
        fixture
            .leaves()
            .iter()
            .all(|leaf| leaf.starts_with("bot tcp db.internal A"))
    );

    // A length without a message: the next question is not taken for its end.
    let mut empty = TcpStream::connect(fixture.tcp).await.unwrap();
    assert!(framed(&mut empty, &[]).await.is_none());
    let mut long = TcpStream::connect(fixture.tcp).await.unwrap();
    let answer = framed(&mut long, &[0; 60_000]).await;
    assert!(answer.is_none_or(|answer| answer.response_code == ResponseCode::FormErr));
    assert!(framed(&mut long, &good).await.is_none());

    // Byte by byte, two questions in one go.
    let mut slow = TcpStream::connect(fixture.tcp).await.unwrap();
    slow.set_nodelay(true).unwrap();
    let length = u16::try_from(good.len()).unwrap().to_be_bytes();
    for byte in [&length[..], &good].concat() {
        slow.write_u8(byte).await.unwrap();
    }
    let again = framed(&mut slow, &good).await.unwrap();
    assert_eq!(again.answers.len(), 1);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let fixture = Fixture::new(two_agents("")).await;
    let mut idle = TcpStream::connect(fixture.tcp).await.unwrap();
    idle.write_all(&[0]).await.unwrap();
    let mut rest = vec![];
    let closed = tokio::time::timeout(Duration::from_secs(60), idle.read_to_end(&mut rest)).await;
    assert_eq!(closed.unwrap().unwrap(), 0);
}

// -- where the gateway dials -------------------------------------------------------------------------------

#[tokio::test]
async fn the_gateway_resolves_by_itself_and_tries_every_address() {
    let fixture = Fixture::new(two_agents("")).await;
    let (_, told) = fixture.asked("bot", "db.internal.", RecordType::A).await;
    let dialled = SocketAddr::new(told[0], 5432);
    let error = fixture
        .dials("shop", Some("db.internal"), dialled)
        .await
        .unwrap_err();
    assert_eq!(error, "db.internal cannot be resolved: no such name");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    fixture
        .script
        .answer("db.internal", &["10.1.1.1", "127.0.0.1", "10.1.1.2"], 60);
    let found = fixture
        .dials("shop", Some("db.internal"), dialled)
        .await
        .unwrap();
    assert_eq!(found, ["10.1.1.1:5432", "10.1.1.2:5432"]);
    let literal = "10.0.0.7:5432".parse().unwrap();
    assert_eq!(
        fixture.dials("shop", None, literal).await.unwrap(),
        ["10.0.0.7:5432"]
    );
}

#[tokio::test]
async fn names_do_not_lead_home() {
    let config = configuration(
        &[("bot", None)],
        &[
            ("shop", &["db.example:5432"]),
            ("local-db", &["own.example:5432"]),
        ],
        "",
    );
    let fixture = Fixture::new(config).await;
    let mut dialled = vec![];
    for name in ["db.example.", "own.example."] {
        let (_, told) = fixture.asked("bot", name, RecordType::A).await;
        dialled.push(SocketAddr::new(told[0], 5432));
    }
    let (shop, local) = (dialled[0], dialled[1]);
    for address in [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "fe80::1",
        "::ffff:127.0.0.1",
    ] {
        let fixture = Fixture::new(fixture.config.clone()).await;
        fixture.script.answer("db.example", &[address], 60);
        fixture.script.answer("own.example", &[address], 60);
        let error = fixture
            .dials("shop", Some("db.example"), shop)
            .await
            .unwrap_err();
        assert!(error.contains("targets.shop.allow_local"), "{error}");
        assert!(
            fixture
                .dials("local-db", Some("own.example"), local)
                .await
                .is_ok()
        );
    }
    fixture
        .script
        .answer("own.example", &["198.18.0.1", "0.0.0.0"], 60);
    let error = fixture
        .dials("local-db", Some("own.example"), local)
        .await
        .unwrap_err();
    assert!(error.contains("synthetic"), "{error}");
}

#[tokio::test]
async fn a_dial_address_replaces_the_name() {
    let text = |dial| format!("dial = \"{dial}\"");
    for (dial, expected) in [
        ("127.0.0.1:6000", Ok(vec!["127.0.0.1:6000".to_owned()])),
        ("real.example:6000", Ok(vec!["10.2.2.2:6000".to_owned()])),
        ("evil.example:6000", Err(())),
    ] {
        let mut config = two_agents("");
        let mut shop = Target::clone(&config.targets["shop"]);
        shop.dial = Some(dial.parse().unwrap());
        config.targets.insert("shop".to_owned(), Arc::new(shop));
        let fixture = Fixture::new(config).await;
        fixture.script.answer("real.example", &["10.2.2.2"], 60);
        fixture.script.answer("evil.example", &["127.0.0.1"], 60);
        let dialled = "198.18.1.1:5432".parse().unwrap();
        let found = fixture.dials("shop", Some("db.internal"), dialled).await;
        assert_eq!(found.map_err(drop), expected, "{}", text(dial));
    }
}

// -- real addresses ----------------------------------------------------------------------------------------

const PASS: &str = "[dns]\nmode = \"pass\"\nttl_seconds = 1";

#[tokio::test]
async fn pass_mode_tells_real_addresses() {
    let fixture = Fixture::new(two_agents(PASS)).await;
    let refresh = tokio::spawn(Arc::clone(&fixture.dns).refresh());
    let mut destinations = fixture.dns.destinations();
    assert_eq!(
        destinations.borrow_and_update().len(),
        1,
        "the literal alone"
    );
    let real = ["10.1.1.1", "2001:db8::1", "127.0.0.1"];
    fixture.script.answer("stock.example", &real, 0);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (code, told) = fixture
        .asked("clerk", "stock.example.", RecordType::A)
        .await;
    assert_eq!(code, ResponseCode::NoError);
    assert_eq!(
        told,
        ["10.1.1.1".parse::<IpAddr>().unwrap()],
        "not the loopback one"
    );
    let (_, told) = fixture
        .asked("clerk", "stock.example.", RecordType::AAAA)
        .await;
    assert_eq!(told, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
    assert!(destinations.has_changed().unwrap());
    let texts: Vec<String> = destinations
        .borrow()
        .iter()
        .map(SocketAddr::to_string)
        .collect();
    assert_eq!(
        texts,
        ["10.0.0.7:5432", "10.1.1.1:5432", "[2001:db8::1]:5432"]
    );
    assert_eq!(
        fixture.target_of("clerk", "10.1.1.1:5432"),
        "stock as stock.example"
    );
    assert_eq!(fixture.target_of("clerk", "127.0.0.1:5432"), "unknown");
    let dialled = "10.1.1.1:5432".parse().unwrap();
    let found = fixture
        .dials("stock", Some("stock.example"), dialled)
        .await
        .unwrap();
    assert_eq!(found, ["10.1.1.1:5432"]);
    // A name without an answer is not said to be missing.
    let (code, _) = fixture.asked("clerk", "db.internal.", RecordType::A).await;
    assert_eq!(code, ResponseCode::ServFail);

    // It moves. The old address is good for as long as clients may have kept it, and then no more.
    fixture.script.answer("stock.example", &["10.1.1.9"], 0);
    let moved = async {
        loop {
            let now = destinations.borrow_and_update().clone();
            let at = |ip: &str| now.contains(&SocketAddr::new(ip.parse().unwrap(), 5432));
            if at("10.1.1.9") && !at("10.1.1.1") {
                break;
            }
            destinations.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), moved)
        .await
        .unwrap();
    refresh.abort();
}

// -- configuration -----------------------------------------------------------------------------------------

#[tokio::test]
async fn configurations_that_cannot_work() {
    let new = |config: &Config| {
        let scratch = tempfile::tempdir().unwrap();
        let tree = Arc::new(AgentTree::new(
            scratch.path(),
            "agents.slice",
            std::iter::empty(),
        ));
        let log = Log::open(&scratch.path().join("log"), std::time::SystemTime::now()).unwrap();
        Dns::new(config, tree, Arc::new(log))
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let targets: &[(&str, &[&str])] = &[("shop", &["198.18.0.9:5432"])];
    let error = new(&configuration(&[("bot", None)], targets, "")).unwrap_err();
    assert!(error.contains("dns.mode = \"pass\""), "{error}");
    assert_eq!(new(&configuration(&[("bot", None)], targets, PASS)), Ok(()));

    let name = format!("{}.example:5432", "a".repeat(41));
    let error = new(&configuration(&[("bot", None)], &[("shop", &[&name])], "")).unwrap_err();
    assert!(error.contains("dns.max_label"), "{error}");

    let agents: Vec<String> = (0..200).map(|n| format!("bot-{n}")).collect();
    let agents: Vec<(&str, Option<&[&str]>)> =
        agents.iter().map(|name| (name.as_str(), None)).collect();
    let addresses: Vec<String> = (0..200).map(|n| format!("db{n}.example:5432")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let error = new(&configuration(&agents, &[("shop", &addresses)], "")).unwrap_err();
    assert!(error.contains("80000 destinations"), "{error}");
}

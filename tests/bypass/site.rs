//! A host that is attacked: namespaces with a cable, control groups below one of the test's own, the kernel
//! programs, and a gateway — the test itself, or a real one.
//!
//! ```text
//! cgroup v2 mount
//! └── sluice-test-…           the guard's place (`kernel.guard_cgroup`): nothing is attached to the real root
//!     ├── agents.slice/bot    where the attacks run
//!     ├── gateway.slice
//!     └── outside             everybody else
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gateway::config::Kernel;
use gateway::intercept::guard::{self, Report};
use gateway::intercept::{self, Counters, Denial, Flow, Listener, Maps};
use jsonwebtoken::Algorithm;

use super::attack::{NOBODY, Place, Said, socket_from};
use super::sheet::Outcome;
use crate::harness::events::Events;
use crate::harness::issuer::{AUDIENCE, ISSUER, Issuer};
use crate::harness::program::{Ended, run};
use crate::harness::uplink::{Capture, Uplink};
use crate::harness::{cgroup, repository, require_root, scratch};

/// The gateway's port. Every site has a network namespace of its own, so it can be the same everywhere.
pub const PORT: u16 = 15001;
/// What the peer listens on: the targets' port, well-known ones, and one that belongs to no target.
pub const PORTS: [u16; 8] = [9, 53, 80, 443, 853, 4444, 5432, 15001];
/// The gateway's user.
pub const GATEWAY: u32 = 64023;

/// Addresses that belong to a target; all of them are the peer's, so that a connect that is not redirected
/// succeeds as well.
pub const TARGETS: [&str; 10] = [
    "192.0.2.7:5432",
    "192.0.2.7:443",
    "192.0.2.7:15001",
    "10.77.0.2:5432",
    "10.77.0.2:80",
    "[2001:db8::7]:5432",
    "[fd00:77::2]:5432",
    "[fd00:77::2]:80",
    "127.0.0.1:5432",
    "[::1]:5432",
];

pub struct Site {
    pub uplink: Uplink,
    pub kernel: Kernel,
    root: tempfile::TempDir,
    name: String,
    issuer: Issuer,
}

impl Site {
    /// Everything but the kernel programs and the gateway.
    pub fn prepare() -> Site {
        Self::prepare_with("", &TARGETS)
    }

    /// The same with more lines of configuration, and other targets.
    pub fn prepare_with(more: &str, targets: &[&str]) -> Site {
        require_root();
        let name = scratch::name();
        let root = scratch::folder("site");
        open_to_all(root.path());
        let kernel = Kernel {
            agents_cgroup: format!("{name}/agents.slice"),
            gateway_cgroup: format!("{name}/gateway.slice"),
            guard_cgroup: name.clone(),
            pins: PathBuf::from("/sys/fs/bpf").join(&name),
            ..Kernel::default()
        };
        for group in [&kernel.agents_cgroup, &kernel.gateway_cgroup] {
            fs::create_dir_all(cgroup::mount().join(group)).expect("root may make control groups");
        }
        let site = Site {
            uplink: Uplink::with_peer_on(&PORTS),
            kernel,
            root,
            name,
            issuer: Issuer::signing_with(Algorithm::ES256),
        };
        site.write_configuration(more, targets);
        site
    }

    fn write_configuration(&self, more: &str, targets: &[&str]) {
        let policy = repository().join("policies/read-only.cedar");
        let policy = fs::read_to_string(policy).expect("the profile ships with the repository");
        self.write("etc/sluice/policies/read-only.cedar", &policy);
        self.write("etc/sluice/jwks.json", &self.issuer.jwks());
        self.write_private("etc/sluice/credentials/shop", "not needed\n");
        let token = self.issuer.token_for("bot@corp").sign();
        self.write_private("run/sluice/tokens/bot.jwt", &token);
        fs::create_dir_all(self.path("var/lib/sluice")).expect("the root is writable");
        chown(self.path("var/lib/sluice"), Some(GATEWAY), Some(GATEWAY)).expect("it is ours");
        let Kernel {
            agents_cgroup,
            gateway_cgroup,
            guard_cgroup,
            pins,
            ..
        } = &self.kernel;
        let pins = pins.display();
        let config = format!(
            r#"
[gateway]
listen_port = {PORT}
user = "{GATEWAY}"
[kernel]
agents_cgroup = "{agents_cgroup}"
gateway_cgroup = "{gateway_cgroup}"
guard_cgroup = "{guard_cgroup}"
pins = "{pins}"
[identity.corp]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
jwks = "/etc/sluice/jwks.json"
[agents.bot]
identity = "corp"
token_file = "/run/sluice/tokens/bot.jwt"
subject = "bot@corp"
[targets.shop]
protocol = "postgres"
addresses = {targets:?}
dial = "127.0.0.1:{UPSTREAM}"
tls = {{ mode = "disable" }}
credential = {{ user = "shop", password_file = "/etc/sluice/credentials/shop" }}
{more}
"#
        );
        self.write("etc/sluice/sluice.toml", &config);
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a file lies in a folder"))
            .expect("the root is writable");
        fs::write(path, text).expect("the root is writable");
    }

    /// For the gateway's user only.
    fn write_private(&self, path: &str, text: &str) {
        self.write(path, text);
        let path = self.path(path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        chown(&path, Some(GATEWAY), Some(GATEWAY)).expect("it is ours");
    }

    /// `sluice` on this site, in the host's network namespace.
    pub fn sluice<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.uplink.host.command(env!("CARGO_BIN_EXE_sluice"));
        command
            .arg("--root")
            .arg(self.root.path())
            .args(words)
            .current_dir("/");
        command
    }

    #[track_caller]
    pub fn load_guard(&self) -> Ended {
        run(self.sluice(["guard", "load"])).succeeds()
    }

    #[track_caller]
    pub fn unload_guard(&self) {
        run(self.sluice(["guard", "unload"])).succeeds();
        // It removes the cgroups that are empty.
        for group in ["agents.slice", "gateway.slice"] {
            self.group(group);
        }
    }

    fn group(&self, group: &str) -> PathBuf {
        let group = cgroup::mount().join(&self.name).join(group);
        fs::create_dir_all(&group).expect("root may make control groups");
        group
    }

    pub fn agents_group(&self) -> PathBuf {
        self.group("agents.slice")
    }

    /// Nobody in the agent's cgroup.
    pub fn bot(&self) -> Place {
        Place {
            group: self.group("agents.slice/bot"),
            netns: self.uplink.host.clone(),
            user: NOBODY,
        }
    }

    /// Nobody in a cgroup that is not the agents', below the guard.
    pub fn outsider(&self) -> Place {
        Place {
            group: self.group("outside"),
            ..self.bot()
        }
    }

    /// Nobody in a cgroup that has nothing to do with any of this.
    pub fn stranger(&self) -> Place {
        let group = cgroup::mount().join(format!("{}-stranger", self.name));
        fs::create_dir_all(&group).expect("root may make control groups");
        Place {
            group,
            ..self.bot()
        }
    }

    /// Who may create sockets of the gateway.
    fn gateway_place(&self) -> Place {
        Place {
            group: self.group("gateway.slice/gateway"),
            user: 0,
            ..self.bot()
        }
    }

    pub fn group_of_the_gateway(&self) -> String {
        self.gateway_place().group.display().to_string()
    }

    pub fn report(&self) -> Report {
        guard::inspect(&self.kernel).expect("the guard can be inspected")
    }

    /// The kernel's counters of the agent's subtree; none before it did anything that counts.
    pub fn counters(&self) -> Option<Counters> {
        let all = self.maps().counters.read().expect("counters can be read");
        let subtree = self.bot_id();
        all.into_iter()
            .find(|(id, _)| *id == subtree)
            .map(|(_, counters)| counters)
    }

    pub fn denied(&self, reason: Denial) -> u64 {
        self.counters()
            .map_or(0, |counters| counters.denied[reason as usize])
    }

    pub fn maps(&self) -> Maps {
        let pins = Maps::open_pins(&self.kernel.pins).expect("the guard is loaded");
        Maps::from_fds(pins).expect("the maps are those of this version")
    }

    /// What identifies the agent's cgroup.
    pub fn bot_id(&self) -> u64 {
        fs::metadata(self.bot().group).expect("it was made").ino()
    }

    pub fn events(&self) -> Events {
        Events::read(&self.path("var/lib/sluice/log/log.jsonl"))
    }

    pub fn storage(&self) -> PathBuf {
        self.path("var/lib/sluice")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let mount = cgroup::mount();
        cgroup::remove(&mount.join(&self.name).join("agents.slice"));
        let _ = self.sluice(["guard", "unload"]).output();
        for group in [self.name.clone(), format!("{}-stranger", self.name)] {
            cgroup::remove(&mount.join(group));
        }
        let _ = fs::remove_dir_all(&self.kernel.pins);
    }
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
}

/// Where the targets' server would be; nobody listens there unless a test says so.
pub const UPSTREAM: u16 = 15432;

/// A site whose gateway is the test: it accepts what is redirected and looks at the flows.
pub struct Attended {
    pub site: Site,
    pub maps: Arc<Maps>,
    pub tcp: Vec<TcpListener>,
    pub udp: Vec<UdpSocket>,
    /// Accepted, and kept until the test ends so that no client is disturbed.
    held: Vec<TcpStream>,
    beating: Arc<AtomicBool>,
    heart: Option<JoinHandle<()>>,
}

impl Attended {
    pub fn start() -> Attended {
        let site = Site::prepare();
        site.load_guard();
        let maps = Arc::new(site.maps());
        let targets: BTreeSet<SocketAddr> = TARGETS
            .iter()
            .map(|target| target.parse().expect("targets are addresses"))
            .collect();
        maps.targets
            .replace(&targets)
            .expect("root may say what the targets are");
        let beating = Arc::new(AtomicBool::new(true));
        let heart = thread::spawn({
            let (maps, beating) = (Arc::clone(&maps), Arc::clone(&beating));
            move || {
                while beating.load(Ordering::Relaxed) {
                    maps.heartbeat.beat().expect("the heartbeat can be written");
                    thread::sleep(Duration::from_millis(200));
                }
            }
        });
        let mut attended = Attended {
            site,
            maps,
            tcp: Vec::new(),
            udp: Vec::new(),
            held: Vec::new(),
            beating,
            heart: Some(heart),
        };
        attended.listen();
        attended
    }

    /// Makes the listeners, as the broker does.
    pub fn listen(&mut self) {
        let place = self.site.gateway_place();
        let port = PORT.to_string();
        let socket = |kind, host| socket_from(&place, &["hand_listener", kind, host, &port]);
        self.tcp = [socket("tcp", "127.0.0.1"), socket("tcp", "::1")]
            .map(TcpListener::from)
            .into();
        self.udp = [socket("udp", "127.0.0.1"), socket("udp", "::1")]
            .map(UdpSocket::from)
            .into();
        for socket in &self.tcp {
            socket.set_nonblocking(true).expect("it is ours");
        }
        for socket in &self.udp {
            socket.set_nonblocking(true).expect("it is ours");
        }
        let sockets = [
            self.tcp[0].as_fd(),
            self.tcp[1].as_fd(),
            self.udp[0].as_fd(),
            self.udp[1].as_fd(),
        ];
        intercept::publish_sockets(&self.site.kernel.pins, sockets.map(Some))
            .expect("root may publish sockets");
        let both = Listener {
            v4: 1,
            v6: 1,
            reserved: [0; 6],
        };
        intercept::register_netns(&self.site.kernel.pins, self.netns_cookie(), Some(both))
            .expect("root may register a namespace");
    }

    pub fn stop_heart(&mut self) {
        self.beating.store(false, Ordering::Relaxed);
        if let Some(heart) = self.heart.take() {
            heart.join().expect("the heart does not panic");
        }
    }

    pub fn netns_cookie(&self) -> u64 {
        netns_cookie(&self.tcp[0])
    }

    pub fn capture(&self) -> Capture {
        self.site.uplink.capture()
    }

    /// The next connection that was redirected.
    pub fn accept_within(&self, patience: Duration) -> Option<TcpStream> {
        let deadline = Instant::now() + patience;
        loop {
            for listener in &self.tcp {
                if let Ok((stream, _)) = listener.accept() {
                    return Some(stream);
                }
            }
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What an earlier row left, which has failed for it, is not this one's.
    fn forget_earlier(&self) {
        while self.accept_within(Duration::ZERO).is_some() {}
    }

    pub fn flow_of(&self, stream: &TcpStream) -> Option<Flow> {
        let flow = self.maps.flows.flow_of(stream.as_fd());
        flow.expect("flows can be read")
    }

    /// The attack's connects came to the gateway, one per original destination in this order, each with exactly
    /// its own identity; the client saw the address that it dialled.
    pub fn redirected(&mut self, place: &Place, words: &[&str], originals: &[&str]) -> Outcome {
        self.forget_earlier();
        let said = place.attack(words.iter().copied());
        self.came(place, &said, originals)
    }

    /// What an attack that has ended came to.
    pub fn came(&mut self, place: &Place, said: &Said, originals: &[&str]) -> Outcome {
        if said.errno() != "ok" {
            return Err(format!("{}, not redirected", said.story()));
        }
        for original in originals {
            let Some(stream) = self.accept_within(Duration::from_secs(5)) else {
                return Err(format!("no connection for {original}: {}", said.story()));
            };
            let Some(flow) = self.flow_of(&stream) else {
                return Err("a connection without a flow".to_owned());
            };
            self.held.push(stream);
            let group = fs::metadata(&place.group).expect("it was made").ino();
            let seen = (
                flow.original.to_string(),
                flow.tgid,
                flow.uid,
                flow.cgroup_id,
            );
            let expected = ((*original).to_owned(), said.pid, place.user, group);
            if seen != expected {
                return Err(format!("flow {seen:?}, not {expected:?}"));
            }
        }
        match self.accept_within(Duration::ZERO) {
            Some(_) => Err("more connections than were made".to_owned()),
            None => Ok(format!("redirected, flow exact: {}", originals.join(", "))),
        }
    }

    /// The attack's last call gets one of these errors, and nothing comes to the gateway.
    pub fn refused(&mut self, place: &Place, words: &[&str], errors: &[&str]) -> Outcome {
        self.forget_earlier();
        let said = place.attack(words.iter().copied());
        self.was_refused(&said, errors)
    }

    pub fn was_refused(&mut self, said: &Said, errors: &[&str]) -> Outcome {
        let errno = said.errno();
        if !errors.contains(&errno.as_str()) {
            return Err(format!("{}, not {}", said.story(), errors.join(" or ")));
        }
        match self.accept_within(Duration::ZERO) {
            Some(_) => Err(format!("{errno}, yet a connection came to the gateway")),
            None => Ok(errno),
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.beating.store(false, Ordering::Relaxed);
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
    }
}

pub fn netns_cookie(socket: &impl std::os::fd::AsRawFd) -> u64 {
    const SO_NETNS_COOKIE: i32 = 71;
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as u32;
    // SAFETY: the cookie lives through the call and its size is right.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(asked, 0, "a socket knows its namespace");
    cookie
}

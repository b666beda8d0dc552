//! A site with a broker and a gateway, both real, that can be stopped, killed and started again.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::site::{GATEWAY, PORT, Site};
use crate::harness::program::{drain, eventually, run};

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Installed {
    gateway: Option<Process>,
    broker: Option<Process>,
    mounted: bool,
    pub site: Site,
}

struct Process {
    child: Child,
    stderr: JoinHandle<Vec<u8>>,
}

impl Installed {
    pub fn start() -> Installed {
        Self::start_on(Site::prepare())
    }

    pub fn start_on(site: Site) -> Installed {
        let mut installed = Self::without_gateway(site);
        installed.start_gateway();
        installed
    }

    /// The guard and the broker.
    pub fn without_gateway(site: Site) -> Installed {
        site.load_guard();
        let mut installed = Installed {
            gateway: None,
            broker: None,
            mounted: false,
            site,
        };
        installed.start_broker();
        installed
    }

    pub fn start_broker(&mut self) {
        let socket = self.site.path("run/sluice/broker.sock");
        let _ = fs::remove_file(&socket);
        let mut command = self.site.sluice(["broker"]);
        command.stdout(Stdio::null());
        self.broker = Some(Process::start(command));
        eventually("the broker's socket", PATIENCE, || {
            socket.exists().then_some(())
        });
    }

    /// Starts the gateway (again) and waits until it is ready.
    pub fn start_gateway(&mut self) {
        self.start_gateway_by(self.site.sluice(["run"]));
    }

    pub fn start_gateway_by(&mut self, mut command: Command) {
        command.stdout(Stdio::piped());
        let mut process = Process::start(command);
        let stdout = BufReader::new(process.child.stdout.take().expect("stdout is piped"));
        let (sender, lines) = mpsc::channel();
        // Reads to the end, so that the gateway never waits for a full pipe.
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let ready = format!("ready on 127.0.0.1:{PORT}");
        while let Ok(line) = lines.recv_timeout(PATIENCE) {
            if line.contains(&ready) {
                self.gateway = Some(process);
                return self.wait_for_service();
            }
        }
        panic!("the gateway is not ready:\n{}", process.kill());
    }

    /// Ready is when it listens; agents are served from its first heartbeat on.
    fn wait_for_service(&self) {
        eventually("an agent is served", PATIENCE, || {
            let said = self.site.bot().attack(["tcp_connect", "192.0.2.7", "5432"]);
            (said.errno() == "ok").then_some(())
        });
    }

    pub fn gateway_pid(&self) -> u32 {
        self.gateway.as_ref().expect("the gateway runs").child.id()
    }

    pub fn signal_gateway(&self, signal: Signal) {
        let pid = Pid::from_raw(self.gateway_pid().cast_signed());
        kill(pid, signal).expect("the gateway runs");
    }

    /// SIGKILL; answers what it had logged.
    pub fn kill_gateway(&mut self) -> String {
        let gateway = self.gateway.take();
        gateway.map(Process::kill).unwrap_or_default()
    }

    /// Waits until it has ended by itself.
    pub fn gateway_ended(&mut self) -> String {
        let gateway = self.gateway.as_mut().expect("the gateway was started");
        eventually("the gateway ends", PATIENCE, || {
            gateway.child.try_wait().expect("it is our child")
        });
        self.kill_gateway()
    }

    pub fn kill_broker(&mut self) -> String {
        let broker = self.broker.take();
        broker.map(Process::kill).unwrap_or_default()
    }

    /// Log and recordings on a file system that can be full. Before the gateway starts.
    pub fn mount_storage(&mut self, size: &str) {
        let storage = self.site.storage();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&storage);
        run(mount).succeeds();
        self.mounted = true;
        chown(&storage, Some(GATEWAY), Some(GATEWAY)).expect("it is ours");
    }

    pub fn fill_storage(&self) {
        let mut filler = fs::File::create(self.filler()).expect("it is mounted");
        while filler.write_all(&[0; 512]).is_ok() {}
    }

    pub fn empty_storage(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.site.storage().join("filler")
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        for process in [self.gateway.take(), self.broker.take()]
            .into_iter()
            .flatten()
        {
            let stderr = process.kill();
            if thread::panicking() {
                eprintln!("{stderr}");
            }
        }
        if self.mounted {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.site.storage())
                .status();
        }
    }
}

impl Process {
    fn start(mut command: Command) -> Process {
        command
            .env("SLUICE_LOG", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("sluice starts");
        let stderr = drain(child.stderr.take().expect("stderr is piped"));
        Process { child, stderr }
    }

    fn kill(mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let stderr = self.stderr.join().expect("the reader does not panic");
        String::from_utf8_lossy(&stderr).into_owned()
    }
}

//! A stand-in for gateway and broker: says that they listen in every namespace an agent makes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gateway::intercept::{Listener, isolate, register_netns};
use nix::sched::{CloneFlags, setns};

const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Ends with its value.
pub struct Registrar {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Registrar {
    pub fn start(agents: PathBuf, pins: PathBuf) -> Registrar {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let watch = move || {
            let mut known = BTreeSet::new();
            while !told.load(Ordering::Relaxed) {
                for cookie in cookies(&agents) {
                    if known.insert(cookie) {
                        let both = Listener {
                            v4: 1,
                            v6: 1,
                            reserved: [0; 6],
                        };
                        register_netns(&pins, cookie, Some(both)).expect("the guard is loaded");
                    }
                }
                thread::sleep(LOOK_AGAIN);
            }
        };
        Registrar {
            stop,
            thread: Some(thread::spawn(watch)),
        }
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || thread::panicking());
    }
}

/// Of the namespaces of all processes in the group and below; processes may end meanwhile.
fn cookies(group: &Path) -> Vec<u64> {
    let mut found = Vec::new();
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(procs.lines().filter_map(cookie_of));
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(cookies(&entry.path()));
        }
    }
    found
}

/// A socket tells the cookie of the namespace it was made in, so this thread goes there and stays: the next
/// process takes it elsewhere, and it has no other use for the network.
fn cookie_of(pid: &str) -> Option<u64> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).ok()?;
    setns(namespace, CloneFlags::CLONE_NEWNET).ok()?;
    let socket = TcpListener::bind("127.0.0.1:0").ok()?;
    isolate::netns_cookie(socket.as_fd()).ok()
}

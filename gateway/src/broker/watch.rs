//! The watch over the kernel side: are all programs where they should be, and if not, nobody moves.
//!
//! A cgroup that was removed and made anew has no programs; a link can be detached by whoever is root. Until
//! somebody has repaired that (`sluice guard load`), the agents' cgroup is frozen: its processes stand still,
//! unharmed, and go on afterwards.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::duties::{Namespaces, lock};
use crate::config;
use crate::intercept::{self, InterceptError, cgroup, guard};

/// Time between two looks; a change of the agents' cgroup itself is looked at at once.
const PERIOD: Duration = Duration::from_secs(2);

/// A problem must still be there after this time: `guard load` replaces link by link.
const CONFIRMATION: Duration = Duration::from_millis(200);

/// Older results are worth nothing.
const STALE: Duration = Duration::from_secs(8);

/// So that a state fits into one message.
const MAX_PROBLEMS: usize = 20;
const MAX_PROBLEM: usize = 1000;

/// A problem that stays is logged again after this time.
const REMINDER: Duration = Duration::from_secs(60);

/// Why there is no watch.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Kernel(#[from] InterceptError),
    #[error("starting the watching thread: {0}")]
    Thread(#[from] std::io::Error),
}

#[derive(Debug)]
pub struct Watch {
    kernel: config::Kernel,
    agents: PathBuf,
    verdict: Mutex<Verdict>,
}

#[derive(Debug)]
struct Verdict {
    problems: Vec<String>,
    at: Instant,
}

impl Watch {
    /// Looks for the first time, then from a thread of its own for as long as the process lives.
    pub fn start(
        kernel: config::Kernel,
        namespaces: Arc<Mutex<Namespaces>>,
    ) -> Result<Arc<Self>, StartError> {
        let watch = Arc::new(Self {
            agents: cgroup::cgroup2_mount()?.join(&kernel.agents_cgroup),
            verdict: Mutex::new(Verdict {
                problems: Vec::new(),
                at: Instant::now(),
            }),
            kernel,
        });
        let mut rounds = Rounds::new(Arc::clone(&watch), namespaces);
        rounds.look();
        thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || rounds.go_on())?;
        Ok(watch)
    }

    /// The problems of the last look, and whether the agents' cgroup is frozen.
    pub fn state(&self) -> (Vec<String>, bool) {
        let verdict = self.verdict();
        let mut problems = verdict.problems.clone();
        let age = verdict.at.elapsed();
        if age > STALE {
            problems.push(format!(
                "the broker last looked {} s ago: restart it",
                age.as_secs()
            ));
        }
        (problems, cgroup::is_frozen(&self.agents))
    }

    /// Looks now.
    pub fn verify_now(&self) -> Vec<String> {
        let problems = match guard::verify(&self.kernel) {
            Ok(_) => Vec::new(),
            Err(InterceptError::NotEnforced(problems)) => problems,
            Err(error) => vec![error.to_string()],
        };
        let problems: Vec<String> = problems
            .into_iter()
            .take(MAX_PROBLEMS)
            .map(|problem| problem.chars().take(MAX_PROBLEM).collect())
            .collect();
        *self.verdict() = Verdict {
            problems: problems.clone(),
            at: Instant::now(),
        };
        problems
    }

    fn verdict(&self) -> MutexGuard<'_, Verdict> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the watching thread remembers from one look to the next.
struct Rounds {
    watch: Arc<Watch>,
    namespaces: Arc<Mutex<Namespaces>>,
    /// What froze the agents was this process, so it thaws them when all is well again.
    froze: bool,
    changes: Option<Inotify>,
    logged: Option<(Vec<String>, Instant)>,
}

impl Rounds {
    fn new(watch: Arc<Watch>, namespaces: Arc<Mutex<Namespaces>>) -> Self {
        let changes = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .inspect_err(|error| tracing::warn!("changes are seen with a delay: {error}"));
        let rounds = Self {
            watch,
            namespaces,
            froze: false,
            changes: changes.ok(),
            logged: None,
        };
        // Before the first look, so that no change falls in between.
        rounds.subscribe();
        rounds
    }

    fn go_on(&mut self) {
        loop {
            self.wait();
            self.look();
            self.sweep();
        }
    }

    /// To what is made and removed beside the agents' cgroup. Again and again, because the parent itself may be
    /// made anew; done twice it is one subscription.
    fn subscribe(&self) {
        let kinds = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        if let (Some(changes), Some(parent)) = (&self.changes, self.watch.agents.parent()) {
            let _ = changes.add_watch(parent, kinds);
        }
    }

    /// Until there is such a change, at most a period.
    fn wait(&self) {
        self.subscribe();
        let Some(changes) = &self.changes else {
            return thread::sleep(PERIOD);
        };
        let mut ready = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PERIOD).unwrap_or(PollTimeout::ZERO);
        match poll(&mut ready, timeout) {
            Ok(0) => {}
            // Which change it was does not matter.
            Ok(_) => drop(changes.read_events()),
            Err(_) => thread::sleep(PERIOD),
        }
    }

    fn look(&mut self) {
        let mut problems = self.watch.verify_now();
        if !problems.is_empty() && !self.froze {
            thread::sleep(CONFIRMATION);
            problems = self.watch.verify_now();
        }
        if problems.is_empty() {
            self.all_is_well();
        } else {
            self.freeze(&problems);
        }
    }

    fn all_is_well(&mut self) {
        if self.logged.take().is_some() {
            tracing::info!("the kernel programs are in place again");
        }
        if std::mem::take(&mut self.froze) {
            match cgroup::thaw(&self.watch.agents) {
                Ok(()) => tracing::info!("the agents go on"),
                Err(error) => tracing::error!("the agents stay frozen: {error}"),
            }
        }
    }

    fn freeze(&mut self, problems: &[String]) {
        let frozen = cgroup::freeze(&self.watch.agents);
        self.froze |= frozen.is_ok();
        let is_known = self
            .logged
            .as_ref()
            .is_some_and(|(known, at)| known == problems && at.elapsed() < REMINDER);
        if is_known {
            return;
        }
        self.logged = Some((problems.to_vec(), Instant::now()));
        let problems = problems.join("; ");
        match frozen {
            Ok(()) => tracing::error!(
                "ALARM: agents are not intercepted and were frozen; `sluice guard load` repairs and thaws: {problems}"
            ),
            // Without the cgroup there are no agents either.
            Err(error) => {
                tracing::error!("ALARM: agents are not intercepted: {problems} ({error})");
            }
        }
    }

    /// The gateway's sockets keep a namespace alive that its last process left.
    fn sweep(&self) {
        if lock(&self.namespaces).is_empty() {
            return;
        }
        let Ok(inhabited) = inhabited(&self.watch.agents) else {
            return;
        };
        let gone = lock(&self.namespaces).sweep(&|inode| inhabited.contains(&inode));
        for cookie in gone {
            match intercept::register_netns(&self.watch.kernel.pins, cookie, None) {
                Ok(()) => {
                    tracing::info!(netns_cookie = cookie, "a namespace was left by its agents")
                }
                Err(error) => tracing::error!(netns_cookie = cookie, "not unregistered: {error}"),
            }
        }
    }
}

/// The network namespaces (inodes) of all processes in a cgroup and below.
fn inhabited(cgroup: &Path) -> std::io::Result<HashSet<u64>> {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let mut found: HashSet<u64> = processes
        .lines()
        .filter_map(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).ok())
        .map(|metadata| metadata.ino())
        .collect();
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // One that was removed meanwhile has no processes.
            found.extend(inhabited(&entry.path()).unwrap_or_default());
        }
    }
    Ok(found)
}

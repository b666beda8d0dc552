//! From the cgroup id that the kernel notes for a flow to the agent that owns the cgroup.
//!
//! A cgroup's id is the inode number of its directory (kernfs numbers nodes with 64 bits and does not reuse
//! them), so an id is resolved by looking for that inode below the agents' root. The walk is breadth-first
//! and bounded; what it finds is remembered, and checked again with one `stat` before it is believed. An id
//! that was not found stays unknown: whatever had it is gone for good, and whoever keeps asking costs no walk.
//!
//! The kernel counts by *subtree*: the directory directly below the agents' root. An agent may have its cgroup
//! there, or deeper, where several agents share a subtree.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Agent;

/// How many ids of removed cgroups are remembered as such. Past this they are looked for again.
const MAX_GONE: usize = 4096;

/// An agent that may create cgroups could create them without end; past this many the search gives up, and
/// the connection is refused. `cgroup.max.descendants` limits them earlier.
const MAX_CGROUPS: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("the cgroup with id {0} is not below the agents' cgroup, or no longer exists")]
    Unknown(u64),
    #[error("there are more than {MAX_CGROUPS} cgroups below {}", .0.display())]
    TooMany(PathBuf),
}

/// Where a flow comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Relative to the mount: `agents.slice/report-bot/worker`.
    pub cgroup_path: String,
    /// The agent whose cgroup this is, or is the nearest one above it.
    pub agent: Option<Arc<Agent>>,
}

/// What the kernel counts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subtree {
    /// Relative to the mount: `agents.slice/report-bot`, or the agents' root itself for processes that are
    /// directly in it.
    pub path: String,
    /// The agent whose cgroup this is: the others here are its subagents. `None` if it is nobody's as a whole.
    pub agent: Option<Arc<Agent>>,
    /// Every agent whose cgroup is the subtree or below it, outer ones first.
    pub agents: Vec<Arc<Agent>>,
}

/// The agents by cgroup, and the cgroups that exist below their root.
#[derive(Debug)]
pub struct AgentTree {
    mount: PathBuf,
    root: String,
    agents: BTreeMap<String, Arc<Agent>>,
    /// id → path relative to the mount, as it was when it was last seen
    seen: Mutex<BTreeMap<u64, String>>,
    /// ids that a walk did not find
    gone: Mutex<BTreeSet<u64>>,
}

impl AgentTree {
    /// `agents_root` is relative to `mount`, as every agent's cgroup is.
    pub fn new(mount: &Path, agents_root: &str, agents: impl Iterator<Item = Arc<Agent>>) -> Self {
        Self {
            mount: mount.to_owned(),
            root: agents_root.trim_matches('/').to_owned(),
            agents: agents.map(|agent| (agent.cgroup.clone(), agent)).collect(),
            seen: Mutex::default(),
            gone: Mutex::default(),
        }
    }

    /// The cgroup with this id, and its agent. An id outside the agents' root is an error.
    pub fn locate(&self, cgroup_id: u64) -> Result<Located, CgroupError> {
        let cgroup_path = self.path_of(cgroup_id)?;
        let agent = self.nearest_agent(&cgroup_path);
        Ok(Located { cgroup_path, agent })
    }

    /// The path of the cgroup with this id, relative to the mount.
    pub fn path_of(&self, cgroup_id: u64) -> Result<String, CgroupError> {
        let remembered = self.seen().get(&cgroup_id).cloned();
        match remembered.filter(|path| self.id_of(path) == Some(cgroup_id)) {
            Some(path) => Ok(path),
            None if self.gone().contains(&cgroup_id) => Err(CgroupError::Unknown(cgroup_id)),
            None => self.search(cgroup_id),
        }
    }

    /// The subtree with this id (the `subtree` of flows, events and counters), and whose it is.
    pub fn subtree(&self, id: u64) -> Result<Subtree, CgroupError> {
        let path = self.path_of(id)?;
        // The agents' root is counted for the processes in it alone: nobody is registered there.
        if path == self.root {
            return Ok(Subtree {
                path,
                agent: None,
                agents: Vec::new(),
            });
        }
        let agents: Vec<Arc<Agent>> = self
            .agents
            .iter()
            .filter(|(cgroup, _)| is_within(cgroup, &path))
            .map(|(_, agent)| Arc::clone(agent))
            .collect();
        let agent = self.agents.get(&path).cloned();
        Ok(Subtree {
            path,
            agent,
            agents,
        })
    }

    /// The path of the subtree that a cgroup is in: `agents.slice/team` for `agents.slice/team/bot/worker`.
    pub fn subtree_path<'a>(&self, cgroup_path: &'a str) -> &'a str {
        let below = cgroup_path
            .strip_prefix(self.root.as_str())
            .and_then(|rest| rest.strip_prefix('/'));
        match below.and_then(|below| below.find('/')) {
            Some(end) => cgroup_path
                .get(..self.root.len() + 1 + end)
                .unwrap_or(cgroup_path),
            None => cgroup_path,
        }
    }

    fn nearest_agent(&self, cgroup_path: &str) -> Option<Arc<Agent>> {
        let mut path = cgroup_path;
        loop {
            if let Some(agent) = self.agents.get(path) {
                return Some(Arc::clone(agent));
            }
            (path, _) = path.rsplit_once('/')?;
        }
    }

    /// Walks the whole subtree and remembers it, in place of what was remembered before.
    fn search(&self, cgroup_id: u64) -> Result<String, CgroupError> {
        let mut found = BTreeMap::new();
        let mut queue = VecDeque::from([self.root.clone()]);
        while let Some(path) = queue.pop_front() {
            let Some(id) = self.id_of(&path) else {
                continue; // removed meanwhile
            };
            if found.len() >= MAX_CGROUPS {
                return Err(CgroupError::TooMany(self.mount.join(&self.root)));
            }
            found.insert(id, path.clone());
            queue.extend(self.children(&path)?);
        }
        let path = found.get(&cgroup_id).cloned();
        *self.seen() = found;
        path.ok_or_else(|| {
            let mut gone = self.gone();
            if gone.len() >= MAX_GONE {
                gone.clear();
            }
            gone.insert(cgroup_id);
            CgroupError::Unknown(cgroup_id)
        })
    }

    fn children(&self, path: &str) -> Result<Vec<String>, CgroupError> {
        let directory = self.mount.join(path);
        let unreadable = |error| CgroupError::Unreadable {
            path: directory.clone(),
            error,
        };
        let entries = match fs::read_dir(&directory) {
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let mut children = Vec::new();
        for entry in entries {
            let entry = match entry {
                Err(error) if is_gone(&error) => break,
                entry => entry.map_err(unreadable)?,
            };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                children.push(format!("{path}/{}", entry.file_name().to_string_lossy()));
            }
        }
        Ok(children)
    }

    fn id_of(&self, path: &str) -> Option<u64> {
        let metadata = fs::symlink_metadata(self.mount.join(path)).ok()?;
        metadata.is_dir().then(|| metadata.ino())
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_within(inner: &str, outer: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A directory that was removed while it was being read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Algorithm, Issuer, JwksSource};

    pub(crate) fn agent(name: &str, cgroup: &str) -> Arc<Agent> {
        Arc::new(Agent {
            name: name.to_owned(),
            cgroup: cgroup.to_owned(),
            issuer: Arc::new(Issuer {
                name: "corp".to_owned(),
                issuer: "i".to_owned(),
                audience: "a".to_owned(),
                jwks: JwksSource::File("/nowhere".into()),
                algorithms: vec![Algorithm::EdDsa],
                groups_claim: "groups".to_owned(),
                leeway: Duration::ZERO,
            }),
            token_file: "/nowhere".into(),
            subject: None,
            run_as: "nobody".to_owned(),
            postgres_password_file: None,
            targets: None,
        })
    }

    /// A directory stands for a cgroup: both are an inode with children.
    #[test]
    fn agents_by_nearest_cgroup() {
        let mount = tempfile::tempdir().unwrap();
        for path in [
            "agents.slice/a/x/y",
            "agents.slice/team/b/c",
            "agents.slice/loose",
            "other/a",
        ] {
            fs::create_dir_all(mount.path().join(path)).unwrap();
        }
        let agents = [
            agent("a", "agents.slice/a"),
            agent("b", "agents.slice/team/b"),
            agent("c", "agents.slice/team/b/c"),
        ];
        let tree = AgentTree::new(mount.path(), "agents.slice", agents.into_iter());
        let id = |path: &str| fs::metadata(mount.path().join(path)).unwrap().ino();
        for (path, expected) in [
            ("agents.slice/a", Some("a")),
            ("agents.slice/a/x/y", Some("a")),
            ("agents.slice/team", None),
            ("agents.slice/team/b", Some("b")),
            ("agents.slice/team/b/c", Some("c")),
            ("agents.slice/loose", None),
            ("agents.slice", None),
        ] {
            for _ in 0..2 {
                let located = tree.locate(id(path)).unwrap();
                assert_eq!(located.cgroup_path, path);
                assert_eq!(
                    located.agent.as_ref().map(|agent| agent.name.as_str()),
                    expected,
                    "{path}"
                );
            }
        }
        for outside in [id("other/a"), id(""), 0, u64::MAX] {
            let error = tree.locate(outside).unwrap_err();
            assert!(
                matches!(error, CgroupError::Unknown(unknown) if unknown == outside),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_remembered_is_not_believed_blindly() {
        let mount = tempfile::tempdir().unwrap();
        let path = |name: &str| mount.path().join("agents.slice").join(name);
        fs::create_dir_all(path("a")).unwrap();
        fs::create_dir_all(path("b")).unwrap();
        let agents = [agent("a", "agents.slice/a"), agent("b", "agents.slice/b")];
        let tree = AgentTree::new(mount.path(), "agents.slice", agents.into_iter());
        let id = fs::metadata(path("a")).unwrap().ino();
        assert_eq!(tree.locate(id).unwrap().agent.unwrap().name, "a");
        fs::remove_dir(path("b")).unwrap();
        fs::rename(path("a"), path("b")).unwrap();
        fs::create_dir(path("a")).unwrap();
        assert_eq!(tree.locate(id).unwrap().agent.unwrap().name, "b");
        fs::remove_dir(path("b")).unwrap();
        assert!(tree.locate(id).is_err());
    }

    #[test]
    fn subtrees_are_what_the_kernel_counts() {
        let mount = tempfile::tempdir().unwrap();
        for path in ["a/x/y", "team/b/c", "team/d", "loose/x", "teams"] {
            fs::create_dir_all(mount.path().join("agents.slice").join(path)).unwrap();
        }
        let agents = [
            agent("a", "agents.slice/a"),
            agent("b", "agents.slice/team/b"),
            agent("c", "agents.slice/team/b/c"),
            agent("f", "agents.slice/a/x"),
            agent("d", "agents.slice/team/d"),
            agent("e", "agents.slice/loose/x/not-yet"),
        ];
        let tree = AgentTree::new(mount.path(), "agents.slice", agents.into_iter());
        for (path, agent, agents) in [
            ("agents.slice/a", Some("a"), &["a", "f"][..]),
            ("agents.slice/team", None, &["b", "c", "d"]),
            ("agents.slice/teams", None, &[]),
            ("agents.slice/loose", None, &["e"]),
            ("agents.slice", None, &[]),
        ] {
            let id = fs::metadata(mount.path().join(path)).unwrap().ino();
            let subtree = tree.subtree(id).unwrap();
            assert_eq!(subtree.path, path);
            let name = |agent: &Arc<Agent>| agent.name.clone();
            assert_eq!(subtree.agent.as_ref().map(name).as_deref(), agent, "{path}");
            assert_eq!(
                subtree.agents.iter().map(name).collect::<Vec<_>>(),
                agents,
                "{path}"
            );
        }
        for (path, subtree) in [
            ("agents.slice/team/b/c", "agents.slice/team"),
            ("agents.slice/a", "agents.slice/a"),
            ("agents.slice", "agents.slice"),
        ] {
            assert_eq!(tree.subtree_path(path), subtree);
        }
    }

    #[test]
    fn who_asks_for_what_is_gone_costs_no_walk() {
        let mount = tempfile::tempdir().unwrap();
        let path = mount.path().join("agents.slice/a");
        fs::create_dir_all(&path).unwrap();
        let tree = AgentTree::new(mount.path(), "agents.slice", std::iter::empty());
        let id = fs::metadata(&path).unwrap().ino();
        fs::rename(&path, mount.path().join("elsewhere")).unwrap();
        assert!(tree.locate(id).is_err());
        // A cgroup cannot come back; a directory can, and shows that nobody looked.
        fs::rename(mount.path().join("elsewhere"), &path).unwrap();
        assert!(tree.locate(id).is_err());
        for other in 1..=MAX_GONE as u64 {
            assert!(tree.locate(u64::MAX - other).is_err());
        }
        assert!(
            tree.locate(id).is_ok(),
            "the memory of what is gone has an end"
        );
    }

    #[test]
    fn a_missing_root_has_no_cgroups() {
        let mount = tempfile::tempdir().unwrap();
        let tree = AgentTree::new(mount.path(), "agents.slice", std::iter::empty());
        assert!(matches!(tree.locate(1), Err(CgroupError::Unknown(1))));
    }

    /// The kernel's own cgroups: their ids are their inodes, and a child process is found in its cgroup.
    /// Needs root, as everything that makes cgroups does; without it the test fails.
    #[test]
    fn real_cgroups() {
        let mount = crate::intercept::cgroup::cgroup2_mount().unwrap();
        let root = format!("sluice-test-{}.slice", std::process::id());
        let removed_at_end = Cgroup::create(mount.join(&root));
        let bot = Cgroup::create(mount.join(&root).join("bot"));
        let worker = Cgroup::create(mount.join(&root).join("bot/worker"));
        let tree = AgentTree::new(
            &mount,
            &root,
            [agent("bot", &format!("{root}/bot"))].into_iter(),
        );

        let located = tree.locate(worker.id()).unwrap();
        assert_eq!(located.cgroup_path, format!("{root}/bot/worker"));
        assert_eq!(located.agent.unwrap().name, "bot");
        assert!(tree.locate(removed_at_end.id()).unwrap().agent.is_none());
        assert!(
            tree.locate(fs::metadata(&mount).unwrap().ino()).is_err(),
            "the mount itself"
        );

        let (id, path) = (worker.id(), worker.0.clone());
        drop(worker);
        assert!(matches!(tree.locate(id), Err(CgroupError::Unknown(_))));
        let again = Cgroup::create(path);
        assert_ne!(again.id(), id, "ids are not reused");
        assert!(tree.locate(again.id()).is_ok());
        drop((again, bot, removed_at_end));
    }

    /// A cgroup that is removed with the test, also when it fails.
    struct Cgroup(PathBuf);

    impl Cgroup {
        fn create(path: PathBuf) -> Self {
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn id(&self) -> u64 {
            fs::metadata(&self.0).unwrap().ino()
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }
}

//! Which program opened a connection, for the record.
//!
//! The kernel side notes ids and the name at connect time; what they stood for is read from `/proc` a moment
//! later. In between the process may have ended and its id may be another's, so everything is read through
//! one handle on `/proc/TGID`, which stays bound to one process for good, and that process must have started
//! before the flow and be in the flow's cgroup. Otherwise the executable is unknown, never a guess.
//!
//! Another user's process can only be looked into by root, so the broker does it for the gateway.
//!
//! What cannot be seen: a process that replaced its program (`execve`) between the connect and this look.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::intercept::Flow;
use crate::policy;

/// An agent can run a program of any size, real or sparse; larger ones are named but not hashed.
const MAX_EXECUTABLE: u64 = 1024 * 1024 * 1024;

/// A file system may be as slow as it likes; whoever asks waits for five seconds.
const MAX_HASHING: Duration = Duration::from_secs(4);

/// `/proc` files are small; these two have a hundred bytes, a cgroup path up to 4 KiB.
const MAX_PROC_FILE: u64 = 16 * 1024;

/// Timestamps advance in ticks of up to 10 ms: a file changed this recently could be changed again without
/// its timestamps showing it, so its digest is not remembered.
const RACY: Duration = Duration::from_secs(2);

/// How many programs' digests are remembered: far more than a host's agents run.
const MAX_DIGESTS: usize = 4096;

/// The process behind a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    pub tgid: u32,
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    pub comm: String,
    pub cgroup: String,
    /// When it started, in nanoseconds since boot (`CLOCK_BOOTTIME`, rounded down to 10 ms): with the boot and
    /// `tgid` it names one process for ever. `None` if it is not certain.
    pub started_boot_ns: Option<u64>,
    /// Path as the kernel shows it, ` (deleted)` included; `None` if it is not certain.
    pub exe: Option<String>,
    /// Of the file that is running, in hex, even if it was deleted or replaced.
    pub exe_sha256: Option<String>,
}

/// What is found out about the process that made a flow, when it is certain to be that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// In nanoseconds since boot, rounded down to clock ticks.
    pub started_boot_ns: u64,
    /// Its program's path, if it can be told.
    pub exe: Option<String>,
    /// In hex; `None` if the file could not be read whole, in time.
    pub exe_sha256: Option<String>,
}

impl Process {
    /// What the kernel noted of the flow's process, and what was found out about it.
    pub fn of(flow: &Flow, cgroup_path: &str, origin: Option<Origin>) -> Self {
        let started_boot_ns = origin.as_ref().map(|origin| origin.started_boot_ns);
        let (exe, exe_sha256) = origin.map(|origin| (origin.exe, origin.exe_sha256)).unzip();
        Self {
            tgid: flow.tgid,
            pid: flow.pid,
            uid: flow.uid,
            gid: flow.gid,
            comm: flow.comm.clone(),
            cgroup: cgroup_path.to_owned(),
            started_boot_ns,
            exe: exe.flatten(),
            exe_sha256: exe_sha256.flatten(),
        }
    }

    /// What policies may ask about it.
    pub fn facts(&self) -> policy::Process {
        policy::Process {
            uid: self.uid,
            exe: self.exe.clone(),
            exe_sha256: self.exe_sha256.clone(),
        }
    }
}

/// Looks at the flow's process directly, which needs root for another user's.
pub fn inspect(flow: &Flow, cgroup_path: &str) -> Process {
    let origin = origin(flow.tgid, flow.boot_ns, cgroup_path);
    Process::of(flow, cgroup_path, origin)
}

/// The process that had the id `tgid` at `boot_ns` (nanoseconds since boot) and is in this cgroup, relative to
/// the cgroup v2 mount. `None` unless all of that is certain.
///
/// Blocks while it reads the executable, for as long as the filesystem it lies on takes: call it on a thread
/// that may, under a deadline.
pub fn origin(tgid: u32, boot_ns: u64, cgroup_path: &str) -> Option<Origin> {
    let handle = Handle::open(tgid)?;
    let started_boot_ns = handle.started_before(boot_ns, cgroup_path).ok()??;
    let (exe, exe_sha256) = handle.executable().ok().unzip();
    Some(Origin {
        started_boot_ns,
        exe,
        exe_sha256: exe_sha256.flatten(),
    })
}

/// `/proc/TGID`, bound to the process that had that id when it was opened: when it ends, reads fail with
/// ESRCH, whoever has the id then.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// `None`: there is no such process.
    pub fn open(tgid: u32) -> Option<Self> {
        let path = format!("/proc/{tgid}");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(path.as_str(), flags, Mode::empty()).ok().map(Self)
    }

    /// Where it is in the cgroup v2 hierarchy, relative to its mount; `None` if that is no readable name.
    pub fn cgroup(&self) -> io::Result<Option<String>> {
        let content = self.read("cgroup")?;
        let path = cgroup2_path(&content).map(<[u8]>::to_vec);
        Ok(path.and_then(|path| String::from_utf8(path).ok()))
    }

    /// The network namespace it is in.
    pub fn network(&self) -> io::Result<File> {
        self.open_file("ns/net")
    }

    /// When this process started, if it can be the one that made a flow at `boot_ns` from this cgroup.
    fn started_before(&self, boot_ns: u64, cgroup_path: &str) -> io::Result<Option<u64>> {
        let stat = self.read("stat")?;
        let cgroup = self.read("cgroup")?;
        let started = start_ticks(&stat).map(ticks_to_nanos);
        Ok(started.filter(|nanos| {
            *nanos <= boot_ns && cgroup2_path(&cgroup) == Some(cgroup_path.as_bytes())
        }))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open_file(name)?
            .take(MAX_PROC_FILE)
            .read_to_end(&mut content)?;
        Ok(content)
    }

    /// The path of the running program, and its digest if it can be read.
    fn executable(&self) -> io::Result<(String, Option<String>)> {
        let path: OsString = readlinkat(&self.0, "exe")?;
        // The magic link leads to the file that runs, whatever has become of its path.
        let sha256 = self.open_file("exe").and_then(digest).ok().flatten();
        Ok((path.to_string_lossy().into_owned(), sha256))
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = openat(&self.0, name, flags, Mode::empty())?;
        Ok(File::from(fd))
    }
}

/// Field 22 of `/proc/PID/stat`. The second field is the program's name in parentheses, and may itself
/// contain both kinds and blanks.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    // The first field after the name is the third.
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Ticks are rounded down, so a process never seems to have started later than it did.
fn ticks_to_nanos(ticks: u64) -> u64 {
    /// USER_HZ, fixed to 100 on every architecture this runs on; sysconf(_SC_CLK_TCK) says the same.
    const NANOS_PER_TICK: u64 = 1_000_000_000 / 100;
    ticks.saturating_mul(NANOS_PER_TICK)
}

/// The path in the v2 hierarchy: the line `0::/path`, without its leading slash.
fn cgroup2_path(cgroup: &[u8]) -> Option<&[u8]> {
    cgroup
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::/"))
}

/// What identifies the content of a file without reading it. The change time is what counts: unlike the
/// modification time, a file's owner cannot set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Digests of programs already read. Only saves work: an entry says what the same file's bytes hash to.
static DIGESTS: LazyLock<Mutex<HashMap<Version, String>>> = LazyLock::new(Mutex::default);

/// SHA-256 of an open file; `None` if it is too large, or too slow.
fn digest(mut file: File) -> io::Result<Option<String>> {
    let version = Version::of(&file)?;
    if version.size > MAX_EXECUTABLE {
        return Ok(None);
    }
    let remembered = {
        let digests = DIGESTS.lock().unwrap_or_else(PoisonError::into_inner);
        digests.get(&version).cloned()
    };
    if remembered.is_some() {
        return Ok(remembered);
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut left = MAX_EXECUTABLE;
    let started = Instant::now();
    loop {
        if started.elapsed() > MAX_HASHING {
            return Ok(None);
        }
        let length = match file.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if length == 0 {
            break;
        }
        // Some filesystems report a size of their choosing.
        left = match left.checked_sub(length as u64) {
            Some(left) => left,
            None => return Ok(None),
        };
        hasher.update(&buffer[..length]);
    }
    let digest = hex::encode(hasher.finalize());
    if Version::of(&file)? == version && version.is_settled(SystemTime::now()) {
        remember(version, &digest);
    }
    Ok(Some(digest))
}

fn remember(version: Version, digest: &str) {
    let mut digests = DIGESTS.lock().unwrap_or_else(PoisonError::into_inner);
    if digests.len() >= MAX_DIGESTS {
        digests.clear();
    }
    digests.insert(version, digest.to_owned());
}

impl Version {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or(0));
        now.duration_since(UNIX_EPOCH + changed)
            .is_ok_and(|age| age > RACY)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn boot_nanos() -> u64 {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let hundredths = uptime.split(' ').next().unwrap().replace('.', "");
        ticks_to_nanos(hundredths.parse().unwrap())
    }

    fn flow(tgid: u32, boot_ns: u64) -> Flow {
        use crate::intercept::FlowKind;

        Flow {
            original: ([127, 0, 0, 1], 5432).into(),
            kind: FlowKind::Redirected,
            cgroup_id: 1,
            subtree: 1,
            netns_cookie: 1,
            socket_cookie: 1,
            tgid,
            pid: tgid,
            uid: 0,
            gid: 0,
            comm: "psql".to_owned(),
            boot_ns,
        }
    }

    fn own_cgroup() -> String {
        let cgroup = fs::read("/proc/self/cgroup").unwrap();
        String::from_utf8(cgroup2_path(&cgroup).unwrap().to_vec()).unwrap()
    }

    fn sha256_of(path: &Path) -> String {
        hex::encode(Sha256::digest(fs::read(path).unwrap()))
    }

    /// A copy of sleep(1) that runs until the test is over.
    struct Sleeper(Child);

    impl Sleeper {
        fn start(program: &Path) -> Self {
            fs::copy("/bin/sleep", program).unwrap();
            fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
            loop {
                match Command::new(program).arg("60").stdin(Stdio::null()).spawn() {
                    // spawn() returns once the program runs.
                    Ok(child) => return Self(child),
                    // Another test's fork still holds the copy open for writing, until it execs.
                    Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => (),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_executable_of_this_very_process() {
        let process = inspect(&flow(std::process::id(), boot_nanos()), &own_cgroup());
        let own = std::env::current_exe().unwrap();
        assert_eq!(process.exe.as_deref(), own.to_str());
        assert_eq!(process.exe_sha256, Some(sha256_of(&own)));
        assert_eq!(
            (process.comm.as_str(), process.tgid),
            ("psql", std::process::id())
        );
        let started = process.started_boot_ns.unwrap();
        assert!(started > 0 && started <= boot_nanos(), "{started}");
        assert_eq!(process.facts().exe_sha256, process.exe_sha256);
    }

    #[test]
    fn a_deleted_executable_is_still_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("sleeper");
        let sleeper = Sleeper::start(&program);
        let digest = sha256_of(&program);
        fs::remove_file(&program).unwrap();
        fs::write(&program, "something else").unwrap();
        let process = inspect(&flow(sleeper.0.id(), boot_nanos()), &own_cgroup());
        assert_eq!(
            process.exe,
            Some(format!("{} (deleted)", program.display()))
        );
        assert_eq!(process.exe_sha256, Some(digest));
    }

    #[test]
    fn a_process_that_is_not_the_flows_stays_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let before = boot_nanos() - 50_000_000;
        let sleeper = Sleeper::start(&dir.path().join("sleeper"));
        let id = sleeper.0.id();
        let gone = {
            let short = Sleeper::start(&dir.path().join("short"));
            short.0.id()
        };
        for (name, flow, cgroup) in [
            (
                "started after the flow: the id was reused",
                flow(id, before),
                own_cgroup(),
            ),
            (
                "in another cgroup",
                flow(id, boot_nanos()),
                "agents.slice/other".to_owned(),
            ),
            (
                "in a cgroup whose path starts the same",
                flow(id, boot_nanos()),
                own_cgroup() + "x",
            ),
            ("ended", flow(gone, boot_nanos()), own_cgroup()),
            ("never was", flow(u32::MAX, boot_nanos()), own_cgroup()),
            ("the idle task", flow(0, boot_nanos()), own_cgroup()),
        ] {
            let process = inspect(&flow, &cgroup);
            assert_eq!((process.exe, process.exe_sha256), (None, None), "{name}");
            assert_eq!(process.started_boot_ns, None, "{name}");
            assert_eq!(process.cgroup, cgroup, "{name}");
        }
        assert!(
            inspect(&flow(id, boot_nanos()), &own_cgroup())
                .exe
                .is_some()
        );
    }

    #[test]
    fn a_handle_outlives_its_process_and_not_longer() {
        let dir = tempfile::tempdir().unwrap();
        let sleeper = Sleeper::start(&dir.path().join("sleeper"));
        let handle = Handle::open(sleeper.0.id()).unwrap();
        assert!(handle.read("stat").is_ok());
        drop(sleeper);
        assert_eq!(
            handle.read("stat").unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
        assert!(handle.executable().is_err());
    }

    #[test]
    fn digests_are_remembered_by_version_and_only_when_settled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("program");
        fs::write(&file, "one").unwrap();
        let open = || File::open(&file).unwrap();
        let version = Version::of(&open()).unwrap();
        let first = digest(open()).unwrap();
        assert_eq!(first, Some(sha256_of(&file)));
        assert!(!DIGESTS.lock().unwrap().contains_key(&version), "too fresh");
        // Same size, and the modification time put back: the change time still tells.
        let modified = open().metadata().unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&file, "two").unwrap();
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        let changed = Version::of(&open()).unwrap();
        assert_eq!(changed.modified, version.modified);
        assert_ne!(changed, version);
        remember(version, "of the first");
        assert_eq!(digest(open()).unwrap(), Some(sha256_of(&file)));
        remember(changed, "remembered");
        assert_eq!(digest(open()).unwrap().as_deref(), Some("remembered"));
        assert!(version.is_settled(SystemTime::now() + Duration::from_secs(4)));
    }

    #[test]
    fn a_sparse_giant_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 42).unwrap();
        assert_eq!(digest(file).unwrap(), None);
    }

    #[test]
    fn start_times() {
        let tail = "S 1 1 1 0 -1 4194560 9 0 0 0 1 0 0 0 20 0 1 0 4242 10 20";
        for (name, stat, expected) in [
            ("plain", format!("7 (cat) {tail}"), Some(4242)),
            (
                "name with blanks and parentheses",
                format!("7 (a) S 1 (b c) {tail}"),
                Some(4242),
            ),
            ("cut short", "7 (cat) S 1 1".to_owned(), None),
            ("no name", "7 cat S".to_owned(), None),
            ("nothing", String::new(), None),
        ] {
            assert_eq!(start_ticks(stat.as_bytes()), expected, "{name}");
        }
        assert_eq!(ticks_to_nanos(150), 1_500_000_000);
        assert_eq!(ticks_to_nanos(u64::MAX), u64::MAX);
        let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        assert_eq!(hz, Ok(Some(100)));
    }

    #[test]
    fn cgroup_lines() {
        for (text, expected) in [
            ("0::/agents.slice/bot\n", Some("agents.slice/bot")),
            ("9:pids:/x\n0::/\n", Some("")),
            ("9:name=0::/x:/y\n", None),
            ("", None),
        ] {
            assert_eq!(
                cgroup2_path(text.as_bytes()),
                expected.map(str::as_bytes),
                "{text:?}"
            );
        }
    }
}

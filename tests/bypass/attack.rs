//! The attack programs: compiled from `tests/attacks`, run where and as whom a test says.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use serde_json::Value;

use crate::harness::program::run;
use crate::harness::uplink::Netns;
use crate::harness::{cache, repository, scratch};

pub const NOBODY: u32 = 65534;
/// Somebody else who is nobody in particular.
pub const SOMEBODY: u32 = 64024;

/// Where a program runs, and as whom.
#[derive(Clone)]
pub struct Place {
    pub group: PathBuf,
    pub netns: Netns,
    /// Root if 0.
    pub user: u32,
}

/// A program in its place, with what it printed.
pub struct Said {
    pub pid: u32,
    pub lines: Vec<Value>,
    pub stderr: String,
}

impl Said {
    /// The answer of the last call; "nothing" if the program printed none.
    pub fn errno(&self) -> String {
        let last = self.lines.last().map(|line| &line["errno"]);
        last.and_then(Value::as_str).unwrap_or("nothing").to_owned()
    }

    /// All calls and their answers.
    pub fn story(&self) -> String {
        let calls = self
            .lines
            .iter()
            .map(|line| format!("{} {}", text(&line["call"]), text(&line["errno"])));
        let story: Vec<String> = calls.collect();
        format!("{} {}", story.join(", "), self.stderr.trim())
    }

    /// A member of the last line.
    pub fn last(&self, name: &str) -> &Value {
        self.lines.last().map_or(&Value::Null, |line| &line[name])
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Place {
    /// Another cgroup, made if it is not there.
    pub fn in_group(&self, group: PathBuf) -> Place {
        fs::create_dir_all(&group).expect("root may make control groups");
        Place {
            group,
            ..self.clone()
        }
    }

    pub fn as_user(&self, user: u32) -> Place {
        Place {
            user,
            ..self.clone()
        }
    }

    pub fn in_netns(&self, netns: &Netns) -> Place {
        Place {
            netns: netns.clone(),
            ..self.clone()
        }
    }

    /// Runs one attack to its end, standard input closed.
    #[track_caller]
    pub fn attack<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Said {
        self.attack_with(Stdio::null(), words)
    }

    /// The same, with a standard input of the test's choice.
    #[track_caller]
    pub fn attack_with<'a>(&self, stdin: Stdio, words: impl IntoIterator<Item = &'a str>) -> Said {
        let mut command = self.command(program(), words);
        command.stdin(stdin);
        said(command)
    }

    /// Starts an attack that goes on until it is dropped or its input is closed.
    #[track_caller]
    pub fn start<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Running {
        let mut command = self.command(program(), words);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().expect("the attack starts");
        let out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Running { child, out }
    }

    /// Any program in this place. It is there, and nobody's but that user's, before its first instruction.
    pub fn command<'a>(&self, program: &Path, words: impl IntoIterator<Item = &'a str>) -> Command {
        let procs = self.group.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .unwrap_or_else(|error| panic!("{}: {error}", procs.display()));
        let (netns, user) = (self.netns.clone(), self.user);
        let mut command = Command::new(program);
        command.args(words).env_clear().env("PATH", "/usr/bin:/bin");
        let enter = move || {
            check(unsafe { libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) } as i64)?;
            let netns = netns.file().as_raw_fd();
            check(i64::from(unsafe { libc::setns(netns, libc::CLONE_NEWNET) }))?;
            if user != 0 {
                check(i64::from(unsafe { libc::setgroups(0, std::ptr::null()) }))?;
                check(i64::from(unsafe { libc::setresgid(user, user, user) }))?;
                check(i64::from(unsafe { libc::setresuid(user, user, user) }))?;
            }
            Ok(())
        };
        // SAFETY: system calls only, on descriptors that the closure owns.
        unsafe { command.pre_exec(enter) };
        command
    }
}

/// Runs an attack that was put together elsewhere.
#[track_caller]
pub fn said(mut command: Command) -> Said {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the attack starts");
    // Its own end of what it was given must not stay open here.
    drop(command);
    let pid = child.id();
    let output = child.wait_with_output().expect("it can be waited for");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Said {
        pid,
        lines: lines(&stdout),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn check(result: i64) -> io::Result<()> {
    match result {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// An attack that goes on.
pub struct Running {
    pub child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    /// The next line it prints.
    #[track_caller]
    pub fn says(&mut self) -> Value {
        let mut line = String::new();
        self.out
            .read_line(&mut line)
            .expect("its output can be read");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("it said {line:?}: {error}"))
    }

    /// Closes its input and reads the rest.
    pub fn end(mut self) -> Vec<Value> {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.out
            .read_to_string(&mut rest)
            .expect("its output can be read");
        self.child.wait().expect("it can be waited for");
        lines(&rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The compiled program, where anybody may run it.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = PROGRAM.get_or_init(|| {
        let folder = scratch::folder("attacks");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))
            .expect("the folder is ours");
        let copy = folder.path().join("attack");
        fs::copy(compiled(), &copy).expect("the folder is ours");
        (folder, copy)
    });
    program
}

/// In the target folder, made anew when a source is newer.
fn compiled() -> PathBuf {
    let sources = repository().join("tests/attacks");
    let program = cache().join("attack");
    let lock = File::create(cache().join("attack.lock")).expect("the target folder is writable");
    lock.lock().expect("a file can be locked");
    let files: Vec<PathBuf> = fs::read_dir(&sources)
        .expect("the sources are there")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let newest = files.iter().map(|file| modified(file)).max();
    if modified(&program) < newest.flatten() || !program.exists() {
        let unfinished = cache().join("attack.unfinished");
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu17", "-O1", "-Wall", "-Wextra", "-pthread", "-o"])
            .arg(&unfinished)
            .args(
                files
                    .iter()
                    .filter(|file| file.extension().is_some_and(|kind| kind == "c")),
            );
        run(cc).succeeds();
        fs::rename(&unfinished, &program).expect("the target folder is writable");
    }
    program
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file)
        .and_then(|metadata| metadata.modified())
        .ok()
}

/// A socket made in a place: by a process there, which hands it over and ends.
pub fn socket_from(place: &Place, how: &[&str]) -> OwnedFd {
    let (here, there) = std::os::unix::net::UnixStream::pair().expect("pairs can be made");
    let mut command = place.command(program(), how.iter().copied());
    command.stdin(Stdio::from(OwnedFd::from(there)));
    let mut child = command.spawn().expect("the attack starts");
    drop(command);
    let descriptor = receive(&here);
    drop(here);
    child.wait().expect("it can be waited for");
    descriptor.unwrap_or_else(|| panic!("{how:?} handed no socket over"))
}

fn receive(from: &std::os::unix::net::UnixStream) -> Option<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut byte = [0];
    let mut slices = [io::IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags).ok()?;
    message.cmsgs().ok()?.find_map(|message| match message {
        // SAFETY: just received, and nobody else's.
        ControlMessageOwned::ScmRights(descriptors) => descriptors
            .first()
            .map(|descriptor| unsafe { OwnedFd::from_raw_fd(*descriptor) }),
        _ => None,
    })
}

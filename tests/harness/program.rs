//! Programs run to their end, with a deadline, and what they printed.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

/// A program that hangs is a failed test, never a hung run. Long enough for pgbench on two busy cores.
const DEADLINE: Duration = Duration::from_secs(90);

/// The program under test, where any user may run it: a gateway that gave up root starts its successor from
/// the same path, and the target folder may lie where only root can walk.
pub fn sluice_binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_sluice"));
        match built.ancestors().all(is_open_to_all) {
            true => built.to_path_buf(),
            false => open_copy_of(built),
        }
    });
    BINARY.as_path()
}

fn is_open_to_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o001 != 0)
}

/// One copy for each target folder, made anew when cargo has built anew.
fn open_copy_of(built: &Path) -> PathBuf {
    let folder = std::env::temp_dir().join("sluice-test-binary");
    fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let lock = File::create(folder.join("lock")).expect("the folder is ours");
    lock.lock().expect("a file can be locked");
    let copy = folder.join(hex::encode(built.as_os_str().as_encoded_bytes()));
    let age = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let built_at = age(built).expect("cargo has built it");
    if age(&copy).is_ok_and(|copied| copied == built_at) {
        return copy;
    }
    let unfinished = folder.join("unfinished");
    fs::copy(built, &unfinished).expect("the temporary folder has room");
    let file = File::options().write(true).open(&unfinished);
    let file = file.expect("the copy is ours");
    file.set_modified(built_at).expect("the copy is ours");
    file.set_permissions(fs::Permissions::from_mode(0o755))
        .expect("the copy is ours");
    fs::rename(&unfinished, &copy).expect("the copy is ours");
    copy
}

/// A program that has ended.
pub struct Ended {
    command: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
}

impl Ended {
    /// Fails the test, with everything the program printed, unless it exited 0.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        assert!(self.status.success(), "should have succeeded: {self}");
        self
    }

    /// Fails the test unless the program exited with something else than 0.
    #[track_caller]
    pub fn fails(self) -> Self {
        assert!(!self.status.success(), "should have failed: {self}");
        self
    }

    /// Fails the test unless the program's error output contains `text`.
    #[track_caller]
    pub fn complains(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "stderr lacks {text:?}: {self}");
        self
    }

    /// Fails the test unless the program printed `text`, which need not be everything it printed.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert!(self.text().contains(text), "stdout lacks {text:?}: {self}");
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as lines.
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "`{}` ended with {} after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            self.took,
            self.text(),
            self.stderr
        )
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(command: Command) -> Ended {
    run_with_input(command, b"")
}

/// Runs a program to its end with `input` on its standard input.
#[track_caller]
pub fn run_with_input(command: Command, input: &[u8]) -> Ended {
    run_within(DEADLINE, command, input)
}

/// The same with a deadline of its own.
#[track_caller]
pub fn run_within(deadline: Duration, mut command: Command, input: &[u8]) -> Ended {
    let shown = shown(&command);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start `{shown}`: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stdout = drain(child.stdout.take().expect("stdout is piped"));
    let stderr = drain(child.stderr.take().expect("stderr is piped"));
    // A program may end without having read its input; that is its right.
    let _ = stdin.write_all(input);
    drop(stdin);
    let status = wait(&mut child, &shown, deadline);
    Ended {
        command: shown,
        status,
        stdout: stdout.join().expect("the reader does not panic"),
        stderr: String::from_utf8_lossy(&stderr.join().expect("the reader does not panic"))
            .into_owned(),
        took: started.elapsed(),
    }
}

/// Starts a reader thread, so that a chatty program never waits for a full pipe.
pub fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // The pipe of a program that was killed may break; what came until then counts.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn wait(child: &mut Child, shown: &str, deadline: Duration) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if started.elapsed() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("`{shown}` had not ended after {deadline:?} and was killed");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Asks again until `answer` has one, for as long as `patience` lasts.
#[track_caller]
pub fn eventually<T>(what: &str, patience: Duration, mut answer: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(
            started.elapsed() < patience,
            "{what}: not within {patience:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

//! The toolchain for the kernel programs: a rustc with `core` for `bpfel-unknown-none`, and bpf-linker.
//!
//! In this order:
//! 1. rustup's nightly with rust-src, which builds `core` itself (`-Z build-std=core`), with a bpf-linker whose
//!    LLVM can read that nightly's bitcode;
//! 2. Debian's `rustc-web` and `libstd-rust-web-dev-bpf`, which bring a prebuilt `core`. Installed they would
//!    replace the user's rustc, so the packages are unpacked into a private folder below `~/.cache/sluice`.
//!
//! bpf-linker is built once, against the LLVM that rustc itself uses.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Its minimum: reads LLVM 22 bitcode.
const BPF_LINKER_VERSION: &str = "0.13.0";
/// What Debian calls a compiler new enough for browsers, and the BPF target's core.
const DEBIAN_RUSTC: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"];
/// These stay the system's own: a second libc next to the system's loader breaks every program.
const NEVER_UNPACKED: &[&str] = &[
    "libc6",
    "libc-",
    "libgcc",
    "libstdc++",
    "gcc",
    "cpp",
    "binutils",
    "linux-",
];

const MANUAL: &str = "\
needs a Rust compiler with core for bpfel-unknown-none:
  Debian   apt-get install rustc-web libstd-rust-web-dev-bpf   (run this task as root or with sudo at hand; on Debian 12
           both come from bookworm-security, which must be among apt's sources)
  Ubuntu   rustup toolchain install nightly --component rust-src && cargo install bpf-linker
  Fedora   rustup toolchain install nightly --component rust-src && cargo install bpf-linker";

/// How to compile and link for the kernel.
pub struct Toolchain {
    /// For people: which of the two it is.
    pub name: String,
    pub clippy_driver: Option<PathBuf>,
    pub linker: PathBuf,
    /// What cargo needs in its environment.
    pub environment: Vec<(&'static str, OsString)>,
    /// What cargo needs on its command line.
    pub cargo_arguments: &'static [&'static str],
}

/// The first usable toolchain; installs Debian's when there is none.
pub fn find_or_install() -> Result<Toolchain> {
    let cache = Cache::open()?;
    if let Some(nightly) = nightly(&cache)? {
        return Ok(nightly);
    }
    debian(&cache)
}

/// Installs the Debian packages that are missing.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!(
        "apt-get install {0}   (Fedora: dnf install {0}, under its own names)",
        missing.join(" ")
    );
    ensure!(
        on_path("apt-get").is_some(),
        "missing: {}. Install them: {by_hand}",
        missing.join(" ")
    );
    let root =
        as_root().with_context(|| format!("missing: {}. As root: {by_hand}", missing.join(" ")))?;
    progress(&format!("installing {}", missing.join(" ")));
    update_package_lists_if_unknown(&missing)?;
    let mut command = root.command("apt-get");
    command
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(&missing);
    run_apt(&mut command).with_context(|| format!("install by hand: {by_hand}"))
}

/// One line on stderr, so that a long step is seen to be one.
pub fn progress(what: &str) {
    eprintln!("xtask: {what} …");
}

// ------------------------------------------------------------------------------------------ rustup's nightly

fn nightly(cache: &Cache) -> Result<Option<Toolchain>> {
    // Asked for a toolchain that is not there, rustup would install it.
    let mut rustup = Command::new("rustup");
    rustup.env("RUSTUP_AUTO_INSTALL", "0");
    let Some(rustc) = output(rustup.args(["which", "--toolchain", "nightly", "rustc"])) else {
        return Ok(None);
    };
    let rustc = PathBuf::from(rustc);
    let Some(sysroot) = output(Command::new(&rustc).args(["--print", "sysroot"])) else {
        return Ok(None);
    };
    let sysroot = PathBuf::from(sysroot);
    if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        return Ok(None);
    }
    let candidates = [on_path("bpf-linker"), cache.linker_if_built()];
    let Some(linker) = candidates
        .into_iter()
        .flatten()
        .find(|linker| reads_bitcode_of(linker, &rustc, cache))
    else {
        return Ok(None);
    };
    let clippy_driver = sysroot.join("bin/clippy-driver");
    Ok(Some(Toolchain {
        name: "rustup nightly with rust-src".into(),
        clippy_driver: clippy_driver.exists().then_some(clippy_driver),
        linker,
        environment: Vec::new(),
        cargo_arguments: &["-Z", "build-std=core"],
    }))
}

/// Whether this linker's LLVM is as new as the compiler's: it links an empty program of the compiler's.
fn reads_bitcode_of(linker: &Path, rustc: &Path, cache: &Cache) -> bool {
    let source = cache.path("probe.rs");
    let bitcode = cache.path("probe.bc");
    if fs::write(&source, "#![feature(no_core)]\n#![no_core]\n").is_err() {
        return false;
    }
    let mut compile = Command::new(rustc);
    compile.env("RUSTC_BOOTSTRAP", "1").args([
        "--target=bpfel-unknown-none",
        "--crate-type=lib",
        "--emit=llvm-bc",
        "-o",
    ]);
    compile.arg(&bitcode).arg(&source);
    let mut link = Command::new(linker);
    link.args(["--target=bpfel-unknown-none", "--output"])
        .arg(cache.path("probe.o"))
        .arg(&bitcode);
    output(&mut compile).is_some() && output(&mut link).is_some()
}

// ---------------------------------------------------------------------------------------------- Debian's rustc

fn debian(cache: &Cache) -> Result<Toolchain> {
    let home = if has_bpf_core(Path::new("/usr")) {
        System::Installed
    } else {
        System::Unpacked(cache.rustc()?)
    };
    let (rustc, libraries) = match &home {
        System::Installed => (PathBuf::from("/usr/bin/rustc"), multiarch(Path::new("/"))),
        System::Unpacked(root) => (cache.wrapper("rustc", root)?, multiarch(root)),
    };
    let linker =
        match on_path("bpf-linker").filter(|linker| reads_bitcode_of(linker, &rustc, cache)) {
            Some(linker) => linker,
            None => cache.linker(&rustc, &libraries, &home)?,
        };
    let clippy_driver = match &home {
        System::Unpacked(root) if root.join("usr/bin/clippy-driver").exists() => {
            Some(cache.wrapper("clippy-driver", root)?)
        }
        System::Installed if Path::new("/usr/bin/clippy-driver").exists() => {
            Some("/usr/bin/clippy-driver".into())
        }
        _ => None,
    };
    Ok(Toolchain {
        name: "Debian's rustc-web".into(),
        // The crates' names, not 1: the only unstable feature is BPF assembly, and with 1 aya-ebpf's build
        // script would ask for -Z build-std.
        environment: vec![
            ("RUSTC", rustc.into()),
            ("RUSTC_BOOTSTRAP", "aya_ebpf,sluice_ebpf".into()),
        ],
        clippy_driver,
        linker,
        cargo_arguments: &[],
    })
}

enum System {
    Installed,
    Unpacked(PathBuf),
}

fn has_bpf_core(prefix: &Path) -> bool {
    prefix.join("bin/rustc").exists() && prefix.join("lib/rustlib/bpfel-unknown-none/lib").is_dir()
}

/// `<root>/usr/lib/<triplet>`, where Debian keeps shared libraries.
fn multiarch(root: &Path) -> PathBuf {
    root.join("usr/lib")
        .join(format!("{}-linux-gnu", env::consts::ARCH))
}

// ------------------------------------------------------------------------------------------- the private folder

/// `~/.cache/sluice`, or where `XDG_CACHE_HOME` wants it.
pub fn private_folder() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|value| Path::new(value).is_absolute()) {
        Some(base) => PathBuf::from(base),
        None => {
            PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
                .join(".cache")
        }
    };
    Ok(base.join("sluice"))
}

/// `~/.cache/sluice/toolchain-1`; locked while it is held, so that two tasks do not build the same thing.
struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    fn open() -> Result<Self> {
        let root = private_folder()?.join("toolchain-1");
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        let lock = File::create(root.join("lock"))?;
        if lock.try_lock().is_err() {
            progress("waiting for another task that prepares the toolchain");
            lock.lock()?;
        }
        Ok(Self { root, _lock: lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where Debian's compiler is unpacked; downloads it when it is not there.
    fn rustc(&self) -> Result<PathBuf> {
        let root = self.path("rustc");
        if has_bpf_core(&root.join("usr")) {
            return Ok(root);
        }
        ensure!(
            on_path("apt-get").is_some() && on_path("dpkg").is_some(),
            "{MANUAL}"
        );
        update_package_lists_if_unknown(DEBIAN_RUSTC)?;
        progress("downloading Debian's rustc-web and its libraries (about 120 MB)");
        let archives = self.download(DEBIAN_RUSTC).context(MANUAL)?;
        progress("unpacking");
        let partial = self.path("rustc.partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        for archive in packages_in(&archives)? {
            run_quietly(Command::new("dpkg").arg("-x").arg(&archive).arg(&partial))?;
        }
        ensure!(
            has_bpf_core(&partial.join("usr")),
            "the unpacked rustc-web has no core for bpfel-unknown-none\n{MANUAL}"
        );
        fs::rename(&partial, &root)?;
        let _ = fs::remove_dir_all(&archives);
        Ok(root)
    }

    /// Downloads the packages, and what they depend on and the system lacks, without installing anything.
    fn download(&self, packages: &[&str]) -> Result<PathBuf> {
        let archives = self.path("archives");
        fs::create_dir_all(archives.join("partial"))?;
        let mut command = Command::new("apt-get");
        command.args([
            "install",
            "--download-only",
            "-y",
            "-q",
            "--no-install-recommends",
        ]);
        command.args([
            "-o",
            "Debug::NoLocking=1",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
        ]);
        command.arg(format!("Dir::Cache::Archives={}", archives.display()));
        run_apt(command.args(packages))?;
        Ok(archives)
    }

    /// A script that runs a program of the unpacked tree with the libraries of that tree.
    fn wrapper(&self, program: &str, root: &Path) -> Result<PathBuf> {
        self.script(
            program,
            &root.join("usr/bin").join(program),
            &multiarch(root),
        )
    }

    fn script(&self, name: &str, program: &Path, libraries: &Path) -> Result<PathBuf> {
        let script = self.path("bin").join(name);
        let text = format!(
            "#!/bin/sh\nexec env LD_LIBRARY_PATH='{}' '{}' \"$@\"\n",
            libraries.display(),
            program.display()
        );
        // Cargo rebuilds everything when its compiler's file is newer: leave it alone when it is right.
        if fs::read_to_string(&script).is_ok_and(|existing| existing == text) {
            return Ok(script);
        }
        fs::create_dir_all(self.path("bin"))?;
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(script)
    }

    fn linker_if_built(&self) -> Option<PathBuf> {
        let linker = self.path("bin/bpf-linker");
        (linker.exists() && self.path("linker/bin/bpf-linker").exists()).then_some(linker)
    }

    /// bpf-linker for this compiler's LLVM; built when it is not there.
    fn linker(&self, rustc: &Path, libraries: &Path, home: &System) -> Result<PathBuf> {
        if let Some(linker) = self
            .linker_if_built()
            .filter(|linker| reads_bitcode_of(linker, rustc, self))
        {
            return Ok(linker);
        }
        let major = llvm_major(rustc)?;
        progress(&format!(
            "building bpf-linker {BPF_LINKER_VERSION} for LLVM {major} (once, about a minute)"
        ));
        let prefix = self.llvm_prefix(libraries, home)?;
        let mut command = cargo();
        command.args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER_VERSION,
            "--locked",
            "--quiet",
            "--force",
        ]);
        command.args([
            "--no-default-features",
            "--features",
            &format!("llvm-{major}"),
            "--root",
        ]);
        command.arg(self.path("linker")).env("LLVM_PREFIX", &prefix);
        run_quietly(&mut command).context("building bpf-linker")?;
        let linker = self.script("bpf-linker", &self.path("linker/bin/bpf-linker"), libraries)?;
        ensure!(
            reads_bitcode_of(&linker, rustc, self),
            "the bpf-linker just built does not read {}'s bitcode",
            rustc.display()
        );
        Ok(linker)
    }

    /// What llvm-dev would bring and bpf-linker needs of it: `lib/libLLVM.so`.
    fn llvm_prefix(&self, libraries: &Path, home: &System) -> Result<PathBuf> {
        let mut places = vec![libraries.to_path_buf()];
        if matches!(home, System::Unpacked(_)) {
            places.push(multiarch(Path::new("/")));
        }
        let library = places.iter().find_map(|place| shared_llvm(place));
        let library = library.with_context(|| format!("no libLLVM.so.* in {places:?}"))?;
        let prefix = self.path("llvm");
        let _ = fs::remove_dir_all(&prefix);
        fs::create_dir_all(prefix.join("lib"))?;
        let own_name = library.file_name().context("a library has a name")?;
        symlink(&library, prefix.join("lib/libLLVM.so"))?;
        symlink(&library, prefix.join("lib").join(own_name))?;
        Ok(prefix)
    }
}

/// `libLLVM.so.22.1` in this folder.
fn shared_llvm(folder: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.retain(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("libLLVM.so."))
    });
    found.sort();
    found.pop()
}

fn llvm_major(rustc: &Path) -> Result<u32> {
    let version = output(Command::new(rustc).arg("-vV"))
        .with_context(|| format!("{} does not run", rustc.display()))?;
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "));
    let major = line.and_then(|version| version.split('.').next()?.parse().ok());
    major.with_context(|| format!("{} does not name its LLVM", rustc.display()))
}

fn packages_in(archives: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(archives)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".deb") && !NEVER_UNPACKED.iter().any(|prefix| name.starts_with(prefix)) {
            found.push(path);
        }
    }
    Ok(found)
}

// --------------------------------------------------------------------------------------------- running programs

/// The cargo that runs this task.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// How to become root.
struct Root {
    sudo: Option<PathBuf>,
}

impl Root {
    fn command(&self, program: &str) -> Command {
        let mut command = match &self.sudo {
            Some(sudo) => Command::new(sudo),
            None => Command::new("env"),
        };
        if self.sudo.is_some() {
            command.arg("env");
        }
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        command
    }
}

fn as_root() -> Result<Root> {
    if output(Command::new("id").arg("-u")).as_deref() == Some("0") {
        return Ok(Root { sudo: None });
    }
    match on_path("sudo") {
        Some(sudo) => Ok(Root { sudo: Some(sudo) }),
        None => bail!("this user is not root and there is no sudo"),
    }
}

/// A fresh image has no package lists at all.
fn update_package_lists_if_unknown(packages: &[&str]) -> Result<()> {
    let known = |package: &&str| {
        output(Command::new("apt-cache").args(["policy", package])).is_some_and(|policy| {
            policy.lines().any(|line| {
                line.trim_start().starts_with("Candidate:") && !line.ends_with("(none)")
            })
        })
    };
    if packages.iter().all(known) {
        return Ok(());
    }
    let root = as_root().context("the package lists are to be updated first: apt-get update")?;
    update_package_lists(&root)
}

fn update_package_lists(root: &Root) -> Result<()> {
    progress("updating the package lists");
    run_quietly(root.command("apt-get").args(["update", "-q"]))
}

/// Tries once more with new package lists: old ones name files that the mirror no longer has.
fn run_apt(command: &mut Command) -> Result<()> {
    if output(command).is_some() {
        return Ok(());
    }
    if let Ok(root) = as_root() {
        update_package_lists(&root)?;
    }
    run_quietly(command)
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package])).as_deref()
        == Some("installed")
}

pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Trimmed standard output of a program that succeeded.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// Runs a program whose output matters only when it fails.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    std::io::stderr().write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    bail!("{command:?} ended with {}", output.status);
}

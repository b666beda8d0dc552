//! `sluice doctor`: what this host has and what is missing, in one table.
//!
//! Three kinds of rows: needed to run Sluice here, needed to build it, and good to have. Only a missing one of
//! the first kind makes the exit code 1.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;
use serde::Serialize;

use super::Globals;
use crate::config::Config;
use crate::intercept::{cgroup, guard};

#[derive(clap::Args, Debug)]
pub struct Args {}

pub fn run(_args: Args, globals: &Globals) -> Result<ExitCode> {
    let rows = examine(globals);
    let ok = rows.iter().all(|row| row.ok || row.need != Need::Run);
    if globals.json {
        println!("{}", serde_json::json!({ "ok": ok, "checks": rows }));
    } else {
        print(&rows, ok);
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Need {
    Run,
    Build,
    Optional,
}

#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    need: Need,
    ok: bool,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
}

impl Row {
    fn new(
        need: Need,
        what: &'static str,
        found: Result<String, String>,
        hint: &'static str,
    ) -> Self {
        match found {
            Ok(found) => Self {
                what,
                need,
                ok: true,
                found,
                hint: None,
            },
            Err(found) => Self {
                what,
                need,
                ok: false,
                found,
                hint: Some(hint),
            },
        }
    }
}

fn examine(globals: &Globals) -> Vec<Row> {
    let config = globals.load_config().map_err(|error| error.to_string());
    let mut rows = kernel_rows();
    rows.extend(installation_rows(
        globals,
        config.as_ref().map_err(String::as_str),
    ));
    rows.extend(build_rows());
    rows
}

// ------------------------------------------------------------------------------------------------ the kernel

fn kernel_rows() -> Vec<Row> {
    use Need::{Optional, Run};
    vec![
        Row::new(
            Run,
            "kernel",
            kernel(),
            "Sluice needs Linux 5.15: before it, cgroup v1 classes switch interception off silently",
        ),
        Row::new(
            Run,
            "root",
            root(),
            "run as root: loading kernel programs needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN",
        ),
        Row::new(
            Run,
            "cgroup v2",
            cgroup2(),
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
        Row::new(
            Run,
            "bpf load",
            bpf_load(),
            "the kernel refuses BPF programs: run as root, with kernel lockdown off and bpf(2) not filtered (containers: --privileged)",
        ),
        Row::new(Optional, "bpffs", bpffs(), "`sluice guard load` mounts it"),
        Row::new(
            Optional,
            "kernel BTF",
            btf(),
            "a kernel with CONFIG_DEBUG_INFO_BTF; not needed yet",
        ),
        Row::new(
            Optional,
            "clock",
            clock(),
            "synchronise the clock: tokens expire by it and evidence is dated by it",
        ),
    ]
}

fn kernel() -> Result<String, String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_string();
    if version(&release) >= Some((5, 15)) {
        Ok(release)
    } else {
        Err(release)
    }
}

/// Major and minor of a kernel release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn root() -> Result<String, String> {
    match nix::unistd::geteuid() {
        uid if uid.is_root() => Ok("uid 0".into()),
        uid => Err(format!("uid {uid}")),
    }
}

fn cgroup2() -> Result<String, String> {
    let mount = cgroup::cgroup2_mount().map_err(|_| "not mounted".to_string())?;
    let hybrid = if mount == Path::new("/sys/fs/cgroup") {
        ""
    } else {
        " (hybrid: version 1 beside it)"
    };
    Ok(format!("{}{hybrid}", mount.display()))
}

fn bpf_load() -> Result<String, String> {
    guard::probe()
        .map(|()| "every program passes this kernel's verifier".into())
        .map_err(|error| error.to_string())
}

fn bpffs() -> Result<String, String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut mounted = mounts.lines().filter_map(|line| {
        line.split(' ')
            .nth(1)
            .filter(|_| line.split(' ').nth(2) == Some("bpf"))
    });
    match mounted.next_back() {
        Some(place) => Ok(place.to_string()),
        None => Err("not mounted".into()),
    }
}

fn btf() -> Result<String, String> {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(PATH).exists() {
        Ok(PATH.into())
    } else {
        Err("absent".into())
    }
}

/// A clock before this program was written is wrong.
fn clock() -> Result<String, String> {
    const WRITTEN: i64 = 1_767_225_600; // 2026-01-01, seconds since 1970
    let now = jiff::Timestamp::now();
    if now.as_second() >= WRITTEN {
        Ok(format!("{now:.0}"))
    } else {
        Err(format!("{now:.0}"))
    }
}

// ------------------------------------------------------------------------------------------ this installation

fn installation_rows(globals: &Globals, config: Result<&Config, &str>) -> Vec<Row> {
    use Need::{Optional, Run};
    let path = globals.config_path();
    let mut rows = vec![Row::new(
        Run,
        "configuration",
        config
            .map(|_| path.display().to_string())
            .map_err(|error| format!("{}: {}", path.display(), first_line(error))),
        "see `sluice check`, and docs/sluice.example.toml for a start",
    )];
    if let Ok(config) = config {
        rows.push(Row::new(
            Optional,
            "agents cgroup",
            agents_cgroup(config),
            "`sluice guard load` makes it",
        ));
        rows.push(Row::new(
            Optional,
            "guard",
            guard_state(config),
            "run `sluice guard load`",
        ));
    }
    rows.push(Row::new(
        Optional,
        "psql",
        program("psql", &["--version"]),
        "apt-get install postgresql-client",
    ));
    rows
}

fn agents_cgroup(config: &Config) -> Result<String, String> {
    let mount = cgroup::cgroup2_mount().map_err(|_| "no cgroup v2".to_string())?;
    let cgroup = mount.join(&config.kernel.agents_cgroup);
    if cgroup.is_dir() {
        Ok(cgroup.display().to_string())
    } else {
        Err(format!("{} absent", cgroup.display()))
    }
}

fn guard_state(config: &Config) -> Result<String, String> {
    match guard::verify(&config.kernel) {
        Ok(report) => Ok(format!("loaded, port {}", report.port.unwrap_or_default())),
        Err(error) => Err(error.to_string()),
    }
}

// ----------------------------------------------------------------------------------------- building from source

fn build_rows() -> Vec<Row> {
    use Need::Build;
    const XTASK: &str = "`cargo xtask build` installs it";
    vec![
        Row::new(
            Build,
            "cargo",
            program("cargo", &["--version"]),
            "https://rustup.rs",
        ),
        Row::new(Build, "rustc for BPF", bpf_rustc(), XTASK),
        Row::new(Build, "bpf-linker", bpf_linker(), XTASK),
        Row::new(Build, "libclang", libclang(), XTASK),
    ]
}

/// One of the two that `cargo xtask build-ebpf` can use.
fn bpf_rustc() -> Result<String, String> {
    let sysroot = program("rustup", &["run", "nightly", "rustc", "--print", "sysroot"]);
    if sysroot.is_ok_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
    }) {
        return Ok("rustup nightly with rust-src".into());
    }
    let places = [PathBuf::from("/usr"), toolchain_cache().join("rustc/usr")];
    match places
        .iter()
        .find(|place| place.join("lib/rustlib/bpfel-unknown-none/lib").is_dir())
    {
        Some(place) => Ok(format!("Debian's rustc-web in {}", place.display())),
        None => {
            Err("neither nightly with rust-src nor rustc-web with libstd-rust-web-dev-bpf".into())
        }
    }
}

fn bpf_linker() -> Result<String, String> {
    let own = toolchain_cache().join("bin/bpf-linker");
    program("bpf-linker", &["--version"])
        .or_else(|_| program(&own.to_string_lossy(), &["--version"]))
}

/// Where `cargo xtask build-ebpf` keeps what it unpacks and builds.
fn toolchain_cache() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache");
    base.unwrap_or_else(home).join("sluice/toolchain-1")
}

fn libclang() -> Result<String, String> {
    let folders = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut found = folders.filter(|path| {
        path.to_string_lossy().contains("/llvm-") && path.join("lib/libclang.so").exists()
    });
    found
        .next()
        .map(|path| path.display().to_string())
        .ok_or_else(|| "absent".into())
}

/// First line a program prints, when it runs.
fn program(name: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(name);
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            Ok(first_line(&String::from_utf8_lossy(&output.stdout)).to_string())
        }
        _ => Err("absent".into()),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

// -------------------------------------------------------------------------------------------------- the table

fn print(rows: &[Row], ok: bool) {
    for row in rows {
        let state = match (row.ok, row.need) {
            (true, _) => "ok",
            (false, Need::Run) => "MISSING",
            (false, Need::Build | Need::Optional) => "-",
        };
        println!("{:<14}  {:<8}  {}", row.what, state, row.found);
        if let Some(hint) = row.hint {
            println!("{:<14}  {:<8}  → {hint}", "", "");
        }
    }
    println!();
    println!(
        "doctor: {}",
        if ok {
            "ready to run"
        } else {
            "something needed to run is missing"
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases() {
        let rows = [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("5.15-rc1", Some((5, 15))),
            ("5.15.0", Some((5, 15))),
            ("5.4.0-1-generic", Some((5, 4))),
            ("", None),
            ("x.y", None),
        ];
        for (release, expected) in rows {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}

//! `cargo xtask kernels [VERSION…]`: the kernel programs in kernels that this host does not run.
//!
//! Each kernel is a distribution's own, booted in QEMU with an initramfs that holds `sluice`. There the guard
//! is loaded (every program through that kernel's verifier), loaded again in place, verified and unloaded; and
//! agents and a process outside of their cgroup try what each tier is to stop (`attempts.c`). Below the oldest
//! kernel that Sluice supports, loading has to be refused.
//!
//! Not part of `ci`: it downloads kernels, and the gate does not depend on an archive.

mod archive;
mod machine;

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::apt::{Archive, DEBIAN, UBUNTU};
use crate::{build, build_ebpf, toolchain};
use machine::Step;

const PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "binutils"];

/// A kernel as a distribution ships it.
#[derive(Debug)]
struct Release {
    name: &'static str,
    archive: Archive,
    suite: &'static str,
    package: &'static str,
    expected: Expected,
}

/// What the guard can do on a kernel; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Expected {
    /// Cgroup v1 classes switch interception off silently there, so the guard must not load.
    Refusal,
    Interception,
    /// The LSM tier, where `lsm=` has BPF.
    Lsm,
    /// Unix sockets are denied as a whole, those of the same agent too.
    UnixHooks,
}

/// The long-term releases that are packaged somewhere, oldest first.
#[rustfmt::skip]
const RELEASES: &[Release] = &[
    Release { name: "5.10", archive: DEBIAN, suite: "bullseye", package: "linux-image-cloud-amd64", expected: Expected::Refusal },
    Release { name: "5.15", archive: UBUNTU, suite: "jammy",    package: "linux-image-generic",     expected: Expected::Interception },
    Release { name: "6.1",  archive: DEBIAN, suite: "bookworm", package: "linux-image-cloud-amd64", expected: Expected::Lsm },
    Release { name: "6.8",  archive: UBUNTU, suite: "noble",    package: "linux-image-generic",     expected: Expected::UnixHooks },
    Release { name: "6.12", archive: DEBIAN, suite: "trixie",   package: "linux-image-cloud-amd64", expected: Expected::UnixHooks },
    Release { name: "testing", archive: DEBIAN, suite: "forky", package: "linux-image-cloud-amd64", expected: Expected::UnixHooks },
];

/// Few, because Ubuntu's 5.15 panics when all it has are named; without yama, which would hide what the LSM
/// tier does about ptrace.
const WITH_BPF: &str = "lockdown,bpf";
const WITHOUT_BPF: &str = "lockdown";

/// What must be denied in the agents' cgroup, and nowhere else. No gateway runs, so not even TCP leads anywhere.
const DENIED: &[&str] = &["connect", "sendto", "raw", "mptcp"];
/// The same, where the LSM tier has the hook.
#[rustfmt::skip]
const DENIED_BY_LSM: &[(&str, &[&str])] = &[
    ("socket_create",       &["netlink-generic", "netlink-audit", "packet", "inet-packet", "vsock", "alg", "xdp"]),
    ("userns_create",       &["userns"]),
    ("ptrace_access_check", &["memory-stranger", "ptrace-stranger"]),
    ("bpf",                 &["bpf"]),
    ("unix_stream_connect", &["unix-stranger"]),
    ("unix_may_send",       &["unix-stranger-datagram"]),
];
/// What works wherever it is tried.
const ALLOWED: &[&str] = &["unix", "inet", "inet6", "netlink-route", "memory-own"];

pub fn run(arguments: &[String]) -> Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the machines are x86-64 and run this host's sluice: use an x86-64 host"
    );
    let chosen = choose(arguments)?;
    toolchain::apt_install(PACKAGES)?;
    build::run(&[])?;
    let initramfs = machine::initramfs()?;
    let logs = build_ebpf::target_folder().join("kernels");
    fs::create_dir_all(&logs)?;
    println!(
        "{:<28} {:<13} {:<6}  {:<18}  {:<8}  result",
        "kernel", "lsm=", "doctor", "guard", "LSM tier"
    );
    let mut wrong = 0;
    for release in chosen {
        let kernel = archive::kernel(release)?;
        for lsm in [WITH_BPF, WITHOUT_BPF] {
            let log = logs.join(format!("{}-{lsm}.log", release.name));
            let steps = machine::boot(&kernel, &initramfs, lsm, &log)?;
            let problems = examine(release.expected, lsm, &steps);
            print(lsm, &steps, &problems);
            if !problems.is_empty() {
                println!("    {}", log.display());
            }
            wrong += problems.len();
        }
    }
    ensure!(wrong == 0, "not every kernel did what it should");
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<&'static Release>> {
    if names.is_empty() {
        return Ok(RELEASES.iter().collect());
    }
    let known: Vec<&str> = RELEASES.iter().map(|release| release.name).collect();
    let find = |name: &String| {
        RELEASES
            .iter()
            .find(|release| release.name == name)
            .with_context(|| format!("no kernel {name}: there are {}", known.join(", ")))
    };
    names.iter().map(find).collect()
}

/// Everything that is not as it should be.
fn examine(expected: Expected, lsm: &str, steps: &[Step]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            problems.push(what);
        }
    };
    if expected == Expected::Refusal {
        let load = step(steps, "load");
        must(load.code != 0, "the guard loaded".into());
        must(
            load.output.contains("5.15"),
            "the refusal does not name 5.15".into(),
        );
        return problems;
    }
    for name in [
        "doctor", "load", "reload", "verify", "outside", "agent", "nobody", "unload",
    ] {
        must(step(steps, name).code == 0, format!("{name} failed"));
    }
    let tier = tier(steps);
    let both = expected >= Expected::Lsm && lsm == WITH_BPF;
    let (mut allowed, mut denied) = (ALLOWED.to_vec(), DENIED.to_vec());
    for (hook, attempts) in DENIED_BY_LSM {
        must(
            tier.contains(hook) == both,
            format!("the LSM tier at {hook} is not as expected"),
        );
        denied.extend(attempts.iter().filter(|_| both));
    }
    if expected >= Expected::UnixHooks {
        denied.extend(["unix-own", "unix-stranger", "unix-stranger-datagram"]);
    }
    for attempt in denied {
        for (place, expected) in [("outside", false), ("agent", true), ("nobody", true)] {
            let result = result(steps, place, attempt);
            must(
                is_denied(result) == expected,
                format!("{place}: {attempt} {result}"),
            );
        }
    }
    if expected < Expected::UnixHooks {
        allowed.push("unix-own");
    }
    for attempt in allowed {
        for place in ["outside", "agent", "nobody"] {
            let result = result(steps, place, attempt);
            must(result == "ok", format!("{place}: {attempt} {result}"));
        }
    }
    problems
}

fn print(lsm: &str, steps: &[Step], problems: &[String]) {
    let load = step(steps, "load");
    let (guard, tier) = match load.code {
        0 => {
            let programs = load.output.split(' ').nth(2).unwrap_or_default();
            let hooks = tier(steps).len();
            (
                format!("loads {programs} programs"),
                format!("{hooks} hooks"),
            )
        }
        _ => ("refuses".into(), "-".into()),
    };
    let release = first_line(step(steps, "release"));
    let result = match problems {
        [] if load.code == 0 => "as it should be",
        [] => first_line(load),
        _ => "WRONG",
    };
    let doctor = complete_tiers(steps);
    println!("{release:<28} {lsm:<13} {doctor:<6}  {guard:<18}  {tier:<8}  {result}");
    for problem in problems {
        println!("    {problem}");
    }
}

/// The letters of the tiers that `sluice doctor` finds this kernel has everything for.
fn complete_tiers(steps: &[Step]) -> String {
    let lines = step(steps, "doctor").output.lines();
    let complete = lines.filter_map(|line| line.strip_prefix("tier ")?.strip_suffix(": complete"));
    complete.filter_map(|tier| tier.chars().next()).collect()
}

/// The security hooks that `guard load` says it is on.
fn tier(steps: &[Step]) -> Vec<&str> {
    let lines = step(steps, "load").output.lines();
    let named = lines.filter_map(|line| line.strip_prefix("LSM tier: "));
    named
        .flat_map(|hooks| hooks.split(", "))
        .filter(|hook| *hook != "none")
        .collect()
}

/// What came of an attempt: "ok", or the name of an errno.
fn result<'a>(steps: &'a [Step], place: &str, attempt: &str) -> &'a str {
    let lines = step(steps, place).output.lines();
    let mut results = lines.filter_map(|line| line.strip_prefix(attempt)?.strip_prefix(' '));
    results.next().unwrap_or("was not tried")
}

/// Opening /proc/PID/mem reports every refusal as EACCES; a connect is refused as if nobody listened.
fn is_denied(result: &str) -> bool {
    matches!(result, "EPERM" | "EACCES" | "ECONNREFUSED")
}

fn step<'a>(steps: &'a [Step], name: &str) -> &'a Step {
    const ABSENT: &Step = &Step {
        name: String::new(),
        output: String::new(),
        code: -1,
    };
    steps
        .iter()
        .find(|step| step.name == name)
        .unwrap_or(ABSENT)
}

fn first_line(step: &Step) -> &str {
    step.output.lines().next().unwrap_or_default()
}

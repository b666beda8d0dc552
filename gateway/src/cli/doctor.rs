//! `sluice doctor`: what this host has and what is missing, in one table.
//!
//! First the kernel's features, tier by tier ([`features`]); then this installation; then what building it
//! needs. Only what running needs makes the exit code 1: the core tier, and a configuration in which
//! `sluice check` finds no error. A tier that is not complete is said to be so, with what stays open.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;
use serde::Serialize;

use super::{Globals, check, say};
use crate::config::Config;
use crate::intercept::features::{self, FEATURES, Feature, Support, Tier};
use crate::intercept::{cgroup, guard};

#[derive(clap::Args, Debug)]
pub struct Args {}

pub fn run(_args: Args, globals: &Globals) -> Result<ExitCode> {
    let rows = examine(globals);
    let ok = is_ready(&rows);
    if globals.json {
        let tiers: serde_json::Map<String, serde_json::Value> = Tier::ALL
            .iter()
            .map(|tier| (tier.letter().to_string(), is_complete(*tier, &rows).into()))
            .collect();
        say(serde_json::json!({ "ok": ok, "tiers": tiers, "checks": rows }))?;
    } else {
        say(text(&rows).trim_end())?;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Installation,
    Build,
    #[serde(untagged)]
    Kernel(Tier),
}

impl Part {
    fn title(self) -> String {
        match self {
            Part::Kernel(tier) => format!("kernel, tier {} ({})", tier.letter(), tier.title()),
            Part::Installation => "this installation".to_owned(),
            Part::Build => "building from source".to_owned(),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    part: Part,
    what: &'static str,
    need: Need,
    /// Whether its part is incomplete without it.
    #[serde(skip)]
    required: bool,
    ok: bool,
    found: String,
    /// The first kernel release that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Row {
    fn new(
        part: Part,
        need: Need,
        what: &'static str,
        found: Result<String, String>,
        hint: &str,
    ) -> Self {
        let (ok, found) = match found {
            Ok(found) => (true, found),
            Err(found) => (false, found),
        };
        Self {
            part,
            what,
            need,
            required: true,
            ok,
            found,
            since: None,
            hint: (!ok).then(|| hint.to_owned()),
        }
    }

    fn of_feature(feature: &Feature, support: Support) -> Self {
        let need = match (feature.tier, feature.need) {
            (Tier::Core, features::Need::Required) => Need::Run,
            _ => Need::Optional,
        };
        let hint = match feature.need {
            features::Need::Required => feature.hint.to_owned(),
            features::Need::Better(without) => format!("{without}; {}", feature.hint),
        };
        let found = match support {
            Support::Present(found) => Ok(found),
            Support::Absent(found) => Err(found),
            Support::Unknown(why) => Err(format!("not tried: {why}")),
        };
        Self {
            since: Some(feature.since),
            required: feature.need == features::Need::Required,
            ..Self::new(Part::Kernel(feature.tier), need, feature.name, found, &hint)
        }
    }
}

fn is_ready(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.ok || row.need != Need::Run)
}

/// Whether everything that the tier cannot do without is there.
fn is_complete(tier: Tier, rows: &[Row]) -> bool {
    rows.iter()
        .filter(|row| row.part == Part::Kernel(tier))
        .all(|row| row.ok || !row.required)
}

fn examine(globals: &Globals) -> Vec<Row> {
    let mut rows: Vec<Row> = FEATURES
        .iter()
        .map(|feature| Row::of_feature(feature, feature.support()))
        .collect();
    rows.extend(host_rows());
    rows.extend(installation_rows(globals));
    rows.extend(build_rows());
    rows
}

// --------------------------------------------------------------------------------------------------- the host

fn host_rows() -> Vec<Row> {
    let row = |need, what, found, hint| Row::new(Part::Installation, need, what, found, hint);
    vec![
        row(
            Need::Run,
            "root",
            root(),
            "run as root: loading kernel programs needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN",
        ),
        row(
            Need::Run,
            "bpf load",
            bpf_load(),
            "the kernel refuses Sluice's programs: run as root, with kernel lockdown off and bpf(2) not filtered (containers: --privileged)",
        ),
        row(
            Need::Optional,
            "clock",
            clock(),
            "synchronise the clock: tokens expire by it and evidence is dated by it",
        ),
    ]
}

fn root() -> Result<String, String> {
    match nix::unistd::geteuid() {
        uid if uid.is_root() => Ok("uid 0".into()),
        uid => Err(format!("uid {uid}")),
    }
}

fn bpf_load() -> Result<String, String> {
    guard::probe()
        .map(|()| "every program passes this kernel's verifier".into())
        .map_err(|error| error.to_string())
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

fn installation_rows(globals: &Globals) -> Vec<Row> {
    let row = |need, what, found, hint| Row::new(Part::Installation, need, what, found, hint);
    let mut rows = vec![row(
        Need::Run,
        "configuration",
        configuration(globals),
        "`sluice check` shows every error; docs/sluice.example.toml is a start",
    )];
    if let Ok(config) = globals.load_config() {
        rows.push(row(
            Need::Optional,
            "agents cgroup",
            agents_cgroup(&config),
            "`sluice guard load` makes it",
        ));
        rows.push(row(
            Need::Optional,
            "guard",
            guard_state(&config),
            "run `sluice guard load`",
        ));
    }
    rows.push(row(
        Need::Optional,
        "psql",
        program("psql", &["--version"]),
        "apt-get install postgresql-client",
    ));
    rows
}

/// What `sluice check` says, in short: policies and the files that are named included.
fn configuration(globals: &Globals) -> Result<String, String> {
    match check::errors(globals) {
        (0, _) => Ok(globals.config_path().display().to_string()),
        (1, Some(first)) => Err(first),
        (count, first) => Err(format!(
            "{count} errors, the first: {}",
            first.unwrap_or_default()
        )),
    }
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
    let row = |what, found, hint| Row::new(Part::Build, Need::Build, what, found, hint);
    const XTASK: &str = "`cargo xtask build` installs it";
    vec![
        row(
            "cargo",
            program("cargo", &["--version"]),
            "https://rustup.rs",
        ),
        row("rustc for BPF", bpf_rustc(), XTASK),
        row("bpf-linker", bpf_linker(), XTASK),
        row("libclang", libclang(), XTASK),
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

fn text(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut part = None;
    for row in rows {
        if part != Some(row.part) {
            let blank = if part.is_some() { "\n" } else { "" };
            text += &format!("{blank}── {}\n", row.part.title());
            part = Some(row.part);
        }
        text += &line(row);
    }
    text.push('\n');
    for tier in Tier::ALL {
        text += &verdict(tier, is_complete(tier, rows));
    }
    text += match is_ready(rows) {
        true => "doctor: ready to run\n",
        false => "doctor: NOT ready, something needed to run is missing\n",
    };
    text
}

fn line(row: &Row) -> String {
    let state = match (row.ok, row.need) {
        (true, _) => "ok",
        (false, Need::Run) => "MISSING",
        (false, Need::Build | Need::Optional) => "-",
    };
    let since = row.since.unwrap_or_default();
    let found = first_line(&row.found);
    let mut text = match row.part {
        Part::Kernel(_) => format!("{:<22}  {since:<5} {state:<8}  {found}\n", row.what),
        _ => format!("{:<22}  {state:<14}  {found}\n", row.what),
    };
    if let Some(hint) = &row.hint {
        text += &format!("{:<38}  → {hint}\n", "");
    }
    text
}

fn verdict(tier: Tier, complete: bool) -> String {
    let name = format!("tier {} ({})", tier.letter(), tier.name());
    if complete {
        return format!("{name}: complete\n");
    }
    let open = tier.open_without();
    let open: String = open.iter().map(|what| format!("  ! {what}\n")).collect();
    format!("{name}: NOT AVAILABLE. Without it these stay open:\n{open}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(part: Part, need: Need, what: &'static str, ok: bool) -> Row {
        let found = if ok { Ok("yes") } else { Err("absent") };
        let found = found.map(str::to_owned).map_err(str::to_owned);
        Row::new(part, need, what, found, "get it")
    }

    #[test]
    fn ready_is_what_running_needs() {
        let core = Part::Kernel(Tier::Core);
        let lsm = Part::Kernel(Tier::Lsm);
        for (name, rows, ready) in [
            (
                "all there",
                vec![row(core, Need::Run, "connect", true)],
                true,
            ),
            (
                "core lacks",
                vec![row(core, Need::Run, "connect", false)],
                false,
            ),
            (
                "check has errors",
                vec![
                    row(core, Need::Run, "connect", true),
                    row(Part::Installation, Need::Run, "configuration", false),
                ],
                false,
            ),
            (
                "only the optional lacks",
                vec![
                    row(lsm, Need::Optional, "LSM cgroup programs", false),
                    row(Part::Build, Need::Build, "cargo", false),
                ],
                true,
            ),
        ] {
            assert_eq!(is_ready(&rows), ready, "{name}");
            let says = text(&rows);
            assert_eq!(
                says.contains("doctor: ready to run"),
                ready,
                "{name}: {says}"
            );
        }
    }

    #[test]
    fn a_tier_that_is_not_there_is_said_loudly() {
        let rows = [
            row(Part::Kernel(Tier::Core), Need::Run, "connect", true),
            Row {
                required: false,
                ..row(
                    Part::Kernel(Tier::Core),
                    Need::Optional,
                    "bpf_set_retval",
                    false,
                )
            },
            row(
                Part::Kernel(Tier::Lsm),
                Need::Optional,
                "LSM cgroup programs",
                false,
            ),
        ];
        let says = text(&rows);
        assert!(says.contains("tier A (core): complete"), "{says}");
        assert!(says.contains("tier B (launcher): complete"), "{says}");
        assert!(says.contains("tier C (LSM): NOT AVAILABLE"), "{says}");
        assert!(says.contains("user namespaces"), "{says}");
    }

    #[test]
    fn a_feature_becomes_a_row() {
        let feature = |name: &str| {
            let found = FEATURES.iter().find(|feature| feature.name == name);
            found.expect("it is in the table")
        };
        let (connect, retval) = (feature("connect"), feature("bpf_set_retval"));
        let absent = || Support::Absent("this kernel has none".to_owned());
        for (name, row, need, ok, hint) in [
            (
                "there",
                Row::of_feature(connect, Support::Present("yes".to_owned())),
                Need::Run,
                true,
                None,
            ),
            (
                "needed",
                Row::of_feature(connect, absent()),
                Need::Run,
                false,
                Some("CONFIG_CGROUP_BPF"),
            ),
            (
                "only better",
                Row::of_feature(retval, absent()),
                Need::Optional,
                false,
                Some("EPERM instead of ECONNREFUSED"),
            ),
            (
                "not tried",
                Row::of_feature(connect, Support::Unknown("only root can try".to_owned())),
                Need::Run,
                false,
                Some("CONFIG_CGROUP_BPF"),
            ),
        ] {
            assert_eq!((row.need, row.ok), (need, ok), "{name}");
            match hint {
                None => assert_eq!(row.hint, None, "{name}"),
                Some(part) => assert!(row.hint.unwrap().contains(part), "{name}"),
            }
        }
    }
}

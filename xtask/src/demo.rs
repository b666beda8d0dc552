//! `cargo xtask demo`: the whole path on this machine, for real, in one go.
//!
//! A throw-away PostgreSQL with a small shop, a token from a throw-away key, the kernel programs, the gateway,
//! and an unmodified psql that runs as the agent `report-bot`. What is shown is also checked: the task fails
//! when anything it shows did not hold. Everything is below one temporary folder and gone at the end, unless
//! `--keep` leaves it running to be played with.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{build, build_ebpf, packages};

pub mod database;
pub mod installation;
pub mod leftovers;
mod screen;
mod token;

use database::Database;
use installation::{AGENT, Installation};
use leftovers::Stage;
use screen::{Checks, Screen};

/// What the agent does, in one psql session.
const AGENTS_SESSION: &str = "\
SELECT id, name, card_number FROM customers ORDER BY id;
DROP TABLE customers;
SELECT count(*) AS orders FROM orders;
";

const FIRST_CARD: &str = "4111111111111111";

pub fn run(arguments: &[String]) -> Result<()> {
    let keep = match arguments {
        [] => false,
        [flag] if flag == "--keep" => true,
        [flag] if flag == "--end" => return leftovers::end_all(),
        _ => {
            bail!("demo takes nothing, --keep (leave it running), or --end (end what --keep left)")
        }
    };
    packages::require_root("demo")?;
    let started = Instant::now();
    let screen = Screen::new();
    screen.section("Preparing: what is missing is installed, then everything is built");
    packages::for_demo()?;
    build::run(&[])?;
    screen.say(&format!("ready after {} s", started.elapsed().as_secs()));

    let stage = Stage::set(keep)?;
    let mut checks = Checks::default();
    let shown = show(&screen, &stage, &mut checks);
    let left = if keep && shown.is_ok() {
        stage.leave_running();
        Ok(())
    } else {
        stage.clear_away()
    };
    shown?;
    left?;
    let verdict = checks.verdict(&screen);
    if keep {
        try_next(&screen, &stage);
    } else if verdict.is_ok() {
        screen.section("Try next");
        screen.command(
            "cargo xtask demo --keep",
            "the same, left running, with commands to try on it",
        );
        screen.command(
            "cargo xtask test",
            "every test, the privileged ones for real",
        );
        screen.command("target/debug/sluice doctor", "what this host has and lacks");
    }
    verdict
}

fn show(screen: &Screen, stage: &Stage, checks: &mut Checks) -> Result<()> {
    screen
        .section("1  A PostgreSQL with a small shop, a token, the kernel programs and the gateway");
    let database = Database::start(stage, "scram-sha-256")?;
    screen.say(&format!(
        "PostgreSQL listens on 127.0.0.1:{}; only the gateway knows the application's password",
        database.port
    ));
    let installation = Installation::create(stage, &database, sluice_binary())?;
    screen.say(&format!(
        "Sluice is installed below {}: the commands here stand without their --root",
        stage.root().display()
    ));
    screen.run(installation.sluice(["guard", "load"]))?;
    for line in installation.start(stage)? {
        screen.say(&line);
    }

    agent_works(screen, &database, &installation, checks)?;
    others_are_untouched(screen, &database, checks)?;
    evidence(screen, &installation, checks)
}

fn agent_works(
    screen: &Screen,
    database: &Database,
    installation: &Installation,
    checks: &mut Checks,
) -> Result<()> {
    screen.section(&format!(
        "2  {AGENT} runs an unmodified psql against the database's own address"
    ));
    let mut psql = installation.sluice(["exec", "--agent", AGENT, "--", "psql", "-X", "-e"]);
    psql.arg(database.address()).current_dir("/");
    let seen = screen.run_with_input(psql, AGENTS_SESSION)?;
    checks.that(
        "card numbers come back masked",
        seen.contains("1111") && !seen.contains(FIRST_CARD),
    );
    checks.that("all five customers come back", seen.contains("(5 rows)"));
    checks.that(
        "DROP TABLE is refused, with the rule and advice",
        seen.contains("ERROR:") && seen.contains("DETAIL:") && seen.contains("HINT:"),
    );
    checks.that(
        "the session goes on after the refusal",
        seen.rsplit("HINT:")
            .next()
            .is_some_and(|rest| rest.contains("(1 row)")),
    );
    let customers = database.admin("SELECT count(*) FROM customers")?;
    checks.that("the table is still there", customers == "5");
    Ok(())
}

fn others_are_untouched(screen: &Screen, database: &Database, checks: &mut Checks) -> Result<()> {
    screen.section("3  A process that is no agent: its traffic is untouched");
    let mut psql = Command::new("psql");
    psql.args([
        "-X",
        "-e",
        "-c",
        "SELECT name, card_number FROM customers WHERE id = 1",
    ])
    .arg(database.address())
    .env("PGPASSWORD", &database.password);
    let seen = screen.run(psql)?;
    checks.that(
        "an unregistered process reaches the database itself",
        seen.contains(FIRST_CARD),
    );
    Ok(())
}

fn evidence(screen: &Screen, installation: &Installation, checks: &mut Checks) -> Result<()> {
    screen.section("4  The evidence: who did what");
    let events = screen.run(installation.sluice(["tail"]))?;
    checks.that(
        "the log names the agent, the statement and the refusal",
        events.contains(AGENT) && events.contains("DROP TABLE customers"),
    );
    screen.section("5  A replay of the session: what the agent saw");
    let session = installation.only_session()?;
    let replay = screen.run(installation.sluice(["replay", &session]))?;
    checks.that(
        "the recording holds the masked answer, and no card number",
        replay.contains("SELECT id, name, card_number") && !replay.contains(FIRST_CARD),
    );
    screen.section("6  The log is whole");
    let verified = screen.run(installation.sluice(["audit", "verify"]))?;
    checks.that("audit verify: ok", verified.contains("audit verify: ok"));
    let secrets = installation.secrets_on_disk(FIRST_CARD)?;
    checks.that(
        "no card number, password or token is in the evidence",
        secrets.is_empty(),
    );
    for secret in secrets {
        screen.say(&secret);
    }
    Ok(())
}

fn try_next(screen: &Screen, stage: &Stage) {
    let root = stage.root();
    let sluice = format!("{} --root {}", sluice_binary().display(), root.display());
    let address = stage.read("address").unwrap_or_default();
    screen.section("It is left running. Try");
    screen.command(&format!("{sluice} tail --follow"), "the evidence, live");
    screen.command(
        &format!("{sluice} exec --agent {AGENT} -- psql '{address}'"),
        "be the agent",
    );
    screen.command(&format!("{sluice} sessions"), "every session so far");
    screen.command(
        &format!("{sluice} audit verify"),
        "then change a byte of the log and try again",
    );
    screen.command("cargo xtask demo --end", "end it and leave nothing behind");
}

/// The program that was just built.
fn sluice_binary() -> PathBuf {
    build_ebpf::target_folder().join("debug/sluice")
}

fn write(path: PathBuf, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

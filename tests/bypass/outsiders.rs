//! Processes outside the agents' cgroups: they never run a Sluice program, and connect as fast as without.
//!
//! Two kinds of programs by nature see others: the guard, every process below the cgroup that it is put on, and
//! `port_lookup`, everybody in the namespace it watches. What they cost is measured apart.

use std::collections::BTreeMap;

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use super::attack::Place;
use super::sheet::{Outcome, Sheet};
use super::site::{Attended, Site};
use crate::harness::uplink::Netns;

const CONNECTS: u64 = 200;

/// How often which program ran.
type Runs = BTreeMap<&'static str, u64>;

/// How often each of the site's programs has run since it was loaded.
fn runs(programs: &BTreeMap<u32, &'static str>) -> Runs {
    let mut runs = BTreeMap::new();
    for program in loaded_programs().flatten() {
        if let Some(name) = programs.get(&program.id()) {
            *runs.entry(*name).or_default() += program.run_count();
        }
    }
    runs
}

/// Which programs run meanwhile.
fn ran_during(site: &Site, doing: impl FnOnce() -> Result<(), String>) -> Result<Runs, String> {
    let programs: BTreeMap<u32, &'static str> = site
        .report()
        .links
        .iter()
        .filter_map(|link| Some((link.program_id?, link.program)))
        .collect();
    if programs.is_empty() {
        return Err("no program is attached".to_owned());
    }
    let _counting = enable_stats(Stats::RunTime).map_err(|error| error.to_string())?;
    let before = runs(&programs);
    doing()?;
    let mut ran: Runs = runs(&programs)
        .into_iter()
        .map(|(name, count)| (name, count - before.get(name).copied().unwrap_or(0)))
        .collect();
    ran.retain(|_, count| *count > 0);
    Ok(ran)
}

/// Which programs run when somebody in that place connects and sends, both families.
fn run_by(site: &Site, place: &Place) -> Result<Runs, String> {
    ran_during(site, || {
        let times = CONNECTS.to_string();
        for address in ["127.0.0.1", "::1"] {
            let said = timed(place, address, &times);
            if said.len() as u64 != CONNECTS {
                return Err(format!("{} connects, not {CONNECTS}", said.len()));
            }
            place.attack(["udp_sendto", address, "9"]);
        }
        Ok(())
    })
}

/// How long each connect took, in nanoseconds.
fn timed(place: &Place, address: &str, times: &str) -> Vec<u64> {
    let mut command = place.command(super::attack::program(), ["tcp_pair", address, times]);
    let output = command.output().expect("the attack starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn who_is_no_agent_runs_no_program() {
    let host = Attended::start();
    let mut sheet = Sheet::new("Everybody else", host.capture());
    let elsewhere = Netns::new();
    let stranger = host.site.stranger();
    sheet.row(
        "a process outside: programs run",
        "attached to the agents' cgroup only",
        || {
            let ran = run_by(&host.site, &stranger.in_netns(&elsewhere))?;
            match ran.is_empty() {
                true => Ok(format!(
                    "none, by {} connects and 2 datagrams",
                    2 * CONNECTS
                )),
                false => Err(format!("{ran:?}")),
            }
        },
    );
    sheet.row(
        "the same in the gateway's namespace",
        "port_lookup sees every incoming connection",
        || only(run_by(&host.site, &stranger)?, &["port_lookup"]),
    );
    sheet.row(
        "the same below the guard's cgroup",
        "the guard sees connect and sendmsg",
        || {
            let guard = [
                "guard_connect4",
                "guard_connect6",
                "guard_sendmsg4",
                "guard_sendmsg6",
            ];
            only(
                run_by(&host.site, &host.site.outsider().in_netns(&elsewhere))?,
                &guard,
            )
        },
    );
    sheet.row("an agent, so that this could fail", "", || {
        let ran = ran_during(&host.site, || {
            host.site.bot().attack(["tcp_connect", "192.0.2.7", "5432"]);
            Ok(())
        })?;
        match ran.contains_key("connect4") && ran.contains_key("sock_create") {
            true => Ok(format!("{} programs", ran.len())),
            false => Err(format!("{ran:?}")),
        }
    });
    sheet.finish();
}

fn only(ran: Runs, allowed: &[&str]) -> Outcome {
    match !ran.is_empty() && ran.keys().all(|name| allowed.contains(name)) {
        true => Ok(format!("{ran:?}")),
        false => Err(format!("{ran:?}")),
    }
}

/// Medians of connect(2) on loopback, in rounds with and without the programs: what else the machine does then
/// falls on both.
#[test]
fn connects_of_others_take_as_long_as_without() {
    const ROUNDS: usize = 8;
    const EACH: &str = "500";
    let site = Site::prepare();
    site.load_guard();
    let mut sheet = Sheet::new("Everybody else, how fast", site.uplink.capture());
    let elsewhere = Netns::new();
    let places = [
        (
            "a process outside",
            site.stranger().in_netns(&elsewhere),
            1.3,
        ),
        (
            "in the gateway's namespace (port_lookup)",
            site.stranger(),
            2.0,
        ),
        (
            "below the guard's cgroup",
            site.outsider().in_netns(&elsewhere),
            2.0,
        ),
    ];
    let mut with = vec![Vec::new(); places.len()];
    let mut without = with.clone();
    for _ in 0..ROUNDS {
        site.load_guard();
        for ((_, place, _), times) in places.iter().zip(&mut with) {
            times.extend(timed(place, "127.0.0.1", EACH));
        }
        site.unload_guard();
        for ((_, place, _), times) in places.iter().zip(&mut without) {
            times.extend(timed(place, "127.0.0.1", EACH));
        }
    }
    for (((what, _, most), with), without) in places.iter().zip(&mut with).zip(&mut without) {
        sheet.row(
            &format!("connect of {what}: median, with : without"),
            "",
            || {
                let (with, without) = (median(with), median(without));
                let ratio = with / without;
                let text = format!(
                    "{:.1} µs : {:.1} µs, ratio {ratio:.3}",
                    with / 1000.0,
                    without / 1000.0
                );
                match ratio < *most {
                    true => Ok(text),
                    false => Err(text),
                }
            },
        );
    }
    sheet.finish();
}

fn median(times: &mut [u64]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64
}

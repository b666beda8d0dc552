//! Attacks on the interception, as user nobody inside an agent's control group, against a peer that answers.
//!
//! Each row of the table is one way out that somebody may try. It passes when the attack gets the expected
//! error, or comes to the gateway with destination and identity exact, and when a capture on the only uplink
//! saw no packet. `cargo xtask test bypass` runs all and prints the table; docs/threat-model.md explains it.

mod attack;
mod datagrams;
mod escapes;
mod gateway_down;
mod installed;
mod kinds;
mod launcher;
mod outsiders;
mod sheet;
mod site;
mod storm;
mod streams;

use sheet::Sheet;
use site::Site;

/// Others are untouched: they reach the peer, and the capture sees it. Without this a capture on the wrong
/// cable would pass every row.
fn outside_reaches_the_peer(site: &Site, sheet: &mut Sheet) {
    for (what, words) in [
        ("others connect, IPv4", ["tcp_connect", "192.0.2.7", "5432"]),
        (
            "others connect, IPv6",
            ["tcp_connect", "2001:db8::7", "5432"],
        ),
        ("others send datagrams", ["udp_sendto", "192.0.2.7", "9"]),
    ] {
        sheet.control(what, || {
            let said = site.outsider().attack(words);
            let own = said.last("own").as_str().unwrap_or_default().to_owned();
            match said.errno().as_str() {
                "ok" => Ok(format!("from {own}")),
                _ => Err(said.story()),
            }
        });
    }
}

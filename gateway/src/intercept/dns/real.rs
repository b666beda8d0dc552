//! The real addresses of targets' names, where agents are told them (`dns.mode = "pass"`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::local::{Forbidden, forbidden};
use super::names::Names;
use crate::config::{Agent, Target};

/// Which name had which address, and until when a client may still use it.
#[derive(Debug, Default)]
pub struct Real {
    by_name: BTreeMap<String, BTreeMap<IpAddr, Life>>,
}

#[derive(Debug, Clone, Copy)]
struct Life {
    since: Instant,
    until: Instant,
}

/// What an answer brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// Whether an address is new.
    pub news: bool,
    /// When the newest of the addresses was learned.
    pub since: Instant,
}

/// What a real address means to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    Target {
        target: Arc<Target>,
        name: String,
    },
    /// Names of several targets lead there, and nothing says which one the agent named.
    Ambiguous(BTreeSet<String>),
    Nothing,
}

impl Real {
    /// Notes an answer.
    pub fn learn(
        &mut self,
        name: &str,
        addresses: &[IpAddr],
        now: Instant,
        until: Instant,
    ) -> Learned {
        let known = self.by_name.entry(name.to_owned()).or_default();
        let before = known.len();
        let lives = addresses.iter().map(|address| {
            let life = known.entry(*address).or_insert(Life { since: now, until });
            life.until = life.until.max(until);
            life.since
        });
        let since = lives.max().unwrap_or(now);
        Learned {
            news: known.len() > before,
            since,
        }
    }

    /// Forgets what no client can be using any more. `true` when there was something.
    pub fn forget(&mut self, now: Instant) -> bool {
        let mut forgotten = false;
        for addresses in self.by_name.values_mut() {
            let before = addresses.len();
            addresses.retain(|_, life| now < life.until);
            forgotten |= addresses.len() < before;
        }
        forgotten
    }

    /// Every address with every port that leads to a target.
    pub fn destinations(&self, names: &Names) -> BTreeSet<SocketAddr> {
        let mut destinations = BTreeSet::new();
        for (name, ports) in names.all() {
            for (port, target) in ports {
                let addresses = self.by_name.get(name).into_iter().flat_map(BTreeMap::keys);
                let permitted = addresses.filter(|address| may_lead(target, **address));
                destinations.extend(permitted.map(|ip| SocketAddr::new(*ip, *port)));
            }
        }
        destinations
    }

    /// The target an agent means by an address. Targets it may not reach are left out where that settles it.
    pub fn meaning(&self, names: &Names, agent: Option<&Agent>, dialled: SocketAddr) -> Meaning {
        let leads_there = |name: &&str| {
            let addresses = self.by_name.get(*name);
            addresses.is_some_and(|addresses| addresses.contains_key(&dialled.ip()))
        };
        let mut found: BTreeMap<&str, (&Arc<Target>, &str)> = BTreeMap::new();
        for name in names.all().map(|(name, _)| name).filter(leads_there) {
            if let Some(target) = names.target(name, dialled.port())
                && may_lead(target, dialled.ip())
            {
                found.entry(target.name.as_str()).or_insert((target, name));
            }
        }
        if found.len() > 1
            && let Some(agent) = agent
            && found.keys().any(|target| agent.may_reach(target))
        {
            found.retain(|target, _| agent.may_reach(target));
        }
        let mut each = found.values();
        match (each.next(), each.next()) {
            (None, _) => Meaning::Nothing,
            (Some((target, name)), None) => Meaning::Target {
                target: Arc::clone(target),
                name: (*name).to_owned(),
            },
            (Some(_), Some(_)) => {
                Meaning::Ambiguous(found.keys().map(|name| (*name).to_owned()).collect())
            }
        }
    }
}

/// Whether a name of the target may lead to the address.
pub fn may_lead(target: &Target, address: IpAddr) -> bool {
    match forbidden(address) {
        None => true,
        Some(Forbidden::Local(_)) => target.allow_local,
        Some(Forbidden::Never(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::intercept::dns::tests::{agent, target};

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_addresses_mean() {
        let mut local = Arc::unwrap_or_clone(target("local", &["local.example:1"]));
        local.allow_local = true;
        let names = Names::new(&[
            target("shop", &["db.example:1", "alias.example:1"]),
            target("stock", &["db.example:2", "shared.example:1"]),
            Arc::new(local),
        ]);
        let mut real = Real::default();
        let now = Instant::now();
        let until = now + Duration::from_secs(60);
        real.learn(
            "db.example",
            &ips(&["10.0.0.1", "10.0.0.2", "127.0.0.1"]),
            now,
            until,
        );
        real.learn("alias.example", &ips(&["10.0.0.1"]), now, until);
        real.learn(
            "shared.example",
            &ips(&["10.0.0.2", "169.254.169.254"]),
            now,
            until,
        );
        real.learn(
            "local.example",
            &ips(&["127.0.0.1", "198.18.0.1"]),
            now,
            until,
        );

        let destinations = real.destinations(&names);
        let texts: Vec<String> = destinations.iter().map(SocketAddr::to_string).collect();
        let expected = [
            "10.0.0.1:1",
            "10.0.0.1:2",
            "10.0.0.2:1",
            "10.0.0.2:2",
            "127.0.0.1:1",
        ];
        assert_eq!(texts, expected);

        let (all, shopper) = (agent("all", None), agent("shopper", Some(&["shop"])));
        let meant = |agent: &Agent, address: &str| match real.meaning(
            &names,
            Some(agent),
            address.parse().unwrap(),
        ) {
            Meaning::Target { target, name } => format!("{} as {name}", target.name),
            Meaning::Ambiguous(targets) => format!("{targets:?}"),
            Meaning::Nothing => "nothing".to_owned(),
        };
        for (address, for_all, for_shopper) in [
            (
                "10.0.0.1:1",
                "shop as alias.example",
                "shop as alias.example",
            ),
            ("10.0.0.2:1", "{\"shop\", \"stock\"}", "shop as db.example"),
            // Refused later, by the name of the target it is.
            ("10.0.0.2:2", "stock as db.example", "stock as db.example"),
            (
                "127.0.0.1:1",
                "local as local.example",
                "local as local.example",
            ),
            ("127.0.0.1:2", "nothing", "nothing"),
            ("169.254.169.254:1", "nothing", "nothing"),
            ("10.0.0.3:1", "nothing", "nothing"),
        ] {
            assert_eq!(meant(&all, address), for_all, "{address}");
            assert_eq!(meant(&shopper, address), for_shopper, "{address}");
        }
    }

    #[test]
    fn addresses_are_kept_as_long_as_clients_may_keep_them() {
        let names = Names::new(&[target("shop", &["db.example:1"])]);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut real = Real::default();
        let mut learn = |now, address, until| {
            let learned = real.learn("db.example", &ips(&[address]), after(now), after(until));
            (learned.news, learned.since)
        };
        assert_eq!(learn(0, "10.0.0.1", 10), (true, after(0)));
        assert_eq!(learn(1, "10.0.0.1", 5), (false, after(0)));
        assert_eq!(learn(2, "10.0.0.2", 20), (true, after(2)));
        for (seconds, forgets, left) in
            [(9, false, 2), (10, true, 1), (19, false, 1), (20, true, 0)]
        {
            assert_eq!(real.forget(after(seconds)), forgets, "{seconds} s");
            assert_eq!(real.destinations(&names).len(), left, "{seconds} s");
        }
    }
}

//! Which names and literal addresses there are, and for which agent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::config::{Agent, Target};

/// The targets by what leads to them: a name with a port, or an address written as numbers.
#[derive(Debug, Default)]
pub struct Names {
    by_name: BTreeMap<String, BTreeMap<u16, Arc<Target>>>,
    literals: HashMap<SocketAddr, Arc<Target>>,
}

/// What a name is to one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// One of its targets has this name.
    Known,
    /// One of its targets has a name below this one. It exists, then, and has no address: whoever is told
    /// that it does not exist may conclude the same of everything below it (RFC 8020).
    Above,
    /// A target has this name, but not for this agent.
    NotForAgent,
    Unknown,
}

impl Names {
    pub fn new<'a>(targets: impl IntoIterator<Item = &'a Arc<Target>>) -> Self {
        let mut names = Self::default();
        for target in targets {
            for address in &target.addresses {
                let port = address.port;
                match address.ip() {
                    Some(ip) => names.add_literal(ip, port, target),
                    // Programs know this name by themselves and never ask (RFC 6761 §6.3).
                    None if is_localhost(&address.host) => {
                        names.add_literal(Ipv4Addr::LOCALHOST.into(), port, target);
                        names.add_literal(Ipv6Addr::LOCALHOST.into(), port, target);
                    }
                    None => {
                        let ports = names.by_name.entry(address.host.clone()).or_default();
                        ports.insert(port, Arc::clone(target));
                    }
                }
            }
        }
        names
    }

    /// Configuration gives every literal one target. `localhost` may mean an address that is listed besides;
    /// what is written as numbers wins.
    fn add_literal(&mut self, ip: IpAddr, port: u16, target: &Arc<Target>) {
        let entry = self.literals.entry(SocketAddr::new(ip, port));
        let written = target
            .addresses
            .iter()
            .any(|a| a.port == port && a.ip() == Some(ip));
        match written {
            true => drop(entry.insert_entry(Arc::clone(target))),
            false => drop(entry.or_insert_with(|| Arc::clone(target))),
        }
    }

    pub fn literal(&self, address: SocketAddr) -> Option<&Arc<Target>> {
        self.literals.get(&address)
    }

    pub fn literals(&self) -> impl Iterator<Item = SocketAddr> {
        self.literals.keys().copied()
    }

    pub fn target(&self, name: &str, port: u16) -> Option<&Arc<Target>> {
        self.by_name.get(name)?.get(&port)
    }

    /// Every name, with its ports and targets.
    pub fn all(&self) -> impl Iterator<Item = (&str, &BTreeMap<u16, Arc<Target>>)> {
        self.by_name
            .iter()
            .map(|(name, ports)| (name.as_str(), ports))
    }

    /// The targets of a name that the agent may reach, by port.
    pub fn reachable<'a>(
        &'a self,
        agent: &'a Agent,
        name: &str,
    ) -> impl Iterator<Item = (u16, &'a Arc<Target>)> {
        self.by_name
            .get(name)
            .into_iter()
            .flatten()
            .filter(|(_, target)| agent.may_reach(&target.name))
            .map(|(port, target)| (*port, target))
    }

    /// The names the agent may resolve.
    pub fn names_of(&self, agent: &Agent) -> BTreeSet<&str> {
        let reachable = |ports: &BTreeMap<u16, Arc<Target>>| {
            ports.values().any(|target| agent.may_reach(&target.name))
        };
        self.all()
            .filter(|(_, ports)| reachable(ports))
            .map(|(name, _)| name)
            .collect()
    }

    pub fn standing(&self, agent: &Agent, name: &str) -> Standing {
        if self.reachable(agent, name).next().is_some() {
            return Standing::Known;
        }
        let below = |known: &str| {
            name == "."
                || known
                    .strip_suffix(name)
                    .is_some_and(|rest| rest.ends_with('.'))
        };
        if self.names_of(agent).into_iter().any(below) {
            return Standing::Above;
        }
        match self.by_name.contains_key(name) {
            true => Standing::NotForAgent,
            false => Standing::Unknown,
        }
    }
}

pub fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::dns::tests::{agent, target};

    fn names() -> Names {
        Names::new(&[
            target("shop", &["db.internal:5432", "10.0.0.7:5432", "[::1]:5432"]),
            target(
                "stock",
                &["db.internal:5433", "localhost:5432", "a.b.example:5432"],
            ),
        ])
    }

    #[test]
    fn standings() {
        use Standing::*;
        let names = names();
        let (all, shop) = (agent("all", None), agent("shopper", Some(&["shop"])));
        for (name, for_all, for_shop) in [
            ("db.internal", Known, Known),
            ("a.b.example", Known, NotForAgent),
            ("b.example", Above, Unknown),
            ("example", Above, Unknown),
            ("internal", Above, Above),
            ("b.internal", Unknown, Unknown),
            ("xdb.internal", Unknown, Unknown),
            ("db.internal.corp.example", Unknown, Unknown),
            (".", Above, Above),
            ("10.0.0.7", Unknown, Unknown),
            ("localhost", Unknown, Unknown),
            ("", Unknown, Unknown),
        ] {
            assert_eq!(names.standing(&all, name), for_all, "{name}");
            assert_eq!(names.standing(&shop, name), for_shop, "{name}");
        }
        assert!(names.names_of(&agent("none", Some(&[]))).is_empty());
    }

    #[test]
    fn literals_and_ports() {
        let names = names();
        for (address, expected) in [
            ("10.0.0.7:5432", Some("shop")),
            ("10.0.0.7:5433", None),
            // Written as numbers by one target, meant by "localhost" of the other.
            ("[::1]:5432", Some("shop")),
            ("127.0.0.1:5432", Some("stock")),
        ] {
            let found = names.literal(address.parse().unwrap());
            assert_eq!(found.map(|t| t.name.as_str()), expected, "{address}");
        }
        for (name, port, expected) in [
            ("db.internal", 5432, Some("shop")),
            ("db.internal", 5433, Some("stock")),
            ("db.internal", 5434, None),
            ("localhost", 5432, None),
        ] {
            let found = names.target(name, port);
            assert_eq!(found.map(|t| t.name.as_str()), expected, "{name}:{port}");
        }
    }
}

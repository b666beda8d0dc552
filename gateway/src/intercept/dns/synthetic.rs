//! An address of its own for every agent and name: what an agent is told in place of a real address.
//!
//! The addresses are computed, not handed out: the hash of agent and name picks one, and where two pairs pick the
//! same IPv4 address the later one (in alphabetical order) picks again. So they survive restarts and hand-overs
//! without being stored, an old answer in a client's cache keeps its meaning, and adding or removing names
//! moves no other address, unless two hash to the same one of 2^17.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};

/// 198.18.0.0/15: for benchmarks inside of one network (RFC 2544), never routed on the Internet.
const V4: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const V4_HOST_BITS: u32 = 0x0001_ffff;

/// fd53:6c75:6963::/48, a unique local prefix (RFC 4193). Changing either pool gives every name a new address.
const V6: [u8; 6] = [0xfd, 0x53, 0x6c, 0x75, 0x69, 0x63];

/// Half of the pool used, this many picks in a row are taken with a probability of 2^-64.
const MAX_PICKS: u32 = 64;

/// The two addresses of one pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// Whom an address was made for, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub agent: String,
    pub name: String,
}

/// All synthetic addresses.
#[derive(Debug, Default)]
pub struct Synthetic {
    pairs: BTreeMap<String, BTreeMap<String, Pair>>,
    owners: HashMap<IpAddr, Owner>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are more names for agents than 198.18.0.0/15 has addresses")]
pub struct Exhausted;

impl Synthetic {
    /// Addresses for all pairs of agent and name.
    pub fn new(owners: &BTreeSet<(String, String)>) -> Result<Self, Exhausted> {
        let mut synthetic = Self::default();
        for (agent, name) in owners {
            let pair = synthetic.pick(agent, name)?;
            let owner = Owner {
                agent: agent.clone(),
                name: name.clone(),
            };
            synthetic.owners.insert(pair.v4.into(), owner.clone());
            synthetic.owners.insert(pair.v6.into(), owner);
            let names = synthetic.pairs.entry(agent.clone()).or_default();
            names.insert(name.clone(), pair);
        }
        Ok(synthetic)
    }

    fn pick(&self, agent: &str, name: &str) -> Result<Pair, Exhausted> {
        (0..MAX_PICKS)
            .map(|pick| addresses(agent, name, pick))
            .find(|pair| {
                // Programs that know networks by classes take these for a network and its broadcast.
                !matches!(pair.v4.octets(), [_, _, _, 0 | 255])
                    && !self.owners.contains_key(&pair.v4.into())
                    && !self.owners.contains_key(&pair.v6.into())
            })
            .ok_or(Exhausted)
    }

    pub fn of(&self, agent: &str, name: &str) -> Option<Pair> {
        self.pairs.get(agent)?.get(name).copied()
    }

    pub fn owner(&self, address: IpAddr) -> Option<&Owner> {
        self.owners.get(&address)
    }
}

/// Whether the address can only be a synthetic one.
pub fn is_synthetic(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => u32::from(v4) & !V4_HOST_BITS == V4,
        IpAddr::V6(v6) => v6.octets().starts_with(&V6),
    }
}

fn addresses(agent: &str, name: &str, pick: u32) -> Pair {
    let digest = Sha256::new()
        .chain_update(b"sluice synthetic address\0")
        .chain_update(agent)
        .chain_update([0])
        .chain_update(name)
        .chain_update([0])
        .chain_update(pick.to_be_bytes())
        .finalize();
    let mut v4 = [0; 4];
    let mut v6 = [0; 16];
    for (to, from) in v4.iter_mut().zip(&digest) {
        *to = *from;
    }
    for (to, from) in v6
        .iter_mut()
        .zip(V6.iter().chain(digest.iter().skip(v4.len())))
    {
        *to = *from;
    }
    Pair {
        v4: Ipv4Addr::from(V4 | u32::from_be_bytes(v4) & V4_HOST_BITS),
        v6: Ipv6Addr::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(agents: usize, names: usize) -> BTreeSet<(String, String)> {
        (0..agents)
            .flat_map(|a| (0..names).map(move |n| (format!("bot-{a}"), format!("db{n}.internal"))))
            .collect()
    }

    #[test]
    fn addresses_stay_from_one_version_to_the_next() {
        let owners = BTreeSet::from([("report-bot".to_owned(), "db.internal".to_owned())]);
        let pair = Synthetic::new(&owners)
            .unwrap()
            .of("report-bot", "db.internal")
            .unwrap();
        assert_eq!(
            (pair.v4.to_string(), pair.v6.to_string()),
            (
                "198.18.110.7".to_owned(),
                "fd53:6c75:6963:8a4b:e4e8:4bac:5241:9bd9".to_owned()
            )
        );
    }

    #[test]
    fn every_pair_has_its_own() {
        let owners = pairs(100, 100);
        let synthetic = Synthetic::new(&owners).unwrap();
        let mut seen = BTreeSet::new();
        for (agent, name) in &owners {
            let pair = synthetic.of(agent, name).unwrap();
            for address in [IpAddr::from(pair.v4), IpAddr::from(pair.v6)] {
                assert!(is_synthetic(address), "{address}");
                assert!(seen.insert(address), "{address} twice");
                let owner = synthetic.owner(address).unwrap();
                assert_eq!((&owner.agent, &owner.name), (agent, name));
            }
            assert!(!matches!(pair.v4.octets()[3], 0 | 255), "{}", pair.v4);
        }
        assert_eq!(synthetic.of("bot-0", "elsewhere"), None);
        assert_eq!(synthetic.of("elsewhere", "db0.internal"), None);
    }

    /// 10,000 pairs in 131,072 addresses collide some 380 times: that many may move, no more.
    #[test]
    fn others_coming_and_going_moves_few() {
        let (few, many) = (pairs(50, 100), pairs(100, 100));
        let before = Synthetic::new(&few).unwrap();
        let after = Synthetic::new(&many).unwrap();
        let moved = few
            .iter()
            .filter(|(agent, name)| before.of(agent, name) != after.of(agent, name))
            .count();
        assert!(moved < 500, "{moved}");
    }

    #[test]
    fn pools() {
        for (address, expected) in [
            ("198.17.255.255", false),
            ("198.18.0.0", true),
            ("198.19.255.255", true),
            ("198.20.0.0", false),
            ("fd53:6c75:6963::", true),
            ("fd53:6c75:6963:ffff:ffff:ffff:ffff:ffff", true),
            ("fd53:6c75:6964::", false),
            ("::1", false),
        ] {
            assert_eq!(
                is_synthetic(address.parse().unwrap()),
                expected,
                "{address}"
            );
        }
    }

    #[test]
    fn an_agent_and_a_name_do_not_run_together() {
        assert_ne!(addresses("a", "bc", 0), addresses("ab", "c", 0));
        assert_ne!(addresses("a", "b", 0), addresses("a", "b", 1));
    }
}

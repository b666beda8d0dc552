//! `host:port` as agents dial it, in one canonical spelling, so that equal destinations compare equal.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A host (an IP address or a DNS name) and a TCP port.
///
/// IPv4-mapped IPv6 addresses become IPv4, names become lower case without the final dot: the kernel side
/// normalises flows in the same way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Without brackets: `10.0.0.7`, `::1`, `db.internal`.
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("write it as host:port, an IPv6 address in brackets ([::1]:5432)")]
    Shape,
    #[error("the port must be a number from 1 to 65535")]
    Port,
    #[error("the host is neither an IP address nor a DNS name")]
    Host,
    #[error("nobody can connect to this address; write the one that agents dial")]
    Undialable,
}

impl Address {
    /// The host as an IP address, if it is one; otherwise it is a name to resolve.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::Shape)?;
        let host = match host.strip_prefix('[') {
            Some(inside) => {
                let v6 = inside.strip_suffix(']').ok_or(AddressError::Shape)?;
                canonical_ip(
                    v6.parse::<Ipv6Addr>()
                        .map_err(|_| AddressError::Host)?
                        .into(),
                )?
            }
            // More colons than the port's: an IPv6 address without brackets, where the port is anyone's guess.
            None if host.contains(':') => return Err(AddressError::Shape),
            None => match host.parse::<IpAddr>() {
                Ok(ip) => canonical_ip(ip)?,
                Err(_) => canonical_name(host)?,
            },
        };
        // `parse` alone would let a sign through.
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits && port > 0 => Ok(Self { host, port }),
            _ => Err(AddressError::Port),
        }
    }
}

fn canonical_ip(ip: IpAddr) -> Result<String, AddressError> {
    let ip = ip.to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    match ip.is_unspecified() || ip.is_multicast() || broadcast {
        true => Err(AddressError::Undialable),
        false => Ok(ip.to_string()),
    }
}

/// RFC 1123 host names, with the underscore that service names use; at most 253 characters in labels of 63.
fn canonical_name(name: &str) -> Result<String, AddressError> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let character = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(character)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name of digits only is an IP address with a slip in it (10.0.0, 10.0.0.256).
    let numeric = name.chars().all(|c| c.is_ascii_digit() || c == '.');
    match name.len() <= 253 && name.split('.').all(label) && !numeric {
        true => Ok(name),
        false => Err(AddressError::Host),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        use AddressError::*;
        for (text, expected) in [
            ("127.0.0.1:5432", Ok("127.0.0.1:5432")),
            ("[::1]:5432", Ok("[::1]:5432")),
            ("[0:0:0:0:0:0:0:1]:5432", Ok("[::1]:5432")),
            ("[::ffff:10.0.0.7]:5432", Ok("10.0.0.7:5432")),
            ("DB.Internal.:5432", Ok("db.internal:5432")),
            ("localhost:1", Ok("localhost:1")),
            ("_pg._tcp.example:5432", Ok("_pg._tcp.example:5432")),
            ("", Err(Shape)),
            ("db.internal", Err(Shape)),
            ("::1:5432", Err(Shape)),
            ("[::1:5432", Err(Shape)),
            ("[::1]", Err(Shape)),
            ("[10.0.0.1]:5432", Err(Host)),
            ("[fe80::1%eth0]:5432", Err(Host)),
            (":5432", Err(Host)),
            ("10.0.0:5432", Err(Host)),
            ("10.0.0.256:5432", Err(Host)),
            ("db internal:5432", Err(Host)),
            ("-db:5432", Err(Host)),
            ("db:", Err(Port)),
            ("db:0", Err(Port)),
            ("db:65536", Err(Port)),
            ("db:+80", Err(Port)),
            ("db:http", Err(Port)),
            ("0.0.0.0:5432", Err(Undialable)),
            ("[::]:5432", Err(Undialable)),
            ("224.0.0.1:5432", Err(Undialable)),
            ("255.255.255.255:5432", Err(Undialable)),
        ] {
            let parsed = text.parse::<Address>().map(|address| address.to_string());
            assert_eq!(parsed, expected.map(str::to_owned), "{text:?}");
        }
    }
}

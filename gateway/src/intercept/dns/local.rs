//! Addresses that a name must not lead to: whoever answers for a name could else point the gateway, which
//! is outside of every agent's walls, at services that trust their own host (DNS rebinding).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::synthetic::is_synthetic;

/// Why a name must not lead to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// Unless the target allows it: what it is.
    Local(&'static str),
    /// Whatever the configuration says.
    Never(&'static str),
}

impl Forbidden {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Local(reason) | Self::Never(reason) => reason,
        }
    }
}

/// `None`: a name may lead there.
pub fn forbidden(address: IpAddr) -> Option<Forbidden> {
    if is_synthetic(address) {
        return Some(Forbidden::Never("the gateway's own synthetic range"));
    }
    match address {
        IpAddr::V4(v4) => forbidden_v4(v4),
        IpAddr::V6(v6) => forbidden_v6(v6),
    }
}

fn forbidden_v4(v4: Ipv4Addr) -> Option<Forbidden> {
    use Forbidden::{Local, Never};
    match v4.octets() {
        [0, ..] => Some(Never("this network")),
        [224..=239, ..] => Some(Never("multicast")),
        [255, 255, 255, 255] => Some(Never("broadcast")),
        [127, ..] => Some(Local("loopback")),
        // Every large cloud's metadata service, and the rest of the link.
        [169, 254, ..] => Some(Local("link-local or metadata")),
        // Alibaba Cloud, Azure, Oracle Cloud.
        [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => Some(Local("metadata")),
        _ => None,
    }
}

fn forbidden_v6(v6: Ipv6Addr) -> Option<Forbidden> {
    use Forbidden::{Local, Never};
    if let Some(v4) = embedded(v6) {
        return forbidden(v4.into());
    }
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Never("this host")),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Local("loopback")),
        [0xff00..=0xffff, ..] => Some(Never("multicast")),
        [0xfe80..=0xfebf, ..] => Some(Local("link-local")),
        // Amazon's and Google's metadata services.
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254] => {
            Some(Local("metadata"))
        }
        _ => None,
    }
}

/// The IPv4 address inside: v4-mapped, v4-compatible, NAT64 (RFC 6052), 6to4 (RFC 3056).
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        // ::0.0.0.1 is ::1, which is no IPv4 address.
        | [0, 0, 0, 0, 0, 0, high @ 1..=0xffff, low]
        | [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_names_may_lead() {
        use Forbidden::{Local, Never};
        let (loopback, link) = (
            Some(Local("loopback")),
            Some(Local("link-local or metadata")),
        );
        for (address, expected) in [
            ("10.0.0.7", None),
            ("192.168.1.1", None),
            ("100.64.0.1", None),
            ("93.184.216.34", None),
            ("2001:db8::1", None),
            ("fd00::1", None),
            ("127.0.0.1", loopback),
            ("127.255.255.255", loopback),
            ("::1", loopback),
            ("169.254.169.254", link),
            ("169.254.0.1", link),
            ("fe80::1", Some(Local("link-local"))),
            ("febf::1", Some(Local("link-local"))),
            ("fec0::1", None),
            ("fd00:ec2::254", Some(Local("metadata"))),
            ("fd20:ce::254", Some(Local("metadata"))),
            ("100.100.100.200", Some(Local("metadata"))),
            ("168.63.129.16", Some(Local("metadata"))),
            ("192.0.0.192", Some(Local("metadata"))),
            ("0.0.0.0", Some(Never("this network"))),
            ("0.1.2.3", Some(Never("this network"))),
            ("::", Some(Never("this host"))),
            ("224.0.0.1", Some(Never("multicast"))),
            ("ff02::1", Some(Never("multicast"))),
            ("255.255.255.255", Some(Never("broadcast"))),
            (
                "198.18.0.1",
                Some(Never("the gateway's own synthetic range")),
            ),
            (
                "fd53:6c75:6963::1",
                Some(Never("the gateway's own synthetic range")),
            ),
            // The same in disguise.
            ("::ffff:127.0.0.1", loopback),
            ("::127.0.0.1", loopback),
            ("64:ff9b::127.0.0.1", loopback),
            ("64:ff9b::169.254.169.254", link),
            ("64:ff9b::8.8.8.8", None),
            ("2002:7f00:1::", loopback),
            ("2002:a9fe:a9fe::1", link),
            ("2002:808:808::1", None),
            (
                "::ffff:198.18.0.1",
                Some(Never("the gateway's own synthetic range")),
            ),
        ] {
            assert_eq!(forbidden(address.parse().unwrap()), expected, "{address}");
        }
    }
}

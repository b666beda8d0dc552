//! IP addresses as the kernel hands them out: four words in network byte order.
//!
//! IPv4 addresses are kept in their v4-mapped form (`::ffff:a.b.c.d`), so that an IPv6 socket with a mapped
//! peer and an IPv4 listener agree on one key.

use core::net::{IpAddr, Ipv6Addr};

/// An IPv4 or IPv6 address; IPv4 is v4-mapped. Each word is in network byte order, as in `struct in6_addr`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub [u32; 4]);

const MAPPED_PREFIX: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    pub const LOOPBACK_V4: Address = Address::v4(0x7f00_0001_u32.to_be());
    pub const LOOPBACK_V6: Address = Address([0, 0, 0, 1_u32.to_be()]);

    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(network_order: u32) -> Self {
        Self([0, 0, MAPPED_PREFIX, network_order])
    }

    /// The IPv4 address in host byte order, when this is one.
    #[inline(always)]
    pub const fn as_v4(self) -> Option<u32> {
        let [a, b, prefix, v4] = self.0;
        if a == 0 && b == 0 && prefix == MAPPED_PREFIX {
            Some(u32::from_be(v4))
        } else {
            None
        }
    }

    /// `127.0.0.0/8`, `::1`, and the v4-mapped form of the former.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        match self.as_v4() {
            Some(v4) => v4 >> 24 == 127,
            None => {
                let [a, b, c, d] = self.0;
                a == 0 && b == 0 && c == 0 && d == 1_u32.to_be()
            }
        }
    }

    /// `0.0.0.0` and `::`, which Linux takes to mean loopback in connect(2).
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        match self.as_v4() {
            Some(v4) => v4 == 0,
            None => {
                let [a, b, c, d] = self.0;
                a == 0 && b == 0 && c == 0 && d == 0
            }
        }
    }

    /// `169.254.0.0/16` (cloud metadata lives there) and `fe80::/10`.
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        match self.as_v4() {
            Some(v4) => v4 >> 16 == 0xa9fe,
            None => u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6,
        }
    }

    /// Multicast, reserved and broadcast: `224.0.0.0/3` and `ff00::/8`.
    #[inline(always)]
    pub const fn is_many(self) -> bool {
        match self.as_v4() {
            Some(v4) => v4 >> 29 == 0b111,
            None => u32::from_be(self.0[0]) >> 24 == 0xff,
        }
    }

    /// What connect(2) would really reach: the unspecified address is loopback of its family.
    #[inline(always)]
    pub const fn effective(self) -> Self {
        match (self.is_unspecified(), self.as_v4()) {
            (true, Some(_)) => Self::LOOPBACK_V4,
            (true, None) => Self::LOOPBACK_V6,
            (false, _) => self,
        }
    }

    /// Loopback of the same kind, where the gateway listens.
    #[inline(always)]
    pub const fn gateway(self) -> Self {
        match self.as_v4() {
            Some(_) => Self::LOOPBACK_V4,
            None => Self::LOOPBACK_V6,
        }
    }

    /// As the standard library has it; v4-mapped becomes IPv4.
    pub fn to_ip(self) -> IpAddr {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn address(text: &str) -> Address {
        let octets = match text.parse::<IpAddr>().expect(text) {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word =
            |at: usize| u32::from_ne_bytes(octets[at..at + 4].try_into().expect("four bytes"));
        Address([word(0), word(4), word(8), word(12)])
    }

    #[test]
    fn every_address_survives_the_kernel_form() {
        for text in [
            "127.0.0.1",
            "192.0.2.7",
            "::1",
            "::",
            "0.0.0.0",
            "2001:db8::1:2",
            "fe80::1",
        ] {
            assert_eq!(
                address(text).to_ip().to_canonical(),
                text.parse::<IpAddr>().expect(text)
            );
        }
        assert_eq!(address("::ffff:192.0.2.7"), address("192.0.2.7"));
    }

    #[test]
    fn classes() {
        struct Row(&'static str, bool, bool, bool, bool);
        #[rustfmt::skip]
        let rows = [
            //   address             loopback unspecified link-local many
            Row("127.0.0.1",          true,  false, false, false),
            Row("127.255.255.254",    true,  false, false, false),
            Row("126.255.255.255",    false, false, false, false),
            Row("::1",                true,  false, false, false),
            Row("::2",                false, false, false, false),
            Row("::ffff:127.0.0.9",   true,  false, false, false),
            Row("0.0.0.0",            false, true,  false, false),
            Row("::",                 false, true,  false, false),
            Row("::ffff:0.0.0.0",     false, true,  false, false),
            Row("0.0.0.1",            false, false, false, false),
            Row("169.254.169.254",    false, false, true,  false),
            Row("169.253.255.255",    false, false, false, false),
            Row("fe80::1",            false, false, true,  false),
            Row("febf:ffff::1",       false, false, true,  false),
            Row("fec0::1",            false, false, false, false),
            Row("223.255.255.255",    false, false, false, false),
            Row("224.0.0.1",          false, false, false, true),
            Row("240.0.0.1",          false, false, false, true),
            Row("255.255.255.255",    false, false, false, true),
            Row("::ffff:224.0.0.251", false, false, false, true),
            Row("ff02::fb",           false, false, false, true),
            Row("feff::1",            false, false, false, false),
            Row("10.0.0.5",           false, false, false, false),
            Row("2001:db8::5",        false, false, false, false),
        ];
        for Row(text, loopback, unspecified, link_local, many) in rows {
            let it = address(text);
            assert_eq!(it.is_loopback(), loopback, "loopback {text}");
            assert_eq!(it.is_unspecified(), unspecified, "unspecified {text}");
            assert_eq!(it.is_link_local(), link_local, "link-local {text}");
            assert_eq!(it.is_many(), many, "many {text}");
        }
    }

    #[test]
    fn unspecified_means_loopback_of_its_family() {
        assert_eq!(address("0.0.0.0").effective(), address("127.0.0.1"));
        assert_eq!(address("::ffff:0.0.0.0").effective(), address("127.0.0.1"));
        assert_eq!(address("::").effective(), address("::1"));
        assert_eq!(address("192.0.2.7").effective(), address("192.0.2.7"));
    }
}

//! Addresses and identifiers.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Text;
use crate::protocol::cursor::{Cursor, Malformed};

/// PostgreSQL's own numbers for the families (`PGSQL_AF_INET`, `PGSQL_AF_INET6`).
const IPV4: u8 = 2;
const IPV6: u8 = 3;

/// inet and cidr: family, prefix length, whether it is a cidr, length, address.
pub(super) fn address(cursor: &mut Cursor<'_>, out: &mut Text) -> Result<(), Malformed> {
    let family = cursor.u8("address family")?;
    let prefix = cursor.u8("prefix length")?;
    let cidr = cursor.u8("kind of address")? != 0;
    let length = cursor.u8("address length")?;
    let bytes = cursor.take(length.into(), "address")?;
    let longest = match (family, bytes.len()) {
        (IPV4, 4) => 32,
        (IPV6, 16) => 128,
        _ => {
            return Err(Malformed::Value {
                what: "address family",
                value: family.into(),
            });
        }
    };
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        out.put(format_args!("{}", Ipv4Addr::from(bytes)));
    } else if let Ok(bytes) = <[u8; 16]>::try_from(bytes) {
        ipv6(Ipv6Addr::from(bytes), out);
    }
    if cidr || prefix != longest {
        out.put(format_args!("/{prefix}"));
    }
    Ok(())
}

/// PostgreSQL writes the last four bytes as an IPv4 address also where nothing but zeros is before them.
fn ipv6(address: Ipv6Addr, out: &mut Text) {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => {
            let bits = u32::try_from(u128::from(address)).unwrap_or(0);
            out.put(format_args!("::{}", Ipv4Addr::from(bits)));
        }
        _ => out.put(format_args!("{address}")),
    }
}

pub(super) fn mac(bytes: &[u8], out: &mut Text) {
    for (index, byte) in bytes.iter().enumerate() {
        let separator = if index == 0 { "" } else { ":" };
        out.put(format_args!("{separator}{byte:02x}"));
    }
}

pub(super) fn uuid(cursor: &mut Cursor<'_>, out: &mut Text) -> Result<(), Malformed> {
    for (index, length) in [4, 2, 2, 2, 6].into_iter().enumerate() {
        if index > 0 {
            out.push("-");
        }
        out.push(&hex::encode(cursor.take(length, "uuid")?));
    }
    Ok(())
}

//! Numbers.

use std::fmt::{Display, LowerExp};

use super::Text;
use crate::protocol::cursor::{Cursor, Malformed};

pub(super) fn float4(value: f32, out: &mut Text) {
    float(value, value.is_infinite(), value.is_nan(), 6, out);
}

pub(super) fn float8(value: f64, out: &mut Text) {
    float(value, value.is_infinite(), value.is_nan(), 15, out);
}

/// The shortest digits that mean the value, in exponents where the number is small or has more than
/// `digits` before its point.
fn float(
    value: impl Display + LowerExp,
    infinite: bool,
    not_a_number: bool,
    digits: i32,
    out: &mut Text,
) {
    let scientific = format!("{value:e}");
    let sign = if scientific.starts_with('-') { "-" } else { "" };
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if not_a_number {
        out.push("NaN");
    } else if infinite {
        out.put(format_args!("{sign}Infinity"));
    } else if (-4..digits).contains(&exponent) {
        out.put(format_args!("{value}"));
    } else {
        out.put(format_args!("{mantissa}e{exponent:+03}"));
    }
}

/// Cents, as the C locale prints them.
pub(super) fn money(cents: i64, out: &mut Text) {
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    let dollars = (cents / 100).to_string();
    out.put(format_args!("{sign}$"));
    for (index, digit) in dollars.chars().enumerate() {
        if index > 0 && (dollars.len() - index).is_multiple_of(3) {
            out.push(",");
        }
        out.put(format_args!("{digit}"));
    }
    out.put(format_args!(".{:02}", cents % 100));
}

/// Groups of four decimal digits, the first one worth 10000 to the power of the weight.
pub(super) fn numeric(cursor: &mut Cursor<'_>, out: &mut Text) -> Result<(), Malformed> {
    let count = cursor.count("numeric")?;
    let weight = i32::from(cursor.i16("numeric weight")?);
    let sign = cursor.u16("numeric sign")?;
    let scale = cursor.u16("numeric scale")?;
    let impossible = |what, value: u16| Malformed::Value {
        what,
        value: value.into(),
    };
    if scale > 0x3fff {
        return Err(impossible("numeric scale", scale));
    }
    let mut groups = Vec::new();
    for _ in 0..count {
        match cursor.u16("numeric digits")? {
            group @ 0..=9999 => groups.push(group),
            group => return Err(impossible("numeric digits", group)),
        }
    }
    // Where each group stands; those that are not sent are zeros.
    let group_at = |place: i32| -> u16 {
        let index = usize::try_from(weight.saturating_sub(place)).ok();
        let group = index.and_then(|index| groups.get(index));
        group.copied().unwrap_or(0)
    };
    let first = groups.iter().position(|group| *group != 0);
    let highest = first
        .and_then(|index| i32::try_from(index).ok())
        .map(|index| weight - index)
        .filter(|place| *place >= 0);
    match sign {
        0 => {}
        0x4000 if first.is_some() => out.push("-"),
        0x4000 => {}
        0xc000 => {
            out.push("NaN");
            return Ok(());
        }
        0xd000 => {
            out.push("Infinity");
            return Ok(());
        }
        0xf000 => {
            out.push("-Infinity");
            return Ok(());
        }
        other => return Err(impossible("numeric sign", other)),
    }
    match highest {
        None => out.push("0"),
        Some(highest) => {
            out.put(format_args!("{}", group_at(highest)));
            for place in (0..highest).rev() {
                out.put(format_args!("{:04}", group_at(place)));
                // A weight of two bytes stands for 131072 digits.
                if !out.whole {
                    return Ok(());
                }
            }
        }
    }
    let mut left = usize::from(scale);
    if left > 0 {
        out.push(".");
    }
    let mut place = -1;
    while left > 0 && out.whole {
        let group = format!("{:04}", group_at(place));
        let shown = left.min(group.len());
        out.push(group.get(..shown).unwrap_or_default());
        left -= shown;
        place -= 1;
    }
    Ok(())
}

/// bit and varbit: their count, and the bits from the highest of the first byte.
pub(super) fn bits(cursor: &mut Cursor<'_>, out: &mut Text) -> Result<(), Malformed> {
    let count = cursor.u32("number of bits")?;
    let bytes = usize::try_from(count.div_ceil(8)).unwrap_or(usize::MAX);
    let bytes = cursor.take(bytes, "bits")?;
    let mut left = count;
    for byte in bytes {
        let all = format!("{byte:08b}");
        let shown = usize::try_from(left.min(8)).unwrap_or(8);
        out.push(all.get(..shown).unwrap_or_default());
        left = left.saturating_sub(8);
        if !out.whole {
            break;
        }
    }
    Ok(())
}

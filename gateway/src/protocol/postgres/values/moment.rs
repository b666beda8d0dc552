//! Dates, times and intervals, counted from the beginning of the year 2000.

use super::Text;
use crate::protocol::cursor::{Cursor, Malformed};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// Days from 0000-03-01, the beginning of a 400-year era, to 2000-01-01.
const ERA_TO_2000: i64 = 730_425;

/// A day in the proleptic Gregorian calendar; years before 1 are counted 0, -1, ….
struct Civil {
    year: i64,
    month: i64,
    day: i64,
}

/// Years are taken from March, so that the leap day is their last
/// (<https://howardhinnant.github.io/date_algorithms.html>, `civil_from_days`).
fn civil(days: i64) -> Civil {
    let days = days + ERA_TO_2000;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    Civil {
        year: year + era * 400 + i64::from(month <= 2),
        month,
        day,
    }
}

impl Civil {
    /// There is no year 0: before 1 comes 1 BC.
    fn put(&self, out: &mut Text) {
        let year = if self.year > 0 {
            self.year
        } else {
            1 - self.year
        };
        out.put(format_args!("{year:04}-{:02}-{:02}", self.month, self.day));
    }

    fn era(&self) -> &'static str {
        if self.year > 0 { "" } else { " BC" }
    }
}

pub(super) fn date(days: i32, out: &mut Text) {
    match days {
        i32::MAX => out.push("infinity"),
        i32::MIN => out.push("-infinity"),
        days => {
            let civil = civil(days.into());
            civil.put(out);
            out.push(civil.era());
        }
    }
}

pub(super) fn timestamp(micros: i64, zone: &str, out: &mut Text) {
    match micros {
        i64::MAX => out.push("infinity"),
        i64::MIN => out.push("-infinity"),
        micros => {
            let civil = civil(micros.div_euclid(DAY));
            civil.put(out);
            out.push(" ");
            clock(micros.rem_euclid(DAY).unsigned_abs(), out);
            out.push(zone);
            out.push(civil.era());
        }
    }
}

pub(super) fn time(micros: i64, out: &mut Text) -> Result<(), Malformed> {
    if !(0..=DAY).contains(&micros) {
        return Err(Malformed::Value {
            what: "time",
            value: micros,
        });
    }
    clock(micros.unsigned_abs(), out);
    Ok(())
}

/// A time, and the seconds it is west of UTC.
pub(super) fn timetz(cursor: &mut Cursor<'_>, out: &mut Text) -> Result<(), Malformed> {
    time(cursor.i64("timetz")?, out)?;
    let west = cursor.i32("time zone")?;
    let sign = if west <= 0 { '+' } else { '-' };
    let seconds = west.unsigned_abs();
    out.put(format_args!("{sign}{:02}", seconds / 3600));
    if !seconds.is_multiple_of(3600) {
        out.put(format_args!(":{:02}", seconds / 60 % 60));
    }
    if !seconds.is_multiple_of(60) {
        out.put(format_args!(":{:02}", seconds % 60));
    }
    Ok(())
}

/// Hours, minutes and seconds, of which there may be more than a day.
fn clock(micros: u64, out: &mut Text) {
    let seconds = micros / SECOND.unsigned_abs();
    let fraction = micros % SECOND.unsigned_abs();
    out.put(format_args!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    ));
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        out.put(format_args!(".{}", digits.trim_end_matches('0')));
    }
}

/// As `IntervalStyle = postgres` prints it: every part with a sign of its own.
pub(super) fn interval(cursor: &mut Cursor<'_>, out: &mut Text) -> Result<(), Malformed> {
    let micros = cursor.i64("interval")?;
    let days = cursor.i32("days")?;
    let months = cursor.i32("months")?;
    match (micros, days, months) {
        // From PostgreSQL 17 on.
        (i64::MAX, i32::MAX, i32::MAX) => {
            out.push("infinity");
            return Ok(());
        }
        (i64::MIN, i32::MIN, i32::MIN) => {
            out.push("-infinity");
            return Ok(());
        }
        _ => {}
    }
    let mut separator = "";
    let mut before = false;
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count == 0 {
            continue;
        }
        let plus = if before && count > 0 { "+" } else { "" };
        let plural = if count == 1 { "" } else { "s" };
        out.put(format_args!("{separator}{plus}{count} {unit}{plural}"));
        separator = " ";
        before = count < 0;
    }
    if micros != 0 || separator.is_empty() {
        let sign = match (micros < 0, before) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        out.put(format_args!("{separator}{sign}"));
        clock(micros.unsigned_abs(), out);
    }
    Ok(())
}

//! Text for a person's terminal. Statements, values and error texts come from agents and targets: shown as
//! they are, they could move the cursor, hide a line or turn a word around. Everything from outside goes
//! through [`printable`] or [`one_line`].

use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::io::IsTerminal;

/// Whether a terminal may act on this character instead of showing it: control characters, and those
/// that reorder or hide the text around them.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` with everything a terminal would act on spelled out: `\n`, `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// As [`printable`], with every run of white space as one blank.
pub fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !shown.is_empty() {
            shown.push(' ');
        }
        shown.push_str(&printable(word));
    }
    shown
}

/// JSON that means the same and holds nothing a terminal acts on. JSON's own escapes cover only the
/// characters below U+0020.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    if !json.chars().any(acts) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if acts(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// At most `width` characters of `text`, the last one `…` if something is missing.
pub fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.chars().nth(width).is_none() {
        return Cow::Borrowed(text);
    }
    let mut shown: String = text.chars().take(width.saturating_sub(1)).collect();
    shown.push('…');
    Cow::Owned(shown)
}

/// A duration in the unit a person would choose.
pub fn duration(us: u64) -> String {
    let tenth = |unit: u64| format!("{}.{}", us / unit, us % unit / (unit / 10));
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => tenth(1_000) + " ms",
        1_000_000..60_000_000 => tenth(1_000_000) + " s",
        60_000_000..3_600_000_000 => {
            format!("{}m{:02}s", us / 60_000_000, us / 1_000_000 % 60)
        }
        _ => format!("{}h{:02}m", us / 3_600_000_000, us / 60_000_000 % 60),
    }
}

/// A size in the unit a person would choose.
pub fn size(bytes: u64) -> String {
    let tenth = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit / (unit / 10));
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => tenth(1 << 10) + " KiB",
        1_048_576..1_073_741_824 => tenth(1 << 20) + " MiB",
        _ => tenth(1 << 30) + " GiB",
    }
}

/// `1 row`, `2 rows`.
pub fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A colour with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    /// What stands there for completeness.
    Dim,
    /// Who.
    Bold,
    Good,
    /// Denied, broken, crashed.
    Bad,
    Warning,
    /// An id to copy.
    Id,
}

/// Puts colours on text, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    colours: bool,
}

impl Paint {
    pub const PLAIN: Paint = Paint { colours: false };
    pub const COLOURS: Paint = Paint { colours: true };

    /// Colours when standard output is a terminal and the user did not say otherwise
    /// (<https://no-color.org>).
    pub fn for_stdout() -> Paint {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Paint {
            colours: !refused && std::io::stdout().is_terminal(),
        }
    }

    /// `text`, which must be printable, in the colour of `tone`.
    pub fn tone(self, tone: Tone, text: impl Display) -> String {
        let code = match tone {
            Tone::Plain => return text.to_string(),
            Tone::Dim => "2",
            Tone::Bold => "1",
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Warning => "33",
            Tone::Id => "36",
        };
        let text = text.to_string();
        if self.colours && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_text_is_spelled_out() {
        let table = [
            ("plain", "select 'ü' ✓", "select 'ü' ✓"),
            ("escape", "\u{1b}[2J", "\\u{1b}[2J"),
            ("one-byte CSI", "\u{9b}31m", "\\u{9b}31m"),
            ("new line", "a\nb\r\tc", "a\\nb\\r\\tc"),
            ("right to left", "\u{202e}txt", "\\u{202e}txt"),
            ("zero width", "sel\u{200b}ect", "sel\\u{200b}ect"),
            ("delete", "\u{7f}", "\\u{7f}"),
        ];
        for (name, text, expected) in table {
            assert_eq!(printable(text), expected, "{name}");
        }
        assert_eq!(one_line("  select\n\t 1 ;\u{1b}c "), "select 1 ;\\u{1b}c");
    }

    #[test]
    fn quantities_read_well() {
        let durations = [
            (0, "0 µs"),
            (999, "999 µs"),
            (4_250, "4.2 ms"),
            (1_900_000, "1.9 s"),
            (61_000_000, "1m01s"),
            (3_720_000_000, "1h02m"),
        ];
        for (us, expected) in durations {
            assert_eq!(duration(us), expected);
        }
        let sizes = [
            (120, "120 B"),
            (1_536, "1.5 KiB"),
            (5 << 20, "5.0 MiB"),
            (3 << 30, "3.0 GiB"),
        ];
        for (bytes, expected) in sizes {
            assert_eq!(size(bytes), expected);
        }
        assert_eq!(
            (count(1, "row"), count(0, "row")),
            ("1 row".into(), "0 rows".into())
        );
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(cut("größer", 6), "größer");
        assert_eq!(cut("größer", 4), "grö…");
        assert_eq!(cut("größer", 0), "…");
    }

    proptest! {
        #[test]
        fn nothing_printable_acts(text in any::<String>()) {
            prop_assert!(!printable(&text).chars().any(acts));
            prop_assert!(!one_line(&text).chars().any(acts));
            let json = serde_json::to_string(&text).unwrap();
            let shown = printable_json(&json);
            prop_assert!(!shown.chars().any(acts));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }
}

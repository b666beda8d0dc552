//! What a masked column looks like when it is delivered.
//!
//! A rule names one column, `schema.table.column`, and the transform its values go through. Which
//! result fields a rule is about is the session's business; which statements may be masked at all is
//! decided by [`crate::sql::MaskUse`]. Everything here works on a value's text, which is its binary form too
//! where its type is a text, and never fails: a value that is not text as expected is replaced whole.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// One masked column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskRule {
    pub schema: String,
    pub table: String,
    pub column: String,
    pub transform: Transform,
}

/// How a value is changed. NULL stays NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// A fixed word; a NULL where the column's type does not take one.
    Redact,
    /// The last characters in clear, every other letter and digit a `*`, at most a third of the value.
    KeepLast(usize),
}

/// More than this in clear is a copy, not a mask.
const MOST_KEPT: usize = 8;

/// PostgreSQL cuts identifiers to this many bytes (NAMEDATALEN - 1): a longer name matches no column.
const LONGEST_NAME: usize = 63;

/// What stands in for a redacted value of a text-like type.
const REDACTED: &str = "[redacted]";

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MaskingError {
    #[error("`{0}` is not schema.table.column: write for example \"public.customers.card_number\"")]
    Column(String),
    #[error(
        "`{0}` is longer than PostgreSQL's {LONGEST_NAME} bytes for a name, so no column has it"
    )]
    LongName(String),
    #[error("unknown transform `{0}`: use \"redact\" or \"keep_last(4)\"")]
    Transform(String),
    #[error("keep_last({0}) keeps too much or nothing: use 1 to {MOST_KEPT}")]
    Kept(usize),
}

/// Splits `schema.table.column`; a part in double quotes may contain dots, `""` is a quote.
pub fn parse_column(text: &str) -> Result<(String, String, String), MaskingError> {
    let malformed = || MaskingError::Column(text.to_owned());
    let parts = split_name(text).ok_or_else(malformed)?;
    let [schema, table, column] = <[String; 3]>::try_from(parts).map_err(|_| malformed())?;
    for part in [&schema, &table, &column] {
        if part.is_empty() {
            return Err(malformed());
        }
        if part.len() > LONGEST_NAME {
            return Err(MaskingError::LongName(part.clone()));
        }
    }
    Ok((schema, table, column))
}

/// `None` when a quote is not closed or stands in the middle of a part.
fn split_name(text: &str) -> Option<Vec<String>> {
    let mut parts = vec![];
    let mut rest = text;
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_part(quoted)?,
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                let (part, after) = rest.split_at(end);
                let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
                if !part.chars().all(plain) {
                    return None;
                }
                (part.to_lowercase(), after)
            }
        };
        parts.push(part);
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None if after.is_empty() => return Some(parts),
            None => return None,
        }
    }
}

fn quoted_part(text: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"')?;
        part.push_str(before);
        match after.strip_prefix('"') {
            Some(next) => {
                part.push('"');
                rest = next;
            }
            None => return Some((part, after)),
        }
    }
}

impl FromStr for Transform {
    type Err = MaskingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || MaskingError::Transform(text.to_owned());
        let text = text.trim();
        if text == "redact" {
            return Ok(Self::Redact);
        }
        let count = text
            .strip_prefix("keep_last(")
            .and_then(|rest| rest.strip_suffix(')'))
            .ok_or_else(unknown)?;
        match count.trim().parse::<usize>().map_err(|_| unknown())? {
            kept @ 1..=MOST_KEPT => Ok(Self::KeepLast(kept)),
            kept => Err(MaskingError::Kept(kept)),
        }
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redact => f.write_str("redact"),
            Self::KeepLast(kept) => write!(f, "keep_last({kept})"),
        }
    }
}

/// What values of a column's type can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Not the text a mask leaves behind: a date or a number with stars in it is a value no client can parse.
    Nothing,
    /// Any text (text, name, citext …).
    Text,
    /// Any text of at most this many characters: varchar(n).
    UpTo(usize),
    /// Any text of exactly this many characters: char(n).
    Padded(usize),
}

impl Transform {
    /// The value as it is delivered: `value` is a text, in any encoding. `None` is NULL.
    pub fn apply(&self, value: &[u8], takes: Takes) -> Option<Vec<u8>> {
        if takes == Takes::Nothing {
            return None;
        }
        let masked = match (self, std::str::from_utf8(value)) {
            (Self::KeepLast(kept), Ok(text)) => keep_last(text, *kept),
            (Self::Redact, _) | (Self::KeepLast(_), Err(_)) => REDACTED.to_owned(),
        };
        Some(fitted(masked, takes).into_bytes())
    }
}

fn fitted(masked: String, takes: Takes) -> String {
    match takes {
        Takes::Nothing | Takes::Text => masked,
        Takes::UpTo(most) => masked.chars().take(most).collect(),
        Takes::Padded(count) => {
            let blanks = std::iter::repeat(' ');
            masked.chars().chain(blanks).take(count).collect()
        }
    }
}

/// Punctuation and spaces keep their place, so that `4111-1111-1111-1111` is still read as a card.
/// Of a short value less is kept: never more than a third of its letters and digits, because the
/// last four of five are the value.
fn keep_last(text: &str, kept: usize) -> String {
    let hides = |c: &char| c.is_alphanumeric() || !c.is_ascii();
    let total = text.chars().filter(hides).count();
    let hidden = total - kept.min(total / 3);
    let mut seen = 0;
    text.chars()
        .map(|c| {
            if !hides(&c) {
                return c;
            }
            seen += 1;
            if seen <= hidden { '*' } else { c }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn transforms() {
        let table: [(&str, &str, &str, Takes, Option<&str>); 17] = [
            (
                "card",
                "keep_last(4)",
                "4111111111111111",
                Takes::Text,
                Some("************1111"),
            ),
            (
                "grouped card",
                "keep_last(4)",
                "4111-1111-1111-1111",
                Takes::Text,
                Some("****-****-****-1111"),
            ),
            (
                "short value keeps a third",
                "keep_last(4)",
                "12345",
                Takes::Text,
                Some("****5"),
            ),
            ("one character", "keep_last(4)", "7", Takes::Text, Some("*")),
            ("empty", "keep_last(4)", "", Takes::Text, Some("")),
            (
                "not ASCII",
                "keep_last(2)",
                "Zoë Müller",
                Takes::Text,
                Some("*** ****er"),
            ),
            (
                "e-mail",
                "keep_last(3)",
                "bob@example.com",
                Takes::Text,
                Some("***@*******.com"),
            ),
            (
                "number column",
                "keep_last(4)",
                "4111111111111111",
                Takes::Nothing,
                None,
            ),
            (
                "redact text",
                "redact",
                "secret",
                Takes::Text,
                Some("[redacted]"),
            ),
            (
                "redact empty text",
                "redact",
                "",
                Takes::Text,
                Some("[redacted]"),
            ),
            (
                "redact a date",
                "redact",
                "1980-02-29",
                Takes::Nothing,
                None,
            ),
            (
                "redact a varchar(4)",
                "redact",
                "4111",
                Takes::UpTo(4),
                Some("[red"),
            ),
            (
                "redact a varchar(20)",
                "redact",
                "4111",
                Takes::UpTo(20),
                Some("[redacted]"),
            ),
            (
                "redact a char(12)",
                "redact",
                "4111        ",
                Takes::Padded(12),
                Some("[redacted]  "),
            ),
            (
                "redact a char(3)",
                "redact",
                "411",
                Takes::Padded(3),
                Some("[re"),
            ),
            (
                "a char(6) keeps its blanks",
                "keep_last(4)",
                "abc   ",
                Takes::Padded(6),
                Some("**c   "),
            ),
            (
                "spaces allowed in the name",
                "keep_last( 2 )",
                "abcdef",
                Takes::Text,
                Some("****ef"),
            ),
        ];
        for (name, transform, value, takes, expect) in table {
            let transform: Transform = transform.parse().expect(name);
            let got = transform.apply(value.as_bytes(), takes);
            assert_eq!(got.as_deref(), expect.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn a_value_that_is_not_utf8_is_replaced_whole() {
        assert_eq!(
            Transform::KeepLast(4).apply(b"4111\xff1111", Takes::Text),
            Some(REDACTED.as_bytes().to_vec())
        );
    }

    #[test]
    fn transform_names() {
        for bad in [
            "",
            "keep_last",
            "keep_last()",
            "keep_last(x)",
            "keep_last(0)",
            "keep_last(9)",
            "hash",
            "redact()",
        ] {
            assert!(bad.parse::<Transform>().is_err(), "{bad:?} must be refused");
        }
        assert_eq!(
            "keep_last(4)".parse::<Transform>().map(|t| t.to_string()),
            Ok("keep_last(4)".to_owned())
        );
    }

    #[test]
    fn column_names() {
        let ok = |a: &str, b: &str, c: &str| Ok((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(
            parse_column("public.customers.card_number"),
            ok("public", "customers", "card_number")
        );
        assert_eq!(
            parse_column("Public.Customers.Card"),
            ok("public", "customers", "card")
        );
        assert_eq!(parse_column(r#"s."A.b"."c""d""#), ok("s", "A.b", "c\"d"));
        for bad in [
            "",
            "a",
            "a.b",
            "a.b.c.d",
            "a..c",
            ".b.c",
            "a.b.",
            "a.\"b.c",
            "a.b c.d",
            "a.\"b\"x.c",
        ] {
            assert!(parse_column(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(matches!(
            parse_column(&format!("a.b.{}", "x".repeat(64))),
            Err(MaskingError::LongName(_))
        ));
    }

    proptest! {
        #[test]
        fn the_middle_of_a_number_is_never_clear(digits in "[0-9]{3,24}", kept in 1usize..=8) {
            let masked = Transform::KeepLast(kept).apply(digits.as_bytes(), Takes::Text).expect("text stays text");
            let clear = masked.iter().filter(|b| b.is_ascii_digit()).count();
            prop_assert_eq!(masked.len(), digits.len());
            prop_assert!(clear <= kept && clear * 3 <= digits.len());
            prop_assert!(masked[..digits.len() - clear].iter().all(|b| *b == b'*'));
        }

        #[test]
        fn any_bytes_are_masked(value in proptest::collection::vec(any::<u8>(), 0..64), kept in 1usize..=8, takes in proptest::sample::select(vec![Takes::Nothing, Takes::Text, Takes::UpTo(99)])) {
            for transform in [Transform::Redact, Transform::KeepLast(kept)] {
                let masked = transform.apply(&value, takes);
                prop_assert_eq!(masked.is_some(), takes != Takes::Nothing);
                let alphanumeric = value.iter().filter(|b| b.is_ascii_alphanumeric()).count();
                if transform == Transform::KeepLast(kept) && alphanumeric > 0 {
                    prop_assert_ne!(masked, Some(value.clone()));
                }
            }
        }
    }
}

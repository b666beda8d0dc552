//! The shape of a statement: its text with the whole numbers taken out.
//!
//! Programs send the same statement again and again with other keys in it. What a statement does (its
//! verbs, tables, functions, its use of masked columns) does not depend on those numbers, so what was
//! established for one text holds for every text of the same shape.
//!
//! Where a number could mean more than a value there is no shape: `ORDER BY 2` names a column. Neither is
//! there one for texts that are hard to cut into tokens with certainty (comments, dollar quotes, escapes,
//! several statements): those are analysed each time. A lexer that is stricter than the server's cannot be
//! led astray by it.

/// Longer texts are rarely sent twice.
const LONGEST: usize = 4096;

/// Longer digit strings are no ordinary keys: card numbers begin at 12 digits.
const DIGITS: usize = 11;

/// Words after which, somewhere, a number may be more than a value.
const POSITIONAL: [&str; 5] = ["by", "order", "group", "distinct", "partition"];

/// What stands for a number: no token of SQL holds it.
const NUMBER: char = '\u{1}';

/// The shape of one statement's text, or `None` if it has none.
pub fn of(text: &str) -> Option<String> {
    if text.len() > LONGEST || !text.is_ascii() {
        return None;
    }
    let mut shape = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.bytes().next() {
        let (token, after) = rest.split_at(length(first, rest)?);
        match first {
            b'0'..=b'9' => shape.push(NUMBER),
            b'A'..=b'Z' | b'a'..=b'z' | b'_' if is_positional(token) => return None,
            _ => shape.push_str(token),
        }
        rest = after;
    }
    Some(shape)
}

/// How many bytes the token at the beginning of `rest` has; `None` where that is not certain at a glance.
fn length(first: u8, rest: &str) -> Option<usize> {
    let run = |of: fn(u8) -> bool| rest.bytes().take_while(|byte| of(*byte)).count();
    match first {
        b'0'..=b'9' => {
            let digits = run(|byte| byte.is_ascii_digit());
            // `1.5`, `1e9`, `0x1f`, `1_000`: numbers of other kinds are left to the parser.
            let next = rest.as_bytes().get(digits).copied().unwrap_or(b' ');
            let ends = !(is_word(next) || next == b'.');
            (ends && digits <= DIGITS).then_some(digits)
        }
        b'A'..=b'Z' | b'a'..=b'z' | b'_' => {
            let word = run(is_word);
            // E'…', B'…', X'…', N'…', U&'…' and U&"…" are strings with rules of their own.
            let next = rest.as_bytes().get(word).copied().unwrap_or(b' ');
            let prefix = word == 1 && matches!(next, b'\'' | b'"' | b'&');
            (!prefix).then_some(word)
        }
        b'\'' => quoted(rest, b'\''),
        b'"' => quoted(rest, b'"'),
        b'$' => {
            // A parameter. Anything else is a quotation.
            let digits = rest.bytes().skip(1).take_while(u8::is_ascii_digit).count();
            let next = rest.as_bytes().get(1 + digits).copied().unwrap_or(b' ');
            (digits > 0 && !is_word(next)).then_some(1 + digits)
        }
        b'-' if rest.starts_with("--") => None,
        b'/' if rest.starts_with("/*") => None,
        b';' => rest
            .bytes()
            .all(|byte| byte == b';' || byte.is_ascii_whitespace())
            .then_some(rest.len()),
        // `.5` is a number, `1.` ends in one.
        b'.' if rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit) => None,
        b'\\' | 0..=8 | 14..=31 | 127.. => None,
        _ => Some(1),
    }
}

/// A quoted token with its quotes. A doubled quote is one of its characters.
fn quoted(rest: &str, quote: u8) -> Option<usize> {
    let bytes = rest.as_bytes();
    let mut at = 1;
    loop {
        match (*bytes.get(at)?, bytes.get(at + 1)) {
            // Escapes nothing where strings conform, and everything where they do not.
            (b'\\', _) => return None,
            (byte, Some(next)) if byte == quote && *next == quote => at += 2,
            (byte, _) if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

fn is_positional(word: &str) -> bool {
    POSITIONAL
        .iter()
        .any(|known| known.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::masking::{MaskRule, Transform};
    use crate::sql::{Facts, analyse};
    use proptest::prelude::*;

    #[test]
    fn texts_that_differ_in_numbers_alone_have_one_shape() {
        for (one, other) in [
            (
                "SELECT abalance FROM accounts WHERE aid = 17",
                "SELECT abalance FROM accounts WHERE aid = 90210",
            ),
            (
                "UPDATE a SET b = b + -12 WHERE c = 3;",
                "UPDATE a SET b = b + -7 WHERE c = 44;",
            ),
            (
                "INSERT INTO h VALUES (1, 2, 'it''s 3', now())",
                "INSERT INTO h VALUES (9, 8, 'it''s 3', now())",
            ),
        ] {
            assert!(of(one).is_some(), "{one}");
            assert_eq!(of(one), of(other));
        }
    }

    #[test]
    fn what_differs_in_more_has_another_shape() {
        for (one, other) in [
            ("SELECT 'a1'", "SELECT 'a2'"),
            ("SELECT a1", "SELECT a2"),
            ("SELECT \"1\"", "SELECT \"2\""),
            ("SELECT $1", "SELECT $2"),
            ("SELECT 1 2", "SELECT 12"),
            ("SELECT a FROM t", "SELECT a FROM  t"),
        ] {
            assert!(of(one).is_some() && of(other).is_some(), "{one}");
            assert_ne!(of(one), of(other), "{one}");
        }
    }

    #[test]
    fn what_cannot_be_cut_with_certainty_has_none() {
        for text in [
            "SELECT a FROM t ORDER BY 2",
            "SELECT count(*) FROM t GROUP BY 1",
            "SELECT DISTINCT 1",
            "SELECT 1 -- comment",
            "SELECT /* 1 */ 2",
            "SELECT E'\\'1'",
            "SELECT U&'1'",
            "SELECT U&\"1\"",
            "SELECT B'1'",
            "SELECT $$1$$",
            "SELECT $a$1$a$",
            "SELECT '\\'",
            "SELECT 1.5",
            "SELECT .5",
            "SELECT 1.",
            "SELECT 1e5",
            "SELECT 1_000",
            "SELECT 0x1f",
            "SELECT 1; SELECT 2",
            "SELECT 'open",
            "SELECT 4111111111111111",
            "SELECT 'ä'",
            "SELECT 1\0",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    fn masks() -> Vec<MaskRule> {
        vec![MaskRule {
            schema: "public".to_owned(),
            table: "customers".to_owned(),
            column: "card_number".to_owned(),
            transform: Transform::Redact,
        }]
    }

    /// The facts without the texts, which are each statement's own: a complaint quotes it.
    fn facts(text: &str) -> Facts {
        let mut facts = analyse(text, &masks());
        for statement in &mut facts.statements {
            statement.text.clear();
            statement.unknown = statement.unknown.take().map(|_| String::new());
        }
        facts
    }

    /// Pieces that statements are made of, right and wrong ones.
    const PIECES: [&str; 40] = [
        "SELECT",
        "id",
        ",",
        "card_number",
        "*",
        "FROM",
        "customers",
        "c",
        "WHERE",
        "=",
        "AND",
        "(",
        ")",
        "IN",
        "VALUES",
        "INSERT INTO orders",
        "UPDATE orders SET",
        "DELETE FROM orders",
        "LIMIT",
        "OFFSET",
        "'text'",
        "''",
        "\"Quoted\"",
        "$1",
        "+",
        "-",
        "::",
        "varchar",
        "[",
        "]",
        "count",
        "LEFT JOIN",
        "ON",
        "CASE WHEN",
        "THEN",
        "END",
        "SET work_mem =",
        "FETCH",
        "UNION",
        ".",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// The reason why any of this is right: other numbers, same facts.
        #[test]
        fn one_shape_means_the_same_facts(
            pieces in proptest::collection::vec(prop_oneof![
                3 => proptest::sample::select(&PIECES[..]).prop_map(Some),
                1 => Just(None),
            ], 1..14),
            one in proptest::collection::vec(0u32..100_000, 14),
            other in proptest::collection::vec(0u32..100_000, 14),
        ) {
            let write = |numbers: &[u32]| {
                let words = pieces.iter().zip(numbers).map(|(piece, number)| match piece {
                    Some(piece) => (*piece).to_owned(),
                    None => number.to_string(),
                });
                words.collect::<Vec<_>>().join(" ")
            };
            let (one, other) = (write(&one), write(&other));
            if let (Some(first), Some(second)) = (of(&one), of(&other)) {
                prop_assert_eq!(first, second);
                prop_assert_eq!(facts(&one), facts(&other), "{} / {}", one, other);
            }
        }

        #[test]
        fn any_text_never_panics(text in "\\PC{0,200}") {
            let _ = of(&text);
        }
    }
}

//! The statement's text as it may be kept: in the log and in recordings.
//!
//! Evidence must show what was run and must not become a copy of what is protected. Literals of a
//! text that touches a masked table, or that sets a password, are replaced by `$n`; in every text,
//! card numbers and password literals are taken out wherever they stand, comments included.

use pg_query::protobuf::Token;

use super::{Facts, MaskUse, Statement, Verb, unreadable};
use crate::policy::masking::MaskRule;

/// What stands where a card number was.
const CARD: &str = "[card number]";

/// What stands where a password was.
const PASSWORD: &str = "'[password]'";

/// The text for recording and log.
pub fn evidence_text(text: &str, facts: &Facts, masks: &[MaskRule]) -> String {
    let bare = if facts
        .statements
        .iter()
        .any(|statement| is_sensitive(statement, masks))
    {
        without_literals(text)
    } else {
        text.to_owned()
    };
    without_cards(&without_passwords(&bare))
}

/// The same for one statement.
pub fn evidence_of(statement: &Statement, masks: &[MaskRule]) -> String {
    let bare = match is_sensitive(statement, masks) {
        true => without_literals(&statement.text),
        false => statement.text.clone(),
    };
    without_cards(&without_passwords(&bare))
}

/// EXECUTE and CALL count too: their arguments may be values of a masked column.
fn is_sensitive(statement: &Statement, masks: &[MaskRule]) -> bool {
    let touches_mask = !masks.is_empty() && statement.mask != MaskUse::None;
    touches_mask || statement.effects.contains_key(&Verb::Role)
}

/// Every literal becomes `$n`, numbered after the parameters the text already has. Works on tokens, so
/// that code blocks and texts the grammar refuses are covered; a text that is not even tokens, or is not
/// analysed at all, is withheld.
fn without_literals(text: &str) -> String {
    if let Some(why) = unreadable(text) {
        return format!("[{why}]");
    }
    let Ok(tokens) = pg_query::scan_tokens(text) else {
        return format!("[{} bytes that could not be read as SQL]", text.len());
    };
    let piece = |start: i32, end: i32| {
        let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
        text.get(start..end)
    };
    let parameter = |start, end| piece(start, end)?.strip_prefix('$')?.parse::<u32>().ok();
    let highest = tokens
        .iter()
        .filter(|token| token.token() == Token::Param)
        .filter_map(|token| parameter(token.start, token.end))
        .max();
    let mut number = highest.unwrap_or(0);
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for token in tokens.iter().filter(|token| is_literal(token.token())) {
        let Some(before) = piece(copied, token.start) else {
            return format!("[{} bytes that could not be read as SQL]", text.len());
        };
        number = number.saturating_add(1);
        out.push_str(before);
        out.push_str(&format!("${number}"));
        copied = token.end;
    }
    out.push_str(
        usize::try_from(copied)
            .ok()
            .and_then(|copied| text.get(copied..))
            .unwrap_or(""),
    );
    out
}

fn is_literal(token: Token) -> bool {
    matches!(
        token,
        Token::Sconst
            | Token::Usconst
            | Token::Iconst
            | Token::Fconst
            | Token::Bconst
            | Token::Xconst
    )
}

/// Takes out the literal after the word `password`, as in `ALTER ROLE … PASSWORD '…'`,
/// `OPTIONS (password '…')` and `'host=… password=…'`.
fn without_passwords(text: &str) -> String {
    const WORD: &str = "password";
    // ASCII lower-casing keeps every byte position.
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    while let Some(found) = lower[copied..].find(WORD) {
        let after_word = copied + found + WORD.len();
        out.push_str(&text[copied..after_word]);
        copied = after_word;
        if let Some((start, end)) = literal_after(&text[after_word..]) {
            out.push_str(&text[after_word..after_word + start]);
            out.push_str(PASSWORD);
            copied = after_word + end;
        }
    }
    out.push_str(&text[copied..]);
    out
}

/// The byte range of the value that follows, if one does.
fn literal_after(text: &str) -> Option<(usize, usize)> {
    let rest = text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '=' | '>' | ':'));
    let start = text.len() - rest.len();
    let assigned = text[..start].contains('=');
    let unprefixed = ["E", "e", "U&", "u&", "N", "n"]
        .iter()
        .find_map(|prefix| {
            rest.strip_prefix(prefix)
                .filter(|rest| rest.starts_with('\''))
        })
        .unwrap_or(rest);
    let prefix = rest.len() - unprefixed.len();
    let length = match unprefixed.chars().next()? {
        '\'' => quoted_length(unprefixed),
        '$' => dollar_quoted_length(unprefixed)?,
        _ if assigned => unprefixed
            .find(|c: char| c.is_whitespace() || matches!(c, '\'' | ';' | '&'))
            .unwrap_or(unprefixed.len()),
        _ => return None,
    };
    (length > 0).then_some((start, start + prefix + length))
}

/// A backslash before a quote is taken to escape it: too much is removed rather than too little.
fn quoted_length(text: &str) -> usize {
    let mut bytes = text.bytes().enumerate().skip(1).peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next_if(|(_, next)| matches!(next, b'\'' | b'\\'));
            }
            b'\'' if bytes.next_if(|(_, next)| *next == b'\'').is_none() => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn dollar_quoted_length(text: &str) -> Option<usize> {
    let tag_end = text[1..].find('$')? + 2;
    let tag = &text[..tag_end];
    if !tag[1..tag_end - 1]
        .chars()
        .all(|c| c.is_alphanumeric() || c == '_')
    {
        return None;
    }
    let body = &text[tag_end..];
    Some(
        body.find(tag)
            .map_or(text.len(), |at| tag_end + at + tag.len()),
    )
}

/// Takes out card numbers: 13 to 19 digits, in groups parted by single spaces or hyphens or not, whose
/// Luhn sum is right.
pub fn without_cards(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let run = run_length(&bytes[at..]);
        if run == 0 {
            let next = text[at..].chars().next().map_or(1, char::len_utf8);
            out.push_str(&text[at..at + next]);
            at += next;
        } else {
            push_without_cards(&text[at..at + run], &mut out);
            at += run;
        }
    }
    out
}

/// How many bytes from the start are digits with single separators between them.
fn run_length(bytes: &[u8]) -> usize {
    let mut end = 0;
    for (index, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' => end = index + 1,
            b' ' | b'-' if index > 0 && end == index => {}
            _ => break,
        }
    }
    end
}

/// Groups of one run: cards start and end at group borders.
fn push_without_cards(run: &str, out: &mut String) {
    let mut rest = run;
    while !rest.is_empty() {
        match card_at_start(rest) {
            Some(length) => {
                out.push_str(CARD);
                rest = &rest[length..];
            }
            None => {
                let group = rest
                    .find([' ', '-'])
                    .map_or(rest.len(), |separator| separator + 1);
                out.push_str(&rest[..group]);
                rest = &rest[group..];
            }
        }
    }
}

/// 19 digits and a separator between each two.
const LONGEST_CARD: usize = 37;

/// The length in bytes of the longest card number that starts here. Looks no further than a card can be
/// long, and the separator behind it: a run may be megabytes.
fn card_at_start(run: &str) -> Option<usize> {
    let near = run.get(..=LONGEST_CARD).unwrap_or(run);
    let whole = (near.len() == run.len()).then_some(run.len());
    let shorter = near.rmatch_indices([' ', '-']).map(|(at, _)| at);
    let mut ends = whole.into_iter().chain(shorter);
    ends.find(|end| is_card(&run[..*end]))
}

fn is_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    (13..=19).contains(&digits.len()) && luhn(&digits)
}

fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => *digit,
            (_, doubled) if doubled > 9 => doubled - 9,
            (_, doubled) => doubled,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::masking::Transform;
    use crate::sql::analyse;

    fn masks() -> Vec<MaskRule> {
        vec![MaskRule {
            schema: "public".to_owned(),
            table: "customers".to_owned(),
            column: "card_number".to_owned(),
            transform: Transform::KeepLast(4),
        }]
    }

    #[test]
    fn a_card_of_single_digits_with_more_behind_it() {
        let card = "6 3 0 4 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let digits: Vec<u32> = card.chars().filter_map(|c| c.to_digit(10)).collect();
        assert_eq!(digits.len(), 19);
        let check = (0..10).find(|last| {
            let mut digits = digits.clone();
            digits[18] = *last;
            luhn(&digits)
        });
        let card = format!("{}{}", &card[..36], check.unwrap());
        assert!(!without_cards(&format!("{card} 1 2")).contains("6 3 0 4"));
    }

    /// A run of megabytes once kept a thread busy for hours. The time is not asserted, but a test that
    /// does not end fails.
    #[test]
    fn long_runs_of_digits_are_read_once() {
        for unit in ["11-", "1111-", "1 ", "4111111111111111 ", "9"] {
            let text = unit.repeat(1 << 16);
            let kept = without_cards(&text);
            assert!(!kept.contains("4111111111111111"), "{unit}");
        }
    }

    #[test]
    fn texts_that_are_kept() {
        let table = [
            (
                "nothing to hide",
                "SELECT id FROM orders WHERE id = 7",
                "SELECT id FROM orders WHERE id = 7",
            ),
            (
                "literals beside a masked table",
                "INSERT INTO customers VALUES (7, 'Ann', $1, '4111111111111111')",
                "INSERT INTO customers VALUES ($2, $3, $1, $4)",
            ),
            (
                "card elsewhere",
                "SELECT '4111 1111 1111 1111', 4111111111111111",
                "SELECT '[card number]', [card number]",
            ),
            (
                "card after a small number",
                "SELECT '1 4111-1111-1111-1111'",
                "SELECT '1 [card number]'",
            ),
            (
                "card in a comment",
                "SELECT 1 -- 4111111111111111",
                "SELECT 1 -- [card number]",
            ),
            (
                "not Luhn",
                "SELECT 4111111111111112",
                "SELECT 4111111111111112",
            ),
            (
                "role password",
                "ALTER ROLE app PASSWORD 'it''s'",
                "ALTER ROLE app PASSWORD $1",
            ),
            (
                "mapping password",
                "CREATE USER MAPPING FOR app SERVER s OPTIONS (user 'u', password E'a\\'b')",
                "CREATE USER MAPPING FOR app SERVER s OPTIONS (user 'u', password '[password]')",
            ),
            (
                "password in a connection text",
                "SELECT f('host=h password=hunter2 user=u')",
                "SELECT f('host=h password='[password]' user=u')",
            ),
            (
                "dollar-quoted password",
                "SELECT f(password => $q$se'cret$q$)",
                "SELECT f(password => '[password]')",
            ),
            (
                "a column called password",
                "SELECT password FROM logins",
                "SELECT password FROM logins",
            ),
            (
                "unfinished password",
                "ALTER ROLE a PASSWORD 'sec",
                "[26 bytes that could not be read as SQL]",
            ),
            (
                "syntax error with literals, masks in place",
                "SELEC * FROM customers WHERE name = 'Ann'",
                "SELEC * FROM customers WHERE name = $1",
            ),
        ];
        for (name, text, expect) in table {
            assert_eq!(
                evidence_text(text, &analyse(text, &masks()), &masks()),
                expect,
                "{name}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_scrubbed_without_panic(text in ".{0,80}") {
            let _ = evidence_text(&text, &analyse(&text, &masks()), &masks());
        }

        #[test]
        fn any_password_shape_is_scrubbed_without_panic(text in "(?i)(password|[ =>'$eu&\\\\é0-9-]){0,20}") {
            let _ = evidence_text(&text, &analyse(&text, &[]), &[]);
        }
    }
}

//! Texts of a session in which `standard_conforming_strings` may be off.
//!
//! The parsers read strings as the standard has them. With the setting off, a backslash in `'…'` escapes
//! what follows, so the server may see the end of a string, and with it the rest of the text, elsewhere.
//! Only the backslash makes the difference: a text without one has the same tokens in both modes, or is an
//! error in the server (`U&'…'` is refused while the setting is off).

use super::{Facts, evidence, unknown};
use crate::policy::masking::MaskRule;

/// How the server reads `'…'` in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strings {
    /// As the standard has it, and as the parsers do.
    Standard,
    /// Perhaps with backslashes that escape.
    Uncertain,
}

impl Strings {
    /// Whether the server reads the text as the parsers do.
    pub fn are_clear_in(self, text: &str) -> bool {
        self == Self::Standard || !text.contains('\\')
    }
}

/// The facts of a text that may be read in two ways: one unknown statement.
pub fn facts_of_unclear(text: &str, masks: &[MaskRule]) -> Facts {
    let why = "it has a backslash, and standard_conforming_strings may be off in this session";
    Facts {
        statements: vec![unknown(text, why.to_owned(), masks)],
    }
}

/// The text as it may be kept. Where a literal ends is not known, so what could hold a protected value or
/// a password is withheld whole.
pub fn evidence_of_unclear(text: &str, masks: &[MaskRule]) -> String {
    if masks.is_empty() && !text.to_ascii_lowercase().contains("password") {
        return evidence::without_cards(text);
    }
    format!("[{} bytes that can be read in two ways]", text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::masking::Transform;
    use crate::sql::{MaskUse, Verb};

    #[test]
    fn only_a_backslash_is_read_in_two_ways() {
        for (text, clear) in [
            ("SELECT 'it''s', $$ $$, U&'d!0061' UESCAPE '!'", true),
            (r"SELECT '\', ' OR card_number = '4'", false),
            (r"SELECT E'a\tb'", false),
            (r"SELECT 1 -- \", false),
        ] {
            assert!(Strings::Standard.are_clear_in(text), "{text}");
            assert_eq!(Strings::Uncertain.are_clear_in(text), clear, "{text}");
        }
    }

    #[test]
    fn what_is_not_clear_is_unknown_and_refused_where_anything_is_masked() {
        let text = r"SELECT '\'; DELETE FROM a --'";
        let facts = facts_of_unclear(text, &[]);
        assert_eq!(facts.statements.len(), 1);
        assert_eq!(facts.statements[0].verb, Verb::Unknown);
        assert_eq!(facts.statements[0].mask, MaskUse::None);
        let masks = [MaskRule {
            schema: "public".to_owned(),
            table: "customers".to_owned(),
            column: "card_number".to_owned(),
            transform: Transform::Redact,
        }];
        let facts = facts_of_unclear(text, &masks);
        let mask = &facts.statements[0].mask;
        assert!(matches!(mask, MaskUse::Refused { .. }), "{mask:?}");
        assert_eq!(
            evidence_of_unclear(text, &masks),
            "[29 bytes that can be read in two ways]"
        );
    }

    #[test]
    fn a_password_that_may_end_elsewhere_is_no_evidence() {
        let text = r"ALTER ROLE a Password 'it\'s a secret'";
        assert!(!evidence_of_unclear(text, &[]).contains("secret"));
        let text = r"SELECT '\n', '4111111111111111'";
        assert_eq!(
            evidence_of_unclear(text, &[]),
            r"SELECT '\n', '[card number]'"
        );
    }
}

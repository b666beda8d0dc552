//! What must never stand in a recording, in the log, or in the gateway's own output.

use std::cell::RefCell;

/// The full card numbers of the shop: masked, never more than the last four digits are delivered.
const CARDS: [&str; 5] = [
    "4111111111111111",
    "5500005555555559",
    "4012888888881881",
    "378282246310005",
    "6011111111111117",
];

/// The secrets of one installation.
pub struct Secrets(RefCell<Vec<String>>);

impl Secrets {
    /// The database's password and the customers' card numbers.
    pub fn of_the_shop(password: &str) -> Secrets {
        let mut secrets: Vec<String> = CARDS.map(str::to_owned).into();
        secrets.push(password.to_owned());
        Secrets(RefCell::new(secrets))
    }

    pub fn add(&self, secret: &str) {
        self.0.borrow_mut().push(secret.to_owned());
    }

    /// A token is secret as a whole and by its parts: the claims and the signature alone would do harm too.
    pub fn add_token(&self, token: &str) {
        let parts = token.split('.').skip(1).filter(|part| part.len() > 16);
        self.0.borrow_mut().extend(parts.map(str::to_owned));
    }

    /// One line per secret that `bytes` contain.
    pub fn found_in(&self, place: &str, bytes: &[u8]) -> Vec<String> {
        self.0
            .borrow()
            .iter()
            .filter(|secret| contains(bytes, secret.as_bytes()))
            .map(|secret| format!("the secret {secret:?} stands in {place}"))
            .collect()
    }
}

/// Horspool's search: recordings of gigabytes are read after the tests that make them, by code that nobody has
/// optimized.
fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((last, before)) = needle.split_last() else {
        return false;
    };
    let mut steps = [needle.len(); 256];
    for (at, byte) in before.iter().enumerate() {
        steps[usize::from(*byte)] = before.len() - at;
    }
    let mut end = before.len();
    while let Some(byte) = haystack.get(end) {
        if byte == last && haystack[..end].ends_with(before) {
            return true;
        }
        end += steps[usize::from(*byte)];
    }
    false
}

#[test]
fn a_secret_is_found_wherever_it_stands() {
    for (haystack, needle, expected) in [
        ("needle", "needle", true),
        ("a needle", "needle", true),
        ("needles in hay", "needle", true),
        ("nneedneedle", "needle", true),
        ("aaaabaaab", "aaab", true),
        ("abababac", "ababac", true),
        ("xyz", "z", true),
        ("needl", "needle", false),
        ("eneedl needl e", "needle", false),
        ("", "needle", false),
        ("anything", "", false),
    ] {
        let found = contains(haystack.as_bytes(), needle.as_bytes());
        assert_eq!(found, expected, "{needle:?} in {haystack:?}");
    }
}

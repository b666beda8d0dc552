//! Known: a statement like one that was read and allowed before is not read again.
//!
//! Programs send the same statements over and over. A session remembers the latest ones that were allowed:
//! texts that are prepared word by word, simple queries by their [`shape`], since they differ in numbers.
//! What the parsers and the policies make of a statement depends on nothing but its text, the session's
//! policies, masks and identity, which stay for its lifetime, and the target's schema. When that has
//! changed, everything is forgotten.

use std::collections::HashMap;
use std::sync::Arc;

use super::judge::Derived;
use super::meaning::Meaning;
use super::{Allowed, AllowedStatement};
use crate::sql::{Naming, Table, Verb, shape};

/// How many of either kind are remembered. What a session holds is bounded.
const MOST: usize = 16;

/// Longer texts are read each time.
const LONGEST: usize = 4096;

/// Digits from which on a text might hold a card number, perhaps in groups.
const CARD_DIGITS: usize = 12;

/// What a session remembers.
#[derive(Debug, Default)]
pub struct Known {
    derived: Arc<Derived>,
    queries: HashMap<String, Query>,
    prepared: HashMap<String, (Arc<Meaning>, Arc<Allowed>)>,
}

/// A simple query of one statement.
#[derive(Debug)]
struct Query {
    meaning: Arc<Meaning>,
    line: AllowedStatement,
    /// How many bytes stand before and behind what evidence calls the statement.
    around: (usize, usize),
}

impl Known {
    /// A simple query with the shape of an earlier one. `derived` and `knows` are the schema: what follows from it,
    /// and whether it has a table.
    pub fn query(
        &mut self,
        text: &str,
        derived: &Arc<Derived>,
        knows: impl Fn(&Table) -> bool,
    ) -> Option<(Arc<Meaning>, Arc<Allowed>)> {
        self.forget_other_than(derived);
        if self.queries.is_empty() || may_hold_card(text) {
            return None;
        }
        let known = self.queries.get(&shape::of(text)?)?;
        let statement = without(text, known.around)?;
        let mut tables = known.meaning.tables();
        if !tables.all(knows) {
            return None;
        }
        let mut line = known.line.clone();
        line.text = statement.into();
        Some((Arc::clone(&known.meaning), Arc::new(Allowed::again(line))))
    }

    /// Remembers a simple query that was allowed, if those of its shape may be.
    pub fn learn_query(
        &mut self,
        text: &str,
        meaning: &Arc<Meaning>,
        allowed: &Allowed,
        derived: &Arc<Derived>,
    ) {
        let [line] = allowed.statements() else {
            return;
        };
        if !is_plain(meaning) || meaning.sensitive() || allowed.evidence().is_some() {
            return;
        }
        // A password may be a number.
        if may_hold_card(text) || text.to_ascii_lowercase().contains("password") {
            return;
        }
        let Some((shape, around)) = shape::of(text).zip(around(text, &line.text)) else {
            return;
        };
        self.forget_other_than(derived);
        make_room(&mut self.queries);
        let query = Query {
            meaning: Arc::clone(meaning),
            line: line.clone(),
            around,
        };
        self.queries.insert(shape, query);
    }

    /// A text that was prepared before, with a meaning of its own: its parameters may have other types.
    pub fn prepared(
        &mut self,
        text: &str,
        derived: &Arc<Derived>,
        knows: impl Fn(&Table) -> bool,
    ) -> Option<(Arc<Meaning>, Arc<Allowed>)> {
        self.forget_other_than(derived);
        let (meaning, allowed) = self.prepared.get(text)?;
        let mut tables = meaning.tables();
        tables
            .all(knows)
            .then(|| (Arc::new(meaning.again()), Arc::clone(allowed)))
    }

    /// Remembers a text that may be prepared.
    pub fn learn_prepared(
        &mut self,
        text: &str,
        meaning: &Meaning,
        allowed: &Arc<Allowed>,
        derived: &Arc<Derived>,
    ) {
        if allowed.statements().len() != 1 || !is_plain(meaning) || text.len() > LONGEST {
            return;
        }
        self.forget_other_than(derived);
        make_room(&mut self.prepared);
        let remembered = (Arc::new(meaning.again()), Arc::clone(allowed));
        self.prepared.insert(text.to_owned(), remembered);
    }

    fn forget_other_than(&mut self, derived: &Arc<Derived>) {
        if Arc::ptr_eq(&self.derived, derived) {
            return;
        }
        if self.derived != *derived {
            self.queries.clear();
            self.prepared.clear();
        }
        self.derived = Arc::clone(derived);
    }
}

/// All of it goes at once: whoever sends that many different statements gains little from any order.
fn make_room<K, V>(known: &mut HashMap<K, V>) {
    if known.len() >= MOST {
        known.clear();
    }
}

/// Whether it only reads and writes rows: it neither names another statement nor copies, and leaves the
/// schema and the session's settings as they are.
pub(super) fn is_plain(meaning: &Meaning) -> bool {
    let statement = &meaning.statement;
    let rows = |verb: &Verb| {
        matches!(
            verb,
            Verb::Select | Verb::Insert | Verb::Update | Verb::Delete | Verb::Transaction
        )
    };
    statement.naming == Naming::None
        && meaning.makes().is_none()
        && statement.copy.is_none()
        && statement.unknown.is_none()
        && !statement.binary_cursor
        && !statement.effects.is_empty()
        && statement.effects.keys().all(rows)
        && statement.settings.is_empty()
        && statement.shows.is_empty()
}

pub(super) fn may_hold_card(text: &str) -> bool {
    text.bytes().filter(u8::is_ascii_digit).count() >= CARD_DIGITS
}

/// What stands around the statement in its text, if that is nothing but blanks and separators.
pub(super) fn around(text: &str, statement: &str) -> Option<(usize, usize)> {
    let before = text.find(statement)?;
    let (head, rest) = text.split_at(before);
    let tail = rest.get(statement.len()..)?;
    let is_blank = |text: &str| {
        text.bytes()
            .all(|byte| byte == b';' || byte.is_ascii_whitespace())
    };
    (is_blank(head) && is_blank(tail)).then_some((head.len(), tail.len()))
}

pub(super) fn without(text: &str, (before, behind): (usize, usize)) -> Option<&str> {
    text.get(before..text.len().checked_sub(behind)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::decide::Analysed;

    fn learn(known: &mut Known, text: &str) {
        let analysed = Analysed::for_tests(text);
        let [meaning] = analysed.statements() else {
            panic!("one statement");
        };
        let mut line = Allowed::for_tests(1).statements().to_vec();
        line.iter_mut()
            .for_each(|line| line.text = meaning.shown().into());
        let allowed = Arc::new(Allowed {
            statements: line,
            ..Allowed::for_tests(1)
        });
        let derived = Arc::clone(&known.derived);
        known.learn_query(text, meaning, &allowed, &derived);
        known.learn_prepared(text, meaning, &allowed, &derived);
    }

    fn query(known: &mut Known, text: &str) -> Option<String> {
        let derived = Arc::clone(&known.derived);
        let (_, allowed) = known.query(text, &derived, |_| true)?;
        let [line] = allowed.statements() else {
            panic!("one statement");
        };
        Some(line.text.to_string())
    }

    fn prepared(known: &mut Known, text: &str) -> bool {
        let derived = Arc::clone(&known.derived);
        known.prepared(text, &derived, |_| true).is_some()
    }

    #[test]
    fn a_query_is_known_by_its_shape_and_told_with_its_own_numbers() {
        let mut known = Known::default();
        learn(&mut known, " SELECT a FROM t WHERE id = 17 ;\n");
        for (text, told) in [
            (
                " SELECT a FROM t WHERE id = 4 ;\n",
                Some("SELECT a FROM t WHERE id = 4"),
            ),
            ("SELECT a FROM t WHERE id = 4", None),
            ("SELECT b FROM t WHERE id = 4", None),
            (" SELECT a FROM t WHERE id = 41111111111111 ;\n", None),
        ] {
            assert_eq!(query(&mut known, text).as_deref(), told, "{text}");
        }
    }

    #[test]
    fn what_does_more_than_rows_is_read_each_time() {
        for text in [
            "SET work_mem = 1",
            "PREPARE q AS SELECT 1",
            "EXECUTE q(1)",
            "COPY t TO STDOUT",
            "CREATE TABLE t (a int)",
            "SELECT set_config('work_mem', '1', false)",
            "TRUNCATE t",
            "DO $$BEGIN END$$",
        ] {
            let mut known = Known::default();
            learn(&mut known, text);
            assert_eq!(query(&mut known, text), None, "{text}");
            assert!(!prepared(&mut known, text), "{text}");
        }
    }

    #[test]
    fn what_may_hold_a_card_or_a_password_is_read_each_time() {
        for text in [
            "SELECT 411111, 1111, 111111",
            "UPDATE t SET password = 12 WHERE id = 1",
        ] {
            let mut known = Known::default();
            learn(&mut known, text);
            assert_eq!(query(&mut known, text), None, "{text}");
        }
    }

    #[test]
    fn another_schema_and_an_unknown_table_make_it_forget() {
        let mut known = Known::default();
        let text = "SELECT a FROM t WHERE id = 1";
        learn(&mut known, text);
        let same = Arc::new(Derived::default());
        assert!(known.query(text, &same, |_| true).is_some());
        assert!(known.query(text, &same, |_| false).is_none());
        assert!(known.prepared(text, &same, |_| false).is_none());
        let mut other = Derived::default();
        other.relations.insert(Table {
            schema: None,
            name: "t".to_owned(),
        });
        let other = Arc::new(other);
        assert!(known.query(text, &other, |_| true).is_none());
        assert!(known.query(text, &same, |_| true).is_none());
        assert!(!prepared(&mut known, text));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut known = Known::default();
        for number in 0..100 {
            learn(&mut known, &format!("SELECT a{number} FROM t"));
            assert!(known.queries.len() <= MOST && known.prepared.len() <= MOST);
        }
        assert!(query(&mut known, "SELECT a99 FROM t").is_some());
        assert!(prepared(&mut known, "SELECT a99 FROM t"));
        let long = format!("SELECT '{}'", "x".repeat(LONGEST));
        learn(&mut known, &long);
        assert!(!prepared(&mut known, &long));
    }

    #[test]
    fn each_parse_has_parameter_types_of_its_own() {
        let mut known = Known::default();
        let text = "SELECT a FROM t WHERE id = $1";
        learn(&mut known, text);
        let derived = Arc::clone(&known.derived);
        let mut types = |given: &[u32]| {
            let (meaning, _) = known.prepared(text, &derived, |_| true).expect("known");
            meaning.give_parameter_types(given);
            meaning.parameter_types()
        };
        assert_eq!(&*types(&[23]), [23]);
        assert_eq!(&*types(&[25]), [25]);
        assert!(types(&[]).is_empty());
    }
}

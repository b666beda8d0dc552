//! Known: a statement like one that was read and allowed before is not read again.
//!
//! Programs send the same statements over and over. A session remembers the latest ones that were allowed:
//! texts that are prepared word by word, simple queries by their shape ([`super::alike`]), since they differ in numbers.
//! What the parsers and the policies make of a statement depends on nothing but its text, the session's
//! policies, masks and identity, which stay for its lifetime, and the target's schema. When that has
//! changed, everything is forgotten.

use std::collections::HashMap;
use std::sync::Arc;

use super::alike::{self, Around};
use super::judge::Derived;
use super::meaning::Meaning;
use super::{Allowed, AllowedStatement};
use crate::sql::Table;

/// How many of either kind are remembered. What a session holds is bounded.
const MOST: usize = 16;

/// Longer texts are read each time.
const LONGEST: usize = 4096;

/// What a session remembers.
#[derive(Debug, Default)]
pub struct Known {
    derived: Arc<Derived>,
    queries: HashMap<String, Query>,
    prepared: HashMap<String, Found>,
}

/// A statement that may run, and what it means.
pub type Found = (Arc<Meaning>, Arc<Allowed>);

/// A simple query of one statement.
#[derive(Debug)]
struct Query {
    meaning: Arc<Meaning>,
    line: AllowedStatement,
    around: Around,
}

/// How a text is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Query,
    /// Parse.
    ToBePrepared,
}

impl Known {
    /// A statement like an earlier one. `derived` and `knows` are the schema: what follows from it, and whether
    /// it has a table.
    pub fn find(
        &mut self,
        sent: Sent,
        text: &str,
        derived: &Arc<Derived>,
        knows: impl Fn(&Table) -> bool,
    ) -> Option<Found> {
        self.forget_other_than(derived);
        let (meaning, allowed) = match sent {
            Sent::Query => self.query(text)?,
            Sent::ToBePrepared => self.prepared(text)?,
        };
        let all_known = meaning.tables().all(knows);
        all_known.then_some((meaning, allowed))
    }

    fn query(&self, text: &str) -> Option<Found> {
        let known = self.queries.get(&alike::shape_of(text)?)?;
        let mut line = known.line.clone();
        line.text = known.around.statement(text)?.into();
        Some((Arc::clone(&known.meaning), Arc::new(Allowed::again(line))))
    }

    /// With a meaning of its own: its parameters may have other types.
    fn prepared(&self, text: &str) -> Option<Found> {
        let (meaning, allowed) = self.prepared.get(text)?;
        Some((Arc::new(meaning.again()), Arc::clone(allowed)))
    }

    /// Remembers a statement that was allowed, if others like it may be.
    pub fn learn(
        &mut self,
        sent: Sent,
        text: &str,
        meaning: &Arc<Meaning>,
        allowed: &Arc<Allowed>,
        derived: &Arc<Derived>,
    ) {
        let [line] = allowed.statements() else {
            return;
        };
        self.forget_other_than(derived);
        match sent {
            Sent::Query => {
                let evidence = allowed.evidence().unwrap_or(text);
                let Some((shape, around)) = alike::stands_for(text, evidence, meaning) else {
                    return;
                };
                let query = Query {
                    meaning: Arc::clone(meaning),
                    line: line.clone(),
                    around,
                };
                alike::make_room(&mut self.queries, MOST);
                self.queries.insert(shape, query);
            }
            Sent::ToBePrepared if alike::is_plain(meaning) && text.len() <= LONGEST => {
                let found = (Arc::new(meaning.again()), Arc::clone(allowed));
                alike::make_room(&mut self.prepared, MOST);
                self.prepared.insert(text.to_owned(), found);
            }
            Sent::ToBePrepared => {}
        }
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
        known.learn(Sent::Query, text, meaning, &allowed, &derived);
        known.learn(Sent::ToBePrepared, text, meaning, &allowed, &derived);
    }

    fn query(known: &mut Known, text: &str) -> Option<String> {
        let derived = Arc::clone(&known.derived);
        let (_, allowed) = known.find(Sent::Query, text, &derived, |_| true)?;
        let [line] = allowed.statements() else {
            panic!("one statement");
        };
        Some(line.text.to_string())
    }

    fn prepared(known: &mut Known, text: &str) -> bool {
        let derived = Arc::clone(&known.derived);
        known
            .find(Sent::ToBePrepared, text, &derived, |_| true)
            .is_some()
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
        assert!(known.find(Sent::Query, text, &same, |_| true).is_some());
        assert!(known.find(Sent::Query, text, &same, |_| false).is_none());
        assert!(
            known
                .find(Sent::ToBePrepared, text, &same, |_| false)
                .is_none()
        );
        let mut other = Derived::default();
        other.relations.insert(Table {
            schema: None,
            name: "t".to_owned(),
        });
        let other = Arc::new(other);
        assert!(known.find(Sent::Query, text, &other, |_| true).is_none());
        assert!(known.find(Sent::Query, text, &same, |_| true).is_none());
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
            let (meaning, _) = known
                .find(Sent::ToBePrepared, text, &derived, |_| true)
                .expect("known");
            meaning.give_parameter_types(given);
            meaning.parameter_types()
        };
        assert_eq!(&*types(&[23]), [23]);
        assert_eq!(&*types(&[25]), [25]);
        assert!(types(&[]).is_empty());
    }
}

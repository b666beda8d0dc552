//! Remembered: what the parsers made of a text, for the next session that sends one like it.
//!
//! Short sessions run one or two statements, and thousands of sessions run the same ones. Facts depend on
//! nothing but the text and the target's masks, so they serve every session of the target; each decides
//! about them for itself. Simple statements are remembered by their shape ([`super::alike`]), whatever numbers they have;
//! others word by word.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::alike::{self, Around};
use super::analyst::Analysed;
use super::meaning::Meaning;
use crate::sql::Naming;

/// How many texts are remembered for one target, and how many shapes. A gateway's memory is bounded.
const MOST: usize = 1024;

/// Longer texts are read each time.
const LONGEST: usize = 2048;

/// What is remembered, by target.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<HashMap<String, OfTarget>>);

#[derive(Debug, Default)]
struct OfTarget {
    shapes: HashMap<String, Alike>,
    texts: HashMap<String, (Arc<Meaning>, String)>,
}

/// A statement that stands for all of its shape.
#[derive(Debug)]
struct Alike {
    meaning: Arc<Meaning>,
    around: Around,
}

impl Remembered {
    /// What would come out if the text were read now. The session must take strings as the standard has them.
    pub fn find(&self, target: &str, text: &str) -> Option<Analysed> {
        if text.len() > LONGEST {
            return None;
        }
        let shape = alike::shape_of(text);
        let targets = self.targets();
        let known = targets.get(target)?;
        if let Some((meaning, evidence)) = known.texts.get(text) {
            return Some(Analysed {
                statements: vec![Arc::new(meaning.again())],
                evidence: evidence.clone(),
            });
        }
        let found = known.shapes.get(&shape?)?;
        let (meaning, statement) = (Arc::clone(&found.meaning), found.around.statement(text)?);
        drop(targets);
        Some(Analysed {
            statements: vec![Arc::new(meaning.again_as(statement))],
            evidence: text.to_owned(),
        })
    }

    /// Remembers what came out.
    pub fn remember(&self, target: &str, text: &str, analysed: &Analysed) {
        let [meaning] = &analysed.statements[..] else {
            return;
        };
        let statement = &meaning.statement;
        let stands_alone = statement.naming == Naming::None && meaning.makes().is_none();
        if text.len() > LONGEST || !stands_alone || statement.unknown.is_some() {
            return;
        }
        let meaning = Arc::new(meaning.again());
        let shape = alike::stands_for(text, &analysed.evidence, &meaning);
        let mut targets = self.targets();
        let known = targets.entry(target.to_owned()).or_default();
        match shape {
            Some((shape, around)) => {
                alike::make_room(&mut known.shapes, MOST);
                known.shapes.insert(shape, Alike { meaning, around });
            }
            None => {
                alike::make_room(&mut known.texts, MOST);
                let evidence = analysed.evidence.clone();
                known.texts.insert(text.to_owned(), (meaning, evidence));
            }
        }
    }

    fn targets(&self) -> MutexGuard<'_, HashMap<String, OfTarget>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Statements and evidence, all that analysing gives.
    fn seen(analysed: &Analysed) -> (Vec<(crate::sql::Statement, String)>, String) {
        let statements = analysed.statements.iter();
        let statements = statements.map(|it| ((*it.statement).clone(), it.shown().to_owned()));
        (statements.collect(), analysed.evidence.clone())
    }

    fn remembered(text: &str) -> Remembered {
        let remembered = Remembered::default();
        remembered.remember("shop", text, &Analysed::for_tests(text));
        remembered
    }

    #[test]
    fn what_is_found_is_what_would_have_been_read() {
        for (first, next, found) in [
            (
                "SELECT a FROM t WHERE id = 1;",
                "SELECT a FROM t WHERE id = 22;",
                true,
            ),
            (
                "INSERT INTO t VALUES (1, 'x') ",
                "INSERT INTO t VALUES (7, 'x') ",
                true,
            ),
            ("BEGIN", "BEGIN", true),
            (
                "SET application_name TO 'psql'",
                "SET application_name TO 'psql'",
                true,
            ),
            (
                "SELECT a FROM t ORDER BY 1",
                "SELECT a FROM t ORDER BY 1",
                true,
            ),
            (
                "SELECT '4111111111111111'",
                "SELECT '4111111111111111'",
                true,
            ),
            (
                "ALTER ROLE a PASSWORD 'x'",
                "ALTER ROLE a PASSWORD 'x'",
                true,
            ),
            (
                "SELECT a FROM t ORDER BY 1",
                "SELECT a FROM t ORDER BY 2",
                false,
            ),
            ("SET work_mem = 1", "SET work_mem = 2", false),
            ("PREPARE q AS SELECT 1", "PREPARE q AS SELECT 1", false),
            ("EXECUTE q", "EXECUTE q", false),
            ("SELECT 1; SELECT 2", "SELECT 1; SELECT 2", false),
            ("SELECT 'a", "SELECT 'a", false),
        ] {
            let remembered = remembered(first);
            let known = remembered.find("shop", next);
            assert_eq!(known.is_some(), found, "{next}");
            if let Some(known) = known {
                assert_eq!(seen(&known), seen(&Analysed::for_tests(next)), "{next}");
            }
            assert!(remembered.find("other", next).is_none());
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let remembered = Remembered::default();
        let analysed = Analysed::for_tests("SELECT a FROM t ORDER BY 1");
        for number in 0..3 * MOST {
            remembered.remember("shop", &format!("{number}"), &analysed);
        }
        assert!(remembered.targets()["shop"].texts.len() <= MOST);
        let long = format!("SELECT '{}'", "x".repeat(LONGEST));
        remembered.remember("shop", &long, &analysed);
        assert!(remembered.find("shop", &long).is_none());
    }

    proptest! {
        /// Whatever is found for a text is what reading it gives.
        #[test]
        fn any_text_after_any_other(
            words in proptest::collection::vec(proptest::sample::select(&[
                "SELECT", "a", ",", "*", "FROM t", "WHERE", "id =", "7", "12", "'x'", "LIMIT", "ORDER BY",
                "UPDATE t SET a =", "INSERT INTO t VALUES (", ")", ";", " ", "$1", "AND", "f(", "\"Q\"",
            ][..]), 1..10),
            numbers in proptest::collection::vec(0u32..100_000, 10),
        ) {
            let first = words.join(" ");
            let mut numbers = numbers.iter();
            let next: Vec<String> = words.iter().map(|word| match (word.parse::<u32>(), numbers.next()) {
                (Ok(_), Some(number)) => number.to_string(),
                _ => (*word).to_owned(),
            }).collect();
            let next = next.join(" ");
            if let Some(known) = remembered(&first).find("shop", &next) {
                prop_assert_eq!(seen(&known), seen(&Analysed::for_tests(&next)), "{} / {}", first, next);
            }
        }
    }
}

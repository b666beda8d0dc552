//! The table: one row per order of messages and client, with what became of it.
//!
//! A test fills in its rows and fails at the end if one of them failed, so that all of them are tried.
//! `cargo xtask test denials` collects the rows of all tests and prints them.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Where the rows go, for `cargo xtask test denials`.
const COLLECTED: &str = "SLUICE_DENIAL_ROWS";

/// What a row came to; the error says what should have been.
pub type Outcome = Result<String, String>;

/// The rows of one test.
pub struct Sheet {
    /// Where the rows stand in the whole table.
    chapter: &'static str,
    rows: usize,
    failed: Vec<String>,
}

impl Sheet {
    pub fn new(chapter: &'static str) -> Sheet {
        Sheet {
            chapter,
            rows: 0,
            failed: Vec::new(),
        }
    }

    pub fn row(&mut self, order: &str, outcome: Outcome) {
        self.rows += 1;
        let order = order.replace('_', " ");
        let (passed, result) = match outcome {
            Ok(result) => (true, result),
            Err(result) => (false, result),
        };
        let mark = if passed { "ok    " } else { "FAILED" };
        println!("{mark} {order:<45} {result}");
        if !passed {
            self.failed.push(format!("{order}: {result}"));
        }
        let Some(path) = std::env::var_os(COLLECTED) else {
            return;
        };
        // Read by xtask/src/test/deny.rs.
        let fields = [
            self.chapter,
            &self.rows.to_string(),
            &order,
            &passed.to_string(),
            &result,
        ];
        let row = fields
            .map(|field| field.replace(['\t', '\n'], " "))
            .join("\t");
        // One write, so that the rows of tests that run at the same time do not mix.
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("the file for the rows can be written");
        file.write_all(format!("{row}\n").as_bytes())
            .expect("the file for the rows can be written");
    }

    /// Fails the test if a row failed.
    #[track_caller]
    pub fn finish(self) {
        assert!(self.rows > 0, "no row was tried");
        assert!(
            self.failed.is_empty(),
            "{} of {} rows failed:\n{}",
            self.failed.len(),
            self.rows,
            self.failed.join("\n")
        );
    }
}

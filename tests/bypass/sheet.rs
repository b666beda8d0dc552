//! The table: one row per attack, with the hook that stops it and what happened.
//!
//! A test fills in its rows and fails at the end if one of them failed, so that all of them are tried. `cargo
//! xtask test bypass` collects the rows of all tests and prints them.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::harness::uplink::{Capture, outgoing};

/// Where the rows go, for `cargo xtask test bypass`.
const COLLECTED: &str = "SLUICE_BYPASS_ROWS";

/// What an attack came to; the error says what should have been.
pub type Outcome = Result<String, String>;

/// The rows of one test.
pub struct Sheet {
    /// Where the rows stand in the whole table.
    chapter: &'static str,
    capture: Capture,
    rows: usize,
    failed: Vec<String>,
}

impl Sheet {
    pub fn new(chapter: &'static str, capture: Capture) -> Sheet {
        Sheet {
            chapter,
            capture,
            rows: 0,
            failed: Vec::new(),
        }
    }

    /// An attack that must come to what is expected, with no packet leaving the host.
    pub fn row(&mut self, attack: &str, stopped_by: &str, trial: impl FnOnce() -> Outcome) {
        let mut outcome = tried(trial);
        let left = self.packets();
        if !left.is_empty() {
            outcome = Err(format!("{} packets left: {}", left.len(), left.join("; ")));
        }
        let result = outcome.map(|what| format!("{what}, 0 packets"));
        self.note(attack, stopped_by, result);
    }

    /// Something that must get through, and be seen: otherwise a row without packets would prove nothing.
    pub fn control(&mut self, what: &str, trial: impl FnOnce() -> Outcome) {
        let outcome = tried(trial);
        let left = self.packets();
        let outcome = match (outcome, left.len()) {
            (Ok(what), 1..) => Ok(format!("{what}, {} packets seen", left.len())),
            (Ok(what), 0) => Err(format!("{what}, but the capture saw no packet")),
            (Err(error), _) => Err(error),
        };
        self.note(what, "nothing: it is no agent", outcome);
    }

    /// An attack with the hook taken away that stops it: now it must leave, or the row above proves nothing.
    pub fn counterproof(&mut self, attack: &str, trial: impl FnOnce() -> Outcome) {
        let outcome = tried(trial);
        let left = self.packets();
        let outcome = match (outcome, left.len()) {
            (Ok(what), 1..) => Ok(format!("{what}, {} packets leave", left.len())),
            (Ok(what), 0) => Err(format!("{what}, but no packet leaves: the attack is none")),
            (Err(error), _) => Err(error),
        };
        self.note(attack, "the hook was taken away", outcome);
    }

    /// Something that the programs of a cgroup cannot stop: recorded, so that the documentation stays true.
    pub fn out_of_reach(&mut self, attack: &str, closed_by: &str, trial: impl FnOnce() -> Outcome) {
        let outcome = tried(trial);
        let left = self.packets().len();
        let result = outcome.map(|what| format!("gets through ({what}, {left} packets)"));
        self.note(attack, closed_by, result);
    }

    /// Fails the test if a row failed.
    #[track_caller]
    pub fn finish(mut self) {
        let late = self.packets();
        assert!(late.is_empty(), "packets left later: {late:?}");
        assert!(
            self.failed.is_empty(),
            "{} of {} rows failed:\n{}",
            self.failed.len(),
            self.rows,
            self.failed.join("\n")
        );
    }

    fn packets(&mut self) -> Vec<String> {
        // What a call sent is on the cable when it returns; a kernel thread may take a moment longer.
        std::thread::sleep(std::time::Duration::from_millis(30));
        let frames = self.capture.frames();
        outgoing(&frames).iter().map(ToString::to_string).collect()
    }

    fn note(&mut self, attack: &str, stopped_by: &str, outcome: Outcome) {
        self.rows += 1;
        let (passed, result) = match outcome {
            Ok(result) => (true, result),
            Err(result) => (false, result),
        };
        let mark = if passed { "ok    " } else { "FAILED" };
        println!("{mark} {attack:<60} {stopped_by:<40} {result}");
        if !passed {
            self.failed.push(format!("{attack}: {result}"));
        }
        let Some(path) = std::env::var_os(COLLECTED) else {
            return;
        };
        // Read by xtask/src/test/bypass.rs.
        let fields = [
            self.chapter,
            &self.rows.to_string(),
            attack,
            stopped_by,
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
}

/// A row that panics has failed; the others are still tried.
fn tried(trial: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(trial)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("it panicked").replace('\n', " "))
    })
}

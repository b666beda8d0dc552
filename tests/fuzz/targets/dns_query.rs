//! What agents send to port 53: arbitrary bytes never panic, and what is taken for a question is one.

#![no_main]

use decoders::dns_query::{Malformed, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| match parse(input) {
    Ok(question) => {
        assert!(question.longest_label() <= 63);
        assert!((512..=1232).contains(&question.udp_limit()));
        assert!(!question.text().is_empty());
        let _ = format!("{question:?}");
    }
    Err(Malformed::Unanswerable(reason)) => assert!(!reason.is_empty()),
    Err(Malformed::Refusable { reason, .. }) => assert!(!reason.is_empty()),
});

//! What clients and servers say to prove a password: arbitrary bytes never panic, and prove nothing.

#![no_main]

use std::sync::LazyLock;

use decoders::protocol::postgres::scram::client::{Binding, Greeting};
use decoders::protocol::postgres::scram::{Demand, Verifier};
use libfuzzer_sys::fuzz_target;

/// Deriving the keys takes 4096 rounds, once.
static VERIFIER: LazyLock<Verifier> =
    LazyLock::new(|| Verifier::of("a password nobody guesses").expect("a password"));

fuzz_target!(|input: &[u8]| {
    let Some((&[bound, length], rest)) = input.split_first_chunk() else {
        return;
    };
    let (first, last) = rest.split_at(usize::from(length).min(rest.len()));
    let demand = Demand {
        verifier: &VERIFIER,
        end_point: (bound & 1 == 1).then_some([bound; 32]),
    };
    match demand.challenge(first, "ours") {
        Ok(challenge) => {
            assert!(challenge.message().starts_with(b"r="));
            assert!(challenge.verify(last).is_err());
        }
        Err(error) => drop(error.to_string()),
    }
    // The same bytes from a server: raw, and behind a nonce that fits.
    for prefix in ["", "r=ours"] {
        let greeting = Greeting::new(Binding::NotOffered, "ours".to_owned());
        let said = [prefix.as_bytes(), first].concat();
        if let Err(error) = greeting.challenged(&said) {
            drop(error.to_string());
        }
    }
});

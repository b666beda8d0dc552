//! What a client says: arbitrary bytes never panic, and how they are cut into reads changes nothing.

#![no_main]

use decoders::protocol::postgres::Sender;
use decoders::protocol::postgres::frontend::Frontend;
use decoders::{messages, messages_in_pieces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let whole = messages(input, Sender::Frontend);
    let mut taken = 0;
    for message in &whole.0 {
        assert_eq!(
            message.bytes(),
            &input[taken..taken + message.bytes().len()]
        );
        taken += message.bytes().len();
        match Frontend::parse(message) {
            Ok(Frontend::Bind(bind)) => {
                let parameters = bind.parameters;
                assert!(message.body().get(parameters.start..).is_some());
                assert_eq!(parameters.iter().count(), parameters.values.len());
            }
            Ok(parsed) => drop(format!("{parsed:?}")),
            Err(error) => drop(error.to_string()),
        }
    }
    assert_eq!(messages_in_pieces(input, Sender::Frontend), whole);
});

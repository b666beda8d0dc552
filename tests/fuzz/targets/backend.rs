//! What a server says: every parser takes every message without a panic, whatever its type.

#![no_main]

use decoders::protocol::postgres::Sender;
use decoders::protocol::postgres::backend::{
    RowDescription, authentication, backend_key, command_tag, data_row, error_fields,
    parameter_status, sqlstate, transaction_status,
};
use decoders::{messages, messages_in_pieces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let whole = messages(input, Sender::Backend);
    for message in &whole.0 {
        let _ = RowDescription::parse(message).map(|parsed| format!("{parsed:?}"));
        if let Ok(values) = data_row(message) {
            let announced = values.remaining();
            // Counted, not collected: an announced count alone must not allocate.
            assert!(values.filter(Result::is_ok).count() <= announced);
        }
        let _ = error_fields(message).map(|fields| sqlstate(&fields));
        let _ = command_tag(message);
        let _ = transaction_status(message);
        let _ = parameter_status(message);
        let _ = backend_key(message);
        let _ = authentication(message).map(|parsed| format!("{parsed:?}"));
    }
    assert_eq!(messages_in_pieces(input, Sender::Backend), whole);
});

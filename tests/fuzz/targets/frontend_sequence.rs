//! Whole sequences of a client's messages: each is read as what it was composed of, wherever the reads end,
//! and with one bit spoiled the rest is still followed or refused, never a panic.

#![no_main]

use decoders::compose::{Asked, Composed, Formatted, cuts, requests};
use decoders::protocol::postgres::Sender;
use decoders::protocol::postgres::frontend::{Frontend, Object, Parameters};
use decoders::{messages, messages_cut_at, messages_in_pieces, spoiled};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // An input that is too short for what it began composes nothing.
    let _ = follow(&mut Unstructured::new(input));
});

fn follow(input: &mut Unstructured<'_>) -> Result<()> {
    let (at, bit): (u16, u8) = input.arbitrary()?;
    let sent = requests(input)?;
    let bytes: Vec<u8> = sent.iter().flat_map(Composed::bytes).collect();
    let (read, error) = messages(&bytes, Sender::Frontend);
    assert_eq!(error, None);
    assert_eq!(read.len(), sent.len());
    for (message, composed) in read.iter().zip(&sent) {
        assert_eq!(message.bytes()[..], composed.bytes()[..]);
        let parsed = Frontend::parse(message).expect("it is well formed");
        assert_eq!(meaning(&parsed), composed.meaning, "{parsed:?}");
    }
    let mut ends = Unstructured::new(&bytes);
    let ends = cuts(&mut ends, bytes.len())?;
    assert_eq!(messages_cut_at(&bytes, &ends, Sender::Frontend).0, read);

    let spoiled = spoiled(&bytes, usize::from(at) % bytes.len().max(1), bit);
    let whole = messages(&spoiled, Sender::Frontend);
    for message in &whole.0 {
        let _ = Frontend::parse(message).map(|parsed| format!("{parsed:?}"));
    }
    assert_eq!(messages_in_pieces(&spoiled, Sender::Frontend), whole);
    Ok(())
}

/// The same in the composer's words.
fn meaning(parsed: &Frontend<'_>) -> Asked {
    let object = |object: &Object<'_>| {
        let (statement, name) = match *object {
            Object::Statement(name) => (true, name.to_vec()),
            Object::Portal(name) => (false, name.to_vec()),
        };
        Asked::Object { statement, name }
    };
    match parsed {
        Frontend::Query { text } => Asked::Text(text.to_vec()),
        Frontend::Parse { name, text, types } => Asked::Named {
            name: name.to_vec(),
            text: text.to_vec(),
            types: types.clone(),
        },
        Frontend::Bind(bind) => Asked::Bound {
            portal: bind.portal.to_vec(),
            statement: bind.statement.to_vec(),
            values: formatted(&bind.parameters),
        },
        Frontend::Describe(it) | Frontend::Close(it) => object(it),
        Frontend::Execute { portal, max_rows } => Asked::Executed {
            portal: portal.to_vec(),
            rows: *max_rows,
        },
        Frontend::FunctionCall(call) => Asked::Called {
            function: call.function,
            arguments: formatted(&call.arguments),
        },
        Frontend::Flush
        | Frontend::Sync
        | Frontend::CopyData
        | Frontend::CopyDone
        | Frontend::CopyFail
        | Frontend::Terminate
        | Frontend::Password => Asked::Bare,
    }
}

fn formatted(parameters: &Parameters<'_>) -> Formatted {
    let values = parameters.iter();
    values
        .map(|(format, value)| (format, value.map(<[u8]>::to_vec)))
        .collect()
}

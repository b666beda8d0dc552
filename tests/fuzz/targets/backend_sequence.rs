//! Whole sequences of a server's messages: each is read as what it was composed of and written again as it
//! was, wherever the reads end, and with one bit spoiled there is no panic.

#![no_main]

use bytes::BytesMut;
use decoders::compose::{Answered, Composed, answers, cuts};
use decoders::protocol::postgres::backend::{
    RowDescription, backend_key, command_tag, data_row, error_fields, parameter_status,
    transaction_status,
};
use decoders::protocol::postgres::{Message, ProtocolError, Sender, encode};
use decoders::{messages, messages_cut_at, messages_in_pieces, spoiled};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // An input that is too short for what it began composes nothing.
    let _ = follow(&mut Unstructured::new(input));
});

fn follow(input: &mut Unstructured<'_>) -> Result<()> {
    let (at, bit): (u16, u8) = input.arbitrary()?;
    let sent = answers(input)?;
    let bytes: Vec<u8> = sent.iter().flat_map(Composed::bytes).collect();
    let (read, error) = messages(&bytes, Sender::Backend);
    assert_eq!(error, None);
    assert_eq!(read.len(), sent.len());
    for (message, composed) in read.iter().zip(&sent) {
        let read = meaning(message).expect("it is well formed");
        assert_eq!(read, composed.meaning, "{message:?}");
        if let Some(written) = written_again(message.tag(), &read) {
            assert_eq!(written[..], message.bytes()[..]);
        }
    }
    let mut ends = Unstructured::new(&bytes);
    let ends = cuts(&mut ends, bytes.len())?;
    assert_eq!(messages_cut_at(&bytes, &ends, Sender::Backend).0, read);

    let spoiled = spoiled(&bytes, usize::from(at) % bytes.len().max(1), bit);
    let whole = messages(&spoiled, Sender::Backend);
    for message in &whole.0 {
        // What still parses is written again as it is: a mask may rewrite any row, any error.
        if let Ok(read) = meaning(message)
            && let Some(written) = written_again(message.tag(), &read)
        {
            assert_eq!(written[..], message.bytes()[..]);
        }
    }
    assert_eq!(messages_in_pieces(&spoiled, Sender::Backend), whole);
    Ok(())
}

/// The message in the composer's words.
fn meaning(message: &Message) -> std::result::Result<Answered, ProtocolError> {
    Ok(match message.tag() {
        b'T' => {
            let fields = RowDescription::parse(message)?.fields.into_iter();
            let column =
                fields.map(|it| (it.name, it.table_oid, it.attribute, it.type_oid, it.format));
            Answered::Columns(column.collect())
        }
        b'D' => {
            let values: Vec<Option<&[u8]>> =
                data_row(message)?.collect::<std::result::Result<_, _>>()?;
            Answered::Row(
                values
                    .into_iter()
                    .map(|it| it.map(<[u8]>::to_vec))
                    .collect(),
            )
        }
        b'E' | b'N' => {
            let fields = error_fields(message)?.into_iter();
            Answered::Fields(fields.map(|(code, text)| (code, text.to_vec())).collect())
        }
        b'C' => Answered::Tag(command_tag(message)?.to_vec()),
        b'Z' => Answered::Ready(transaction_status(message)?),
        b'S' => {
            let (name, value) = parameter_status(message)?;
            Answered::Parameter(name.to_vec(), value.to_vec())
        }
        b'K' => {
            let (pid, key) = backend_key(message)?;
            Answered::Key(pid, key.to_vec())
        }
        _ => Answered::Bare,
    })
}

/// The gateway's own encoding of those messages that masks rewrite.
fn written_again(tag: u8, meaning: &Answered) -> Option<BytesMut> {
    let mut out = BytesMut::new();
    match meaning {
        Answered::Row(values) => encode::data_row(&mut out, values.iter().map(Option::as_deref)),
        Answered::Fields(fields) => {
            let fields: Vec<(u8, &[u8])> =
                fields.iter().map(|(code, it)| (*code, &it[..])).collect();
            encode::notice(&mut out, tag, &fields);
        }
        Answered::Key(pid, key) => encode::backend_key(&mut out, *pid, key),
        _ => return None,
    }
    Some(out)
}

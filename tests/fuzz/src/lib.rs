//! The gateway's pure decoders, compiled from its own source files.

#[path = "../../../gateway/src/audit/mod.rs"]
pub mod audit;
#[path = "../../../gateway/src/intercept/dns/query.rs"]
pub mod dns_query;
#[path = "../../../gateway/src/protocol/mod.rs"]
pub mod protocol;
#[path = "../../../gateway/src/recording/mod.rs"]
pub mod recording;

use bytes::BytesMut;
use protocol::postgres::{Message, ProtocolError, Sender, decode};

/// No input of a fuzzer comes near it.
const LIMIT: usize = 1 << 30;

/// Every message in `input`, and the error that ended it.
pub fn messages(input: &[u8], sender: Sender) -> (Vec<Message>, Option<ProtocolError>) {
    let mut buffer = BytesMut::from(input);
    let mut messages = Vec::new();
    loop {
        match decode(&mut buffer, sender, LIMIT) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(error)),
        }
    }
}

/// The same when the bytes arrive one at a time.
pub fn messages_in_pieces(input: &[u8], sender: Sender) -> (Vec<Message>, Option<ProtocolError>) {
    let mut buffer = BytesMut::new();
    let mut messages = Vec::new();
    for &byte in input {
        buffer.extend_from_slice(&[byte]);
        match decode(&mut buffer, sender, LIMIT) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => {}
            Err(error) => return (messages, Some(error)),
        }
    }
    (messages, None)
}

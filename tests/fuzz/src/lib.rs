//! The gateway's pure decoders, compiled from its own source files.

#[path = "../../../gateway/src/audit/mod.rs"]
pub mod audit;
#[path = "../../../gateway/src/intercept/dns/query.rs"]
pub mod dns_query;
#[path = "../../../gateway/src/protocol/mod.rs"]
pub mod protocol;
#[path = "../../../gateway/src/recording/mod.rs"]
pub mod recording;

pub mod compose;

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

/// The same when they arrive in reads that end at `cuts`, which are in order.
pub fn messages_cut_at(
    input: &[u8],
    cuts: &[usize],
    sender: Sender,
) -> (Vec<Message>, Option<ProtocolError>) {
    let mut buffer = BytesMut::new();
    let mut messages = Vec::new();
    for ends in cuts.windows(2) {
        buffer.extend_from_slice(&input[ends[0]..ends[1]]);
        loop {
            match decode(&mut buffer, sender, LIMIT) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

/// `bytes` with one bit of one byte the other way round.
pub fn spoiled(bytes: &[u8], at: usize, bit: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << (bit % 8);
    }
    bytes
}

//! The first packets of a connection, before anybody is known: arbitrary bytes never panic.

#![no_main]

use bytes::BytesMut;
use decoders::protocol::postgres::startup::{FirstPacket, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut buffer = BytesMut::from(input);
    while let Ok(Some(packet)) = decode(&mut buffer) {
        if let FirstPacket::Startup(startup) = &packet {
            let _ = startup.parameter("user");
            let _ = startup.parameter("database");
        }
        let _ = format!("{packet:?}");
    }
});

//! What an agent says a value is: any bytes of any type become text of at most the length asked for, without a
//! panic, and the pieces of a value are looked at in no more time than its bytes are worth.

#![no_main]

use decoders::protocol::postgres::values::{Format, any_scalar, decode, name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((head, value)) = input.split_first_chunk::<4>() else {
        return;
    };
    // The low bits choose a type PostgreSQL may have, the highest the format.
    let oid = u32::from_be_bytes([0, 0, head[0] & 0x1f, head[1]]);
    let format = match head[2] & 1 {
        0 => Format::Text,
        _ => Format::Binary,
    };
    let limit = usize::from(head[3]);
    let some = decode(oid, format, value, limit);
    assert!(some.text.len() <= limit, "{some:?}");
    let all = decode(oid, format, value, 1 << 20);
    assert!(
        all.hex || some.hex || all.text.starts_with(&*some.text),
        "{some:?} {all:?}"
    );
    let mut looked = 0;
    any_scalar(oid, format, value, &mut |text| {
        looked += text.len();
        false
    });
    // A piece of 4 bytes is 5 digits; see `any_scalar` for the most that is made of one.
    assert!(looked <= value.len() * 32 + 128, "{looked}");
    let _ = name(oid);
});

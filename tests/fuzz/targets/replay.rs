//! A recorded conversation is shown in somebody's terminal: whatever the agent or the target said, it is
//! text without control characters when it gets there, and it gets there without a panic.

#![no_main]

use decoders::recording::frame::{Frame, Kind};
use decoders::recording::postgres_text::render;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else {
        return;
    };
    // The low bits choose the frames' length, the high bit whether the two sides take turns.
    let turns = cut & 0x80 != 0;
    let frames = bytes.chunks(usize::from(cut & 0x7f) + 1).enumerate();
    let text = render(frames.map(|(number, payload)| Frame {
        kind: if turns && number % 2 == 1 {
            Kind::AgentToTarget
        } else {
            Kind::TargetToAgent
        },
        unix_ns: number as u64,
        payload,
    }));
    assert!(
        !text.contains(|c: char| c.is_control() && c != '\n'),
        "{text:?}"
    );
});

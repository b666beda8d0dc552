//! Recordings are read back from a disk that may be damaged, and while they are still being written.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use decoders::recording::frame::{Kind, Parser, Part, head, header, read_all, unix_ns};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    damaged(input);
    well_formed(input);
});

/// Arbitrary bytes: no panic, and both readers agree.
fn damaged(input: &[u8]) {
    let whole = read_all(input);
    let (mut parser, mut rest, mut frames) = (Parser::default(), input, 0);
    while let Ok(Some((part, used))) = parser.part(rest) {
        assert!(used > 0 && used <= rest.len());
        rest = &rest[used..];
        frames += u64::from(matches!(part, Part::Frame(_)));
    }
    assert_eq!(parser.frames(), frames);
    assert_eq!(whole.frames.len() as u64, frames);
    let _ = format!("{:?}", whole.ending);
}

/// The checksums keep the fuzzer out: so the input also becomes the payloads of a valid recording, cut off
/// in the middle, of which every whole frame must come back.
fn well_formed(input: &[u8]) {
    let Some((&cut, payload)) = input.split_first() else {
        return;
    };
    let time = unix_ns(UNIX_EPOCH + Duration::from_secs(1));
    let Ok(mut file) = header(&serde_json::json!({"session": "fuzz"})) else {
        return;
    };
    let mut ends = Vec::new();
    for payload in payload.chunks(usize::from(cut) + 1) {
        let frame = head(Kind::TargetToAgent, time, payload).expect("a short payload");
        file.extend_from_slice(&frame);
        file.extend_from_slice(payload);
        ends.push(file.len());
    }
    let kept = file.len() - usize::from(cut).min(file.len());
    let contents = read_all(&file[..kept]);
    let whole = ends.iter().filter(|&&end| end <= kept).count();
    assert_eq!(contents.frames.len(), whole);
}

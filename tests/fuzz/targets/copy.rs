//! COPY data: arbitrary bytes never panic, how they are cut changes nothing, and what is left alone is the same.

#![no_main]

use bytes::BytesMut;
use decoders::protocol::postgres::copy::{Blanker, CopyError, Format, Rewriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [format, width, data @ ..] = input else {
        return;
    };
    let (format, width) = (format_of(*format), usize::from(*width % 8));
    let whole = rewritten(&format, width, data.len().max(1), data, false);
    assert_eq!(rewritten(&format, width, 1, data, false), whole);
    if let Ok(same) = &whole {
        assert_eq!(same, data);
    }
    let masked = rewritten(&format, width, data.len().max(1), data, true);
    assert_eq!(rewritten(&format, width, 3, data, true), masked);
    assert_eq!(masked.is_ok(), whole.is_ok());

    let mut blanker = Blanker::new(Some(format));
    for piece in data.chunks(1 + width) {
        let mut shown = piece.to_vec();
        blanker.blank(&mut shown, |value| value.len() > 3);
        assert_eq!(shown.len(), piece.len());
    }
});

fn format_of(choice: u8) -> Format {
    let csv = |delimiter, quote, escape, null: &[u8], header| Format::Csv {
        delimiter,
        null: null.to_vec(),
        quote,
        escape,
        header,
    };
    match choice % 4 {
        0 => Format::Text {
            delimiter: b'\t',
            null: b"\\N".to_vec(),
            header: false,
        },
        1 => csv(b',', b'"', b'"', b"", false),
        2 => csv(b';', b'\'', b'\\', b"NULL", true),
        _ => Format::Binary,
    }
}

fn rewritten(
    format: &Format,
    width: usize,
    cut: usize,
    data: &[u8],
    masks: bool,
) -> Result<Vec<u8>, CopyError> {
    let columns = if masks { vec![0] } else { Vec::new() };
    let mut rewriter = Rewriter::new(format.clone(), width, columns);
    let mut out = BytesMut::new();
    for piece in data.chunks(cut) {
        rewriter.feed(piece, &mut out, &mut |_, _| {
            Some(Some(b"[redacted]".to_vec()))
        })?;
    }
    rewriter.finish()?;
    Ok(out.to_vec())
}

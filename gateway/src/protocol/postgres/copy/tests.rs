use proptest::prelude::*;

use super::*;

type Row = Vec<Option<Vec<u8>>>;

fn text() -> Format {
    Format::Text {
        delimiter: b'\t',
        null: b"\\N".to_vec(),
        header: false,
    }
}

fn csv(delimiter: u8, quote: u8, escape: u8, null: &[u8]) -> Format {
    Format::Csv {
        delimiter,
        null: null.to_vec(),
        quote,
        escape,
        header: false,
    }
}

/// Data as the server would send it.
fn written(format: &Format, rows: &[Row]) -> Vec<u8> {
    let mut out = BytesMut::new();
    match format {
        Format::Binary => {
            out.extend_from_slice(binary::SIGNATURE);
            out.extend_from_slice(&[0; 8]);
            for row in rows {
                out.extend_from_slice(&(row.len() as i16).to_be_bytes());
                for value in row {
                    match value {
                        None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
                        Some(value) => {
                            out.extend_from_slice(&(value.len() as i32).to_be_bytes());
                            out.extend_from_slice(value);
                        }
                    }
                }
            }
            out.extend_from_slice(&(-1_i16).to_be_bytes());
        }
        Format::Text { delimiter, .. } | Format::Csv { delimiter, .. } => {
            for row in rows {
                for (index, value) in row.iter().enumerate() {
                    if index > 0 {
                        out.extend_from_slice(&[*delimiter]);
                    }
                    field::encode(format, value.as_deref(), row.len() == 1, &mut out);
                }
                out.extend_from_slice(b"\n");
            }
        }
    }
    out.to_vec()
}

/// Column 1 becomes what `edit` says.
fn rewritten(
    format: &Format,
    width: usize,
    pieces: &[&[u8]],
    edit: impl Fn(&[u8]) -> Option<Option<Vec<u8>>>,
) -> Result<(Vec<u8>, u64), CopyError> {
    let mut rewriter = Rewriter::new(format.clone(), width, vec![1]);
    let mut out = BytesMut::new();
    for piece in pieces {
        rewriter.feed(piece, &mut out, &mut |column, value| {
            assert_eq!(column, 1);
            edit(value)
        })?;
    }
    rewriter.finish()?;
    Ok((out.to_vec(), rewriter.rows()))
}

fn formats() -> impl Strategy<Value = Format> {
    prop_oneof![
        Just(text()),
        Just(Format::Text {
            delimiter: b'|',
            null: b"".to_vec(),
            header: false
        }),
        Just(csv(b',', b'"', b'"', b"")),
        Just(csv(b';', b'\'', b'\\', b"NULL")),
        Just(Format::Binary),
    ]
}

/// Bytes that mean something in one format or another, and some that do not.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(b'\t'),
        Just(b'\n'),
        Just(b'\r'),
        Just(b'\\'),
        Just(b','),
        Just(b';'),
        Just(b'"'),
        Just(b'\''),
        Just(b'|'),
        Just(b'.'),
        Just(b'N'),
        Just(b'x'),
        Just(b'1'),
        any::<u8>()
    ];
    proptest::collection::vec(byte, 0..12)
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = proptest::collection::vec(proptest::option::of(value()), 2..4);
    proptest::collection::vec(row, 0..5).prop_map(|mut rows| {
        let width = rows.first().map_or(2, Vec::len);
        for row in &mut rows {
            row.resize(width, None);
        }
        rows
    })
}

fn pieces<'d>(data: &'d [u8], cuts: &[prop::sample::Index]) -> Vec<&'d [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(data.len() + 1)).collect();
    ends.push(data.len());
    ends.sort_unstable();
    let mut start = 0;
    ends.into_iter()
        .map(|end| &data[std::mem::replace(&mut start, end)..end])
        .collect()
}

proptest! {
    #[test]
    fn what_is_left_alone_is_unchanged(format in formats(), rows in rows(), cuts in any::<[prop::sample::Index; 4]>()) {
        let data = written(&format, &rows);
        let width = rows.first().map_or(2, Vec::len);
        let (same, count) = rewritten(&format, width, &pieces(&data, &cuts), |_| None).expect("whole");
        prop_assert_eq!(same, data);
        prop_assert_eq!(count, rows.len() as u64);
    }

    #[test]
    fn an_edited_value_is_written_as_the_server_would(
        format in formats(), rows in rows(), new in proptest::option::of(value()), cuts in any::<[prop::sample::Index; 4]>()
    ) {
        let data = written(&format, &rows);
        let width = rows.first().map_or(2, Vec::len);
        let (out, _) = rewritten(&format, width, &pieces(&data, &cuts), |_| Some(new.clone())).expect("whole");
        let null = match &format {
            Format::Text { null, .. } => null.clone(),
            _ => Vec::new(),
        };
        let expected: Vec<Row> = rows.into_iter().map(|mut row| {
            // In text format an unescaped value that is spelled like NULL is one.
            let is_null = |value: &Option<Vec<u8>>| match (&format, value) {
                (_, None) => true,
                (Format::Text { .. }, Some(value)) => {
                    let mut raw = BytesMut::new();
                    field::encode(&format, Some(value), false, &mut raw);
                    raw == null
                }
                _ => false,
            };
            if !is_null(&row[1]) {
                row[1] = new.clone();
            }
            row
        }).collect();
        prop_assert_eq!(out, written(&format, &expected));
    }

    #[test]
    fn any_bytes_never_panic_and_cuts_change_nothing(
        format in formats(), width in 0_usize..4, data in proptest::collection::vec(any::<u8>(), 0..200), cuts in any::<[prop::sample::Index; 4]>()
    ) {
        let whole = rewritten(&format, width, &[&data], |value| Some(Some(value.to_vec())));
        let cut = rewritten(&format, width, &pieces(&data, &cuts), |value| Some(Some(value.to_vec())));
        prop_assert_eq!(whole.is_ok(), cut.is_ok());
        if let (Ok(whole), Ok(cut)) = (whole, cut) {
            prop_assert_eq!(whole, cut);
        }
        let mut blanker = Blanker::new(Some(format));
        for piece in pieces(&data, &cuts) {
            let mut shown = piece.to_vec();
            blanker.blank(&mut shown, |value| value.len() > 3);
            prop_assert_eq!(shown.len(), piece.len());
        }
    }

    /// However it is cut, and in whatever format, no card number is left in evidence.
    #[test]
    fn no_cut_shows_a_secret(format in formats(), mut rows in rows(), cuts in any::<[prop::sample::Index; 4]>()) {
        for row in &mut rows {
            row[1] = Some(b"4111111111111111".to_vec());
        }
        let data = written(&format, &rows);
        let mut blanker = Blanker::new(Some(format));
        let mut shown = Vec::new();
        for piece in pieces(&data, &cuts) {
            let mut piece = piece.to_vec();
            blanker.blank(&mut piece, is_card);
            shown.extend_from_slice(&piece);
        }
        prop_assert!(!shown.windows(16).any(|window| window == b"4111111111111111"));
        prop_assert_eq!(shown.len(), data.len());
    }
}

fn is_card(value: &[u8]) -> bool {
    value
        .windows(16)
        .any(|window| window == b"4111111111111111")
}

fn shown(format: Option<Format>, pieces: &[&[u8]]) -> Vec<u8> {
    let mut blanker = Blanker::new(format);
    let mut shown = Vec::new();
    for piece in pieces {
        let mut piece = piece.to_vec();
        blanker.blank(&mut piece, is_card);
        shown.extend_from_slice(&piece);
    }
    shown
}

#[test]
fn only_the_card_is_blanked() {
    for (name, format, data, expected) in [
        (
            "text",
            Some(text()),
            &b"1\t4111111111111111\tx\n2\t17\ty\n"[..],
            &b"1\t****************\tx\n2\t17\ty\n"[..],
        ),
        (
            "written in octal",
            Some(text()),
            b"\\064111111111111111\n",
            b"*******************\n",
        ),
        (
            "csv",
            Some(csv(b',', b'"', b'"', b"")),
            b"1,\"a \"\"4111111111111111\"\"\"\n\"2\n3\",4\n",
            b"1,**************************\n\"2\n3\",4\n"
                .get(..)
                .expect("it"),
        ),
        ("no format", None, b"a 1,2", b"a *,*"),
    ] {
        let seen = shown(format, &[data]);
        if name == "csv" {
            assert!(
                !is_card(&seen) && seen.ends_with(b"\n\"2\n3\",4\n"),
                "{name}"
            );
            continue;
        }
        assert_eq!(
            String::from_utf8_lossy(&seen),
            String::from_utf8_lossy(expected),
            "{name}"
        );
    }
    let rows = vec![vec![
        Some(b"4111111111111111".to_vec()),
        Some(b"17".to_vec()),
    ]];
    let data = written(&Format::Binary, &rows);
    let seen = shown(Some(Format::Binary), &[&data]);
    let expected = vec![vec![Some(vec![b'*'; 16]), Some(b"17".to_vec())]];
    assert_eq!(seen, written(&Format::Binary, &expected));
}

#[test]
fn a_header_names_columns_and_is_no_row() {
    let format = Format::Csv {
        delimiter: b',',
        null: Vec::new(),
        quote: b'"',
        escape: b'"',
        header: true,
    };
    let edit = |_: &[u8]| Some(Some(b"x".to_vec()));
    let seen = rewritten(&format, 2, &[b"id,card\n1,\"2\"\n,\n"], edit);
    assert_eq!(seen, Ok((b"id,card\n1,x\n,\n".to_vec(), 2)));
}

#[test]
fn what_does_not_fit_is_not_delivered() {
    let keep = |_: &[u8]| None;
    let width = CopyError::Width {
        expected: 2,
        found: 1,
    };
    for (name, format, data, error) in [
        ("too few values", text(), &b"1\n"[..], width),
        ("half a row", text(), b"1\t2", CopyError::Unfinished),
        ("not binary", Format::Binary, b"1\t2\n", CopyError::Binary),
        (
            "behind the end",
            Format::Binary,
            b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\xff\xffx",
            CopyError::Binary,
        ),
        (
            "a value of 2 GiB",
            Format::Binary,
            b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02\x7f\xff\xff\xff",
            CopyError::LongRow,
        ),
    ] {
        assert_eq!(rewritten(&format, 2, &[data], keep), Err(error), "{name}");
    }
    let long = vec![b'x'; LONGEST_ROW + 1];
    let seen = rewritten(&text(), 2, &[&long], keep);
    assert_eq!(seen, Err(CopyError::LongRow));
}

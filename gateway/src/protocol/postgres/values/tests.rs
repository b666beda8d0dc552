//! Values as PostgreSQL 15 sends them, and bytes that nobody sends.

use bytes::{BufMut, BytesMut};
use postgres_protocol::types as encoded;
use proptest::prelude::*;

use super::*;

const ALL: usize = usize::MAX;

fn hex_bytes(text: &str) -> Vec<u8> {
    hex::decode(text.split_whitespace().collect::<String>()).expect("hexadecimal")
}

fn binary(oid: u32, bytes: &[u8]) -> Decoded<'_> {
    decode(oid, Format::Binary, bytes, ALL)
}

/// Binary forms as the server's send functions give them.
#[test]
fn binary_values_read_as_the_server_prints_them() {
    for (oid, bytes, text) in [
        (16, "01", "t"),
        (16, "00", "f"),
        (18, "41", "A"),
        (18, "00", ""),
        (21, "fffe", "-2"),
        (23, "0000002a", "42"),
        (20, "000e9b845f53c3c7", "4111642511262663"),
        (26, "ffffffff", "4294967295"),
        (700, "3fc00000", "1.5"),
        (700, "49742400", "1e+06"),
        (700, "47f12000", "123456"),
        (700, "3dcccccd", "0.1"),
        (701, "7ff8000000000000", "NaN"),
        (701, "fff0000000000000", "-Infinity"),
        (701, "430c6bf526340000", "1e+15"),
        (701, "42dc12218377de40", "123456789012345"),
        (701, "3f1a36e2eb1c432d", "0.0001"),
        (701, "3ee4f8b588e368f1", "1e-05"),
        (701, "8000000000000000", "-0"),
        (701, "7fefffffffffffff", "1.7976931348623157e+308"),
        (701, "0000000000000001", "5e-324"),
        (1700, "0000000000000000", "0"),
        (1700, "0000000000000002", "0.00"),
        (1700, "0003000100000004000109291a85", "12345.6789"),
        (1700, "000200004000000200011388", "-1.50"),
        (1700, "0002ffff00000006000108fc", "0.000123"),
        (1700, "00010002000000000007", "700000000"),
        (1700, "00000000c0000000", "NaN"),
        (1700, "00000000d0000020", "Infinity"),
        (1700, "00000000f0000020", "-Infinity"),
        (
            1700,
            "00090005000000090001000000000000000000000000000003e8",
            "100000000000000000000.000000001",
        ),
        (790, "0000000000000000", "$0.00"),
        (790, "000000000bc61706", "$1,975,313.98"),
        (790, "fffffffffffffffb", "-$0.05"),
        (25, "c3a4e282ac", "ä€"),
        (19, "61206e616d65", "a name"),
        (114, "7b2261223a205b315d7d", r#"{"a": [1]}"#),
        (3802, "017b2261223a205b312c20325d7d", r#"{"a": [1, 2]}"#),
        (4072, "01242e226122", r#"$."a""#),
        (17, "00ff10", r"\x00ff10"),
        (
            2950,
            "c2f0e1a4000040008000000000000001",
            "c2f0e1a4-0000-4000-8000-000000000001",
        ),
        (829, "08002b010203", "08:00:2b:01:02:03"),
        (774, "08002bfffe010203", "08:00:2b:ff:fe:01:02:03"),
        (869, "02200004c0000207", "192.0.2.7"),
        (869, "02180004c0000207", "192.0.2.7/24"),
        (650, "020801040a000000", "10.0.0.0/8"),
        (650, "022001040a000001", "10.0.0.1/32"),
        (
            869,
            "0380001020010db8000000000000000000000001",
            "2001:db8::1",
        ),
        (
            869,
            "0380001000000000000000000000ffffc0000201",
            "::ffff:192.0.2.1",
        ),
        (869, "0380001000000000000000000000000001020304", "::1.2.3.4"),
        (869, "0380001000000000000000000000000000000000", "::"),
        (1082, "00000000", "2000-01-01"),
        (1082, "00002279", "2024-02-29"),
        (1082, "ffffffff", "1999-12-31"),
        (1082, "fff49d7b", "0044-03-15 BC"),
        (1082, "fff4dbf9", "0001-01-01"),
        (1082, "7fffffff", "infinity"),
        (1082, "80000000", "-infinity"),
        (1082, "02222b64", "99999-12-31"),
        (1083, "0000000000000000", "00:00:00"),
        (1083, "000000141dd76000", "24:00:00"),
        (1083, "0000000b18796850", "13:14:15.25"),
        (1266, "0000000b187597c0ffffe890", "13:14:15+01:40"),
        (1266, "0000000b187597c000004650", "13:14:15-05"),
        (1266, "0000000000000000fffffff9", "00:00:00+00:00:07"),
        (1114, "8000000000000000", "-infinity"),
        (1114, "ffffffffffffffff", "1999-12-31 23:59:59.999999"),
        (1114, "ff1af9e74e1f8800", "0044-03-15 10:00:00 BC"),
        (1184, "0002b58220daafc0", "2024-02-29 11:14:15+00"),
        (1184, "ff1af9e74e1f8800", "0044-03-15 10:00:00+00 BC"),
        (1186, "00000000000000000000000000000000", "00:00:00"),
        (
            1186,
            "000000006b49d20000000001fffffff3",
            "-1 years -1 mons +1 day 00:30:00",
        ),
        (
            1186,
            "ffffffffffffffff0000000100000000",
            "1 day -00:00:00.000001",
        ),
        (
            1186,
            "00000053d1ac1000fffffffd0000000e",
            "1 year 2 mons -3 days +100:00:00",
        ),
        (1186, "0000000000000000fffffffe00000000", "-2 days"),
        (1560, "00000005a8", "10101"),
        (1562, "0000000180", "1"),
        (1562, "00000000", ""),
        (3220, "00000016b374d848", "16/B374D848"),
        (5069, "ffffffffffffffff", "18446744073709551615"),
        (1007, "000000000000000000000017", "{}"),
        (
            1007,
            "00000001000000010000001700000003000000010000000400000001ffffffff0000000400000003",
            "{1,NULL,3}",
        ),
        (
            1007,
            "000000020000000000000017000000020000000100000002000000000000000400000001000000040000000200000004000000030000000400000004",
            "[1:2][0:1]={{1,2},{3,4}}",
        ),
        (
            1007,
            "0000000300000000000000170000000200000001000000020000000100000001000000010000000400000001000000040000000200000004000000030000000400000004",
            "{{{1},{2}},{{3},{4}}}",
        ),
        (
            1009,
            "000000010000000000000019000000050000000100000000000000046e756c6c0000000361206200000003225c7d00000005706c61696e",
            r#"{"","null","a b","\"\\}",plain}"#,
        ),
        (
            1185,
            "0000000100000000000004a00000000100000001000000080002b583ce01f7c0",
            r#"{"2024-02-29 13:14:15+00"}"#,
        ),
        (
            3905,
            "000000010000000000000f4000000002000000010000001102000000040000000100000004000000050000000101",
            r#"{"[1,5)",empty}"#,
        ),
        (3904, "01", "empty"),
        (3904, "0200000004000000010000000400000005", "[1,5)"),
        (3904, "18", "(,)"),
        (
            3908,
            "12000000080000000000000000",
            r#"["2000-01-01 00:00:00",)"#,
        ),
        (
            3906,
            "040000000c0002000000000001000113880000000c000200000000000200021388",
            "(1.5,2.50]",
        ),
        (4451, "00000000", "{}"),
        (
            4451,
            "0000000200000011020000000400000001000000040000000200000009120000000400000007",
            "{[1,2),[7,)}",
        ),
    ] {
        let bytes = hex_bytes(bytes);
        let decoded = binary(oid, &bytes);
        assert!(!decoded.hex, "{oid} {text}: {decoded:?}");
        assert_eq!(decoded.text, text, "{oid}");
    }
}

#[test]
fn what_has_no_text_is_shown_in_hexadecimal() {
    for (name, oid, bytes) in [
        ("a type nobody named", 0, "0000002a"),
        ("a type of the database's own", 16_400, "0000002a"),
        ("an int4 of three bytes", 23, "00002a"),
        ("an int4 of five", 23, "000000002a"),
        ("text that is not UTF-8", 25, "ff"),
        ("a jsonb of version 2", 3802, "027b7d"),
        (
            "a numeric with a digit of 10000",
            1700,
            "00010000000000002710",
        ),
        ("an array of arrays", 1007, "0000000000000000000003ef"),
        (
            "an array of an unknown type",
            1007,
            "00000001000000000000 4010 00000001 00000001 00000001 61",
        ),
        (
            "an array shorter than it says",
            1007,
            "0000000100000000000000177fffffff00000001",
        ),
        ("a range with half a bound", 3904, "020000000400"),
        ("a time after midnight", 1083, "000000141dd76001"),
        ("an address of three bytes", 869, "02200003c00002"),
    ] {
        let bytes = hex_bytes(bytes);
        let decoded = binary(oid, &bytes);
        let expect = format!("\\x{}", hex::encode(&bytes));
        assert!(decoded.hex && decoded.text == expect, "{name}: {decoded:?}");
    }
}

#[test]
fn text_is_what_was_sent() {
    let decoded = decode(23, Format::Text, b" 42", ALL);
    assert_eq!((&*decoded.text, decoded.hex), (" 42", false));
    assert!(decode(25, Format::Text, b"\xe9", ALL).hex);
}

#[test]
fn no_more_is_made_than_asked_for() {
    let cut = |decoded: Decoded<'_>| (decoded.text.into_owned(), decoded.whole);
    let text = decode(25, Format::Text, "aä€".as_bytes(), 5);
    assert_eq!(cut(text), ("aä".to_owned(), false));
    assert_eq!(cut(decode(17, Format::Binary, &[7; 9], 5)).0, "\\x070");
    // Ten bytes that stand for 131069 digits.
    let long = hex_bytes("00017fff000000000001");
    let decoded = decode(1700, Format::Binary, &long, 64);
    assert!(decoded.text.len() <= 64 && !decoded.whole, "{decoded:?}");
    assert_eq!(binary(1700, &long).text.len(), 131_069);
    let mut array = hex_bytes("00000001 00000000 00000017 00010000 00000001");
    for _ in 0..65_536 {
        array.extend(hex_bytes("00000004 00000001"));
    }
    let decoded = decode(1007, Format::Binary, &array, 8);
    assert_eq!(cut(decoded), ("{1,1,1,1".to_owned(), false));
}

#[test]
fn every_scalar_is_looked_at() {
    let seen = |oid, bytes: &str| {
        let mut seen = Vec::new();
        any_scalar(oid, Format::Binary, &hex_bytes(bytes), &mut |text| {
            seen.push(text.to_owned());
            false
        });
        seen
    };
    assert_eq!(
        seen(
            1016,
            "00000001 00000001 00000014 00000003 00000001
             00000008 000e9b845f53c3c7 ffffffff 00000008 0000000000000001"
        ),
        ["4111642511262663", "1"]
    );
    assert_eq!(
        seen(3904, "02 00000004 00000001 00000004 00000005"),
        ["1", "5"]
    );
    assert_eq!(seen(4451, "00000001 00000009 12 00000004 00000007"), ["7"]);
    assert_eq!(seen(0, "00ff"), ["\\x00ff"]);
}

/// Digits, base 10000, as `numeric_send` gives them for a number of at most 36 digits.
fn numeric(negative: bool, whole: u64, fraction: Option<u64>) -> Vec<u8> {
    let digits = format!("{whole:020}{:016}", fraction.unwrap_or(0));
    let groups: Vec<u16> = (0..9)
        .map(|at| digits[at * 4..at * 4 + 4].parse().expect("digits"))
        .collect();
    let mut out = BytesMut::new();
    out.put_u16(9);
    out.put_i16(4);
    out.put_u16(if negative { 0x4000 } else { 0 });
    out.put_u16(if fraction.is_some() { 16 } else { 0 });
    groups.iter().for_each(|group| out.put_u16(*group));
    out.to_vec()
}

fn encode(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

proptest! {
    #[test]
    fn nothing_panics(oid in any_oid(), code in 0..2_i16, bytes: Vec<u8>, limit in 0..40_usize) {
        let format = Format::of(code).expect("a format");
        let decoded = decode(oid, format, &bytes, limit);
        prop_assert!(decoded.text.len() <= limit);
        any_scalar(oid, format, &bytes, &mut |_| false);
        let whole = decode(oid, format, &bytes, 1 << 20);
        prop_assert!(whole.text.starts_with(&*decoded.text) || decoded.hex != whole.hex);
    }

    #[test]
    fn numbers_come_back(a: i64, b: i32, c: i16, d: f64, e: f32, f: u32) {
        let check = |oid, bytes: Vec<u8>| binary(oid, &bytes).text.into_owned();
        prop_assert_eq!(check(20, encode(|out| encoded::int8_to_sql(a, out))), a.to_string());
        prop_assert_eq!(check(23, encode(|out| encoded::int4_to_sql(b, out))), b.to_string());
        prop_assert_eq!(check(21, encode(|out| encoded::int2_to_sql(c, out))), c.to_string());
        prop_assert_eq!(check(26, encode(|out| encoded::oid_to_sql(f, out))), f.to_string());
        let back: f64 = check(701, encode(|out| encoded::float8_to_sql(d, out))).parse().expect("a number");
        prop_assert!(back == d || d.is_nan());
        let back: f32 = check(700, encode(|out| encoded::float4_to_sql(e, out))).parse().expect("a number");
        prop_assert!(back == e || e.is_nan());
    }

    #[test]
    fn numerics_come_back(negative: bool, whole: u64, fraction in proptest::option::of(0..10_000_000_000_000_000_u64)) {
        let text = match fraction {
            Some(fraction) => format!("{whole}.{fraction:016}"),
            None => whole.to_string(),
        };
        let is_zero = whole == 0 && fraction.unwrap_or(0) == 0;
        let text = if negative && !is_zero { format!("-{text}") } else { text };
        let bytes = numeric(negative, whole, fraction);
        prop_assert_eq!(&*binary(1700, &bytes).text, text);
    }

    #[test]
    fn days_are_counted_as_a_calendar_counts_them(day in -700_000..2_900_000_i32) {
        let text = binary(1082, &day.to_be_bytes()).text.into_owned();
        let next = binary(1082, &(day + 1).to_be_bytes()).text.into_owned();
        if let (Some(day), Some(next)) = (jiff_date(&text), jiff_date(&next)) {
            prop_assert_eq!(day.tomorrow().expect("there is one"), next);
        }
    }

    #[test]
    fn texts_and_arrays_come_back(texts: Vec<Option<String>>) {
        for text in texts.iter().flatten() {
            let bytes = encode(|out| encoded::text_to_sql(text, out));
            prop_assert_eq!(&*binary(25, &bytes).text, text);
        }
        let dimension = encoded::ArrayDimension {
            len: i32::try_from(texts.len()).expect("few"),
            lower_bound: 1,
        };
        let bytes = encode(|out| {
            let write = |text: &Option<String>, out: &mut BytesMut| {
                Ok(match text {
                    None => postgres_protocol::IsNull::Yes,
                    Some(text) => {
                        encoded::text_to_sql(text, out);
                        postgres_protocol::IsNull::No
                    }
                })
            };
            encoded::array_to_sql([dimension], 25, texts.iter(), write, out).expect("short");
        });
        let decoded = binary(1009, &bytes);
        prop_assert!(!decoded.hex && decoded.whole);
        let mut seen = Vec::new();
        any_scalar(1009, Format::Binary, &bytes, &mut |text| {
            seen.push(text.to_owned());
            false
        });
        let expect: Vec<String> = texts.into_iter().flatten().collect();
        prop_assert_eq!(seen, expect);
    }
}

fn jiff_date(text: &str) -> Option<jiff::civil::Date> {
    text.parse().ok()
}

/// Mostly known types: bytes of an unknown one are hexadecimal and nothing else.
fn any_oid() -> impl Strategy<Value = u32> {
    prop_oneof![0..6_200_u32, prop::sample::select(types::oids())]
}

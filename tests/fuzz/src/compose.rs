//! Well-formed messages out of a fuzzer's bytes, built without the gateway's own encoder: what is read back
//! from them is known beforehand.
//!
//! Raw bytes almost never pass a length check, let alone three in a row; from these the fuzzer reaches
//! whole conversations at once, and may then cut them anywhere and spoil a byte.

use libfuzzer_sys::arbitrary::{Result, Unstructured};

/// One message: its type, and what follows the length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed<Meaning> {
    pub tag: u8,
    pub body: Vec<u8>,
    pub meaning: Meaning,
}

impl<Meaning> Composed<Meaning> {
    /// As it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len() + 4).expect("short");
        let mut bytes = vec![self.tag];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Values with the codes of their formats.
pub type Formatted = Vec<(i16, Option<Vec<u8>>)>;

/// What a client's message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Text(Vec<u8>),
    Named {
        name: Vec<u8>,
        text: Vec<u8>,
        types: Vec<u32>,
    },
    Bound {
        portal: Vec<u8>,
        statement: Vec<u8>,
        values: Formatted,
    },
    Object {
        statement: bool,
        name: Vec<u8>,
    },
    Executed {
        portal: Vec<u8>,
        rows: i32,
    },
    Called {
        function: u32,
        arguments: Formatted,
    },
    Bare,
}

/// What a server's message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// Name, table, attribute, type, format.
    Columns(Vec<(Vec<u8>, u32, i16, u32, i16)>),
    Row(Vec<Option<Vec<u8>>>),
    Fields(Vec<(u8, Vec<u8>)>),
    Tag(Vec<u8>),
    Ready(u8),
    Parameter(Vec<u8>, Vec<u8>),
    Key(u32, Vec<u8>),
    Bare,
}

/// Sequences are as long as the input lasts, but no longer than this.
const MOST: usize = 40;

/// What a client may say, in whatever order.
pub fn requests(input: &mut Unstructured<'_>) -> Result<Vec<Composed<Asked>>> {
    sequence(input, request)
}

/// What a server may say.
pub fn answers(input: &mut Unstructured<'_>) -> Result<Vec<Composed<Answered>>> {
    sequence(input, answer)
}

/// Where a sequence of `length` bytes is cut into reads.
pub fn cuts(input: &mut Unstructured<'_>, length: usize) -> Result<Vec<usize>> {
    let mut cuts = vec![0, length];
    for _ in 0..input.int_in_range(0..=8u8)? {
        cuts.push(input.int_in_range(0..=length)?);
    }
    cuts.sort_unstable();
    Ok(cuts)
}

fn sequence<T>(
    input: &mut Unstructured<'_>,
    one: fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while !input.is_empty() && all.len() < MOST {
        all.push(one(input)?);
    }
    Ok(all)
}

fn request(input: &mut Unstructured<'_>) -> Result<Composed<Asked>> {
    let mut body = Vec::new();
    let (tag, meaning) = match input.int_in_range(0..=13u8)? {
        0 => (b'Q', Asked::Text(cstr(input, &mut body)?)),
        1 => {
            let name = cstr(input, &mut body)?;
            let text = cstr(input, &mut body)?;
            let mut types = Vec::new();
            for _ in 0..count(input, &mut body, 6)? {
                types.push(input.arbitrary::<u32>()?);
            }
            body.extend(types.iter().flat_map(|oid| oid.to_be_bytes()));
            (b'P', Asked::Named { name, text, types })
        }
        2 => (b'B', bound(input, &mut body)?),
        3 | 4 => {
            let tag = *input.choose(b"DC")?;
            let kind = *input.choose(b"SP")?;
            body.push(kind);
            let name = cstr(input, &mut body)?;
            let statement = kind == b'S';
            (tag, Asked::Object { statement, name })
        }
        5 => {
            let portal = cstr(input, &mut body)?;
            let rows: i32 = input.arbitrary()?;
            body.extend_from_slice(&rows.to_be_bytes());
            (b'E', Asked::Executed { portal, rows })
        }
        6 => (b'F', called(input, &mut body)?),
        7 | 8 => {
            let length = input.int_in_range(0..=200usize)?;
            put(input, &mut body, length)?;
            (*input.choose(b"dp")?, Asked::Bare)
        }
        9 => {
            cstr(input, &mut body)?;
            (b'f', Asked::Bare)
        }
        _ => (*input.choose(b"HScX")?, Asked::Bare),
    };
    Ok(Composed { tag, body, meaning })
}

fn bound(input: &mut Unstructured<'_>, body: &mut Vec<u8>) -> Result<Asked> {
    let portal = cstr(input, body)?;
    let statement = cstr(input, body)?;
    let values = formatted(input, body)?;
    let results = count(input, body, 4)?;
    put(input, body, results * 2)?;
    Ok(Asked::Bound {
        portal,
        statement,
        values,
    })
}

fn called(input: &mut Unstructured<'_>, body: &mut Vec<u8>) -> Result<Asked> {
    let function: u32 = input.arbitrary()?;
    body.extend_from_slice(&function.to_be_bytes());
    let arguments = formatted(input, body)?;
    body.extend_from_slice(&[0, input.int_in_range(0..=1)?]);
    Ok(Asked::Called {
        function,
        arguments,
    })
}

/// Formats, one for all values or one for each, and the values.
fn formatted(input: &mut Unstructured<'_>, body: &mut Vec<u8>) -> Result<Formatted> {
    let mut formats = Vec::new();
    for _ in 0..count(input, body, 4)? {
        formats.push(i16::from(input.arbitrary::<bool>()?));
    }
    body.extend(formats.iter().flat_map(|format| format.to_be_bytes()));
    let values = values(input, body)?.into_iter().enumerate();
    let format = |index: usize| match formats[..] {
        [] => 0,
        [all] => all,
        _ => formats.get(index).copied().unwrap_or(-1),
    };
    Ok(values
        .map(|(index, value)| (format(index), value))
        .collect())
}

fn answer(input: &mut Unstructured<'_>) -> Result<Composed<Answered>> {
    let mut body = Vec::new();
    let (tag, meaning) = match input.int_in_range(0..=9u8)? {
        0 => (b'T', columns(input, &mut body)?),
        1 | 2 => (b'D', Answered::Row(values(input, &mut body)?)),
        3 => {
            let mut fields = Vec::new();
            for _ in 0..input.int_in_range(0..=8u8)? {
                let code = input.int_in_range(1..=255u8)?;
                body.push(code);
                fields.push((code, cstr(input, &mut body)?));
            }
            body.push(0);
            (*input.choose(b"EN")?, Answered::Fields(fields))
        }
        4 => (b'C', Answered::Tag(cstr(input, &mut body)?)),
        5 => {
            let status = *input.choose(b"ITE")?;
            body.push(status);
            (b'Z', Answered::Ready(status))
        }
        6 => {
            let name = cstr(input, &mut body)?;
            let value = cstr(input, &mut body)?;
            (b'S', Answered::Parameter(name, value))
        }
        7 => {
            let pid: u32 = input.arbitrary()?;
            body.extend_from_slice(&pid.to_be_bytes());
            let key = input.int_in_range(4..=64usize)?;
            let key = put(input, &mut body, key)?;
            (b'K', Answered::Key(pid, key))
        }
        _ => (*input.choose(b"123nsIc")?, Answered::Bare),
    };
    Ok(Composed { tag, body, meaning })
}

fn columns(input: &mut Unstructured<'_>, body: &mut Vec<u8>) -> Result<Answered> {
    let mut columns = Vec::new();
    for _ in 0..count(input, body, 8)? {
        let name = cstr(input, body)?;
        let (table, attribute): (u32, i16) = input.arbitrary()?;
        let type_oid: u32 = input.arbitrary()?;
        let format = i16::from(input.arbitrary::<bool>()?);
        body.extend_from_slice(&table.to_be_bytes());
        body.extend_from_slice(&attribute.to_be_bytes());
        body.extend_from_slice(&type_oid.to_be_bytes());
        put(input, body, 6)?;
        body.extend_from_slice(&format.to_be_bytes());
        columns.push((name, table, attribute, type_oid, format));
    }
    Ok(Answered::Columns(columns))
}

fn values(input: &mut Unstructured<'_>, body: &mut Vec<u8>) -> Result<Vec<Option<Vec<u8>>>> {
    let mut values = Vec::new();
    for _ in 0..count(input, body, 6)? {
        if input.ratio(1u8, 4u8)? {
            body.extend_from_slice(&(-1i32).to_be_bytes());
            values.push(None);
            continue;
        }
        let length = input.int_in_range(0..=40u8)?;
        body.extend_from_slice(&u32::from(length).to_be_bytes());
        values.push(Some(put(input, body, usize::from(length))?));
    }
    Ok(values)
}

/// A count of things that follow, announced as the protocol does.
fn count(input: &mut Unstructured<'_>, body: &mut Vec<u8>, most: u8) -> Result<usize> {
    let count = input.int_in_range(0..=most)?;
    body.extend_from_slice(&u16::from(count).to_be_bytes());
    Ok(usize::from(count))
}

/// A string of anything but NUL, and its end.
fn cstr(input: &mut Unstructured<'_>, body: &mut Vec<u8>) -> Result<Vec<u8>> {
    let length = input.int_in_range(0..=70u8)?;
    let mut text = vec![0; usize::from(length)];
    input.fill_buffer(&mut text)?;
    for byte in &mut text {
        *byte = (*byte).max(1);
    }
    body.extend_from_slice(&text);
    body.push(0);
    Ok(text)
}

/// Bytes without an end of their own.
fn put(input: &mut Unstructured<'_>, body: &mut Vec<u8>, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    input.fill_buffer(&mut bytes)?;
    body.extend_from_slice(&bytes);
    Ok(bytes)
}

//! A checked cursor: reading past the end is an error, never a panic.

/// What is wrong with a message, in words for a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("message ends in the middle of {0}")]
    Truncated(&'static str),
    #[error("{0} is not terminated")]
    Unterminated(&'static str),
    #[error("{count} bytes follow the end of the message")]
    Trailing { count: usize },
    #[error("{what} has the impossible value {value}")]
    Value { what: &'static str, value: i64 },
}

/// Reads big-endian fields from a slice, front to back.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self
            .rest
            .split_at_checked(count)
            .ok_or(Malformed::Truncated(what))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (head, tail) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Malformed::Truncated(what))?;
        self.rest = tail;
        Ok(*head)
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub fn i16(&mut self, what: &'static str) -> Result<i16, Malformed> {
        self.array(what).map(i16::from_be_bytes)
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub fn i32(&mut self, what: &'static str) -> Result<i32, Malformed> {
        self.array(what).map(i32::from_be_bytes)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        self.array(what).map(i64::from_be_bytes)
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// A count of things that follow. PostgreSQL reads its `Int16` without a sign (`pq_getmsgint`): a
    /// statement may have 65535 parameters.
    pub fn count(&mut self, what: &'static str) -> Result<usize, Malformed> {
        self.u16(what).map(usize::from)
    }

    /// A length-prefixed value: `Int32` length, -1 for NULL.
    pub fn value(&mut self, what: &'static str) -> Result<Option<&'a [u8]>, Malformed> {
        match self.i32(what)? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| Malformed::Value {
                    what,
                    value: length.into(),
                })?;
                self.take(length, what).map(Some)
            }
        }
    }

    /// The bytes up to a NUL, which is consumed.
    pub fn cstr(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let length = self
            .rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(Malformed::Unterminated(what))?;
        let text = self.take(length, what)?;
        self.take(1, what)?;
        Ok(text)
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The message must end here.
    pub fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(Malformed::Trailing { count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_and_refuses_what_is_not_there() {
        let mut cursor = Cursor::new(b"\x01\x00\x02ab\0\xff\xff\xff\xff");
        assert_eq!(cursor.u8("a"), Ok(1));
        assert_eq!(cursor.count("b"), Ok(2));
        assert_eq!(cursor.cstr("c"), Ok(&b"ab"[..]));
        assert_eq!(cursor.value("d"), Ok(None));
        assert_eq!(cursor.u8("e"), Err(Malformed::Truncated("e")));
        assert_eq!(cursor.end(), Ok(()));
    }

    #[test]
    fn negative_lengths_and_trailing_bytes_are_errors() {
        let mut cursor = Cursor::new(b"\xff\xff\xff\xfe");
        assert!(matches!(
            cursor.value("v"),
            Err(Malformed::Value { value: -2, .. })
        ));
        assert_eq!(
            Cursor::new(b"ab").end(),
            Err(Malformed::Trailing { count: 2 })
        );
        assert_eq!(
            Cursor::new(b"ab").cstr("s"),
            Err(Malformed::Unterminated("s"))
        );
    }
}

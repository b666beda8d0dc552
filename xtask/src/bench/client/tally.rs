//! What came back, counted as it passes: bytes, rows, and clear values that a mask should have hidden.

use std::io::BufRead as _;

use anyhow::{Result, bail};

/// How the values of masked columns begin, and nothing else in the bench's table: a mask hides it.
pub const MARK: &[u8; 3] = b"QXQ";

/// Type and length of a message.
const HEAD: usize = 5;

#[derive(Debug, Default)]
pub struct Tally {
    pub bytes: u64,
    /// DataRow and CopyData.
    pub rows: u64,
    /// How often [`MARK`] was there.
    pub marks: u64,
    /// The last bytes of the read before, in which a mark may have begun.
    before: Vec<u8>,
    /// The head of the message that comes next, as far as it is there.
    head: Vec<u8>,
    /// What is left of the current message's body.
    body: usize,
    current: u8,
    /// The text of an ErrorResponse.
    error: Vec<u8>,
    ready: bool,
}

impl Tally {
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Counts the next bytes, however messages are cut.
    pub fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.look_for_marks(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.body > 0 {
                let part = self.body.min(rest.len());
                if self.current == b'E' {
                    self.error.extend(&rest[..part]);
                }
                self.body -= part;
                rest = &rest[part..];
            } else if self.head.is_empty() && rest.len() >= HEAD {
                let (head, behind) = rest.split_at(HEAD);
                self.begin(head);
                rest = behind;
            } else {
                self.head.push(rest[0]);
                rest = &rest[1..];
                if self.head.len() == HEAD {
                    let head = std::mem::take(&mut self.head);
                    self.begin(&head);
                }
            }
            self.check()?;
        }
        Ok(())
    }

    fn begin(&mut self, head: &[u8]) {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        self.current = head[0];
        self.body = (length as usize).saturating_sub(4);
        if matches!(self.current, b'D' | b'd') {
            self.rows += 1;
        }
    }

    fn check(&mut self) -> Result<()> {
        if self.body > 0 {
            return Ok(());
        }
        match self.current {
            b'E' => bail!(
                "the server says: {}",
                String::from_utf8_lossy(&self.error).replace('\0', " ")
            ),
            b'Z' => self.ready = true,
            _ => {}
        }
        Ok(())
    }

    fn look_for_marks(&mut self, bytes: &[u8]) {
        let mut seam = std::mem::take(&mut self.before);
        seam.extend(bytes.iter().take(MARK.len() - 1));
        self.marks += marks(&seam) + marks(bytes);
        let last = match bytes.len() < MARK.len() - 1 {
            true => &seam[..],
            false => bytes,
        };
        self.before = last[last.len().saturating_sub(MARK.len() - 1)..].to_vec();
    }
}

fn marks(bytes: &[u8]) -> u64 {
    let (mut rest, mut found) = (bytes, 0);
    loop {
        // memchr(3), as far as the standard library lends it out.
        match rest.skip_until(MARK[0]) {
            Ok(skipped) if skipped > 0 => {}
            _ => return found,
        }
        if rest.starts_with(&MARK[1..]) {
            found += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(bytes: &[u8], cut: usize) -> Tally {
        let mut tally = Tally::default();
        for part in bytes.chunks(cut) {
            tally.take(part).unwrap();
        }
        tally
    }

    #[test]
    fn counts_are_the_same_however_the_bytes_are_cut() {
        let row = b"D\0\0\0\x0e\0\x01\0\0\0\x04QXQ1";
        let mut bytes = row.repeat(3);
        bytes.extend(b"Z\0\0\0\x05I");
        for cut in 1..bytes.len() {
            let tally = counted(&bytes, cut);
            assert_eq!((tally.rows, tally.marks), (3, 3), "cut every {cut}");
            assert_eq!(tally.bytes, bytes.len() as u64);
            assert!(tally.is_ready());
        }
    }

    #[test]
    fn an_error_is_told() {
        let mut tally = Tally::default();
        let error = tally.take(b"E\0\0\0\x08oh!\0").unwrap_err();
        assert!(error.to_string().contains("oh!"));
    }
}

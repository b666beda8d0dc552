//! Reads the log line by line, also while a gateway appends to it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::file_in;

/// Gives the complete lines of the log. What stands behind the last newline is not a line yet.
#[derive(Debug)]
pub struct LogReader {
    file: File,
    buffer: Vec<u8>,
    /// Everything before is delivered.
    start: usize,
    /// Between `start` and here there is no newline.
    searched: usize,
}

impl LogReader {
    /// Opens the log in the directory `dir`.
    pub fn open(dir: &Path) -> io::Result<LogReader> {
        Ok(LogReader {
            file: File::open(file_in(dir))?,
            buffer: Vec::new(),
            start: 0,
            searched: 0,
        })
    }

    /// The next line without its newline, or `None` if there is none at present: ask again later.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(length) = unsearched.iter().position(|byte| *byte == b'\n') {
                let (start, end) = (self.start, self.searched + length);
                self.start = end + 1;
                self.searched = self.start;
                return Ok(self.buffer.get(start..end));
            }
            self.searched = self.buffer.len();
            if !self.read_more()? {
                return Ok(None);
            }
        }
    }

    /// The bytes behind the last newline, once [`LogReader::next_line`] has found no more lines.
    pub fn tail(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Whether there was more.
    fn read_more(&mut self) -> io::Result<bool> {
        const CHUNK: u64 = 256 << 10;
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        Ok((&self.file).take(CHUNK).read_to_end(&mut self.buffer)? > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(file_in(dir.path())).unwrap();
        let mut reader = LogReader::open(dir.path()).unwrap();
        let long = "x".repeat(1 << 20);
        let steps: &[(&str, &[&str], &str)] = &[
            ("", &[], ""),
            ("on", &[], "on"),
            ("e\ntwo\n\nth", &["one", "two", ""], "th"),
            ("ree\n", &["three"], ""),
            (&long, &[], &long),
            ("\n", &[&long], ""),
        ];
        for (written, lines, tail) in steps {
            file.write_all(written.as_bytes()).unwrap();
            for line in *lines {
                assert_eq!(reader.next_line().unwrap(), Some(line.as_bytes()));
            }
            assert_eq!(reader.next_line().unwrap(), None);
            assert_eq!(reader.tail(), tail.as_bytes());
        }
    }
}

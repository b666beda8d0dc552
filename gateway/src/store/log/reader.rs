//! Reads the log line by line, also while a gateway appends to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::file_in;

/// Gives the complete lines of the log. What stands behind the last newline is not a line yet.
#[derive(Debug)]
pub struct LogReader {
    file: File,
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    offset: u64,
    /// Everything before is delivered.
    start: usize,
    /// Between `start` and here there is no newline.
    searched: usize,
}

impl LogReader {
    /// Opens the log in the directory `dir`.
    pub fn open(dir: &Path) -> io::Result<LogReader> {
        Ok(LogReader::at(File::open(file_in(dir))?, 0))
    }

    /// Reads on from `offset`, where a line begins.
    pub(super) fn at(file: File, offset: u64) -> LogReader {
        LogReader {
            file,
            buffer: Vec::new(),
            offset,
            start: 0,
            searched: 0,
        }
    }

    /// The next line without its newline, or `None` if there is none at present: ask again later.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        if self.searched > self.start && self.searched == self.buffer.len() {
            // The beginning of a line was all there was. If its writer died, another text stands there now.
            self.buffer.truncate(self.start);
            self.searched = self.start;
        }
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
        const CHUNK: usize = 256 << 10;
        self.buffer.drain(..self.start);
        self.offset += self.start as u64;
        self.searched -= self.start;
        self.start = 0;
        let have = self.buffer.len();
        self.buffer.resize(have + CHUNK, 0);
        let (_, room) = self.buffer.split_at_mut(have);
        let read = loop {
            match self.file.read_at(room, self.offset + have as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let more = *read.as_ref().unwrap_or(&0);
        self.buffer.truncate(have + more);
        read.map(|more| more > 0)
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
            ("torn", &[], "torn"),
        ];
        for (written, lines, tail) in steps {
            file.write_all(written.as_bytes()).unwrap();
            for line in *lines {
                assert_eq!(reader.next_line().unwrap(), Some(line.as_bytes()));
            }
            assert_eq!(reader.next_line().unwrap(), None);
            assert_eq!(reader.tail(), tail.as_bytes());
        }
        let end = std::fs::metadata(file_in(dir.path())).unwrap().len();
        file.write_all_at(b"mended\n", end - 4).unwrap();
        assert_eq!(reader.next_line().unwrap(), Some(&b"mended"[..]));
    }
}

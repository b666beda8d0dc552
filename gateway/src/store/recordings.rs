//! The recordings on disk: one file per session, `<recordings>/<session>.slrec`, mode 0600.
//!
//! Every append is one write(2) that ends before the bytes go any further, so a gateway that dies has
//! recorded all it let through. After a failed write the writer refuses everything: a recording with a
//! hole would be worse than none.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::audit::chain::rfc3339;
use crate::audit::event::SessionId;
use crate::recording::frame::{
    self, Damage, Damaged, Direction, Ending, Kind, MAX_PAYLOAD, Parser, Part,
};

const EXTENSION: &str = "slrec";

/// Why a recording cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} was written only in part ({written} of {wanted} bytes): is the disk full?", path.display())]
    Short {
        path: PathBuf,
        written: usize,
        wanted: usize,
    },
    #[error("{} is not written any further: an earlier write failed", path.display())]
    Poisoned { path: PathBuf },
    #[error("{}: {why}", path.display())]
    Format { path: PathBuf, why: Damage },
}

/// What the log says about a finished recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// Of the whole file, in hex.
    pub sha256: String,
    /// Frames, the closing one not counted.
    pub frames: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// The file name of a session's recording, as `session.open` names it.
pub fn file_name(session: SessionId) -> String {
    format!("{session}.{EXTENSION}")
}

/// The sessions that have a recording in `dir`, oldest first.
pub fn list(dir: &Path) -> io::Result<Vec<SessionId>> {
    let mut sessions = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = PathBuf::from(entry?.file_name());
        let stem = name.file_stem().and_then(|stem| stem.to_str());
        if name
            .extension()
            .is_some_and(|extension| extension == EXTENSION)
        {
            sessions.extend(stem.and_then(|stem| stem.parse::<SessionId>().ok()));
        }
    }
    sessions.sort_unstable();
    Ok(sessions)
}

/// Digests a recording as it is on disk, also one without an end: what the log vouches for when the
/// gateway died before it could.
pub fn digest(dir: &Path, session: SessionId) -> Result<Digest, RecordingError> {
    let reader = RecordingReader::open(dir, session)?;
    Ok(reader.digest()?.0)
}

/// Writes one session's recording. Its digest is the TLS library's, a third faster on long pieces than `sha2`.
pub struct RecordingWriter {
    file: File,
    path: PathBuf,
    digest: Context,
    frames: u64,
    bytes: u64,
    poisoned: bool,
}

impl fmt::Debug for RecordingWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingWriter")
            .field("path", &self.path)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl RecordingWriter {
    /// Creates the session's file in `dir`, and `dir` itself (mode 0700) if it is not there. `meta` is an object that goes
    /// into the header beside the session and the time.
    pub fn create(
        dir: &Path,
        session: SessionId,
        meta: &Value,
        now: SystemTime,
    ) -> Result<RecordingWriter, RecordingError> {
        let path = dir.join(file_name(session));
        let failed = |doing: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| RecordingError::Io {
                doing,
                path,
                source,
            }
        };
        let mut opened = open_new(&path);
        if matches!(&opened, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(failed("create", dir))?;
            opened = open_new(&path);
        }
        let file = opened.map_err(failed("create", &path))?;
        let mut writer = RecordingWriter {
            file,
            path,
            digest: Context::new(&SHA256),
            frames: 0,
            bytes: 0,
            poisoned: false,
        };
        let header = frame::header(&describe(session, meta, now));
        let header = header.map_err(|why| writer.format(why))?;
        writer.write(&header, &[])?;
        Ok(writer)
    }

    /// Records bytes that are about to be passed on. They are in the file when this returns.
    pub fn append(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        now: SystemTime,
    ) -> Result<(), RecordingError> {
        bytes
            .chunks(MAX_PAYLOAD)
            .try_for_each(|chunk| self.frame(direction.into(), chunk, now))
    }

    /// Records a remark of the gateway, such as a denial.
    pub fn note(&mut self, note: &Value, now: SystemTime) -> Result<(), RecordingError> {
        self.frame(Kind::Note, note.to_string().as_bytes(), now)
    }

    /// Writes the last frame. What the log needs to know about the file comes back.
    pub fn finish(mut self, now: SystemTime) -> Result<Digest, RecordingError> {
        let frames = self.frames;
        self.frame(Kind::End, &frames.to_le_bytes(), now)?;
        Ok(Digest {
            sha256: hex::encode(self.digest.finish()),
            frames,
            bytes: self.bytes,
        })
    }

    /// Waits until everything recorded so far is on the disk itself (fdatasync; blocks).
    pub fn sync(&mut self) -> Result<(), RecordingError> {
        self.file.sync_data().map_err(|source| {
            self.poisoned = true;
            self.io("write", source)
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn frame(&mut self, kind: Kind, payload: &[u8], now: SystemTime) -> Result<(), RecordingError> {
        let head = frame::head(kind, frame::unix_ns(now), payload);
        let head = head.map_err(|why| self.format(why))?;
        self.write(&head, payload)?;
        self.frames += 1;
        Ok(())
    }

    /// One writev(2). Less than everything is a failure: the rest would not fit either.
    fn write(&mut self, head: &[u8], payload: &[u8]) -> Result<(), RecordingError> {
        if self.poisoned {
            let path = self.path.clone();
            return Err(RecordingError::Poisoned { path });
        }
        let wanted = head.len() + payload.len();
        let written = loop {
            match self
                .file
                .write_vectored(&[IoSlice::new(head), IoSlice::new(payload)])
            {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.poisoned = !matches!(written, Ok(n) if n == wanted);
        match written {
            Err(source) => Err(self.io("write", source)),
            Ok(written) if written < wanted => Err(RecordingError::Short {
                path: self.path.clone(),
                written,
                wanted,
            }),
            Ok(_) => {
                self.digest.update(head);
                self.digest.update(payload);
                self.bytes += wanted as u64;
                Ok(())
            }
        }
    }

    fn io(&self, doing: &'static str, source: io::Error) -> RecordingError {
        let path = self.path.clone();
        RecordingError::Io {
            doing,
            path,
            source,
        }
    }

    fn format(&self, why: Damage) -> RecordingError {
        let path = self.path.clone();
        RecordingError::Format { path, why }
    }
}

fn open_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn describe(session: SessionId, meta: &Value, now: SystemTime) -> Value {
    let mut all = Map::new();
    all.insert("session".into(), json!(session));
    all.insert("started".into(), json!(rfc3339(now)));
    match meta {
        Value::Null => {}
        Value::Object(members) => all.extend(members.clone()),
        other => drop(all.insert("meta".into(), other.clone())),
    }
    Value::Object(all)
}

/// A frame with its own copy of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedFrame {
    pub kind: Kind,
    pub unix_ns: u64,
    pub payload: Vec<u8>,
}

/// What a recording has next.
#[derive(Debug)]
pub enum Next {
    Meta(Value),
    Frame(OwnedFrame),
    /// Nothing more in the file at present. While the session is open, ask again later.
    Nothing(Ending),
}

/// Reads a recording, also one that is still being written.
#[derive(Debug)]
pub struct RecordingReader {
    file: File,
    path: PathBuf,
    parser: Parser,
    damaged: Option<Damaged>,
    buffer: Vec<u8>,
    /// How much of the buffer has been delivered.
    parsed: usize,
    digest: Sha256,
    bytes: u64,
}

impl RecordingReader {
    /// Opens a session's recording in `dir`.
    pub fn open(dir: &Path, session: SessionId) -> Result<RecordingReader, RecordingError> {
        RecordingReader::open_file(&dir.join(file_name(session)))
    }

    pub fn open_file(path: &Path) -> Result<RecordingReader, RecordingError> {
        let file = File::open(path).map_err(|source| RecordingError::Io {
            doing: "open",
            path: path.to_owned(),
            source,
        })?;
        Ok(RecordingReader {
            file,
            path: path.to_owned(),
            parser: Parser::default(),
            damaged: None,
            buffer: Vec::new(),
            parsed: 0,
            digest: Sha256::new(),
            bytes: 0,
        })
    }

    /// The next part. Damage is an ending, not an error: what was before it has been delivered.
    pub fn next_part(&mut self) -> Result<Next, RecordingError> {
        loop {
            if let Some(damaged) = &self.damaged {
                return Ok(Next::Nothing(Ending::Damaged(damaged.clone())));
            }
            let rest = self.buffer.get(self.parsed..).unwrap_or_default();
            match self.parser.part(rest) {
                Ok(Some((part, used))) => {
                    self.parsed += used;
                    if let Some(next) = owned(part) {
                        return Ok(next);
                    }
                }
                Ok(None) => {
                    let ending = self.parser.ending(rest);
                    if !self.read_more()? {
                        return Ok(Next::Nothing(ending));
                    }
                }
                Err(damaged) => self.damaged = Some(damaged),
            }
        }
    }

    /// Reads to the end of the file, however damaged, for what the log should say about it.
    pub fn digest(mut self) -> Result<(Digest, Ending), RecordingError> {
        let ending = loop {
            if let Next::Nothing(ending) = self.next_part()? {
                break ending;
            }
        };
        loop {
            self.parsed = self.buffer.len();
            if !self.read_more()? {
                break;
            }
        }
        let digest = Digest {
            sha256: hex::encode(self.digest.finalize()),
            frames: self.parser.frames(),
            bytes: self.bytes,
        };
        Ok((digest, ending))
    }

    /// Whether there was more.
    fn read_more(&mut self) -> Result<bool, RecordingError> {
        const CHUNK: u64 = 256 << 10;
        self.buffer.drain(..self.parsed);
        self.parsed = 0;
        let before = self.buffer.len();
        let read = (&self.file).take(CHUNK).read_to_end(&mut self.buffer);
        let read = read.map_err(|source| RecordingError::Io {
            doing: "read",
            path: self.path.clone(),
            source,
        })?;
        self.digest
            .update(self.buffer.get(before..).unwrap_or_default());
        self.bytes += read as u64;
        Ok(read > 0)
    }
}

fn owned(part: Part<'_>) -> Option<Next> {
    match part {
        Part::Meta(meta) => Some(Next::Meta(meta)),
        Part::Frame(frame) => Some(Next::Frame(OwnedFrame {
            kind: frame.kind,
            unix_ns: frame.unix_ns,
            payload: frame.payload.to_vec(),
        })),
        Part::End { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::audit::event::tests::session;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_767_225_600_000 + ms)
    }

    fn create(dir: &Path) -> RecordingWriter {
        RecordingWriter::create(dir, session(1), &json!({"agent": "report-bot"}), at(0)).unwrap()
    }

    fn frames(reader: &mut RecordingReader) -> (Vec<OwnedFrame>, Ending) {
        let mut frames = Vec::new();
        loop {
            match reader.next_part().unwrap() {
                Next::Meta(_) => {}
                Next::Frame(frame) => frames.push(frame),
                Next::Nothing(ending) => return (frames, ending),
            }
        }
    }

    #[test]
    fn a_recording_reads_back_with_the_digest_the_log_got() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("recordings");
        let mut writer = create(&dir);
        writer
            .append(Direction::AgentToTarget, b"select", at(1))
            .unwrap();
        writer
            .append(Direction::TargetToAgent, b"rows", at(2))
            .unwrap();
        writer.append(Direction::TargetToAgent, b"", at(2)).unwrap();
        writer
            .note(&json!({"rule": "default-deny"}), at(3))
            .unwrap();
        let path = writer.path().to_owned();
        let digest = writer.finish(at(4)).unwrap();

        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&path)), (0o700, 0o600));
        let file = std::fs::read(&path).unwrap();
        assert_eq!(digest.sha256, hex::encode(Sha256::digest(&file)));
        assert_eq!((digest.frames, digest.bytes), (3, file.len() as u64));

        let mut reader = RecordingReader::open(&dir, session(1)).unwrap();
        let Next::Meta(meta) = reader.next_part().unwrap() else {
            panic!("the header comes first");
        };
        assert_eq!(meta["agent"], "report-bot");
        assert_eq!(meta["started"], "2026-01-01T00:00:00.000000Z");
        let (frames, ending) = frames(&mut reader);
        assert_eq!(ending, Ending::Finished);
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1].payload, b"rows");
        assert_eq!(frames[2].unix_ns, frame::unix_ns(at(3)));
        let reread = RecordingReader::open(&dir, session(1)).unwrap().digest();
        assert_eq!(reread.unwrap(), (digest, Ending::Finished));
        assert_eq!(list(&dir).unwrap(), [session(1)]);
    }

    #[test]
    fn a_session_has_one_recording() {
        let dir = tempfile::tempdir().unwrap();
        let _first = create(dir.path());
        let second = RecordingWriter::create(dir.path(), session(1), &Value::Null, at(0));
        assert!(second.unwrap_err().to_string().contains("File exists"));
    }

    #[test]
    fn a_reader_follows_a_file_that_grows() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = create(dir.path());
        let mut reader = RecordingReader::open(dir.path(), session(1)).unwrap();
        assert_eq!(frames(&mut reader), (vec![], Ending::Unfinished));
        let long = vec![7; 1 << 20];
        writer
            .append(Direction::AgentToTarget, &long, at(1))
            .unwrap();
        let (seen, ending) = frames(&mut reader);
        assert_eq!((seen.len(), seen[0].payload.len()), (1, long.len()));
        assert_eq!(ending, Ending::Unfinished);
        writer.finish(at(2)).unwrap();
        assert_eq!(frames(&mut reader), (vec![], Ending::Finished));
    }

    #[test]
    fn a_torn_recording_gives_its_whole_frames() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = create(dir.path());
        writer
            .append(Direction::AgentToTarget, b"one", at(1))
            .unwrap();
        writer
            .append(Direction::AgentToTarget, b"two", at(2))
            .unwrap();
        let file = OpenOptions::new().write(true).open(writer.path()).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        let mut reader = RecordingReader::open(dir.path(), session(1)).unwrap();
        let (seen, ending) = frames(&mut reader);
        assert_eq!(seen.len(), 1);
        assert!(
            matches!(ending, Ending::Torn { bytes: 19, .. }),
            "{ending:?}"
        );
    }

    #[test]
    fn after_a_failed_write_nothing_more_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = create(dir.path());
        writer.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let first = writer.append(Direction::AgentToTarget, b"lost", at(1));
        assert!(first.unwrap_err().to_string().contains("No space left"));
        let second = writer.append(Direction::AgentToTarget, b"lost", at(2));
        assert!(matches!(second, Err(RecordingError::Poisoned { .. })));
        assert!(writer.finish(at(3)).is_err());
    }
}

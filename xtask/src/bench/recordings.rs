//! What is in the recordings: read from the files themselves, not from what the gateway says of them.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// Magic, version, length and checksum of the header.
const HEADER: usize = 18;
/// Length, checksum, kind and time of a frame.
const HEAD: usize = 17;

/// Payload bytes of whole recordings.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    pub files: u64,
    pub from_agents: u64,
    pub to_agents: u64,
}

/// Counts the recordings of these sessions; every one must have its last frame.
pub fn count(folder: &Path, sessions: &[String]) -> Result<Recorded> {
    let mut total = Recorded::default();
    for session in sessions {
        let path = file(folder, session);
        add(&path, &mut total).with_context(|| format!("reading {}", path.display()))?;
    }
    Ok(total)
}

pub fn remove(folder: &Path, sessions: &[String]) -> Result<()> {
    for session in sessions {
        fs::remove_file(file(folder, session))?;
    }
    Ok(())
}

fn file(folder: &Path, session: &str) -> PathBuf {
    folder.join(format!("{session}.slrec"))
}

fn add(path: &Path, total: &mut Recorded) -> Result<()> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
    let mut header = [0; HEADER];
    file.read_exact(&mut header)?;
    file.seek_relative(i64::from(length(&header[10..14])?))?;
    loop {
        let mut head = [0; HEAD];
        file.read_exact(&mut head)
            .context("its last frame is missing")?;
        let payload = length(&head[..4])?;
        match head[8] {
            1 => total.from_agents += u64::from(payload),
            2 => total.to_agents += u64::from(payload),
            3 => {}
            4 => break,
            kind => bail!("a frame is of kind {kind}"),
        }
        file.seek_relative(i64::from(payload))?;
    }
    total.files += 1;
    Ok(())
}

fn length(bytes: &[u8]) -> Result<u32> {
    ensure!(bytes.len() == 4, "a length has four bytes");
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

//! What of the caller's open files an agent may have: standard input, output and error, if they are harmless.

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd;

/// Refuses standard streams that lead past the gateway.
pub fn refuse_ways_out() -> Result<()> {
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for (name, stream) in [
        ("input", input.as_fd()),
        ("output", output.as_fd()),
        ("error", error.as_fd()),
    ] {
        ensure!(
            !is_network_socket(stream),
            "standard {name} is a network socket, which bypasses interception: use a pipe or a terminal"
        );
        ensure!(
            !is_directory(stream),
            "standard {name} is a directory, through which every file below can be reached: use a pipe or a file"
        );
    }
    Ok(())
}

/// A socket belongs to the cgroup that made it and would carry traffic past the gateway.
fn is_network_socket(stream: BorrowedFd<'_>) -> bool {
    let family = getsockname::<SockaddrStorage>(stream.as_raw_fd())
        .ok()
        .and_then(|address| address.family());
    // Pipes, files and terminals have no address; socket pairs and local sockets stay on the host.
    family.is_some_and(|family| family != AddressFamily::Unix)
}

/// `/proc/self/fd/0/..` leads to the caller's files, whatever is mounted over them for the agent.
fn is_directory(stream: BorrowedFd<'_>) -> bool {
    fstat(stream)
        .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
}

/// Closes every other descriptor that the caller left open.
pub fn close_the_rest() -> Result<()> {
    let listed: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .context("listing open descriptors")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in listed.into_iter().filter(|descriptor| *descriptor > 2) {
        // The one that listed them is closed already.
        let _ = unistd::close(descriptor);
    }
    Ok(())
}

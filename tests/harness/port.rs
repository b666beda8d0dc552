//! Loopback ports that stay free while a test that holds one has nothing listening on it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the kernel's range of ephemeral ports, so that no outgoing connection takes one by chance.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port on 127.0.0.1 and ::1 that no other test uses as long as this lives.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    /// Locked: the claim ends with the test, however it ends.
    _claim: File,
}

impl Port {
    pub fn reserve() -> Port {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let claims = std::env::temp_dir().join("sluice-test-ports");
        fs::create_dir_all(&claims).expect("the temporary folder is writable");
        // Tests run as many processes at once: start where the others probably do not.
        let start = (process::id() * 131 % u32::from(COUNT)) as u16;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = FIRST + (start.wrapping_add(step)) % COUNT;
            let claim = File::create(claims.join(number.to_string())).expect("a claim is a file");
            if claim.try_lock().is_ok() && is_free(number) {
                return Port {
                    number,
                    _claim: claim,
                };
            }
        }
        panic!("no free loopback port from {FIRST} to {}", FIRST + COUNT);
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok()
}

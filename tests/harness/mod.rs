//! What the tests are written with: a real PostgreSQL, a real token issuer, a whole Sluice installation
//! and real clients, all thrown away when the test ends.
//!
//! ```ignore
//! let server = Postgres::start();
//! let gateway = Gateway::in_front_of(&server);
//! gateway.psql(["SELECT card_number FROM customers"]).succeeds();
//! ```
//!
//! The kernel's part is real too, so the tests need root. Nothing is skipped: without root they fail.

use std::fs;
use std::path::{Path, PathBuf};

pub mod authority;
pub mod by_hand;
pub mod cgroup;
pub mod events;
pub mod fetched;
pub mod gateway;
pub mod issuer;
pub mod node;
pub mod port;
pub mod postgres;
pub mod program;
pub mod python;
pub mod scratch;
pub mod secrets;
pub mod uplink;

pub use authority::Authority;
pub use gateway::{Gateway, Setup};
pub use node::NodeScript;
pub use postgres::{Authentication, Postgres};
pub use python::Script;

/// Fails the test with one line when it cannot do what it is for.
#[track_caller]
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "run as root: sudo -E env \"PATH=$PATH\" cargo xtask test"
    );
}

/// The workspace's folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
}

/// Things that are slow to make and the same for every test live here, below the target folder.
pub fn cache() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sluice-tests");
    fs::create_dir_all(&cache).expect("the target folder is writable");
    cache
}

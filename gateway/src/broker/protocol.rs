//! The messages: JSON, one per packet, descriptors beside it.

use serde::{Deserialize, Serialize};

use crate::identity::process::Origin;
use crate::intercept::MapsId;

/// The largest message, in bytes, either way.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// What the gateway asks. Braces instead of bare names, because serde accepts any member beside a bare one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// For the maps and the host's listeners. Only for a gateway that inherited none.
    Hello {},
    /// For a flow's process and its program.
    Inspect {
        tgid: u32,
        /// When it connected, in nanoseconds since boot.
        boot_ns: u64,
        /// Relative to the cgroup v2 mount.
        cgroup: String,
    },
    /// For listeners in the namespace that an agent's process is in.
    Listen { tgid: u32, netns_cookie: u64 },
    /// For the state of the kernel side.
    State {},
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// With `maps` descriptors of maps, then those of the sockets.
    Endowment {
        maps: usize,
        sockets: Sockets,
    },
    /// With the sockets' descriptors.
    Listeners {
        sockets: Sockets,
    },
    Process {
        origin: Option<Origin>,
    },
    State {
        problems: Vec<String>,
        frozen: bool,
        abandoned: Vec<u64>,
        maps: Option<MapsId>,
    },
    Refused {
        reason: String,
    },
}

/// How many descriptors follow: TCP first, IPv4 first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    pub netns_cookie: u64,
    pub tcp: usize,
    pub udp: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_nothing_else() {
        let listen = r#"{"request":"listen","tgid":7,"netns_cookie":18446744073709551615}"#;
        let expected = Request::Listen {
            tgid: 7,
            netns_cookie: u64::MAX,
        };
        assert_eq!(serde_json::from_str::<Request>(listen).unwrap(), expected);
        assert_eq!(serde_json::to_string(&expected).unwrap(), listen);
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"request":"hello"}"#).unwrap(),
            Request::Hello {}
        );
        for refused in [
            "",
            "{}",
            "[]",
            r#"{"request":"exec"}"#,
            r#"{"request":"hello","port":1}"#,
            r#"{"request":"listen","tgid":-1,"netns_cookie":1}"#,
            r#"{"request":"listen","tgid":1}"#,
            r#"{"request":"state"} {}"#,
        ] {
            assert!(
                serde_json::from_str::<Request>(refused).is_err(),
                "{refused}"
            );
        }
    }
}

//! Scripts that speak the protocol by hand, with `tests/clients/deny_protocol.py` beside them.

use super::gateway::Gateway;
use super::python::Script;

/// A script that needs Python and the messages, no driver.
pub fn by_hand(gateway: &Gateway, name: &str, text: &str) -> Script {
    let messages = include_str!("../clients/deny_protocol.py");
    let _ = Script::plain(gateway, "deny_protocol.py", messages);
    Script::plain(gateway, name, text)
}

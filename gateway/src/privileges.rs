//! Giving up root for good, before anything from outside is read.
//!
//! [`become_user`] turns this process into one that can do nothing but what any stranger on the host could: no
//! groups, no capability in any set, no way to get one by executing something. It then asks the kernel
//! whether that is so, because some of these calls can be without effect (a security module, a container).

use std::fs;
use std::io;

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, User, geteuid, setgroups, setresgid, setresuid};

/// A user by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error(
        "there is no user {0:?} on this host: create it (`useradd --system {0}`), or name another in gateway.user"
    )]
    NoSuchUser(String),
    #[error(
        "gateway.user = {0:?} is root: the gateway reads hostile bytes, give it a user of its own"
    )]
    Root(String),
    #[error(
        "this is user id {own}, but gateway.user = {name:?} is {wanted}: start it as that user, or as root"
    )]
    AnotherUser { own: u32, name: String, wanted: u32 },
    #[error("{what}: {cause}")]
    Call { what: &'static str, cause: Errno },
    #[error("capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("this process has {0} threads already, and some would keep their privileges")]
    Threads(String),
    #[error("/proc/self/status: {0}")]
    Status(io::Error),
    #[error("the process kept what it gave up: {0}")]
    Kept(String),
}

/// The user of that name; a number needs no entry in the user database, its group is then the same number.
pub fn lookup(name: &str) -> Result<Identity, PrivilegeError> {
    let failed = |cause| PrivilegeError::Call {
        what: "looking up gateway.user",
        cause,
    };
    let known = match User::from_name(name).map_err(failed)? {
        Some(user) => Some(user),
        None => match name.parse() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)).map_err(failed)?,
            Err(_) => None,
        },
    };
    let identity = match (known, name.parse()) {
        (Some(user), _) => Identity {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        },
        (None, Ok(number)) => Identity {
            uid: number,
            gid: number,
        },
        (None, Err(_)) => return Err(PrivilegeError::NoSuchUser(name.to_owned())),
    };
    match identity.uid {
        // All ones means "leave it" to setresuid(2).
        0 | u32::MAX => Err(PrivilegeError::Root(name.to_owned())),
        _ => Ok(identity),
    }
}

/// Becomes the user, without groups and capabilities, for good. For a process that is that user already,
/// which may be how a service manager started it, only the rest is done.
///
/// To be called before the first thread is started: most of this is per thread.
pub fn become_user(name: &str) -> Result<Identity, PrivilegeError> {
    let identity = lookup(name)?;
    let own = geteuid().as_raw();
    if own != 0 && own != identity.uid {
        return Err(PrivilegeError::AnotherUser {
            own,
            name: name.to_owned(),
            wanted: identity.uid,
        });
    }
    match status()?.field("Threads") {
        "1" => {}
        threads => return Err(PrivilegeError::Threads(threads.to_owned())),
    }
    if own == 0 {
        leave_root(identity)?;
    }
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        caps::clear(None, set)?;
    }
    prctl::set_no_new_privs().map_err(call("setting no_new_privs"))?;
    verify(&status()?, identity, own == 0)?;
    Ok(identity)
}

/// The bounding set first: afterwards there is no right to change it. With another real, effective and saved
/// user than root, the kernel clears the other sets itself.
fn leave_root(identity: Identity) -> Result<(), PrivilegeError> {
    let may_shrink = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)?;
    if may_shrink {
        caps::clear(None, CapSet::Bounding)?;
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setgroups(&[]).map_err(call("clearing the groups"))?;
    setresgid(gid, gid, gid).map_err(call("changing the group"))?;
    setresuid(uid, uid, uid).map_err(call("changing the user"))
}

fn call(what: &'static str) -> impl FnOnce(Errno) -> PrivilegeError {
    move |cause| PrivilegeError::Call { what, cause }
}

/// `/proc/self/status`, proc_pid_status(5).
struct Status(String);

fn status() -> Result<Status, PrivilegeError> {
    let text = fs::read_to_string("/proc/thread-self/status");
    text.map(Status).map_err(PrivilegeError::Status)
}

impl Status {
    /// What stands behind `name:`; empty if nothing does.
    fn field(&self, name: &str) -> &str {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.strip_prefix(':'));
        value.unwrap_or_default().trim()
    }
}

/// `was_root`: the groups and the bounding set were this process's to clear; otherwise no_new_privs makes the
/// bounding set worthless, and groups are the service manager's choice.
fn verify(status: &Status, identity: Identity, was_root: bool) -> Result<(), PrivilegeError> {
    let four = |id: u32| vec![id.to_string(); 4];
    let ids = |name| -> Vec<String> {
        let fields = status.field(name).split_whitespace();
        fields.map(str::to_owned).collect()
    };
    let is_zero = |set: &str| {
        let digits = status.field(set);
        !digits.is_empty() && digits.bytes().all(|digit| digit == b'0')
    };
    let mut kept = Vec::new();
    if ids("Uid") != four(identity.uid) {
        kept.push(format!("user ids {}", status.field("Uid")));
    }
    if was_root && ids("Gid") != four(identity.gid) {
        kept.push(format!("group ids {}", status.field("Gid")));
    }
    if was_root && !status.field("Groups").is_empty() {
        kept.push(format!("groups {}", status.field("Groups")));
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        if !is_zero(set) {
            kept.push(format!("{set} {}", status.field(set)));
        }
    }
    if status.field("NoNewPrivs") != "1" {
        kept.push("the way to new privileges".to_owned());
    }
    match kept.is_empty() {
        true => Ok(()),
        false => Err(PrivilegeError::Kept(kept.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_by_name_and_by_number() {
        let unknown = Identity {
            uid: 64023,
            gid: 64023,
        };
        assert_eq!(lookup("64023").unwrap(), unknown);
        let nobody = lookup("nobody").unwrap();
        assert_eq!(lookup(&nobody.uid.to_string()).unwrap(), nobody);
        for (name, expected) in [
            ("no-such-user", "useradd"),
            ("root", "is root"),
            ("0", "is root"),
            ("4294967295", "is root"),
            ("4294967296", "no user"),
            ("-1", "no user"),
            ("", "no user"),
        ] {
            let error = lookup(name).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn what_was_kept_is_found() {
        let identity = Identity { uid: 7, gid: 8 };
        let good = "Uid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t \nThreads:\t1\n\
            CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
            CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";
        let check = |text: String| verify(&Status(text), identity, true);
        check(good.to_owned()).unwrap();
        for (from, to) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t0\t7"),
            ("Gid:\t8\t8", "Gid:\t8\t0"),
            ("Groups:\t ", "Groups:\t0 4"),
            ("CapPrm:\t0000000000000000", "CapPrm:\t0000000000000400"),
            ("CapAmb:\t0000000000000000\n", ""),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
        ] {
            let error = check(good.replace(from, to)).unwrap_err();
            assert!(matches!(error, PrivilegeError::Kept(_)), "{to}: {error}");
        }
    }

    #[test]
    fn a_process_with_threads_keeps_its_privileges() {
        // The test runner's own threads are the ones.
        let other = std::thread::spawn(std::thread::park);
        let error = become_user("64023").unwrap_err();
        assert!(matches!(error, PrivilegeError::Threads(_)), "{error}");
        other.thread().unpark();
        other.join().unwrap();
    }
}

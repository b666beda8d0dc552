//! What an agent loses before its command runs, isolated or not: the caller's user, groups, keys and
//! capabilities, and most of the ways to get any back.

use std::ffi::CString;

use anyhow::{Context as _, Result};
use caps::CapSet;
use caps::errors::CapsError;
use nix::sys::prctl;
use nix::unistd::{self, Gid, User};

use super::seccomp;
use crate::intercept::isolate;

/// Whom the command runs as. The groups are looked up while the host's directory services can be reached.
#[derive(Debug)]
pub struct Credentials {
    user: User,
    groups: Vec<Gid>,
}

impl Credentials {
    pub fn of(user: User) -> Result<Self> {
        let name = CString::new(user.name.as_str())?;
        let groups =
            unistd::getgrouplist(&name, user.gid).context("looking up the user's groups")?;
        Ok(Self { user, groups })
    }
}

/// Makes this process what the command is to be. The order is forced: each step needs what the next takes.
pub fn confine(credentials: &Credentials) -> Result<()> {
    isolate::leave_session_keyring().context("leaving the caller's keyring")?;
    // What execve(2) could give back. Afterwards there is no right to change it.
    caps::clear(None, CapSet::Bounding).context("limiting capabilities")?;
    become_user(credentials)?;
    drop_capabilities().context("dropping capabilities")?;
    prctl::set_no_new_privs().context("setting no_new_privs")?;
    seccomp::install()
}

fn become_user(credentials: &Credentials) -> Result<()> {
    let user = &credentials.user;
    unistd::setgroups(&credentials.groups).context("setting the user's groups")?;
    unistd::setresgid(user.gid, user.gid, user.gid).context("setting the group")?;
    unistd::setresuid(user.uid, user.uid, user.uid).context("setting the user")?;
    Ok(())
}

/// Changing to another user than root has done most of it already.
fn drop_capabilities() -> Result<(), CapsError> {
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        caps::clear(None, set)?;
    }
    Ok(())
}

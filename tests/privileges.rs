//! Giving up root: what a process that did it can no longer do.

use std::fs;

use gateway::privileges::{PrivilegeError, become_user};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Uid, fork, setresuid, setuid};

use crate::harness::gateway::USER;
use crate::harness::require_root;

/// Runs `check` in a process of its own, with one thread; it answers what is wrong.
#[track_caller]
fn in_a_process(check: impl FnOnce() -> Result<(), String>) {
    // SAFETY: the child uses nothing another thread could have left locked but the allocator, which glibc
    // unlocks in the child, and leaves without running destructors.
    match unsafe { fork() }.expect("the test may fork") {
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).expect("it is our child");
            assert_eq!(ended, WaitStatus::Exited(child, 0));
        }
        ForkResult::Child => {
            let outcome = check();
            if let Err(complaint) = &outcome {
                eprintln!("{complaint}");
            }
            // SAFETY: ends this process, nothing else.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
    }
}

#[test]
fn nothing_is_kept_and_there_is_no_way_back() {
    require_root();
    in_a_process(|| {
        let identity = become_user(&USER.to_string()).map_err(|error| error.to_string())?;
        let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
        for expected in [
            "Uid:\t64023\t64023\t64023\t64023",
            "Gid:\t64023\t64023\t64023\t64023",
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            if !status.contains(expected) {
                return Err(format!("{expected:?} is not in\n{status}"));
            }
        }
        if setuid(Uid::from_raw(0)).is_ok() || fs::read("/etc/shadow").is_ok() {
            return Err("still root".to_owned());
        }
        // Once more as that user, as a service manager starts it.
        let again = become_user("64023").map_err(|error| error.to_string())?;
        if again != identity {
            return Err(format!("{again:?} is not {identity:?}"));
        }
        match become_user("64024") {
            Err(PrivilegeError::AnotherUser { own: 64023, .. }) => Ok(()),
            other => Err(format!("another user: {other:?}")),
        }
    });
}

#[test]
fn a_capability_that_a_service_manager_left_is_given_up_too() {
    require_root();
    in_a_process(|| {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let nobody = Uid::from_raw(65534);
        caps::securebits::set_keepcaps(true).map_err(|error| failed(&error))?;
        setresuid(nobody, nobody, nobody).map_err(|error| failed(&error))?;
        let own = caps::read(None, caps::CapSet::Permitted).map_err(|error| failed(&error))?;
        if own.is_empty() {
            return Err("there was nothing to give up".to_owned());
        }
        become_user("nobody").map_err(|error| failed(&error))?;
        let own = caps::read(None, caps::CapSet::Permitted).map_err(|error| failed(&error))?;
        match own.is_empty() {
            true => Ok(()),
            false => Err(format!("kept {own:?}")),
        }
    });
}

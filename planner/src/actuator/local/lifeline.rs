//! A child's side of the promise that it does not outlive its supervisor.

use std::io;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Environment variable with the supervisor's process id; set for every child.
pub const SUPERVISOR_PID: &str = "KELVIN_SUPERVISOR_PID";

/// Ties this process to the supervisor that started it: when that one ends, however it ends, the kernel
/// kills this one. Does nothing in a process that was started by hand.
///
/// To be called first thing in `main`. Errors: the variable holds no process id, or the supervisor was gone
/// before the signal was armed; the caller then leaves.
pub fn bind_to_supervisor() -> io::Result<()> {
    match std::env::var(SUPERVISOR_PID) {
        Ok(pid) => bind_to(&pid),
        Err(_) => Ok(()),
    }
}

fn bind_to(pid: &str) -> io::Result<()> {
    let expected = pid.parse().ok().and_then(Pid::from_raw).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{SUPERVISOR_PID} is {pid:?}, which is no process id"),
        )
    })?;
    // SIGKILL and not SIGTERM: nobody is left who would enforce the end of a drain that hangs.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A supervisor that ended before the line above sends no signal any more.
    if getppid() != Some(expected) {
        return Err(io::Error::other(format!("the supervisor (process {pid}) is gone")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_strange_parent() {
        let error = bind_to(&std::process::id().to_string()).unwrap_err();
        assert!(error.to_string().contains("is gone"), "{error}");
        for wrong in ["", "x", "0"] {
            assert_eq!(bind_to(wrong).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{wrong:?}");
        }
        set_parent_process_death_signal(None).unwrap();
    }
}

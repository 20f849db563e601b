//! How many of what: the actuators that start and stop Kelvin's processes.
//!
//! The first one is [`Supervisor`]: processes of this machine, started in order, probed, restarted
//! and drained. `kelvin up` is a thin list of children on top of it.
#![forbid(unsafe_code)]

mod actuator;

pub use actuator::local::{
    Backoff, Cause, Child, Error, Output, Probe, ReadyLine, SUPERVISOR_PID, State, Status, Supervisor,
    SupervisorOptions, bind_to_supervisor, stderr_output,
};

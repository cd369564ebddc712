//! What a gateway and the cloud say to each other, and the rules of both ends that need no I/O.
//!
//! Nothing in this crate opens a file or a socket, reads a clock or spawns a task: it is called with
//! bytes and times, and answers with values. Limits are constants with their unit in the name.

pub mod enrolment;
pub mod frame;
pub mod gate;
pub mod ids;
pub mod lane;
pub mod message;
pub mod telemetry;
pub mod topic;

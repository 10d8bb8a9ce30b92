//! runc is a program: this is how it is asked. Typed arguments, explicit
//! streams, a process group, a log and a deadline of its own for each call,
//! and an error that says what it was. Whether a container exists or runs is
//! never concluded from here: an exit status says how the *call* went, the
//! host says what is.
//!
//! Works with runc and with crun; neither's error texts are interpreted.

mod argv;
mod document;
mod failure;
mod log;
mod program;
mod run;

pub use argv::{Call, Runtime, Verb};
pub use document::process_document;
pub use failure::{Class, Ended, Failure};
pub use log::last_error;
pub use program::{Unusable, find_program};
pub use run::{Deadlines, Invocation, Running, Streams, forget_pid_file};

#[cfg(test)]
mod tests;

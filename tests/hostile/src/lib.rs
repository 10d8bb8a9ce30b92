//! What the hostile tests share: a bounded trial, programs that misbehave, and the
//! comparison of a host before and after something failed.
//!
//! The laboratory drives the shim; this only makes the world around it unfriendly. It
//! must never make the world unfriendly for anybody else.

pub mod harm;
mod pair;
mod programs;
pub mod scarcity;
mod taken;
mod trace;
mod trial;

pub use pair::{Pair, fds, private_kib};
pub use programs::{
    FaultyRunc, counter, crowd, runc_options, runc_root_options, toml_options, vigil, vigil_apart,
};
pub use taken::{
    Armed, Feeder, a_while, counts, finished_though, logger, running_into, succeeded, successor,
};
pub use trace::Trace;
pub use trial::{as_ever, exit_in_time, refused, shim, trial, trial_under};

//! What containerd may expect of a shim, as programs: each behaviour is one function,
//! with one sentence of where it is written, run against Go's shims first and then ours.
//!
//! A behaviour must never know which shim it looks at. Where shims differ on purpose,
//! `differences` says so with a reason, and nowhere else.

pub mod behaviour;
pub mod bootstrap;
pub mod cgroups;
pub mod daemon;
pub mod differences;
pub mod ends;
pub mod events;
pub mod exec;
pub mod lifecycle;
pub mod resources;
pub mod runner;
pub mod signals;
pub mod stdio;

pub use behaviour::Behaviour;

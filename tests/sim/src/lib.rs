//! The simulator: the real rules, judgement, journal and exit records on a
//! fake host, disk and clock, with everything going wrong that can, and an
//! auditor after each step. Random only by its seed: a history that breaks an
//! invariant is written down and can be lived through again.
//!
//! What is not real is the glue: `shim` and `jobs` stand for `supervise`,
//! `recovery` for `delete` with `host`, `runc` for runc. They follow those
//! closely; where these still fall short there is a switch ([`Life`]) or a
//! sentence that says *known limit*. A restart is `delete` today; a takeover
//! would give [`shim::Shim`] the task its journal tells of.

pub mod action;
pub mod book;
mod calm;
pub mod history;
pub mod host;
mod jobs;
pub mod ledger;
pub mod records;
pub mod recovery;
pub mod rng;
pub mod runc;
pub mod shim;
pub mod world;

pub use history::{History, Run, run};
pub use world::{Life, World};

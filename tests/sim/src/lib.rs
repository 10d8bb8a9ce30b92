//! The simulator: the real rules, judgement, journal and exit records on a
//! fake host, disk and clock, with everything going wrong that can, and an
//! auditor after each step. Random only by its seed: a history that breaks an
//! invariant is written down and can be lived through again.

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

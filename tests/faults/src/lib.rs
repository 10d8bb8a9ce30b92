//! What goes wrong in the field, made to go wrong on purpose: every class of the fault
//! catalogue one machine can produce, and the crash-point matrix, against real containers.
//!
//! How a case is added and run: [`cases!`]. What a shim is held to beside its cases:
//! `vigil_lab` (residue, held, order, times). A case must never be weakened to pass.

pub mod case;
pub mod cases;
pub mod differences;
pub mod elsewhere;
pub mod ice;
pub mod matrix;
pub mod rest;
pub mod runner;
pub mod stall;
pub mod table;
pub mod watch;
pub mod world;

pub use case::{Asked, Case, Run};

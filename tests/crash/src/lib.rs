//! The death of the shim costs nothing, shown at every instant that can be named: its crash
//! points, and before and after each of its system calls, those of a shim that takes over too.
//!
//! A life is a story of acts (`story`) played by a client of its own (`stage`), with blows at
//! places written as text (`script`), struck by a tracer (`tracer`) or by the points
//! themselves, and judged in the very acts. It must never trace or kill what it has not started.

pub mod life;
pub mod run;
pub mod script;
pub mod stage;
pub mod story;
pub mod tracer;
pub mod voice;

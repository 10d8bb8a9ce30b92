//! The soak: thousands of random lives, each ended by SIGKILL of both processes at a
//! random moment, each judged by the kernel's own word and by what is left on the host.
//!
//! Lives are drawn from a seed (`plan`), lived through a client of our own (`direct`) or
//! a real containerd (`daemon`), and judged by pure rules (`judge`). It never kills what
//! it has not found by a container id that only it can have made.

pub mod daemon;
pub mod direct;
pub mod judge;
pub mod life;
pub mod plan;
pub mod soak;
pub mod story;
pub mod strike;
pub mod tally;
pub mod truth;

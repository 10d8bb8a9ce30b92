//! The soak: thousands of random lives, each ended by SIGKILL of both processes at a
//! random moment, or lived on through SIGKILLs of its shims; each judged by the kernel's
//! own word and by what is left on the host.
//!
//! Lives are drawn from a seed (`plan`), lived through a client of our own (`direct`) or
//! a real containerd (`daemon`), and judged by pure rules (`judge`); some live as long as
//! all of it takes, and must not grow (`elder`). It never kills what
//! it has not found by a container id that only it can have made.

pub mod blows;
pub mod daemon;
pub mod direct;
pub mod elder;
pub mod judge;
pub mod life;
pub mod plan;
pub mod soak;
pub mod standing;
pub mod story;
pub mod strike;
pub mod tally;
pub mod through;
pub mod truth;

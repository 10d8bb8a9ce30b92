//! The judgement: from what is recorded and what is seen, what is true of a
//! container and what remains to be done about it. A takeover, `delete` and
//! the operator's `repair` all come here. Pure: looks at nothing, changes
//! nothing, knows no path, pid or clock.

#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]

mod facts;
mod kin;
mod plan;
mod table;
mod verdict;

pub use facts::{Boot, Exit, Facts, Group, Init, Present, RuncDelete, Said};
pub use kin::{Above, Claimed, Kin, Orphans, PidNs, Ties, kin};
pub use plan::{Action, Goal, plan};
pub use table::{Row, decide, row, rows};
pub use verdict::Verdict;

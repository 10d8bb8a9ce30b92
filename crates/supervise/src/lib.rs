//! The loop: one task owns the container's state; requests, exits, timers and
//! finished effects reach it as events. Only here is `model::step` called and
//! the journal appended to. Knows nothing of the wire.

#![forbid(unsafe_code)]

mod again;
mod asked;
mod bundle;
mod clock;
pub mod control;
mod counted;
pub mod crash;
mod desk;
mod effects;
mod ends;
mod error;
mod exits;
mod hands;
mod heir;
mod jobs;
mod kept;
mod ledger;
mod limits;
mod loggers;
mod lost;
mod ooms;
mod outbox;
mod owner;
mod replies;
mod serve;
pub mod stdio;
mod takeover;
mod watched;

pub use bundle::is_in_its_place;
pub use clock::now;
pub use desk::Desk;
pub use error::Error;
pub use exits::exit_of;
pub use heir::Bequest;
pub use limits::Limits;
pub use lost::end_lost;
pub use outbox::{Delivery, Publish};
pub use owner::{Ending, Place};
pub use serve::{Arrival, Inherited, Shim};
pub use vigil_host::chain;
pub use watched::SharedFd;

//! The laboratory: what every test against real containers stands on.
//!
//! Owns the fixtures: a private containerd, a driver that plays containerd towards one
//! shim, fifos, an event sink, and the oracle that says what a test left behind. It
//! speaks ttrpc with its own forty lines of framing, so that the shim's server and the
//! tests do not share a mistake. It must never touch what it did not start.

pub mod bundle;
pub mod containerd;
pub mod events;
pub mod fifo;
pub mod held;
pub mod kit;
pub mod order;
pub mod place;
pub mod poll;
pub mod process;
pub mod residue;
pub mod scratch;
pub mod shim;
pub mod suite;
pub mod task;
pub mod times;
pub mod wire;

pub use bundle::{Bundle, Spec};
pub use containerd::{Containerd, Version};
pub use events::{Event, EventSink, Fact};
pub use fifo::FifoReader;
pub use kit::{Kit, ShimBinary};
pub use place::Place;
pub use poll::{GENEROUS, by, until};
pub use residue::Residue;
pub use scratch::Scratch;
pub use shim::{Deleted, Shim, StartReply};
pub use task::{CallError, Code, Task};

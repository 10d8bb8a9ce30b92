//! The wire: containerd's words on one side, the model's on the other.
//!
//! Owns argv and stdin of `start` and `delete`, the socket's address, the Task
//! service under both its names, and the sending of one event. It decides
//! nothing about a task and keeps nothing of it; wire types never leave here.

#![forbid(unsafe_code)]

pub mod address;
mod answers;
pub mod bootstrap;
pub mod delete;
mod ends;
mod error;
mod events;
pub mod flags;
mod follow;
mod frames;
pub mod info;
mod line;
mod metrics;
mod options;
pub mod probe;
pub mod publisher;
mod requests;
pub mod service;
mod story;
pub mod transport;
mod waits;
mod wire;

pub use error::Error;
pub use flags::{Action, Flags, Invocation};
pub use publisher::{Delivery, Publisher, Retry};
pub use service::Ask;
pub use story::Left;
pub use transport::Server;

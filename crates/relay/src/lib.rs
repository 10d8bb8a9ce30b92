//! The switchboard between containerd and the shim: whole ttrpc frames in,
//! whole frames out, and the list of what is not answered yet. It is a pure
//! function of bytes and deaths: no descriptor, no clock, no meaning of a
//! method. It exists so that the death of a shim loses and doubles no answer.
#![forbid(unsafe_code)]

pub mod budget;
mod burst;
pub mod cause;
pub mod conns;
pub mod control;
pub mod departure;
pub mod estate;
mod frame;
mod glance;
pub mod handed;
pub mod heir;
pub mod pace;
pub mod places;
pub mod slots;
pub mod succession;
mod switch;
pub mod tokens;

pub use budget::Budget;
pub use frame::{
    CODE_INTERNAL, CODE_RESOURCE_EXHAUSTED, CODE_UNAVAILABLE, FRAME_MAX, HEADER_LEN, PAYLOAD_MAX,
};
pub use switch::{
    ATTEMPTS_MAX, Counts, KEPT_BYTES_MAX, KEPT_MAX, QUEUE_MAX, Relay, UNSENT_MAX, fuzz_one,
};

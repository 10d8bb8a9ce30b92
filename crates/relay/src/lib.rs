//! The switchboard between containerd and the shim: whole ttrpc frames in,
//! whole frames out, and the list of what is not answered yet. It is a pure
//! function of bytes and deaths: no descriptor, no clock, no meaning of a
//! method. It exists so that the death of a shim loses and doubles no answer.

pub mod control;

//! The loop: one task owns the container's state; requests, exits, timers and
//! finished effects reach it as events. Only here is `model::step` called and
//! the journal appended to. Knows nothing of the wire.

pub mod stdio;

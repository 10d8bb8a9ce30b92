//! What a reaper hands down to each shim over the exec: numbers of descriptors, and a name in
//! its environment.

/// The shim's end of the control socket, as the shim sees it.
pub const CONTROL_FD: u16 = 3;
/// The doorbell rung after each recorded death.
pub const DOORBELL_FD: u16 = 4;
/// The lock.
pub const LOCK_FD: u16 = 5;
/// The write end of the ready pipe.
pub const READY_FD: u16 = 6;
/// The listening socket, for the time after the reaper.
pub const LISTENER_FD: u16 = 7;

/// Memory for a second copy of the journal. One of an earlier version hands down none.
pub const MEMORY_FD: u16 = 8;
/// The exit records, whatever has their name in the bundle by now. Likewise.
pub const EXITS_FD: u16 = 9;

/// The number of the memory with what is left, in the environment of a process that is to be the
/// reaper.
pub const ESTATE: &str = "VIGIL_ESTATE";
/// The number of the program that the reaper was until then, if it is to be another.
pub const BEFORE: &str = "VIGIL_BEFORE";
/// Last of the arguments of a shim.
pub const SERVE: &str = "serve";
/// In place of that: of a process that was executed to be the reaper.
pub const REAP: &str = "reap";

/// How many shims of this pair have died by their own fault in a row, in the environment of
/// each: 0 for the first, at least 1 for one that takes over.
pub const TAKEOVERS: &str = "VIGIL_TAKEOVERS";
/// The number of the next connection, likewise: no earlier one is given again.
pub const CONNS: &str = "VIGIL_CONNS";

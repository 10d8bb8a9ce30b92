//! The names of Vigil's files in a bundle, each written in one place only.
//!
//! A file under a name of this page is never renamed to another name of this
//! page; the side names exist only while their file is being replaced.

/// The journal, written by the shim alone.
pub const JOURNAL: &str = "journal";
/// Follows a file's name while its replacement is written beside it.
pub const SIDE_SUFFIX: &str = ".new";
/// Follows a journal's name, and is followed by its generation, where a
/// journal with a bad middle is kept.
pub const BAD_SUFFIX: &str = ".bad-";
/// Follows the name of what was set aside: it is not what its name says.
pub const BAD: &str = ".bad";
/// The exit records, written by the reaper alone.
pub const EXITS: &str = "exits";
/// The incarnations of the reaper and of the shim now serving.
pub const PAIR: &str = "pair";
/// How often another shim took over, and why; written by the reaper alone.
pub const TAKEOVERS: &str = "takeovers";
/// A link to the program the next shim is to be started from, put there by
/// `vigil upgrade` and removed by the reaper when that has come to an end.
pub const NEXT: &str = "next";
/// The last words of a shim that panicked, until somebody has read them.
pub const PANIC: &str = "panic";
/// What `delete`, or a repair, has answered where the journal could not keep it.
pub const ENDED: &str = "ended";
/// Free exactly when both processes of the pair are gone. Never renamed.
pub const LOCK: &str = "lock";
/// containerd's: the address of the shim's socket.
pub const ADDRESS: &str = "address";

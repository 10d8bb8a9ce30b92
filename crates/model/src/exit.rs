//! How a process ended, as far as anyone knows.
//!
//! *Unknown is a value.* A status nobody saw is `Unknown` with the reason; it
//! is never invented as 137, −1 or 0. The adapter to the wire turns it into
//! 255, once, at the edge.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A point in wall-clock time, for display and for the wire; nothing is
/// decided by comparing two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds after 1970-01-01 00:00 UTC.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// Why a status is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// The reaper was dead when the process ended.
    ReaperGone,
    /// The host was restarted under it.
    OtherBoot,
    /// No record of its end survived.
    NoRecord,
    /// The process was told as ended before its end was seen (the deadline
    /// for execs after init's end).
    NotSeenInTime,
    /// It never ran: its start failed.
    NeverRan,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Because::ReaperGone => "the reaper was gone when it ended",
            Because::OtherBoot => "it belongs to another boot of this host",
            Because::NoRecord => "no record of its end survived",
            Because::NotSeenInTime => "its end was not seen in time",
            Because::NeverRan => "it never ran",
        })
    }
}

/// What `wait(2)` said, or that nobody could say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// `WEXITSTATUS`.
    Exited(u8),
    /// `WTERMSIG`.
    Signalled(u8),
    /// Nobody saw it.
    Unknown(Because),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Exited(code) => write!(f, "exit {code}"),
            Status::Signalled(signal) => write!(f, "signal {signal}"),
            Status::Unknown(because) => write!(f, "unknown: {because}"),
        }
    }
}

/// The end of one process: one value, whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exit {
    /// How.
    pub status: Status,
    /// When it was seen.
    pub at: Moment,
}

impl Exit {
    /// The same, but none of what never ran: a process that never began has no end
    /// to be told.
    #[must_use]
    pub fn of_a_life(self) -> Option<Self> {
        match self.status {
            Status::Unknown(Because::NeverRan) => None,
            Status::Exited(_) | Status::Signalled(_) | Status::Unknown(_) => Some(self),
        }
    }
}

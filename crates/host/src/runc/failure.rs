//! A call that did not go well: which, how it ended, and in whose words. The
//! class is decided by exit status and errno alone; the words are for people.

use std::fmt;

use vigil_sys::Errno;

use super::argv::Verb;

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// There is no such program.
    NotFound,
    /// There is one and it cannot be executed.
    NotExecutable,
    /// It could not be started for want of something (memory, pids, fds).
    NotStarted,
    /// It ran and said no.
    Refused,
    /// It was killed, by us or somebody, or crashed: what it did is unknown.
    Died,
    /// Its deadline passed and it was killed: what it did is unknown.
    Overdue,
    /// It ended and nobody knows how: what it did is unknown.
    Unknown,
}

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There never was one.
    NotStarted(Option<Errno>),
    /// It exited with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Not known, or not at all.
    Unknown,
}

/// A failed call of runc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was asked.
    pub verb: Verb,
    /// How the process ended.
    pub exit: Ended,
    /// runc's own words, or ours if it had none.
    pub message: String,
    /// What kind.
    pub class: Class,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verb.prefix(), self.message)
    }
}

impl std::error::Error for Failure {}

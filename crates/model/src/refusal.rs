//! Why not, as a type.

/// The class of a refusal; the wire has a code for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No such task or exec, or it is gone.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// Not in this phase.
    FailedPrecondition,
    /// The request itself is wrong.
    InvalidArgument,
    /// Not offered.
    Unimplemented,
    /// A deadline of ours passed.
    DeadlineExceeded,
    /// A bound was reached.
    ResourceExhausted,
    /// Not now; later perhaps.
    Unavailable,
    /// runc or the host failed (the Go shim's code for every such failure).
    Unknown,
    /// Not an answer: the request waits for the verb under way and is
    /// presented again after the next step. Never leaves the shim.
    Later,
}

/// A refused request: a class for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{says}")]
pub struct Refusal {
    /// The class.
    pub kind: Kind,
    /// What was refused, on which id, and why.
    pub says: String,
}

impl Refusal {
    /// Makes one.
    pub fn new(kind: Kind, says: impl Into<String>) -> Self {
        Self {
            kind,
            says: says.into(),
        }
    }
}

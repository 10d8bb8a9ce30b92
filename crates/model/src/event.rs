//! Everything that can happen to a task.

use crate::phase::{ExecPlan, Plan, Verb};
use crate::{Claim, ExecId, Exit, Incarnation, Moment, RequestId, Who};

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When; the only clock the rules know.
    pub at: Moment,
    /// The request it comes from, if it comes from one.
    pub asked: Option<RequestId>,
    /// What.
    pub what: What,
}

/// What happened. `…Asked` come from requests, `…Done` and `…Failed` from
/// effects that ended, the rest from the kernel and from timers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Create was asked; the host was looked at, nothing was changed.
    CreateAsked(Box<Plan>),
    /// The container is made.
    CreateDone {
        /// Its init; `None` for a restore.
        init: Option<Incarnation>,
        /// The claims with the inodes that were found.
        claims: Vec<Claim>,
    },
    /// It could not be made.
    CreateFailed {
        /// Whether nothing is left of what was made of it.
        undone: bool,
    },
    /// A verb on init was asked.
    Asked(Verb),
    /// The verb succeeded.
    Done {
        /// Which.
        verb: Verb,
        /// Init, when a restore brought it about.
        init: Option<Incarnation>,
    },
    /// The verb failed and changed nothing.
    Failed(Verb),
    /// An exec was asked for.
    ExecAsked {
        /// Its id.
        exec: ExecId,
        /// What it is to be.
        plan: ExecPlan,
    },
    /// Its start was asked.
    ExecStartAsked(ExecId),
    /// It runs, or ran.
    ExecStartDone {
        /// Its id.
        exec: ExecId,
        /// Its process.
        process: Incarnation,
    },
    /// It could not be started.
    ExecStartFailed(ExecId),
    /// Its removal was asked.
    ExecDeleteAsked(ExecId),
    /// A signal was asked.
    KillAsked {
        /// To whom.
        who: Who,
        /// Its number.
        signal: u32,
        /// To everything in the container.
        all: bool,
    },
    /// The sending came to an end, one way or the other.
    KillDone {
        /// To whom.
        who: Who,
        /// Its number.
        signal: u32,
    },
    /// A registered process ended.
    Exited {
        /// Which.
        who: Who,
        /// How.
        exit: Exit,
    },
    /// After init's end: the rest of the container is gone, or as gone as the
    /// deadline allowed.
    RestGone,
    /// The streams of an ended process are drained, or their time is up.
    Drained(Who),
    /// Init's end has waited long enough for its execs.
    Overdue,
    /// The container's cgroup was looked at and stands still, or does not: others
    /// than this shim may freeze and thaw it.
    SeenFrozen(bool),
    /// The OOM counter of the container's cgroup stands here.
    Oom {
        /// Kills since the cgroup was made.
        count: u64,
    },
    /// containerd has taken all events up to this one.
    Acked {
        /// Its place.
        seq: u64,
    },
    /// Shutdown was asked.
    ShutdownAsked,
}

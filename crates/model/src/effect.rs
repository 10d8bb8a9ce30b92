//! Everything a decision may ask for. Effects are given up only by
//! [`Step::commit`](crate::Step::commit), after the record is down.

use crate::phase::{Plan, Verb};
use crate::{ExecId, Incarnation, Who};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make the container; ends in `CreateDone` or `CreateFailed`.
    Create(Box<Plan>),
    /// Carry the verb out; ends in `Done` or `Failed`.
    Run(Verb),
    /// Start the exec; ends in `ExecStartDone` or `ExecStartFailed`.
    StartExec(ExecId),
    /// Send a signal; ends in `KillDone`.
    Signal {
        /// To whom.
        who: Who,
        /// To which process exactly.
        process: Incarnation,
        /// Its number.
        signal: u32,
        /// To everything in the container.
        all: bool,
    },
    /// Kill a process that came up after its container's init had ended.
    Discard {
        /// The exec it would have been.
        exec: ExecId,
        /// Its process.
        process: Incarnation,
    },
    /// Kill whatever else lives in the container; ends in `RestGone`.
    KillRest,
    /// Drain the streams of an ended process; ends in `Drained`.
    Drain(Who),
    /// Let `Overdue` happen after the exit deadline.
    ArmOverdue,
    /// Close all streams of the process and let go of its exit record.
    Release(Who),
    /// Answer the Create under way.
    AnswerCreate,
    /// Answer the verb under way.
    AnswerVerb(Verb),
    /// Answer the start of the exec.
    AnswerExecStart(ExecId),
    /// Answer every Wait on the process.
    AnswerWaiters(Who),
    /// There is something in the outbox.
    Publish,
    /// Leave: flush, tell the reaper that this is the end, answer, exit.
    Leave,
}

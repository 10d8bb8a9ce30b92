//! What containerd is told: the task events, numbered, in order.

use serde::{Deserialize, Serialize};

use crate::{ExecId, Exit, Moment, Mount, Stdio, Who};

/// One task event, without the container id every one of them carries.
/// Field for field `containerd.events.Task*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskEvent {
    /// `/tasks/create`
    Create {
        /// Bundle path.
        bundle: String,
        /// The mounts of the request.
        rootfs: Vec<Mount>,
        /// The streams of the request.
        stdio: Stdio,
        /// Checkpoint directory or empty.
        checkpoint: String,
        /// Init's pid; 0 for a restore that has not been started.
        pid: u32,
    },
    /// `/tasks/start`
    Start {
        /// Init's pid.
        pid: u32,
    },
    /// `/tasks/exec-added`
    ExecAdded {
        /// Which exec.
        exec: ExecId,
    },
    /// `/tasks/exec-started`
    ExecStarted {
        /// Which exec.
        exec: ExecId,
        /// Its pid.
        pid: u32,
    },
    /// `/tasks/oom`
    Oom,
    /// `/tasks/paused`
    Paused,
    /// `/tasks/resumed`
    Resumed,
    /// `/tasks/exit`
    Exit {
        /// Init or an exec.
        who: Who,
        /// Its pid.
        pid: u32,
        /// How and when.
        exit: Exit,
    },
    /// `/tasks/delete`, for init only.
    Delete {
        /// Init's pid.
        pid: u32,
        /// How and when it ended.
        exit: Exit,
    },
}

impl TaskEvent {
    /// Whether the outbox may drop it, counted, when it is full. Init's own
    /// story may never be dropped.
    pub fn droppable(&self) -> bool {
        match self {
            TaskEvent::ExecAdded { .. }
            | TaskEvent::ExecStarted { .. }
            | TaskEvent::Exit {
                who: Who::Exec(_), ..
            }
            | TaskEvent::Paused
            | TaskEvent::Resumed => true,
            TaskEvent::Create { .. }
            | TaskEvent::Start { .. }
            | TaskEvent::Oom
            | TaskEvent::Exit { who: Who::Init, .. }
            | TaskEvent::Delete { .. } => false,
        }
    }
}

/// An event with its place in the order and the time it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Place in the task's order, from 1.
    pub seq: u64,
    /// When it happened; kept however late it is delivered.
    pub at: Moment,
    /// What happened.
    pub event: TaskEvent,
}

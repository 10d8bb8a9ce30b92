//! What `State`, `Wait` and `Pids`' labels read off a task. Nothing here
//! asks the host: these answers come from memory.

use std::collections::BTreeMap;

use crate::phase::{ExecPhase, Phase, Task, Verb};
use crate::request::{Shown, State};
use crate::step::{no_exec, not_created};
use crate::{Because, ExecId, Exit, Moment, Refusal, Status, Who};

/// The answer to `State` for init or an exec.
pub fn state(task: &Task, id: &str, who: &Who) -> Result<State, Refusal> {
    let standing = &task.standing;
    let Some(plan) = task.plan.as_deref() else {
        return Err(not_created());
    };
    // What init shows, and whether everything in the container stands still.
    let (shown, exit, frozen) = match (&standing.phase, standing.busy) {
        (Phase::Empty | Phase::Creating | Phase::Deleted { .. }, _) => {
            return Err(not_created());
        }
        (Phase::Created { .. }, _) => (Shown::Created, None, None),
        (Phase::Running { .. }, Some(Verb::Pause)) => (Shown::Pausing, None, Some(Shown::Pausing)),
        (Phase::Running { .. }, _) => (Shown::Running, None, None),
        (Phase::Paused { .. }, _) => (Shown::Paused, None, Some(Shown::Paused)),
        (Phase::Stopped { .. }, _) if standing.lingers() => (Shown::Running, None, None),
        (Phase::Stopped { exit, .. }, _) => (Shown::Stopped, Some(*exit), None),
    };
    match who {
        Who::Init => Ok(State {
            id: id.to_owned(),
            bundle: plan.create.bundle.clone(),
            pid: standing.phase.init().map_or(0, |init| init.pid),
            shown,
            stdio: plan.create.stdio.clone(),
            exit,
        }),
        Who::Exec(exec) => {
            let (Some(found), Some(asked)) = (standing.execs.get(exec), task.exec_plans.get(exec))
            else {
                return Err(no_exec(exec));
            };
            let (shown, exit) = match &found.phase {
                ExecPhase::Added | ExecPhase::Starting | ExecPhase::Failed => {
                    (Shown::Created, None)
                }
                ExecPhase::Running { .. } => (frozen.unwrap_or(Shown::Running), None),
                ExecPhase::Stopped { exit, .. } => (Shown::Stopped, Some(*exit)),
            };
            Ok(State {
                id: exec.as_str().to_owned(),
                bundle: plan.create.bundle.clone(),
                pid: found.pid,
                shown,
                stdio: asked.stdio.clone(),
                exit,
            })
        }
    }
}

/// The pids of execs that run, by pid.
pub fn exec_pids(task: &Task) -> BTreeMap<u32, ExecId> {
    let running = |phase: &ExecPhase| matches!(phase, ExecPhase::Running { .. });
    let execs = task.standing.execs.iter();
    execs
        .filter(|(_, exec)| running(&exec.phase))
        .map(|(id, exec)| (exec.pid, id.clone()))
        .collect()
}

/// The end of a process as Wait would tell it now, or `None` while it must
/// still wait.
pub fn waited(task: &Task, who: &Who, at: Moment) -> Result<Option<Exit>, Refusal> {
    match who {
        Who::Init => match &task.standing.phase {
            Phase::Empty | Phase::Creating => Err(not_created()),
            Phase::Created { .. } | Phase::Running { .. } | Phase::Paused { .. } => Ok(None),
            Phase::Stopped { exit, told, .. } => Ok(told.then_some(*exit)),
            Phase::Deleted { exit, .. } => Ok(Some(*exit)),
        },
        Who::Exec(exec) => match task.standing.execs.get(exec).map(|exec| &exec.phase) {
            None if matches!(task.standing.phase, Phase::Empty | Phase::Creating) => {
                Err(not_created())
            }
            None => Err(no_exec(exec)),
            Some(ExecPhase::Added) if matches!(task.standing.phase, Phase::Deleted { .. }) => {
                Err(no_exec(exec))
            }
            Some(ExecPhase::Added | ExecPhase::Starting | ExecPhase::Running { .. }) => Ok(None),
            Some(ExecPhase::Failed) => Ok(Some(Exit {
                status: Status::Unknown(Because::NeverRan),
                at,
            })),
            Some(ExecPhase::Stopped { exit, told, .. }) => Ok(told.then_some(*exit)),
        },
    }
}

//! What `State`, `Pids`' labels and `Connect` read off a task. Nothing here
//! asks the host: these answers come from memory.

use std::collections::BTreeMap;

use crate::phase::{ExecPhase, Phase, Task, Verb};
use crate::request::{Shown, State};
use crate::{ExecId, Kind, Refusal, Who};

/// The answer to `State` for init or an exec.
pub fn state(task: &Task, id: &str, who: &Who) -> Result<State, Refusal> {
    let standing = &task.standing;
    let Some(plan) = task.plan.as_deref() else {
        return Err(Refusal::new(Kind::NotFound, "container not created"));
    };
    // What init shows, and whether everything in the container stands still.
    let (shown, exit, frozen) = match (&standing.phase, standing.busy) {
        (Phase::Empty | Phase::Creating | Phase::Deleted { .. }, _) => {
            return Err(Refusal::new(Kind::NotFound, "container not created"));
        }
        (Phase::Created { .. }, _) => (Shown::Created, None, None),
        (Phase::Running { .. }, Some(Verb::Pause)) => (Shown::Pausing, None, Some(Shown::Pausing)),
        (Phase::Running { .. }, _) => (Shown::Running, None, None),
        (Phase::Paused { .. }, _) => (Shown::Paused, None, Some(Shown::Paused)),
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
                return Err(Refusal::new(
                    Kind::NotFound,
                    format!("exec {exec} does not exist"),
                ));
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

//! What a shim that died has left undone, read off its journal: everything
//! that was decided and not seen to end. Whoever takes over sets it going
//! again; each of these may have happened already, wholly or partly, so each
//! is carried out by asking the host first.

use crate::phase::{Exec, ExecPhase, Phase, Signalling, Task};
use crate::step::SIGNALLING_MAX;
use crate::{Effect, Who};

/// `SIGKILL`, the one signal that may be sent twice.
const KILL: u32 = 9;

/// The effects that were given up and whose end is not recorded, in the order
/// in which they are to be set going. Any other signal than SIGKILL is not
/// among them: nobody can say whether it was delivered.
pub fn outstanding(task: &Task) -> Vec<Effect> {
    let now = &task.standing;
    let mut effects = Vec::new();
    if now.phase == Phase::Creating
        && let Some(plan) = &task.plan
    {
        effects.push(Effect::Create(plan.clone()));
    }
    for signalling in now.signalling.iter().filter(|s| s.signal == KILL) {
        let process = match &signalling.who {
            Who::Init => now.phase.live_init(),
            Who::Exec(exec) => now.execs.get(exec).and_then(running),
        };
        if let Some(process) = process {
            effects.push(Effect::Signal {
                who: signalling.who.clone(),
                process: process.clone(),
                signal: signalling.signal,
                all: signalling.all,
            });
        }
    }
    effects.extend(now.verbs().map(Effect::Run));
    for (id, exec) in &now.execs {
        match &exec.phase {
            ExecPhase::Starting => effects.push(Effect::StartExec(id.clone())),
            ExecPhase::Stopped { told: false, .. } => {
                effects.push(Effect::Drain(Who::Exec(id.clone())));
            }
            ExecPhase::Added
            | ExecPhase::Failed
            | ExecPhase::Running { .. }
            | ExecPhase::Stopped { told: true, .. } => {}
        }
    }
    if let Phase::Stopped { told: false, .. } = now.phase {
        if !now.rest_gone {
            effects.push(Effect::KillRest);
        }
        if !now.drained {
            effects.push(Effect::Drain(Who::Init));
        }
        effects.push(Effect::ArmOverdue);
    }
    if !task.outbox.is_empty() {
        effects.push(Effect::Publish);
    }
    if now.ending {
        effects.push(Effect::Leave);
    }
    effects
}

/// The pid a Start of init that was begun and is over is answered with; `None` if it has
/// failed, and is to be refused as it was.
pub fn started(task: &Task) -> Option<u32> {
    let now = &task.standing;
    match &now.phase {
        Phase::Running { init } | Phase::Paused { init } => Some(init.pid),
        Phase::Stopped { init, .. } if now.started => init.as_ref().map(|init| init.pid),
        Phase::Stopped { .. }
        | Phase::Empty
        | Phase::Creating
        | Phase::Created { .. }
        | Phase::Deleted { .. } => None,
    }
}

/// Signals of which nobody can say any more whether they were delivered, and of which
/// nobody will ask: the request is too long ago. None while there is room for them.
pub fn forgotten(task: &Task) -> Vec<Signalling> {
    let now = &task.standing;
    if now.signalling.len() < SIGNALLING_MAX / 2 {
        return Vec::new();
    }
    let asked = |s: &Signalling| s.asked.is_some_and(|request| now.took(request));
    let open = now.signalling.iter();
    open.filter(|s| s.signal != KILL && !asked(s))
        .cloned()
        .collect()
}

fn running(exec: &Exec) -> Option<&crate::Incarnation> {
    match &exec.phase {
        ExecPhase::Running { process } => Some(process),
        ExecPhase::Added | ExecPhase::Starting | ExecPhase::Failed | ExecPhase::Stopped { .. } => {
            None
        }
    }
}

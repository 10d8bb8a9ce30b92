//! What execs were asked to be, beside the journal: a file for each, from its
//! Exec to its Delete. It is there before the journal names it, and goes after
//! the journal has forgotten it; who takes over removes what is named no more.
//! What is in it no other file of ours has.

use std::path::PathBuf;

use vigil_journal::asked::{self, Asked, AskedError, Whose};
use vigil_model::{ExecId, ExecPhase, ExecPlan, Kind, Refusal, Stdio, Task};

use crate::jobs;
use crate::owner::Place;

fn whose<'a>(place: &'a Place, exec: &'a ExecId) -> Whose<'a> {
    Whose {
        namespace: place.namespace.as_str(),
        id: place.id.as_str(),
        exec: exec.as_str(),
    }
}

fn path(place: &Place, exec: &ExecId) -> PathBuf {
    place.bundle.join(asked::name(exec.as_str()))
}

fn refusal(error: &AskedError) -> Refusal {
    if error.full() {
        let says = vigil_host::chain(error);
        let says = format!("{says}; the file system of the bundle needs more room");
        return Refusal::new(Kind::ResourceExhausted, says);
    }
    jobs::refusal(error)
}

/// The file an exec will have; nothing is written.
pub(crate) fn file(
    place: &Place,
    exec: &ExecId,
    stdio: &Stdio,
    spec: &[u8],
) -> Result<Asked, Refusal> {
    let stdio = serde_json::to_vec(stdio)
        .map_err(|error| Refusal::new(Kind::Unknown, format!("the streams of {exec}: {error}")))?;
    Ok(Asked::new(whose(place, exec), &stdio, spec))
}

/// Writes it.
pub(crate) fn write(place: &Place, exec: &ExecId, file: &Asked) -> Result<(), Refusal> {
    let written = file.write(&path(place, exec));
    written.map_err(|error| refusal(&error))
}

/// The spec of one that is to be started.
pub(crate) fn spec(place: &Place, exec: &ExecId, plan: &ExecPlan) -> Result<String, Refusal> {
    let Some(sum) = plan.file else {
        return Ok(plan.spec.clone());
    };
    let read = asked::read(&path(place, exec), whose(place, exec), sum);
    let (_, spec) = read.map_err(|error| refusal(&error))?;
    String::from_utf8(spec)
        .map_err(|_| Refusal::new(Kind::Unknown, format!("the spec of {exec} is not UTF-8")))
}

/// Its start is over: nobody needs the spec any more.
pub(crate) fn started(place: &Place, exec: &ExecId, plan: Option<&ExecPlan>) {
    if let Some(sum) = plan.and_then(|plan| plan.file)
        && let Err(error) = asked::forget_spec(&path(place, exec), whose(place, exec), sum)
    {
        log::warn!("the spec stays: {}", vigil_host::chain(&error));
    }
}

/// It is deleted, and so is what it was asked to be.
pub(crate) fn deleted(place: &Place, exec: &ExecId) {
    if let Err(error) = asked::remove(&path(place, exec)) {
        log::warn!("{}", vigil_host::chain(&error));
    }
}

/// At a takeover: reads again what the journal leaves to the files, and does
/// what the one before may not have come to.
pub(crate) fn know_again(place: &Place, task: &mut Task) {
    for (exec, plan) in &mut task.exec_plans {
        let Some(sum) = plan.file else { continue };
        let read = asked::read_stdio(&path(place, exec), whose(place, exec), sum);
        match read {
            Ok(stdio) => match serde_json::from_slice(&stdio) {
                Ok(stdio) => plan.stdio = stdio,
                Err(error) => log::error!("the streams of exec {exec} are not known: {error}"),
            },
            Err(error) => log::error!(
                "the streams of exec {exec} are not known: {}",
                vigil_host::chain(&error)
            ),
        }
        let found = task.standing.execs.get(exec).map(|found| &found.phase);
        if !matches!(found, Some(ExecPhase::Added | ExecPhase::Starting)) {
            started(place, exec, Some(plan));
        }
    }
    let names = match std::fs::read_dir(&place.bundle) {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()),
        Err(error) => {
            log::warn!("{}: {error}", place.bundle.display());
            return;
        }
    };
    for name in names {
        let exec = asked::exec_of(&name).and_then(|exec| ExecId::new(exec).ok());
        if let Some(exec) = exec.filter(|exec| !task.exec_plans.contains_key(exec)) {
            deleted(place, &exec);
        }
    }
}

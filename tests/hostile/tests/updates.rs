//! An update that hangs keeps nobody waiting who can do without it, neither the client
//! of the shim that began it nor that of its successor.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use vigil_faults::world::unified;
use vigil_hostile::{FaultyRunc, Pair, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::Process;
use vigil_lab::{CallError, Code, Kit, Spec, by, until};

/// containerd gives a Delete 5 s where it cleans up; we promise 4.
const DELETE: f64 = 4.0;

/// A container, running or only created, with an update under way that commits `fault`.
fn updating(
    kit: &Kit,
    fault: &str,
    start: bool,
) -> Result<(Container, JoinHandle<Result<(), CallError>>)> {
    let container = kit.prepared(&Spec::args(&["sleep", "1000"]), Stdio::Output)?;
    let runc = FaultyRunc::new(kit.scratch.dir(), "update", fault)?;
    let mut request = container.bundle.create_request();
    request.options = Some(runc.options()).into();
    container.task().create(&request)?;
    if start {
        container.task().start(&container.id, "")?;
    }
    let (task, id) = (container.task().patient(60.0), container.id.clone());
    let limits = serde_json::json!({"pids": {"limit": 77}});
    let asked = std::thread::spawn(move || task.update(&id, &limits));
    until("runc update to be under way", by(10.0), || {
        let all = Process::marked(kit.scratch.mark());
        let at_it = |p: &Process| p.cmdline.contains("faulty-runc") && p.cmdline.contains("update");
        all.iter().any(at_it).then_some(())
    })?;
    Ok((container, asked))
}

/// The update was refused because its container went.
fn ended(asked: JoinHandle<Result<(), CallError>>) -> Result<()> {
    match asked.join().expect("the asking thread") {
        // Not found: it was asked again of a successor when all was over.
        Err(error) if error.is(Code::FailedPrecondition) || error.is(Code::NotFound) => Ok(()),
        other => bail!("the update was answered {other:?}"),
    }
}

fn nobody_updates(kit: &Kit) -> Result<()> {
    let all = Process::marked(kit.scratch.mark());
    let left = all.iter().find(|p| p.cmdline.contains("faulty-runc"));
    ensure!(left.is_none(), "there is {left:?}");
    Ok(())
}

#[test]
fn a_delete_ends_the_update_of_what_has_ended() {
    trial(60, |kit| {
        let (container, asked) = updating(kit, "hangs-deaf", true)?;
        let (task, id) = (container.task(), &container.id);
        task.patient(DELETE).kill(id, "", 9, false)?;
        let told = task.patient(DELETE).wait(id, "").context("Wait")?;
        ensure!(told.exit_status == 137, "{told:?}");
        let deleted = task.patient(DELETE).delete(id, "").context("Delete")?;
        ensure!(deleted.exit_status == 137, "{deleted:?}");
        nobody_updates(kit)?;
        ended(asked)
    });
}

#[test]
fn a_delete_ends_the_update_of_what_was_never_started() {
    trial(60, |kit| {
        let (container, asked) = updating(kit, "hangs-deaf", false)?;
        let task = container.task().patient(DELETE);
        task.delete(&container.id, "").context("Delete")?;
        nobody_updates(kit)?;
        ended(asked)
    });
}

#[test]
fn a_successor_pauses_beside_the_update_and_ends_it_to_delete() {
    trial(90, |kit| {
        let (container, asked) = updating(kit, "hangs-deaf", true)?;
        let pair = Pair::of(&container.shim)?;
        pair.signal(pair.shim, 9)?;
        let (task, id) = (container.task().patient(DELETE), &container.id);
        for _ in 0..2 {
            task.pause(id).context("Pause")?;
            ensure!(task.state(id, "")?.status.value() == 4, "not PAUSED");
            task.resume(id).context("Resume")?;
            ensure!(task.state(id, "")?.status.value() == 2, "not RUNNING");
        }
        task.kill(id, "", 9, false)?;
        task.wait(id, "").context("Wait")?;
        task.delete(id, "").context("Delete")?;
        nobody_updates(kit)?;
        ended(asked)
    });
}

fn limit(kit: &Kit, id: &str) -> Result<String> {
    let hierarchy = if unified() { "" } else { "pids" };
    let file = Path::new("/sys/fs/cgroup").join(hierarchy);
    let file = file.join(kit.scratch.mark()).join(id).join("pids.max");
    Ok(std::fs::read_to_string(file)?.trim().to_owned())
}

/// Paused while the update is under way, which then ends: by its shim, or by the next.
fn a_pause_stays(kit: &Kit, fault: &str, killed: bool) -> Result<()> {
    let (container, asked) = updating(kit, fault, true)?;
    let pair = Pair::of(&container.shim)?;
    if killed {
        pair.signal(pair.shim, 9)?;
    }
    let (task, id) = (container.task().patient(DELETE), &container.id);
    task.pause(id).context("Pause")?;
    std::fs::write(kit.scratch.path("go"), "")?;
    asked.join().expect("the asking thread").context("Update")?;
    ensure!(task.state(id, "")?.status.value() == 4, "not PAUSED");
    ensure!(limit(kit, id)? == "77");
    task.resume(id).context("Resume")?;
    ensure!(task.state(id, "")?.status.value() == 2, "not RUNNING");
    Ok(())
}

#[test]
fn a_pause_beside_an_update_outlives_it() {
    trial(60, |kit| a_pause_stays(kit, "waits-then-done", false));
    trial(60, |kit| a_pause_stays(kit, "waits-then-thaws", false));
}

#[test]
fn an_update_whose_shim_died_is_done_and_a_pause_stays() {
    trial(60, |kit| a_pause_stays(kit, "waits-then-done", true));
}

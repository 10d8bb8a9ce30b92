//! F24: paused and frozen containers. They can be killed, deleted and told the truth of.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_lab::kit::Container;
use vigil_lab::process::Process;
use vigil_lab::{GENEROUS, Kit, Place, Spec, by, until};

use crate::cases;
use crate::rest::{freezer, members, nothing_but_the_pair, out_of_patience, soon};
use crate::watch::Watch;
use crate::world::{nothing_left, scripted, status, unified};

cases! {
    Kit    All f24_kill_9_of_paused "Pause, Kill 9: dead, one exit, 137, nothing left";
    Kit    All f24_kill_15_of_paused "Pause, Kill 15: waits, as the kernel has it, and is delivered at Resume";
    Kit    All f24_delete_of_paused "Pause, Delete: refused at once, and still paused; reading is as fast as ever";
    Kit    All f24_pair_killed_while_paused "Pause, both killed, `delete`: in time, 137, nothing left";
    Kit    All f24_frozen_from_outside "Frozen by somebody else: State says PAUSED, Kill 9 ends it";
    Kit    All f24_nested_frozen "A nested cgroup frozen by the workload: Kill 9 ends it all, Delete leaves nothing";
    Kit    All f24_pause_while_init_ends "Pause while init is ending: paused or refused, never left frozen, the true status";
    Kit    All f24_failed_pause_is_thawed "A Pause that fails leaves nothing frozen";
    Kit    All f24_exec_frozen_kill "An exec in a paused container: killed with it, and told";
    Daemon All f24_containerd_restarts_while_paused "containerd restarts while it is paused: PAUSED then, resumes, ends";
}

/// A shell that answers SIGTERM, once it is there.
fn answering(kit: &Kit) -> Result<Container> {
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done";
    let container = kit.running(&Spec::sh(script))?;
    container.out()?.expect("ready", by(5.0))?;
    Ok(container)
}

fn f24_kill_9_of_paused(kit: &Kit) -> Result<()> {
    let container = answering(kit)?;
    container.task().pause(&container.id)?;
    soon("Kill", || {
        container.task().kill(&container.id, "", 9, false)
    })?
    .context("Kill was refused")?;
    let waited = container.task().patient(5.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    kit.sink.expect("exit", by(5.0))?;
    let story = kit.sink.story();
    ensure!(
        story.iter().filter(|s| *s == "exit").count() == 1,
        "{story:?}"
    );
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f24_kill_15_of_paused(kit: &Kit) -> Result<()> {
    let container = answering(kit)?;
    container.task().pause(&container.id)?;
    soon("Kill", || {
        container.task().kill(&container.id, "", 15, false)
    })?
    .context("Kill was refused")?;
    let early = container.task().patient(0.3).wait(&container.id, "");
    ensure!(
        out_of_patience(&early),
        "it ended while it was paused: {early:?}; {:?}; log: {}",
        kit.sink.story(),
        container.bundle.log_text()
    );
    ensure!(status(&container, "")? == Status::PAUSED);
    container.task().resume(&container.id)?;
    let waited = container.task().patient(5.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 9, "{waited:?}");
    Ok(())
}

fn f24_delete_of_paused(kit: &Kit) -> Result<()> {
    let container = answering(kit)?;
    container.task().pause(&container.id)?;
    let watch = Watch::start(&container)?;
    let deleted = soon("Delete", || container.task().delete(&container.id, ""))?;
    ensure!(deleted.is_none(), "Delete of what is paused: {deleted:?}");
    ensure!(status(&container, "")? == Status::PAUSED);
    soon("Pids", || container.task().pids(&container.id))?.context("Pids")?;
    soon("Stats", || container.task().stats(&container.id))?.context("Stats")?;
    std::thread::sleep(Duration::from_millis(300));
    watch.end()?.brisk()?;
    container.task().resume(&container.id)?;
    container.task().kill(&container.id, "", 15, false)?;
    ensure!(container.exit_status()? == 9);
    Ok(())
}

fn f24_pair_killed_while_paused(kit: &Kit) -> Result<()> {
    let container = answering(kit)?;
    container.task().pause(&container.id)?;
    container.shim.kill_all()?;
    let at = Instant::now();
    let said = container.shim.delete()?.ok()?;
    ensure!(at.elapsed() < GENEROUS, "{:?}", at.elapsed());
    ensure!(
        said.exit_status == 137 && said.pid == container.pid,
        "{said:?}"
    );
    nothing_left(kit, &container.id)
}

fn freeze(group: &Path) -> Result<()> {
    let (file, frozen) = if unified() {
        ("cgroup.freeze", "1")
    } else {
        ("freezer.state", "FROZEN")
    };
    until("it to be frozen", by(10.0), || {
        fs::write(group.join(file), frozen).ok()?;
        is_frozen(group).then_some(())
    })
}

fn is_frozen(group: &Path) -> bool {
    let file = if unified() {
        "cgroup.events"
    } else {
        "freezer.state"
    };
    let now = fs::read_to_string(group.join(file)).unwrap_or_default();
    now.contains("frozen 1") || now.starts_with("FROZEN")
}

fn f24_frozen_from_outside(kit: &Kit) -> Result<()> {
    let container = answering(kit)?;
    freeze(&freezer(kit, &container.id))?;
    let state = soon("State", || container.task().state(&container.id, ""))?.context("State")?;
    ensure!(
        state.status.enum_value() == Ok(Status::PAUSED),
        "State says {:?} of what is frozen",
        state.status
    );
    soon("Kill", || {
        container.task().kill(&container.id, "", 9, false)
    })?
    .context("Kill was refused")?;
    let waited = container.task().patient(5.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f24_nested_frozen(kit: &Kit) -> Result<()> {
    let spec = Spec {
        own_pids: false,
        ..Spec::sh("sleep 1001 & sleep 1000 & wait")
    };
    let container = kit.running(&spec)?;
    let child = until("the child", by(5.0), || {
        let members = members(kit, &container.id);
        members.iter().find(|p| p.cmdline == "sleep 1001").cloned()
    })?;
    let nested = freezer(kit, &container.id).join("a/b");
    fs::create_dir_all(&nested)?;
    fs::write(nested.join("cgroup.procs"), child.pid.to_string())?;
    freeze(&nested)?;
    container.task().kill(&container.id, "", 9, true)?;
    let waited = container.task().patient(5.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    container
        .task()
        .delete(&container.id, "")
        .context("Delete")?;
    ensure!(
        Process::read(child.pid).is_none_or(|p| p.state == 'Z' || p.cmdline != child.cmdline),
        "the frozen child lives"
    );
    nothing_but_the_pair(kit, &container.id)
}

fn f24_pause_while_init_ends(kit: &Kit) -> Result<()> {
    for round in 0..12_u32 {
        let script = format!("sleep 0.0{round:02}; exit 7");
        let container = kit.running(&Spec::sh(&script))?;
        std::thread::sleep(Duration::from_millis(u64::from(round) * 10));
        let paused = container.task().patient(5.0).pause(&container.id);
        if paused.is_ok() {
            // It may have ended in the same moment; then there is nothing to resume.
            let _ = container.task().resume(&container.id);
        }
        let waited = container.task().patient(5.0).wait(&container.id, "")?;
        ensure!(waited.exit_status == 7, "round {round}: {waited:?}");
        container.task().delete(&container.id, "")?;
        nothing_but_the_pair(kit, &container.id)?;
        container.task().shutdown(&container.id)?;
    }
    Ok(())
}

fn f24_failed_pause_is_thawed(kit: &Kit) -> Result<()> {
    // A runc that freezes and then dies; ours asks none.
    let body = "[ \"$verb\" = pause ] && { runc \"$@\"; kill -9 $$; }";
    let (_, options) = scripted(kit, "runc", body)?;
    let container = crate::world::running_under(kit, &Spec::sleeper(), &options)?;
    let paused = container.task().pause(&container.id);
    let frozen = is_frozen(&freezer(kit, &container.id));
    let state = status(&container, "")?;
    ensure!(
        paused.is_ok() == frozen && frozen == (state == Status::PAUSED),
        "Pause: {paused:?}, frozen: {frozen}, State: {state:?}"
    );
    if frozen {
        container.task().resume(&container.id)?;
    }
    container.task().kill(&container.id, "", 9, true)?;
    ensure!(container.exit_status()? == 137);
    Ok(())
}

fn f24_exec_frozen_kill(kit: &Kit) -> Result<()> {
    let container = answering(kit)?;
    kit.exec(&container, "e", &Spec::args(&["sleep", "1000"]))?;
    container.task().start(&container.id, "e")?;
    container.task().pause(&container.id)?;
    soon("Kill", || {
        container.task().kill(&container.id, "e", 9, false)
    })?
    .context("Kill was refused")?;
    container.task().resume(&container.id)?;
    let waited = container.task().patient(5.0).wait(&container.id, "e")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    ensure!(status(&container, "")? == Status::RUNNING);
    Ok(())
}

fn f24_containerd_restarts_while_paused(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    place.containerd.ctr(&["tasks", "pause", "c"])?;
    place.expect_status("c", "PAUSED")?;
    place.containerd.stop(9)?;
    place.containerd.launch()?;
    place.expect_status("c", "PAUSED")?;
    place.containerd.ctr(&["tasks", "resume", "c"])?;
    place.expect_status("c", "RUNNING")?;
    place.containerd.ctr(&["tasks", "pause", "c"])?;
    place.end("c")
}

//! F03: one verb of runc hangs. Everything else is answered as ever, SIGKILL works, and
//! the verb itself ends at its deadline with words.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use containerd_shim_protos::api::Status;
use protobuf::well_known_types::any::Any;
use serde_json::json;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{CallError, Code, GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{
    another_connection, create, nothing_but_the_pair, out_of_patience, prepared_with, soon,
};
use crate::watch::Watch;
use crate::world::{created_under, running_under, scripted, status};

cases! {
    Kit All  f03_create_hangs "runc create hangs, deaf: reading and Kill answer, then DEADLINE_EXCEEDED names it";
    Kit All  f03_start_hangs "runc start hangs: reading answers, SIGKILL ends init, Start comes back";
    Kit All  f03_exec_hangs "runc exec hangs: reading, other execs and SIGKILL work; init's exit is told";
    Kit All  f03_delete_hangs "runc delete hangs: State answers, Delete within 4 s";
    Kit All  f03_update_hangs "runc update hangs: reading, pause and SIGKILL work";
    Kit All f03_checkpoint_hangs "runc checkpoint hangs: reading and SIGKILL work";
    Kit All f03_restore_hangs "runc restore hangs: reading and Kill answer, Start ends with words, nothing is left";
    Kit All  f03_kill_pause_ps_hang "runc kill, pause, resume, ps, state, events hang: Kill, Pause, Resume, Pids, Stats work";
    Kit All  f03_hook_sleeps "A createRuntime hook that sleeps for ever: ended with its runc, nothing left";
    Kit All  f03_sibling "A sibling's runc hangs: create to delete of another take no longer";
}

/// Deadlines of the cases below, in milliseconds: enough to look around in meanwhile.
const DEADLINES: &[(&str, &str)] = &[
    ("VIGIL_DEADLINE_CREATE_MS", "3000"),
    ("VIGIL_DEADLINE_START_MS", "3000"),
    ("VIGIL_DEADLINE_EXEC_MS", "3000"),
    ("VIGIL_DEADLINE_UPDATE_MS", "3000"),
    ("VIGIL_DEADLINE_CHECKPOINT_MS", "3000"),
    ("VIGIL_DEADLINE_RESTORE_MS", "3000"),
];

/// A runc that is deaf and does not come back from `verbs`, a pattern of sh.
fn hanging(kit: &Kit, verbs: &str) -> Result<Any> {
    let body = format!(
        "case $verb in {verbs}) trap '' TERM; : >$dir/hangs; while :; do sleep 0.2; done ;; esac"
    );
    Ok(scripted(kit, "hanging", &body)?.1)
}

fn hangs(kit: &Kit) -> Result<()> {
    let mark = kit.scratch.path("hanging/hangs");
    until("runc to hang", by(10.0), || mark.exists().then_some(()))
}

fn under(kit: &Kit, spec: &Spec, options: &Any) -> Result<Container> {
    let mut container = prepared_with(kit, spec, Stdio::Output, DEADLINES)?;
    create(&mut container, Some(options))?;
    Ok(container)
}

/// What is read is answered within a second.
fn read(container: &Container) -> Result<()> {
    let (task, id) = (another_connection(container)?.patient(5.0), &container.id);
    soon("State", || task.state(id, ""))?;
    soon("Pids", || task.pids(id))?;
    soon("Stats", || task.stats(id))?;
    soon("Connect", || task.connect_task(id))?;
    let state = soon("State, again", || task.state(id, ""))?;
    state.map(drop).context("State has no answer")
}

/// The answer to the verb that hung: DEADLINE_EXCEEDED, naming it.
fn overdue<T: std::fmt::Debug>(
    answer: ScopedJoinHandle<'_, Result<T, CallError>>,
    verb: &str,
) -> Result<()> {
    match answer.join().map_err(|_| anyhow!("it panicked"))? {
        Err(error) if error.is(Code::DeadlineExceeded) => {
            ensure!(
                error.to_string().contains(verb),
                "{verb:?} is not named: {error}"
            );
            Ok(())
        }
        other => bail!("{verb}: {other:?}"),
    }
}

fn f03_create_hangs(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "create")?;
    let container = prepared_with(kit, &Spec::sleeper(), Stdio::Output, DEADLINES)?;
    let mut request = container.bundle.create_request();
    request.options = Some(options).into();
    let task = container.task().patient(20.0);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| task.create(&request));
        hangs(kit)?;
        let second = another_connection(&container)?.patient(5.0);
        let id = &container.id;
        soon("State", || second.state(id, ""))?;
        soon("Pids", || second.pids(id))?;
        soon("Connect", || second.connect_task(id))?;
        soon("Kill", || second.kill(id, "", 9, true))?;
        overdue(asked, "create")
    })?;
    nothing_but_the_pair(kit, &container.id)
}

fn f03_start_hangs(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "start")?;
    let container = under(kit, &Spec::sleeper(), &options)?;
    let task = container.task().patient(20.0);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| task.start(&container.id, ""));
        hangs(kit)?;
        let watch = Watch::start(&container)?;
        read(&container)?;
        let second = another_connection(&container)?;
        let killed = soon("Kill", || second.kill(&container.id, "", 9, true))?;
        ensure!(killed.is_some(), "SIGKILL was refused");
        let at = Instant::now();
        until("init to die", by(5.0), || {
            (!alive(i32::try_from(container.pid).ok()?)).then_some(())
        })?;
        let waited = second.patient(10.0).wait(&container.id, "")?;
        ensure!(waited.exit_status == 137, "{waited:?}");
        ensure!(at.elapsed() < GENEROUS, "{:?}", at.elapsed());
        watch.end()?.brisk()?;
        let started = asked.join().map_err(|_| anyhow!("it panicked"))?;
        ensure!(started.is_err(), "Start of what was killed: {started:?}");
        Ok(())
    })?;
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f03_exec_hangs(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "exec")?;
    let container = under(kit, &Spec::sleeper(), &options)?;
    container.start()?;
    kit.exec(&container, "stuck", &Spec::sh("exit 1"))?;
    let task = container.task().patient(20.0);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| task.start(&container.id, "stuck"));
        hangs(kit)?;
        let watch = Watch::start(&container)?;
        read(&container)?;
        let second = another_connection(&container)?;
        let killed = soon("Kill", || second.kill(&container.id, "", 9, false))?;
        ensure!(killed.is_some(), "SIGKILL was refused");
        until("State to say so", by(2.0), || {
            (status(&container, "").ok()? == Status::STOPPED).then_some(())
        })?;
        // Told in a few seconds, whatever becomes of the exec.
        let waited = second.patient(8.0).wait(&container.id, "")?;
        ensure!(waited.exit_status == 137, "{waited:?}");
        watch.end()?.brisk()?;
        let started = asked.join().map_err(|_| anyhow!("it panicked"))?;
        ensure!(started.is_err(), "Start of the exec: {started:?}");
        Ok(())
    })?;
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f03_delete_hangs(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "delete")?;
    let container = running_under(kit, &Spec::sh("exit 4"), &options)?;
    ensure!(container.exit_status()? == 4);
    let task = container.task().patient(30.0);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let at = Instant::now();
            (task.delete(&container.id, ""), at.elapsed())
        });
        hangs(kit)?;
        let watch = Watch::start(&container)?;
        let second = another_connection(&container)?;
        let state = soon("State", || second.state(&container.id, ""))?;
        ensure!(state.is_some_and(|s| s.exit_status == 4));
        let (answer, took) = asked.join().map_err(|_| anyhow!("it panicked"))?;
        watch.end()?.brisk()?;
        ensure!(took < GENEROUS, "Delete took {took:?}");
        let answer = answer.context("Delete")?;
        ensure!(answer.exit_status == 4, "{answer:?}");
        Ok(())
    })?;
    nothing_but_the_pair(kit, &container.id)
}

fn f03_checkpoint_hangs(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "checkpoint")?;
    let container = under(kit, &Spec::sleeper(), &options)?;
    container.start()?;
    let image = kit.scratch.path("image");
    fs::create_dir(&image)?;
    let task = container.task().patient(20.0);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| task.checkpoint(&container.id, &image.to_string_lossy()));
        hangs(kit)?;
        let watch = Watch::start(&container)?;
        read(&container)?;
        let second = another_connection(&container)?.patient(8.0);
        let killed = soon("Kill", || second.kill(&container.id, "", 9, true))?;
        ensure!(killed.is_some(), "SIGKILL was refused");
        let waited = second.wait(&container.id, "")?;
        ensure!(waited.exit_status == 137, "{waited:?}");
        watch.end()?.brisk()?;
        let done = asked.join().map_err(|_| anyhow!("it panicked"))?;
        ensure!(done.is_err(), "Checkpoint: {done:?}");
        Ok(())
    })?;
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f03_restore_hangs(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "restore")?;
    let container = prepared_with(kit, &Spec::sleeper(), Stdio::Output, DEADLINES)?;
    let image = kit.scratch.path("image");
    fs::create_dir(&image)?;
    let mut request = container.bundle.create_request();
    request.options = Some(options).into();
    request.checkpoint = image.to_string_lossy().into_owned();
    container.task().create(&request).context("Create")?;
    let task = container.task().patient(20.0);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| task.start(&container.id, ""));
        hangs(kit)?;
        let second = another_connection(&container)?.patient(5.0);
        soon("State", || second.state(&container.id, ""))?;
        soon("Pids", || second.pids(&container.id))?;
        soon("Kill", || second.kill(&container.id, "", 9, true))?;
        overdue(asked, "restore")
    })?;
    container
        .task()
        .delete(&container.id, "")
        .context("Delete")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f03_update_hangs(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "update")?;
    let container = under(kit, &Spec::sleeper(), &options)?;
    container.start()?;
    let task = container.task().patient(20.0);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| task.update(&container.id, &json!({ "pids": { "limit": 50 } })));
        hangs(kit)?;
        let watch = Watch::start(&container)?;
        read(&container)?;
        let second = another_connection(&container)?.patient(8.0);
        let killed = soon("Kill", || second.kill(&container.id, "", 9, true))?;
        ensure!(killed.is_some(), "SIGKILL was refused");
        let waited = second.wait(&container.id, "")?;
        ensure!(waited.exit_status == 137, "{waited:?}");
        watch.end()?.brisk()?;
        let updated = asked.join().map_err(|_| anyhow!("it panicked"))?;
        ensure!(updated.is_err(), "Update: {updated:?}");
        Ok(())
    })?;
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f03_kill_pause_ps_hang(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "kill|pause|resume|ps|state|events")?;
    let script = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.02; done";
    let container = running_under(kit, &Spec::sh(script), &options)?;
    container.out()?.expect("ready", by(5.0))?;
    let (task, id) = (container.task().patient(5.0), &container.id);
    let done = |what: &str, answer: Option<()>| answer.with_context(|| format!("{what} refused"));
    done("Pause", soon("Pause", || task.pause(id))?)?;
    ensure!(status(&container, "")? == Status::PAUSED);
    read(&container)?;
    done("Resume", soon("Resume", || task.resume(id))?)?;
    done("Kill", soon("Kill", || task.kill(id, "", 15, false))?)?;
    let waited = task.wait(id, "")?;
    ensure!(waited.exit_status == 143, "{waited:?}");
    task.delete(id, "")?;
    nothing_but_the_pair(kit, id)
}

fn f03_hook_sleeps(kit: &Kit) -> Result<()> {
    let hook = kit.scratch.path("hook");
    fs::write(
        &hook,
        "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.2; done\n",
    )?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let spec = Spec {
        extra: json!({ "hooks": { "createRuntime": [{ "path": hook }] } }),
        ..Spec::sleeper()
    };
    let container = prepared_with(kit, &spec, Stdio::Output, DEADLINES)?;
    let at = Instant::now();
    let answer = container
        .task()
        .patient(20.0)
        .create(&container.bundle.create_request());
    let took = at.elapsed();
    match &answer {
        Err(error) if error.is(Code::DeadlineExceeded) => {}
        other => bail!("Create: {other:?}"),
    }
    ensure!(took < GENEROUS, "Create took {took:?}");
    let name = hook.display().to_string();
    until("the hook to be gone", by(3.0), || {
        (!Process::all().iter().any(|p| p.cmdline.contains(&name))).then_some(())
    })?;
    nothing_but_the_pair(kit, &container.id)
}

fn f03_sibling(kit: &Kit) -> Result<()> {
    let options = hanging(kit, "start")?;
    let stuck = created_under(kit, &Spec::sleeper(), &options)?;
    let task = stuck.task().patient(1.0);
    ensure!(
        out_of_patience(&task.start(&stuck.id, "")),
        "it does not hang"
    );
    let at = Instant::now();
    let other = kit.running(&Spec::sh("exit 2"))?;
    ensure!(other.exit_status()? == 2);
    other.task().delete(&other.id, "")?;
    ensure!(at.elapsed() < GENEROUS, "{:?}", at.elapsed());
    soon("Kill", || stuck.task().kill(&stuck.id, "", 9, true))?.context("SIGKILL was refused")?;
    stuck.shim.kill_all()?;
    stuck.shim.delete()?.ok().map(drop)
}

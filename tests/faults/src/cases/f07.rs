//! F07: runc is killed at some moment of create, or its client is gone. Nothing may be
//! left of it, and the same id can be created at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Status;
use serde_json::json;
use vigil_hostile::{Trace, as_ever};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::{CallError, GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{another_connection, freezer, out_of_patience};
use crate::world::{runc_state, scripted, status};

cases! {
    Kit All  f07_killed_before_its_cgroup "runc create is SIGKILLed before it makes anything";
    Kit All  f07_killed_with_cgroup "runc create is SIGKILLed as soon as its cgroup is there";
    Kit All  f07_killed_in_the_hook "runc create is SIGKILLed by its createRuntime hook: cgroup, init, no state.json";
    Kit All  f07_killed_with_state "runc create is SIGKILLed as soon as state.json is there";
    Kit All  f07_killed_without_pid_file "runc create is SIGKILLed when all is made but the pid file";
    Kit All  f07_killed_when_done "runc create is SIGKILLed when all is made";
    Kit All  f07_killed_at_any_time "runc create is SIGKILLed after 0 to 60 ms";
    Kit All  f07_client_loses_patience "Create takes 3 s and its client 1 s: the container is there, and can be started";
    Kit All  f07_client_hangs_up "The client hangs up in mid-create: the container is there, and can be started";
}

fn spec() -> Spec {
    Spec::sh("echo hello; exit 3")
}

/// Create with a runc that dies is answered with an error in a few seconds, the host is as
/// before, and the same shim makes the same id.
fn dies(kit: &Kit, mut container: Container, body: &str) -> Result<()> {
    let (_, options) = scripted(kit, &format!("runc-{}", container.id), body)?;
    let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
    let mut request = container.bundle.create_request();
    request.options = Some(options).into();
    let at = Instant::now();
    let answer = container.task().patient(20.0).create(&request);
    let took = at.elapsed();
    match answer {
        Err(CallError::Status { message, .. }) => ensure!(!message.is_empty(), "no words"),
        other => bail!("Create: {other:?}"),
    }
    ensure!(took < GENEROUS, "Create took {took:?}");
    before
        .expect_back_but(|line| line.starts_with("in the bundle"))
        .context("after the failed Create")?;
    // The hooks of the first attempt must not spoil the second.
    fs::write(
        container.bundle.dir.join("config.json"),
        serde_json::to_vec(&spec().config(&format!("/{}/{}", kit.scratch.mark(), container.id)))?,
    )?;
    as_ever(kit, &mut container, 3, "hello").context("the same id again")
}

fn killed(kit: &Kit, body: &str) -> Result<()> {
    dies(kit, kit.prepared(&spec(), Stdio::Output)?, body)
}

/// A runc that is killed, with its wrapper, as soon as the shell's `condition` holds.
fn when(kit: &Kit, condition: &str) -> Result<()> {
    let container = kit.prepared(&spec(), Stdio::Output)?;
    let (state, group) = (
        runc_state(kit, &container.id),
        freezer(kit, &container.id).join("cgroup.procs"),
    );
    let condition = condition
        .replace("STATE", &state.display().to_string())
        .replace("GROUP", &group.display().to_string());
    let body = format!(
        "[ \"$verb\" = create ] && {{\nexec 9<&0\nrunc \"$@\" <&9 9<&- & child=$!\n\
         while ! {{ {condition}; }} && kill -0 $child 2>/dev/null; do :; done\n\
         kill -9 $child; kill -9 $$; }}"
    );
    dies(kit, container, &body)
}

fn f07_killed_before_its_cgroup(kit: &Kit) -> Result<()> {
    killed(kit, "[ \"$verb\" = create ] && kill -9 $$")
}

fn f07_killed_with_cgroup(kit: &Kit) -> Result<()> {
    when(kit, "[ -e GROUP ]")?;
    when(kit, "read -r _ <GROUP")
}

fn f07_killed_with_state(kit: &Kit) -> Result<()> {
    when(kit, "[ -e STATE ]")?;
    when(kit, "[ -e STATE/state.json ]")
}

fn f07_killed_when_done(kit: &Kit) -> Result<()> {
    when(kit, "[ -s \"$pid_file\" ]")?;
    killed(
        kit,
        "[ \"$verb\" = create ] && { runc \"$@\"; kill -9 $$; }",
    )
}

fn f07_killed_without_pid_file(kit: &Kit) -> Result<()> {
    // As if it were killed between the two files it writes last.
    killed(
        kit,
        "[ \"$verb\" = create ] && { runc \"$@\"; rm -f \"$pid_file\"; kill -9 $$; }",
    )
}

/// An executable with this piece of sh.
fn script(kit: &Kit, name: &str, body: &str) -> Result<PathBuf> {
    let path = kit.scratch.path(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn f07_killed_in_the_hook(kit: &Kit) -> Result<()> {
    for kind in ["prestart", "createRuntime"] {
        let hook = script(kit, kind, "kill -9 $PPID")?;
        let hooks = json!({ "hooks": { kind: [{ "path": hook }] } });
        let spec = Spec {
            extra: hooks,
            ..spec()
        };
        dies(kit, kit.prepared(&spec, Stdio::Output)?, "").context(kind)?;
    }
    Ok(())
}

fn f07_killed_at_any_time(kit: &Kit) -> Result<()> {
    for ms in (0..60).step_by(6) {
        // Where it is done before that, it is killed when done.
        let body = format!(
            "[ \"$verb\" = create ] && {{\nexec 9<&0\nrunc \"$@\" <&9 9<&- & child=$!\n\
             sleep 0.{ms:03}; kill -9 $child; kill -9 $$; }}"
        );
        killed(kit, &body).with_context(|| format!("after {ms} ms"))?;
    }
    Ok(())
}

/// The container that nobody waited for is made, and is as good as any.
fn made_after_all(kit: &Kit, container: &Container) -> Result<()> {
    until("the container to be made", by(10.0), || {
        (status(container, "").ok()? == Status::CREATED).then_some(())
    })?;
    kit.sink.expect("create", by(5.0))?;
    container.start().context("Start")?;
    let got = container.exit_status()?;
    ensure!(got == 3, "exit status {got}");
    container.out()?.expect("hello", by(5.0))?;
    container.task().delete(&container.id, "")?;
    Ok(())
}

fn f07_client_loses_patience(kit: &Kit) -> Result<()> {
    let (_, options) = scripted(kit, "slow", "[ \"$verb\" = create ] && sleep 3")?;
    let container = kit.prepared(&spec(), Stdio::Output)?;
    let mut request = container.bundle.create_request();
    request.options = Some(options).into();
    let answer = container.task().patient(1.0).create(&request);
    ensure!(out_of_patience(&answer), "it was not slow: {answer:?}");
    made_after_all(kit, &container)
}

fn f07_client_hangs_up(kit: &Kit) -> Result<()> {
    let (_, options) = scripted(kit, "slow", "[ \"$verb\" = create ] && sleep 1")?;
    let container = kit.prepared(&spec(), Stdio::Output)?;
    let mut request = container.bundle.create_request();
    request.options = Some(options).into();
    let hasty = another_connection(&container)?;
    let answer = hasty.patient(0.3).create(&request);
    ensure!(out_of_patience(&answer), "it was not slow: {answer:?}");
    drop(hasty);
    made_after_all(kit, &container)
}

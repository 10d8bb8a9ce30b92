//! F25: a runc that is ended, or does not come back, while it has the container's cgroup
//! frozen.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use vigil_hostile::{Trace, as_ever};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::{CallError, GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{freezer, prepared_with};
use crate::world::{nothing_left, unified};

cases! {
    Kit All f25_killed_between_freeze_and_thaw "runc create dies with its init frozen: an error, nothing left, the same id at once";
    Kit All f25_hangs_with_init_frozen "runc create hangs with its init frozen: ended at the deadline, nothing left";
    Kit All f25_pair_dies_with_init_frozen "The pair is killed while runc hangs with its init frozen: `delete` thaws and ends all";
}

/// A container whose createRuntime hook freezes it, then does `then`.
fn freezing(kit: &Kit, then: &str) -> Result<Container> {
    let spec = Spec::sh("echo hello; exit 3");
    let container = prepared_with(
        kit,
        &spec,
        Stdio::Output,
        &[(
            "VIGIL_DEADLINE_CREATE_MS",
            if unified() { "15000" } else { "2500" },
        )],
    )?;
    let group = freezer(kit, &container.id);
    let (file, word) = if unified() {
        ("cgroup.freeze", "1")
    } else {
        ("freezer.state", "FROZEN")
    };
    let hook = kit.scratch.path(&format!("hook-{}", container.id));
    fs::write(
        &hook,
        format!(
            "#!/bin/sh\necho {word} >{}/{file}\n: >{}\n{then}\n",
            group.display(),
            frozen_mark(kit).display()
        ),
    )?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    crate::rest::configure(&container, |config| {
        config["hooks"] = json!({ "createRuntime": [{ "path": hook }] });
    })?;
    Ok(container)
}

fn frozen_mark(kit: &Kit) -> std::path::PathBuf {
    kit.scratch.path("is-frozen")
}

fn undone(kit: &Kit, mut container: Container) -> Result<()> {
    let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
    let at = Instant::now();
    let request = container.bundle.create_request();
    match container.task().patient(60.0).create(&request) {
        Err(CallError::Status { .. }) => {}
        other => bail!("Create: {other:?}"),
    }
    // The machines with v2 alone that this is tried on are slow, emulated ones.
    let within = if unified() { GENEROUS * 2 } else { GENEROUS };
    ensure!(at.elapsed() < within, "Create took {:?}", at.elapsed());
    ensure!(frozen_mark(kit).exists(), "nothing was frozen");
    before.expect_back_but(|line| line.starts_with("in the bundle"))?;
    crate::rest::configure(&container, |config| config["hooks"] = json!({}))?;
    as_ever(kit, &mut container, 3, "hello").context("the same id again")
}

fn f25_killed_between_freeze_and_thaw(kit: &Kit) -> Result<()> {
    undone(kit, freezing(kit, "kill -9 $PPID")?)
}

fn f25_hangs_with_init_frozen(kit: &Kit) -> Result<()> {
    let deaf = "trap '' TERM; while :; do sleep 0.2; done";
    undone(kit, freezing(kit, deaf)?)
}

fn f25_pair_dies_with_init_frozen(kit: &Kit) -> Result<()> {
    let container = freezing(kit, "trap '' TERM; while :; do sleep 0.2; done")?;
    let task = container.task().patient(60.0);
    let request = container.bundle.create_request();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| task.create(&request));
        let frozen = until("it to be frozen", by(30.0), || {
            frozen_mark(kit).exists().then_some(())
        });
        container.shim.kill_all()?;
        frozen?;
        let at = Instant::now();
        container.shim.delete()?.ok()?;
        ensure!(at.elapsed() < GENEROUS, "{:?}", at.elapsed());
        let answer = asked.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        ensure!(answer.is_err(), "Create: {answer:?}");
        nothing_left(kit, &container.id)
    })
}

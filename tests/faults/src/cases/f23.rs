//! F23: containerd and the shim's binary change under running containers. (Both API
//! versions, all forms of `start`'s answer and old journals are tried elsewhere.)

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vigil_lab::bundle::Stdio;
use vigil_lab::process::alive;
use vigil_lab::{Kit, Place, Shim, Spec, Version, by, until};

use crate::cases;
use crate::world::nothing_left;

cases! {
    Kit    All  f23_binary_replaced "The shim's file is replaced under a running container: execs, ends, `delete` by the new one";
    Kit    All  f23_binary_removed "The shim's file is removed under a running container: execs, ends, goes";
    Kit    All  f23_delete_by_another "The pair killed, `delete` by another copy of the binary: the true end, nothing left";
    Daemon Ours f23_containerd_upgraded "containerd 1 is replaced by 2 under a container, and back: RUNNING, served, removable";
}

/// Copies a program. Not by ourselves: a process forked meanwhile by another test would
/// hold it open for writing, and it could not be run.
fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg(from).arg(to).status()?;
    ensure!(copied.success(), "cp: {copied}");
    Ok(())
}

/// A container whose shim is a private copy of the binary.
fn of_a_copy(kit: &Kit, spec: &Spec) -> Result<(std::path::PathBuf, vigil_lab::Bundle, Shim)> {
    let dir = kit.scratch.path("bin");
    fs::create_dir_all(&dir)?;
    let name = kit.binary.path.file_name().context("a name")?;
    let copy = dir.join(name);
    copy_program(&kit.binary.path, &copy)?;
    let mut caller = kit.caller.clone();
    caller.binary.clone_from(&copy);
    let bundle = kit.bundle(spec, Stdio::Empty)?;
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    shim.task.create(&bundle.create_request())?;
    shim.task.start(&bundle.id, "")?;
    Ok((copy, bundle, shim))
}

/// An exec by whoever serves now.
fn serves(shim: &Shim) -> Result<()> {
    let task = shim.task.patient(5.0);
    task.exec(&containerd_shim_protos::api::ExecProcessRequest {
        id: shim.id.clone(),
        exec_id: "e".into(),
        spec: Some(vigil_lab::kit::exec_spec(&Spec::sh("exit 4"))).into(),
        ..Default::default()
    })?;
    task.start(&shim.id, "e").context("Start of an exec")?;
    let ended = task.wait(&shim.id, "e")?;
    ensure!(ended.exit_status == 4, "{ended:?}");
    Ok(())
}

fn ends(shim: &Shim) -> Result<()> {
    shim.task.kill(&shim.id, "", 9, true)?;
    ensure!(shim.task.wait(&shim.id, "")?.exit_status == 137);
    ensure!(shim.task.delete(&shim.id, "")?.exit_status == 137);
    shim.task.shutdown(&shim.id)?;
    Ok(())
}

fn f23_binary_replaced(kit: &Kit) -> Result<()> {
    let (copy, _, shim) = of_a_copy(kit, &Spec::sleeper())?;
    let newer = copy.with_extension("new");
    copy_program(&kit.binary.path, &newer)?;
    fs::rename(&newer, &copy)?;
    serves(&shim)?;
    ends(&shim)?;
    shim.delete()?.ok()?;
    nothing_left(kit, &shim.id)
}

fn f23_binary_removed(kit: &Kit) -> Result<()> {
    let (copy, _, shim) = of_a_copy(kit, &Spec::sleeper())?;
    fs::remove_file(&copy)?;
    serves(&shim)?;
    ends(&shim)?;
    copy_program(&kit.binary.path, &copy)?;
    shim.delete()?.ok()?;
    nothing_left(kit, &shim.id)
}

fn f23_delete_by_another(kit: &Kit) -> Result<()> {
    let (copy, bundle, shim) = of_a_copy(kit, &Spec::sh("sleep 1000"))?;
    fs::remove_file(&copy)?;
    shim.kill_all()?;
    let said = kit.caller.delete(&bundle.id, &bundle.dir)?.ok()?;
    ensure!(said.exit_status == 137, "{said:?}");
    copy_program(&kit.binary.path, &copy)?;
    nothing_left(kit, &bundle.id)
}

fn f23_containerd_upgraded(place: &mut Place) -> Result<()> {
    if !Version::V2.installed() || !Version::Debian.installed() {
        eprintln!("not tried: two containerds are needed");
        return Ok(());
    }
    place.detached("c", &["sleep", "1000"])?;
    let init = place.pid("c")?;
    for version in [Version::V2, Version::Debian, Version::V2] {
        place.containerd.relaunch_as(version)?;
        place.expect_status("c", "RUNNING")?;
        ensure!(alive(init), "init is gone");
        let ran = place.containerd.try_ctr(&[
            "tasks",
            "exec",
            "--exec-id",
            "e",
            "c",
            "sh",
            "-c",
            "exit 4",
        ])?;
        ensure!(ran.status.code() == Some(4), "{version:?}: exec: {ran:?}");
    }
    place.end("c")?;
    until("init to be gone", by(5.0), || (!alive(init)).then_some(()))
}

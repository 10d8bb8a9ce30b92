//! The operator's tool beside real pairs: whom it ends, what it finds, and what it says of what
//! it does not find.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use vigil_hostile::{Pair, trial};
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::{Kit, Spec};

const RUNNING: i32 = 2;

/// containerd's state directory, as far as the tool is concerned.
fn state(kit: &Kit) -> Result<PathBuf> {
    let state = kit.scratch.path("by-state");
    let tasks = state.join("io.containerd.runtime.v2.task");
    if !tasks.exists() {
        fs::create_dir_all(&state)?;
        symlink(kit.scratch.path("state"), &tasks)?;
    }
    Ok(state)
}

/// The tool that lies beside the shim.
fn tool(kit: &Kit) -> Command {
    let mut tool = Command::new(kit.binary.path.with_file_name("vigil"));
    tool.env_remove("CONTAINERD_NAMESPACE");
    tool
}

/// Its exit code and what it said.
fn ran(tool: &mut Command) -> Result<(i32, String)> {
    let out = tool.output()?;
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((out.status.code().unwrap_or(-1), text.concat()))
}

fn vigil(kit: &Kit, args: &[&str]) -> Result<(i32, String)> {
    ran(tool(kit)
        .args(args)
        .env("VIGIL_CONTAINERD_STATE", state(kit)?))
}

fn is_running(container: &Container) -> Result<()> {
    let state = container.task().state(&container.id, "")?.status.value();
    ensure!(state == RUNNING, "the state is {state}");
    ensure!(alive(i32::try_from(container.pid)?), "init has ended");
    Ok(())
}

/// The plain files of a bundle but these, in another directory of the same last two names.
fn copied(kit: &Kit, container: &Container, to: &str, but: &[&str]) -> Result<PathBuf> {
    let to = kit.scratch.path(to);
    let copy = to.join(kit.scratch.mark()).join(&container.id);
    fs::create_dir_all(&copy)?;
    for entry in fs::read_dir(&container.bundle.dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_file() && !but.iter().any(|but| name == *but) {
            fs::copy(entry.path(), copy.join(name))?;
        }
    }
    Ok(copy)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What is recorded in a copy of a bundle (a backup, a rescue system's mount) is of a container
/// that has nothing to do with that directory: once `kill` of the copy ended the pair of the
/// original, and then what its journal named.
#[test]
fn nobody_is_ended_for_a_copy_of_its_bundle() {
    trial(90, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        for (name, but) in [
            ("whole", &[][..]),
            ("unrecorded", &["journal"]),
            ("unpaired", &["pair"]),
        ] {
            let copy = copied(kit, &container, name, but)?;
            let copy = text(&copy);
            for (args, code) in [
                (&["kill", copy][..], 1),
                (&["repair", copy, "--write"], 3),
                (&["show", copy], 3),
                (&["upgrade", copy], 3),
            ] {
                let (ended, said) = vigil(kit, args)?;
                ensure!(ended == code, "{args:?}: {ended}: {said}");
                // An upgrade of one that names no pair is none.
                let original = text(&container.bundle.dir);
                let names = said.contains("copy") && said.contains(original);
                ensure!(
                    names || args[0] == "upgrade" && name == "unpaired",
                    "{said}"
                );
                ensure!(pair.lives(), "{args:?} {name}: the pair has gone: {said}");
                is_running(&container)?;
            }
        }
        Ok(())
    });
}

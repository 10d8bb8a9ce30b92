//! A bundle moved away under a living pair, whole. Who asks for the container by its bundle does
//! not find it any more, and what is mounted in it went with it. Once nobody noticed, and the
//! tool told of a container by the directory's new name, or of none at all.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use vigil_faults::world::{Medium, in_small_run};
use vigil_hostile::{Pair, trial, vigil_apart};
use vigil_lab::bundle::remove_tree;
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::{Kit, Spec, by, until};

const KILL: i32 = 9;
const RUNNING: i32 = 2;
/// Longer than a bundle may be away (`supervise::bundle`).
const LONG_AWAY: Duration = Duration::from_secs(7);

/// By another name, in the same place or in none that containerd knows.
fn moved(container: &Container, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("no parent")?)?;
    fs::rename(&container.bundle.dir, to)?;
    Ok(())
}

fn renamed(container: &Container) -> PathBuf {
    let name = format!("{}.gone", container.id);
    container.bundle.dir.with_file_name(name)
}

fn is_running(container: &Container) -> Result<()> {
    let state = container.task().state(&container.id, "")?.status.value();
    ensure!(state == RUNNING, "the state is {state}");
    ensure!(alive(i32::try_from(container.pid)?), "init has ended");
    Ok(())
}

fn is_mounted(at: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(mounts.contains(&*at.to_string_lossy()))
}

/// Nothing of it but files, which are whoever's moved them.
fn nothing_left(kit: &Kit, container: &Container, at: &Path) -> Result<()> {
    ensure!(!is_mounted(at)?, "a mount stays");
    ensure!(!alive(i32::try_from(container.pid)?), "init lives on");
    let socket = &container.shim.reply.socket;
    ensure!(!socket.exists(), "the socket stays");
    let mark = kit.scratch.mark();
    let runc = Path::new("/run/containerd/runc")
        .join(mark)
        .join(&container.id);
    ensure!(!runc.exists(), "runc's state stays");
    for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let group = hierarchy.path().join(mark).join(&container.id);
        ensure!(!group.exists(), "{} stays", group.display());
    }
    remove_tree(at)
}

/// Seen at the next thing that happens, it counts as removed: a containerd that comes back does
/// not find it, and nobody would ever ask for the container again.
#[test]
fn a_pair_whose_bundle_is_moved_away_ends_its_container_and_leaves() {
    trial(90, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        let at = renamed(&container);
        moved(&container, &at)?;
        ensure!(is_mounted(&at)?, "its root file system is mounted nowhere");
        is_running(&container)?;
        pair.gone(20.0)?;
        nothing_left(kit, &container, &at)
    });
}

/// The shim that lived to see it is dead too.
#[test]
fn so_does_one_whose_shim_dies_while_it_is_away() {
    trial(90, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        let at = kit.scratch.path("elsewhere").join("ns").join("another");
        moved(&container, &at)?;
        pair.signal(pair.shim, KILL)?;
        until("init to be ended", by(20.0), || {
            (!alive(i32::try_from(container.pid).ok()?)).then_some(())
        })?;
        pair.gone(20.0)?;
        nothing_left(kit, &container, &at)
    });
}

/// For a moment: nothing comes of it, also if the shim dies in that moment, and a second time it
/// is noticed as well.
#[test]
fn moved_away_and_back_it_is_left_alone() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        let at = renamed(&container);
        moved(&container, &at)?;
        is_running(&container)?;
        std::thread::sleep(Duration::from_secs(1));
        fs::rename(&at, &container.bundle.dir)?;
        is_running(&container)?;
        std::thread::sleep(LONG_AWAY);
        is_running(&container)?;
        ensure!(pair.lives(), "the pair has gone");
        moved(&container, &at)?;
        pair.signal(pair.shim, KILL)?;
        std::thread::sleep(Duration::from_millis(200));
        fs::rename(&at, &container.bundle.dir)?;
        is_running(&container)?;
        let pair = Pair::of(&container.shim)?;
        std::thread::sleep(LONG_AWAY);
        is_running(&container)?;
        ensure!(pair.lives(), "the pair has gone");
        moved(&container, &at)?;
        is_running(&container)?;
        pair.gone(20.0)?;
        nothing_left(kit, &container, &at)
    });
}

/// Something is mounted over it, or over the directory it is in: then it is where it was.
#[test]
fn one_that_is_hidden_by_a_mount_is_not_gone() {
    trial(60, |kit| {
        in_small_run(kit, Medium::Tmpfs("size=64m"), |_| {
            let container = kit.running(&Spec::sleeper())?;
            let pair = Pair::of(&container.shim)?;
            let above = container.bundle.dir.parent().context("no parent")?;
            for over in [&*container.bundle.dir, above] {
                let (none, flags) = (None::<&str>, MsFlags::empty());
                mount(Some("over"), over, Some("tmpfs"), flags, none)?;
                is_running(&container)?;
                std::thread::sleep(LONG_AWAY);
                is_running(&container)?;
                ensure!(pair.lives(), "the pair has gone");
                umount2(over, MntFlags::MNT_DETACH)?;
            }
            is_running(&container)?;
            container.task().kill(&container.id, "", 9, false)?;
            ensure!(container.exit_status()? == 137, "its end");
            Ok(())
        })
    });
}

/// Before anything happens in the container, the tool finds it by its processes and tells of it
/// by its own id, wherever the bundle is; `kill` ends it.
#[test]
fn the_tool_knows_a_container_whose_bundle_was_moved() {
    for inside in [true, false] {
        trial(90, move |kit| {
            let container = kit.running(&Spec::sleeper())?;
            let pair = Pair::of(&container.shim)?;
            let at = if inside {
                renamed(&container)
            } else {
                kit.scratch.path("elsewhere").join("ns").join("another")
            };
            // What starting it has set going is over.
            std::thread::sleep(Duration::from_secs(1));
            moved(&container, &at)?;
            let (code, said) = vigil_apart(kit, &["ps", "--json"])?;
            ensure!(code == 3, "ps: {code}: {said}");
            let rows: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            let rows = rows["tasks"].as_array().context("no rows")?;
            let ids: Vec<&Value> = rows.iter().map(|row| &row["id"]).collect();
            ensure!(ids == [container.id.as_str()], "ps names {ids:?}");
            ensure!(rows[0]["bundle"] == *at.to_string_lossy(), "{said}");
            let named = at.to_string_lossy().into_owned();
            for args in [
                ["ps", "--namespace", kit.scratch.mark()].as_slice(),
                &["show", &container.id],
                &["show", &named],
                &["repair", &container.id, "--write"],
                &["repair", "--all", "--write"],
            ] {
                let (code, said) = vigil_apart(kit, args)?;
                ensure!(code == 3, "{args:?}: {code}: {said}");
                ensure!(said.contains("moved"), "{args:?}: {said}");
                ensure!(said.contains(&container.id), "{args:?}: {said}");
            }
            ensure!(pair.lives(), "the pair has gone");
            let (code, said) = vigil_apart(kit, &["kill", &container.id])?;
            ensure!(code == 0, "kill: {code}: {said}");
            pair.gone(20.0)?;
            nothing_left(kit, &container, &at)
        });
    }
}

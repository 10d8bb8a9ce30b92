//! F14: cgroups. Removed in every hierarchy, however deep, however slowly they empty,
//! whoever else has forgotten them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Pipe};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vigil_hostile::crowd;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::{GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{
    configure, create, members, nothing_but_the_pair, nothing_but_the_pair_by, signal_init,
};
use crate::world::{cgroups, deleted, nothing_left, running_under, scripted, times, unified};

cases! {
    Kit All f14_many_that_die_slowly "Hundreds of processes with hardly any processor: Delete, then nothing is left" alone;
    Kit All f14_nested_in_every_hierarchy "Cgroups three deep in every hierarchy: gone with Delete";
    Kit All f14_nested_in_delete "The same, the pair killed: gone with `delete`";
    Kit All f14_moved_in_from_outside "A process was moved in from outside: the cgroup goes all the same";
    Kit All f14_runc_forgets_them "runc delete removes its state and no cgroup: they go all the same";
    Kit All f14_one_controller_busy "A child that was moved out of all hierarchies but one (v1): ended, and all of them gone";
    Kit All f14_runc_says_busy "runc delete says busy and fails, its state gone: Delete succeeds, nothing is left";
}

fn f14_many_that_die_slowly(kit: &Kit) -> Result<()> {
    let program = crowd(&kit.scratch.path("base"))?;
    let count = times(400, 2000).to_string();
    let spec = Spec {
        own_pids: false,
        ..Spec::args(&[&program, &count])
    };
    let container = kit.created(&spec)?;
    container.start()?;
    container.out()?.expect("ready", by(60.0))?;
    // From now on they have 2 ms of a processor in 100, all together.
    for group in cgroups(kit.scratch.mark(), &container.id) {
        let _ = fs::write(group.join("cpu.cfs_quota_us"), "2000");
        let _ = fs::write(group.join("cpu.max"), "2000 100000");
    }
    signal_init(&container, 9)?;
    let waited = container.task().patient(30.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    let at = std::time::Instant::now();
    let answer = container.task().patient(30.0).delete(&container.id, "");
    let took = at.elapsed();
    ensure!(took < GENEROUS, "Delete took {took:?}: {answer:?}");
    if answer.is_err() {
        until("Delete to succeed", by(30.0), || {
            container
                .task()
                .patient(10.0)
                .delete(&container.id, "")
                .ok()
        })?;
    }
    if nothing_but_the_pair_by(kit, &container.id, 2.0).is_ok() {
        return Ok(());
    }
    // Answered before all were dead: then it is written down, and the next look ends it.
    let stone = format!("{}+{}.json", kit.scratch.mark(), container.id);
    let stone = Path::new("/run/vigil/tombstones").join(stone);
    ensure!(stone.exists(), "left, and not written down");
    container.task().shutdown(&container.id)?;
    until("`delete` to find all dead", by(40.0), || {
        container.shim.delete().ok()?.response?;
        (!stone.exists()).then_some(())
    })?;
    nothing_left(kit, &container.id)
}

/// Cgroups three deep below the container's, in each hierarchy it has one in; its child
/// sits in the deepest of each.
fn nested(kit: &Kit) -> Result<Container> {
    let spec = Spec {
        own_pids: false,
        ..Spec::sh("sleep 1001 & exec sleep 1000")
    };
    let container = kit.running(&spec)?;
    let child = until("the child", by(5.0), || {
        let all = members(kit, &container.id);
        all.iter()
            .find(|p| p.cmdline == "sleep 1001")
            .map(|p| p.pid)
    })?;
    for group in cgroups(kit.scratch.mark(), &container.id) {
        let deep = group.join("a/b/c");
        fs::create_dir_all(&deep).with_context(|| deep.display().to_string())?;
        fs::create_dir_all(group.join("a/empty"))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let Ok(all) = fs::read(group.join(file)) else {
                continue;
            };
            for below in ["a", "a/b", "a/b/c"] {
                let _ = fs::write(group.join(below).join(file), &all);
            }
        }
        fs::write(deep.join("cgroup.procs"), child.to_string())
            .with_context(|| deep.display().to_string())?;
    }
    Ok(container)
}

fn f14_nested_in_every_hierarchy(kit: &Kit) -> Result<()> {
    let container = nested(kit)?;
    container.task().kill(&container.id, "", 9, true)?;
    ensure!(container.exit_status()? == 137);
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f14_nested_in_delete(kit: &Kit) -> Result<()> {
    let container = nested(kit)?;
    container.shim.kill_all()?;
    deleted(&container)?;
    nothing_left(kit, &container.id)
}

fn f14_moved_in_from_outside(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    let mut guest = Command::new("sleep")
        .arg("300")
        .stdout(Pipe::null())
        .spawn()?;
    let outcome = (|| {
        for group in cgroups(kit.scratch.mark(), &container.id) {
            fs::write(group.join("cgroup.procs"), guest.id().to_string())?;
        }
        signal_init(&container, 9)?;
        ensure!(container.exit_status()? == 137);
        container
            .task()
            .delete(&container.id, "")
            .context("Delete")?;
        nothing_but_the_pair(kit, &container.id)
    })();
    let _ = guest.kill();
    let _ = guest.wait();
    outcome
}

fn f14_runc_forgets_them(kit: &Kit) -> Result<()> {
    let root = format!("/run/containerd/runc/{}", kit.scratch.mark());
    let body = format!("[ \"$verb\" = delete ] && {{ rm -rf \"{root}/$id\"; exit 0; }}");
    let (_, options) = scripted(kit, "forgets", &body)?;
    let container = running_under(kit, &Spec::sh("exit 4"), &options)?;
    ensure!(container.exit_status()? == 4);
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)?;
    let orphan = running_under(kit, &Spec::sleeper(), &options)?;
    orphan.shim.kill_all()?;
    deleted(&orphan)?;
    nothing_left(kit, &orphan.id)
}

/// This test's own cgroup in a hierarchy of v1.
fn home(hierarchy: &Path) -> Result<PathBuf> {
    let name = hierarchy
        .file_name()
        .and_then(|n| n.to_str())
        .context("a name")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own
        .lines()
        .filter_map(|l| l.split_once(':')?.1.split_once(':'))
        .find(|(names, _)| {
            names
                .split(',')
                .any(|n| n.trim_start_matches("name=") == name)
                || names.is_empty() && name == "unified"
        })
        .map(|(_, path)| path.to_owned())
        .with_context(|| format!("no cgroup of ours in {name}"))?;
    Ok(hierarchy.join(path.trim_start_matches('/')))
}

fn f14_one_controller_busy(kit: &Kit) -> Result<()> {
    if unified() {
        return Ok(());
    }
    for kept in ["pids", "freezer", "devices"] {
        let spec = Spec {
            own_pids: false,
            ..Spec::sh("sleep 1001 & while ! [ -e /tmp/end ]; do sleep 0.02; done; exit 4")
        };
        let container = kit.running(&spec)?;
        let child = until("the child", by(5.0), || {
            let all = members(kit, &container.id);
            all.iter()
                .find(|p| p.cmdline == "sleep 1001")
                .map(|p| p.pid)
        })?;
        for group in cgroups(kit.scratch.mark(), &container.id) {
            let hierarchy = group.ancestors().nth(2).context("a hierarchy")?;
            if !hierarchy.ends_with(kept) {
                let procs = home(hierarchy)?.join("cgroup.procs");
                fs::write(&procs, child.to_string())
                    .with_context(|| procs.display().to_string())?;
            }
        }
        fs::write(format!("/proc/{}/root/tmp/end", container.pid), "")?;
        let waited = container.task().wait(&container.id, "")?;
        ensure!(waited.exit_status == 4, "{waited:?}");
        container
            .task()
            .delete(&container.id, "")
            .with_context(|| format!("Delete, a child left in {kept}"))?;
        ensure!(!alive(child), "left in {kept}, the child lives");
        nothing_but_the_pair(kit, &container.id)?;
    }
    Ok(())
}

fn f14_runc_says_busy(kit: &Kit) -> Result<()> {
    // runc says that it could not, once, and has removed its state all the same.
    let root = format!("/run/containerd/runc/{}", kit.scratch.mark());
    let body = format!(
        "[ \"$verb\" = delete ] && {{ rm -rf \"{root}/$id\"; \
         echo 'device or resource busy' >&2; exit 1; }}"
    );
    let (_, options) = scripted(kit, "busy", &body)?;
    let mut container = kit.prepared(&Spec::sh("exit 4"), Stdio::Output)?;
    configure(&container, |config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 20 });
    })?;
    create(&mut container, Some(&options))?;
    container.start()?;
    ensure!(container.exit_status()? == 4);
    container
        .task()
        .delete(&container.id, "")
        .context("Delete")?;
    nothing_but_the_pair(kit, &container.id)
}

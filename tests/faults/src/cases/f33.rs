//! F33, F31 and the storm of item 8: out of descriptors, of pids, of patience; a whole
//! pod's cgroup killed from outside; and twenty thousand orphans dying at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::Options;
use vigil_hostile::crowd;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, signal_if};
use vigil_lab::shim::run;
use vigil_lab::task::any;
use vigil_lab::{Kit, Shim, Spec, by, until};

use crate::cases;
use crate::world::{
    answered, cgroups, deleted, nothing_left, pid, reaper_and_shim, serves, times, unified, zombies,
};

cases! {
    Kit All  f33_no_fds_in_the_shim "No descriptor left in the shim: exec refused, Kill and Delete work";
    Kit All  f33_no_fds_in_the_reaper "No descriptor left in the reaper: Kill, the exit and Delete work";
    Kit All  f33_no_fds_then_delete "No descriptor left anywhere, then SIGKILL: `delete` works";
    Kit All  f33_no_pids "No pid left in the shims' cgroup: exec refused, Kill and Delete work";
    Kit All  f33_no_pids_then_delete "No pid left, then SIGKILL of the pair: `delete` works";
    Kit All  f31_pod_cgroup_killed "All cgroups of a pod killed at once: each exit 137, no OOM told, Delete works";
    Kit All  f31_pod_cgroup_removed "... and the cgroups removed at once: Stats, Delete and `delete` are not upset";
    Kit All  f31_shims_inside "... with the shims inside: `delete` finds nothing to do and says so";
    Kit All  f33_orphan_storm "A crowd of orphans dies during 50 execs: every status right or unknown, init's right" alone;
}

/// Limits a process to the descriptors it has.
fn no_more_fds(pid: i32) -> Result<()> {
    // Numbers below the limit that are free would still be given.
    let open: Vec<u64> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    let free = (0..1_000_000).find(|n| !open.contains(n)).unwrap_or(0);
    limit_fds(pid, free)
}

fn limit_fds(pid: i32, most: u64) -> Result<()> {
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--pid={pid}"))
        .arg(format!("--nofile={most}:"));
    let ran = run(&mut command, &[], true, by(5.0))?;
    let words = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(ran.status.success(), "prlimit: {words}");
    Ok(())
}

fn killed_and_deleted(c: &Container) -> Result<()> {
    c.task().kill(&c.id, "", 9, true).context("Kill")?;
    ensure!(c.exit_status().context("Wait")? == 137);
    let deleted = c.task().delete(&c.id, "").context("Delete")?;
    ensure!(deleted.exit_status == 137, "{deleted:?}");
    Ok(())
}

fn f33_no_fds_in_the_shim(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let (_, shim) = reaper_and_shim(&c)?;
    kit.exec(&c, "e1", &Spec::sh("exit 5"))?;
    no_more_fds(shim)?;
    ensure!(
        answered(c.task().start(&c.id, "e1"), "Start of an exec")?.is_none(),
        "an exec was started without a descriptor"
    );
    serves(&c)?;
    limit_fds(shim, 1024)?;
    // The want has passed, and so has its effect.
    kit.exec(&c, "e2", &Spec::sh("exit 6"))?;
    c.task().start(&c.id, "e2")?;
    ensure!(c.task().wait(&c.id, "e2")?.exit_status == 6);
    no_more_fds(shim)?;
    killed_and_deleted(&c)?;
    nothing_left_but_the_pair(kit, &c)
}

/// After Delete: no process, mount, cgroup or runc state of it.
fn nothing_left_but_the_pair(kit: &Kit, c: &Container) -> Result<()> {
    ensure!(
        cgroups(kit.scratch.mark(), &c.id).is_empty(),
        "a cgroup is left"
    );
    ensure!(
        !crate::world::runc_state(kit, &c.id).exists(),
        "runc's state is left"
    );
    let rootfs = c.bundle.dir.join("rootfs").to_string_lossy().into_owned();
    ensure!(
        !vigil_lab::residue::mount_points().contains(&rootfs),
        "the rootfs is mounted"
    );
    ensure!(!vigil_lab::process::alive(pid(c)?), "init lives");
    Ok(())
}

fn f33_no_fds_in_the_reaper(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let (reaper, _) = reaper_and_shim(&c)?;
    no_more_fds(reaper)?;
    // A new connection may have to wait; the one there is goes on.
    serves(&c)?;
    killed_and_deleted(&c)?;
    nothing_left_but_the_pair(kit, &c)
}

fn f33_no_fds_then_delete(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let (reaper, shim) = reaper_and_shim(&c)?;
    for pid in [reaper, shim] {
        no_more_fds(pid)?;
    }
    c.shim.kill_all()?;
    let said = deleted(&c)?;
    ensure!(said.exit_status == 137, "{said:?}");
    nothing_left(kit, &c.id)
}

/// A container whose pair is in a cgroup of its own, with a limit of pids.
fn in_shim_cgroup(kit: &Kit) -> Result<(Container, Vec<PathBuf>)> {
    let path = format!("/{}/shims", kit.scratch.mark());
    let base = Path::new("/sys/fs/cgroup");
    let mut places = Vec::new();
    if unified() {
        fs::create_dir_all(base.join(kit.scratch.mark()))?;
        let _ = fs::write(
            base.join(kit.scratch.mark()).join("cgroup.subtree_control"),
            "+pids",
        );
        places.push(base.join(&path[1..]));
    } else {
        places.extend(
            fs::read_dir(base)?
                .flatten()
                .map(|e| e.path().join(&path[1..])),
        );
    }
    for place in &places {
        fs::create_dir_all(place)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(base.join("cpuset").join(file)) {
                for at in [place.parent().unwrap_or(place), place.as_path()] {
                    if at.join(file).exists() {
                        fs::write(at.join(file), &all)?;
                    }
                }
            }
        }
    }
    let chosen = Options {
        shim_cgroup: path,
        ..Default::default()
    };
    let options = any("containerd.runc.v1.Options", chosen.write_to_bytes()?);
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let mut caller = kit.caller.clone();
    caller.options = options.write_to_bytes()?;
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    kit.read_all(&bundle)?;
    let mut request = bundle.create_request();
    request.options = Some(options).into();
    let pid = shim.task.create(&request)?.pid;
    let c = Container {
        id: bundle.id.clone(),
        bundle,
        shim,
        stdout: None,
        stderr: None,
        pid,
    };
    c.start()?;
    Ok((c, places))
}

/// Lets nobody in the shims' cgroup fork any more.
fn no_more_pids(places: &[PathBuf]) -> Result<()> {
    let place = places
        .iter()
        .find(|p| p.join("pids.max").exists())
        .context("no pids controller")?;
    fs::write(place.join("pids.max"), "1")?;
    Ok(())
}

fn vanish(places: &[PathBuf]) -> Result<()> {
    until("the shims' cgroups to go", by(10.0), || {
        places
            .iter()
            .all(|p| fs::remove_dir(p).is_ok() || !p.exists())
            .then_some(())
    })
}

fn f33_no_pids(kit: &Kit) -> Result<()> {
    let (c, places) = in_shim_cgroup(kit)?;
    kit.exec(&c, "e1", &Spec::sh("exit 5"))?;
    no_more_pids(&places)?;
    ensure!(
        answered(c.task().start(&c.id, "e1"), "Start of an exec")?.is_none(),
        "an exec was started without a pid"
    );
    serves(&c)?;
    killed_and_deleted(&c)?;
    // What needs a fork may be late, and be done by `delete`; here there is room to fork.
    c.task().shutdown(&c.id)?;
    deleted(&c)?;
    nothing_left(kit, &c.id)?;
    vanish(&places)
}

fn f33_no_pids_then_delete(kit: &Kit) -> Result<()> {
    let (c, places) = in_shim_cgroup(kit)?;
    no_more_pids(&places)?;
    c.shim.kill_all()?;
    let said = deleted(&c)?;
    ensure!(said.exit_status == 137, "{said:?}");
    nothing_left(kit, &c.id)?;
    vanish(&places)
}

/// SIGKILLs all members of these cgroups as one: stopped first, so that nobody reacts.
fn kill_members(directories: &[PathBuf]) -> Result<()> {
    let members = || -> Vec<i32> {
        let files = directories
            .iter()
            .filter_map(|d| fs::read_to_string(d.join("cgroup.procs")).ok());
        let mut pids: Vec<i32> = files
            .flat_map(|t| t.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    };
    if unified() {
        for directory in directories {
            fs::write(directory.join("cgroup.kill"), "1")?;
        }
    }
    until("all members to die", by(5.0), || {
        let left = members();
        for signal in [19, 9] {
            for pid in &left {
                signal_if(*pid, signal, |_| members().contains(pid));
            }
        }
        left.is_empty().then_some(())
    })
}

fn pod(kit: &Kit) -> Result<(Vec<Container>, Vec<PathBuf>)> {
    let all: Vec<Container> = (0..3)
        .map(|n| {
            kit.running(&if n == 0 {
                Spec::args(&["sleep", "1000"])
            } else {
                Spec::sleeper()
            })
        })
        .collect::<Result<_>>()?;
    let places = all
        .iter()
        .flat_map(|c| cgroups(kit.scratch.mark(), &c.id))
        .collect();
    Ok((all, places))
}

fn f31_pod_cgroup_killed(kit: &Kit) -> Result<()> {
    let (all, places) = pod(kit)?;
    kill_members(&places)?;
    for c in &all {
        ensure!(c.exit_status()? == 137);
        ensure!(c.task().delete(&c.id, "")?.exit_status == 137);
    }
    let story = kit.sink.story();
    ensure!(!story.iter().any(|s| s == "oom"), "{story:?}");
    Ok(())
}

fn f31_pod_cgroup_removed(kit: &Kit) -> Result<()> {
    let (all, places) = pod(kit)?;
    kill_members(&places)?;
    until("the cgroups to be removed", by(5.0), || {
        places
            .iter()
            .all(|p| fs::remove_dir(p).is_ok() || !p.exists())
            .then_some(())
    })?;
    for (number, c) in all.iter().enumerate() {
        ensure!(c.exit_status()? == 137);
        answered(c.task().stats(&c.id), "Stats")?;
        answered(c.task().pids(&c.id), "Pids")?;
        if number == 0 {
            c.shim.kill_all()?;
            ensure!(deleted(c)?.exit_status == 137);
        } else {
            ensure!(c.task().delete(&c.id, "")?.exit_status == 137);
            c.task().shutdown(&c.id)?;
            deleted(c)?;
        }
        nothing_left(kit, &c.id)?;
    }
    Ok(())
}

fn f31_shims_inside(kit: &Kit) -> Result<()> {
    let (c, mut places) = in_shim_cgroup(kit)?;
    let shims = places.clone();
    places.extend(cgroups(kit.scratch.mark(), &c.id));
    kill_members(&places)?;
    until("the pair to be gone", by(5.0), || {
        c.shim.processes().is_empty().then_some(())
    })?;
    let said = deleted(&c)?;
    // The reaper died before it could see, or just after.
    ensure!([137, 255].contains(&said.exit_status), "{said:?}");
    ensure!(deleted(&c)?.exit_status == said.exit_status);
    nothing_left(kit, &c.id)?;
    vanish(&shims)
}

fn f33_orphan_storm(kit: &Kit) -> Result<()> {
    let count = times(2000, 20_000);
    let program = crowd(&kit.scratch.path("base"))?;
    // The crowd's parent is a child of init: when it is killed its children are the reaper's.
    let script = format!(
        "{program} {count} & echo $! >/tmp/crowd; while ! test -e /tmp/go; do sleep 0.05; done; exit 7"
    );
    let spec = Spec {
        own_pids: false,
        ..Spec::sh(&script)
    };
    let c = kit.running(&spec)?;
    c.out()?.expect("ready\n", by(60.0))?;
    let parent: i32 = fs::read_to_string(format!("/proc/{}/root/tmp/crowd", c.pid))?
        .trim()
        .parse()?;
    let (reaper, shim) = reaper_and_shim(&c)?;
    signal_if(parent, 9, |p| p.cmdline.starts_with(&program));
    let members: Vec<i32> = c
        .task()
        .patient(10.0)
        .pids(&c.id)?
        .processes
        .iter()
        .filter_map(|p| i32::try_from(p.pid).ok())
        .filter(|p| Process::read(*p).is_some_and(|p| p.cmdline.starts_with(&program)))
        .collect();
    ensure!(members.len() >= count, "{} of {count}", members.len());
    let execs = 50;
    let statuses = std::thread::scope(|scope| -> Result<Vec<(u32, u32)>> {
        let dying = scope.spawn(|| {
            for pid in &members {
                signal_if(*pid, 9, |p| p.cmdline.starts_with(&program));
            }
        });
        let mut told = Vec::new();
        for number in 0..execs {
            let id = format!("e{number}");
            kit.exec(&c, &id, &Spec::sh(&format!("exit {}", number + 1)))?;
            c.task()
                .patient(30.0)
                .start(&c.id, &id)
                .with_context(|| format!("Start of {id}"))?;
            let status = c.task().patient(30.0).wait(&c.id, &id)?.exit_status;
            told.push((number + 1, status));
            c.task().patient(30.0).delete(&c.id, &id)?;
            serves(&c)?;
        }
        dying.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        Ok(told)
    })?;
    let wrong: Vec<_> = statuses
        .iter()
        .filter(|(w, got)| got != w && *got != 255)
        .collect();
    ensure!(wrong.is_empty(), "wanted and got: {wrong:?}");
    let unknown = statuses.iter().filter(|(w, got)| got != w).count();
    ensure!(
        unknown <= execs as usize / 10,
        "{unknown} of {execs} are not known"
    );
    fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
    ensure!(
        c.task().patient(30.0).wait(&c.id, "")?.exit_status == 7,
        "init's status"
    );
    until("all zombies to be reaped", by(30.0), || {
        zombies(&[reaper, shim]).is_empty().then_some(())
    })?;
    ensure!(c.task().patient(30.0).delete(&c.id, "")?.exit_status == 7);
    Ok(())
}

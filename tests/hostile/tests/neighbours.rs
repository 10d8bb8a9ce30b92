//! Somebody else's container in a cgroup that ours is, was or might be in: by its name, by the
//! same `cgroupsPath`, or by nothing but the convention. It is never signalled for that.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Pipe};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use vigil_hostile::{Pair, trial};
use vigil_lab::bundle::{Bundle, Stdio};
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive, signal_if};
use vigil_lab::{Kit, Spec, by, poll, until};

/// The id of the first container of a kit, which is ours.
const ID: &str = "c1";
const KILL: i32 = 9;

fn placed(dir: &Path, cgroup: &str) -> Result<()> {
    let config = dir.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
    spec["linux"]["cgroupsPath"] = json!(cgroup);
    Ok(fs::write(&config, serde_json::to_vec(&spec)?)?)
}

/// A container that runc alone has made, of another root and another bundle, and whose parent
/// is process 1.
struct Neighbour {
    init: i32,
    root: PathBuf,
    id: String,
    mark: String,
}

impl Neighbour {
    fn run(kit: &Kit, id: &str, cgroup: &str, own_pids: bool) -> Result<Self> {
        let base = kit.scratch.path("base");
        let spec = Spec {
            extra: json!({"root": {"path": base, "readonly": true}}),
            own_pids,
            ..Spec::sleeper()
        };
        let mark = kit.scratch.mark().to_owned();
        let state = kit.scratch.path("neighbour");
        let bundle = Bundle::make(&state, &mark, id, &spec, Stdio::Empty, &base)?;
        placed(&bundle.dir, cgroup)?;
        let root = kit.scratch.path("neighbour-runc");
        let pid = kit.scratch.path("neighbour.pid");
        let run = Command::new("runc")
            .arg("--root")
            .arg(&root)
            .args(["run", "--detach", "--pid-file"])
            .arg(&pid)
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg(id)
            .stdin(Pipe::null())
            .stdout(Pipe::null())
            .stderr(Pipe::null())
            .status()?;
        ensure!(run.success(), "runc run: {run}");
        let init = fs::read_to_string(&pid)?.trim().parse()?;
        Ok(Self {
            init,
            root,
            id: id.to_owned(),
            mark,
        })
    }

    fn unhurt(&self) -> Result<()> {
        ensure!(alive(self.init), "the other container was killed");
        Ok(())
    }

    /// Takes it away again, with its cgroup.
    fn end(self) -> Result<()> {
        signal_if(self.init, KILL, |p| p.cgroup.contains(&self.mark));
        let gone = || (!alive(self.init)).then_some(());
        until("the other container to end", by(10.0), gone)?;
        let status = Command::new("runc")
            .arg("--root")
            .arg(&self.root)
            .args(["delete", "--force", &self.id])
            .stdout(Pipe::null())
            .stderr(Pipe::null())
            .status()?;
        ensure!(status.success(), "runc delete: {status}");
        Ok(())
    }
}

/// A pair of ours that has been started and asked for nothing, and the other container in the
/// cgroup that bears its name.
fn beside(kit: &mut Kit) -> Result<(Container, Neighbour)> {
    let ours = kit.prepared(&Spec::sleeper(), Stdio::Empty)?;
    ensure!(ours.id == ID, "{}", ours.id);
    placed(&ours.bundle.dir, &format!("/{}/ours", kit.scratch.mark()))?;
    let cgroup = format!("/{}/{ID}", kit.scratch.mark());
    let other = Neighbour::run(kit, ID, &cgroup, true)?;
    Ok((ours, other))
}

/// The bundle of a pair is removed and its shim dies: the next one ends what is left of a
/// container that never was, and killed whoever was in the cgroup of its name.
#[test]
fn a_pair_without_a_bundle_ends_nobody_by_the_name_of_a_cgroup() {
    trial(60, |kit| {
        let (ours, other) = beside(kit)?;
        let pair = Pair::of(&ours.shim)?;
        fs::remove_dir_all(&ours.bundle.dir)?;
        signal_if(pair.shim, KILL, |_| true);
        until("the pair to leave", by(20.0), || {
            (!alive(pair.reaper) && !alive(pair.shim)).then_some(())
        })?;
        other.unhurt()?;
        other.end()
    });
}

/// Both of a pair die, and neither a journal nor a spec is there: `delete` took the cgroup of
/// the container's name for its own. Nobody can say whose the process in it is, so `delete`
/// does not say that nothing lives either.
#[test]
fn a_delete_without_records_ends_nobody_by_the_name_of_a_cgroup() {
    trial(60, |kit| {
        let (ours, other) = beside(kit)?;
        ours.shim.kill_all()?;
        for name in ["journal", "config.json"] {
            fs::remove_file(ours.bundle.dir.join(name))?;
        }
        let deleted = ours.shim.delete()?;
        other.unhurt()?;
        ensure!(
            !deleted.ran.status.success(),
            "it said that nothing lives: {:?}",
            deleted.response
        );
        other.end()?;
        ours.shim.delete()?.ok()?;
        ours.bundle.remove()
    });
}

/// A Create finds the cgroup of its name in use by a container whose parent is process 1, and
/// took it for an earlier life of its own.
#[test]
fn a_create_ends_nobody_who_is_in_the_cgroup_of_its_name() {
    trial(60, |kit| {
        let cgroup = format!("/{}/{ID}", kit.scratch.mark());
        let other = Neighbour::run(kit, ID, &cgroup, true)?;
        let mut ours = kit.prepared(&Spec::sh("exit 5"), Stdio::Empty)?;
        ensure!(ours.id == ID, "{}", ours.id);
        ours.pid = ours.task().create(&ours.bundle.create_request())?.pid;
        other.unhurt()?;
        ours.start()?;
        ensure!(ours.exit_status()? == 5);
        ours.task().delete(&ours.id, "")?;
        other.unhurt()?;
        other.end()
    });
}

/// The runtime's state of an earlier life is left, whose init is dead; the cgroup that it names is
/// another container's by now. It was taken for a record, and Create killed the other.
#[test]
fn a_create_ends_nobody_for_the_state_of_a_container_that_is_dead() {
    trial(60, |kit| {
        let mark = kit.scratch.mark().to_owned();
        let other = Neighbour::run(kit, ID, &format!("/{mark}/{ID}"), true)?;
        let mut ours = kit.prepared(&Spec::sh("exit 5"), Stdio::Empty)?;
        ensure!(ours.id == ID, "{}", ours.id);
        let theirs = fs::read(other.root.join(ID).join("state.json"))?;
        let mut state: serde_json::Value = serde_json::from_slice(&theirs)?;
        let mut dead = Command::new("true").spawn()?;
        dead.wait()?;
        state["init_process_pid"] = json!(dead.id());
        state["init_process_start"] = json!(1);
        state["config"]["labels"] = json!([format!("bundle={}", ours.bundle.dir.display())]);
        let left = Path::new("/run/containerd/runc").join(&mark).join(ID);
        fs::create_dir_all(&left)?;
        fs::write(left.join("state.json"), serde_json::to_vec(&state)?)?;
        let request = ours.bundle.create_request();
        let refused = ours.task().create(&request).is_err();
        let unhurt = other.unhurt();
        if unhurt.is_err() {
            let _ = fs::remove_dir_all(&left);
        }
        unhurt?;
        ensure!(refused, "it was made beside a state that is in its way");
        other.end()?;
        ours.pid = ours.task().create(&request)?.pid;
        ours.start()?;
        ensure!(ours.exit_status()? == 5);
        ours.task().delete(&ours.id, "")?;
        Ok(())
    });
}

/// How the first of two containers in one cgroup comes to its end.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Kill, Wait, Delete.
    Ordinary,
    /// Kill of everybody.
    KillAll,
    /// Delete before it was started.
    NeverStarted,
    /// Both of its pair die, and `delete` comes.
    DeadPair,
}

/// Ours was alone in its cgroup when it was made, and that is on record; another came later.
/// Its end killed the other.
fn the_end_of_one_is_not_the_others(end: End, own_pids: bool, by_runc: bool) {
    trial(90, move |kit| {
        let cgroup = format!("/{}/both", kit.scratch.mark());
        let spec = Spec {
            own_pids,
            ..Spec::sleeper()
        };
        let first = kit.prepared(&spec, Stdio::Empty)?;
        placed(&first.bundle.dir, &cgroup)?;
        let init = first.task().create(&first.bundle.create_request())?.pid;
        if !matches!(end, End::NeverStarted) {
            first.start()?;
        }
        let (mut second, mut other) = (None, None);
        if by_runc {
            other = Some(Neighbour::run(kit, "other", &cgroup, own_pids)?);
        } else {
            let container = kit.prepared(&spec, Stdio::Empty)?;
            placed(&container.bundle.dir, &cgroup)?;
            let request = container.bundle.create_request();
            let pid = container.task().create(&request)?.pid;
            container.start()?;
            second = Some((i32::try_from(pid)?, container));
        }
        let task = first.task();
        match end {
            End::Ordinary => {
                task.kill(&first.id, "", 9, false)?;
                task.wait(&first.id, "")?;
                task.delete(&first.id, "")?;
            }
            End::KillAll => {
                task.kill(&first.id, "", 9, true)?;
                task.wait(&first.id, "")?;
            }
            End::NeverStarted => drop(task.delete(&first.id, "")?),
            End::DeadPair => {
                first.shim.kill_all()?;
                first.shim.delete()?.ok()?;
                first.bundle.remove()?;
            }
        }
        ensure!(!alive(i32::try_from(init)?), "ours lives on");
        if let Some((pid, container)) = &second {
            ensure!(alive(*pid), "{end:?}: the other container was killed");
            let state = container.task().state(&container.id, "")?;
            ensure!(state.status.value() == 2, "not RUNNING: {state:?}");
        }
        if let Some(other) = other {
            other.unhurt().with_context(|| format!("{end:?}"))?;
            other.end()?;
        }
        if let (false, Some((_, container))) = (own_pids, second) {
            container.task().kill(&container.id, "", 9, false)?;
            container.task().wait(&container.id, "")?;
            container.task().delete(&container.id, "")?;
            // Of two that share a pid namespace too neither is sure that it is the last.
            remove_cgroup(&cgroup)?;
        }
        Ok(())
    });
}

/// With a pid namespace of its own and with the host's; beside a pair's and beside runc's own.
const EVERY: [(bool, bool); 4] = [(true, false), (true, true), (false, false), (false, true)];

#[test]
fn a_delete_ends_nobody_who_came_into_the_cgroup_later() {
    for (own_pids, by_runc) in EVERY {
        the_end_of_one_is_not_the_others(End::Ordinary, own_pids, by_runc);
    }
}

#[test]
fn a_kill_of_all_ends_nobody_who_came_into_the_cgroup_later() {
    for (own_pids, by_runc) in EVERY {
        the_end_of_one_is_not_the_others(End::KillAll, own_pids, by_runc);
    }
}

#[test]
fn a_delete_of_what_never_ran_ends_nobody_who_came_into_the_cgroup_later() {
    for (own_pids, by_runc) in EVERY {
        the_end_of_one_is_not_the_others(End::NeverStarted, own_pids, by_runc);
    }
}

#[test]
fn a_delete_after_both_deaths_ends_nobody_who_came_into_the_cgroup_later() {
    for by_runc in [false, true] {
        the_end_of_one_is_not_the_others(End::DeadPair, true, by_runc);
    }
    // Of two of the host's pid namespace and with nobody above them nobody knows which is whose:
    // runc's own beside a dead pair is not asked for.
    the_end_of_one_is_not_the_others(End::DeadPair, false, false);
}

/// Only the reaper that lives tells that the container of runc's own, of the host's pid namespace as
/// well, is not ours. Who came back for the cgroup once the pair had left took it for ours.
#[test]
fn nobody_comes_back_for_who_is_told_apart_by_the_reaper_alone() {
    trial(60, |kit| {
        let cgroup = format!("/{}/both", kit.scratch.mark());
        let spec = Spec {
            own_pids: false,
            ..Spec::sleeper()
        };
        let first = kit.prepared(&spec, Stdio::Empty)?;
        placed(&first.bundle.dir, &cgroup)?;
        first.task().create(&first.bundle.create_request())?;
        first.start()?;
        let other = Neighbour::run(kit, "other", &cgroup, false)?;
        let task = first.task();
        task.kill(&first.id, "", 9, false)?;
        task.wait(&first.id, "")?;
        task.delete(&first.id, "")?;
        task.shutdown(&first.id)?;
        first.bundle.remove()?;
        // A sweeper, and time for it.
        let next = kit.prepared(&Spec::sleeper(), Stdio::Empty)?;
        let _ = until("", poll::sharp(1.5), || other.unhurt().err());
        let unhurt = other.unhurt();
        other.end()?;
        drop(next);
        remove_cgroup(&cgroup)?;
        unhurt
    });
}

/// Takes away what is left of a cgroup that nobody calls his own any more.
fn remove_cgroup(cgroup: &str) -> Result<()> {
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        let _ = fs::remove_dir(hierarchy?.path().join(&cgroup[1..]));
    }
    let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(&cgroup[1..]));
    Ok(())
}

/// Waits until nobody of this mark waits to finish a `delete`.
fn no_waiter_is_left(mark: &str) -> Result<()> {
    until("the waiter to leave", by(20.0), || {
        let left = Process::marked(mark);
        let waits = |p: &Process| p.cmdline.ends_with(" delete");
        (!left.iter().any(waits)).then_some(())
    })
}

/// Moves a process into every hierarchy's cgroup of this name.
fn moved_into(cgroup: &str, pid: u32) -> Result<()> {
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        dirs.push(hierarchy?.path());
    }
    let files = dirs
        .iter()
        .map(|dir| dir.join(&cgroup[1..]).join("cgroup.procs"));
    let mut moved = 0;
    for file in files.filter(|file| file.exists()) {
        fs::write(&file, pid.to_string()).with_context(|| file.display().to_string())?;
        moved += 1;
    }
    ensure!(moved > 0, "there is no cgroup {cgroup}");
    Ok(())
}

/// The directories of this name that are there.
fn dirs_of(cgroup: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
    let mut dirs: Vec<PathBuf> = hierarchies.flatten().map(|entry| entry.path()).collect();
    dirs.push(PathBuf::from("/sys/fs/cgroup"));
    let dirs = dirs.into_iter().map(|dir| dir.join(&cgroup[1..]));
    dirs.filter(|dir| dir.exists()).collect()
}

/// Somebody's process, with mounts of its own as another container's has, comes into the cgroup of a
/// container that has a pid namespace of its own, where no process of its can be; the container's
/// end killed it. Then it was spared, and the cgroup, which nobody named, stayed for ever when it
/// had gone. (One among the host's mounts goes with the cgroup: faults, F14.)
#[test]
fn a_process_of_somebody_else_is_not_the_containers_for_being_in_its_cgroup() {
    for end in [End::Ordinary, End::KillAll, End::DeadPair] {
        trial(60, move |kit| {
            let cgroup = format!("/{}/visited", kit.scratch.mark());
            let mut ours = kit.prepared(&Spec::sleeper(), Stdio::Empty)?;
            placed(&ours.bundle.dir, &cgroup)?;
            ours.pid = ours.task().create(&ours.bundle.create_request())?.pid;
            ours.start()?;
            let mut visitor = Command::new("unshare")
                .args(["-m", "sleep", "600"])
                .spawn()?;
            until("the visitor to be what it is", by(20.0), || {
                let comm = fs::read_to_string(format!("/proc/{}/comm", visitor.id())).ok()?;
                (comm.trim() == "sleep").then_some(())
            })?;
            let moved = moved_into(&cgroup, visitor.id());
            let task = ours.task();
            let ended = moved.and_then(|()| {
                match end {
                    End::Ordinary | End::NeverStarted => {
                        task.kill(&ours.id, "", 9, false)?;
                        task.wait(&ours.id, "")?;
                        task.delete(&ours.id, "")?;
                    }
                    End::KillAll => {
                        task.kill(&ours.id, "", 9, true)?;
                        task.wait(&ours.id, "")?;
                    }
                    End::DeadPair => {
                        ours.shim.kill_all()?;
                        ours.shim.delete()?.ok()?;
                        ours.bundle.remove()?;
                    }
                }
                Ok(())
            });
            let deleted = ended.and_then(|()| match end {
                End::Ordinary => {
                    ours.task().shutdown(&ours.id)?;
                    ours.shim.delete()?.ok()?;
                    ours.bundle.remove()
                }
                End::KillAll | End::NeverStarted | End::DeadPair => Ok(()),
            });
            let stone = format!(
                "/run/vigil/tombstones/{}+{}.json",
                kit.scratch.mark(),
                ours.id
            );
            let named = fs::read_to_string(&stone).unwrap_or_default();
            let lives = visitor.try_wait()?.is_none();
            visitor.kill()?;
            visitor.wait()?;
            deleted.with_context(|| format!("{end:?}"))?;
            ensure!(lives, "{end:?}: somebody else's process was killed");
            ensure!(!alive(i32::try_from(ours.pid)?), "ours lives on");
            if matches!(end, End::KillAll) {
                return remove_cgroup(&cgroup);
            }
            let visitor = format!("process {} (sleep)", visitor.id());
            ensure!(
                named.contains(&cgroup) && named.contains(&visitor),
                "{end:?}: the tombstone does not say what is left and for whom: {named}"
            );
            until(
                "its cgroups and its tombstone to go by themselves",
                by(20.0),
                || {
                    let left = !dirs_of(&cgroup).is_empty() || Path::new(&stone).exists();
                    (!left).then_some(())
                },
            )?;
            no_waiter_is_left(kit.scratch.mark())
        });
    }
}

/// A container of the host's pid namespace in which a process with a pid namespace of its own has
/// been left by the parent of its parent. That process, by what it runs.
fn nested(kit: &Kit) -> Result<(Container, i32)> {
    let script = "(setsid sh -c '/bin/busybox unshare -p -f sleep 7777; true' >/dev/null 2>&1 &); \
                  exec sleep 999";
    let may = json!(["CAP_SYS_ADMIN"]);
    let mut spec = Spec {
        own_pids: false,
        ..Spec::sh(script)
    };
    let mut process = spec.process();
    process["capabilities"] = json!({"bounding": may, "effective": may, "permitted": may});
    spec.extra = json!({"process": process});
    let ours = kit.running(&spec)?;
    let mark = kit.scratch.mark();
    let inner = until("the inner process", by(10.0), || {
        let all = Process::marked(mark);
        let found = all.iter().find(|p| p.cmdline.starts_with("sleep 7777"));
        found.map(|p| p.pid)
    })?;
    Ok((ours, inner))
}

/// A process of the container's with a pid namespace of its own, and nobody above it who lives,
/// was called somebody else's: it outlived its container, and nobody said so.
#[test]
fn a_process_in_a_namespace_that_the_container_made_ends_with_it() {
    for pair_dies in [true, false] {
        trial(60, move |kit| {
            let (ours, inner) = nested(kit)?;
            if pair_dies {
                ours.shim.kill_all()?;
            } else {
                let pair = Pair::of(&ours.shim)?;
                signal_if(pair.reaper, KILL, |_| true);
                let task = ours.task();
                task.kill(&ours.id, "", 9, true)?;
                task.wait(&ours.id, "")?;
                task.delete(&ours.id, "")?;
                until("the inner process to end", by(10.0), || {
                    (!alive(inner)).then_some(())
                })?;
                ours.shim.kill_all()?;
            }
            let deleted = ours.shim.delete()?.ok();
            let lives = alive(inner);
            signal_if(inner, KILL, |p| p.cgroup.contains(kit.scratch.mark()));
            deleted?;
            ensure!(!lives, "it outlived its container");
            ours.bundle.remove()
        });
    }
}

/// As above, and its parent, which was in the container, is dead too: it may be the init of another
/// container in this cgroup. It is not killed, `delete` does not say that all is gone, and
/// when it ends the rest goes by itself.
#[test]
fn a_process_of_which_nobody_can_say_whose_it_is_is_not_left_in_silence() {
    trial(60, |kit| {
        let (ours, inner) = nested(kit)?;
        ours.shim.kill_all()?;
        let mark = kit.scratch.mark();
        let all = Process::marked(mark);
        let is_above = |p: &&Process| p.cmdline.starts_with("/bin/busybox unshare");
        let above = all.iter().find(is_above).context("it is gone")?.pid;
        signal_if(above, KILL, |p| p.cgroup.contains(mark));
        until("its parent to end", by(10.0), || {
            (!alive(above)).then_some(())
        })?;
        let deleted = ours.shim.delete()?;
        ensure!(alive(inner), "it was killed");
        ensure!(
            !deleted.ran.status.success(),
            "it said that nothing lives: {:?}",
            deleted.response
        );
        let stone = format!("/run/vigil/tombstones/{mark}+{}.json", ours.id);
        ensure!(Path::new(&stone).exists(), "no tombstone names it");
        signal_if(inner, KILL, |p| p.cgroup.contains(mark));
        until("the waiter to finish", by(20.0), || {
            (!Path::new(&stone).exists()).then_some(())
        })?;
        ours.shim.delete()?.ok()?;
        until("the bundle to be removed", by(10.0), || {
            let _ = ours.bundle.remove();
            (!ours.bundle.dir.exists()).then_some(())
        })?;
        no_waiter_is_left(mark)
    });
}

/// Journal and runc's state are not to be found, the container is alone in its cgroup, and that
/// does not bear its name: `delete` said 255 of a container that runs on.
#[test]
fn a_delete_that_cannot_find_its_container_does_not_call_it_gone() {
    for harm in ["removed", "flipped"] {
        trial(60, move |kit| {
            let cgroup = format!("/{}/elsewhere", kit.scratch.mark());
            let root = kit.scratch.path("another-root");
            let mut ours = kit.prepared(&Spec::sleeper(), Stdio::Empty)?;
            placed(&ours.bundle.dir, &cgroup)?;
            let mut request = ours.bundle.create_request();
            request.options = Some(vigil_hostile::runc_root_options(&root)).into();
            ours.pid = ours.task().create(&request)?.pid;
            ours.start()?;
            ours.shim.kill_all()?;
            let journal = ours.bundle.dir.join("journal");
            if harm == "removed" {
                fs::remove_file(&journal)?;
            } else {
                let mut bytes = fs::read(&journal)?;
                bytes[300..308].fill(b'X');
                fs::write(&journal, bytes)?;
            }
            let deleted = ours.shim.delete()?;
            let init = i32::try_from(ours.pid)?;
            let lives = alive(init);
            signal_if(init, KILL, |p| p.cgroup.contains(kit.scratch.mark()));
            let gone = || (!alive(init)).then_some(());
            until("init to die", by(10.0), gone)?;
            let dir = root.join(kit.scratch.mark());
            let status = Command::new("runc")
                .arg("--root")
                .arg(&dir)
                .args(["delete", "--force", &ours.id])
                .status()?;
            ensure!(status.success(), "runc delete: {status}");
            ensure!(
                !lives || !deleted.ran.status.success(),
                "{harm}: it lives, and `delete` said {:?}",
                deleted.response
            );
            ours.shim.delete()?.ok()?;
            // Who was left to wait may be at it too.
            until("the bundle to be removed", by(10.0), || {
                let _ = ours.bundle.remove();
                (!ours.bundle.dir.exists()).then_some(())
            })?;
            no_waiter_is_left(kit.scratch.mark())
        });
    }
}

/// What is left to name init is a number: in `init.pid`, or in the slot of the exit records that
/// still waits for it. Nobody is signalled by a number, but while it lives nothing is called gone.
#[test]
fn a_delete_that_knows_but_inits_number_does_not_call_it_gone() {
    for named_by in ["init.pid", "exits"] {
        trial(60, move |kit| {
            let cgroup = format!("/{}/elsewhere", kit.scratch.mark());
            let root = kit.scratch.path("another-root");
            let mut ours = kit.prepared(&Spec::sleeper(), Stdio::Empty)?;
            placed(&ours.bundle.dir, &cgroup)?;
            let mut request = ours.bundle.create_request();
            request.options = Some(vigil_hostile::runc_root_options(&root)).into();
            ours.pid = ours.task().create(&request)?.pid;
            ours.start()?;
            ours.shim.kill_all()?;
            let file = |name: &str| ours.bundle.dir.join(name);
            for name in ["journal", "config.json", "init.pid", "exits"] {
                if name != named_by {
                    fs::remove_file(file(name))?;
                }
            }
            let deleted = ours.shim.delete()?;
            let init = i32::try_from(ours.pid)?;
            let lives = alive(init);
            signal_if(init, KILL, |p| p.cgroup.contains(kit.scratch.mark()));
            let gone = || (!alive(init)).then_some(());
            until("init to die", by(10.0), gone)?;
            let status = Command::new("runc")
                .arg("--root")
                .arg(root.join(kit.scratch.mark()))
                .args(["delete", "--force", &ours.id])
                .status()?;
            ensure!(status.success(), "runc delete: {status}");
            ensure!(lives, "it was killed by its number");
            ensure!(
                !deleted.ran.status.success(),
                "{named_by}: it lives, and `delete` said {:?}",
                deleted.response
            );
            // A number that is a process of the host's by now is nobody's.
            let another = std::process::id();
            fs::write(file("init.pid"), another.to_string())?;
            ours.shim.delete()?.ok()?;
            until("the bundle to be removed", by(10.0), || {
                let _ = ours.bundle.remove();
                (!ours.bundle.dir.exists()).then_some(())
            })
        });
    }
}

/// Both of a pair are dead, its journal and runc's state are lost, and what is mounted as the root
/// file system never answers: `delete` and `vigil show` asked it whose the processes are, and
/// were held up by it.
#[test]
fn nobody_asks_a_root_file_system_that_never_answers() {
    trial(90, |kit| {
        let root = kit.scratch.path("another-root");
        let mut ours = kit.prepared(&Spec::sleeper(), Stdio::Empty)?;
        let mut request = ours.bundle.create_request();
        request.options = Some(vigil_hostile::runc_root_options(&root)).into();
        ours.pid = ours.task().create(&request)?.pid;
        ours.start()?;
        ours.shim.kill_all()?;
        fs::remove_file(ours.bundle.dir.join("journal"))?;
        let rootfs = ours.bundle.dir.join("rootfs");
        // Nobody serves it: who asks waits until this descriptor is closed.
        let fuse = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            fuse.as_raw_fd()
        );
        let (never, kind) = (Some("never"), Some("fuse"));
        mount(never, &rootfs, kind, MsFlags::empty(), Some(&*options))?;
        let mut show = Command::new(kit.binary.path.with_file_name("vigil"))
            .arg("show")
            .arg(&ours.bundle.dir)
            .stdout(Pipe::null())
            .stderr(Pipe::null())
            .spawn()?;
        let shown = until("`vigil show` to end", by(20.0), || {
            show.try_wait().ok().flatten()
        });
        let deleted = ours.shim.delete();
        drop(fuse);
        let _ = umount2(&rootfs, MntFlags::MNT_DETACH);
        let init = i32::try_from(ours.pid)?;
        let lives = alive(init);
        signal_if(init, KILL, |p| p.cgroup.contains(kit.scratch.mark()));
        let _ = show.kill();
        show.wait()?;
        shown?;
        let deleted = deleted?;
        ensure!(
            !lives || !deleted.ran.status.success(),
            "it lives, and `delete` said {:?}",
            deleted.response
        );
        until("init to die", by(10.0), || (!alive(init)).then_some(()))?;
        let status = Command::new("runc")
            .arg("--root")
            .arg(root.join(kit.scratch.mark()))
            .args(["delete", "--force", &ours.id])
            .status()?;
        ensure!(status.success(), "runc delete: {status}");
        ours.shim.delete()?.ok()?;
        until("the bundle to be removed", by(10.0), || {
            let _ = ours.bundle.remove();
            (!ours.bundle.dir.exists()).then_some(())
        })?;
        no_waiter_is_left(kit.scratch.mark())
    });
}

/// As the pair's file of version 1 has its checksum.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(!0, step)
}

/// The file that names the pair does not say whose it is (version 1 did not), and names
/// another container's: `vigil kill` killed that, and `vigil upgrade` signalled it.
#[test]
fn the_tool_ends_no_pair_of_another_container() {
    trial(60, |kit| {
        let ours = kit.running(&Spec::sleeper())?;
        let other = kit.running(&Spec::sleeper())?;
        let theirs = Pair::of(&other.shim)?;
        ours.shim.kill_all()?;
        let text = fs::read_to_string(other.bundle.dir.join("pair"))?;
        let halves = text
            .lines()
            .filter(|line| line.starts_with("reaper ") || line.starts_with("shim "));
        let mut older = String::from("vigil-pair 1\n");
        for line in halves {
            older.push_str(line);
            older.push('\n');
        }
        let sum = format!("sum {:08x}\n", crc32c(older.as_bytes()));
        older.push_str(&sum);
        let padding = text.len() - older.len();
        older.push_str(&"\n".repeat(padding));
        fs::write(ours.bundle.dir.join("pair"), older)?;
        let tool = kit.binary.path.with_file_name("vigil");
        let state = kit.scratch.path("by-state");
        fs::create_dir_all(&state)?;
        let tasks = state.join("io.containerd.runtime.v2.task");
        std::os::unix::fs::symlink(kit.scratch.path("state"), tasks)?;
        for verb in ["upgrade", "kill"] {
            Command::new(&tool)
                .args([verb, &ours.id, "--namespace", kit.scratch.mark()])
                .env("VIGIL_CONTAINERD_STATE", &state)
                .output()?;
            ensure!(
                alive(theirs.reaper) && alive(theirs.shim),
                "vigil {verb} ended another container's pair"
            );
            let now = Pair::of(&other.shim)?;
            ensure!(now.shim == theirs.shim, "vigil {verb} reached its reaper");
        }
        let state = other.task().state(&other.id, "")?;
        ensure!(state.status.value() == 2, "not RUNNING: {state:?}");
        Ok(())
    });
}

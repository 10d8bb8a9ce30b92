//! What others do to a container's cgroup while the shim holds it: nest, freeze, divide,
//! leave behind. On v1 and v2; what only v2 has is left out on v1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::Options;
use serde_json::json;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::poll::sharp;
use vigil_lab::process::Process;
use vigil_lab::task::any;
use vigil_lab::{Event, Fact, Kit, Shim, Spec, by, until};

use crate::ends::nothing_left;

crate::behaviours! {
    "§6 A relative cgroupsPath: found, frozen, measured, killed and removed." relative_path;
    "§6 ShimCgroup: the shim is in it, the container is not." shim_cgroup;
    "§3.4 Pids, Stats and Kill --all see nested cgroups." nested_cgroups_count;
    "§3.4 Kill with SIGKILL ends what somebody else has frozen." frozen_by_others;
    "§3.5 A frozen nested cgroup does not outlive init." frozen_nested_dies_with_init;
    "§8.3 delete of nested and frozen cgroups." delete_with_nested_frozen;
    "§3.6 OOM of init: told, and before its exit." oom_of_init;
    "§3.6 OOM in a nested cgroup is the container's (v2)." oom_in_nested;
    "§3.6 memory.oom.group: all die, one OOM is told at least (v2)." oom_of_the_group;
    "§3.6 OOM kills an earlier life left in the counter are nobody's news." old_ooms_are_not_told;
    "§3.4 Exec into a container whose cgroup hands controllers down (v2)." exec_into_divided;
    "§3.4 Update of pids and processor: in force, and in Stats." update_pids_and_cpu;
}

const BASE: &str = "/sys/fs/cgroup";

fn unified() -> bool {
    Path::new(BASE).join("cgroup.procs").exists()
}

/// Directories for a cgroup's path: one on v2, on v1 that of each of `names`.
fn directories(path: &str, names: &[&str]) -> Vec<PathBuf> {
    let below = path.trim_start_matches('/');
    if unified() {
        return vec![Path::new(BASE).join(below)];
    }
    let mount = |name| Path::new(BASE).join(name).join(below);
    names.iter().map(mount).collect()
}

/// The path of a process' cgroup, on v1 in the hierarchy of `name`.
fn path_of(pid: u32, name: &str) -> Result<String> {
    let file = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let wanted = if unified() { "" } else { name };
    file.lines()
        .filter_map(|line| {
            line.splitn(3, ':')
                .skip(1)
                .collect::<Vec<_>>()
                .try_into()
                .ok()
        })
        .find_map(|[names, path]: [&str; 2]| {
            names
                .split(',')
                .any(|n| n == wanted)
                .then(|| path.to_owned())
        })
        .with_context(|| format!("no hierarchy {name:?} in {file:?}"))
}

/// The container's own cgroup: where kill, freeze and memory happen.
fn own(kit: &Kit, c: &Container) -> Vec<PathBuf> {
    let path = format!("/{}/{}", kit.scratch.mark(), c.id);
    directories(&path, &["freezer", "memory", "pids"])
}

/// Makes a cgroup below each and moves a process there.
fn nest(dirs: &[PathBuf], below: &str, pid: i32) -> Result<()> {
    for dir in dirs {
        let dir = dir.join(below);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("moving {pid} into {}", dir.display()))?;
    }
    Ok(())
}

fn freeze(dir: &Path) -> Result<()> {
    let (file, frozen, thawed) = if unified() {
        ("cgroup.freeze", "1", "0")
    } else {
        ("freezer.state", "FROZEN", "THAWED")
    };
    until("it is frozen", by(10.0), || {
        fs::write(dir.join(file), frozen).ok()?;
        let still = until("", sharp(0.2), || {
            let state = if unified() { "cgroup.events" } else { file };
            let now = fs::read_to_string(dir.join(state)).ok()?;
            (now.contains("frozen 1") || now.starts_with("FROZEN")).then_some(())
        });
        if still.is_err() {
            // v1 stays FREEZING for good if somebody forked at the wrong moment.
            fs::write(dir.join(file), thawed).ok()?;
        }
        still.ok()
    })
}

/// Processes of the container with these arguments.
fn named(kit: &Kit, id: &str, cmdline: &str) -> Vec<i32> {
    let group = format!("/{}/{id}", kit.scratch.mark());
    Process::all()
        .into_iter()
        .filter(|p| p.state != 'Z' && p.cgroup.contains(&group) && p.cmdline == cmdline)
        .map(|p| p.pid)
        .collect()
}

/// A container in the host's pid namespace with `sleep 1001` in a nested cgroup.
fn with_nested(kit: &Kit, script: &str) -> Result<(Container, i32)> {
    let spec = Spec {
        own_pids: false,
        ..Spec::sh(script)
    };
    let c = kit.running(&spec)?;
    let child = until("the child", by(5.0), || {
        named(kit, &c.id, "sleep 1001").first().copied()
    })?;
    nest(&own(kit, &c), "nested/deep", child)?;
    Ok((c, child))
}

fn relative_path(kit: &Kit) -> Result<()> {
    let mark = kit.scratch.mark();
    let mut linux = Spec::sleeper().config("")["linux"].take();
    linux["cgroupsPath"] = json!(format!("{mark}/relative"));
    let spec = Spec {
        extra: json!({ "linux": linux }),
        ..Spec::sleeper()
    };
    let c = kit.running(&spec)?;
    let path = path_of(c.pid, "freezer")?;
    ensure!(path.ends_with(&format!("/{mark}/relative")), "{path}");
    let dirs = directories(&path, &["freezer"]);
    ensure!(dirs[0].is_dir(), "no {}", dirs[0].display());
    let pids = until("two pids", by(5.0), || {
        let pids = c.task().pids(&c.id).ok()?.processes;
        (pids.len() == 2).then_some(pids)
    })?;
    ensure!(pids.iter().any(|p| p.pid == c.pid), "{pids:?}");
    ensure!(!c.task().stats(&c.id)?.value.is_empty());
    c.task().pause(&c.id)?;
    c.task().resume(&c.id)?;
    c.task().kill(&c.id, "", 9, true)?;
    ensure!(c.exit_status()? == 137);
    c.task().delete(&c.id, "")?;
    ensure!(!dirs[0].exists(), "{} is left", dirs[0].display());
    Ok(())
}

fn shim_cgroup(kit: &Kit) -> Result<()> {
    let path = format!("/{}/shims", kit.scratch.mark());
    let hierarchies: Vec<String> = if unified() {
        Vec::new()
    } else {
        let names = fs::read_dir(BASE)?.flatten().map(|e| e.file_name());
        names.map(|n| n.to_string_lossy().into_owned()).collect()
    };
    let names: Vec<&str> = hierarchies.iter().map(String::as_str).collect();
    for dir in directories(&path, &names) {
        fs::create_dir_all(&dir)?;
        // cpuset takes nobody before it has processors.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let (false, Ok(all)) = (
                unified(),
                fs::read_to_string(Path::new(BASE).join("cpuset").join(file)),
            ) {
                for at in [dir.parent().unwrap_or(&dir), dir.as_path()] {
                    let _ = fs::write(at.join(file), &all);
                }
            }
        }
    }
    let chosen = Options {
        shim_cgroup: path.clone(),
        ..Default::default()
    };
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let mut caller = kit.caller.clone();
    caller.options =
        any("containerd.runc.v1.Options", chosen.write_to_bytes()?).write_to_bytes()?;
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    kit.read_all(&bundle)?;
    for process in shim.processes() {
        let at = path_of(u32::try_from(process.pid)?, "pids")?;
        ensure!(at == path, "{} is in {at}", process.cmdline);
    }
    let mut request = bundle.create_request();
    request.options = Some(any("containerd.runc.v1.Options", chosen.write_to_bytes()?)).into();
    let pid = shim.task.create(&request)?.pid;
    let at = path_of(pid, "pids")?;
    ensure!(!at.starts_with(&path), "the container is in {at}");
    // Emptied before the kit looks: nobody removes it but who made it.
    shim.task.kill(&shim.id, "", 9, true)?;
    shim.task.wait(&shim.id, "")?;
    shim.task.delete(&shim.id, "")?;
    shim.task.shutdown(&shim.id)?;
    until("the shim to leave its cgroup", by(10.0), || {
        let left = directories(&path, &names)
            .into_iter()
            .filter(|d| d.exists() && fs::remove_dir(d).is_err())
            .count();
        (left == 0).then_some(())
    })
}

fn nested_cgroups_count(kit: &Kit) -> Result<()> {
    let (c, child) = with_nested(kit, "sleep 1001 & sleep 1000 & wait")?;
    let pids = c.task().pids(&c.id)?.processes;
    ensure!(
        pids.len() == 3 && pids.iter().any(|p| i32::try_from(p.pid) == Ok(child)),
        "{pids:?}"
    );
    ensure!(crate::resources::stats(&c)?.pids == 3);
    c.task().kill(&c.id, "", 9, true)?;
    ensure!(c.exit_status()? == 137);
    until("all to die", by(3.0), || {
        named(kit, &c.id, "sleep 1001").is_empty().then_some(())
    })
}

fn frozen_by_others(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    freeze(&own(kit, &c)[0])?;
    c.task().kill(&c.id, "", 9, false)?;
    ensure!(c.exit_status()? == 137);
    Ok(())
}

fn frozen_nested_dies_with_init(kit: &Kit) -> Result<()> {
    let (c, child) = with_nested(
        kit,
        "sleep 1001 & while ! [ -e /tmp/end ]; do sleep 0.02; done; exit 8",
    )?;
    freeze(&own(kit, &c)[0].join("nested/deep"))?;
    fs::write(format!("/proc/{}/root/tmp/end", c.pid), "")?;
    let status = c.exit_status()?;
    ensure!(status == 8, "exit status {status}");
    until("the child to die", by(3.0), || {
        (!vigil_lab::process::alive(child)).then_some(())
    })
}

fn delete_with_nested_frozen(kit: &Kit) -> Result<()> {
    let (c, _) = with_nested(kit, "sleep 1001 & sleep 1000 & wait")?;
    freeze(&own(kit, &c)[0].join("nested"))?;
    c.shim.kill_all()?;
    c.shim.delete()?.ok()?;
    nothing_left(kit, &c)
}

fn oom_of_init(kit: &Kit) -> Result<()> {
    let spec = Spec {
        memory: Some(16 << 20),
        ..Spec::sh("exec tail /dev/zero")
    };
    let c = kit.running(&spec)?;
    ensure!(c.exit_status()? == 137);
    kit.sink.expect("exit", by(5.0))?;
    let story = kit.sink.story();
    ensure!(story == ["create", "start", "oom", "exit"], "{story:?}");
    Ok(())
}

/// A container divided as systemd divides one: init in one nested cgroup, a workload in
/// another with 16 MiB, and controllers handed down to both.
fn divided(kit: &Kit) -> Result<(Container, PathBuf)> {
    let c = kit.running(&Spec::sh(
        "(while ! [ -e /tmp/go ]; do sleep 0.02; done; exec tail /dev/zero) & while :; do sleep 0.02; done",
    ))?;
    let dir = own(kit, &c)[0].clone();
    for below in ["init", "work"] {
        fs::create_dir(dir.join(below))?;
    }
    // Again and again: each sleep is a new process.
    until("the top to be empty", by(10.0), || {
        for pid in fs::read_to_string(dir.join("cgroup.procs")).ok()?.lines() {
            let busy = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let busy = busy.is_ok_and(|children| !children.trim().is_empty());
            let below = if *pid == c.pid.to_string() || !busy {
                "init"
            } else {
                "work"
            };
            let _ = fs::write(dir.join(below).join("cgroup.procs"), pid);
        }
        fs::write(dir.join("cgroup.subtree_control"), "+memory").ok()
    })?;
    // Whoever was asleep is in the wrong one; the loop's shell is what is to grow.
    let shells = named(
        kit,
        &c.id,
        &Process::read(i32::try_from(c.pid)?)
            .context("no init")?
            .cmdline,
    );
    for shell in shells
        .into_iter()
        .filter(|pid| u32::try_from(*pid) != Ok(c.pid))
    {
        fs::write(dir.join("work/cgroup.procs"), shell.to_string())?;
    }
    fs::write(dir.join("work/memory.max"), "16777216")?;
    Ok((c, dir))
}

fn told(event: &Event, c: &Container) -> bool {
    matches!(event.fact, Fact::Oom(ref e) if e.container_id == c.id)
}

fn oom_in_nested(kit: &Kit) -> Result<()> {
    if !unified() {
        return Ok(());
    }
    let (c, dir) = divided(kit)?;
    fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
    let event = kit.sink.expect("oom", by(15.0))?;
    ensure!(told(&event, &c), "{event:?}");
    let events = fs::read_to_string(dir.join("work/memory.events"))?;
    ensure!(events.contains("oom_kill 1\n"), "{events}");
    crate::behaviour::in_status(&c, "", containerd_shim_protos::api::Status::RUNNING)?;
    ensure!(
        c.task()
            .pids(&c.id)?
            .processes
            .iter()
            .any(|p| p.pid == c.pid)
    );
    Ok(())
}

fn exec_into_divided(kit: &Kit) -> Result<()> {
    if !unified() {
        return Ok(());
    }
    let (c, _) = divided(kit)?;
    kit.exec(&c, "e1", &Spec::sh("exit 4"))?;
    c.task().start(&c.id, "e1")?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 4);
    c.task().pause(&c.id)?;
    c.task().resume(&c.id)?;
    c.task().kill(&c.id, "", 9, true)?;
    ensure!(c.exit_status()? == 137);
    Ok(())
}

fn oom_of_the_group(kit: &Kit) -> Result<()> {
    if !unified() {
        return Ok(());
    }
    let spec = Spec {
        memory: Some(16 << 20),
        ..Spec::sh("while ! [ -e /tmp/go ]; do sleep 0.02; done; tail /dev/zero; sleep 1000")
    };
    let c = kit.running(&spec)?;
    fs::write(own(kit, &c)[0].join("memory.oom.group"), "1")?;
    fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
    ensure!(c.exit_status()? == 137);
    kit.sink.expect("exit", by(5.0))?;
    let story = kit.sink.story();
    let (first, rest) = story.split_at(2);
    ensure!(first == ["create", "start"], "{story:?}");
    ensure!(
        rest.len() >= 2 && rest.last().is_some_and(|l| l == "exit"),
        "{story:?}"
    );
    ensure!(
        rest[..rest.len() - 1].iter().all(|s| s == "oom"),
        "{story:?}"
    );
    Ok(())
}

fn old_ooms_are_not_told(kit: &Kit) -> Result<()> {
    let mark = kit.scratch.mark();
    let dir = directories(&format!("/{mark}/c1"), &["memory"]).remove(0);
    fs::create_dir_all(&dir)?;
    let limit = if unified() {
        fs::write(
            Path::new(BASE).join(mark).join("cgroup.subtree_control"),
            "+memory",
        )?;
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    let before = fs::read_to_string(dir.join(limit))?;
    fs::write(dir.join(limit), "8388608")?;
    let grown = Command::new("sh")
        .args(["-c", "echo $$ >\"$1\" && exec tail /dev/zero", "sh"])
        .arg(dir.join("cgroup.procs"))
        .status()?;
    ensure!(!grown.success(), "it outgrew its limit");
    let counter = if unified() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    let counted = fs::read_to_string(dir.join(counter))?;
    ensure!(counted.contains("oom_kill 1"), "{counted}");
    fs::write(
        dir.join(limit),
        if unified() { "max" } else { before.trim() },
    )?;

    let c = kit.running(&Spec::sh("sleep 0.2; exit 3"))?;
    ensure!(c.id == "c1", "{} is not where the counter is", c.id);
    ensure!(c.exit_status()? == 3);
    kit.sink.expect("exit", by(5.0))?;
    let story = kit.sink.story();
    ensure!(story == ["create", "start", "exit"], "{story:?}");
    Ok(())
}

fn update_pids_and_cpu(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().update(
        &c.id,
        &json!({"pids": {"limit": 20}, "cpu": {"quota": 50_000, "period": 100_000}}),
    )?;
    let path = format!("/{}/{}", kit.scratch.mark(), c.id);
    let read = |name: &str, file: &str| -> Result<String> {
        let file = directories(&path, &[name])[0].join(file);
        Ok(fs::read_to_string(&file)
            .with_context(|| file.display().to_string())?
            .trim()
            .to_owned())
    };
    ensure!(read("pids", "pids.max")? == "20");
    if unified() {
        ensure!(read("cpu", "cpu.max")? == "50000 100000");
    } else {
        ensure!(read("cpu", "cpu.cfs_quota_us")? == "50000");
    }
    ensure!(crate::resources::stats(&c)?.pids_limit == 20);
    Ok(())
}

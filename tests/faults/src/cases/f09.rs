//! F09: the host's pid namespace, or another container's. The kernel ends nobody with
//! init there; the runtime has to, and must hurt nobody else.

use std::fs;
use std::process::{Child, Command, Stdio as Pipe};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{configure, create, freezer, members, move_out, nothing_but_the_pair, one_exit};
use crate::world::{deleted, init_gone, nothing_left};

cases! {
    Kit All  f09_daemoniser "Init leaves a daemon that holds stdout and ends with 0: told when the daemon is gone";
    Kit All  f09_fork_loop "A fork loop in the host's pid namespace: all dead, Delete in 4 s";
    Kit All  f09_killed_with_15 "SIGTERM ends init, the rest is ended with it";
    Kit All  f09_child_in_nested_cgroup "A child in a nested cgroup is ended with init";
    Kit Ours f09_child_in_another_cgroup "A child that moved to another cgroup is ended with init, its neighbours there are not";
    Kit All  f09_config_gone "config.json is gone when init ends: the rest is ended all the same";
    Kit All  f09_config_gone_in_delete "config.json is gone and the pair killed: `delete` ends all";
    Kit All  f09_anothers_namespace "In the pid namespace of another container: ends alone, the other lives";
    Kit All  f09_neighbours "A process of the host's in another cgroup is never touched";
}

/// A container in the host's pid namespace.
fn host(kit: &Kit, script: &str) -> Result<Container> {
    kit.running(&Spec {
        own_pids: false,
        ..Spec::sh(script)
    })
}

/// A child of the container's with this command line.
fn child(kit: &Kit, container: &Container, cmdline: &str) -> Result<i32> {
    until("the child", by(5.0), || {
        let all = members(kit, &container.id);
        all.iter().find(|p| p.cmdline == cmdline).map(|p| p.pid)
    })
}

fn end(container: &Container) -> Result<()> {
    fs::write(format!("/proc/{}/root/tmp/end", container.pid), "").context("telling it to end")
}

/// Init's exit is told with `status`, and by then nobody of the container's is alive.
fn ended(kit: &Kit, container: &Container, status: u32) -> Result<()> {
    let at = Instant::now();
    let waited = container.task().patient(10.0).wait(&container.id, "")?;
    let left = members(kit, &container.id);
    ensure!(waited.exit_status == status, "{waited:?}");
    ensure!(left.is_empty(), "told while these live: {left:?}");
    ensure!(at.elapsed() < GENEROUS, "told after {:?}", at.elapsed());
    one_exit(kit, container, status)?;
    nothing_but_the_pair(kit, &container.id)
}

const ENDS: &str = "while ! [ -e /tmp/end ]; do sleep 0.02; done; exit 0";

fn f09_daemoniser(kit: &Kit) -> Result<()> {
    let container = host(kit, &format!("setsid sleep 1001 & {ENDS}"))?;
    let daemon = child(kit, &container, "sleep 1001")?;
    end(&container)?;
    ended(kit, &container, 0)?;
    ensure!(!alive(daemon), "the daemon lives");
    container.out()?.to_end(by(5.0)).context("stdout").map(drop)
}

fn f09_fork_loop(kit: &Kit) -> Result<()> {
    // Bounded, so that the machine survives a runtime that gives up.
    let script = "while :; do sleep 3 & sleep 0.02; done";
    let spec = Spec {
        own_pids: false,
        ..Spec::sh(script)
    };
    let mut container = kit.prepared(&spec, Stdio::Output)?;
    configure(&container, |config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 300 });
    })?;
    create(&mut container, None)?;
    container.start()?;
    until("a crowd", by(20.0), || {
        (members(kit, &container.id).len() > 30).then_some(())
    })?;
    container.task().kill(&container.id, "", 9, false)?;
    let waited = container.task().patient(10.0).wait(&container.id, "")?;
    ensure!([137, 2].contains(&waited.exit_status), "{waited:?}");
    let at = Instant::now();
    container.task().patient(10.0).delete(&container.id, "")?;
    ensure!(at.elapsed() < GENEROUS, "Delete took {:?}", at.elapsed());
    nothing_but_the_pair(kit, &container.id)
}

fn f09_killed_with_15(kit: &Kit) -> Result<()> {
    let container = host(
        kit,
        "trap 'exit 3' TERM; sleep 1001 & echo ready; wait; wait",
    )?;
    container.out()?.expect("ready", by(5.0))?;
    child(kit, &container, "sleep 1001")?;
    container.task().kill(&container.id, "", 15, false)?;
    ended(kit, &container, 3)
}

fn f09_child_in_nested_cgroup(kit: &Kit) -> Result<()> {
    let container = host(kit, &format!("sleep 1001 & {ENDS}"))?;
    let nested = child(kit, &container, "sleep 1001")?;
    let group = freezer(kit, &container.id).join("x/y");
    fs::create_dir_all(&group)?;
    fs::write(group.join("cgroup.procs"), nested.to_string())?;
    end(&container)?;
    ended(kit, &container, 0)
}

/// A process of the host's that has nothing to do with any of this.
struct Neighbour(Child);

impl Neighbour {
    fn start() -> Result<Self> {
        let child = Command::new("sleep")
            .arg("300")
            .stdin(Pipe::null())
            .stdout(Pipe::null())
            .spawn()?;
        Ok(Self(child))
    }

    fn lives(&mut self) -> Result<()> {
        let ended = self.0.try_wait()?;
        ensure!(ended.is_none(), "a stranger was hurt: {ended:?}");
        Ok(())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn f09_child_in_another_cgroup(kit: &Kit) -> Result<()> {
    let mut neighbour = Neighbour::start()?;
    // One whose parent lives, and one that has been handed to the reaper.
    let container = host(kit, &format!("sleep 1001 & (setsid sleep 1002 &) ; {ENDS}"))?;
    let mut escaped = Vec::new();
    for cmdline in ["sleep 1001", "sleep 1002"] {
        let pid = child(kit, &container, cmdline)?;
        move_out(pid)?;
        escaped.push(pid);
    }
    end(&container)?;
    ended(kit, &container, 0)?;
    for pid in &escaped {
        let left = Process::read(*pid);
        ensure!(!alive(*pid), "it lives: {left:?}");
    }
    neighbour.lives()
}

fn f09_config_gone(kit: &Kit) -> Result<()> {
    let container = host(kit, &format!("setsid sleep 1001 & {ENDS}"))?;
    child(kit, &container, "sleep 1001")?;
    fs::remove_file(container.bundle.dir.join("config.json"))?;
    end(&container)?;
    ended(kit, &container, 0)
}

fn f09_config_gone_in_delete(kit: &Kit) -> Result<()> {
    let container = host(kit, "setsid sleep 1001 & exec sleep 1000")?;
    let daemon = child(kit, &container, "sleep 1001")?;
    fs::remove_file(container.bundle.dir.join("config.json"))?;
    container.shim.kill_all()?;
    let said = deleted(&container)?;
    ensure!(said.exit_status == 137, "{said:?}");
    ensure!(!alive(daemon), "the daemon lives");
    nothing_left(kit, &container.id)
}

fn f09_anothers_namespace(kit: &Kit) -> Result<()> {
    let pause = kit.running(&Spec::sleeper())?;
    let path = format!("/proc/{}/ns/pid", pause.pid);
    let script = format!("(setsid sleep 1001 &) ; {ENDS}");
    let spec = Spec {
        own_pids: false,
        ..Spec::sh(&script)
    };
    let mut container = kit.prepared(&spec, Stdio::Output)?;
    configure(&container, |config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({ "type": "pid", "path": path }));
        }
    })?;
    create(&mut container, None)?;
    container.start()?;
    let daemon = child(kit, &container, "sleep 1001")?;
    end(&container)?;
    ended(kit, &container, 0)?;
    ensure!(!alive(daemon), "the daemon lives");
    let others = members(kit, &pause.id);
    ensure!(
        others.iter().any(|p| u32::try_from(p.pid) == Ok(pause.pid)),
        "the other container was hurt: {others:?}"
    );
    Ok(())
}

fn f09_neighbours(kit: &Kit) -> Result<()> {
    let mut neighbour = Neighbour::start()?;
    let container = host(kit, "sleep 1001 & exec sleep 1000")?;
    container.task().kill(&container.id, "", 9, true)?;
    init_gone(&container, 5.0)?;
    ended(kit, &container, 137)?;
    neighbour.lives()
}

//! F02: the runtime dies while the container runs. All of it goes, what is known of its
//! end is told, and nothing is made up.

use anyhow::{Context, Result, ensure};
use vigil_lab::process::{alive, signal_if};
use vigil_lab::{Kit, Place, Spec, by, until};

use crate::cases;
use crate::rest::{prepared_with, signal_init};
use crate::world::{deleted, nothing_left};

cases! {
    Kit    All f02_fatal_signals "SIGSEGV and SIGABRT of the runtime: as SIGKILL, nothing left, 137 of what was killed";
    Kit    All f02_init_dead_but_not_reaped "Killed when init is dead and nobody has seen it: the true status or 255, never 137";
    Kit    All f02_exit_seen_then_killed "Killed right after the exit: the true status, each time";
    Daemon All f02_killed_together_with_containerd "containerd and runtime killed at once, containerd restarted: gone, nothing left";
    Daemon All f02_three_at_once "Three containers' runtimes killed at once: none is forgotten";
}

fn f02_fatal_signals(kit: &Kit) -> Result<()> {
    for signal in [11, 6, 4] {
        let container = kit.running(&Spec::sleeper())?;
        let ours = container.shim.processes();
        // Whoever outlives the other makes two again.
        until("the runtime to die", by(10.0), || {
            let left = container.shim.processes();
            for process in &left {
                signal_if(process.pid, signal, |now| now.cmdline == process.cmdline);
            }
            (left.is_empty() && ours.iter().all(|p| !alive(p.pid))).then_some(())
        })
        .with_context(|| format!("signal {signal}"))?;
        let said = deleted(&container)?;
        ensure!(
            said.exit_status == 137 && said.pid == container.pid,
            "signal {signal}: {said:?}"
        );
        nothing_left(kit, &container.id)?;
    }
    Ok(())
}

fn f02_init_dead_but_not_reaped(kit: &Kit) -> Result<()> {
    let spec = Spec::sh("while ! [ -e /tmp/end ]; do sleep 0.02; done; exit 7");
    let mut container = prepared_with(kit, &spec, vigil_lab::bundle::Stdio::Output, &[])?;
    crate::rest::create(&mut container, None)?;
    container.start()?;
    let ours = container.shim.processes();
    for process in &ours {
        signal_if(process.pid, 19, |now| now.cmdline == process.cmdline);
    }
    std::fs::write(format!("/proc/{}/root/tmp/end", container.pid), "")?;
    let pid = i32::try_from(container.pid)?;
    let dead = until("init to end", by(5.0), || (!alive(pid)).then_some(()));
    for process in &ours {
        signal_if(process.pid, 9, |now| now.cmdline == process.cmdline);
    }
    dead?;
    until("the runtime to die", by(5.0), || {
        ours.iter().all(|p| !alive(p.pid)).then_some(())
    })?;
    let said = deleted(&container)?;
    ensure!([7, 255].contains(&said.exit_status), "made up: {said:?}");
    nothing_left(kit, &container.id)
}

fn f02_exit_seen_then_killed(kit: &Kit) -> Result<()> {
    for round in 1..=10 {
        let container = kit.running(&Spec::sh(&format!(
            "while ! [ -e /tmp/end ]; do sleep 0.01; done; exit {round}"
        )))?;
        std::fs::write(format!("/proc/{}/root/tmp/end", container.pid), "")?;
        let waited = container.task().wait(&container.id, "")?;
        container.shim.kill_all()?;
        let said = deleted(&container)?;
        ensure!(
            said.exit_status == round && said.exited_at == waited.exited_at,
            "round {round}: {said:?} after {waited:?}"
        );
        nothing_left(kit, &container.id)?;
    }
    let killed = kit.running(&Spec::sleeper())?;
    signal_init(&killed, 15)?;
    Ok(())
}

fn gone(place: &Place, id: &str) -> Result<()> {
    until(&format!("task {id} to be gone"), by(15.0), || {
        let status = place.containerd.task_status(id).ok()?;
        status.is_none_or(|s| s == "STOPPED").then_some(())
    })?;
    // Where it is still listed, it can be removed.
    let _ = place.containerd.ctr(&["tasks", "rm", id]);
    ensure!(
        place.containerd.task_status(id)?.is_none(),
        "{id} is still listed"
    );
    place.containerd.ctr(&["containers", "rm", id]).map(drop)
}

fn f02_killed_together_with_containerd(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    let init = place.pid("c")?;
    place.containerd.stop(9)?;
    ensure!(place.kill_shims("c")? > 0, "no shim to kill");
    place.containerd.launch()?;
    gone(place, "c")?;
    ensure!(!alive(init), "init {init} lives on");
    Ok(())
}

fn f02_three_at_once(place: &mut Place) -> Result<()> {
    let mut inits = Vec::new();
    for id in ["a", "b", "c"] {
        place.detached(id, &["sleep", "1000"])?;
        inits.push(place.pid(id)?);
    }
    for id in ["a", "b", "c"] {
        place.kill_shims(id)?;
    }
    for id in ["a", "b", "c"] {
        gone(place, id)?;
    }
    for init in inits {
        ensure!(!alive(init), "init {init} lives on");
    }
    Ok(())
}

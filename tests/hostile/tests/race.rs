//! `kill -9 SHIM REAPER`, in that order: the reaper may start another shim before it dies
//! itself, at any point of that shim's beginning. Whoever is left then serves, or leaves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vigil_hostile::{Pair, trial};
use vigil_lab::process::alive;
use vigil_lab::{Kit, Spec, Task, by, until};

/// How often; 200 were counted for what README says.
fn rounds() -> u32 {
    let asked = std::env::var("VIGIL_TEST_ROUNDS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(24)
}

/// What became of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody is left, and `delete` has ended the container.
    Both,
    /// The shim that was killed had a successor, which serves alone.
    Alone,
}

/// The shim, then after `gap` the reaper.
fn killed(kit: &Kit, gap: Duration) -> Result<End> {
    let container = kit.running(&Spec::sleeper())?;
    let pair = Pair::of(&container.shim)?;
    let init = i32::try_from(container.pid)?;
    kill(Pid::from_raw(pair.shim), Signal::SIGKILL)?;
    let at = Instant::now();
    while at.elapsed() < gap {
        std::hint::spin_loop();
    }
    kill(Pid::from_raw(pair.reaper), Signal::SIGKILL)?;
    until("the two to die", by(20.0), || {
        (!alive(pair.shim) && !alive(pair.reaper)).then_some(())
    })?;
    // Somebody who comes back, as containerd does when the connection has dropped.
    let asked = || {
        let task = Task::connect(&container.shim.reply.socket, vigil_lab::task::V2).ok()?;
        let state = task.patient(1.0).state(&container.id, "").ok()?;
        Some((task, state))
    };
    let end = until(
        "the one that is left to serve or to leave",
        by(30.0),
        || {
            if container.shim.processes().is_empty() {
                return Some(None);
            }
            asked().map(Some)
        },
    );
    let Some((task, state)) = end.with_context(|| format!("{:?}", container.shim.processes()))?
    else {
        let said = container.shim.delete()?.ok()?;
        ensure!(
            said.exit_status == 137 && said.pid == container.pid,
            "{said:?}"
        );
        ensure!(!alive(init), "init lives on after `delete`");
        return Ok(End::Both);
    };
    ensure!(state.status.value() == Status::RUNNING as i32, "{state:?}");
    ensure!(alive(init), "init has ended, and State says {state:?}");
    // Not for ever: it does what it is told, and its death is that of both.
    let task = task.patient(20.0);
    task.kill(&container.id, "", 9, true)
        .context("Kill by the one that is left")?;
    let waited = task.wait(&container.id, "")?;
    ensure!([137, 255].contains(&waited.exit_status), "{waited:?}");
    task.delete(&container.id, "")
        .context("Delete by the one that is left")?;
    task.shutdown(&container.id)?;
    until("it to leave", by(20.0), || {
        container.shim.processes().is_empty().then_some(())
    })?;
    container.shim.delete()?.ok()?;
    Ok(End::Alone)
}

#[test]
fn the_shim_killed_before_its_reaper_leaves_nobody_who_does_not_serve() {
    let rounds = rounds();
    trial(60 + u64::from(rounds) * 5, move |kit| {
        let mut seen = Vec::new();
        for round in 0..rounds {
            // As one command does it, and up to the time that a successor takes to serve.
            let gap = Duration::from_micros(u64::from(round % 12) * 400);
            let end = killed(kit, gap).with_context(|| format!("round {round}, {gap:?}"))?;
            seen.push((gap, end));
        }
        for gap in seen
            .iter()
            .map(|(gap, _)| *gap)
            .collect::<std::collections::BTreeSet<_>>()
        {
            let count = |end| seen.iter().filter(|one| **one == (gap, end)).count();
            println!(
                "{gap:?}: {} gone, {} alone",
                count(End::Both),
                count(End::Alone)
            );
        }
        if seen.is_empty() {
            bail!("nothing was tried");
        }
        Ok(())
    });
}

//! F22: out of memory. Told once for each kill's container, before the exit, and only when
//! it is so.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use vigil_lab::kit::Container;
use vigil_lab::{Fact, Kit, Spec, by};

use crate::cases;
use crate::rest::nothing_but_the_pair;
use crate::world::unified;

cases! {
    Kit All f22_child_then_sigterm "A child is killed for memory, init lives and ends by SIGTERM: one OOM, then 143";
    Kit All f22_ten_at_once "Ten inits killed for memory at once: each one's OOM before its exit" alone;
    Kit All f22_limit_of_the_parent "The limit is the parent's: OOM before the exit of who was killed";
    Kit All f22_no_oom_for_a_kill "SIGKILL is no OOM";
    Kit All f22_short_life "Killed for memory as soon as it is started: OOM before the exit";
}

const MIB: u64 = 1 << 20;

fn about(kit: &Kit, id: &str) -> Vec<&'static str> {
    kit.sink
        .all()
        .iter()
        .filter_map(|event| match &event.fact {
            Fact::Oom(oom) if oom.container_id == id => Some("oom"),
            Fact::Exit(exit) if exit.container_id == id => Some("exit"),
            _ => None,
        })
        .collect()
}

fn exits(kit: &Kit, container: &Container) -> Result<()> {
    kit.sink
        .wait("its exit", by(10.0), |event| match &event.fact {
            Fact::Exit(exit) if exit.container_id == container.id => Some(()),
            _ => None,
        })
}

fn f22_child_then_sigterm(kit: &Kit) -> Result<()> {
    let spec = Spec {
        memory: Some(16 * MIB),
        ..Spec::sh("trap 'exit 143' TERM; tail /dev/zero; echo over; while :; do sleep 0.05; done")
    };
    let container = kit.running(&spec)?;
    container.out()?.expect("over", by(20.0))?;
    kit.sink.expect("oom", by(5.0)).context("while it lives")?;
    container.task().kill(&container.id, "", 15, false)?;
    let waited = container.task().wait(&container.id, "")?;
    ensure!(waited.exit_status == 143, "{waited:?}");
    exits(kit, &container)?;
    let told = about(kit, &container.id);
    ensure!(told == ["oom", "exit"], "{told:?}");
    Ok(())
}

fn f22_ten_at_once(kit: &Kit) -> Result<()> {
    let spec = Spec {
        memory: Some(16 * MIB),
        ..Spec::sh("exec tail /dev/zero")
    };
    let all: Vec<Container> = (0..10).map(|_| kit.created(&spec)).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let started: Vec<_> = all.iter().map(|c| scope.spawn(|| c.start())).collect();
        for one in started {
            // Killed so soon that Start may say so.
            let _ = one.join().map_err(|_| anyhow!("it panicked"))?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    for container in &all {
        let waited = container.task().patient(30.0).wait(&container.id, "")?;
        ensure!(waited.exit_status == 137, "{waited:?}");
        exits(kit, container)?;
        let told = about(kit, &container.id);
        ensure!(told == ["oom", "exit"], "{}: {told:?}", container.id);
    }
    Ok(())
}

fn f22_limit_of_the_parent(kit: &Kit) -> Result<()> {
    // The parent is the namespace's own cgroup, which the first container makes.
    let first = kit.created(&Spec::sleeper())?;
    let parent = if unified() {
        Path::new("/sys/fs/cgroup").join(kit.scratch.mark())
    } else {
        Path::new("/sys/fs/cgroup/memory").join(kit.scratch.mark())
    };
    let limit = if unified() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    let container = kit.created(&Spec::sh("exec tail /dev/zero"))?;
    fs::write(parent.join(limit), (48 * MIB).to_string())
        .with_context(|| parent.display().to_string())?;
    let _ = container.start();
    let waited = container.task().patient(30.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    exits(kit, &container)?;
    let told = about(kit, &container.id);
    ensure!(told == ["oom", "exit"], "{told:?}");
    ensure!(about(kit, &first.id).is_empty(), "told of another too");
    container.task().delete(&container.id, "")?;
    nothing_but_the_pair(kit, &container.id)
}

fn f22_no_oom_for_a_kill(kit: &Kit) -> Result<()> {
    let spec = Spec {
        memory: Some(64 * MIB),
        ..Spec::sleeper()
    };
    let container = kit.running(&spec)?;
    container.task().kill(&container.id, "", 9, true)?;
    ensure!(container.exit_status()? == 137);
    exits(kit, &container)?;
    let told = about(kit, &container.id);
    ensure!(told == ["exit"], "{told:?}");
    Ok(())
}

fn f22_short_life(kit: &Kit) -> Result<()> {
    for _ in 0..4 {
        let spec = Spec {
            memory: Some(8 * MIB),
            ..Spec::args(&["tail", "/dev/zero"])
        };
        let container = kit.created(&spec)?;
        let _ = container.start();
        let waited = container.task().patient(30.0).wait(&container.id, "")?;
        ensure!(waited.exit_status == 137, "{waited:?}");
        exits(kit, &container)?;
        let told = about(kit, &container.id);
        ensure!(told == ["oom", "exit"], "{}: {told:?}", container.id);
    }
    Ok(())
}

//! F04: Delete over a device that stalls, and behind a runc that takes its time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::DeleteResponse;
use serde_json::Value;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::{Container, repository};
use vigil_lab::poll::sharp;
use vigil_lab::process::Process;
use vigil_lab::residue::mount_points;
use vigil_lab::{GENEROUS, Kit, Spec, Task, by, until};

use crate::cases;
use crate::ice::{Ice, Layer};
use crate::rest::{due, nothing_but_the_pair};
use crate::watch::{Watch, waits_for_a_device};
use crate::world::{nothing_left, runc_state, running_under, scripted};

cases! {
    Kit All  f04_delete_over_a_stalled_device "Delete while the rootfs' device stalls: an answer in 4 s, State meanwhile, nobody in D" alone;
    Kit Ours f04_stalled_delete_leaves_a_tombstone "Delete while the device stalls, Shutdown: the pair leaves, a tombstone says what is left" alone;
    Kit Ours f04_swept_by_start "After the stall the next `start` finishes what is left" alone;
    Kit Ours f04_swept_by_delete "After the stall the next `delete` finishes what is left" alone;
    Kit Ours f04_swept_by_repair "After the stall `vigil repair --write` finishes what is left" alone;
    Kit All  f04_delete_command_over_a_stalled_device "`delete` of a killed pair while the device stalls: out in 4 s, and true" alone;
    Kit All  f04_short_stall "A stall that ends within Delete's time: nothing is left, and nothing is said to be" alone;
    Kit All  f04_slow_runc_delete "runc delete takes 12 s: Delete answers in 4 s, again the same, nothing left";
    Kit All  f04_client_hangs_up "A client that hangs up in mid-Delete and asks again: the same answer";
}

// Those that stall a device are tried alone: whoever makes a mount namespace meanwhile has
// a copy of the mount in it, and waits for the device in our runtime's stead.

/// A stall lasts at most so long, whatever becomes of the test.
const STALL: u32 = 60;
/// Delete's time.
const ANSWER: Duration = GENEROUS;

/// A container that has ended with status 137, its root file system on `ice`, dirty.
fn ended_on(kit: &Kit, ice: &Ice) -> Result<Container> {
    let spec = Spec::sh("head -c 2000000 /dev/zero >/dirt; echo ready; exec sleep 1000");
    let mut container = kit.prepared(&spec, Stdio::Output)?;
    container.bundle.rootfs = vec![ice.overlay(&kit.scratch.path("base"))];
    let made = container.task().create(&container.bundle.create_request());
    container.pid = made
        .with_context(|| format!("Create; log: {}", container.bundle.log_text()))?
        .pid;
    container.start()?;
    container.out()?.expect("ready", by(10.0))?;
    Ok(container)
}

fn kill(container: &Container) -> Result<()> {
    container.task().kill(&container.id, "", 9, true)?;
    let status = container.exit_status()?;
    ensure!(status == 137, "exit status {status}");
    Ok(())
}

fn in_time(what: &str, took: Duration) -> Result<()> {
    ensure!(took <= ANSWER, "{what} took {took:?}");
    Ok(())
}

/// Delete answers in time with status 137, and the same once more.
fn answers(container: &Container) -> Result<DeleteResponse> {
    let task = container.task().patient(30.0);
    let at = Instant::now();
    let first = task.delete(&container.id, "");
    in_time("Delete", at.elapsed()).with_context(|| format!("{first:?}"))?;
    let first = first.with_context(|| format!("Delete; log: {}", container.bundle.log_text()))?;
    ensure!(first.exit_status == 137, "Delete says {first:?}");
    let at = Instant::now();
    let again = task.delete(&container.id, "").context("Delete, again")?;
    in_time("Delete, again,", at.elapsed())?;
    ensure!(again == first, "first {first:?}, then {again:?}");
    Ok(first)
}

fn f04_delete_over_a_stalled_device(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = ended_on(kit, &ice)?;
    kill(&container)?;
    ice.freeze(Layer::Device, STALL)?;
    let watch = Watch::start(&container)?;
    let answer = answers(&container);
    // A while longer: who answered first and slept then would be found out.
    std::thread::sleep(Duration::from_millis(500));
    let seen = watch.end()?;
    let someone = stalled();
    ice.thaw();
    answer?;
    seen.calm()?;
    ensure!(someone, "nothing stalled: the test has tested nothing");
    Ok(())
}

/// Whether somebody is kept in D by the stall.
fn stalled() -> bool {
    Process::all().iter().any(|p| waits_for_a_device(p.pid))
}

fn tombstone(kit: &Kit, id: &str) -> PathBuf {
    Path::new("/run/vigil/tombstones").join(format!("{}+{id}.json", kit.scratch.mark()))
}

/// The tombstone, which must name what is left.
fn names_what_is_left(kit: &Kit, container: &Container) -> Result<()> {
    let path = tombstone(kit, &container.id);
    let stone: Value = serde_json::from_slice(
        &fs::read(&path).with_context(|| format!("no tombstone {}", path.display()))?,
    )?;
    ensure!(
        stone["id"] == container.id.as_str() && stone["namespace"] == kit.scratch.mark(),
        "{stone}"
    );
    let left = stone["left"].to_string();
    ensure!(
        left.contains("rootfs") || left.contains("mount"),
        "it does not name what is left: {stone}"
    );
    Ok(())
}

/// A stalled Delete, Shutdown, `delete`, as containerd does; the frozen file system and
/// the container come back, the pair gone.
fn left_stalled(kit: &Kit) -> Result<(Ice, Container)> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = ended_on(kit, &ice)?;
    kill(&container)?;
    ice.freeze(Layer::Device, STALL)?;
    answers(&container)?;
    let pids: Vec<i32> = container.shim.processes().iter().map(|p| p.pid).collect();
    container.task().shutdown(&container.id)?;
    until("the pair to leave", by(5.0), || {
        // A worker in D is a zombie's child or init's by now; it is no shim.
        let gone = |pid: &i32| !vigil_lab::process::alive(*pid);
        pids.iter().all(gone).then_some(())
    })?;
    ensure!(
        !container.shim.reply.socket.exists(),
        "the socket outlives the pair"
    );
    let at = Instant::now();
    let said = container.shim.delete()?.ok()?;
    in_time("`delete`", at.elapsed())?;
    ensure!(said.exit_status == 137, "`delete` says {said:?}");
    Ok((ice, container))
}

fn f04_stalled_delete_leaves_a_tombstone(kit: &Kit) -> Result<()> {
    let (ice, container) = left_stalled(kit)?;
    let named = names_what_is_left(kit, &container);
    ice.thaw();
    named?;
    swept(kit, &container, || {
        // Any later life sweeps; so does this one's own `delete`, repeated.
        container.shim.delete()?.ok().map(drop)
    })
}

/// `sweep` takes away the tombstone and what it stands for.
fn swept(kit: &Kit, container: &Container, sweep: impl Fn() -> Result<()>) -> Result<()> {
    let stone = tombstone(kit, &container.id);
    until("the worker to come back", by(30.0), || {
        (!stalled()).then_some(())
    })?;
    // Out of D the worker has some way to go yet, and until then the stone stands for it.
    let gone = until("the tombstone to be taken away", by(30.0), || {
        due(kit, &container.id).ok()?;
        if let Err(error) = sweep() {
            return Some(Err(error));
        }
        let gone = until("", sharp(1.0), || (!stone.exists()).then_some(()));
        gone.ok().map(Ok)
    });
    if let Ok(Err(error)) = gone {
        return Err(error);
    }
    if gone.is_err() {
        bail!(
            "the tombstone stays: {}",
            fs::read_to_string(&stone).unwrap_or_default()
        );
    }
    let rootfs = container.bundle.dir.join("rootfs").display().to_string();
    ensure!(
        !mount_points().contains(&rootfs),
        "{rootfs} is still mounted"
    );
    nothing_left(kit, &container.id)
}

/// The stall is over, containerd has removed the bundle, and the tombstone's next try is due.
fn over(kit: &Kit, ice: &Ice, container: &Container) -> Result<()> {
    names_what_is_left(kit, container)?;
    ice.thaw();
    container.bundle.remove()?;
    until("the worker to come back", by(30.0), || {
        (!stalled()).then_some(())
    })?;
    due(kit, &container.id)
}

fn f04_swept_by_start(kit: &Kit) -> Result<()> {
    let (ice, container) = left_stalled(kit)?;
    over(kit, &ice, &container)?;
    swept(kit, &container, || {
        let other = kit.bundle(&Spec::sleeper(), Stdio::Empty)?;
        kit.shim(&other).map(drop)
    })
}

fn f04_swept_by_delete(kit: &Kit) -> Result<()> {
    let other = kit.running(&Spec::sleeper())?;
    let (ice, container) = left_stalled(kit)?;
    over(kit, &ice, &container)?;
    swept(kit, &container, || {
        other.shim.kill_all()?;
        other.shim.delete()?.ok().map(drop)
    })
}

fn f04_swept_by_repair(kit: &Kit) -> Result<()> {
    let (ice, container) = left_stalled(kit)?;
    over(kit, &ice, &container)?;
    swept(kit, &container, || {
        let beside = kit.binary.path.with_file_name("vigil");
        let tool = if beside.exists() {
            beside
        } else {
            repository().join("target/debug/vigil")
        };
        let mut command = Command::new(tool);
        command.args(["repair", "--write", "--namespace", kit.scratch.mark()]);
        command.arg("--state").arg(kit.scratch.path("state"));
        command.arg(&container.id);
        let ran = vigil_lab::shim::run(&mut command, &[], true, by(20.0))?;
        // Somebody else's sweeper may have been faster.
        ensure!(
            ran.status.success() || !tombstone(kit, &container.id).exists(),
            "{}: {}",
            ran.status,
            String::from_utf8_lossy(&ran.stdout)
        );
        Ok(())
    })
}

fn f04_delete_command_over_a_stalled_device(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = ended_on(kit, &ice)?;
    ice.freeze(Layer::Device, STALL)?;
    container.shim.kill_all()?;
    let at = Instant::now();
    let said = container.shim.delete().and_then(vigil_lab::Deleted::ok);
    let took = at.elapsed();
    let named = names_what_is_left(kit, &container);
    ice.thaw();
    in_time("`delete`", took)?;
    let said = said?;
    ensure!(
        said.exit_status == 137 && said.pid == container.pid,
        "{said:?}"
    );
    ensure!(
        !vigil_lab::process::alive(i32::try_from(container.pid)?),
        "init lives"
    );
    named?;
    swept(kit, &container, || container.shim.delete()?.ok().map(drop))
}

fn f04_short_stall(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = ended_on(kit, &ice)?;
    kill(&container)?;
    ice.freeze(Layer::Device, STALL)?;
    let watch = Watch::start(&container)?;
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| answers(&container));
        let waits = until("somebody to wait for the device", by(3.0), || {
            (stalled() || asked.is_finished()).then_some(())
        });
        ice.thaw();
        waits?;
        asked.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    });
    answer?;
    watch.end()?.calm()?;
    container.task().shutdown(&container.id)?;
    container.shim.delete()?.ok()?;
    ensure!(
        !tombstone(kit, &container.id).exists(),
        "a tombstone for nothing"
    );
    nothing_left(kit, &container.id)
}

fn f04_slow_runc_delete(kit: &Kit) -> Result<()> {
    let (_, options) = scripted(kit, "slow", "[ \"$verb\" = delete ] && sleep 12")?;
    let container = running_under(kit, &Spec::sleeper(), &options)?;
    kill(&container)?;
    let watch = Watch::start(&container)?;
    let answer = answers(&container);
    watch.end()?.brisk()?;
    answer?;
    nothing_but_the_pair(kit, &container.id)?;
    let state = runc_state(kit, &container.id);
    ensure!(!state.exists(), "{} is left", state.display());
    Ok(())
}

fn f04_client_hangs_up(kit: &Kit) -> Result<()> {
    let (_, options) = scripted(kit, "slow", "[ \"$verb\" = delete ] && sleep 1")?;
    let container = running_under(kit, &Spec::sh("exit 6"), &options)?;
    ensure!(container.exit_status()? == 6);
    let other = Task::connect(&container.shim.reply.socket, service(&container))?;
    ensure!(
        other.patient(0.3).delete(&container.id, "").is_err(),
        "it was not slow"
    );
    drop(other);
    let task = Task::connect(&container.shim.reply.socket, service(&container))?;
    let first = task
        .patient(8.0)
        .delete(&container.id, "")
        .context("Delete, again")?;
    ensure!(first.exit_status == 6, "{first:?}");
    let again = task
        .delete(&container.id, "")
        .context("Delete, a third time")?;
    ensure!(again == first, "first {first:?}, then {again:?}");
    nothing_but_the_pair(kit, &container.id)
}

fn service(container: &Container) -> &'static str {
    if container.shim.reply.version >= 3 {
        vigil_lab::task::V3
    } else {
        vigil_lab::task::V2
    }
}

//! F13: an exec is gone and a child of it keeps its output open. Its exit is told at once,
//! its output ends in time, and the child dies with the container.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vigil_lab::kit::Container;
use vigil_lab::{GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{members, nothing_but_the_pair, one_exit, signal_init};

cases! {
    Kit All f13_child_keeps_the_pipe "A background child holds an exec's pipe: exit at once; the end of output comes with Delete";
    Kit All f13_child_of_host_pids "The same in the host's pid namespace";
    Kit All f13_child_closed_the_pipe "The child has closed its streams: the same, and sooner";
    Kit All f13_child_keeps_the_terminal "The child holds an exec's terminal: the same";
    Kit All f13_container_deleted_meanwhile "The container ends while the child holds the pipe: all die, the output ends";
}

/// The exec's exit is told, its output ends, and it is deleted.
fn told(kit: &Kit, container: &Container, spec: &Spec, words: &str) -> Result<()> {
    let exec = kit.exec(container, "e", spec)?;
    container.task().start(&container.id, "e")?;
    let at = Instant::now();
    let waited = container.task().patient(10.0).wait(&container.id, "e")?;
    ensure!(waited.exit_status == 5, "{waited:?}");
    ensure!(at.elapsed() < GENEROUS, "Wait took {:?}", at.elapsed());
    kit.sink.expect("exit e", by(2.0))?;
    let (bytes, _) = exec.stdout.to_end(by(8.0)).context("the exec's output")?;
    let text = String::from_utf8_lossy(&bytes);
    ensure!(text.contains(words), "{text:?}");
    let at = Instant::now();
    container.task().patient(10.0).delete(&container.id, "e")?;
    ensure!(at.elapsed() < GENEROUS, "Delete took {:?}", at.elapsed());
    Ok(())
}

/// The exec's exit is told although its output goes on; that ends with its Delete, for which
/// Go's shims wait too.
fn told_while_it_is_held(kit: &Kit, container: &Container, spec: &Spec, words: &str) -> Result<()> {
    let exec = kit.exec(container, "e", spec)?;
    container.task().start(&container.id, "e")?;
    let waited = container.task().patient(30.0).wait(&container.id, "e")?;
    ensure!(waited.exit_status == 5, "{waited:?}");
    kit.sink.expect("exit e", by(2.0))?;
    container.task().patient(60.0).delete(&container.id, "e")?;
    let (bytes, _) = exec.stdout.to_end(by(8.0)).context("the exec's output")?;
    let text = String::from_utf8_lossy(&bytes);
    ensure!(text.contains(words), "{text:?}");
    Ok(())
}

/// The child lives on in the container, and dies with it.
fn child_dies_with_it(kit: &Kit, container: &Container) -> Result<()> {
    let lives = |p: &vigil_lab::process::Process| p.cmdline == "sleep 1001";
    // One that is forked and has not got to its program yet, or waits for a page of it, looks otherwise.
    until(
        "the child to be seen before the container's end",
        by(5.0),
        || members(kit, &container.id).iter().any(lives).then_some(()),
    )?;
    signal_init(container, 9)?;
    one_exit(kit, container, 137)?;
    ensure!(members(kit, &container.id).is_empty(), "the child lives");
    nothing_but_the_pair(kit, &container.id)
}

fn kept(kit: &Kit, own_pids: bool) -> Result<()> {
    let container = kit.running(&Spec {
        own_pids,
        ..Spec::sleeper()
    })?;
    let spec = Spec::sh("setsid sleep 1001 & echo words; exit 5");
    told_while_it_is_held(kit, &container, &spec, "words")?;
    child_dies_with_it(kit, &container)
}

fn f13_child_keeps_the_pipe(kit: &Kit) -> Result<()> {
    kept(kit, true)
}

fn f13_child_of_host_pids(kit: &Kit) -> Result<()> {
    kept(kit, false)
}

fn f13_child_closed_the_pipe(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    let spec = Spec::sh("setsid sleep 1001 <&- >/dev/null 2>&1 & echo words; exit 5");
    let at = Instant::now();
    told(kit, &container, &spec, "words")?;
    ensure!(at.elapsed() < GENEROUS, "{:?}", at.elapsed());
    child_dies_with_it(kit, &container)
}

fn f13_child_keeps_the_terminal(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    // Without a session of its own it would get the terminal's SIGHUP.
    let spec = Spec::sh("trap '' HUP; setsid sleep 1001 & echo words; exit 5").on_terminal();
    told(kit, &container, &spec, "words")?;
    child_dies_with_it(kit, &container)
}

fn f13_container_deleted_meanwhile(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec {
        own_pids: false,
        ..Spec::sleeper()
    })?;
    let exec = kit.exec(&container, "e", &Spec::sh("setsid sleep 1001 & exit 5"))?;
    container.task().start(&container.id, "e")?;
    until("the exec's child", by(5.0), || {
        let all = members(kit, &container.id);
        all.iter().find(|p| p.cmdline == "sleep 1001").map(drop)
    })?;
    signal_init(&container, 9)?;
    one_exit(kit, &container, 137)?;
    exec.stdout.to_end(by(5.0)).context("the exec's output")?;
    nothing_but_the_pair(kit, &container.id)
}

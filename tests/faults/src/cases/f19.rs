//! F19: somebody keeps a container's output open after its end. Nobody waits for that
//! longer than the drain lasts.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vigil_lab::kit::Container;
use vigil_lab::{GENEROUS, Kit, Spec, by};

use crate::cases;
use crate::rest::nothing_but_the_pair;
use crate::watch::Watch;

cases! {
    Kit All f19_stranger_holds_the_pipe "A process nobody can end holds init's stdout: exit told, Delete in 4 s, end of output after it";
    Kit All f19_delete_at_once "The same with Delete right after Wait: all within Delete's time";
    Kit All f19_reader_gone_too "The pipe is held and nobody reads the fifo either: Delete in 4 s";
}

/// A container, and a copy of its stdout's pipe in our own hands: no runtime can close it.
fn held(kit: &Kit) -> Result<(Container, fs::File)> {
    let script = "echo words; while ! [ -e /tmp/end ]; do sleep 0.02; done; exit 5";
    let container = kit.running(&Spec::sh(script))?;
    container.out()?.expect("words", by(5.0))?;
    let path = format!("/proc/{}/fd/1", container.pid);
    let pipe = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| path.clone())?;
    fs::write(format!("/proc/{}/root/tmp/end", container.pid), "")?;
    Ok((container, pipe))
}

fn told(container: &Container) -> Result<()> {
    let at = Instant::now();
    let waited = container.task().patient(20.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 5, "{waited:?}");
    ensure!(at.elapsed() < GENEROUS, "Wait took {:?}", at.elapsed());
    Ok(())
}

fn deleted(container: &Container) -> Result<()> {
    let at = Instant::now();
    let said = container.task().patient(20.0).delete(&container.id, "")?;
    ensure!(said.exit_status == 5, "{said:?}");
    ensure!(at.elapsed() < GENEROUS, "Delete took {:?}", at.elapsed());
    Ok(())
}

fn f19_stranger_holds_the_pipe(kit: &Kit) -> Result<()> {
    let (container, pipe) = held(kit)?;
    let watch = Watch::start(&container)?;
    told(&container)?;
    kit.sink.expect("exit", by(2.0))?;
    watch.end()?.brisk()?;
    deleted(&container)?;
    container
        .out()?
        .to_end(by(5.0))
        .context("the end of stdout")?;
    drop(pipe);
    nothing_but_the_pair(kit, &container.id)
}

fn f19_delete_at_once(kit: &Kit) -> Result<()> {
    for _ in 0..3 {
        let (container, pipe) = held(kit)?;
        told(&container)?;
        deleted(&container)?;
        drop(pipe);
        nothing_but_the_pair(kit, &container.id)?;
        container.task().shutdown(&container.id)?;
    }
    Ok(())
}

fn f19_reader_gone_too(kit: &Kit) -> Result<()> {
    let (mut container, pipe) = held(kit)?;
    container.stdout = None;
    told(&container)?;
    deleted(&container)?;
    drop(pipe);
    nothing_but_the_pair(kit, &container.id)
}

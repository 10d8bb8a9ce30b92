//! The death of the shim costs nothing: the container runs on, its client's connection
//! stays, and what was asked is answered.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vigil_hostile::{FaultyRunc, Pair, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::{Kit, Spec, by, until};

const KILL: i32 = 9;

/// Kills the shim; the pair with its successor.
fn succeeded(container: &Container, pair: &Pair) -> Result<Pair> {
    pair.signal(pair.shim, KILL)?;
    until("a successor", by(10.0), || {
        let next = Pair::of(&container.shim).ok()?;
        (next.shim != pair.shim && next.reaper == pair.reaper).then_some(next)
    })
}

fn numbered(kit: &Kit) -> Result<(Container, Pair)> {
    let script = "i=0; while :; do i=$((i+1)); echo $i; done";
    let container = kit.prepared(&Spec::sh(script), Stdio::Output)?;
    container
        .task()
        .create(&container.bundle.create_request())?;
    container.start()?;
    let pair = Pair::of(&container.shim)?;
    Ok((container, pair))
}

/// Whole lines, each one more than the one before.
fn counts(bytes: &[u8]) -> Result<usize> {
    let text = String::from_utf8_lossy(bytes);
    let whole = text.rsplit_once('\n').context("no line")?.0;
    for (at, line) in whole.lines().enumerate() {
        ensure!(line.parse() == Ok(at + 1), "line {} is {line:?}", at + 1);
    }
    Ok(whole.lines().count())
}

#[test]
fn a_container_runs_on_and_its_output_is_whole() {
    trial(60, |kit| {
        let (container, mut pair) = numbered(kit)?;
        let (task, id) = (container.task(), &container.id);
        for _ in 0..4 {
            let before = container.out()?.so_far().len();
            pair = succeeded(&container, &pair)?;
            ensure!(task.state(id, "")?.status.value() == 2, "not RUNNING");
            until("more output", by(10.0), || {
                (container.out().ok()?.so_far().len() > before + 10_000).then_some(())
            })?;
        }
        task.kill(id, "", 9, false)?;
        ensure!(container.exit_status()? == 137);
        let (bytes, _) = container.out()?.to_end(by(10.0))?;
        ensure!(counts(&bytes)? > 1000);
        Ok(())
    });
}

#[test]
fn a_wait_that_was_pending_hears_the_exit() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sh("sleep 1; exit 7"))?;
        let pair = Pair::of(&container.shim)?;
        let waiting = {
            let (task, id) = (container.task().patient(30.0), container.id.clone());
            std::thread::spawn(move || task.wait(&id, ""))
        };
        std::thread::sleep(Duration::from_millis(100));
        succeeded(&container, &pair)?;
        let told = waiting.join().unwrap()?;
        ensure!(told.exit_status == 7, "{told:?}");
        let deleted = container.task().delete(&container.id, "")?;
        ensure!(deleted.exit_status == 7);
        kit.sink.expect("exit", by(5.0))?;
        let exits = kit.sink.story().iter().filter(|s| *s == "exit").count();
        ensure!(exits == 1, "{:?}", kit.sink.story());
        Ok(())
    });
}

#[test]
fn what_was_under_way_is_finished_once() {
    for verb in ["create", "start", "exec", "delete"] {
        trial(60, move |kit| {
            let go = kit.scratch.path("go");
            let runc = FaultyRunc::new(kit.scratch.dir(), verb, "waits-then-done")?;
            let container = kit.prepared(
                &Spec::sh("trap 'exit 3' TERM; while :; do sleep 0.05; done"),
                Stdio::Output,
            )?;
            let mut request = container.bundle.create_request();
            request.options = Some(runc.options()).into();
            let pair = Pair::of(&container.shim)?;
            let task = container.task().patient(30.0);
            let id = container.id.clone();
            // Whatever comes at `verb` meets the death of the shim there.
            let killer = {
                let (pair, went) = (pair.clone(), runc.path().with_extension("waits"));
                let go = go.clone();
                std::thread::spawn(move || -> Result<()> {
                    until("runc to wait", by(20.0), || went.exists().then_some(()))?;
                    pair.signal(pair.shim, KILL)?;
                    until("the shim to die", by(5.0), || {
                        (!alive(pair.shim)).then_some(())
                    })?;
                    std::thread::sleep(Duration::from_millis(200));
                    std::fs::write(&go, "")?;
                    Ok(())
                })
            };
            let made = task
                .create(&request)
                .with_context(|| format!("create; {}", container.bundle.log_text()))?;
            let started = task
                .start(&id, "")
                .with_context(|| format!("start; {}", container.bundle.log_text()))?;
            ensure!(made.pid == started);
            let exec = kit.exec(&container, "x", &Spec::sh("exit 4"))?;
            task.start(&id, "x")
                .with_context(|| format!("exec; {}", container.bundle.log_text()))?;
            ensure!(task.wait(&id, "x")?.exit_status == 4, "exec");
            drop(exec);
            task.delete(&id, "x")?;
            std::thread::sleep(Duration::from_millis(200));
            task.kill(&id, "", 15, false)?;
            ensure!(task.wait(&id, "")?.exit_status == 3, "init");
            let deleted = task
                .delete(&id, "")
                .with_context(|| format!("delete; {}", container.bundle.log_text()))?;
            ensure!(
                deleted.exit_status == 3 && deleted.pid == started,
                "{deleted:?}"
            );
            killer.join().unwrap()?;
            Ok(())
        });
    }
}

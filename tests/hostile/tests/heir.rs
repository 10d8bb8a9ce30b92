//! The reaper dies at a moment at which its shim cannot, or need not, take its place.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vigil_hostile::{Armed, FaultyRunc, Pair, exit_in_time, fds, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::task::V2;
use vigil_lab::{GENEROUS, Spec, Task, by, until};

/// The reaper is killed; there are two again.
fn heal(container: &Container) -> Result<()> {
    let pair = until("reaper and shim", by(20.0), || {
        Pair::of(&container.shim).ok()
    })?;
    pair.signal(pair.reaper, 9)?;
    until("two again", by(20.0), || {
        let now = Pair::of(&container.shim).ok()?;
        (now.reaper == pair.shim).then_some(())
    })
    .with_context(|| container.bundle.log_text())
}

/// Two reapers die during one call of the runtime. The second had it from the first, so it hangs
/// below neither shim nor reaper then: a create was begun anew beside it, a start was refused as
/// *already running*, and what such a create or exec had made was said to be nobody's.
#[test]
fn a_call_outlives_two_reapers_and_is_waited_for() {
    for verb in ["create", "start", "exec", "update"] {
        trial(120, move |kit| {
            let runc = FaultyRunc::new(kit.scratch.dir(), verb, "waits-then-done")?;
            let container = kit.prepared(&Spec::sh("read x; exit 7"), Stdio::All)?;
            let (task, id) = (container.task().patient(60.0), container.id.clone());
            let mut request = container.bundle.create_request();
            request.options = Some(runc.options()).into();
            let done = std::thread::scope(|scope| -> Result<()> {
                let asks = scope.spawn(|| -> Result<()> {
                    task.create(&request).context("Create")?;
                    task.start(&id, "").context("Start")?;
                    if verb == "exec" {
                        let _exec = kit.exec(&container, "x", &Spec::sh("sleep 1; exit 5"))?;
                        task.start(&id, "x").context("Start of an exec")?;
                        ensure!(task.wait(&id, "x")?.exit_status == 5, "the exec");
                        ensure!(task.delete(&id, "x")?.exit_status == 5, "the exec");
                    }
                    if verb == "update" {
                        let limits = serde_json::json!({"pids": {"limit": 500}});
                        task.update(&id, &limits).context("Update")?;
                    }
                    Ok(())
                });
                let healed = runc.waits().and_then(|()| {
                    heal(&container).context("the first death")?;
                    heal(&container).context("the second death")
                });
                runc.go()?;
                let asked = asks.join().expect("the client panicked");
                healed?;
                asked.with_context(|| format!("{verb}; {}", container.bundle.log_text()))
            });
            done?;
            let calls = runc.calls(verb)?;
            ensure!(calls == 1, "{verb} was called {calls} times");
            // A child of nobody of ours, for a create: it is told of all the same.
            std::fs::write(&container.bundle.stdio[0], "x\n")?;
            ensure!(task.wait(&id, "")?.exit_status == 7, "{verb}");
            kit.sink.expect("exit", by(20.0))?;
            ensure!(task.delete(&id, "")?.exit_status == 7, "{verb}");
            Ok(())
        });
    }
}

/// A shim that had answered Shutdown with nobody to tell, since its reaper was dead, waited 5 s for
/// a dead one's word, and left everybody who asked meanwhile without an answer.
#[test]
fn a_shim_that_leaves_waits_for_no_dead_reaper() {
    trial(90, |kit| {
        let armed = Armed::of(kit)?;
        let container = kit.running(&Spec::sh("exit 7"))?;
        ensure!(exit_in_time(&container, 10.0)? == 7);
        let (task, id) = (container.task(), container.id.clone());
        task.delete(&id, "")?;
        let pair = Pair::of(&container.shim)?;
        armed.arm("S17", "stop")?;
        let asks = {
            let (task, id) = (task.clone(), id.clone());
            std::thread::spawn(move || task.shutdown(&id))
        };
        until("the shim to leave", by(20.0), || {
            armed.reached("S17").then_some(())
        })?;
        pair.signal(pair.reaper, 9)?;
        until("the reaper to die", by(5.0), || {
            (!alive(pair.reaper)).then_some(())
        })?;
        pair.signal(pair.shim, 18)?;
        let began = Instant::now();
        let _ = asks.join().expect("the client panicked");
        pair.gone(20.0)?;
        let log = container.bundle.log_text();
        ensure!(!log.contains("does not answer"), "{log}");
        ensure!(began.elapsed() < GENEROUS, "{:?}", began.elapsed());
        ensure!(container.shim.delete()?.ok()?.exit_status == 7);
        Ok(())
    });
}

/// The shim is told by SIGIO, blocked and read, that a name in its bundle is gone. One that was
/// pending when it became the reaper ended it, since the program that follows began with nothing
/// blocked: so a reaper's death while a Delete removed pid files was that of both.
#[test]
fn a_signal_that_was_pending_ends_no_heir() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sh("sleep 1000"))?;
        let (task, id) = (container.task(), container.id.clone());
        let (stop, bundle) = (AtomicBool::new(false), container.bundle.dir.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = bundle.join("comes-and-goes");
                while !stop.load(Ordering::SeqCst) {
                    let _ = std::fs::write(&file, "");
                    let _ = std::fs::remove_file(&file);
                }
            });
            let healed = (1..=6)
                .try_for_each(|time| heal(&container).with_context(|| format!("death {time}")));
            stop.store(true, Ordering::SeqCst);
            healed
        })?;
        ensure!(task.state(&id, "")?.status.value() == 2, "not RUNNING");
        Ok(())
    });
}

/// A request is known again by its connection's number and its stream. The next reaper began to
/// count anew behind the connections that were left, so the first Kill on a new one was taken for
/// one that somebody else had asked, long ago, and was answered without being done.
#[test]
fn a_new_connection_has_a_number_that_nobody_had() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let id = container.id.clone();
        let anew = || Task::connect(&container.shim.reply.socket, V2);
        let pair = Pair::of(&container.shim)?;
        let before = fds(pair.reaper)?;
        let gone = anew()?;
        // SIGURG, which means nothing to anybody.
        gone.kill(&id, "", 23, false)?;
        drop(gone);
        until("the connection to be gone", by(20.0), || {
            (fds(pair.reaper).ok()? <= before).then_some(())
        })?;
        // The next shim has heard of it from nobody but its reaper.
        pair.signal(pair.shim, 9)?;
        let pair = until("another shim", by(20.0), || {
            let now = Pair::of(&container.shim).ok()?;
            (now.shim != pair.shim).then_some(now)
        })?;
        pair.signal(pair.reaper, 9)?;
        until("two again", by(20.0), || {
            let now = Pair::of(&container.shim).ok()?;
            (now.reaper == pair.shim).then_some(())
        })?;
        anew()?.kill(&id, "", 9, false)?;
        ensure!(exit_in_time(&container, 20.0)? == 137);
        Ok(())
    });
}

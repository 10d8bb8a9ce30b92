//! The death of the reaper costs no container and no output: the shim goes on alone, on
//! the connections there are and on new ones (DESIGN §1).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vigil_hostile::{Armed, Pair, exit_in_time, finished_though, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::{CallError, GENEROUS, Spec, Task, by, until};

const KILL: i32 = 9;

/// Kills the reaper and waits until it is dead; the shim must live.
fn orphaned(container: &Container) -> Result<Pair> {
    let pair = Pair::of(&container.shim)?;
    orphan(&pair)?;
    Ok(pair)
}

fn orphan(pair: &Pair) -> Result<()> {
    pair.signal(pair.reaper, KILL)?;
    until("the reaper to die", by(5.0), || {
        (!alive(pair.reaper)).then_some(())
    })?;
    ensure!(alive(pair.shim), "the shim died with its reaper");
    Ok(())
}

/// A connection of its own, as a containerd that comes back makes one.
fn anew(container: &Container) -> Result<Task> {
    let service = vigil_lab::task::V2;
    Task::connect(&container.shim.reply.socket, service).context("a new connection")
}

/// The shim alone is killed, as nobody takes over after it.
fn both_dead(pair: &Pair) -> Result<()> {
    pair.signal(pair.shim, KILL)?;
    pair.gone(3.0)
}

fn said(container: &Container) -> Result<u32> {
    Ok(container.shim.delete()?.ok()?.exit_status)
}

#[test]
fn a_container_runs_on_and_takes_every_request() {
    trial(90, |kit| {
        let script = "i=0; while :; do i=$((i+1)); echo $i; done";
        let container = kit.prepared(&Spec::sh(script), Stdio::Output)?;
        container
            .task()
            .create(&container.bundle.create_request())?;
        container.start()?;
        let (task, id) = (container.task(), &container.id);
        // One exec from before, one from after.
        let early = kit.exec(&container, "early", &Spec::sh("read x; exit 5"))?;
        task.start(id, "early")?;
        let pair = orphaned(&container)?;
        let before = container.out()?.so_far().len();
        ensure!(task.state(id, "")?.status.value() == 2, "not RUNNING");
        until("more output", by(10.0), || {
            (container.out().ok()?.so_far().len() > before + 10_000).then_some(())
        })?;
        let other = anew(&container)?;
        ensure!(other.state(id, "")?.status.value() == 2, "not RUNNING");
        let named = other.connect_task(id)?.shim_pid;
        ensure!(i32::try_from(named)? == pair.shim, "Connect names {named}");

        fs::write(&early.stdin, "x\n")?;
        ensure!(task.wait(id, "early")?.exit_status == 5, "the early exec");
        task.delete(id, "early")?;
        let late = kit.exec(&container, "late", &Spec::sh("echo late words; exit 6"))?;
        task.start(id, "late")?;
        ensure!(task.wait(id, "late")?.exit_status == 6, "the late exec");
        late.stdout.expect("late words\n", by(5.0))?;
        task.delete(id, "late")?;
        task.pause(id)?;
        ensure!(task.state(id, "")?.status.value() == 4, "not PAUSED");
        task.resume(id)?;

        task.kill(id, "", 9, false)?;
        ensure!(container.exit_status()? == 137);
        let (bytes, _) = container.out()?.to_end(by(10.0))?;
        let text = String::from_utf8_lossy(&bytes);
        let whole = text.rsplit_once('\n').context("no line")?.0;
        for (at, line) in whole.lines().enumerate() {
            ensure!(line.parse() == Ok(at + 1), "line {} is {line:?}", at + 1);
        }
        ensure!(task.delete(id, "")?.exit_status == 137);
        task.shutdown(id)?;
        pair.gone(3.0)?;
        ensure!(!container.shim.reply.socket.exists(), "the socket is left");
        Ok(())
    });
}

#[test]
fn an_exit_is_told_with_its_status() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sh(
            "while ! test -e /go; do sleep 0.02; done; exit 7",
        ))?;
        let waiting = {
            let (task, id) = (container.task().patient(30.0), container.id.clone());
            std::thread::spawn(move || task.wait(&id, ""))
        };
        let pair = orphaned(&container)?;
        fs::write(kit.scratch.path("base/go"), "")?;
        until("init to end", by(10.0), || {
            (!alive(i32::try_from(container.pid).ok()?)).then_some(())
        })?;
        let (task, id) = (container.task(), &container.id);
        until("STOPPED", by(1.0), || {
            let state = task.state(id, "").ok()?;
            (state.status.value() == 3).then_some(())
        })?;
        ensure!(task.state(id, "")?.exit_status == 7);
        ensure!(waiting.join().unwrap()?.exit_status == 7);
        kit.sink.expect("exit", by(5.0))?;
        // A record for those who come after, too.
        both_dead(&pair)?;
        ensure!(said(&container)? == 7);
        let exits = kit.sink.story().iter().filter(|s| *s == "exit").count();
        ensure!(exits == 1, "{:?}", kit.sink.story());
        Ok(())
    });
}

#[test]
fn what_nobody_saw_is_unknown_within_a_second() {
    trial(60, |kit| {
        Armed::of(kit)?.arm("no-exit-status", "")?;
        let container = kit.running(&Spec::sh(
            "while ! test -e /go; do sleep 0.02; done; exit 7",
        ))?;
        let pair = orphaned(&container)?;
        fs::write(kit.scratch.path("base/go"), "")?;
        until("init to end", by(10.0), || {
            (!alive(i32::try_from(container.pid).ok()?)).then_some(())
        })?;
        let (task, id) = (container.task(), &container.id);
        until("STOPPED", by(1.0), || {
            let state = task.state(id, "").ok()?;
            (state.status.value() == 3).then_some(())
        })?;
        ensure!(exit_in_time(&container, 5.0)? == 255);
        // What came to be after the reaper's death is its own child, and known.
        let log = container.bundle.log_text();
        ensure!(log.contains("the reaper is dead"), "{log}");
        both_dead(&pair)?;
        ensure!(said(&container)? == 255);
        Ok(())
    });
}

#[test]
fn both_dead_in_the_end_is_both_dead() {
    trial(60, |kit| {
        // It had ended before the reaper did: that is on record.
        let container = kit.running(&Spec::sh("exit 7"))?;
        ensure!(exit_in_time(&container, 10.0)? == 7);
        let pair = orphaned(&container)?;
        ensure!(container.task().state(&container.id, "")?.exit_status == 7);
        both_dead(&pair)?;
        ensure!(said(&container)? == 7);
        let container = kit.running(&Spec::sleeper())?;
        let pair = orphaned(&container)?;
        both_dead(&pair)?;
        ensure!(alive(i32::try_from(container.pid)?), "died with its shim");
        ensure!(said(&container)? == 137);
        Ok(())
    });
}

#[test]
fn delete_ends_a_shim_without_a_reaper() {
    trial(60, |kit| {
        for stopped in [false, true] {
            let container = kit.running(&Spec::sleeper())?;
            let pair = orphaned(&container)?;
            if stopped {
                pair.signal(pair.shim, 19)?;
            }
            let began = Instant::now();
            ensure!(said(&container)? == 137);
            ensure!(began.elapsed() < GENEROUS);
            pair.gone(1.0)?;
            ensure!(!alive(i32::try_from(container.pid)?), "init lives");
            ensure!(!container.shim.reply.socket.exists(), "the socket is left");
        }
        Ok(())
    });
}

#[test]
fn start_leaves_a_task_alone_whose_reaper_is_dead() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = orphaned(&container)?;
        for stopped in [false, true] {
            if stopped {
                pair.signal(pair.shim, 19)?;
            }
            let ran = kit.caller.run_start(&container.id, &container.bundle.dir)?;
            let text = String::from_utf8_lossy(&ran.stdout).into_owned();
            ensure!(ran.status.code() == Some(1), "{}: {text}", ran.status);
            ensure!(text.contains(&container.id), "{text}");
            if stopped {
                pair.signal(pair.shim, 18)?;
            }
        }
        let state = container.task().state(&container.id, "")?;
        ensure!(state.status.value() == 2, "{state}");
        Ok(())
    });
}

#[test]
fn what_was_under_way_is_finished() {
    for verb in ["create", "start", "exec", "delete"] {
        trial(60, move |kit| {
            finished_though(kit, verb, |pair| {
                orphan(pair)?;
                std::thread::sleep(Duration::from_millis(100));
                Ok(())
            })
        });
    }
}

/// Adopted by the shim, ended, and buried: nothing stays.
#[test]
fn orphans_of_later_execs_are_buried() {
    trial(60, |kit| {
        let mut spec = Spec::sleeper();
        spec.own_pids = false;
        let container = kit.running(&spec)?;
        let pair = orphaned(&container)?;
        let (task, id) = (container.task(), &container.id);
        for n in 0..5 {
            let name = format!("x{n}");
            let script = "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done; exit 2";
            kit.exec(&container, &name, &Spec::sh(script))?;
            task.start(id, &name)?;
            ensure!(task.wait(id, &name)?.exit_status == 2);
            task.delete(id, &name)?;
        }
        until("no zombies", by(10.0), || {
            let list = format!("/proc/{0}/task/{0}/children", pair.shim);
            let children = fs::read_to_string(list).ok()?;
            // The next shim alone.
            (children.split_whitespace().count() == 1).then_some(())
        })
    });
}

/// What the clients of one round met.
#[derive(Debug, Default, Clone, Copy)]
struct Met {
    answers: usize,
    lost: usize,
    closed: usize,
}

/// Asks on a connection of its own until it is told to stop.
fn asks(task: &Task, id: &str, stop: &AtomicBool) -> Result<Met> {
    let task = task.patient(5.0);
    let mut met = Met::default();
    while !stop.load(Ordering::Relaxed) {
        let answer = match met.answers % 3 {
            0 => task.state(id, "").map(|state| state.status.value() == 2),
            1 => task.pids(id).map(|pids| !pids.processes.is_empty()),
            _ => task.stats(id).map(|stats| !stats.value.is_empty()),
        };
        match answer {
            Ok(true) => met.answers += 1,
            Ok(false) => bail!("a wrong answer after {met:?}"),
            Err(CallError::Deadline) => met.lost += 1,
            Err(CallError::Closed) => {
                met.closed += 1;
                return Ok(met);
            }
            Err(error) => return Err(error).context("an error"),
        }
    }
    Ok(met)
}

/// The reaper is killed at a random instant, with requests and answers in its hands: none
/// is lost, and no connection ends. `VIGIL_ORPHAN_ROUNDS` has it try more often.
#[test]
fn killed_with_requests_in_its_hands() {
    let rounds = std::env::var("VIGIL_ORPHAN_ROUNDS").ok();
    let rounds: u64 = rounds.and_then(|text| text.parse().ok()).unwrap_or(8);
    trial(60 + rounds * 10, move |kit| {
        let mut all = Met::default();
        for round in 0..rounds {
            let container = kit.running(&Spec::sleeper())?;
            let id = &container.id;
            let waiting = {
                let (task, id) = (container.task().patient(60.0), id.clone());
                std::thread::spawn(move || task.wait(&id, ""))
            };
            let pair = Pair::of(&container.shim)?;
            let clients = [
                container.task().clone(),
                anew(&container)?,
                anew(&container)?,
            ];
            let stop = AtomicBool::new(false);
            let met: Vec<Result<Met>> = std::thread::scope(|scope| {
                let stop = &stop;
                let asking = clients
                    .iter()
                    .map(|task| scope.spawn(move || asks(task, id, stop)));
                let asking: Vec<_> = asking.collect();
                // Any instant of its loop is as good as another.
                std::thread::sleep(Duration::from_micros(20_000 + round * 7_919 % 9_000));
                let killed = orphan(&pair);
                std::thread::sleep(Duration::from_millis(60));
                stop.store(true, Ordering::Relaxed);
                let mut met: Vec<_> = asking.into_iter().map(|one| one.join().unwrap()).collect();
                met.extend(killed.err().map(Err));
                met
            });
            for one in met {
                let one = one.with_context(|| container.bundle.log_text())?;
                all.answers += one.answers;
                all.lost += one.lost;
                all.closed += one.closed;
            }
            container.task().kill(id, "", 9, false)?;
            ensure!(waiting.join().unwrap()?.exit_status == 137);
            container.task().delete(id, "")?;
            container.task().shutdown(id)?;
        }
        println!("{rounds} reapers killed: {all:?}");
        ensure!(all.lost == 0 && all.closed == 0, "{all:?}");
        Ok(())
    });
}

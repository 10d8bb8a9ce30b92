//! Requests in flight when the shim dies: each is finished or fails, none is carried out
//! twice, and no client hears of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::ExecProcessRequest;
use vigil_hostile::{
    Armed, FaultyRunc, Pair, Trace, a_while, as_ever, counter, refused, succeeded, trial,
};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::task::{V2, any};
use vigil_lab::{CallError, Kit, Spec, Task, by, until};

const UNKNOWN: i32 = 2;
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RUNNING: i32 = 2;
const PAUSED: i32 = 4;

/// Real-time signals: each that is sent arrives, so that two are not taken for one.
fn counting(kit: &Kit) -> Result<Container> {
    let program = counter(&kit.scratch.path("base"))?;
    let container = kit.running(&Spec::args(&[&program]))?;
    container.out()?.expect("ready", by(10.0))?;
    Ok(container)
}

fn arrived(container: &Container, signal: u32) -> Result<usize> {
    let line = format!("got {signal}");
    let text = String::from_utf8_lossy(&container.out()?.so_far()).into_owned();
    Ok(text.lines().filter(|said| *said == line).count())
}

#[test]
fn a_signal_is_never_sent_twice_and_what_is_not_known_is_said() {
    trial(90, |kit| {
        let armed = Armed::of(kit)?;
        let container = counting(kit)?;
        let (task, id) = (container.task().patient(30.0), container.id.as_str());
        for (point, signal) in [("K1", 40), ("K2", 41)] {
            armed.arm(point, "kill")?;
            refused(task.kill(id, "", signal, false), UNKNOWN, &["not known"])?;
            ensure!(armed.reached(point), "nobody died at {point}");
        }
        task.kill(id, "", 42, false)?;
        container.out()?.expect("got 42", by(10.0))?;
        let got = [40, 41, 42].map(|signal| arrived(&container, signal).unwrap());
        ensure!(got == [0, 1, 1], "arrived: {got:?}");
        // The one signal that can be sent again is.
        armed.arm("K1", "kill")?;
        task.kill(id, "", 9, false)?;
        ensure!(armed.reached("K1"), "nobody died");
        ensure!(task.wait(id, "")?.exit_status == 137);
        Ok(())
    });
}

#[test]
fn signals_at_random_deaths_arrive_once() {
    trial(90, |kit| {
        let container = counting(kit)?;
        let (task, id) = (container.task().patient(30.0), container.id.clone());
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let sending = std::thread::spawn(move || -> Result<(usize, usize)> {
            let (mut sent, mut unknown) = (0, 0);
            while !told.load(Ordering::Relaxed) {
                match task.kill(&id, "", 50, false) {
                    Ok(()) => sent += 1,
                    Err(CallError::Status { message, .. }) if message.contains("not known") => {
                        unknown += 1;
                    }
                    Err(other) => bail!("{other}"),
                }
            }
            Ok((sent, unknown))
        });
        let mut pair = Pair::of(&container.shim)?;
        for _ in 0..4 {
            a_while(100);
            pair = succeeded(&container.shim, &pair)?;
        }
        a_while(50);
        over.store(true, Ordering::Relaxed);
        let (sent, unknown) = sending.join().unwrap()?;
        container.task().kill(&container.id, "", 51, false)?;
        container.out()?.expect("got 51", by(20.0))?;
        let got = arrived(&container, 50)?;
        println!("{sent} sent, {unknown} not known, {got} arrived");
        ensure!(
            sent > 10 && got >= sent && got <= sent + unknown,
            "{sent}, {unknown}: {got}"
        );
        Ok(())
    });
}

/// A container whose runtime stands still at `verb`.
fn standing(kit: &Kit, verb: &str, fault: &str) -> Result<(Container, FaultyRunc)> {
    let runc = FaultyRunc::new(kit.scratch.dir(), verb, fault)?;
    let container = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut request = container.bundle.create_request();
    request.options = Some(runc.options()).into();
    container.task().create(&request)?;
    container.start()?;
    Ok((container, runc))
}

/// Asks, kills the shim while the runtime is at it, and lets the runtime go on, some time
/// after another shim serves.
fn killed_in<T: Send + 'static>(
    container: &Container,
    runc: &FaultyRunc,
    ask: impl FnOnce(Task, &str) -> T + Send + 'static,
) -> Result<T> {
    let pair = Pair::of(&container.shim)?;
    let (task, id) = (container.task().patient(30.0), container.id.clone());
    let asking = std::thread::spawn(move || ask(task, &id));
    runc.waits()?;
    succeeded(&container.shim, &pair)?;
    std::thread::sleep(Duration::from_millis(300));
    runc.go()?;
    Ok(asking.join().unwrap())
}

fn limits() -> serde_json::Value {
    serde_json::json!({"pids": {"limit": 77}})
}

#[test]
fn an_update_is_made_once() {
    trial(60, |kit| {
        let (container, runc) = standing(kit, "update", "waits-then-done")?;
        killed_in(&container, &runc, |task, id| task.update(id, &limits()))??;
        let calls = runc.calls("update")?;
        ensure!(calls == 1, "runc update was called {calls} times");
        let mark = kit.scratch.mark();
        let limit = format!("/sys/fs/cgroup/pids/{mark}/{}/pids.max", container.id);
        if let Ok(limit) = std::fs::read_to_string(limit) {
            ensure!(limit.trim() == "77", "{limit}");
        }
        Ok(())
    });
}

#[test]
fn an_update_that_failed_is_made_again() {
    trial(60, |kit| {
        let (container, runc) = standing(kit, "update", "waits-then-fails")?;
        let answer = killed_in(&container, &runc, |task, id| task.update(id, &limits()))?;
        refused(answer, UNKNOWN, &["update"])?;
        ensure!(runc.calls("update")? == 2);
        Ok(())
    });
}

#[test]
fn a_checkpoint_is_made_once_however_it_ends() {
    for (fault, well) in [("waits-then-well", true), ("waits-then-fails", false)] {
        trial(60, move |kit| {
            let (container, runc) = standing(kit, "checkpoint", fault)?;
            let path = kit.scratch.path("image").to_string_lossy().into_owned();
            let answer = killed_in(&container, &runc, move |task, id| {
                task.checkpoint(id, &path)
            })?;
            if well {
                answer?;
            } else {
                refused(answer, UNKNOWN, &["not known"])?;
            }
            let calls = runc.calls("checkpoint")?;
            ensure!(calls == 1, "runc checkpoint was called {calls} times");
            ensure!(container.task().state(&container.id, "")?.status.value() == RUNNING);
            Ok(())
        });
    }
}

#[test]
fn pause_and_resume_are_made_and_told_once() {
    trial(60, |kit| {
        let armed = Armed::of(kit)?;
        let container = kit.running(&Spec::sleeper())?;
        let (task, id) = (container.task().patient(30.0), container.id.as_str());
        armed.arm("P1", "kill")?;
        task.pause(id)?;
        ensure!(armed.reached("P1"), "nobody died");
        ensure!(task.state(id, "")?.status.value() == PAUSED);
        armed.arm("P2", "kill")?;
        task.resume(id)?;
        ensure!(armed.reached("P2"), "nobody died");
        ensure!(task.state(id, "")?.status.value() == RUNNING);
        task.kill(id, "", 9, false)?;
        ensure!(task.wait(id, "")?.exit_status == 137);
        kit.sink.expect("exit", by(10.0))?;
        // One that was in flight may be told again, in the same words.
        let all = kit.sink.all();
        for event in ["paused", "resumed", "exit"] {
            let mut same: Vec<_> = all.iter().filter(|one| one.short() == event).collect();
            same.dedup_by_key(|one| one.timestamp.clone());
            ensure!(same.len() == 1, "{:?}", kit.sink.story());
        }
        Ok(())
    });
}

/// A runc create that never ends, found by the next shim: it is ended at its deadline, and
/// nothing of it is left.
#[test]
fn a_create_that_hangs_is_ended_at_its_deadline() {
    trial(60, |kit| {
        let deadline = ("VIGIL_DEADLINE_CREATE_MS".into(), "1500".into());
        kit.caller.env.push(deadline);
        let runc = FaultyRunc::new(kit.scratch.dir(), "create", "hangs-deaf")?;
        let mut container = kit.prepared(&Spec::sh("echo hello; exit 6"), Stdio::Output)?;
        let before = Trace::of(kit.scratch.mark(), &container.bundle.dir);
        let pair = Pair::of(&container.shim)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        let creating = {
            let task = container.task().patient(40.0);
            std::thread::spawn(move || task.create(&request))
        };
        until("runc create", by(10.0), || {
            (runc.calls("create").ok()? == 1).then_some(())
        })?;
        let next = succeeded(&container.shim, &pair)?;
        let answer = creating.join().unwrap();
        ensure!(
            matches!(&answer, Err(CallError::Status { code: 2 | 4, .. })),
            "{answer:?}"
        );
        // The processes of the pair are others now.
        let shim = format!("process {} [", next.shim);
        before.expect_back_but(|line| line.starts_with(&shim) || line.contains("in the bundle"))?;
        as_ever(kit, &mut container, 6, "hello")
    });
}

/// A runc exec that never ends, found by the next shim: it is ended at its deadline, and no
/// other is made, since what it was to run may run already.
#[test]
fn an_exec_that_hangs_is_ended_at_its_deadline_and_made_once() {
    trial(60, |kit| {
        let deadline = ("VIGIL_DEADLINE_EXEC_MS".into(), "1500".into());
        kit.caller.env.push(deadline);
        let (container, runc) = standing(kit, "exec", "hangs-deaf")?;
        let pair = Pair::of(&container.shim)?;
        let _exec = kit.exec(&container, "e1", &Spec::sh("exit 4"))?;
        let starting = {
            let (task, id) = (container.task().patient(40.0), container.id.clone());
            std::thread::spawn(move || task.start(&id, "e1"))
        };
        until("runc exec", by(10.0), || {
            (runc.calls("exec").ok()? == 1).then_some(())
        })?;
        succeeded(&container.shim, &pair)?;
        let answer = starting.join().unwrap();
        ensure!(
            matches!(&answer, Err(CallError::Status { code: 4, .. })),
            "{answer:?}"
        );
        let calls = runc.calls("exec")?;
        ensure!(calls == 1, "runc exec was called {calls} times");
        Ok(())
    });
}

/// What crashes whoever takes it up is answered by the reaper, and the shim lives on.
#[test]
fn a_request_that_kills_every_shim_is_given_up() {
    trial(90, |kit| {
        let armed = Armed::of(kit)?;
        let mut container = kit.prepared(&Spec::sh("echo hello; exit 4"), Stdio::Output)?;
        armed.arm("S3", "3 panic")?;
        let task = container.task().patient(30.0);
        let answer = task.create(&container.bundle.create_request());
        ensure!(armed.spent("S3"), "fewer than 3 shims died: {answer:?}");
        match answer {
            Err(CallError::Status { message, .. }) => {
                ensure!(message.contains("3 times"), "{message}");
            }
            other => bail!("answered {other:?}"),
        }
        as_ever(kit, &mut container, 4, "hello")
    });
}

/// Who was told and died before it could write that down tells it once more, in the same
/// words; nothing else is repeated.
#[test]
fn at_most_the_event_in_flight_is_repeated() {
    trial(60, |kit| {
        let armed = Armed::of(kit)?;
        let container = kit.created(&Spec::sh("exit 7"))?;
        let (task, id) = (container.task().patient(30.0), container.id.as_str());
        armed.arm("S12", "kill")?;
        container.start()?;
        ensure!(task.wait(id, "")?.exit_status == 7);
        until("the shim to die", by(20.0), || {
            armed.reached("S12").then_some(())
        })?;
        task.delete(id, "")?;
        kit.sink.expect("delete", by(20.0))?;
        let all = kit.sink.all();
        let story = kit.sink.story();
        for (event, most) in [("create", 1), ("start", 1), ("exit", 2), ("delete", 1)] {
            let same: Vec<_> = all.iter().filter(|one| one.short() == event).collect();
            ensure!((1..=most).contains(&same.len()), "{event}: {story:?}");
            for one in &same {
                ensure!(
                    one.timestamp == same[0].timestamp && one.fact == same[0].fact,
                    "{same:?}"
                );
            }
        }
        ensure!(
            story.iter().filter(|one| *one == "exit").count() == 2,
            "{story:?}"
        );
        Ok(())
    });
}

/// Fifty connections, each with a Wait pending and one call after the other, others that
/// come and go: while the shim dies three times nobody is hung up on or answered wrongly.
#[test]
fn fifty_connections_notice_nothing() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sh(
            "trap 'exit 9' TERM; while :; do sleep 0.05; done",
        ))?;
        let socket = container.shim.reply.socket.clone();
        let over = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::new();
        for number in 0..50 {
            let (over, calls) = (Arc::clone(&over), Arc::clone(&calls));
            let (id, socket, pid) = (container.id.clone(), socket.clone(), container.pid);
            threads.push(std::thread::spawn(move || -> Result<u32> {
                let mut task = Task::connect(&socket, V2)?.patient(60.0);
                let waiting = {
                    let (task, id) = (task.clone(), id.clone());
                    std::thread::spawn(move || task.wait(&id, ""))
                };
                let first = task.clone();
                while !over.load(Ordering::Relaxed) {
                    if number % 10 == 0 {
                        // One that may be accepted at the moment of the death.
                        task = Task::connect(&socket, V2)?.patient(60.0);
                    }
                    let state = task.state(&id, "").context("State")?;
                    ensure!(state.pid == pid, "{state:?}");
                    calls.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
                ensure!(!first.client().closed(), "hung up");
                Ok(waiting.join().unwrap()?.exit_status)
            }));
        }
        let mut pair = Pair::of(&container.shim)?;
        for _ in 0..3 {
            // A request that is with three shims for a moment only is taken for what kills them.
            std::thread::sleep(Duration::from_millis(300));
            a_while(400);
            pair = succeeded(&container.shim, &pair)?;
        }
        a_while(200);
        over.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(200));
        container.task().kill(&container.id, "", 15, false)?;
        for thread in threads {
            let status = thread.join().unwrap()?;
            ensure!(status == 9, "a Wait was answered {status}");
        }
        println!("{} calls", calls.load(Ordering::Relaxed));
        Ok(())
    });
}

/// Requests as long as a message may be, some of them half sent when the shim dies.
#[test]
fn the_longest_requests_are_answered() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let socket = container.shim.reply.socket.clone();
        let over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for number in 0..4 {
            let (over, id, socket) = (Arc::clone(&over), container.id.clone(), socket.clone());
            threads.push(std::thread::spawn(move || -> Result<usize> {
                let task = Task::connect(&socket, V2)?.patient(60.0);
                let mut asked = 0;
                while !over.load(Ordering::Relaxed) {
                    let request = ExecProcessRequest {
                        id: id.clone(),
                        exec_id: format!("e{number}"),
                        spec: Some(any(PROCESS, vec![b'x'; (4 << 20) - 500])).into(),
                        ..Default::default()
                    };
                    // Taken each time, and forgotten, whoever was asked first.
                    task.exec(&request)?;
                    task.delete(&id, &request.exec_id)?;
                    asked += 1;
                }
                Ok(asked)
            }));
        }
        let mut pair = Pair::of(&container.shim)?;
        // After three deaths one of them would be taken for what kills.
        for _ in 0..2 {
            a_while(500);
            pair = succeeded(&container.shim, &pair)?;
        }
        a_while(200);
        over.store(true, Ordering::Relaxed);
        let mut asked = 0;
        for thread in threads {
            asked += thread.join().unwrap()?;
        }
        println!("{asked} requests of 4 MiB");
        ensure!(container.task().state(&container.id, "")?.pid == container.pid);
        Ok(())
    });
}

//! The death of the shim costs nothing: the container runs on, its client's connection
//! stays, and what was asked is answered.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vigil_hostile::{Armed, FaultyRunc, Pair, counts, finished_though, succeeded, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive, signal_if};
use vigil_lab::{Kit, Spec, by, until};

const KILL: i32 = 9;

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

#[test]
fn a_container_runs_on_and_its_output_is_whole() {
    trial(60, |kit| {
        let (container, mut pair) = numbered(kit)?;
        let (task, id) = (container.task(), &container.id);
        for _ in 0..4 {
            let before = container.out()?.so_far().len();
            pair = succeeded(&container.shim, &pair)?;
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
        succeeded(&container.shim, &pair)?;
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

/// Found by the soak: a runc that slept uninterruptibly, or was not executed yet, when a
/// successor looked for it was run once more beside itself.
#[test]
fn a_call_that_cannot_be_asked_for_a_moment_is_waited_for() {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    // Elsewhere nobody can be put to sleep like this.
    if !freezer.join("tasks").exists() {
        return;
    }
    trial(60, move |kit| {
        let runc = FaultyRunc::new(kit.scratch.dir(), "start", "waits-then-done")?;
        let container = kit.prepared(&Spec::sh("exit 3"), Stdio::Output)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        container.task().create(&request)?;
        let pair = Pair::of(&container.shim)?;
        let (task, id) = (container.task().patient(30.0), container.id.clone());
        let asked = std::thread::spawn(move || task.start(&id, ""));
        let call = until("runc start to wait", by(20.0), || {
            let all = Process::marked(kit.scratch.mark());
            let mut all = all
                .into_iter()
                .filter(|p| p.cmdline.contains("faulty-runc"));
            all.find(|p| {
                runc.path().with_extension("waits").exists() && p.cmdline.contains(" start ")
            })
        })?;
        let group = freezer.join(kit.scratch.mark()).join("asleep");
        std::fs::create_dir_all(&group)?;
        std::fs::write(group.join("cgroup.procs"), call.pid.to_string())?;
        std::fs::write(group.join("freezer.state"), "FROZEN")?;
        until("it to sleep", by(20.0), || {
            (Process::read(call.pid)?.state == 'D').then_some(())
        })?;
        succeeded(&container.shim, &pair)?;
        container.task().state(&container.id, "")?;
        // Time for another call, if one is to be made.
        std::thread::sleep(Duration::from_millis(300));
        let all = Process::marked(kit.scratch.mark()).into_iter();
        let calls: Vec<_> = all.filter(|p| p.cmdline.contains("faulty-runc")).collect();
        std::fs::write(kit.scratch.path("go"), "")?;
        std::fs::write(group.join("freezer.state"), "THAWED")?;
        ensure!(calls.len() == 1, "run once more: {calls:?}");
        asked.join().unwrap().context("Start")?;
        ensure!(container.exit_status()? == 3);
        until("the group to be empty", by(10.0), || {
            std::fs::remove_dir(&group).ok()
        })
    });
}

/// Found by the soak: of a container that shares the host's pids, all that descends from
/// the reaper is killed one by one when init ends; the worker that did so outlived its
/// shim for a moment and killed the next ones.
#[test]
fn who_kills_the_rest_of_a_container_does_not_kill_its_next_shim() {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    // Elsewhere nobody can be kept from dying like this.
    if !freezer.join("tasks").exists() {
        return;
    }
    for _ in 0..5 {
        trial(60, move |kit| {
            let mut spec = Spec::sh("trap 'exit 3' TERM; sleep 1000 & echo $!; wait");
            spec.own_pids = false;
            let container = kit.running(&spec)?;
            let pair = Pair::of(&container.shim)?;
            let child = until("its child", by(10.0), || {
                let said = String::from_utf8(container.out().ok()?.so_far()).ok()?;
                said.strip_suffix('\n')?.parse::<u32>().ok()
            })?;
            let group = freezer.join(kit.scratch.mark()).join("asleep");
            std::fs::create_dir_all(&group)?;
            std::fs::write(group.join("cgroup.procs"), child.to_string())?;
            std::fs::write(group.join("freezer.state"), "FROZEN")?;
            container.task().kill(&container.id, "", 15, false)?;
            until("somebody to kill the rest", by(10.0), || {
                let all = Process::all().into_iter();
                let comm = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm"));
                all.filter(|p| p.cmdline.contains(kit.scratch.mark()))
                    .find(|p| comm(p.pid).is_ok_and(|comm| comm.starts_with("vigil-recover")))
            })?;
            pair.signal(pair.shim, KILL)?;
            container.task().state(&container.id, "")?;
            std::thread::sleep(Duration::from_millis(300));
            std::fs::write(group.join("freezer.state"), "THAWED")?;
            ensure!(container.exit_status()? == 3);
            let log = container.bundle.log_text();
            let deaths = log.matches("taking over").count();
            ensure!(deaths == 1, "shims took over {deaths} times: {log}");
            ensure!(log.contains("for the 1. time"), "{log}");
            until("the group to be empty", by(10.0), || {
                std::fs::remove_dir(&group).ok()
            })
        });
    }
}

#[test]
fn what_was_under_way_is_finished_once() {
    for verb in ["create", "start", "exec", "delete"] {
        trial(60, move |kit| {
            finished_though(kit, verb, |pair| {
                pair.signal(pair.shim, KILL)?;
                until("the shim to die", by(5.0), || {
                    (!alive(pair.shim)).then_some(())
                })?;
                std::thread::sleep(Duration::from_millis(200));
                Ok(())
            })
        });
    }
}

/// A pid file names a number that another exec had, which has ended and is not deleted:
/// its end is on record under that number, and is not the later one's.
#[test]
fn an_earlier_execs_end_is_not_taken_for_a_later_ones() {
    trial(60, |kit| {
        let armed = Armed::of(kit)?;
        let runc = FaultyRunc::new(kit.scratch.dir(), "none", "none")?;
        let container = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        let (task, id) = (container.task().patient(30.0), container.id.as_str());
        task.create(&request)?;
        task.start(id, "")?;
        let _early = kit.exec(&container, "early", &Spec::sh("exit 41"))?;
        let pid = task.start(id, "early")?;
        ensure!(task.wait(id, "early")?.exit_status == 41);
        runc.stranger(pid)?;
        runc.commit("exec", "done-then-stranger")?;
        armed.arm("E1", "kill")?;
        let _late = kit.exec(&container, "late", &Spec::sh("exit 42"))?;
        let started = task.start(id, "late");
        ensure!(armed.reached("E1"), "nobody died");
        // Nobody can find the process; that is said, and nothing is made up.
        ensure!(
            started.is_err(),
            "it was told the pid of another: {started:?}"
        );
        ensure!(task.delete(id, "early")?.exit_status == 41);
        task.delete(id, "late").map(drop)?;
        Ok(())
    });
}

/// A journal that is gone: whoever takes over once made an empty one, said that there is no
/// task, and nobody knew any more of what ran on; later the pair left, and the container with
/// it. Now it runs on, whether a shim can serve it or not, until both are killed.
#[test]
fn without_its_journal_a_container_is_neither_ended_nor_forgotten() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        std::fs::remove_file(container.bundle.dir.join("journal"))?;
        pair.signal(pair.shim, KILL)?;
        let story = container.bundle.dir.join("takeovers");
        until("an answer, or five crashes", by(30.0), || {
            let told = std::fs::read_to_string(&story).unwrap_or_default();
            let served = container.task().patient(0.2).state(&container.id, "");
            (served.is_ok() || told.contains("looping 5")).then_some(())
        })?;
        let pid = i32::try_from(container.pid)?;
        ensure!(alive(pid) && alive(pair.reaper), "it was given up");
        // The reaper first: nobody starts another then.
        pair.signal(pair.reaper, KILL)?;
        until("the pair to be gone", by(30.0), || {
            for left in container.shim.processes() {
                signal_if(left.pid, KILL, |p| p.cmdline.contains("containerd-shim"));
            }
            container.shim.processes().is_empty().then_some(())
        })?;
        container.shim.delete()?;
        until("init to be dead", by(10.0), || (!alive(pid)).then_some(()))
    });
}

/// An exec that has ended before its start was told, while the shim that started it is dead: its
/// death is looked for when another takes over. Among so many others that it had left the ring by
/// then it was not found, and a start that had gone well was answered with an error.
#[test]
fn an_execs_end_among_many_others_is_found() {
    trial(60, |kit| {
        let armed = Armed::of(kit)?;
        // One orphan after the other: each dies as the reaper's own child.
        let storm = "mkfifo /tmp/gate; read x < /tmp/gate; i=0; \
                     while [ $i -lt 600 ]; do (true & exit); i=$((i+1)); done; touch /tmp/over; sleep 999";
        let spec = Spec {
            own_pids: false,
            ..Spec::sh(storm)
        };
        let container = kit.running(&spec)?;
        let (task, id) = (container.task().patient(60.0), container.id.clone());
        let within = |name: &str| format!("/proc/{}/root/tmp/{name}", container.pid);
        until("the gate", by(20.0), || {
            std::fs::metadata(within("gate")).ok()
        })?;
        let _streams = kit.exec(&container, "e", &Spec::sh("exit 5"))?;
        armed.arm("E1", "block")?;
        let starting = {
            let (task, id) = (task.clone(), id.clone());
            std::thread::spawn(move || task.start(&id, "e"))
        };
        let shim = until("the exec to be started", by(20.0), || armed.who("E1"))?;
        let pid = std::fs::read_to_string(container.bundle.dir.join("exec-e.pid"))?;
        let pid: i32 = pid.trim().parse()?;
        until("the exec to end", by(20.0), || (!alive(pid)).then_some(()))?;
        std::fs::write(within("gate"), "x\n")?;
        until("the others to die", by(40.0), || {
            let over = std::fs::metadata(within("over")).is_ok();
            let children = format!("/proc/{0}/task/{0}/children", container.pid);
            let children = std::fs::read_to_string(children).unwrap_or_default();
            (over && children.split_whitespace().count() <= 1).then_some(())
        })?;
        // Or somebody has seen that it stands still, and has ended it.
        signal_if(shim, KILL, |p| p.cmdline.contains("containerd-shim"));
        let started = starting.join().unwrap().context("the start")?;
        ensure!(i32::try_from(started)? == pid, "pid {started}, not {pid}");
        ensure!(task.wait(&id, "e")?.exit_status == 5);
        Ok(())
    });
}

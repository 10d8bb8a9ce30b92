//! F01: init's end must not be missed, whatever keeps the one busy who is to hear of it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_hostile::crowd;
use vigil_lab::process::{Process, alive, signal_if};
use vigil_lab::{CallError, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{
    another_connection, members, nothing_but_the_pair, one_exit, signal_init,
    stopped_within_a_second,
};
use crate::world::{init_gone, status, times};

cases! {
    Kit All f01_state_of_the_dead "Init dies by a signal nobody asked the shim for: STOPPED within a second, every time";
    Kit All f01_runtime_stopped "Init dies while all of the runtime is SIGSTOPped: true within a second of SIGCONT, one exit";
    Kit All f01_shim_stopped "Init dies while only who serves is SIGSTOPped: the same";
    Kit All f01_storm_of_orphans "Thousands of orphans die with init (host pid namespace): STOPPED in time, one exit" alone;
    Kit All f01_execs_while_init_dies "Execs in parallel while init is killed: each gets an answer, init's exit is told, after theirs" alone;
}

fn f01_state_of_the_dead(kit: &Kit) -> Result<()> {
    for signal in [9, 15, 6].into_iter().cycle().take(12) {
        let container = kit.running(&Spec {
            own_pids: false,
            ..Spec::args(&["sleep", "1000"])
        })?;
        ensure!(status(&container, "")? == Status::RUNNING);
        // Start does not wait for the program itself; what runs before it has a way of its
        // own with some signals.
        until("the program", by(5.0), || {
            let init = Process::read(i32::try_from(container.pid).ok()?)?;
            (init.cmdline == "sleep 1000").then_some(())
        })?;
        signal_init(&container, signal)?;
        init_gone(&container, 5.0)?;
        stopped_within_a_second(&container)?;
        one_exit(kit, &container, 128 + u32::try_from(signal)?)?;
        nothing_but_the_pair(kit, &container.id)?;
        container.task().shutdown(&container.id)?;
    }
    Ok(())
}

fn while_stopped(kit: &Kit, reaper_too: bool) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    let mut stopped = container.shim.processes();
    if !reaper_too && stopped.len() > 1 {
        let reaper = container.task().connect_task(&container.id)?.shim_pid;
        stopped.retain(|p| u32::try_from(p.pid) != Ok(reaper));
    }
    let all = |signal| {
        for process in &stopped {
            signal_if(process.pid, signal, |now| now.cmdline == process.cmdline);
        }
    };
    all(19);
    let killed = signal_init(&container, 9);
    // It stays a zombie as long as its parent sleeps.
    let pid = i32::try_from(container.pid)?;
    let dead = until("init to die", by(5.0), || (!alive(pid)).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(1500));
    all(18);
    killed.and(dead)?;
    stopped_within_a_second(&container)?;
    one_exit(kit, &container, 137)?;
    nothing_but_the_pair(kit, &container.id)
}

fn f01_runtime_stopped(kit: &Kit) -> Result<()> {
    while_stopped(kit, true)
}

fn f01_shim_stopped(kit: &Kit) -> Result<()> {
    while_stopped(kit, false)
}

fn f01_storm_of_orphans(kit: &Kit) -> Result<()> {
    let program = crowd(&kit.scratch.path("base"))?;
    let count = times(1000, 5000);
    // The crowd's parent goes first, so that all of them are orphans when they die.
    let script = format!(
        "{program} {count} >/tmp/out & parent=$!\n\
         while ! [ -s /tmp/out ]; do sleep 0.05; done\n\
         kill -9 $parent; echo ready; while :; do sleep 1000; done"
    );
    let container = kit.running(&Spec {
        own_pids: false,
        ..Spec::sh(&script)
    })?;
    container.out()?.expect("ready", by(60.0))?;
    ensure!(
        members(kit, &container.id).len() >= count,
        "no crowd: {}",
        members(kit, &container.id).len()
    );
    // Half of them, then init, then the rest, which the runtime has to end.
    let all = members(kit, &container.id);
    for (at, process) in all.iter().enumerate().take(count / 2) {
        if at == count / 4 {
            signal_init(&container, 9)?;
        }
        if u32::try_from(process.pid) != Ok(container.pid) {
            signal_if(process.pid, 9, |now| now.cgroup == process.cgroup);
        }
    }
    init_gone(&container, 10.0)?;
    stopped_within_a_second(&container)?;
    one_exit(kit, &container, 137)?;
    ensure!(members(kit, &container.id).is_empty(), "some live on");
    nothing_but_the_pair(kit, &container.id)
}

fn f01_execs_while_init_dies(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    let (started, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let enough = u32::try_from(times(24, 500))?;
    std::thread::scope(|scope| {
        let worker = |thread: u32| {
            let (started, over, container) = (&started, &over, &container);
            move || -> Result<()> {
                let task = another_connection(container)?.patient(15.0);
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let exec = format!("e{thread}x{number}");
                    if kit.exec(container, &exec, &Spec::args(&["date"])).is_err() {
                        break;
                    }
                    match task.start(&container.id, &exec) {
                        Ok(_) => {}
                        Err(CallError::Status { .. }) => break,
                        Err(error) => return Err(error).context(exec),
                    }
                    started.fetch_add(1, Ordering::Relaxed);
                    let ended = task.wait(&container.id, &exec).context("Wait of an exec")?;
                    ensure!([0, 137].contains(&ended.exit_status), "{exec}: {ended:?}");
                    let _ = task.delete(&container.id, &exec);
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (0..6).map(|n| scope.spawn(worker(n))).collect();
        let some = until("some execs to have run", by(60.0), || {
            (started.load(Ordering::Relaxed) >= enough).then_some(())
        });
        let killed = signal_init(&container, 9);
        let gone = init_gone(&container, 10.0).and_then(|()| stopped_within_a_second(&container));
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        some.and(killed).and(gone)
    })?;
    one_exit(kit, &container, 137)?;
    let story = kit.sink.story();
    let last = story.iter().rposition(|s| s == "exit");
    let exec = story.iter().rposition(|s| s.starts_with("exit e"));
    ensure!(exec < last, "an exec's exit after init's: {story:?}");
    let added = story
        .iter()
        .filter(|s| s.starts_with("exec-started"))
        .count();
    let exits = story.iter().filter(|s| s.starts_with("exit e")).count();
    ensure!(added == exits, "{added} started, {exits} ended: {story:?}");
    nothing_but_the_pair(kit, &container.id)
}

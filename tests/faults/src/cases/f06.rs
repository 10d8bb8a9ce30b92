//! F06: execs that fail, hang, are deaf or never start must not hold back init's exit,
//! nor be told after it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use vigil_lab::kit::Container;
use vigil_lab::{CallError, Code, GENEROUS, Kit, Spec, by, until};

use crate::cases;
use crate::rest::{
    another_connection, members, nothing_but_the_pair, one_exit, signal_init,
    stopped_within_a_second,
};
use crate::world::{init_gone, running_under, scripted, times};

cases! {
    Kit All f06_runc_exec_lies "runc exec starts the process and fails: the error is told, init's exit comes, nothing lives on";
    Kit All f06_init_dies_during_exec "Init dies while runc exec takes its time: init's exit in a few seconds, no exec afterwards";
    Kit All f06_missing_binaries_while_init_dies "Execs of a missing program in parallel while init dies: all answered, one exit";
    Kit All f06_deaf_execs_of_host_pids "Execs that ignore SIGTERM in the host's pid namespace: gone with init, told before it";
    Kit All f06_registered_and_never_started "Execs that were registered and never started: init's exit does not wait for them";
    Kit All f06_client_gone_between_exec_and_start "A client that registers an exec and is gone: the same";
    Kit All f06_exec_ends_with_init "Execs that end in the moment init does: every exit once, before init's";
}

/// Init is killed; within a few seconds everybody says so, once.
fn ends(kit: &Kit, container: &Container) -> Result<()> {
    let at = Instant::now();
    signal_init(container, 9)?;
    init_gone(container, 5.0)?;
    stopped_within_a_second(container)?;
    one_exit(kit, container, 137)?;
    ensure!(at.elapsed() < GENEROUS, "told after {:?}", at.elapsed());
    ordered(kit)?;
    ensure!(members(kit, &container.id).is_empty(), "somebody lives on");
    nothing_but_the_pair(kit, &container.id)
}

/// No exec's exit after init's; as many exits of execs as starts.
fn ordered(kit: &Kit) -> Result<()> {
    let story = kit.sink.story();
    let init = story.iter().position(|s| s == "exit");
    let last = story.iter().rposition(|s| s.starts_with("exit "));
    ensure!(last < init, "an exec's exit after init's: {story:?}");
    let count = |what: &str| story.iter().filter(|s| s.starts_with(what)).count();
    ensure!(
        count("exec-started ") == count("exit "),
        "starts and exits of execs: {story:?}"
    );
    Ok(())
}

fn f06_runc_exec_lies(kit: &Kit) -> Result<()> {
    let body = "[ \"$verb\" = exec ] && { runc \"$@\"; exit 1; }";
    let (_, options) = scripted(kit, "lies", body)?;
    let container = running_under(kit, &Spec::sleeper(), &options)?;
    kit.exec(&container, "e", &Spec::args(&["sleep", "1000"]))?;
    let answer = container.task().patient(10.0).start(&container.id, "e");
    ensure!(
        matches!(answer, Ok(_) | Err(CallError::Status { .. })),
        "{answer:?}"
    );
    ends(kit, &container)
}

fn f06_init_dies_during_exec(kit: &Kit) -> Result<()> {
    let body = "[ \"$verb\" = exec ] && { : >$dir/here; sleep 4; }";
    let (dir, options) = scripted(kit, "slow", body)?;
    let container = running_under(kit, &Spec::sleeper(), &options)?;
    kit.exec(&container, "e", &Spec::args(&["sleep", "1000"]))?;
    let task = another_connection(&container)?.patient(15.0);
    std::thread::scope(|scope| {
        let started = scope.spawn(|| task.start(&container.id, "e"));
        until("runc exec to be under way", by(5.0), || {
            dir.join("here").exists().then_some(())
        })?;
        ends(kit, &container)?;
        let started = started.join().map_err(|_| anyhow!("it panicked"))?;
        ensure!(
            matches!(started, Err(CallError::Status { .. })),
            "Start of the exec: {started:?}"
        );
        Ok(())
    })?;
    ensure!(members(kit, &container.id).is_empty(), "an exec after all");
    nothing_but_the_pair(kit, &container.id)
}

fn f06_missing_binaries_while_init_dies(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    let count = times(30, 200);
    let names: Vec<String> = (0..count).map(|n| format!("e{n}")).collect();
    for name in &names {
        kit.exec(&container, name, &Spec::args(&["/no/such/program"]))?;
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = names
            .chunks(count.div_ceil(6))
            .map(|names| {
                let container = &container;
                scope.spawn(move || -> Result<()> {
                    let task = another_connection(container)?.patient(30.0);
                    for name in names {
                        match task.start(&container.id, name) {
                            Err(CallError::Status { .. }) => {}
                            // Killed with init before it could look for its program: runc
                            // takes that for a start, and it was one.
                            Ok(_) => {
                                let ended = task.wait(&container.id, name)?;
                                ensure!(ended.exit_status == 137, "{name}: {ended:?}");
                            }
                            Err(error) => return Err(anyhow!("{name}: {error}")),
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(120));
        let ended = ends(kit, &container);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("it panicked"))??;
        }
        ended
    })
}

fn f06_deaf_execs_of_host_pids(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec {
        own_pids: false,
        ..Spec::args(&["sleep", "1000"])
    })?;
    for name in ["e1", "e2", "e3"] {
        let deaf = "trap '' TERM HUP; echo deaf; while :; do sleep 0.05; done";
        let exec = kit.exec(&container, name, &Spec::sh(deaf))?;
        container.task().start(&container.id, name)?;
        exec.stdout.expect("deaf", by(5.0))?;
    }
    ends(kit, &container)?;
    for name in ["e1", "e2", "e3"] {
        kit.sink.expect(&format!("exit {name}"), by(1.0))?;
    }
    Ok(())
}

fn f06_registered_and_never_started(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    for name in ["e1", "e2"] {
        kit.exec(&container, name, &Spec::args(&["sleep", "1000"]))?;
    }
    signal_init(&container, 9)?;
    init_gone(&container, 5.0)?;
    stopped_within_a_second(&container)?;
    let late = container.task().start(&container.id, "e1");
    ensure!(
        matches!(&late, Err(error) if error.is(Code::FailedPrecondition)),
        "Start after init's end: {late:?}"
    );
    container
        .task()
        .delete(&container.id, "e2")
        .context("Delete of an exec that never started")?;
    one_exit(kit, &container, 137)?;
    ordered(kit)?;
    nothing_but_the_pair(kit, &container.id)
}

fn f06_client_gone_between_exec_and_start(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    for round in 0..8 {
        let gone = another_connection(&container)?;
        gone.exec(&containerd_shim_protos::api::ExecProcessRequest {
            id: container.id.clone(),
            exec_id: format!("gone{round}"),
            spec: Some(vigil_lab::kit::exec_spec(&Spec::sh("exit 1"))).into(),
            ..Default::default()
        })?;
    }
    ends(kit, &container)
}

fn f06_exec_ends_with_init(kit: &Kit) -> Result<()> {
    for round in 0..6 {
        let container = kit.running(&Spec::sleeper())?;
        let script = "while ! [ -e /tmp/end ]; do sleep 0.01; done; exit 6";
        let names: Vec<String> = (0..4).map(|n| format!("r{round}e{n}")).collect();
        for name in &names {
            kit.exec(&container, name, &Spec::sh(script))?;
            container.task().start(&container.id, name)?;
        }
        std::fs::write(format!("/proc/{}/root/tmp/end", container.pid), "")?;
        if round % 2 == 1 {
            std::thread::sleep(Duration::from_millis(8));
        }
        signal_init(&container, 9)?;
        one_exit(kit, &container, 137)?;
        let story = kit.sink.story();
        let last = story.iter().rposition(|s| s == "exit");
        for name in &names {
            let own: Vec<_> = story
                .iter()
                .enumerate()
                .filter(|(_, s)| **s == format!("exit {name}"))
                .map(|(at, _)| at)
                .collect();
            ensure!(
                own.len() == 1 && Some(own[0]) < last,
                "{name} in round {round}: {story:?}"
            );
        }
        container.task().shutdown(&container.id)?;
    }
    Ok(())
}

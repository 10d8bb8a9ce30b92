//! Kill, Pause, Resume: by number, to one or to all, in every state.

use anyhow::{Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_lab::process::Process;
use vigil_lab::{Code, Kit, Spec, by, process, until};

use crate::behaviour::{in_status, not_done, refused};

crate::behaviours! {
    "§3.4 Kill: SIG is a number, and init receives that one." kill_by_number;
    "§3.4 Kill of a container that handles SIGTERM: its own exit code counts." kill_with_handler;
    "§3.2 Kill after the exit: NotFound." kill_of_stopped_not_found;
    "§3.2 Kill in the deleted state: NotFound." kill_of_deleted_not_found;
    "§3.4 Kill without `all`: only init." kill_spares_children;
    "§3.4 Kill --all: every pid of the cgroup." kill_all_reaches_everyone;
    "§3.4 Kill --all: each pid once, init too." kill_all_reaches_init_once;
    "§3.5 A shared pid namespace: what init leaves behind is killed at its exit." leftovers_die_with_init;
    "§3.3 running → paused → running; nothing runs in between." pause_and_resume;
    "§3.3 paused: Pause ✗; running: Resume ✗; created: both ✗." pause_in_the_wrong_state;
    "§3.3 paused: Kill ✓; dead at the latest after Resume." kill_of_paused;
    "§3.3 paused: Kill of an exec leaves the others as they are." kill_of_exec_keeps_paused;
    "§3.3 paused: Delete ✗, Start ✗." delete_of_paused_refused;
    "§3.3 Execs report PAUSED while the container does." exec_reports_paused;
}

fn kill_by_number(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh(
        "trap 'echo usr1' USR1; trap 'echo hup' HUP; echo ready; while :; do sleep 0.02; done",
    ))?;
    c.out()?.expect("ready\n", by(5.0))?;
    c.task().kill(&c.id, "", 10, false)?;
    c.out()?.expect("usr1\n", by(5.0))?;
    c.task().kill(&c.id, "", 1, false)?;
    c.out()?.expect("hup\n", by(5.0))?;
    in_status(&c, "", Status::RUNNING).map(drop)
}

fn kill_with_handler(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh(
        "trap 'exit 21' TERM; echo ready; while :; do sleep 0.02; done",
    ))?;
    c.out()?.expect("ready\n", by(5.0))?;
    c.task().kill(&c.id, "", 15, false)?;
    let status = c.exit_status()?;
    ensure!(status == 21, "exit status {status}");
    Ok(())
}

fn kill_of_stopped_not_found(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 0"))?;
    c.exit_status()?;
    refused(
        c.task().kill(&c.id, "", 9, false),
        Code::NotFound,
        "Kill after the exit",
    )?;
    refused(
        c.task().kill(&c.id, "", 15, false),
        Code::NotFound,
        "Kill after the exit, SIGTERM",
    )
}

fn kill_of_deleted_not_found(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 0"))?;
    c.exit_status()?;
    c.task().delete(&c.id, "")?;
    refused(
        c.task().kill(&c.id, "", 9, false),
        Code::NotFound,
        "Kill after Delete",
    )
}

/// Children of init, as the kernel lists the container's cgroup.
fn members(kit: &Kit, id: &str) -> Vec<Process> {
    let group = format!("/{}/{id}", kit.scratch.mark());
    Process::all()
        .into_iter()
        .filter(|p| p.state != 'Z' && p.cgroup.contains(&group))
        .collect()
}

fn kill_spares_children(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("trap 'echo got' TERM; (trap 'echo child got' TERM; echo child; while :; do sleep 0.02; done) & echo ready; while :; do wait; done"))?;
    c.out()?.expect("ready\n", by(5.0))?;
    c.out()?.expect("child\n", by(5.0))?;
    c.task().kill(&c.id, "", 15, false)?;
    c.out()?.expect("got\n", by(5.0))?;
    // The child would have answered within its 20 ms; an exec's round trip is longer.
    kit.exec(&c, "e1", &Spec::sh("sleep 0.2"))?;
    c.task().start(&c.id, "e1")?;
    c.task().wait(&c.id, "e1")?;
    let out = String::from_utf8(c.out()?.so_far())?;
    ensure!(!out.contains("child got"), "{out}");
    Ok(())
}

fn kill_all_reaches_everyone(kit: &Kit) -> Result<()> {
    let spec = Spec {
        own_pids: false,
        ..Spec::sh("sleep 1000 & sleep 1000 & echo ready; wait")
    };
    let c = kit.running(&spec)?;
    c.out()?.expect("ready\n", by(5.0))?;
    until("three processes", by(5.0), || {
        (members(kit, &c.id).len() == 3).then_some(())
    })?;
    c.task().kill(&c.id, "", 9, true)?;
    c.exit_status()?;
    until("all to die", by(3.0), || {
        members(kit, &c.id).is_empty().then_some(())
    })
}

fn kill_all_reaches_init_once(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh(
        "n=0; trap 'n=$((n+1)); echo usr1 $n' USR1; echo ready; while :; do sleep 0.02; done",
    ))?;
    c.out()?.expect("ready\n", by(5.0))?;
    for round in 1..=8 {
        c.task().kill(&c.id, "", 10, true)?;
        c.out()?.expect(&format!("usr1 {round}\n"), by(5.0))?;
    }
    // A second delivery would have been answered within init's 20 ms.
    kit.exec(&c, "e1", &Spec::sh("sleep 0.2"))?;
    c.task().start(&c.id, "e1")?;
    c.task().wait(&c.id, "e1")?;
    let out = String::from_utf8(c.out()?.so_far())?;
    ensure!(out.matches("usr1").count() == 8, "{out}");
    Ok(())
}

fn leftovers_die_with_init(kit: &Kit) -> Result<()> {
    let spec = Spec {
        own_pids: false,
        ..Spec::sh("sleep 1000 & echo ready; sleep 0.1; exit 8")
    };
    let c = kit.running(&spec)?;
    ensure!(c.exit_status()? == 8);
    until("the child to die", by(3.0), || {
        members(kit, &c.id).is_empty().then_some(())
    })
}

fn pause_and_resume(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("while :; do echo tick; sleep 0.01; done"))?;
    c.out()?.expect("tick\ntick\n", by(5.0))?;
    c.task().pause(&c.id)?;
    in_status(&c, "", Status::PAUSED)?;
    let mut last = c.out()?.so_far().len();
    // What was in the pipe may still come; then silence.
    until("silence", by(3.0), || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = c.stdout.as_ref().map_or(0, |o| o.so_far().len());
        let still = now == last;
        last = now;
        still.then_some(())
    })?;
    c.task().resume(&c.id)?;
    in_status(&c, "", Status::RUNNING)?;
    until("ticks", by(3.0), || {
        (c.stdout.as_ref()?.so_far().len() > last).then_some(())
    })
}

fn pause_in_the_wrong_state(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    not_done(c.task().pause(&c.id), "Pause when created")?;
    not_done(c.task().resume(&c.id), "Resume when created")?;
    c.start()?;
    not_done(c.task().resume(&c.id), "Resume when running")?;
    c.task().pause(&c.id)?;
    not_done(c.task().pause(&c.id), "Pause when paused")?;
    in_status(&c, "", Status::PAUSED)?;
    c.task().resume(&c.id)?;
    c.task().kill(&c.id, "", 9, false)?;
    c.exit_status()?;
    not_done(c.task().pause(&c.id), "Pause when stopped")?;
    not_done(c.task().resume(&c.id), "Resume when stopped")
}

fn kill_of_paused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().pause(&c.id)?;
    c.task().kill(&c.id, "", 9, false)?;
    // Some runtimes thaw by themselves; then there is nothing to resume any more.
    let _ = c.task().resume(&c.id);
    let status = c.exit_status()?;
    ensure!(status == 137, "exit status {status}");
    ensure!(!process::alive(i32::try_from(c.pid)?));
    in_status(&c, "", Status::STOPPED).map(drop)
}

fn kill_of_exec_keeps_paused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("while :; do echo tick; sleep 0.01; done"))?;
    kit.exec(&c, "e1", &Spec::args(&["sleep", "1000"]))?;
    c.task().start(&c.id, "e1")?;
    c.out()?.expect("tick\ntick\n", by(5.0))?;
    c.task().pause(&c.id)?;
    c.task().kill(&c.id, "e1", 9, false)?;
    let mut last = c.out()?.so_far().len();
    // What was in the pipe may still come; then silence.
    until("silence", by(3.0), || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = c.stdout.as_ref().map_or(0, |o| o.so_far().len());
        let still = now == last;
        last = now;
        still.then_some(())
    })?;
    in_status(&c, "", Status::PAUSED)?;
    c.task().resume(&c.id)?;
    let exit = c.task().wait(&c.id, "e1")?;
    ensure!(exit.exit_status == 137, "{exit:?}");
    in_status(&c, "", Status::RUNNING).map(drop)
}

fn delete_of_paused_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().pause(&c.id)?;
    not_done(c.task().delete(&c.id, ""), "Delete when paused")?;
    not_done(c.task().start(&c.id, ""), "Start when paused")?;
    in_status(&c, "", Status::PAUSED).map(drop)
}

fn exec_reports_paused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::args(&["sleep", "1000"]))?;
    c.task().start(&c.id, "e1")?;
    c.task().pause(&c.id)?;
    in_status(&c, "e1", Status::PAUSED)?;
    c.task().resume(&c.id)?;
    in_status(&c, "e1", Status::RUNNING).map(drop)
}

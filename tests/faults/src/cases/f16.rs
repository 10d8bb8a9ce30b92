//! F16: exit codes. One life has one, and it is the right one.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use vigil_lab::bundle::{Bundle, Stdio};
use vigil_lab::{CallError, Fact, Kit, Place, Shim, Spec, by, until};

use crate::cases;
use crate::rest::signal_init;
use crate::world::{deleted, nothing_left};

cases! {
    Kit    All f16_never_started "A program that is not there: an error, no exit event, no status made up";
    Kit    All f16_created_and_never_started "Created, never started, the pair killed: no TaskStart, `delete` answers";
    Kit    All f16_same_id_again "The same id ten times within milliseconds: each life its own status, pid and time";
    Kit    All f16_death_between_exit_and_delete "The runtime killed after the exit was told: `delete` says the same status and time, twice";
    Kit    All f16_killed_by_us_or_by_itself "SIGKILL in the moment it ends by itself: what Wait says is what all say";
    Daemon All f16_run_says_it "`ctr run` of many codes: each its own";
    Daemon All f16_killed_shim_after_exit "Under containerd, the runtime killed after the exit: the code stays, no 137";
}

fn f16_never_started(kit: &Kit) -> Result<()> {
    let container = kit.prepared(&Spec::args(&["/no/such/program"]), Stdio::Output)?;
    match container.task().create(&container.bundle.create_request()) {
        Err(CallError::Status { message, .. }) => {
            ensure!(message.contains("/no/such/program"), "{message}");
        }
        other => bail!("Create: {other:?}"),
    }
    container.task().shutdown(&container.id)?;
    container.shim.delete()?;
    let story = kit.sink.story();
    ensure!(
        !story.iter().any(|s| s.starts_with("exit") || s == "start"),
        "{story:?}"
    );
    nothing_left(kit, &container.id)
}

fn f16_created_and_never_started(kit: &Kit) -> Result<()> {
    let container = kit.created(&Spec::sleeper())?;
    container.shim.kill_all()?;
    let said = deleted(&container)?;
    ensure!(
        said.exit_status == 137 && said.pid == container.pid,
        "{said:?}"
    );
    let story = kit.sink.story();
    ensure!(!story.contains(&"start".to_owned()), "{story:?}");
    nothing_left(kit, &container.id)
}

fn f16_same_id_again(kit: &Kit) -> Result<()> {
    let (state, base) = (kit.scratch.path("again"), kit.scratch.path("base"));
    let mark = kit.scratch.mark();
    let mut told = BTreeSet::new();
    for round in 1..=10_u32 {
        let spec = Spec::sh(&format!("exit {round}"));
        let bundle = Bundle::make(&state, mark, "same", &spec, Stdio::Empty, &base)?;
        let shim = Shim::start(&kit.caller, &bundle)?;
        let task = &shim.task;
        let pid = task.create(&bundle.create_request())?.pid;
        task.start("same", "")?;
        let waited = task.wait("same", "")?;
        ensure!(waited.exit_status == round, "round {round}: {waited:?}");
        let gone = task.delete("same", "")?;
        ensure!(
            gone.exit_status == round && gone.pid == pid,
            "round {round}: {gone:?}"
        );
        task.shutdown("same")?;
        let said = shim.delete()?.ok()?;
        ensure!(
            [round, 137].contains(&said.exit_status) || said.pid == 0,
            "round {round}: `delete` says {said:?}"
        );
        until("the runtime to leave", by(10.0), || {
            shim.processes().is_empty().then_some(())
        })?;
        told.insert((pid, round));
        bundle.remove()?;
        std::fs::remove_dir_all(state.join("work"))?;
    }
    let exits: BTreeSet<(u32, u32)> = kit
        .sink
        .all()
        .iter()
        .filter_map(|e| match &e.fact {
            Fact::Exit(exit) => Some((exit.pid, exit.exit_status)),
            _ => None,
        })
        .collect();
    ensure!(exits == told, "told {exits:?}, lived {told:?}");
    Ok(())
}

fn f16_death_between_exit_and_delete(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sh("exit 42"))?;
    let waited = container.task().wait(&container.id, "")?;
    kit.sink.expect("exit", by(5.0))?;
    container.shim.kill_all()?;
    for time in ["first", "second"] {
        let said = deleted(&container)?;
        ensure!(
            said.exit_status == 42
                && said.pid == container.pid
                && said.exited_at == waited.exited_at,
            "the {time} time: {said:?}, Wait said {waited:?}"
        );
    }
    nothing_left(kit, &container.id)
}

fn f16_killed_by_us_or_by_itself(kit: &Kit) -> Result<()> {
    for round in 0..10_u64 {
        let container = kit.running(&Spec::sh("sleep 0.02; exit 7"))?;
        std::thread::sleep(std::time::Duration::from_millis(10 + round * 2));
        let _ = container.task().kill(&container.id, "", 9, true);
        let waited = container.task().wait(&container.id, "")?;
        ensure!([7, 137].contains(&waited.exit_status), "{waited:?}");
        crate::rest::one_exit(kit, &container, waited.exit_status)
            .with_context(|| format!("round {round}"))?;
        container.task().shutdown(&container.id)?;
    }
    let last = kit.running(&Spec::sleeper())?;
    signal_init(&last, 9)
}

fn f16_run_says_it(place: &mut Place) -> Result<()> {
    for code in [0, 1, 2, 42, 126, 127, 128, 137, 143, 255] {
        let script = format!("exit {code}");
        let ran = place.run(&["--rm"], "c", &["sh", "-c", &script])?;
        ensure!(
            ran.status.code() == Some(code),
            "{code}: {}, {}",
            ran.status,
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    let ran = place.run(&["--rm"], "c", &["/no/such/program"])?;
    ensure!(!ran.status.success(), "{ran:?}");
    // What a failed create leaves containerd with, ctr removes or not.
    let _ = place.containerd.ctr(&["containers", "rm", "c"]);
    Ok(())
}

fn f16_killed_shim_after_exit(place: &mut Place) -> Result<()> {
    let path = place.containerd.scratch.path("events");
    let mut listener = place
        .containerd
        .ctr_command(&["events"])
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&path)?)
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let outcome = (|| {
        place.detached("c", &["sh", "-c", "sleep 0.5; exit 42"])?;
        place.expect_status("c", "STOPPED")?;
        place.kill_shims("c")?;
        let heard = || std::fs::read_to_string(&path).unwrap_or_default();
        until("containerd to tell of its removal", by(10.0), || {
            heard().contains("/tasks/delete").then_some(())
        })?;
        let told = heard();
        for line in told.lines().filter(|l| l.contains("/tasks/exit")) {
            ensure!(
                line.contains("\"exit_status\":42"),
                "another status: {line}"
            );
        }
        ensure!(told.contains("/tasks/exit"), "no exit was told: {told}");
        let _ = place.containerd.ctr(&["tasks", "rm", "c"]);
        place.containerd.ctr(&["containers", "rm", "c"]).map(drop)
    })();
    let _ = listener.kill();
    let _ = listener.wait();
    outcome
}

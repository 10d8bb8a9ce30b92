//! Create, Start, State, Wait, Delete, Shutdown: the life of init and its answers.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use containerd_shim_protos::api::{ExecProcessRequest, Status};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::exec_spec;
use vigil_lab::task::{V2, V3};
use vigil_lab::{Code, Kit, Spec, by, process, until};

use crate::behaviour::{in_status, not_done, refused};

/// Go's zero time: 1 January of the year 1, in seconds before 1970.
const ZERO_TIME: i64 = -62_135_596_800;

crate::behaviours! {
    "§3.1 Create answers the pid; §3.3 the state is then CREATED." create_answers_pid_and_created;
    "§3.1 Start answers the pid; §3.3 created → running." start_answers_the_same_pid_and_running;
    "§3.4 State: bundle, stdio strings as given." state_repeats_bundle_and_stdio;
    "§3.4 State: never-exited exited_at is seconds −62135596800." never_exited_is_the_zero_time;
    "§3.4 Exit codes: WEXITSTATUS (0)." exit_status_0;
    "§3.4 Exit codes: WEXITSTATUS (7)." exit_status_7;
    "§3.4 Exit codes: WEXITSTATUS (255)." exit_status_255;
    "§3.4 Exit codes: 128 + signal, by SIGKILL from outside." exit_status_137_by_sigkill;
    "§3.4 Exit codes: 128 + signal, by SIGTERM without a handler." exit_status_143_by_sigterm;
    "§3.4 exited_at = time of processing, within the second." exited_at_is_now;
    "§3.4 Wait must be callable before Start." wait_before_start;
    "§3.4 Wait is repeatable until Delete." wait_repeats;
    "§3.4 Wait blocks until exit in any live state, paused included." wait_blocks_while_paused;
    "§3.2 Container id unknown: NotFound, for Wait after Delete too." wait_after_delete_not_found;
    "§3.4 Delete returns pid, status, exited_at." delete_answers_pid_status_time;
    "§3.2 Delete in the deleted state: NotFound." delete_twice_not_found;
    "§3.3 running: Delete ✗." delete_of_running_refused;
    "§3.3 created: Delete ✓ → deleted (runc delete kills it)." delete_of_created_kills;
    "§3.3 exit → stopped; §3.1 State must work after the exit, with the pid kept." stopped_state_keeps_pid_and_status;
    "§3.3 running: Start ✗." start_of_running_refused;
    "§3.3 stopped: Start ✗." start_of_stopped_refused;
    "§3.3 created: Kill ✓ → stopped." kill_of_created;
    "§3.4 Create: a second one with the same id harms nothing." create_again_refused_and_harmless;
    "§3.4 Create: failed, it harms nobody who has that id with runc." failed_create_spares_a_stranger;
    "§3.5 An exit during start counts as early and is handled." early_exits_are_seen;
    "§3.2 Container id unknown (all RPCs but Connect, Shutdown, Create): NotFound." unknown_id_not_found_everywhere;
    "§3.4 Connect never fails; unknown id → task_pid 0." connect_unknown_id;
    "§3.1 Connect → shim_pid, task_pid." connect_answers_both_pids;
    "§3.4 Shutdown: no-op while containers exist." shutdown_with_container_does_nothing;
    "§3.7 Shutdown with no containers: sockets unlinked, the process exits." shutdown_after_delete_ends_all;
    "§2.4 Failed create: an empty shim must exit on Shutdown." shutdown_of_an_empty_shim;
    "§2.3 containerd goes away and comes back: nothing changes for the container." survives_a_closed_connection;
    "§0.3 containerd.task.v2.Task is served." serves_v2;
    "§0.3 containerd.task.v3.Task is served." serves_v3;
    "§3.2 Unknown method: Unimplemented." unknown_method_unimplemented;
    "§3.2 Unknown service: Unimplemented." unknown_service_unimplemented;
    "§1.7 4 MiB message limit: a larger frame harms only its sender." oversized_frame_harms_nobody;
    "§1.7 A connection that ends within a frame harms nobody." half_a_frame_harms_nobody;
}

fn create_answers_pid_and_created(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    ensure!(c.pid > 1, "pid {}", c.pid);
    let state = in_status(&c, "", Status::CREATED)?;
    ensure!(state.pid == c.pid && state.id == c.id, "{state:?}");
    ensure!(
        process::alive(i32::try_from(c.pid)?),
        "no process {}",
        c.pid
    );
    Ok(())
}

fn start_answers_the_same_pid_and_running(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    let pid = c.start()?;
    ensure!(pid == c.pid, "Create said {}, Start {pid}", c.pid);
    ensure!(in_status(&c, "", Status::RUNNING)?.pid == pid);
    Ok(())
}

fn state_repeats_bundle_and_stdio(kit: &Kit) -> Result<()> {
    let c = kit.created_with(&Spec::sleeper(), Stdio::All)?;
    let s = c.task().state(&c.id, "")?;
    ensure!(
        s.bundle == c.bundle.dir.to_string_lossy(),
        "bundle {}",
        s.bundle
    );
    ensure!(
        [&s.stdin, &s.stdout, &s.stderr] == c.bundle.stdio.each_ref(),
        "stdio {s:?}"
    );
    ensure!(!s.terminal && s.exec_id.is_empty(), "{s:?}");
    Ok(())
}

fn never_exited_is_the_zero_time(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let s = c.task().state(&c.id, "")?;
    let seconds = s.exited_at.as_ref().map(|t| t.seconds);
    ensure!(seconds == Some(ZERO_TIME), "exited_at {seconds:?}");
    ensure!(s.exit_status == 0, "exit_status {}", s.exit_status);
    Ok(())
}

fn exits_with(kit: &Kit, script: &str, status: u32) -> Result<()> {
    let c = kit.running(&Spec::sh(script))?;
    let got = c.exit_status()?;
    ensure!(got == status, "exit status {got}");
    ensure!(c.task().delete(&c.id, "")?.exit_status == status);
    Ok(())
}

fn exit_status_0(kit: &Kit) -> Result<()> {
    exits_with(kit, "exit 0", 0)
}

fn exit_status_7(kit: &Kit) -> Result<()> {
    exits_with(kit, "sleep 0.05; exit 7", 7)
}

fn exit_status_255(kit: &Kit) -> Result<()> {
    exits_with(kit, "exit 255", 255)
}

fn exit_status_137_by_sigkill(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().kill(&c.id, "", 9, false)?;
    let got = c.exit_status()?;
    ensure!(got == 137, "exit status {got}");
    Ok(())
}

fn exit_status_143_by_sigterm(kit: &Kit) -> Result<()> {
    // Without a pid namespace of its own init has the default action for SIGTERM.
    let c = kit.running(&Spec {
        own_pids: false,
        ..Spec::args(&["sleep", "1000"])
    })?;
    c.task().kill(&c.id, "", 15, false)?;
    let got = c.exit_status()?;
    ensure!(got == 143, "exit status {got}");
    Ok(())
}

fn exited_at_is_now(kit: &Kit) -> Result<()> {
    let seconds = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|d| d.as_secs_f64())
    };
    let c = kit.running(&Spec::sleeper())?;
    let before = seconds()?;
    c.task().kill(&c.id, "", 9, false)?;
    let exited = c.task().wait(&c.id, "")?.exited_at.unwrap_or_default();
    let after = seconds()?;
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
    let at = exited.seconds as f64 + f64::from(exited.nanos) / 1e9;
    ensure!(
        at >= before - 0.02 && at <= after + 0.02,
        "{before} … {at} … {after}"
    );
    let again = c.task().state(&c.id, "")?.exited_at.unwrap_or_default();
    ensure!(again == exited, "State says {again:?}, Wait {exited:?}");
    Ok(())
}

fn wait_before_start(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sh("exit 3"))?;
    let (task, id) = (c.task().clone(), c.id.clone());
    let waiting = std::thread::spawn(move || task.wait(&id, ""));
    ensure!(
        c.task().patient(0.3).wait(&c.id, "").is_err(),
        "Wait returned before Start"
    );
    c.start()?;
    let status = waiting
        .join()
        .map_err(|_| anyhow::anyhow!("the waiting thread panicked"))??
        .exit_status;
    ensure!(status == 3, "exit status {status}");
    Ok(())
}

fn wait_repeats(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 4"))?;
    let first = c.task().wait(&c.id, "")?;
    for _ in 0..3 {
        let again = c.task().wait(&c.id, "")?;
        ensure!(again == first, "{first:?} then {again:?}");
    }
    Ok(())
}

fn wait_blocks_while_paused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().pause(&c.id)?;
    let early = c.task().patient(0.4).wait(&c.id, "");
    ensure!(early.is_err(), "Wait returned while paused: {early:?}");
    c.task().resume(&c.id)?;
    c.task().kill(&c.id, "", 9, false)?;
    ensure!(c.exit_status()? == 137);
    Ok(())
}

fn wait_after_delete_not_found(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 0"))?;
    c.exit_status()?;
    c.task().delete(&c.id, "")?;
    refused(c.task().wait(&c.id, ""), Code::NotFound, "Wait")?;
    refused(c.task().state(&c.id, ""), Code::NotFound, "State")
}

fn delete_answers_pid_status_time(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 9"))?;
    let waited = c.task().wait(&c.id, "")?;
    let deleted = c.task().delete(&c.id, "")?;
    ensure!(
        deleted.pid == c.pid && deleted.exit_status == 9,
        "{deleted:?}"
    );
    ensure!(
        deleted.exited_at == waited.exited_at,
        "{deleted:?} after {waited:?}"
    );
    Ok(())
}

fn delete_twice_not_found(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 0"))?;
    c.exit_status()?;
    c.task().delete(&c.id, "")?;
    refused(
        c.task().delete(&c.id, ""),
        Code::NotFound,
        "the second Delete",
    )
}

fn delete_of_running_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    not_done(c.task().delete(&c.id, ""), "Delete while running")?;
    in_status(&c, "", Status::RUNNING)?;
    ensure!(
        process::alive(i32::try_from(c.pid)?),
        "init was killed by a refused Delete"
    );
    Ok(())
}

fn delete_of_created_kills(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    let pid = i32::try_from(c.pid)?;
    // Go's drains the output first, for up to 10 s, although nothing has run.
    c.task().patient(15.0).delete(&c.id, "")?;
    until("init to be gone", by(3.0), || {
        (!process::alive(pid)).then_some(())
    })?;
    refused(
        c.task().state(&c.id, ""),
        Code::NotFound,
        "State after Delete",
    )
}

fn stopped_state_keeps_pid_and_status(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 11"))?;
    c.exit_status()?;
    let s = in_status(&c, "", Status::STOPPED)?;
    ensure!(s.pid == c.pid && s.exit_status == 11, "{s:?}");
    ensure!(s.exited_at.as_ref().is_some_and(|t| t.seconds > 0), "{s:?}");
    Ok(())
}

fn start_of_running_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    not_done(c.task().start(&c.id, ""), "Start while running")?;
    in_status(&c, "", Status::RUNNING).map(drop)
}

fn start_of_stopped_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 0"))?;
    c.exit_status()?;
    not_done(c.task().start(&c.id, ""), "Start when stopped")?;
    in_status(&c, "", Status::STOPPED).map(drop)
}

fn kill_of_created(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    c.task().kill(&c.id, "", 9, false)?;
    let status = c.exit_status()?;
    ensure!(status == 137, "exit status {status}");
    in_status(&c, "", Status::STOPPED).map(drop)
}

fn create_again_refused_and_harmless(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    not_done(
        c.task().create(&c.bundle.create_request()),
        "the second Create",
    )?;
    ensure!(in_status(&c, "", Status::RUNNING)?.pid == c.pid);
    // Its root file system is still there: the loser must not unmount the winner's.
    let e = kit.exec(&c, "look", &Spec::args(&["ls", "/bin/sh"]))?;
    c.task().start(&c.id, &e.id)?;
    ensure!(
        c.task().wait(&c.id, &e.id)?.exit_status == 0,
        "the root file system is gone"
    );
    Ok(())
}

fn early_exits_are_seen(kit: &Kit) -> Result<()> {
    for _ in 0..3 {
        let c = kit.running(&Spec::args(&["true"]))?;
        ensure!(c.exit_status()? == 0);
        let s = in_status(&c, "", Status::STOPPED)?;
        ensure!(s.pid == c.pid, "{s:?}");
        ensure!(c.task().connect_task(&c.id)?.task_pid == c.pid);
    }
    Ok(())
}

fn unknown_id_not_found_everywhere(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let (t, id) = (c.task(), "nobody");
    let mut wrong = Vec::new();
    let mut check = |answer: Result<()>| wrong.extend(answer.err().map(|e| e.to_string()));
    check(refused(t.state(id, ""), Code::NotFound, "State"));
    check(refused(t.start(id, ""), Code::NotFound, "Start"));
    check(refused(t.delete(id, ""), Code::NotFound, "Delete"));
    let exec = ExecProcessRequest {
        id: id.into(),
        exec_id: "e".into(),
        spec: Some(exec_spec(&Spec::sleeper())).into(),
        ..Default::default()
    };
    check(refused(t.exec(&exec), Code::NotFound, "Exec"));
    check(refused(t.pids(id), Code::NotFound, "Pids"));
    check(refused(t.pause(id), Code::NotFound, "Pause"));
    check(refused(t.resume(id), Code::NotFound, "Resume"));
    check(refused(t.kill(id, "", 9, false), Code::NotFound, "Kill"));
    check(refused(t.close_io(id, ""), Code::NotFound, "CloseIO"));
    check(refused(
        t.resize(id, "", 80, 25),
        Code::NotFound,
        "ResizePty",
    ));
    check(refused(t.wait(id, ""), Code::NotFound, "Wait"));
    check(refused(t.stats(id), Code::NotFound, "Stats"));
    check(refused(
        t.update(id, &serde_json::json!({})),
        Code::NotFound,
        "Update",
    ));
    check(refused(
        t.checkpoint(id, "/nowhere"),
        Code::NotFound,
        "Checkpoint",
    ));
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn connect_unknown_id(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let answer = c.task().connect_task("nobody")?;
    ensure!(answer.task_pid == 0 && answer.shim_pid > 1, "{answer:?}");
    Ok(())
}

fn connect_answers_both_pids(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    let answer = c.task().connect_task(&c.id)?;
    ensure!(answer.task_pid == c.pid, "{answer:?}, created {}", c.pid);
    let ours = c.shim.processes();
    ensure!(
        ours.iter()
            .any(|p| u32::try_from(p.pid) == Ok(answer.shim_pid)),
        "{answer:?}, but the shim is {ours:?}"
    );
    Ok(())
}

fn shutdown_with_container_does_nothing(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().shutdown(&c.id)?;
    in_status(&c, "", Status::RUNNING)?;
    // And from a new connection: the listener is still there.
    let again = vigil_lab::Task::connect(&c.shim.reply.socket, V2)?;
    ensure!(
        again.connect_task(&c.id).is_ok() || c.shim.reply.version == 3,
        "no answer on a new connection"
    );
    Ok(())
}

fn shutdown_after_delete_ends_all(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 0"))?;
    c.exit_status()?;
    c.task().delete(&c.id, "")?;
    c.task().patient(3.0).shutdown(&c.id)?;
    until("the shim to end", by(6.0), || {
        c.shim.processes().is_empty().then_some(())
    })?;
    ensure!(
        !c.shim.reply.socket.exists(),
        "{} is left",
        c.shim.reply.socket.display()
    );
    Ok(())
}

fn shutdown_of_an_empty_shim(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    refused(
        c.task().delete(&c.id, ""),
        Code::NotFound,
        "Delete before Create",
    )?;
    c.task().patient(3.0).shutdown(&c.id)?;
    until("the shim to end", by(6.0), || {
        c.shim.processes().is_empty().then_some(())
    })?;
    ensure!(
        !c.shim.reply.socket.exists(),
        "{} is left",
        c.shim.reply.socket.display()
    );
    Ok(())
}

fn survives_a_closed_connection(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("sleep 0.4; exit 6"))?;
    let service = if c.shim.reply.version == 3 { V3 } else { V2 };
    for _ in 0..5 {
        let other = vigil_lab::Task::connect(&c.shim.reply.socket, service)?;
        let waiting = other.patient(0.02).wait(&c.id, "");
        ensure!(waiting.is_err(), "Wait returned at once: {waiting:?}");
    }
    ensure!(c.exit_status()? == 6);
    Ok(())
}

fn serves_v2(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    ensure!(c.task().under(V2).state(&c.id, "")?.pid == c.pid);
    Ok(())
}

fn serves_v3(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    ensure!(c.task().under(V3).state(&c.id, "")?.pid == c.pid);
    Ok(())
}

fn unknown_method_unimplemented(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let service = if c.shim.reply.version == 3 { V3 } else { V2 };
    refused(
        c.task().client().call(service, "Sing", Vec::new(), by(5.0)),
        Code::Unimplemented,
        "Sing",
    )
}

fn unknown_service_unimplemented(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let answer = c
        .task()
        .client()
        .call("containerd.task.v9.Task", "State", Vec::new(), by(5.0));
    refused(answer, Code::Unimplemented, "containerd.task.v9.Task/State")
}

fn oversized_frame_harms_nobody(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    let other = vigil_lab::wire::Client::connect(&c.shim.reply.socket)?;
    let mut frame = ((5_u32 << 20).to_be_bytes()).to_vec();
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.resize(10 + (5 << 20), b'x');
    // It may hang up in the middle.
    let _ = other.send_raw(&frame);
    ensure!(c.task().patient(3.0).state(&c.id, "")?.pid == c.pid);
    Ok(())
}

fn half_a_frame_harms_nobody(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    for bytes in [
        &[0_u8, 0, 0][..],
        &[0, 0, 0, 50, 0, 0, 0, 1, 1, 0, 10, 20, 30],
    ] {
        let other = vigil_lab::wire::Client::connect(&c.shim.reply.socket)?;
        other.send_raw(bytes)?;
        drop(other);
        ensure!(c.task().patient(3.0).state(&c.id, "")?.pid == c.pid);
    }
    let garbage = vigil_lab::wire::Client::connect(&c.shim.reply.socket)?;
    let _ = garbage.send_raw(&fs::read("/proc/self/exe")?[..4096]);
    ensure!(c.task().patient(3.0).state(&c.id, "")?.pid == c.pid);
    Ok(())
}

fn failed_create_spares_a_stranger(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Empty)?;
    let theirs = kit.bundle(&Spec::sleeper(), Stdio::Empty)?;
    let config = theirs.dir.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
    spec["root"]["path"] = kit.scratch.path("base").to_string_lossy().into();
    fs::write(&config, serde_json::to_vec(&spec)?)?;
    let runc = |arguments: &[&str]| -> Result<bool> {
        let mut command = std::process::Command::new("runc");
        command
            .arg("--root")
            .arg(format!("/run/containerd/runc/{}", kit.scratch.mark()))
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        Ok(command.status()?.success())
    };
    let dir = theirs.dir.to_string_lossy().into_owned();
    ensure!(runc(&["run", "-d", "-b", &dir, &c.id])?, "no stranger");
    let refused = not_done(c.task().create(&c.bundle.create_request()), "Create");
    let spared = runc(&["kill", &c.id, "0"])?;
    runc(&["delete", "--force", &c.id])?;
    refused?;
    ensure!(spared, "the stranger is gone");
    Ok(())
}

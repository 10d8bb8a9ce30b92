//! Processes beside init: registered, started, ended, deleted, each with its own id.

use anyhow::{Result, ensure};
use containerd_shim_protos::api::{ExecProcessRequest, Status};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::ProcessDetails;
use vigil_hostile::FaultyRunc;
use vigil_lab::bundle::Stdio;
use vigil_lab::fifo::FifoWriter;
use vigil_lab::kit::exec_spec;
use vigil_lab::{Code, Fact, Kit, Spec, by, poll::sharp, process, until};

use crate::behaviour::{in_status, not_done, refused};

/// Seconds of Go's zero time: what never happened.
const GO_ZERO: i64 = -62_135_596_800;

crate::behaviours! {
    "§3.4 Exec: nothing is run; §3.3 created." exec_only_registers;
    "§3.4 Start of an exec answers its own pid; State's id is the exec id." exec_runs_with_its_own_pid;
    "§3.4 Exit codes of execs." exec_exit_status;
    "§3.5 Early exits: an exec that ends at once is seen, every time." exec_early_exits;
    "§3.4 Delete of an exec returns its pid, status, time; then it is NotFound." exec_delete_answers;
    "§3.3 Exec: Delete in created and stopped only." exec_delete_of_running_refused;
    "§3.3 Exec: Delete in created." exec_delete_of_created;
    "Delete of an exec that never ran, or failed to start: status 0, Go's zero time." exec_delete_of_one_that_never_ran;
    "§3.5 Init killed while an exec starts: running until that start is over." init_dies_while_an_exec_starts;
    "§3.2 Exec id in use: AlreadyExists." exec_id_in_use;
    "§3.2 Exec id unknown: NotFound." unknown_exec_not_found;
    "§3.5 Failed exec start leaves the state created, pid 0, no event." exec_missing_binary;
    "§3.2 Kill on an exec without pid: FailedPrecondition." kill_of_unstarted_exec;
    "§3.4 Kill of an exec: by number, on its pid, init is not touched." kill_of_exec;
    "§3.2 Kill: process already finished: NotFound, for execs." kill_of_ended_exec_not_found;
    "§3.3 stopped: Exec ✗." exec_in_stopped_refused;
    "§3.3 paused: Exec ✗." exec_in_paused_refused;
    "§3.3 created: Exec ✓." exec_in_created_registers;
    "§3.3 Exec: Start in created only." exec_start_twice_refused;
    "§3.5 Start of an exec after init was reaped: FailedPrecondition." exec_start_after_init_exit;
    "§3.4 Pids: execs carry ProcessDetails with their id." pids_name_execs;
    "§4 stdin of an exec, and its end after CloseIO." exec_stdin_and_close;
    "§4 Terminal of an exec: it is one, and its size is what ResizePty says." exec_terminal_and_resize;
    "§3.5 Execs die with init, and are accounted for." execs_die_with_init;
    "§3.4 Exec: one that is too large harms no other." exec_too_large_harms_nobody;
    "§3.4 Exec: one nearly as long as ttrpc's longest message, 4 MiB, runs." exec_as_long_as_a_message;
    "§3.4 Two execs at a time have their own statuses." execs_do_not_mix;
}

fn exec_only_registers(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let e = kit.exec(&c, "e1", &Spec::sh("echo ran"))?;
    kit.sink.expect("exec-added e1", by(5.0))?;
    let s = in_status(&c, &e.id, Status::CREATED)?;
    ensure!(s.pid == 0, "{s:?}");
    ensure!(e.stdout.so_far().is_empty());
    Ok(())
}

fn exec_runs_with_its_own_pid(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let e = kit.exec(&c, "e1", &Spec::args(&["sleep", "1000"]))?;
    let pid = c.task().start(&c.id, &e.id)?;
    ensure!(
        pid != c.pid && process::alive(i32::try_from(pid)?),
        "pid {pid}"
    );
    let s = in_status(&c, &e.id, Status::RUNNING)?;
    ensure!(
        s.pid == pid && s.id == e.id && s.exec_id.is_empty(),
        "{s:?}"
    );
    ensure!(in_status(&c, "", Status::RUNNING)?.pid == c.pid);
    Ok(())
}

fn exec_exit_status(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    for (id, script, status) in [
        ("a", "exit 0", 0),
        ("b", "exit 42", 42),
        ("c", "kill -9 $$", 137),
    ] {
        kit.exec(&c, id, &Spec::sh(script))?;
        c.task().start(&c.id, id)?;
        let got = c.task().wait(&c.id, id)?;
        ensure!(got.exit_status == status, "{script}: {got:?}");
        ensure!(
            got.exited_at.as_ref().is_some_and(|t| t.seconds > 0),
            "{got:?}"
        );
        let s = in_status(&c, id, Status::STOPPED)?;
        ensure!(s.exit_status == status, "{s:?}");
    }
    in_status(&c, "", Status::RUNNING).map(drop)
}

fn exec_early_exits(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    for n in 0..10 {
        let id = format!("e{n}");
        kit.exec(&c, &id, &Spec::sh(&format!("exit {n}")))?;
        c.task().start(&c.id, &id)?;
        let got = c.task().wait(&c.id, &id)?.exit_status;
        ensure!(got == n, "exec {n} exited with {got}");
        c.task().delete(&c.id, &id)?;
    }
    Ok(())
}

fn exec_delete_answers(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::sh("exit 5"))?;
    let pid = c.task().start(&c.id, "e1")?;
    let waited = c.task().wait(&c.id, "e1")?;
    let deleted = c.task().delete(&c.id, "e1")?;
    ensure!(
        deleted.pid == pid && deleted.exit_status == 5 && deleted.exited_at == waited.exited_at,
        "{deleted:?}"
    );
    refused(
        c.task().state(&c.id, "e1"),
        Code::NotFound,
        "State of a deleted exec",
    )?;
    refused(
        c.task().delete(&c.id, "e1"),
        Code::NotFound,
        "Delete of a deleted exec",
    )
}

fn exec_delete_of_running_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::args(&["sleep", "1000"]))?;
    let pid = c.task().start(&c.id, "e1")?;
    not_done(c.task().delete(&c.id, "e1"), "Delete of a running exec")?;
    ensure!(
        process::alive(i32::try_from(pid)?),
        "it was killed by a refused Delete"
    );
    in_status(&c, "e1", Status::RUNNING).map(drop)
}

fn exec_delete_of_created(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::sh("exit 5"))?;
    c.task().delete(&c.id, "e1")?;
    refused(c.task().state(&c.id, "e1"), Code::NotFound, "State")
}

fn exec_id_in_use(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let spec = Spec::sh("exit 0");
    kit.exec(&c, "e1", &spec)?;
    let again = ExecProcessRequest {
        id: c.id.clone(),
        exec_id: "e1".into(),
        spec: Some(exec_spec(&spec)).into(),
        ..Default::default()
    };
    refused(
        c.task().exec(&again),
        Code::AlreadyExists,
        "Exec with an id in use",
    )
}

fn unknown_exec_not_found(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let (t, id, e) = (c.task(), c.id.as_str(), "nobody");
    let mut wrong = Vec::new();
    let mut check = |answer: Result<()>| wrong.extend(answer.err().map(|e| e.to_string()));
    check(refused(t.state(id, e), Code::NotFound, "State"));
    check(refused(t.start(id, e), Code::NotFound, "Start"));
    check(refused(t.delete(id, e), Code::NotFound, "Delete"));
    check(refused(t.kill(id, e, 9, false), Code::NotFound, "Kill"));
    check(refused(t.close_io(id, e), Code::NotFound, "CloseIO"));
    check(refused(
        t.resize(id, e, 80, 25),
        Code::NotFound,
        "ResizePty",
    ));
    check(refused(t.wait(id, e), Code::NotFound, "Wait"));
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn exec_missing_binary(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::args(&["/no/such/program"]))?;
    let Err(error) = c.task().start(&c.id, "e1") else {
        anyhow::bail!("it was started")
    };
    ensure!(
        error.to_string().contains("/no/such/program"),
        "an error that does not name the program: {error}"
    );
    let s = in_status(&c, "e1", Status::CREATED)?;
    ensure!(s.pid == 0, "{s:?}");
    c.task().delete(&c.id, "e1")?;
    in_status(&c, "", Status::RUNNING)?;
    ensure!(
        !kit.sink.story().contains(&"exec-started e1".to_owned()),
        "{:?}",
        kit.sink.story()
    );
    Ok(())
}

fn kill_of_unstarted_exec(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::sh("exit 0"))?;
    refused(
        c.task().kill(&c.id, "e1", 9, false),
        Code::FailedPrecondition,
        "Kill of an exec not started",
    )?;
    in_status(&c, "", Status::RUNNING).map(drop)
}

fn kill_of_exec(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    for (id, signal) in [("a", 15), ("b", 9), ("c", 10)] {
        kit.exec(&c, id, &Spec::args(&["sleep", "1000"]))?;
        c.task().start(&c.id, id)?;
        c.task().kill(&c.id, id, signal, false)?;
        let got = c.task().wait(&c.id, id)?.exit_status;
        ensure!(got == 128 + signal, "signal {signal}: {got}");
    }
    in_status(&c, "", Status::RUNNING).map(drop)
}

fn kill_of_ended_exec_not_found(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::sh("exit 0"))?;
    c.task().start(&c.id, "e1")?;
    c.task().wait(&c.id, "e1")?;
    refused(
        c.task().kill(&c.id, "e1", 9, false),
        Code::NotFound,
        "Kill of an ended exec",
    )
}

fn exec_in_stopped_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 0"))?;
    c.exit_status()?;
    let exec = kit.exec(&c, "e1", &Spec::sh("exit 0"));
    ensure!(exec.is_err(), "registered in a stopped container");
    Ok(())
}

fn exec_in_paused_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().pause(&c.id)?;
    ensure!(
        kit.exec(&c, "e1", &Spec::sh("exit 0")).is_err(),
        "registered in a paused container"
    );
    c.task().resume(&c.id)?;
    Ok(())
}

fn exec_in_created_registers(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::sh("exit 3"))?;
    c.start()?;
    c.task().start(&c.id, "e1")?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 3);
    Ok(())
}

fn exec_start_twice_refused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::args(&["sleep", "1000"]))?;
    let pid = c.task().start(&c.id, "e1")?;
    not_done(c.task().start(&c.id, "e1"), "the second Start")?;
    ensure!(in_status(&c, "e1", Status::RUNNING)?.pid == pid);
    Ok(())
}

fn exec_start_after_init_exit(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::sh("exit 0"))?;
    c.task().kill(&c.id, "", 9, false)?;
    c.exit_status()?;
    refused(
        c.task().start(&c.id, "e1"),
        Code::FailedPrecondition,
        "Start after init's exit",
    )
}

fn pids_name_execs(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::args(&["sleep", "1000"]))?;
    let pid = c.task().start(&c.id, "e1")?;
    let pids = c.task().pids(&c.id)?.processes;
    ensure!(
        pids.iter().any(|p| p.pid == c.pid && p.info.is_none()),
        "{pids:?}"
    );
    let exec = pids
        .iter()
        .find(|p| p.pid == pid)
        .ok_or_else(|| anyhow::anyhow!("no {pid} in {pids:?}"))?;
    let any = exec.info.clone().unwrap_or_default();
    ensure!(
        any.type_url == "containerd.runc.v1.ProcessDetails",
        "{any:?}"
    );
    let details = ProcessDetails::parse_from_bytes(&any.value)?;
    ensure!(details.exec_id == "e1", "{details:?}");
    // sh, its sleep, and the exec.
    ensure!(pids.len() >= 3, "{pids:?}");
    Ok(())
}

fn exec_stdin_and_close(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let e = kit.exec(&c, "e1", &Spec::args(&["cat"]))?;
    c.task().start(&c.id, "e1")?;
    let mut stdin = FifoWriter::open(&e.stdin, by(5.0))?;
    stdin.write("hello\n")?;
    e.stdout.expect("hello\n", by(5.0))?;
    drop(stdin);
    in_status(&c, "e1", Status::RUNNING)?;
    c.task().close_io(&c.id, "e1")?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 0);
    Ok(())
}

fn exec_terminal_and_resize(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let e = kit.exec(
        &c,
        "e1",
        &Spec::sh("tty; read line; stty size; exit 4").on_terminal(),
    )?;
    c.task().start(&c.id, "e1")?;
    e.stdout.expect("/dev/pts/", by(5.0))?;
    c.task().resize(&c.id, "e1", 101, 37)?;
    FifoWriter::open(&e.stdin, by(5.0))?.write("\n")?;
    e.stdout.expect("37 101", by(5.0))?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 4);
    c.task().delete(&c.id, "e1")?;
    Ok(())
}

fn execs_die_with_init(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::args(&["sleep", "1000"]))?;
    let pid = i32::try_from(c.task().start(&c.id, "e1")?)?;
    c.task().kill(&c.id, "", 9, false)?;
    c.exit_status()?;
    until("the exec to die", by(3.0), || {
        (!process::alive(pid)).then_some(())
    })?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 137);
    let exit = kit.sink.expect("exit e1", by(3.0))?;
    ensure!(
        matches!(exit.fact, Fact::Exit(ref e) if e.exit_status == 137),
        "{exit:?}"
    );
    Ok(())
}

fn execs_do_not_mix(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let mut execs = Vec::new();
    for n in 1..=6_u32 {
        execs.push(kit.exec(
            &c,
            &format!("e{n}"),
            &Spec::sh(&format!("echo I am {n}; sleep 0.{n}; exit {n}")),
        )?);
    }
    for e in &execs {
        c.task().start(&c.id, &e.id)?;
    }
    for (n, e) in (1..).zip(&execs) {
        ensure!(c.task().wait(&c.id, &e.id)?.exit_status == n);
        e.stdout.expect(&format!("I am {n}\n"), by(3.0))?;
    }
    Ok(())
}

fn exec_too_large_harms_nobody(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let mut process = Spec::args(&["true"]).process();
    process["env"] = (0..2500)
        .map(|_| format!("A={}", "x".repeat(1000)))
        .collect();
    let mut spec = exec_spec(&Spec::args(&["true"]));
    spec.value = serde_json::to_vec(&process)?;
    // Whether it is taken is the shim's affair; what it does to the next is not.
    let _ = c.task().exec(&ExecProcessRequest {
        id: c.id.clone(),
        exec_id: "large".into(),
        spec: Some(spec).into(),
        ..ExecProcessRequest::default()
    });
    kit.exec(&c, "e1", &Spec::sh("exit 4"))?;
    c.task().start(&c.id, "e1")?;
    let exit = c.task().wait(&c.id, "e1")?;
    ensure!(exit.exit_status == 4, "{exit:?}");
    Ok(())
}

/// containerd's client suite takes any other status than 0 for the exec's own failure.
fn exec_delete_of_one_that_never_ran(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "never", &Spec::sh("exit 5"))?;
    kit.exec(&c, "failed", &Spec::args(&["/no/such/program"]))?;
    ensure!(c.task().start(&c.id, "failed").is_err(), "it was started");
    for id in ["never", "failed"] {
        let deleted = c.task().delete(&c.id, id)?;
        let at = deleted.exited_at.as_ref().map(|at| at.seconds);
        ensure!(
            deleted.pid == 0 && deleted.exit_status == 0 && at == Some(GO_ZERO),
            "{id}: {deleted:?}"
        );
    }
    Ok(())
}

/// Start before exit: what comes of a start under way is told before init's end, and until
/// then the container is what it was, and takes one more exec, which cannot be started.
fn init_dies_while_an_exec_starts(kit: &Kit) -> Result<()> {
    let runc = FaultyRunc::new(kit.scratch.dir(), "exec", "waits-then-done")?;
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut request = c.bundle.create_request();
    request.options = Some(runc.options()).into();
    let init = c.task().create(&request)?.pid;
    c.start()?;
    kit.exec(&c, "e1", &Spec::sh("exit 0"))?;
    let (task, id) = (c.task().patient(30.0), c.id.clone());
    let starting = std::thread::spawn(move || task.start(&id, "e1"));
    runc.waits()?;
    c.task().kill(&c.id, "", 9, false)?;
    until("init to be gone", by(10.0), || {
        (!process::alive(i32::try_from(init).ok()?)).then_some(())
    })?;
    // Longer than an end that is known takes to be told.
    let until_told = sharp(4.0);
    while std::time::Instant::now() < until_told {
        in_status(&c, "", Status::RUNNING)?;
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    ensure!(
        !kit.sink.story().contains(&"exit".to_owned()),
        "init's end was told: {:?}",
        kit.sink.story()
    );
    kit.exec(&c, "e2", &Spec::sh("exit 0"))?;
    runc.go()?;
    let started = starting
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))?;
    ensure!(started.is_err(), "started in a dead container: {started:?}");
    ensure!(c.exit_status()? == 137);
    in_status(&c, "", Status::STOPPED)?;
    refused(
        c.task().start(&c.id, "e2"),
        Code::FailedPrecondition,
        "Start after init's exit",
    )
}

/// A namespace of a thousand Services makes such environments.
fn exec_as_long_as_a_message(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let mut process = Spec::sh("[ ${#V3879} = 990 ] && exit 4").process();
    let env = (0..3880).map(|n| format!("V{n:04}={}", "x".repeat(990)));
    process["env"] = std::iter::once("PATH=/bin".to_owned()).chain(env).collect();
    // Without it the kernel takes no more than 2 MiB.
    process["rlimits"] =
        serde_json::json!([{"type": "RLIMIT_STACK", "hard": 64 << 20, "soft": 64 << 20}]);
    let mut spec = exec_spec(&Spec::args(&["true"]));
    spec.value = serde_json::to_vec(&process)?;
    // 4 MB through an emulated machine take their time.
    let task = c.task().patient(120.0);
    task.exec(&ExecProcessRequest {
        id: c.id.clone(),
        exec_id: "large".into(),
        spec: Some(spec).into(),
        ..ExecProcessRequest::default()
    })?;
    task.start(&c.id, "large")?;
    let exit = task.wait(&c.id, "large")?;
    ensure!(exit.exit_status == 4, "{exit:?}");
    task.delete(&c.id, "large").map(drop)?;
    Ok(())
}

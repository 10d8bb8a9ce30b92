//! F34, F35 and F36: the ends of pipes. Fifos nobody opens, a log nobody reads, an exec
//! whose client has died.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio as Pipe;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::Process;
use vigil_lab::{FifoReader, GENEROUS, Kit, Place, Shim, Spec, by, until};

use crate::cases;
use crate::watch::Watch;
use crate::world::{answered, deleted, nothing_left, serves, status, times};

cases! {
    Kit    All  f34_fifos_nobody_opens "Create with fifos no client has opened: it runs, others are served, a late reader gets all";
    Kit    All  f34_fifo_vanishes "A stdio fifo removed before Create: refused with its name, in time, and the shim goes on";
    Kit    All  f34_odd_things_for_fifos "A directory, a socket, a dangling link for stdout: an answer, no hang";
    Kit    All  f34_exec_fifos_nobody_opens "Exec with fifos no client has opened: neither it nor anybody else hangs";
    Kit    All  f35_log_is_full "The log fifo full, debug on: a whole life, every answer in time" alone;
    Kit    All  f35_log_reader_gone "The reader of the log has gone, came back, or removed the fifo: a whole life";
    Kit    All  f36_client_of_an_exec_dies "An exec whose client has died can be killed; it dies with the container, nothing of it is left";
    Daemon All  f36_ctr_exec_killed "`ctr tasks exec` SIGKILLed: the container is served, killed and deleted in time";
    Daemon All  f36_exec_across_a_restart "An exec runs while containerd is killed and restarted: listed, served, gone with its container";
    Kit    All  f36_exec_that_daemonises "An exec that leaves its session: killed with the container in a shared pid namespace too";
}

fn quick<T>(what: &str, call: impl FnOnce() -> T) -> Result<T> {
    let at = Instant::now();
    let value = call();
    ensure!(at.elapsed() < GENEROUS, "{what} took {:?}", at.elapsed());
    Ok(value)
}

/// A container whose fifos are there and opened by nobody.
fn unopened(kit: &Kit, spec: &Spec) -> Result<Container> {
    let bundle = kit.bundle(spec, Stdio::All)?;
    let shim = kit.shim(&bundle)?;
    Ok(Container {
        id: bundle.id.clone(),
        bundle,
        shim,
        stdout: None,
        stderr: None,
        pid: 0,
    })
}

fn f34_fifos_nobody_opens(kit: &Kit) -> Result<()> {
    let mut c = unopened(kit, &Spec::sh("echo early; sleep 1; echo late; exit 3"))?;
    c.pid = quick("Create", || c.task().create(&c.bundle.create_request()))??.pid;
    quick("State", || serves(&c))??;
    quick("Start", || c.start())??;
    quick("State", || serves(&c))??;
    std::thread::sleep(Duration::from_secs(times(2, 40) as u64));
    let stdout = FifoReader::open(c.bundle.stdio[1].as_ref())?;
    let _stderr = FifoReader::open(c.bundle.stdio[2].as_ref())?;
    stdout.expect("early\nlate\n", by(10.0))?;
    ensure!(c.exit_status()? == 3);
    ensure!(c.task().delete(&c.id, "")?.exit_status == 3);
    Ok(())
}

fn f34_fifo_vanishes(kit: &Kit) -> Result<()> {
    let c = unopened(kit, &Spec::sh("exit 3"))?;
    std::fs::remove_file(&c.bundle.stdio[1])?;
    let made = quick("Create", || c.task().create(&c.bundle.create_request()))?;
    if answered(made, "Create")?.is_some() {
        // Then it lives like any other.
        c.start()?;
        ensure!(c.exit_status()? == 3);
        c.task().delete(&c.id, "")?;
    }
    answered(c.task().patient(2.0).state(&c.id, ""), "State")?;
    c.task().shutdown(&c.id)?;
    deleted(&c)?;
    nothing_left(kit, &c.id)
}

fn f34_odd_things_for_fifos(kit: &Kit) -> Result<()> {
    for what in ["directory", "socket", "link"] {
        let c = unopened(kit, &Spec::sh("exit 3"))?;
        let path = std::path::Path::new(&c.bundle.stdio[1]);
        std::fs::remove_file(path)?;
        let _listener = match what {
            "directory" => {
                std::fs::create_dir(path)?;
                None
            }
            "socket" => Some(std::os::unix::net::UnixListener::bind(path)?),
            _ => {
                std::os::unix::fs::symlink("/no/such/place", path)?;
                None
            }
        };
        let made = quick("Create", || c.task().create(&c.bundle.create_request()));
        if answered(made.with_context(|| what.to_owned())?, "Create")
            .with_context(|| what.to_owned())?
            .is_some()
        {
            c.task().delete(&c.id, "")?;
        }
        c.task().shutdown(&c.id)?;
        deleted(&c)?;
        nothing_left(kit, &c.id).with_context(|| what.to_owned())?;
    }
    Ok(())
}

fn f34_exec_fifos_nobody_opens(kit: &Kit) -> Result<()> {
    use containerd_shim_protos::api::ExecProcessRequest;
    use vigil_lab::kit::exec_spec;
    use vigil_lab::process::mkfifo;

    let c = kit.running(&Spec::sleeper())?;
    let path = |name: &str| {
        kit.scratch
            .path("state")
            .join(format!("{}-e1.{name}", c.id))
    };
    for name in ["in", "out", "err"] {
        mkfifo(&path(name))?;
    }
    let text = |name: &str| path(name).to_string_lossy().into_owned();
    c.task().exec(&ExecProcessRequest {
        id: c.id.clone(),
        exec_id: "e1".into(),
        stdin: text("in"),
        stdout: text("out"),
        stderr: text("err"),
        spec: Some(exec_spec(&Spec::sh("echo hello; exit 4"))).into(),
        ..Default::default()
    })?;
    let (task, id) = (c.task().patient(60.0), c.id.clone());
    let asked = std::thread::spawn(move || task.start(&id, "e1"));
    for number in 0..5 {
        quick("State", || serves(&c))??;
        let other = format!("other{number}");
        kit.exec(&c, &other, &Spec::sh("exit 5"))?;
        quick("Start of another exec", || c.task().start(&c.id, &other))??;
        ensure!(c.task().wait(&c.id, &other)?.exit_status == 5);
        c.task().delete(&c.id, &other)?;
    }
    let out = FifoReader::open(&path("out"))?;
    let _err = FifoReader::open(&path("err"))?;
    asked
        .join()
        .map_err(|_| anyhow::anyhow!("panicked"))?
        .context("Start of the exec")?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 4);
    out.expect("hello\n", by(5.0))
}

/// Created and started, in time.
fn made(c: &Container) -> Result<()> {
    let request = c.bundle.create_request();
    quick("Create", || c.task().create(&request))??;
    quick("Start", || c.start())??;
    Ok(())
}

/// The rest of a life, every answer within a second or what runc takes.
fn life(kit: &Kit, c: &Container) -> Result<()> {
    for number in 0..10 {
        quick("State", || serves(c))??;
        let id = format!("e{number}");
        kit.exec(c, &id, &Spec::sh("exit 5"))?;
        quick("Start of an exec", || c.task().start(&c.id, &id))??;
        ensure!(quick("Wait", || c.task().wait(&c.id, &id))??.exit_status == 5);
        c.task().delete(&c.id, &id)?;
        // What is refused is worth a line in the log.
        let missing = c.task().start(&c.id, "no such exec");
        ensure!(missing.is_err(), "an exec that is not there was started");
    }
    quick("Kill", || c.task().kill(&c.id, "", 9, true))??;
    ensure!(quick("Wait", || c.exit_status())?? == 137);
    Ok(())
}

fn deletes(c: &Container) -> Result<()> {
    let told = quick("Delete", || c.task().delete(&c.id, ""))??;
    ensure!(told.exit_status == 137, "{told:?}");
    Ok(())
}

/// A shim that is to say all it has to say.
fn talkative(kit: &Kit) -> Result<Container> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Output)?;
    let mut command = kit.caller.command(&bundle.id, &bundle.dir);
    command.args(["-debug", "start"]).current_dir(&bundle.dir);
    let ran = vigil_lab::shim::run(&mut command, &kit.caller.options, true, by(20.0))?;
    let shim = kit.adopt(Shim::connect(&kit.caller, &bundle, ran)?)?;
    kit.read_all(&bundle)?;
    Ok(Container {
        id: bundle.id.clone(),
        bundle,
        shim,
        stdout: None,
        stderr: None,
        pid: 0,
    })
}

fn f35_log_is_full(kit: &Kit) -> Result<()> {
    let c = talkative(kit)?;
    let mut log = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(c.bundle.dir.join("log"))?;
    while log.write_all(b"this log is full of such lines\n").is_ok() {}
    made(&c)?;
    let watch = Watch::start(&c)?;
    let lived = life(kit, &c);
    let seen = watch.end()?;
    lived?;
    deletes(&c)?;
    seen.brisk()
}

fn f35_log_reader_gone(kit: &Kit) -> Result<()> {
    for how in ["removed", "replaced"] {
        let c = talkative(kit)?;
        let path = c.bundle.dir.join("log");
        std::fs::remove_file(&path)?;
        if how == "replaced" {
            // As containerd after its restart: a reader on the same name.
            vigil_lab::process::mkfifo(&path)?;
        }
        made(&c).with_context(|| how.to_owned())?;
        life(kit, &c).with_context(|| how.to_owned())?;
        deletes(&c).with_context(|| how.to_owned())?;
        c.task().shutdown(&c.id)?;
        deleted(&c)?;
    }
    Ok(())
}

fn f36_client_of_an_exec_dies(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    // The exec belongs to another client, which ends without a word while it waits.
    kit.exec(&c, "e1", &Spec::args(&["sleep", "1000"]))?;
    let version = if c.shim.reply.version >= 3 {
        vigil_lab::task::V3
    } else {
        vigil_lab::task::V2
    };
    let client = vigil_lab::Task::connect(&c.shim.reply.socket, version)?;
    let number = client.start(&c.id, "e1")?;
    let waiting = client.patient(0.3).wait(&c.id, "e1");
    ensure!(waiting.is_err(), "{waiting:?}");
    drop(client);
    serves(&c)?;
    ensure!(status(&c, "e1")? == Status::RUNNING);
    ensure!(vigil_lab::process::alive(i32::try_from(number)?));
    c.task().kill(&c.id, "e1", 9, false)?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 137);
    c.task().delete(&c.id, "e1")?;
    // Another one is left alone, and goes with the container.
    kit.exec(&c, "e2", &Spec::args(&["sleep", "1000"]))?;
    c.task().start(&c.id, "e2")?;
    c.task().kill(&c.id, "", 9, false)?;
    ensure!(c.exit_status()? == 137);
    ensure!(c.task().wait(&c.id, "e2")?.exit_status == 137);
    c.task().delete(&c.id, "")?;
    c.task().shutdown(&c.id)?;
    deleted(&c)?;
    nothing_left(kit, &c.id)
}

fn f36_ctr_exec_killed(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    place.expect_status("c", "RUNNING")?;
    let args = ["tasks", "exec", "--exec-id", "e1", "c", "sleep", "1001"];
    let mut client = place.containerd.ctr_command(&args);
    client
        .stdin(Pipe::piped())
        .stdout(Pipe::null())
        .stderr(Pipe::null());
    let mut client = client.spawn()?;
    let mark = place.containerd.namespace().to_owned();
    let begun = until("the exec to run", by(10.0), || {
        let all = Process::marked(&mark);
        all.iter().any(|p| p.cmdline == "sleep 1001").then_some(())
    });
    let _ = client.kill();
    let _ = client.wait();
    begun?;
    let ran = place.containerd.try_ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "e2",
        "c",
        "sh",
        "-c",
        "exit 4",
    ])?;
    ensure!(
        ran.status.code() == Some(4),
        "{}: {}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr)
    );
    place.end("c")?;
    until("the exec to be gone", by(5.0), || {
        (!Process::marked(&mark)
            .iter()
            .any(|p| p.cmdline == "sleep 1001"))
        .then_some(())
    })
}

fn f36_exec_across_a_restart(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    place.expect_status("c", "RUNNING")?;
    let args = [
        "tasks",
        "exec",
        "-d",
        "--exec-id",
        "e1",
        "c",
        "sleep",
        "1001",
    ];
    place.containerd.ctr(&args)?;
    for signal in [9, 15] {
        place.containerd.stop(signal)?;
        place.containerd.launch()?;
        place.expect_status("c", "RUNNING")?;
        let ps = place.containerd.ctr(&["tasks", "ps", "c"])?;
        ensure!(ps.lines().count() == 3 && ps.contains("e1"), "{ps}");
    }
    place.end("c")?;
    let mark = place.containerd.namespace().to_owned();
    until("the exec to be gone", by(5.0), || {
        let all = Process::marked(&mark);
        (!all.iter().any(|p| p.cmdline == "sleep 1001")).then_some(())
    })
}

fn f36_exec_that_daemonises(kit: &Kit) -> Result<()> {
    for own_pids in [true, false] {
        let c = kit.running(&Spec {
            own_pids,
            ..Spec::sleeper()
        })?;
        kit.exec(
            &c,
            "e1",
            &Spec::sh("setsid sleep 1002 >/dev/null 2>&1 </dev/null & exit 3"),
        )?;
        c.task().start(&c.id, "e1")?;
        ensure!(c.task().wait(&c.id, "e1")?.exit_status == 3);
        c.task().delete(&c.id, "e1")?;
        let daemon = || {
            let all = Process::marked(kit.scratch.mark());
            all.into_iter().find(|p| p.cmdline == "sleep 1002")
        };
        // Its shell may have gone before it has become itself.
        until("the daemon to outlive its exec", by(5.0), || {
            daemon().is_some().then_some(())
        })?;
        c.task().kill(&c.id, "", 9, false)?;
        ensure!(c.exit_status()? == 137);
        until("the daemon to die", by(5.0), || {
            daemon().is_none().then_some(())
        })
        .with_context(|| format!("own pid namespace: {own_pids}"))?;
        c.task().delete(&c.id, "")?;
    }
    Ok(())
}

//! F29 and F39: between create and start. A task whose containerd went away, a shim that
//! never got a task, an init that waits for a start that does not come.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio as Pipe;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_lab::poll::sharp;
use vigil_lab::process::alive;
use vigil_lab::{Fact, Kit, Place, Spec, by, until};

use crate::cases;
use crate::world::{answered, deleted, nothing_left, pid, runc_state, status, times};

cases! {
    Kit    All f29_containerd_killed_during_create "containerd SIGKILLed while runc create runs, restarted at once: task and container can be removed, nothing is left";
    Kit    All f29_containerd_killed_before_start "containerd SIGKILLed while runc start runs, restarted: the task is there and can be removed";
    Kit    All f29_down_for_a_while "... and restarted only when create has long been over";
    Kit    All f29_client_gone_during_create "The client hangs up in mid-Create: the task is kept, State and Delete know it";
    Kit    All f39_kill_and_delete_in_created "SIGKILL and Delete of a created container; its exit told because it was killed by request";
    Kit    All f39_delete_without_kill_tells_no_start "Delete in created: init gone, no TaskStart ever";
    Kit    All f39_start_much_later "Start long after Create: it runs as if nothing had been";
    Kit    All f39_sigterm_in_created "SIGTERM in created: it takes effect or it can still be deleted";
    Kit    All f39_delete_of_created_after_sigkill "The pair killed in created: `delete` removes it by its cgroup, also without init.pid and state.json";
}

/// A containerd whose runc waits for `go` at `verb`, before or after its work.
struct Gated {
    place: Place,
    go: PathBuf,
    waits: PathBuf,
}

/// The runtime finds runc in containerd's PATH, and there this one comes first.
fn gated(kit: &Kit, verb: &str, before: bool) -> Result<Gated> {
    use std::os::unix::fs::PermissionsExt;
    let dir = kit.scratch.path("gate");
    fs::create_dir_all(&dir)?;
    let (program, go, waits) = (dir.join("runc"), dir.join("go"), dir.join("waits"));
    // Bounded: a test that fails leaves nobody behind.
    let wait = format!(
        ": >{}; n=0; while ! test -e {} && test $n -lt 300; do sleep 0.05; n=$((n+1)); done",
        waits.display(),
        go.display()
    );
    let at = if before {
        format!("{wait}; exec runc \"$@\"")
    } else {
        format!("runc \"$@\"; code=$?; {wait}; exit $code")
    };
    fs::write(
        &program,
        format!(
            "#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
             for a; do [ \"$a\" = {verb} ] && {{ {at}; }}; done\nexec runc \"$@\"\n"
        ),
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let version = kit.binary.containerd();
    let shims = kit.binary.path.parent().context("a shim in no directory")?;
    let path = [dir.as_path(), shims, version.directory().as_path()]
        .map(|d| d.display().to_string())
        .join(":");
    let path = format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin");
    let place = Place::start_with(version, &kit.binary, &[("PATH", &path)])?;
    Ok(Gated { place, go, waits })
}

/// containerd is killed while runc is at `verb`, is away for `away`, and comes back.
fn killed_while(kit: &Kit, verb: &str, before: bool, away: Duration) -> Result<()> {
    let Gated {
        mut place,
        go,
        waits,
    } = gated(kit, verb, before)?;
    let outcome = killed_at(&mut place, &go, &waits, away);
    let outcome = outcome.and_then(|()| place.containerd.expect_clean().context("after it"));
    outcome.with_context(|| place.containerd.log_tail())
}

fn killed_at(place: &mut Place, go: &Path, waits: &Path, away: Duration) -> Result<()> {
    let args = place.run_args(&["-d"], "c", &["sleep", "1000"]);
    let mut client = place.containerd.ctr_command(&args);
    client
        .stdin(Pipe::null())
        .stdout(Pipe::null())
        .stderr(Pipe::null());
    let mut client = client.spawn()?;
    let begun = until("runc to be under way", by(10.0), || {
        waits.exists().then_some(())
    });
    let stopped = begun.and_then(|()| place.containerd.stop(9));
    let _ = client.kill();
    let _ = client.wait();
    stopped?;
    if away.is_zero() {
        place.containerd.launch()?;
        fs::write(go, "")?;
    } else {
        fs::write(go, "")?;
        std::thread::sleep(away);
        place.containerd.launch()?;
    }
    // A client that forgets the container while its create is under way has forgotten the
    // task too; one that waits finds it, or finds that there is none.
    let ctr = &place.containerd;
    until(
        "the task to be there, or its shim to be gone",
        by(15.0),
        || {
            let there = ctr.task_status("c").ok()?.is_some();
            (there || place.shims("c").is_empty()).then_some(())
        },
    )?;
    until("task, container and shim to be gone", by(75.0), || {
        let _ = ctr.try_ctr(&["tasks", "kill", "-s", "SIGKILL", "c"]);
        let _ = ctr.try_ctr(&["tasks", "rm", "-f", "c"]);
        if ctr.task_status("c").ok()?.is_none() {
            let _ = ctr.try_ctr(&["containers", "rm", "c"]);
        }
        let table = ctr.ctr(&["containers", "ls", "-q"]).ok()?;
        (table.trim().is_empty() && place.shims("c").is_empty()).then_some(())
    })
    .with_context(|| {
        let tasks = ctr.ctr(&["tasks", "ls"]).unwrap_or_default();
        format!("tasks: {tasks:?}, shims: {:?}", place.shims("c"))
    })?;
    // The same name can be used again.
    let ran = place.run(&["--rm"], "c", &["sh", "-c", "exit 6"])?;
    ensure!(
        ran.status.code() == Some(6),
        "{}: {}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(())
}

fn f29_containerd_killed_during_create(kit: &Kit) -> Result<()> {
    killed_while(kit, "create", true, Duration::ZERO)
}

fn f29_containerd_killed_before_start(kit: &Kit) -> Result<()> {
    killed_while(kit, "start", true, Duration::ZERO)
}

fn f29_down_for_a_while(kit: &Kit) -> Result<()> {
    killed_while(
        kit,
        "create",
        false,
        Duration::from_secs(times(3, 60) as u64),
    )
}

fn f29_client_gone_during_create(kit: &Kit) -> Result<()> {
    let (dir, options) = crate::world::scripted(
        kit,
        "slow",
        "[ $verb = create ] && { : >$dir/begun; sleep 1; }",
    )?;
    let c = kit.prepared(&Spec::sleeper(), vigil_lab::bundle::Stdio::Output)?;
    let mut request = c.bundle.create_request();
    request.options = Some(options).into();
    let own = vigil_lab::Task::connect(&c.shim.reply.socket, version(&c.shim))?;
    let asked = std::thread::spawn(move || own.patient(0.5).create(&request).map(drop));
    until("runc create to be under way", by(5.0), || {
        dir.join("begun").exists().then_some(())
    })?;
    // Its patience ends, its connection is closed; ours is another.
    let told = asked.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    ensure!(told.is_err(), "{told:?}");
    until("the task to be created", by(10.0), || {
        (status(&c, "").ok()? == Status::CREATED).then_some(())
    })?;
    c.task().start(&c.id, "")?;
    c.task().kill(&c.id, "", 9, false)?;
    ensure!(c.exit_status()? == 137);
    ensure!(c.task().delete(&c.id, "")?.exit_status == 137);
    Ok(())
}

/// The name under which this shim serves.
fn version(shim: &vigil_lab::Shim) -> &'static str {
    if shim.reply.version >= 3 {
        vigil_lab::task::V3
    } else {
        vigil_lab::task::V2
    }
}

fn f39_kill_and_delete_in_created(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    c.task().kill(&c.id, "", 9, false)?;
    ensure!(c.exit_status()? == 137);
    let exit = kit.sink.expect("exit", by(5.0))?;
    ensure!(
        matches!(exit.fact, Fact::Exit(ref e) if e.exit_status == 137 && e.pid == c.pid),
        "{exit:?}"
    );
    ensure!(
        c.task().start(&c.id, "").is_err(),
        "a dead init was started"
    );
    ensure!(c.task().delete(&c.id, "")?.exit_status == 137);
    c.task().shutdown(&c.id)?;
    deleted(&c)?;
    nothing_left(kit, &c.id)?;
    let story = kit.sink.story();
    ensure!(!story.iter().any(|s| s == "start"), "{story:?}");
    Ok(())
}

fn f39_delete_without_kill_tells_no_start(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    c.task().delete(&c.id, "")?;
    until("init to be gone", by(5.0), || {
        (!alive(pid(&c).ok()?)).then_some(())
    })?;
    c.task().shutdown(&c.id)?;
    deleted(&c)?;
    nothing_left(kit, &c.id)?;
    let story = kit.sink.story();
    ensure!(!story.iter().any(|s| s == "start"), "{story:?}");
    ensure!(
        story.iter().filter(|s| *s == "exit").count() <= 1,
        "{story:?}"
    );
    Ok(())
}

fn f39_start_much_later(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sh("echo late; exit 3"))?;
    std::thread::sleep(Duration::from_secs(times(3, 100) as u64));
    ensure!(status(&c, "")? == Status::CREATED);
    c.start()?;
    ensure!(c.exit_status()? == 3);
    c.out()?.expect("late\n", by(5.0))?;
    ensure!(c.task().delete(&c.id, "")?.exit_status == 3);
    Ok(())
}

fn f39_sigterm_in_created(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::args(&["sleep", "1000"]))?;
    answered(c.task().kill(&c.id, "", 15, false), "Kill")?;
    let died = until("", sharp(2.0), || (!alive(pid(&c).ok()?)).then_some(())).is_ok();
    if died {
        ensure!(c.exit_status()? != 0, "killed, and status 0");
        ensure!(status(&c, "")? == Status::STOPPED);
    } else {
        ensure!(status(&c, "")? == Status::CREATED);
    }
    c.task().delete(&c.id, "").context("Delete")?;
    Ok(())
}

fn f39_delete_of_created_after_sigkill(kit: &Kit) -> Result<()> {
    for without in ["nothing", "init.pid", "state.json", "all"] {
        let c = kit.created(&Spec::sleeper())?;
        c.shim.kill_all()?;
        for name in ["init.pid", "state.json"] {
            if without == name || without == "all" {
                let path = if name == "init.pid" {
                    c.bundle.dir.join(name)
                } else {
                    runc_state(kit, &c.id).join(name)
                };
                fs::remove_file(path)?;
            }
        }
        let said = deleted(&c).with_context(|| format!("without {without}"))?;
        ensure!([137, 255].contains(&said.exit_status), "{said:?}");
        ensure!(!alive(pid(&c)?), "without {without}: init lives");
        nothing_left(kit, &c.id)?;
        c.bundle.remove()?;
    }
    let story = kit.sink.story();
    ensure!(!story.iter().any(|s| s == "start"), "{story:?}");
    Ok(())
}

//! F40, F41, F42 and F49: what failed or short-lived things leave: loggers, consoles,
//! zombies, and tasks whose restore never made an init.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use vigil_hostile::fds;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{Kit, Shim, Spec, by, until};

use crate::cases;
use crate::world::{
    answered, cgroups, deleted, nothing_left, pid, running_under, scripted, serves, status, times,
    unified, zombies,
};

cases! {
    Kit All f40_console_never_comes "runc create succeeds and never sends the console: refused in time, nothing left, the next one works";
    Kit All f40_second_mount_fails "The second of two mounts fails: the first is undone, the next Create works";
    Kit All f40_failed_create_ends_its_logger "Create fails after the logger was started: the logger ends";
    Kit All f40_rootfs_cannot_be_made "The mount point is a file: refused, nothing left";
    Kit All f40_failed_create_then_the_same_id "runc create fails, dies or is torn at each point; at once the same id again";
    Kit All f41_orphans_of_execs "Execs that leave orphans, own and host pid namespace: no zombie of the shim's";
    Kit All f41_short_execs_leave_no_zombie "A burst of short execs: no zombie of the shim's a second later";
    Kit All f42_terminals_leave_no_fd "Terminals of execs and containers: descriptors and ptys as before";
    Kit All f49_restore_fails "Restore fails: the task is stopped with no status of its own, and can be deleted";
    Kit All f49_restore_dies_or_hangs "runc restore is killed, or does not end: the same in time";
    Kit All f49_failed_checkpoint_leaves_it_running "Checkpoint fails with the container frozen: it runs on";
}

/// The same bundle, made after all: exit status 3.
fn as_ever(c: &Container, kit: &Kit) -> Result<()> {
    kit.read_all(&c.bundle)?;
    c.task()
        .create(&c.bundle.create_request())
        .with_context(|| format!("Create, again; log: {}", c.bundle.log_text()))?;
    c.start()?;
    ensure!(c.exit_status()? == 3);
    ensure!(c.task().delete(&c.id, "")?.exit_status == 3);
    Ok(())
}

/// Nothing of the container but its pair and its bundle.
fn undone(kit: &Kit, c: &Container) -> Result<()> {
    ensure!(
        cgroups(kit.scratch.mark(), &c.id).is_empty(),
        "a cgroup is left"
    );
    let rootfs = c.bundle.dir.join("rootfs").to_string_lossy().into_owned();
    ensure!(
        !vigil_lab::residue::mount_points().contains(&rootfs),
        "the rootfs is mounted"
    );
    ensure!(
        !crate::world::runc_state(kit, &c.id).exists(),
        "runc's state is left"
    );
    let name = format!("{}/{}", kit.scratch.mark(), c.id);
    let living: Vec<_> = Process::marked(&name)
        .into_iter()
        .filter(|p| p.cgroup.contains(&name))
        .collect();
    ensure!(living.is_empty(), "{living:?}");
    Ok(())
}

/// A kit whose shims wait for runc for three seconds.
fn impatient(kit: &Kit, spec: &Spec) -> Result<Container> {
    let bundle = kit.bundle(spec, Stdio::Output)?;
    let mut caller = kit.caller.clone();
    for verb in ["CREATE", "RESTORE", "CHECKPOINT"] {
        caller
            .env
            .push((format!("VIGIL_DEADLINE_{verb}_MS"), "3000".into()));
    }
    let shim = kit.adopt(Shim::start(&caller, &bundle)?)?;
    Ok(Container {
        id: bundle.id.clone(),
        bundle,
        shim,
        stdout: None,
        stderr: None,
        pid: 0,
    })
}

fn f40_console_never_comes(kit: &Kit) -> Result<()> {
    for body in [
        // The pid of something, and no console.
        "[ $verb = create ] && { sleep 30 >/dev/null 2>&1 & echo $! >$pid_file; exit 0; }",
        // Or no end.
        "[ $verb = create ] && exec sleep 30",
    ] {
        let (dir, options) = scripted(kit, "silent", body)?;
        let c = impatient(kit, &Spec::sh("exit 3").on_terminal())?;
        kit.read_all(&c.bundle)?;
        let mut request = c.bundle.create_request();
        request.options = Some(options).into();
        let made = answered(c.task().patient(12.0).create(&request), "Create").context(body)?;
        ensure!(
            made.is_none(),
            "{body}: a terminal without a console was created"
        );
        undone(kit, &c).context(body)?;
        serves_somebody(&c)?;
        let mut plain = c.bundle.create_request();
        plain.options = None.into();
        c.task().create(&plain).context("Create, again")?;
        c.start()?;
        ensure!(c.exit_status()? == 3);
        c.task().delete(&c.id, "")?;
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// It answers, though it has no task.
fn serves_somebody(c: &Container) -> Result<()> {
    answered(c.task().patient(2.0).state(&c.id, ""), "State").map(drop)
}

fn f40_second_mount_fails(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sh("exit 3"), Stdio::Output)?;
    let mut request = c.bundle.create_request();
    let mut second = request.rootfs[0].clone();
    second.source = "/no/such/source".into();
    request.rootfs.push(second);
    ensure!(answered(c.task().create(&request), "Create")?.is_none());
    undone(kit, &c)?;
    as_ever(&c, kit)
}

fn f40_failed_create_ends_its_logger(kit: &Kit) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let logger = kit.scratch.path("logger");
    let began = kit.scratch.path("logger-began");
    fs::write(
        &logger,
        format!(
            "#!/bin/sh\necho $$ >{}\nexec 5>&-\ncat <&3 >/dev/null\n",
            began.display()
        ),
    )?;
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755))?;
    let (_, options) = scripted(kit, "failing", "[ $verb = create ] && exit 1")?;
    let c = kit.prepared(&Spec::sh("exit 3"), Stdio::Empty)?;
    let mut request = c.bundle.create_request();
    request.options = Some(options).into();
    request.stdout = format!("binary://{}", logger.display());
    request.stderr.clone_from(&request.stdout);
    ensure!(answered(c.task().create(&request), "Create")?.is_none());
    if let Ok(number) = fs::read_to_string(&began) {
        let number: i32 = number.trim().parse()?;
        until("the logger to end", by(5.0), || {
            (!alive(number)).then_some(())
        })?;
    }
    undone(kit, &c)?;
    as_ever(&c, kit)
}

fn f40_rootfs_cannot_be_made(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sh("exit 3"), Stdio::Output)?;
    let rootfs = c.bundle.dir.join("rootfs");
    fs::remove_dir(&rootfs)?;
    fs::write(&rootfs, "not a directory")?;
    ensure!(answered(c.task().create(&c.bundle.create_request()), "Create")?.is_none());
    undone(kit, &c)?;
    fs::remove_file(&rootfs)?;
    fs::create_dir(&rootfs)?;
    as_ever(&c, kit)
}

fn f40_failed_create_then_the_same_id(kit: &Kit) -> Result<()> {
    for body in [
        "[ $verb = create ] && exit 1",
        "[ $verb = create ] && kill -9 $$",
        "[ $verb = create ] && { runc \"$@\"; exit 1; }",
        "[ $verb = create ] && { runc \"$@\"; kill -9 $$; }",
        "[ $verb = create ] && { runc \"$@\"; : >$pid_file; exit 0; }",
        "[ $verb = create ] && { runc \"$@\"; rm $pid_file; exit 0; }",
        "[ $verb = create ] && { runc \"$@\"; kill -9 $(cat $pid_file); exit 1; }",
        "[ $verb = create ] && { timeout -s KILL 0.02 runc \"$@\"; exit 1; }",
        "[ $verb = create ] && { timeout -s KILL 0.05 runc \"$@\"; exit 1; }",
    ] {
        let c = kit.prepared(&Spec::sh("exit 3"), Stdio::Output)?;
        let (dir, options) = scripted(kit, "failing", body)?;
        let mut request = c.bundle.create_request();
        request.options = Some(options).into();
        let made = answered(c.task().create(&request), "Create").context(body)?;
        ensure!(made.is_none(), "{body}: it was created");
        undone(kit, &c).context(body)?;
        fs::remove_dir_all(dir)?;
        as_ever(&c, kit).with_context(|| format!("after {body}"))?;
    }
    Ok(())
}

fn f41_orphans_of_execs(kit: &Kit) -> Result<()> {
    for own_pids in [true, false] {
        let c = kit.running(&Spec {
            own_pids,
            ..Spec::sleeper()
        })?;
        let ours: Vec<i32> = c.shim.processes().iter().map(|p| p.pid).collect();
        for number in 0..times(15, 500) {
            let id = format!("e{number}");
            kit.exec(&c, &id, &Spec::sh("(sleep 0.1 & sleep 0.2 &) ; exit 4"))?;
            c.task().start(&c.id, &id)?;
            ensure!(c.task().wait(&c.id, &id)?.exit_status == 4);
            c.task().delete(&c.id, &id)?;
        }
        std::thread::sleep(Duration::from_millis(300));
        until("all zombies to be reaped", by(1.0), || {
            zombies(&ours).is_empty().then_some(())
        })
        .with_context(|| format!("own pids {own_pids}: {:?}", zombies(&ours)))?;
        serves(&c)?;
    }
    Ok(())
}

fn f41_short_execs_leave_no_zombie(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec {
        own_pids: false,
        ..Spec::sleeper()
    })?;
    let ours: Vec<i32> = c.shim.processes().iter().map(|p| p.pid).collect();
    std::thread::scope(|scope| -> Result<()> {
        let (c, kit) = (&c, kit);
        let rows: Vec<_> = (0..4)
            .map(|row| {
                scope.spawn(move || -> Result<()> {
                    for number in 0..times(10, 250) {
                        let id = format!("e{row}-{number}");
                        kit.exec(c, &id, &Spec::sh("exit 4"))?;
                        c.task().start(&c.id, &id)?;
                        ensure!(c.task().wait(&c.id, &id)?.exit_status == 4);
                        c.task().delete(&c.id, &id)?;
                    }
                    Ok(())
                })
            })
            .collect();
        for row in rows {
            row.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        }
        Ok(())
    })?;
    until("all zombies to be reaped", by(1.0), || {
        zombies(&ours).is_empty().then_some(())
    })
    .with_context(|| format!("{:?}", zombies(&ours)))
}

fn ptys() -> Result<usize> {
    Ok(fs::read_to_string("/proc/sys/kernel/pty/nr")?
        .trim()
        .parse()?)
}

fn f42_terminals_leave_no_fd(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let ours: Vec<i32> = c.shim.processes().iter().map(|p| p.pid).collect();
    let open = || ours.iter().map(|p| fds(*p)).sum::<Result<usize>>();
    let round = |number: usize| -> Result<()> {
        let id = format!("t{number}");
        kit.exec(&c, &id, &Spec::sh("tty; exit 4").on_terminal())?;
        c.task().start(&c.id, &id)?;
        c.task().resize(&c.id, &id, 80, 24).ok();
        ensure!(c.task().wait(&c.id, &id)?.exit_status == 4);
        c.task().delete(&c.id, &id)?;
        for name in ["stdin", "stdout"] {
            let _ = fs::remove_file(
                kit.scratch
                    .path("state")
                    .join(format!("{}-{id}.{name}", c.id)),
            );
        }
        Ok(())
    };
    for number in 0..3 {
        round(number)?;
    }
    let before = open()?;
    let rounds = times(40, 1500);
    for number in 0..rounds {
        round(10 + number)?;
    }
    until("descriptors to be closed", by(5.0), || {
        (open().ok()? <= before).then_some(())
    })
    .with_context(|| format!("{before} before, {:?} after {rounds} terminals", open()))?;
    let before = ptys()?;
    for _ in 0..times(8, 150) {
        let t = kit.running(&Spec::sh("exit 3").on_terminal())?;
        ensure!(t.exit_status()? == 3);
        t.task().delete(&t.id, "")?;
        t.task().shutdown(&t.id)?;
        deleted(&t)?;
    }
    // The machine's own terminals come and go too.
    until("ptys to be given back", by(5.0), || {
        (ptys().ok()? <= before + 2).then_some(())
    })
    .with_context(|| format!("{before} ptys before, {:?} after", ptys()))
}

/// A Create that is to restore from an image that is none.
fn restoring(kit: &Kit, c: &Container, options: &Any) -> Result<Option<()>> {
    let image = kit.scratch.path("image");
    fs::create_dir_all(&image)?;
    let mut request = c.bundle.create_request();
    request.checkpoint = image.to_string_lossy().into_owned();
    request.options = Some(options.clone()).into();
    kit.read_all(&c.bundle)?;
    if answered(c.task().patient(15.0).create(&request), "Create")?.is_none() {
        return Ok(None);
    }
    let began = answered(c.task().patient(15.0).start(&c.id, ""), "Start")?;
    ensure!(began.is_none(), "it was restored from nothing");
    Ok(Some(()))
}

/// Whatever came of it, it can be deleted, and nothing is left.
fn over(kit: &Kit, c: &Container, made: Option<()>) -> Result<()> {
    if made.is_some() {
        let state = c.task().state(&c.id, "")?;
        let stopped = state.status.enum_value() == Ok(Status::STOPPED);
        ensure!(
            stopped && [137, 255].contains(&state.exit_status),
            "{state:?}"
        );
        let told = c.task().patient(5.0).wait(&c.id, "").context("Wait")?;
        ensure!(told.exit_status == state.exit_status, "{told:?}");
        let deleted = c.task().delete(&c.id, "").context("Delete")?;
        ensure!(deleted.exit_status == state.exit_status, "{deleted:?}");
    }
    undone(kit, c)?;
    c.task().shutdown(&c.id)?;
    deleted(c)?;
    nothing_left(kit, &c.id)
}

fn f49_restore_fails(kit: &Kit) -> Result<()> {
    for body in [
        "[ $verb = restore ] && { echo 'criu failed: type NOTIFY errno 0' >&2; exit 1; }",
        // It got somewhere first.
        "[ $verb = restore ] && { sleep 30 >/dev/null 2>&1 & echo $! >$pid_file; kill -9 $!; exit 1; }",
        "",
    ] {
        let (dir, options) = scripted(kit, "restoring", body)?;
        let c = impatient(kit, &Spec::sleeper())?;
        let made = restoring(kit, &c, &options).with_context(|| body.to_owned())?;
        over(kit, &c, made).with_context(|| body.to_owned())?;
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn f49_restore_dies_or_hangs(kit: &Kit) -> Result<()> {
    for body in [
        "[ $verb = restore ] && kill -9 $$",
        "[ $verb = restore ] && exec sleep 30",
    ] {
        let (dir, options) = scripted(kit, "restoring", body)?;
        let c = impatient(kit, &Spec::sleeper())?;
        let made = restoring(kit, &c, &options).with_context(|| body.to_owned())?;
        over(kit, &c, made).with_context(|| body.to_owned())?;
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn f49_failed_checkpoint_leaves_it_running(kit: &Kit) -> Result<()> {
    // CRIU freezes before it dumps; a runc that fails then may not have thawed.
    let freeze = if unified() {
        "echo 1 >/sys/fs/cgroup/$ns/$id/cgroup.freeze"
    } else {
        "echo FROZEN >/sys/fs/cgroup/freezer/$ns/$id/freezer.state"
    };
    for end in ["exit 1", "kill -9 $$", "sleep 30"] {
        let body = format!(
            "ns={}; [ $verb = checkpoint ] && {{ {freeze}; sleep 0.2; {end}; }}",
            kit.scratch.mark()
        );
        let (dir, options) = scripted(kit, "checkpointing", &body)?;
        let c = running_under(
            kit,
            &Spec::sh("while :; do echo x; sleep 0.1; done"),
            &options,
        )?;
        let image = kit.scratch.path("image");
        fs::create_dir_all(&image)?;
        let patience = if end.starts_with("sleep") { 35.0 } else { 10.0 };
        let told = c
            .task()
            .patient(patience)
            .checkpoint(&c.id, &image.to_string_lossy());
        ensure!(
            told.is_err(),
            "{end}: a checkpoint that failed was answered with success"
        );
        until("it to be thawed", by(5.0), || running_for_real(&c).ok())
            .with_context(|| end.to_owned())?;
        ensure!(
            status(&c, "")? == Status::RUNNING,
            "{end}: {:?}",
            status(&c, "")?
        );
        c.task().kill(&c.id, "", 9, false)?;
        ensure!(c.exit_status()? == 137);
        c.task().delete(&c.id, "")?;
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Init runs: it uses the processor or sleeps in the ordinary way, and is not frozen.
fn running_for_real(c: &Container) -> Result<()> {
    let before = c.out()?.so_far().len();
    std::thread::sleep(Duration::from_millis(400));
    let after = c.out()?.so_far().len();
    ensure!(
        alive(pid(c)?) && after > before,
        "{before} bytes, then {after}"
    );
    Ok(())
}

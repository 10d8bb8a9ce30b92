//! F37 and F38: sockets that are there before their shim or after it, and containers that
//! are over before anybody has looked.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_lab::bundle::Stdio;
use vigil_lab::containerd::socket_of;
use vigil_lab::kit::Container;
use vigil_lab::process::{alive, signal_if};
use vigil_lab::{Containerd, FifoReader, GENEROUS, Kit, Shim, Spec, Version, by, until};

use crate::cases;
use crate::world::{answered, deleted, init_gone, nothing_left, pid, runc_state, status, times};

cases! {
    Kit All  f37_no_socket_after_sigkill "SIGKILL again and again: no socket file, nothing else is left, the same id starts again";
    Kit All  f37_start_during_shutdown "`start` while the old pair shuts down: a pair that serves, never one that is leaving";
    Kit Ours f37_starts_at_once "Five `start`s of one id at once, again and again: one pair is left, and it serves";
    Kit All  f37_dead_socket_in_the_way "A socket file nobody listens on, a plain file in its place: `start` works";
    Kit All  f37_stranger_listens "Somebody else listens where the socket should be: no one is hurt, `start` ends in time";
    Kit Ours f37_address_of_a_stranger "`address` names containerd's own socket, `lock` is useless: `delete` leaves containerd alone";
    Kit All  f38_short_lives "true, false, missing programs, in numbers: order of events, codes, nothing left";
    Kit All  f38_init_killed_between_create_and_start "Init killed between Create and Start: Start is refused, its exit is told once";
    Kit All  f38_exec_fifo_taken "Somebody else opens runc's exec.fifo: what happens then is told truly, Delete works";
    Kit All  f38_burst_then_exit "A burst of output and the exit: all bytes, on a terminal too";
}

fn socket(kit: &Kit, id: &str) -> PathBuf {
    socket_of(&kit.caller.grpc, &kit.caller.namespace, id)
}

fn f37_no_socket_after_sigkill(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sleeper(), Stdio::Empty)?;
    for round in 0..times(20, 250) {
        let shim = kit
            .shim(&bundle)
            .with_context(|| format!("round {round}"))?;
        if round % 3 > 0 {
            shim.task.create(&bundle.create_request())?;
        }
        if round % 3 > 1 {
            shim.task.start(&bundle.id, "")?;
        }
        shim.kill_all()?;
        shim.delete()?.ok()?;
        ensure!(
            !shim.reply.socket.exists(),
            "round {round}: {} is left",
            shim.reply.socket.display()
        );
        nothing_left(kit, &bundle.id).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn f37_start_during_shutdown(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sh("exit 3"), Stdio::Empty)?;
    let mut shim = kit.shim(&bundle)?;
    for round in 0..times(10, 100) {
        let task = shim.task.clone();
        let id = bundle.id.clone();
        let leaving = std::thread::spawn(move || {
            let _ = task.shutdown(&id);
        });
        std::thread::sleep(Duration::from_millis(round as u64 % 5));
        let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
        let _ = leaving.join();
        ensure!(
            ran.status.success(),
            "round {round}: {}",
            String::from_utf8_lossy(&ran.stdout)
        );
        let next =
            Shim::connect(&kit.caller, &bundle, ran).with_context(|| format!("round {round}"))?;
        shim = kit.adopt(next)?;
        shim.task
            .create(&bundle.create_request())
            .with_context(|| format!("Create, round {round}"))?;
        shim.task.start(&bundle.id, "")?;
        ensure!(shim.task.wait(&bundle.id, "")?.exit_status == 3);
        shim.task.delete(&bundle.id, "")?;
    }
    Ok(())
}

fn f37_starts_at_once(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sh("exit 3"), Stdio::Empty)?;
    let path = socket(kit, &bundle.id);
    for round in 0..times(5, 30) {
        let good = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..5)
                .map(|_| scope.spawn(|| kit.caller.run_start(&bundle.id, &bundle.dir)))
                .collect();
            let ran = starts.into_iter().filter_map(|s| s.join().ok()?.ok());
            ran.filter(|ran| ran.status.success()).last()
        });
        let ran = good.with_context(|| format!("round {round}: no `start` succeeded"))?;
        // Whoever came last has replaced the others, whose clean-up must leave it alone.
        let shim =
            Shim::connect(&kit.caller, &bundle, ran).with_context(|| format!("round {round}"))?;
        until("one pair to be left", by(5.0), || {
            (shim.processes().len() == 2).then_some(())
        })
        .with_context(|| format!("round {round}: {:?}", shim.processes()))?;
        for name in ["lock", "pair", "journal", "exits", "address"] {
            let there = bundle.dir.join(name).exists();
            ensure!(there, "round {round}: `{name}` of the living pair is gone");
        }
        let shim = kit.adopt(shim)?;
        shim.task
            .create(&bundle.create_request())
            .with_context(|| format!("Create, round {round}"))?;
        shim.task.start(&bundle.id, "")?;
        ensure!(shim.task.wait(&bundle.id, "")?.exit_status == 3);
        shim.task.delete(&bundle.id, "")?;
        shim.task.shutdown(&bundle.id)?;
        until("the pair to leave", by(10.0), || {
            shim.processes().is_empty().then_some(())
        })?;
        ensure!(!path.exists(), "round {round}: the socket is left");
    }
    Ok(())
}

fn f37_dead_socket_in_the_way(kit: &Kit) -> Result<()> {
    for plain in [false, true] {
        let bundle = kit.bundle(&Spec::sh("exit 3"), Stdio::Empty)?;
        let path = socket(kit, &bundle.id);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        if plain {
            fs::write(&path, "not a socket")?;
        } else {
            drop(UnixListener::bind(&path)?);
        }
        let shim = kit
            .shim(&bundle)
            .with_context(|| format!("a plain file: {plain}"))?;
        ensure!(
            shim.reply.socket == path,
            "{} is not where the case thinks",
            shim.reply.socket.display()
        );
        shim.task.create(&bundle.create_request())?;
        shim.task.start(&bundle.id, "")?;
        ensure!(shim.task.wait(&bundle.id, "")?.exit_status == 3);
        shim.task.delete(&bundle.id, "")?;
    }
    Ok(())
}

fn f37_stranger_listens(kit: &Kit) -> Result<()> {
    let bundle = kit.bundle(&Spec::sh("exit 3"), Stdio::Empty)?;
    let path = socket(kit, &bundle.id);
    // A containerd of its own is the stranger: nothing of it may be signalled.
    let stranger = Containerd::start(Version::Debian, None)?;
    std::os::unix::fs::symlink(stranger.address(), &path)?;
    let began = Instant::now();
    let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
    ensure!(
        began.elapsed() < GENEROUS,
        "`start` took {:?}",
        began.elapsed()
    );
    if ran.status.success() {
        let shim = kit.adopt(Shim::connect(&kit.caller, &bundle, ran)?)?;
        shim.task.shutdown(&bundle.id)?;
    } else {
        ensure!(!ran.stdout.is_empty(), "`start` failed without a word");
    }
    stranger
        .ctr(&["version"])
        .context("the stranger, after `start`")?;
    kit.caller.delete(&bundle.id, &bundle.dir)?.ok()?;
    stranger
        .ctr(&["version"])
        .context("the stranger, after `delete`")?;
    let _ = fs::remove_file(&path);
    Ok(())
}

fn f37_address_of_a_stranger(kit: &Kit) -> Result<()> {
    let stranger = Containerd::start(Version::Debian, None)?;
    let address = format!("unix://{}", stranger.address().display());
    for bundle_gone in [false, true] {
        let c = kit.running(&Spec::sleeper())?;
        c.shim.kill_all()?;
        fs::write(c.bundle.dir.join("address"), &address)?;
        fs::remove_file(c.bundle.dir.join("lock"))?;
        fs::create_dir(c.bundle.dir.join("lock"))?;
        if bundle_gone {
            fs::write(c.bundle.dir.join("pair"), "")?;
        }
        deleted(&c)?;
        ensure!(
            stranger.address().exists(),
            "containerd's socket was removed"
        );
        stranger
            .ctr(&["version"])
            .context("containerd, after `delete`")?;
        nothing_left(kit, &c.id)?;
    }
    Ok(())
}

fn f38_short_lives(kit: &Kit) -> Result<()> {
    for round in 0..times(10, 80) {
        for (program, status) in [
            ("true", Some(0)),
            ("false", Some(1)),
            ("/no/such/program", None),
        ] {
            let c = kit.prepared(&Spec::args(&[program]), Stdio::Output)?;
            let made = answered(c.task().create(&c.bundle.create_request()), "Create")?;
            let before = kit.sink.story().len();
            let began = match made {
                Some(_) => answered(c.task().start(&c.id, ""), "Start")?,
                None => None,
            };
            match status {
                Some(status) => {
                    ensure!(began.is_some(), "round {round}: {program} was not started");
                    ensure!(c.exit_status()? == status, "round {round}: {program}");
                    ensure!(c.task().delete(&c.id, "")?.exit_status == status);
                    kit.sink.wait("exit", by(5.0), |e| {
                        matches!(&e.fact, vigil_lab::Fact::Exit(x) if x.container_id == c.id)
                            .then_some(())
                    })?;
                    let story = kit.sink.story();
                    let told: Vec<&str> = story[before..].iter().map(String::as_str).collect();
                    let at = |what| told.iter().position(|t| *t == what);
                    ensure!(at("exit") > at("start"), "round {round}: {told:?}");
                }
                None => ensure!(made.is_none() || began.is_none(), "{program} was started"),
            }
            c.task().shutdown(&c.id)?;
            deleted(&c)?;
            nothing_left(kit, &c.id)?;
        }
    }
    Ok(())
}

fn f38_init_killed_between_create_and_start(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    signal_if(pid(&c)?, 9, |p| p.cgroup.contains(&c.id));
    init_gone(&c, 5.0)?;
    let started = answered(c.task().start(&c.id, ""), "Start")?;
    ensure!(started.is_none(), "a dead init was started");
    ensure!(c.exit_status()? == 137);
    until("State to say so", by(1.0), || {
        (status(&c, "").ok()? == Status::STOPPED).then_some(())
    })?;
    ensure!(c.task().delete(&c.id, "")?.exit_status == 137);
    c.task().shutdown(&c.id)?;
    deleted(&c)?;
    nothing_left(kit, &c.id)?;
    let story = kit.sink.story();
    ensure!(!story.iter().any(|s| s == "start"), "{story:?}");
    ensure!(
        story.iter().filter(|s| *s == "exit").count() == 1,
        "{story:?}"
    );
    Ok(())
}

fn f38_exec_fifo_taken(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sh("exit 3"))?;
    // As an accident with a backup program: whoever reads it lets init go.
    let path = runc_state(kit, &c.id).join("exec.fifo");
    let read = std::thread::spawn(move || {
        let mut byte = [0];
        fs::File::open(path).and_then(|mut f| f.read(&mut byte))
    });
    init_gone(&c, 5.0)?;
    let _ = read.join();
    // It has run and ended. Whatever Start says, State and Wait say the truth.
    let _ = answered(c.task().start(&c.id, ""), "Start")?;
    until("State to say so", by(2.0), || {
        (status(&c, "").ok()? == Status::STOPPED).then_some(())
    })?;
    ensure!(c.exit_status()? == 3);
    ensure!(c.task().delete(&c.id, "")?.exit_status == 3);
    ensure!(!alive(pid(&c)?));
    Ok(())
}

fn f38_burst_then_exit(kit: &Kit) -> Result<()> {
    let size = times(1 << 20, 64 << 20);
    for terminal in [false, true] {
        let script = format!("head -c {size} /dev/zero | tr '\\0' x; exit 3");
        let spec = Spec {
            terminal,
            ..Spec::sh(&script)
        };
        let Container {
            id,
            shim,
            stdout,
            stderr,
            ..
        } = kit.created_with(&spec, Stdio::Output)?;
        let stdout: FifoReader = stdout.context("no stdout")?;
        shim.task.start(&id, "")?;
        ensure!(shim.task.patient(60.0).wait(&id, "")?.exit_status == 3);
        let (bytes, _) = stdout.to_end(by(20.0))?;
        ensure!(
            bytes.len() == size,
            "terminal {terminal}: {} of {size} bytes",
            bytes.len()
        );
        ensure!(shim.task.delete(&id, "")?.exit_status == 3);
        drop(stderr);
    }
    Ok(())
}

//! The same thing many times: what is lost once in a hundred times shows, and so does
//! what grows. `VIGIL_LONG=1` makes the loops as long as the promise is.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::ExecProcessRequest;
use vigil_hostile::{Pair, exit_in_time, fds, private_kib, shim, trial, trial_under};
use vigil_lab::bundle::Stdio;
use vigil_lab::containerd::IMAGE;
use vigil_lab::kit::{Container, exec_spec};
use vigil_lab::{Containerd, FifoReader, Kit, Residue, Spec, Version, by, until};

/// `usual` times, or `long` with `VIGIL_LONG=1`.
fn times(usual: usize, long: usize) -> usize {
    if std::env::var_os("VIGIL_LONG").is_some_and(|v| v == "1") {
        long
    } else {
        usual
    }
}

const BURST: usize = 2_000_000;

/// How long after init's end its reader saw the end of stdout.
fn end_after_exit(exited: &protobuf::well_known_types::timestamp::Timestamp, end: Instant) -> f64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_sub(end.elapsed());
    let exited = Duration::new(
        u64::try_from(exited.seconds).unwrap_or(0),
        u32::try_from(exited.nanos).unwrap_or(0),
    );
    since.as_secs_f64() - exited.as_secs_f64()
}

/// One container that says 2 MB and exits: all of it arrives, and its end, with no Delete
/// sent. Gives the seconds from the exit to the end of the output.
fn burst(kit: &Kit) -> Result<f64> {
    let script = format!("head -c {BURST} /dev/zero; exit 3");
    let container = kit.running(&Spec::sh(&script))?;
    let told = container.task().wait(&container.id, "")?;
    ensure!(told.exit_status == 3, "exit status {}", told.exit_status);
    let (bytes, end) = container.out()?.to_end(by(5.0))?;
    ensure!(bytes.len() == BURST, "{} of {BURST} bytes", bytes.len());
    let after = end_after_exit(&told.exited_at, end);
    gone(&container)?;
    Ok(after)
}

/// Ends a container whose init has exited as containerd does, so that a loop holds one.
fn gone(container: &Container) -> Result<()> {
    let (task, id) = (container.task(), &container.id);
    task.delete(id, "")?;
    task.shutdown(id)?;
    container.shim.delete()?.ok()?;
    container.bundle.remove()?;
    for path in container.bundle.stdio.iter().filter(|p| !p.is_empty()) {
        fs::remove_file(path)?;
    }
    until("the socket to go", by(5.0), || {
        (!container.shim.reply.socket.exists()).then_some(())
    })?;
    Ok(())
}

#[test]
fn a_burst_before_the_exit_arrives_whole_and_so_does_its_end() {
    let count = times(30, 1000);
    trial(60 + 2 * count as u64, move |kit| {
        let mut waits = Vec::new();
        for round in 0..count {
            waits.push(burst(kit).with_context(|| format!("round {round} of {count}"))?);
        }
        waits.sort_by(f64::total_cmp);
        // How soon is told, not judged: that it comes is the promise, and nobody asks for Delete.
        println!(
            "{count} bursts of {BURST} bytes; exit to end of file: median {:.1} ms, worst {:.1} ms",
            waits[count / 2] * 1e3,
            waits[count - 1] * 1e3
        );
        Ok(())
    });
}

#[test]
fn a_burst_on_a_terminal_arrives_whole() {
    let count = times(8, 200);
    trial(60 + 2 * count as u64, move |kit| {
        for round in 0..count {
            let script = format!("head -c {BURST} /dev/zero | tr '\\0' x; exit 3");
            let container = kit.running(&Spec::sh(&script).on_terminal())?;
            let told = container.task().wait(&container.id, "")?;
            ensure!(told.exit_status == 3, "exit status {}", told.exit_status);
            let (bytes, _) = container.out()?.to_end(by(5.0))?;
            ensure!(
                bytes.len() == BURST,
                "round {round}: {} of {BURST} bytes",
                bytes.len()
            );
            gone(&container)?;
        }
        Ok(())
    });
}

#[test]
fn the_end_comes_with_a_slow_reader_and_with_a_child_that_holds_the_pipe() {
    trial(60, |kit| {
        // Nobody reads until after the exit: nothing is lost.
        let container =
            kit.prepared(&Spec::sh("head -c 60000 /dev/zero; exit 0"), Stdio::Output)?;
        let Container {
            bundle,
            shim,
            stdout,
            stderr,
            ..
        } = container;
        drop((stdout, stderr));
        shim.task.create(&bundle.create_request())?;
        shim.task.start(&bundle.id, "")?;
        ensure!(shim.task.wait(&bundle.id, "")?.exit_status == 0);
        let late = FifoReader::open(bundle.stdio[1].as_ref())?;
        let (bytes, _) = late.to_end(by(5.0))?;
        ensure!(bytes.len() == 60_000, "{} of 60000 bytes", bytes.len());
        // An exec leaves a child behind that holds its stdout: its exit is told, and the end
        // comes with Delete.
        let container = kit.running(&Spec::sleeper())?;
        let exec = kit.exec(&container, "e", &Spec::sh("echo mine; sleep 1000 & exit 0"))?;
        let task = container.task().patient(30.0);
        task.start(&container.id, "e")?;
        ensure!(task.wait(&container.id, "e")?.exit_status == 0);
        task.delete(&container.id, "e")?;
        let (bytes, _) = exec.stdout.to_end(by(10.0))?;
        ensure!(bytes == b"mine\n");
        Ok(())
    });
}

/// 100 containers of a real containerd, most by `ctr run --rm`, every fourth kept for an exec.
fn many(version: Version) {
    if !version.installed() {
        eprintln!("{version:?} is not installed: not tried (scripts/setup)");
        return;
    }
    let count = times(100, 400);
    let outcome = shim().and_then(|shim| {
        let containerd = Containerd::start(version, Some(&shim))?;
        let mark = containerd.scratch.mark().to_owned();
        trial_under(60 + count as u64, &mark, move || {
            let daemon_fds = || -> Result<usize> {
                let dir = containerd.scratch.dir().display().to_string();
                let daemon = vigil_lab::process::Process::marked(containerd.namespace())
                    .into_iter()
                    .find(|p| p.cmdline.contains(&format!("containerd -c {dir}")));
                fds(daemon.context("no daemon")?.pid)
            };
            let mut held = 0;
            for round in 0..count {
                one(&containerd, round).with_context(|| {
                    format!("round {round} of {count}; {}", containerd.log_tail())
                })?;
                if round == 5 {
                    held = daemon_fds()?;
                }
            }
            containerd.expect_clean()?;
            let now = daemon_fds()?;
            ensure!(
                now <= held + 10,
                "containerd held {held} descriptors, now {now}"
            );
            println!("{count} containers under {version:?}");
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

const RUNTIME: &str = "io.containerd.vigil.v2";

fn one(containerd: &Containerd, round: usize) -> Result<()> {
    let id = format!("c{round}");
    if !round.is_multiple_of(4) {
        let ran = containerd.try_ctr(&[
            "run",
            "--rm",
            "--runtime",
            RUNTIME,
            IMAGE,
            &id,
            "sh",
            "-c",
            "exit 7",
        ])?;
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        ensure!(
            ran.status.code() == Some(7),
            "ctr run: {}: {text}",
            ran.status
        );
        return Ok(());
    }
    let sleeper = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";
    containerd.ctr(&[
        "run",
        "-d",
        "--runtime",
        RUNTIME,
        IMAGE,
        &id,
        "sh",
        "-c",
        sleeper,
    ])?;
    let exec =
        containerd.try_ctr(&["tasks", "exec", "--exec-id", "e", &id, "sh", "-c", "exit 5"])?;
    ensure!(
        exec.status.code() == Some(5),
        "ctr exec: {}: {}",
        exec.status,
        String::from_utf8_lossy(&exec.stderr)
    );
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", &id])?;
    until("the task to stop", by(10.0), || {
        let status = containerd.task_status(&id).ok().flatten()?;
        (status == "STOPPED").then_some(())
    })?;
    // ctr exits with 0 and warns of what the task said.
    let deleted = containerd.try_ctr(&["tasks", "delete", &id])?;
    let warned = String::from_utf8_lossy(&deleted.stderr).into_owned();
    ensure!(
        deleted.status.success() && warned.contains("137"),
        "ctr tasks delete: {}: {warned}",
        deleted.status
    );
    containerd.ctr(&["containers", "delete", &id]).map(drop)
}

#[test]
fn many_containers_under_containerd_1_6() {
    many(Version::Debian);
}

#[test]
fn many_containers_under_containerd_2_1() {
    many(Version::V2);
}

/// Descriptors and private KiB of reaper and shim.
fn held(pair: &Pair) -> Result<[(usize, u64); 2]> {
    let of = |pid| -> Result<(usize, u64)> { Ok((fds(pid)?, private_kib(pid)?)) };
    Ok([of(pair.reaper)?, of(pair.shim)?])
}

#[test]
fn execs_leave_a_shim_as_it_was() {
    let (few, count) = (50, times(300, 2000));
    trial(60 + count as u64, move |kit| {
        let container = kit.running(&Spec::args(&["sleep", "100000"]))?;
        let pair = Pair::of(&container.shim)?;
        let path = |round: usize, name: &str| kit.scratch.path(&format!("state/x{round}-{name}"));
        let mut after_few = held(&pair)?;
        for round in 0..count {
            let exec = format!("e{round}");
            let out = path(round, "out");
            vigil_lab::process::mkfifo(&out)?;
            let reader = FifoReader::open(&out)?;
            let task = container.task();
            task.exec(&ExecProcessRequest {
                id: container.id.clone(),
                exec_id: exec.clone(),
                stdout: out.to_str().unwrap().into(),
                spec: Some(exec_spec(&Spec::args(&["echo", &exec]))).into(),
                ..Default::default()
            })?;
            task.start(&container.id, &exec)?;
            ensure!(task.wait(&container.id, &exec)?.exit_status == 0);
            task.delete(&container.id, &exec)?;
            let (bytes, _) = reader.to_end(by(5.0))?;
            ensure!(
                bytes == format!("{exec}\n").as_bytes(),
                "round {round}: {bytes:?}"
            );
            fs::remove_file(&out)?;
            if round + 1 == few {
                after_few = settled(&pair)?;
            }
            if (round + 1) % 250 == 0 {
                println!("after {} execs: {:?}", round + 1, settled(&pair)?);
            }
        }
        // The journal's mapping and the allocator breathe by some pages, and what a burst took
        // is given back when its turn comes.
        let as_it_was = |now: &[(usize, u64); 2]| {
            let mut both = after_few.iter().zip(now);
            both.all(|(then, now)| now.0 <= then.0 && now.1 <= then.1 + 96)
        };
        let mut now = settled(&pair)?;
        let _ = until("the pair to be as it was", by(5.0), || {
            now = held(&pair).ok()?;
            as_it_was(&now).then_some(())
        });
        println!(
            "reaper and shim, descriptors and KiB: {after_few:?} after {few} execs, {now:?} after {count}"
        );
        ensure!(as_it_was(&now), "{after_few:?} then, {now:?} now");
        ensure!(Pair::of(&container.shim)? == pair);
        container.task().kill(&container.id, "", 9, false)?;
        ensure!(exit_in_time(&container, 5.0)? == 137);
        Ok(())
    });
}

/// The same once events are out and workers gone: when two looks agree on the descriptors.
fn settled(pair: &Pair) -> Result<[(usize, u64); 2]> {
    let mut last = held(pair)?;
    until("the pair to come to rest", by(5.0), || {
        std::thread::sleep(Duration::from_millis(50));
        let now = held(pair).ok()?;
        let rest = now[0].0 == last[0].0 && now[1].0 == last[1].0;
        last = now;
        rest.then_some(now)
    })
}

#[test]
fn clients_that_come_and_go_leave_nothing() {
    let count = times(300, 3000);
    trial(120, move |kit| {
        let container = kit.running(&Spec::args(&["sleep", "100000"]))?;
        let pair = Pair::of(&container.shim)?;
        let socket = container.shim.reply.socket.clone();
        let visit = || -> Result<()> {
            let task = vigil_lab::Task::connect(&socket, vigil_lab::task::V2)?;
            task.state(&container.id, "")?;
            // A Wait is left behind unanswered.
            let waiting = Arc::new(task.patient(0.01));
            let _ = waiting.wait(&container.id, "");
            Ok(())
        };
        for _ in 0..30 {
            visit()?;
        }
        let then = settled(&pair)?;
        for _ in 0..count {
            visit()?;
        }
        let now = settled(&pair)?;
        println!("reaper and shim, descriptors and KiB: {then:?}, after {count} clients {now:?}");
        for (then, now) in then.iter().zip(&now) {
            ensure!(
                now.0 <= then.0 + 2,
                "descriptors: {} then, {} now",
                then.0,
                now.0
            );
            ensure!(now.1 <= then.1 + 128, "KiB: {} then, {} now", then.1, now.1);
        }
        Ok(())
    });
}

#[test]
fn two_hundred_lives_leave_nothing_on_the_host() {
    let count = times(20, 200);
    trial(60 + count as u64, move |kit| {
        for round in 0..count {
            let container = kit
                .running(&Spec::sh("exit 0"))
                .with_context(|| format!("round {round}"))?;
            ensure!(exit_in_time(&container, 10.0)? == 0);
            gone(&container)?;
        }
        let mark = kit.scratch.mark().to_owned();
        let sink = kit.sink.address().display().to_string();
        Residue::expect_none(&mark, by(10.0), |line| {
            line.ends_with(&sink) || line.ends_with(&mark)
        })
    });
}

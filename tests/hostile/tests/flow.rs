//! Streams over the death of the shim: no byte lost, none doubled, no end before the end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vigil_hostile::{Armed, Feeder, Pair, a_while, counts, logger, running_into, succeeded, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{FifoReader, Kit, Spec, by, until};

/// Found by the soak, once in 401 kills: between opening a client's fifo and giving it to
/// the reaper a death showed the client an end.
#[test]
fn a_death_while_fifos_are_opened_shows_no_client_an_end() {
    trial(90, |kit| {
        let armed = Armed::of(kit)?;
        let spec = Spec::sh("read word; echo $word; while :; do sleep 0.05; done");
        let container = kit.prepared(&spec, Stdio::All)?;
        armed.arm("S4b", "kill")?;
        // The input's client writes as soon as somebody reads, and goes.
        let path = container.bundle.stdio[0].clone();
        let typing = std::thread::spawn(move || -> std::io::Result<()> {
            let mut stdin = fs::OpenOptions::new().write(true).open(path)?;
            stdin.write_all(b"hello\n")
        });
        let task = container.task().patient(30.0);
        task.create(&container.bundle.create_request())?;
        ensure!(armed.reached("S4b"), "nobody died");
        task.start(&container.id, "")?;
        typing.join().unwrap()?;
        container.out()?.expect("hello\n", by(10.0))?;
        armed.arm("S4b", "kill")?;
        let exec = kit.exec(&container, "x", &Spec::sh("echo said; exit 92"))?;
        task.start(&container.id, "x")?;
        ensure!(armed.reached("S4b"), "nobody died");
        ensure!(task.wait(&container.id, "x")?.exit_status == 92);
        let (said, _) = exec.stdout.to_end(by(10.0))?;
        ensure!(said == b"said\n", "it said {said:?}");
        task.delete(&container.id, "x").map(drop)?;
        Ok(())
    });
}

/// A logger that an earlier shim has started is a child of the reaper as everything of the
/// container, and in a shared pid namespace what is left of that is killed.
#[test]
fn a_logger_outlives_its_shim_and_its_container() {
    trial(90, |kit| {
        let script = "while ! [ -e go ]; do sleep 0.02; done; cat <&3 >out; echo end >>end";
        let uri = logger(kit, script)?;
        let spec = Spec {
            own_pids: false,
            ..Spec::sh(
                "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo $i; done; sleep 1000 & exit 3",
            )
        };
        let (container, pair) = running_into(kit, &spec, &uri)?;
        let logs = |p: &Process| p.cmdline.contains("/logger") && !p.cmdline.contains("containerd");
        let find = || Process::marked(kit.scratch.mark()).into_iter().find(logs);
        // On a busy machine it may be in D for a moment, and shows no arguments then.
        let logger = until("the logger", by(10.0), find)?.pid;
        succeeded(&container.shim, &pair)?;
        let told = container.task().wait(&container.id, "")?;
        ensure!(told.exit_status == 3, "{told:?}");
        until("the rest to be gone", by(10.0), || {
            let rest = Process::marked(kit.scratch.mark());
            (!rest.iter().any(|p| p.cmdline == "sleep 1000")).then_some(())
        })?;
        ensure!(alive(logger), "killed");
        fs::write(kit.scratch.path("go"), "")?;
        until("the logger's last word", by(10.0), || {
            kit.scratch.path("end").exists().then_some(())
        })?;
        let written = fs::read(kit.scratch.path("out"))?;
        ensure!(counts(&written)? == 5000, "{} bytes", written.len());
        Ok(())
    });
}

fn started(kit: &Kit, spec: &Spec, stdio: Stdio) -> Result<(Container, Pair)> {
    let container = kit.created_with(spec, stdio)?;
    container.start()?;
    let pair = Pair::of(&container.shim)?;
    Ok((container, pair))
}

/// As often as one pair takes it in a minute.
fn kill_at_random(container: &Container, mut pair: Pair) -> Result<Pair> {
    for _ in 0..4 {
        a_while(150);
        pair = succeeded(&container.shim, &pair)?;
    }
    a_while(150);
    Ok(pair)
}

/// Numbers until the script ends: its last is the argument.
const COUNT: usize = 2_000_000;

fn counting() -> Spec {
    Spec::sh(&format!("seq 1 {COUNT}; exit 3"))
}

#[test]
fn both_ways_through_pipes() {
    trial(120, |kit| {
        let (container, pair) = started(kit, &Spec::args(&["cat"]), Stdio::All)?;
        let feeder = Feeder::into(container.bundle.stdio[0].clone().into());
        kill_at_random(&container, pair)?;
        let fed = feeder.stop()?;
        container.task().close_io(&container.id, "")?;
        ensure!(container.exit_status()? == 0);
        let (bytes, _) = container.out()?.to_end(by(20.0))?;
        ensure!(counts(&bytes)? == fed, "fed {fed}");
        println!("{fed} numbers");
        Ok(())
    });
}

#[test]
fn both_ways_through_a_terminal() {
    trial(120, |kit| {
        let spec = Spec::sh("stty raw -echo; echo ready; exec cat").on_terminal();
        let (container, pair) = started(kit, &spec, Stdio::All)?;
        container.out()?.expect("ready\n", by(10.0))?;
        let feeder = Feeder::into(container.bundle.stdio[0].clone().into());
        kill_at_random(&container, pair)?;
        let fed = feeder.stop()?;
        let last = format!("{fed}\n");
        until("the last number", by(30.0), || {
            let so_far = container.out().ok()?.so_far();
            so_far.ends_with(last.as_bytes()).then_some(())
        })
        .with_context(|| {
            let out = container.out().map(FifoReader::so_far).unwrap_or_default();
            format!("{:?}", counts(out.strip_prefix(b"ready\n").unwrap_or(&out)))
        })?;
        container.task().kill(&container.id, "", 9, false)?;
        let (bytes, _) = container.out()?.to_end(by(20.0))?;
        let bytes = bytes.strip_prefix(b"ready\n").context("no ready")?;
        ensure!(counts(bytes)? == fed, "fed {fed}");
        println!("{fed} numbers");
        Ok(())
    });
}

/// Takes some of a fifo, a little at a time.
fn sip(path: &str, sips: usize) -> Result<Vec<u8>> {
    let fifo = fs::OpenOptions::new()
        .read(true)
        .custom_flags(0o4000)
        .open(path);
    let (mut fifo, mut taken) = (fifo?, Vec::new());
    for _ in 0..sips {
        let mut bytes = [0; 1000];
        let count = fifo.read(&mut bytes).unwrap_or(0);
        taken.extend(&bytes[..count]);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(taken)
}

#[test]
fn for_a_reader_that_is_slow_or_away() {
    trial(120, |kit| {
        let (mut container, pair) = started(kit, &counting(), Stdio::Output)?;
        let path = container.bundle.stdio[1].clone();
        container.out()?.expect("10000\n", by(10.0))?;
        let mut all = container.stdout.take().context("no reader")?.leave();
        // Nobody reads.
        let pair = succeeded(&container.shim, &pair)?;
        a_while(50);
        let pair = succeeded(&container.shim, &pair)?;
        all.extend(sip(&path, 200)?);
        let pair = succeeded(&container.shim, &pair)?;
        all.extend(sip(&path, 200)?);
        let reader = FifoReader::open(path.as_ref())?;
        a_while(50);
        succeeded(&container.shim, &pair)?;
        ensure!(container.exit_status()? == 3);
        all.extend(reader.to_end(by(30.0))?.0);
        ensure!(counts(&all)? == COUNT);
        Ok(())
    });
}

/// What is unread when the container ends waits for its reader through the deaths too.
#[test]
fn last_words_wait_for_a_reader() {
    trial(120, |kit| {
        let bundle = kit.bundle(&Spec::sh("seq 1 9000; exit 3"), Stdio::Output)?;
        let shim = kit.shim(&bundle)?;
        shim.task.create(&bundle.create_request())?;
        shim.task.start(&bundle.id, "")?;
        ensure!(shim.task.wait(&bundle.id, "")?.exit_status == 3);
        let mut pair = Pair::of(&shim)?;
        for _ in 0..2 {
            pair = succeeded(&shim, &pair)?;
        }
        let reader = FifoReader::open(bundle.stdio[1].as_ref())?;
        let (bytes, _) = reader.to_end(by(10.0))?;
        ensure!(counts(&bytes)? == 9000);
        kit.read_all(&bundle)
    });
}

fn logged(kit: &Kit, spec: &Spec, count: usize) -> Result<()> {
    let uri = logger(kit, "cat <&3 >out; echo end >>end")?;
    let (container, pair) = running_into(kit, spec, &uri)?;
    kill_at_random(&container, pair)?;
    ensure!(
        container
            .task()
            .patient(40.0)
            .wait(&container.id, "")?
            .exit_status
            == 3
    );
    container.task().delete(&container.id, "")?;
    until("the logger's last word", by(20.0), || {
        kit.scratch.path("end").exists().then_some(())
    })?;
    let written = fs::read(kit.scratch.path("out"))?;
    ensure!(counts(&written)? == count);
    ensure!(fs::read(kit.scratch.path("end"))? == b"end\n");
    Ok(())
}

#[test]
fn into_a_logger() {
    trial(120, |kit| logged(kit, &counting(), COUNT));
}

#[test]
fn from_a_terminal_into_a_logger() {
    trial(120, |kit| {
        let count = COUNT / 4;
        let script = format!("stty raw -echo; seq 1 {count}; exit 3");
        logged(kit, &Spec::sh(&script).on_terminal(), count)
    });
}

#[test]
fn into_a_file() {
    trial(120, |kit| {
        let path = kit.scratch.path("file");
        let (container, pair) =
            running_into(kit, &counting(), &format!("file://{}", path.display()))?;
        kill_at_random(&container, pair)?;
        ensure!(container.exit_status()? == 3);
        ensure!(counts(&fs::read(path)?)? == COUNT);
        Ok(())
    });
}

/// The process is gone, its last byte is read, and the shim dies before anybody is told
/// that this was all: nobody asks for Delete, and the client is not left waiting.
#[test]
fn an_end_comes_although_it_was_not_told() {
    trial(120, |kit| {
        let armed = Armed::of(kit)?;
        let container = kit.running(&Spec::sleeper())?;
        let (task, id) = (container.task().patient(30.0), container.id.as_str());
        for name in ["x1", "x2", "x3"] {
            let exec = kit.exec(&container, name, &Spec::sh("echo said; exit 3"))?;
            armed.arm("O1", "kill")?;
            task.start(id, name)?;
            until("the shim to die", by(20.0), || {
                armed.reached("O1").then_some(())
            })?;
            let (said, _) = exec.stdout.to_end(by(20.0))?;
            ensure!(said == b"said\n", "{said:?}");
            ensure!(task.wait(id, name)?.exit_status == 3);
        }
        Ok(())
    });
}

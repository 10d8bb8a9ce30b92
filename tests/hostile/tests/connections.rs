//! Thousands of connections to one pair's socket, and what their requests hold together: each
//! is answered, nobody who must get in is kept out, and memory has one bound.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{ConnectRequest, ExecProcessRequest, StateRequest};
use protobuf::Message;
use ttrpc::proto::{Request, Response};
use vigil_hostile::{Pair, fds, shim, trial};
use vigil_lab::kit::{Container, exec_spec};
use vigil_lab::process::{Process, alive, mkfifo};
use vigil_lab::task::V2;
use vigil_lab::wire::{Frame, REQUEST};
use vigil_lab::{FifoReader, Kit, Spec, Task, by, until};

const EXHAUSTED: i32 = 8;
/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// What the requests of all connections may hold together.
const BOUND: u64 = 32 << 20;

fn limit(pid: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = format!("--nofile={soft}:{hard}");
    let set = Command::new("prlimit")
        .args([format!("--pid={pid}"), limit])
        .status()?;
    ensure!(set.success(), "prlimit");
    Ok(())
}

/// Raises this process' limit of open files to the hard one, and says how much that is.
fn open_many() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/limits")?;
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4));
    let hard: u64 = hard.context("no limit")?.parse()?;
    limit(std::process::id(), hard, hard)?;
    Ok(hard)
}

fn frame(stream: u32, method: &str, payload: Vec<u8>) -> Vec<u8> {
    let request = Request {
        service: V2.into(),
        method: method.into(),
        payload,
        ..Request::default()
    };
    let payload = request.write_to_bytes().unwrap();
    let kind = REQUEST;
    Frame {
        stream,
        kind,
        payload,
    }
    .encode()
}

fn state(id: &str, stream: u32) -> Vec<u8> {
    let request = StateRequest {
        id: id.into(),
        ..StateRequest::default()
    };
    frame(stream, "State", request.write_to_bytes().unwrap())
}

fn connect(id: &str, stream: u32) -> Vec<u8> {
    let request = ConnectRequest {
        id: id.into(),
        ..ConnectRequest::default()
    };
    frame(stream, "Connect", request.write_to_bytes().unwrap())
}

fn called(socket: &Path, request: &[u8]) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request).context("asking")?;
    Ok(stream)
}

/// Stream and code of the next answer.
fn answer(stream: &mut UnixStream) -> Result<(u32, i32)> {
    let frame = Frame::read(stream)?.context("hung up instead of an answer")?;
    let status = Response::parse_from_bytes(&frame.payload)?.status;
    Ok((frame.stream, status.unwrap_or_default().code.value()))
}

/// Private memory that is no file's, in bytes.
fn anonymous(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("no RssAnon")?.parse::<u64>()? << 10)
}

/// 64 were served once, as many waited, and the rest hung until they gave up.
#[test]
fn five_thousand_at_once_are_all_answered() {
    trial(240, |kit| {
        // Each is two files here and four there; a third of what may be open is promised.
        let hard = open_many()?;
        let count = usize::try_from(hard / 3)?.min(7000) * 7 / 8 - 100;
        let count = count.min(5000);
        let container = kit.running(&Spec::sleeper())?;
        let (id, socket) = (&container.id, container.shim.reply.socket.clone());
        let pair = Pair::of(&container.shim)?;
        let before = (fds(pair.reaper)?, fds(pair.shim)?);
        let memory = (anonymous(pair.reaper)?, anonymous(pair.shim)?);
        let mut all = Vec::new();
        let callers: Vec<_> = (0..50)
            .map(|n| {
                let (id, socket) = (id.clone(), socket.clone());
                let mine = count / 50 + usize::from(n < count % 50);
                std::thread::spawn(move || -> Result<Vec<UnixStream>> {
                    let one = |_| called(&socket, &state(&id, 1));
                    let mut mine = (0..mine).map(one).collect::<Result<Vec<_>>>()?;
                    for stream in &mut mine {
                        let answer = answer(stream)?;
                        ensure!(answer == (1, 0), "{answer:?}");
                    }
                    Ok(mine)
                })
            })
            .collect();
        for caller in callers {
            all.append(&mut caller.join().unwrap()?);
        }
        ensure!(all.len() == count);
        let full = (anonymous(pair.reaper)?, anonymous(pair.shim)?);
        println!(
            "{count} connections: bytes each in reaper and shim: {:?}",
            (
                (full.0 - memory.0) / count as u64,
                (full.1 - memory.1) / count as u64
            )
        );
        // They survive a shim, and then the first and the last are served as before.
        pair.signal(pair.shim, 9)?;
        for at in [0, count / 2, count - 1] {
            all[at].write_all(&state(id, 3))?;
            let answer = answer(&mut all[at]).context("after a takeover")?;
            ensure!(answer == (3, 0), "{answer:?}");
        }
        let fresh = Task::connect(&socket, V2)?.patient(60.0);
        fresh.kill(id, "", 9, false)?;
        ensure!(fresh.wait(id, "")?.exit_status == 137);
        drop(all);
        let now = Pair::of(&container.shim)?;
        until("their files to be closed", by(60.0), || {
            let few = |pid, before| fds(pid).is_ok_and(|now| now < before + 100);
            (few(now.reaper, before.0) && few(now.shim, before.1)).then_some(())
        })?;
        fresh.delete(id, "")?;
        Ok(())
    });
}

/// What the reaper takes from a client and has no room for at the shim is in nobody's hands when it
/// dies: such a request was never answered. It stands in the client's socket until the shim has it.
#[test]
fn requests_for_which_the_shim_has_no_room_outlive_the_reaper() {
    trial(120, |kit| {
        for _ in 0..5 {
            let container = kit.running(&Spec::sleeper())?;
            let (id, socket) = (container.id.clone(), container.shim.reply.socket.clone());
            let pair = Pair::of(&container.shim)?;
            let mut stream = called(&socket, &state(&id, 1))?;
            ensure!(answer(&mut stream)? == (1, 0));
            // Some three hundred fit between reaper and shim; it is found stuck after a while.
            pair.signal(pair.shim, 19)?;
            let mut writing = stream.try_clone()?;
            let asks = std::thread::spawn(move || -> Result<()> {
                for n in 1..500 {
                    writing.write_all(&state(&id, 2 * n + 1))?;
                }
                Ok(())
            });
            std::thread::sleep(Duration::from_millis(15));
            pair.signal(pair.reaper, 9)?;
            pair.signal(pair.shim, 18)?;
            let mut came = BTreeSet::new();
            while came.len() < 499 {
                let (number, code) = answer(&mut stream).with_context(|| {
                    format!(
                        "after {} answers; {}",
                        came.len(),
                        container.bundle.log_text()
                    )
                })?;
                ensure!(code == 0, "stream {number}: {code}");
                came.insert(number);
                came.remove(&1);
            }
            asks.join().unwrap()?;
            container.task().kill(&container.id, "", 9, false)?;
        }
        Ok(())
    });
}

/// Who comes when all places are taken is answered too: what looks at the container or gets
/// rid of it is done, the rest refused. Nobody who has a place loses it, and a process that
/// has few connections, as a containerd that came back, gets one.
#[test]
fn who_comes_over_the_cap_is_answered_and_nobody_loses_a_place() {
    trial(240, |kit| {
        open_many()?;
        // A third of what it may open is places, an eighth of those for others.
        let (few, real) = (kit.scratch.path("few"), shim()?.path);
        let script = format!(
            "#!/bin/sh\nexec prlimit --nofile=1024:1024 {} \"$@\"\n",
            real.display()
        );
        fs::write(&few, script)?;
        fs::set_permissions(&few, fs::Permissions::from_mode(0o755))?;
        kit.caller.binary = few;
        let container = kit.running(&Spec::sleeper())?;
        let (id, socket) = (&container.id, &container.shim.reply.socket);
        let mut first = called(socket, &connect(id, 1))?;
        ensure!(answer(&mut first)? == (1, 0));
        let mut seated = vec![first];
        let mut told = 0;
        let mut guests = Vec::new();
        for _ in 0..1000 {
            let mut stream = called(socket, &connect(id, 1))?;
            match answer(&mut stream)? {
                (1, 0) => seated.push(stream),
                (1, EXHAUSTED) => {
                    told += 1;
                    guests.push(stream);
                }
                other => anyhow::bail!("{other:?} for the {}.", seated.len() + told),
            }
        }
        println!("{} have a place, {told} were refused", seated.len());
        ensure!(seated.len() > 200 && told > 400, "{} {told}", seated.len());
        // Another process.
        let came_back = Command::new(std::env::current_exe()?)
            .args(["--ignored", "--exact", "comes_back"])
            .env("VIGIL_TEST_SOCKET", socket)
            .env("VIGIL_TEST_ID", id)
            .output()?;
        ensure!(came_back.status.success(), "{came_back:?}");
        for stream in &mut seated {
            stream.write_all(&connect(id, 3))?;
            ensure!(answer(stream)? == (3, 0), "it has lost its place");
        }
        // With room again, one more has a place.
        seated.truncate(100);
        let mut late = called(socket, &connect(id, 1))?;
        until("a place", by(20.0), || {
            let free = answer(&mut late).ok()? == (1, 0);
            late = called(socket, &connect(id, 1)).ok()?;
            free.then_some(())
        })?;
        while seated.len() < 400 {
            seated.push(called(socket, &[])?);
        }
        // Those that sent nothing, and all the others there are, keep out no Kill.
        let mut state_of = called(socket, &state(id, 1))?;
        ensure!(answer(&mut state_of)? == (1, 0), "State");
        let fresh = Task::connect(socket, V2)?.patient(60.0);
        fresh.kill(id, "", 9, false)?;
        let pid = i32::try_from(container.pid)?;
        until("init to die", by(20.0), || (!alive(pid)).then_some(()))?;
        drop((seated, guests));
        let task = container.task().patient(60.0);
        ensure!(task.wait(id, "")?.exit_status == 137);
        task.delete(id, "")?;
        Ok(())
    });
}

/// Run by the test above, as the process of a containerd that came back.
#[test]
#[ignore = "a part of who_comes_over_the_cap_is_answered_and_nobody_loses_a_place"]
fn comes_back() {
    let socket = PathBuf::from(std::env::var_os("VIGIL_TEST_SOCKET").unwrap());
    let id = std::env::var("VIGIL_TEST_ID").unwrap();
    let mut stream = called(&socket, &connect(&id, 1)).unwrap();
    assert_eq!(answer(&mut stream).unwrap(), (1, 0));
}

/// 64 connections could once hold 16 MiB each, and so many halves of requests. Who sends
/// slowly on many neither grows memory nor keeps out another client.
#[test]
fn half_sent_requests_hold_no_more_than_one_bound() {
    trial(240, |kit| {
        open_many()?;
        let container = kit.running(&Spec::sleeper())?;
        let (id, socket) = (&container.id, &container.shim.reply.socket);
        let pair = Pair::of(&container.shim)?;
        let before = anonymous(pair.reaper)? + anonymous(pair.shim)?;
        let long = frame(1, "Connect", vec![0; (4 << 20) - 1000]);
        let half = &long[..long.len() - 500];
        let mut slow = Vec::new();
        let mut most = 0;
        for _ in 0..150 {
            let mut stream = called(socket, &[])?;
            // What it leaves in the socket it may leave there.
            stream.set_write_timeout(Some(Duration::from_millis(500)))?;
            match stream.write_all(half) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            slow.push(stream);
            most = most.max(anonymous(pair.reaper)? + anonymous(pair.shim)?);
        }
        println!("{} bytes more than the {before} before", most - before);
        ensure!(most - before < BOUND + BOUND / 2, "{}", most - before);
        let fresh = Task::connect(socket, V2)?.patient(60.0);
        ensure!(fresh.state(id, "")?.pid == container.pid);
        // A long one that is sent as clients do gets in although others are slow.
        let _streams = kit.exec(
            &container,
            "e1",
            &Spec::sh(&format!(": {}; exit 3", "x".repeat(100_000))),
        )?;
        fresh.start(id, "e1")?;
        ensure!(fresh.wait(id, "e1")?.exit_status == 3);
        // Who had to make room is told when it has sent the rest, and goes on.
        let first = &mut slow[0];
        first.set_write_timeout(Some(PATIENCE))?;
        first.write_all(&long[half.len()..])?;
        ensure!(answer(first)? == (1, EXHAUSTED));
        first.write_all(&state(id, 3))?;
        ensure!(answer(first)? == (3, 0));
        fresh.kill(id, "", 9, false)?;
        ensure!(fresh.wait(id, "")?.exit_status == 137);
        drop(slow);
        until("the memory to be given back", by(20.0), || {
            let now = anonymous(pair.reaper).ok()? + anonymous(pair.shim).ok()?;
            (now < before + (2 << 20)).then_some(())
        })?;
        fresh.delete(id, "")?;
        Ok(())
    });
}

/// An exec whose state takes 3 KB to tell: its output's path is so long.
fn long_to_tell(kit: &Kit, container: &Container) -> Result<FifoReader> {
    let deep = (0..15).fold(kit.scratch.path("deep"), |at, _| at.join("d".repeat(200)));
    fs::create_dir_all(&deep)?;
    let out = deep.join("out");
    mkfifo(&out)?;
    let reader = FifoReader::open(&out)?;
    container.task().exec(&ExecProcessRequest {
        id: container.id.clone(),
        exec_id: "long".into(),
        stdout: out.to_str().context("not UTF-8")?.into(),
        spec: Some(exec_spec(&Spec::sleeper())).into(),
        ..ExecProcessRequest::default()
    })?;
    Ok(reader)
}

/// For the state of that, so often.
fn asks(id: &str, from: u32, count: u32) -> Vec<u8> {
    let ask = |at: u32| {
        let request = StateRequest {
            id: id.into(),
            exec_id: "long".into(),
            ..StateRequest::default()
        };
        frame(
            from + 1 + 2 * at,
            "State",
            request.write_to_bytes().unwrap(),
        )
    };
    (0..count).flat_map(ask).collect()
}

/// Clients that ask and never read hold no more than the same bound together: 240 of them, a
/// quarter of a MiB each beside what is in their sockets, were 60 MiB.
#[test]
fn answers_that_nobody_takes_hold_no_more_than_one_bound() {
    trial(120, |kit| {
        open_many()?;
        let container = kit.running(&Spec::sleeper())?;
        let (id, socket) = (&container.id, &container.shim.reply.socket);
        let pair = Pair::of(&container.shim)?;
        let _reader = long_to_tell(kit, &container)?;
        let before = (anonymous(pair.reaper)?, anonymous(pair.shim)?);
        let deaf = (0..240).map(|_| called(socket, &[]));
        let mut deaf = deaf.collect::<Result<Vec<_>>>()?;
        let mut most = (0, 0);
        let sleeps = |pid| Process::read(pid).is_some_and(|one| one.state == 'S');
        // Some at a time, each time answered first: what is asked has its own bound.
        for round in 0..40 {
            let asks = asks(id, round * 10, 5);
            for stream in &mut deaf {
                stream.set_nonblocking(true)?;
                // Full at last.
                let _ = stream.write(&asks);
            }
            let mut still = 0;
            until("the pair to have nothing more to do", by(60.0), || {
                let idle = sleeps(pair.reaper) && sleeps(pair.shim);
                still = if idle { still + 1 } else { 0 };
                (still == 4).then_some(())
            })?;
            most.0 = most.0.max(anonymous(pair.reaper)?.saturating_sub(before.0));
            most.1 = most.1.max(anonymous(pair.shim)?.saturating_sub(before.1));
        }
        println!("bytes more in reaper and shim: {most:?}");
        let bound = BOUND + BOUND / 2;
        ensure!(most.0 < bound && most.1 < bound, "{most:?}");
        let fresh = Task::connect(socket, V2)?.patient(60.0);
        ensure!(fresh.state(id, "")?.pid == container.pid);
        fresh.kill(id, "", 9, false)?;
        ensure!(fresh.wait(id, "")?.exit_status == 137);
        // Who reads after all finds whole answers.
        let mut late = &deaf[0];
        late.set_nonblocking(false)?;
        let frame = Frame::read(&mut late)?.context("no answer")?;
        println!("answers of {} bytes", frame.payload.len());
        drop(deaf);
        fresh.delete(id, "")?;
        Ok(())
    });
}

//! Bytes on the shim's socket that are no requests, or requests nobody serves. The
//! connection that sends them may suffer; the container and all other clients must not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use protobuf::Message;
use ttrpc::proto::{Request, Response};
use vigil_hostile::{Pair, crowd, fds, private_kib, refused, trial};
use vigil_lab::kit::Container;
use vigil_lab::task::{V2, V3};
use vigil_lab::wire::{Frame, REQUEST};
use vigil_lab::{GENEROUS, Kit, Spec, Task, by, until};

const EXHAUSTED: i32 = 8;
const UNIMPLEMENTED: i32 = 12;

fn running(kit: &Kit) -> Result<Container> {
    kit.running(&Spec::sleeper())
}

/// Another client is answered at once.
fn serves(container: &Container) -> Result<()> {
    let task = Task::connect(&container.shim.reply.socket, V2)?.patient(GENEROUS.as_secs_f64());
    let began = Instant::now();
    let state = task
        .state(&container.id, "")
        .context("State by another client")?;
    ensure!(state.pid == container.pid, "pid {}", state.pid);
    ensure!(
        began.elapsed() < GENEROUS,
        "State took {:?}",
        began.elapsed()
    );
    Ok(())
}

fn raw(container: &Container) -> Result<UnixStream> {
    let stream = UnixStream::connect(&container.shim.reply.socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// A State request as a frame.
fn state_frame(id: &str, stream: u32) -> Result<Vec<u8>> {
    let request = Request {
        service: V2.into(),
        method: "State".into(),
        payload: containerd_shim_protos::api::StateRequest {
            id: id.into(),
            ..Default::default()
        }
        .write_to_bytes()?,
        ..Default::default()
    };
    Ok(Frame {
        stream,
        kind: REQUEST,
        payload: request.write_to_bytes()?,
    }
    .encode())
}

/// Code and words of the next answer, and its stream.
fn answer(stream: &mut UnixStream) -> Result<(u32, i32, String)> {
    let frame = Frame::read(stream)?.context("hung up instead of an answer")?;
    let status = Response::parse_from_bytes(&frame.payload)?
        .status
        .unwrap_or_default();
    Ok((frame.stream, status.code.value(), status.message))
}

#[test]
fn a_request_over_four_mebibytes() {
    trial(40, |kit| {
        let container = running(kit)?;
        let pair = Pair::of(&container.shim)?;
        let before = (private_kib(pair.reaper)?, private_kib(pair.shim)?);
        let mut stream = raw(&container)?;
        for (number, length) in [(1_u32, (4_u32 << 20) + 1), (3, 64 << 20)] {
            let mut header = length.to_be_bytes().to_vec();
            header.extend(number.to_be_bytes());
            header.extend([REQUEST, 0]);
            stream.write_all(&header)?;
            let (of, code, says) = answer(&mut stream)?;
            ensure!(
                (of, code) == (number, EXHAUSTED),
                "stream {of}: code {code}: {says}"
            );
            ensure!(says.contains(&length.to_string()), "{says}");
            // The payload comes all the same, and another request behind it.
            let chunk = vec![b'x'; 1 << 20];
            let mut left = length as usize;
            while left > 0 {
                let count = left.min(chunk.len());
                stream.write_all(&chunk[..count])?;
                left -= count;
            }
            serves(&container)?;
        }
        stream.write_all(&state_frame(&container.id, 5)?)?;
        let (of, code, says) = answer(&mut stream)?;
        ensure!((of, code) == (5, 0), "stream {of}: code {code}: {says}");
        drop(stream);
        let after = (private_kib(pair.reaper)?, private_kib(pair.shim)?);
        ensure!(
            after.0 < before.0 + 512 && after.1 < before.1 + 1024,
            "memory of reaper and shim in KiB: {before:?}, then {after:?}"
        );
        ensure!(pair == Pair::of(&container.shim)?);
        Ok(())
    });
}

#[test]
fn a_request_just_below_four_mebibytes() {
    trial(30, |kit| {
        let container = running(kit)?;
        // An id of almost 4 MiB: read whole, and refused for what it is.
        let task = container.task().under(V3);
        let long = "x".repeat((4 << 20) - 200);
        let answer = task.state(&long, "");
        ensure!(answer.is_err(), "State of an id of 4 MiB was answered");
        let text = format!("{}", answer.unwrap_err());
        ensure!(text.len() < 4096, "the answer has {} bytes", text.len());
        serves(&container)
    });
}

#[test]
fn half_a_frame_and_then_nothing() {
    trial(40, |kit| {
        let container = running(kit)?;
        let pair = Pair::of(&container.shim)?;
        serves(&container)?;
        let before = (fds(pair.reaper)?, fds(pair.shim)?);
        let whole = state_frame(&container.id, 1)?;
        let mut held = Vec::new();
        for length in [1, 9, 10, 11, whole.len() - 1] {
            let mut stream = raw(&container)?;
            stream.write_all(&whole[..length])?;
            held.push((length, stream));
            serves(&container)?;
        }
        // The rest is taken where the first half ended.
        for (length, stream) in &mut held[..3] {
            stream.write_all(&whole[*length..])?;
            let (of, code, says) = answer(stream)?;
            ensure!(
                (of, code) == (1, 0),
                "{length} bytes first: code {code}: {says}"
            );
        }
        // The others hang up in the middle.
        drop(held);
        until(
            "the descriptors of ended connections to be closed",
            by(5.0),
            || {
                // The next client is what makes the shim look who has gone.
                serves(&container).ok()?;
                let now = (fds(pair.reaper).ok()?, fds(pair.shim).ok()?);
                (now.0 <= before.0 + 2 && now.1 <= before.1 + 2).then_some(())
            },
        )
        .with_context(|| {
            format!(
                "before: {before:?}, now {:?}",
                (fds(pair.reaper), fds(pair.shim))
            )
        })?;
        serves(&container)
    });
}

#[test]
fn wrong_services_and_methods() {
    trial(30, |kit| {
        let container = running(kit)?;
        let client = container.task().client();
        for (service, method) in [
            ("containerd.task.v4.Task", "State"),
            ("containerd.task.v2.Task2", "State"),
            ("\u{7f}\n", "State"),
            (V2, "Stat"),
            (V3, "StateX"),
            (V2, ""),
            (V2, &"m".repeat(1000)),
            (&"s".repeat(100_000), "State"),
        ] {
            let shown = |text: &str| text.chars().take(20).collect::<String>();
            let told = client.call(service, method, Vec::new(), by(5.0));
            refused(told, UNIMPLEMENTED, &[])
                .with_context(|| format!("{}/{}", shown(service), shown(method)))?;
        }
        // Without a name at all there is nothing to be unimplemented: the crate says INVALID_ARGUMENT.
        refused(
            client.call("", "State", Vec::new(), by(5.0)),
            3,
            &["service"],
        )?;
        let named = client.call("containerd.task.v4.Task", "State", Vec::new(), by(5.0));
        refused(named, UNIMPLEMENTED, &["containerd.task.v4.Task"])?;
        let named = client.call(V2, "Stat", Vec::new(), by(5.0));
        refused(named, UNIMPLEMENTED, &["Stat"])?;
        // The right method with bytes that are no message of its type.
        for method in ["State", "Create", "Kill", "Exec", "Delete", "Shutdown"] {
            let told = client.call(V2, method, vec![0xff; 100], by(5.0));
            refused(told, 3, &[]).with_context(|| method.to_owned())?;
        }
        serves(&container)
    });
}

#[test]
fn bytes_that_mean_nothing() {
    trial(60, |kit| {
        let container = running(kit)?;
        let pair = Pair::of(&container.shim)?;
        serves(&container)?;
        let before = (fds(pair.reaper)?, fds(pair.shim)?);
        let garbage: [Vec<u8>; 6] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            vec![0; 4096],
            vec![0xff; 4096],
            // A frame whose body is no Request.
            Frame {
                stream: 1,
                kind: REQUEST,
                payload: vec![0xff; 100],
            }
            .encode(),
            // An answer nobody asked for, and a kind there is not.
            Frame {
                stream: 1,
                kind: 2,
                payload: vec![8, 1],
            }
            .encode(),
            Frame {
                stream: 1,
                kind: 77,
                payload: vec![1; 50],
            }
            .encode(),
        ];
        for bytes in &garbage {
            let mut stream = raw(&container)?;
            stream.write_all(bytes)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            // An answer or a hang-up, as the shim likes; it must come.
            let mut told = Vec::new();
            let read = stream.read_to_end(&mut told);
            ensure!(read.is_ok() || told.is_empty(), "{read:?}");
            serves(&container)?;
        }
        // The same stream twice, an even one, and stream 0.
        let mut stream = raw(&container)?;
        for number in [1, 1, 2, 0] {
            stream.write_all(&state_frame(&container.id, number)?)?;
        }
        drop(stream);
        serves(&container)?;
        until("descriptors to be closed", by(5.0), || {
            serves(&container).ok()?;
            let now = (fds(pair.reaper).ok()?, fds(pair.shim).ok()?);
            (now.0 <= before.0 + 2 && now.1 <= before.1 + 2).then_some(())
        })?;
        ensure!(pair == Pair::of(&container.shim)?);
        Ok(())
    });
}

#[test]
fn a_client_that_asks_and_never_reads() {
    trial(60, |kit| {
        let container = running(kit)?;
        let pair = Pair::of(&container.shim)?;
        let mut stream = raw(&container)?;
        stream.set_write_timeout(Some(Duration::from_millis(300)))?;
        let frame = state_frame(&container.id, 1)?;
        let mut asked = 0;
        // Until the shim reads no more, or there were plenty.
        while asked < 200_000 {
            match stream.write_all(&frame) {
                Ok(()) => asked += 1,
                Err(_) => break,
            }
        }
        ensure!(
            asked < 200_000,
            "{asked} requests were taken without one answer being read"
        );
        serves(&container)?;
        let kib = private_kib(pair.reaper)?;
        ensure!(
            kib < 16 << 10,
            "the reaper holds {kib} KiB for one deaf client"
        );
        drop(stream);
        serves(&container)
    });
}

#[test]
fn many_clients_at_once() {
    trial(60, |kit| {
        let container = running(kit)?;
        let pair = Pair::of(&container.shim)?;
        // More than the reaper serves at once: the others wait their turn.
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(raw(&container)?);
        }
        container
            .task()
            .state(&container.id, "")
            .context("the first client")?;
        drop(held);
        until("the next client to be served", by(5.0), || {
            serves(&container).ok()
        })?;
        ensure!(pair == Pair::of(&container.shim)?);
        Ok(())
    });
}

#[test]
fn pids_of_twenty_thousand_processes() {
    trial(120, |kit| {
        let count = 20_000_usize;
        let free = std::fs::read_to_string("/proc/meminfo")?;
        let free: u64 = free
            .lines()
            .find_map(|l| {
                l.strip_prefix("MemAvailable:")?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        let most: usize = std::fs::read_to_string("/proc/sys/kernel/pid_max")?
            .trim()
            .parse()?;
        if free < 4 << 20 || most < count + 5000 {
            eprintln!("not tried: {free} KiB free, {most} pids");
            return Ok(());
        }
        let program = crowd(&kit.scratch.path("base"))?;
        let container = kit.running(&Spec::args(&[&program, &count.to_string()]))?;
        container.out()?.expect("ready", by(60.0))?;
        let began = Instant::now();
        let pids = container.task().pids(&container.id)?;
        let took = began.elapsed();
        ensure!(
            pids.processes.len() == count + 1,
            "{} pids",
            pids.processes.len()
        );
        ensure!(pids.processes.iter().any(|p| p.pid == container.pid));
        ensure!(took < GENEROUS, "Pids took {took:?}");
        serves(&container)?;
        let pair = Pair::of(&container.shim)?;
        container.task().kill(&container.id, "", 9, true)?;
        let gone = container.task().patient(60.0).wait(&container.id, "")?;
        ensure!(gone.exit_status == 137, "exit status {}", gone.exit_status);
        container.task().patient(30.0).delete(&container.id, "")?;
        let kib = private_kib(pair.shim)?;
        if kib > 8 << 10 {
            bail!("the shim keeps {kib} KiB after the crowd");
        }
        Ok(())
    });
}

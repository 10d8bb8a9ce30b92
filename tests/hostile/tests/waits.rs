//! Waits whose clients gave up: ttrpc has no cancel, so each stays for as long as its
//! connection, and none may keep anybody out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{Status, WaitRequest};
use protobuf::Message;
use vigil_hostile::{Pair, succeeded, trial};
use vigil_lab::kit::Container;
use vigil_lab::task::V2;
use vigil_lab::{Kit, Spec, Task};

/// A connection on which so many Waits were left.
fn abandoned(container: &Container, waits: u32) -> Result<UnixStream> {
    let path = container.shim.reply.socket.clone();
    let mut stream = UnixStream::connect(path).context("connecting")?;
    let wait = WaitRequest {
        id: container.id.clone(),
        ..WaitRequest::default()
    };
    let request = ttrpc::Request {
        service: V2.to_owned(),
        method: "Wait".to_owned(),
        payload: wait.write_to_bytes()?,
        ..ttrpc::Request::default()
    };
    let body = request.write_to_bytes()?;
    let mut all = Vec::new();
    for at in 0..waits {
        all.extend(u32::try_from(body.len())?.to_be_bytes());
        all.extend((1 + 2 * at).to_be_bytes());
        all.extend([1, 0]);
        all.extend_from_slice(&body);
    }
    stream.write_all(&all)?;
    Ok(stream)
}

/// All of them are answered with the true end.
fn answered(stream: &mut UnixStream, waits: u32, status: u8) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    for _ in 0..waits {
        let mut header = [0; 10];
        stream.read_exact(&mut header)?;
        let length = u32::from_be_bytes(header[..4].try_into()?);
        let mut body = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut body)?;
        let response = ttrpc::Response::parse_from_bytes(&body)?;
        ensure!(
            response.payload.starts_with(&[0x08, status]),
            "{response:?}"
        );
    }
    Ok(())
}

/// State, Exec, Kill and Delete are served as ever.
fn serves(kit: &Kit, container: &Container, task: &Task, exec: &str) -> Result<()> {
    let id = container.id.as_str();
    let running = Status::RUNNING as i32;
    ensure!(task.state(id, "")?.status.value() == running);
    kit.exec(container, exec, &Spec::args(&["sleep", "1000"]))?;
    task.start(id, exec)?;
    task.kill(id, exec, 15, false)?;
    ensure!(task.wait(id, exec)?.exit_status == 143);
    task.delete(id, exec)?;
    Ok(())
}

fn keeps_nobody_out(connections: u32, waits: u32) {
    trial(120, move |kit| {
        let container = kit.running(&Spec::sh(
            "trap 'exit 7' TERM; while :; do sleep 0.05; done",
        ))?;
        let mut left = Vec::new();
        for _ in 0..connections {
            left.push(abandoned(&container, waits)?);
        }
        let task = container.task().patient(30.0);
        serves(kit, &container, &task, "e1")?;
        succeeded(&container.shim, &Pair::of(&container.shim)?)?;
        serves(kit, &container, &task, "e2")?;
        // Those who hang up leave nothing behind.
        left.truncate(left.len().div_ceil(2));
        task.kill(&container.id, "", 15, false)?;
        ensure!(task.wait(&container.id, "")?.exit_status == 7);
        for stream in &mut left {
            answered(stream, waits, 7)?;
        }
        task.delete(&container.id, "")?;
        Ok(())
    });
}

#[test]
fn five_thousand_on_one_connection_keep_nobody_out() {
    keeps_nobody_out(1, 5_000);
}

#[test]
fn twenty_thousand_on_one_connection_keep_nobody_out() {
    keeps_nobody_out(1, 20_000);
}

#[test]
fn twenty_thousand_on_forty_connections_keep_nobody_out() {
    keeps_nobody_out(40, 500);
}

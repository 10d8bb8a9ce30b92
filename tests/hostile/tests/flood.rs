//! Requests by the thousand on one connection, while what they wait for hangs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{DeleteRequest, StateRequest};
use protobuf::Message;
use vigil_hostile::{FaultyRunc, Pair, trial};
use vigil_lab::Spec;
use vigil_lab::bundle::Stdio;
use vigil_lab::task::V2;

const DELETES: u32 = 3000;
const RUNNING: u8 = 2;

fn frame(stream: u32, method: &str, payload: Vec<u8>) -> Result<Vec<u8>> {
    let request = ttrpc::Request {
        service: V2.to_owned(),
        method: method.to_owned(),
        payload,
        ..ttrpc::Request::default()
    };
    let body = request.write_to_bytes()?;
    let mut frame = u32::try_from(body.len())?.to_be_bytes().to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([1, 0]);
    frame.extend_from_slice(&body);
    Ok(frame)
}

fn answer(stream: &mut UnixStream) -> Result<(u32, ttrpc::Response)> {
    let mut header = [0; 10];
    stream.read_exact(&mut header).context("no answer")?;
    let length = u32::from_be_bytes(header[..4].try_into()?);
    let mut body = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut body)?;
    let number = u32::from_be_bytes(header[4..8].try_into()?);
    Ok((number, ttrpc::Response::parse_from_bytes(&body)?))
}

/// Whoever waits for a runc that hangs was looked at whenever anything happened: three thousand
/// Deletes kept the shim so busy that it was taken for stuck and ended, again and again, and
/// neither State nor Kill found room.
#[test]
fn thousands_of_deletes_while_runc_hangs_keep_nobody_out() {
    trial(120, |kit| {
        let runc = FaultyRunc::new(kit.scratch.dir(), "exec", "waits-then-done")?;
        let container = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        let (task, id) = (container.task().patient(60.0), container.id.clone());
        task.create(&request)?;
        task.start(&id, "")?;
        let pair = Pair::of(&container.shim)?;
        let _streams = kit.exec(&container, "e", &Spec::args(&["sleep", "1000"]))?;
        let starting = {
            let (task, id) = (task.patient(200.0), id.clone());
            std::thread::spawn(move || task.start(&id, "e"))
        };
        runc.waits()?;
        let delete = DeleteRequest {
            id: id.clone(),
            exec_id: "e".to_owned(),
            ..DeleteRequest::default()
        };
        let delete = delete.write_to_bytes()?;
        let state = StateRequest {
            id: id.clone(),
            ..StateRequest::default()
        };
        let mut all = Vec::new();
        for at in 0..DELETES {
            all.extend(frame(1 + 2 * at, "Delete", delete.clone())?);
        }
        let last = 1 + 2 * DELETES;
        all.extend(frame(last, "State", state.write_to_bytes()?)?);
        let mut stream = UnixStream::connect(&container.shim.reply.socket)?;
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        stream.write_all(&all)?;
        let (number, response) = answer(&mut stream).context("State behind them")?;
        ensure!(number == last, "{number}: {response:?}");
        let state = task.state(&id, "").context("State beside them")?;
        ensure!(state.status.value() == i32::from(RUNNING), "{state:?}");
        task.kill(&id, "", 0, false).or_else(|error| {
            // Some refuse the signal that is none; what counts is that it is answered.
            format!("{error:?}")
                .contains("Status")
                .then_some(())
                .context("Kill")
        })?;
        ensure!(Pair::of(&container.shim)? == pair, "the shim was replaced");
        runc.go()?;
        starting.join().unwrap()?;
        let mut running = 0;
        for _ in 0..DELETES {
            let (_, response) = answer(&mut stream).context("a Delete")?;
            let says = &response.status().message;
            running += u32::from(says.contains("running exec"));
        }
        ensure!(running == DELETES, "{running} refused");
        ensure!(Pair::of(&container.shim)? == pair, "the shim was replaced");
        task.kill(&id, "e", 9, false)?;
        ensure!(task.wait(&id, "e")?.exit_status == 137);
        task.delete(&id, "e")?;
        Ok(())
    });
}

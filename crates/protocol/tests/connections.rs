//! Connections of every sort: slow, greedy, broken, deaf, gone. None may hurt
//! another, and what was answered is known to have left.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::atomic::Ordering,
    time::Duration,
};

use common::{V2, V3, call, client, connect, exit, run, served, until, wire};
use ttrpc::Code;
use vigil_model::{Answer, Request, Status, Who, request::PidOf};

#[test]
fn a_future_dropped_on_timeout_leaves_the_connection_alone() {
    run(async {
        let (owner, server) = served().await;
        let client = client(&server).await;
        let mut request = wire(V2, "Wait", b"\x0a\x02c1");
        request.timeout_nano = 20_000_000;
        assert!(client.request(request).await.is_err());
        until(|| owner.dropped.load(Ordering::Relaxed) == 1).await;
        assert_eq!(owner.last().1, Request::Wait(Who::Init));
        owner.say(Ok(Answer::Done));
        assert_eq!(
            call(&client, V2, "Pause", b"\x0a\x02c1").await,
            Ok(Vec::new())
        );
        assert!(server.flushed(Duration::from_secs(5)).await);
    });
}

/// A frame as it goes over the wire.
fn frame(stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&[kind, 0]);
    frame.extend_from_slice(body);
    frame
}

fn request(stream: u32, service: &str, method: &str, payload: &[u8]) -> Vec<u8> {
    let body = protobuf::Message::write_to_bytes(&wire(service, method, payload)).unwrap();
    frame(stream, 1, &body)
}

/// Reads one answer on a thread of its own: the client's side blocks.
async fn answer(stream: &UnixStream) -> (u32, i32, String) {
    let mut stream = stream.try_clone().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    tokio::task::spawn_blocking(move || {
        let mut header = [0; 10];
        stream.read_exact(&mut header).unwrap();
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).unwrap();
        let response: ttrpc::Response = protobuf::Message::parse_from_bytes(&body).unwrap();
        assert_eq!(header[8], 2);
        let id = u32::from_be_bytes(header[4..8].try_into().unwrap());
        (
            id,
            response.status.code.value(),
            response.status.message.clone(),
        )
    })
    .await
    .unwrap()
}

async fn write(stream: &UnixStream, bytes: Vec<u8>) {
    let mut stream = stream.try_clone().unwrap();
    tokio::task::spawn_blocking(move || stream.write_all(&bytes).unwrap())
        .await
        .unwrap();
}

#[test]
fn a_frame_over_the_limit_is_answered_and_skipped() {
    run(async {
        let (_owner, server) = served().await;
        let stream = connect(&server).await;
        let ours = request(1, V2, "Update", &vec![0; (4 << 20) + 1]);
        let foreign = request(3, "foo.Bar", "Baz", &vec![0; (4 << 20) + 1]);
        let next = request(5, V2, "Pause", b"\x0a\x02c1");
        let writer = write(&stream, [ours, foreign, next].concat());
        let reader = async {
            let first = answer(&stream).await;
            assert_eq!(
                (first.0, first.1),
                (1, Code::INVALID_ARGUMENT as i32),
                "{first:?}"
            );
            let second = answer(&stream).await;
            assert_eq!(
                (second.0, second.1),
                (3, Code::UNIMPLEMENTED as i32),
                "{second:?}"
            );
            let third = answer(&stream).await;
            assert_eq!(third, (5, 0, String::new()));
        };
        tokio::join!(writer, reader);
    });
}

#[test]
fn bytes_one_by_one_and_all_at_once() {
    run(async {
        let (_owner, server) = served().await;
        let stream = connect(&server).await;
        let one = request(1, V2, "Pause", b"\x0a\x02c1");
        let two = request(3, "foo.Bar", "Baz", b"");
        for byte in one.iter().chain(&two) {
            write(&stream, vec![*byte]).await;
        }
        assert_eq!(answer(&stream).await, (1, 0, String::new()));
        assert_eq!(answer(&stream).await.1, Code::UNIMPLEMENTED as i32);
        let many: Vec<u8> = (0..200)
            .flat_map(|at| {
                let service = if at % 3 == 0 { "foo.Bar" } else { V3 };
                request(5 + 2 * at, service, "Pause", b"\x0a\x02c1")
            })
            .collect();
        let writer = write(&stream, many);
        let reader = async {
            let mut seen = Vec::new();
            for _ in 0..200 {
                let (id, code, says) = answer(&stream).await;
                let foreign = (id - 5) / 2 % 3 == 0;
                let wanted = if foreign {
                    Code::UNIMPLEMENTED as i32
                } else {
                    0
                };
                assert_eq!(code, wanted, "{id}: {says}");
                seen.push(id);
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..200).map(|at| 5 + 2 * at).collect::<Vec<u32>>());
        };
        tokio::join!(writer, reader);
    });
}

#[test]
fn garbage_and_half_frames_hurt_nobody_else() {
    run(async {
        let (owner, server) = served().await;
        let good = client(&server).await;
        let half = connect(&server).await;
        let whole = request(1, V2, "Wait", b"\x0a\x02c1");
        write(&half, whole[..whole.len() - 3].to_vec()).await;
        let head = connect(&server).await;
        write(&head, whole[..4].to_vec()).await;
        let garbage = connect(&server).await;
        write(&garbage, frame(1, 1, &[0xff; 300])).await;
        let (id, code, _) = answer(&garbage).await;
        assert_eq!((id, code), (1, Code::INVALID_ARGUMENT as i32));
        write(&garbage, frame(2, 1, b"")).await;
        assert_eq!(answer(&garbage).await.1, Code::INVALID_ARGUMENT as i32);
        // An unknown kind of frame and a stream nobody opened.
        write(&garbage, frame(3, 9, b"x")).await;
        write(&garbage, frame(5, 3, b"x")).await;
        assert_eq!(answer(&garbage).await.0, 5);
        // A client that vanishes takes its own Wait with it and nothing else.
        let gone = connect(&server).await;
        write(&gone, whole).await;
        until(|| !owner.asked_nothing()).await;
        drop((gone, half, head));
        until(|| owner.dropped.load(Ordering::Relaxed) == 1).await;
        assert_eq!(
            call(&good, V2, "Pause", b"\x0a\x02c1").await,
            Ok(Vec::new())
        );
        assert!(server.flushed(Duration::from_secs(5)).await);
    });
}

#[test]
fn flushed_waits_for_answers_and_not_for_waits() {
    run(async {
        let (owner, server) = served().await;
        assert!(server.flushed(Duration::ZERO).await);
        // A Wait that is open does not count.
        let waiting = client(&server).await;
        let wait = tokio::spawn(async move { call(&waiting, V2, "Wait", b"\x0a\x02c1").await });
        until(|| !owner.asked_nothing()).await;
        assert!(server.flushed(Duration::from_secs(5)).await);
        // An answer nobody reads does: here one larger than any socket buffer.
        let deaf = connect(&server).await;
        owner.say(Ok(Answer::Pids(vec![
            PidOf {
                pid: u32::MAX,
                exec: None
            };
            400_000
        ])));
        write(&deaf, request(1, V2, "Pids", b"\x0a\x02c1")).await;
        until(|| owner.asked.lock().unwrap().len() == 2).await;
        assert!(!server.flushed(Duration::from_millis(50)).await);
        // Until it reads, or leaves.
        drop(deaf);
        assert!(server.flushed(Duration::from_secs(5)).await);
        owner.say(Ok(Answer::Exit(exit(Status::Exited(3)))));
        owner.ends.notify_one();
        assert_eq!(
            wait.await.unwrap(),
            Ok(b"\x08\x03\x12\x04\x08\x05\x10\x06".to_vec())
        );
        assert!(server.flushed(Duration::from_secs(5)).await);
    });
}

#[test]
fn an_answer_that_arrived_was_flushed() {
    run(async {
        let (_owner, server) = served().await;
        let client = client(&server).await;
        for _ in 0..100 {
            let call = call(&client, V2, "Shutdown", b"\x0a\x02c1");
            assert_eq!(call.await, Ok(Vec::new()));
            assert!(server.flushed(Duration::ZERO).await);
        }
    });
}

/// ttrpc has no cancel: each client that gave up waiting left its Wait, and 1,024 of them
/// locked a container. They are one to whoever answers, the next calls are served as ever,
/// and all are answered in the end.
#[test]
fn twenty_thousand_abandoned_waits_are_one() {
    const MANY: u32 = 20_000;
    run(async {
        let (owner, server) = served().await;
        let stream = connect(&server).await;
        let wait = |at: u32| request(1 + 2 * at, [V2, V3][at as usize % 2], "Wait", b"\x0a\x02c1");
        write(&stream, (0..MANY).flat_map(wait).collect()).await;
        let next = 1 + 2 * MANY;
        write(&stream, request(next, V2, "Pause", b"\x0a\x02c1")).await;
        assert_eq!(answer(&stream).await, (next, 0, String::new()));
        let asked = owner.asked.lock().unwrap().len();
        assert_eq!(asked, 2, "one Wait, one Pause");
        assert!(server.flushed(Duration::from_secs(5)).await);
        owner.say(Ok(Answer::Exit(exit(Status::Exited(3)))));
        owner.ends.notify_one();
        let mut reading = stream.try_clone().unwrap();
        let seen = tokio::task::spawn_blocking(move || {
            let limit = Some(Duration::from_secs(20));
            reading.set_read_timeout(limit).unwrap();
            let mut seen = Vec::new();
            for _ in 0..MANY {
                let mut header = [0; 10];
                reading.read_exact(&mut header).unwrap();
                let length = u32::from_be_bytes(header[..4].try_into().unwrap());
                let mut body = vec![0; length as usize];
                reading.read_exact(&mut body).unwrap();
                let response: ttrpc::Response = protobuf::Message::parse_from_bytes(&body).unwrap();
                assert_eq!(response.payload, b"\x08\x03\x12\x04\x08\x05\x10\x06");
                seen.push(u32::from_be_bytes(header[4..8].try_into().unwrap()));
            }
            seen
        });
        let mut seen = seen.await.unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (0..MANY).map(|at| 1 + 2 * at).collect::<Vec<u32>>());
        assert!(server.flushed(Duration::from_secs(5)).await);
    });
}

/// Whoever hangs up takes its Waits along, those that were joined to another too.
#[test]
fn a_connection_that_ends_takes_its_waits_along() {
    run(async {
        let (owner, server) = served().await;
        for round in 1..=50 {
            let gone = connect(&server).await;
            let wait = |at: u32| request(1 + 2 * at, V2, "Wait", b"\x0a\x02c1");
            write(&gone, (0..100).flat_map(wait).collect()).await;
            until(|| owner.asked.lock().unwrap().len() == round).await;
            drop(gone);
            until(|| owner.dropped.load(Ordering::Relaxed) == round).await;
        }
        assert!(server.flushed(Duration::from_secs(5)).await);
    });
}

//! A connection whose relay dies: what is left of it for the next one. Nothing that came
//! through is missing, nothing that was answered is asked again, and no frame is torn.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use common::{Owner, V2, run, served, until, wire};
use vigil_model::{Answer, Request, request::PidOf};
use vigil_protocol::{Left, Server};

/// The relay's end of the pair, the client, and the client's connection as the
/// relay had it.
struct Behind {
    relay: UnixStream,
    client: UnixStream,
    own: Arc<UnixStream>,
}

async fn behind(server: &Server) -> Behind {
    let (relay, pair) = UnixStream::pair().unwrap();
    let (client, own) = UnixStream::pair().unwrap();
    own.set_nonblocking(true).unwrap();
    let own = Arc::new(own);
    server.add_relayed(7, pair, own.clone()).await.unwrap();
    for stream in [&relay, &client] {
        let wait = Some(Duration::from_secs(20));
        stream.set_read_timeout(wait).unwrap();
    }
    Behind { relay, client, own }
}

fn request(stream: u32, method: &str, payload: &[u8]) -> Vec<u8> {
    let body = protobuf::Message::write_to_bytes(&wire(V2, method, payload)).unwrap();
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&[1, 0]);
    frame.extend_from_slice(&body);
    frame
}

fn pause(stream: u32) -> Vec<u8> {
    request(stream, "Pause", b"\x0a\x02c1")
}

/// The next whole answer; `None` at the end, however it comes.
async fn answer(stream: &UnixStream) -> Option<(u32, Vec<u8>)> {
    let mut stream = stream.try_clone().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut header = [0; 10];
        if let Err(error) = stream.read_exact(&mut header) {
            let silent = error.kind() == std::io::ErrorKind::WouldBlock;
            assert!(!silent, "neither an answer nor an end");
            return None;
        }
        assert_eq!(header[8], 2, "no answer: {header:?}");
        let mut body = vec![0; u32::from_be_bytes(header[..4].try_into().unwrap()) as usize];
        stream.read_exact(&mut body).expect("half an answer");
        Some((u32::from_be_bytes(header[4..8].try_into().unwrap()), body))
    });
    read.await.unwrap()
}

async fn stream_of(stream: &UnixStream) -> Option<u32> {
    answer(stream).await.map(|(stream, _)| stream)
}

/// Waits until so many requests were taken up.
async fn asked(owner: &Owner, count: usize) {
    until(|| owner.asked.lock().unwrap().len() == count).await;
}

/// What is left of the only connection.
fn left(server: &Server) -> Left {
    let mut all = server.end();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn streams(frames: &[Vec<u8>]) -> Vec<u32> {
    let stream = |frame: &Vec<u8>| u32::from_be_bytes(frame[4..8].try_into().unwrap());
    frames.iter().map(stream).collect()
}

#[test]
fn what_came_through_and_was_not_answered_is_left_and_an_answer_is_said_again() {
    run(async {
        let (owner, server) = served().await;
        let mut it = behind(&server).await;
        it.relay.write_all(&pause(1)).unwrap();
        assert_eq!(stream_of(&it.relay).await, Some(1));
        let wait = request(3, "Wait", b"\x0a\x02c1");
        it.relay.write_all(&wait).unwrap();
        // One that asks the same is a request of its own to whoever comes next.
        let again = request(5, "Wait", b"\x0a\x02c1");
        it.relay.write_all(&again).unwrap();
        asked(&owner, 2).await;
        // Nobody has read these.
        it.relay.write_all(&pause(7)).unwrap();
        it.relay.write_all(&pause(9)[..15]).unwrap();
        drop(it.relay);
        let left = left(&server);
        assert_eq!((left.conn, left.passed, left.half), (7, Some(7), Some(9)));
        assert_eq!(left.requests, [wait, again, pause(7)]);
        assert_eq!(streams(&left.answers), [1]);
        assert!(!left.broken && Arc::ptr_eq(&left.own, &it.own));
    });
}

/// A relay that is stopped reads nothing, for however long, and passes on what it did not read
/// never: whoever waits for that answer would wait for ever.
#[test]
fn an_answer_that_a_stopped_relay_did_not_read_is_said_again_however_old_it_is() {
    run(async {
        let (_owner, server) = served().await;
        let mut it = behind(&server).await;
        let count = 40;
        for n in 0..count {
            it.relay.write_all(&pause(2 * n + 1)).unwrap();
        }
        until(|| vigil_sys::listen::unread_by_peer(&it.relay) == Ok(0)).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        it.relay.write_all(&pause(2 * count + 1)).unwrap();
        until(|| vigil_sys::listen::unread_by_peer(&it.relay) == Ok(0)).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        drop(it.relay);
        let all: Vec<u32> = (0..=count).map(|n| 2 * n + 1).collect();
        assert_eq!(streams(&left(&server).answers), all);
    });
}

/// A relay reads much at once and passes it on piece by piece: what it has read it may not have
/// passed on, however many answers that are.
#[test]
fn all_answers_of_a_burst_are_said_again_though_the_relay_has_read_them() {
    run(async {
        let (_owner, server) = served().await;
        let mut it = behind(&server).await;
        let all: Vec<u32> = (0..200).map(|n| 2 * n + 1).collect();
        for stream in &all {
            it.relay.write_all(&pause(*stream)).unwrap();
            assert_eq!(stream_of(&it.relay).await, Some(*stream));
        }
        drop(it.relay);
        assert_eq!(streams(&left(&server).answers), all);
    });
}

/// What the relay has read is forgotten after a while, or memory would grow with every answer.
#[test]
fn an_answer_that_was_read_long_ago_is_not_said_again() {
    run(async {
        let (_owner, server) = served().await;
        let mut it = behind(&server).await;
        for n in 0..40 {
            it.relay.write_all(&pause(2 * n + 1)).unwrap();
            assert_eq!(stream_of(&it.relay).await, Some(2 * n + 1));
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
        it.relay.write_all(&pause(99)).unwrap();
        assert_eq!(stream_of(&it.relay).await, Some(99));
        drop(it.relay);
        // Of the one before nobody knew when it was read.
        assert_eq!(streams(&left(&server).answers), [79, 99]);
    });
}

/// The relay is dead, and its end of the pair the first that shows it: nobody is told of an end,
/// or the connection would be closed before the next relay has it.
#[test]
fn the_end_of_the_relay_is_not_that_of_the_connection() {
    run(async {
        let (owner, server) = served().await;
        let mut it = behind(&server).await;
        let wait = request(1, "Wait", b"\x0a\x02c1");
        it.relay.write_all(&wait).unwrap();
        asked(&owner, 1).await;
        drop(it.relay);
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Answered too late for the relay.
        owner.ends.notify_waiters();
        until(|| left(&server).requests.is_empty()).await;
        assert_eq!(streams(&left(&server).answers), [1]);
        it.client.set_nonblocking(true).unwrap();
        let silent = it.client.read(&mut [0]).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn a_long_answer_that_may_have_left_by_half_breaks_the_connection() {
    run(async {
        let (owner, server) = served().await;
        let many = |pid| PidOf { pid, exec: None };
        owner.say(Ok(Answer::Pids((1..20_000).map(many).collect())));
        let mut it = behind(&server).await;
        it.relay
            .write_all(&request(1, "Pids", b"\x0a\x02c1"))
            .unwrap();
        let (stream, body) = answer(&it.relay).await.unwrap();
        assert!(stream == 1 && body.len() > 32 << 10);
        drop(it.relay);
        assert!(left(&server).broken);
        assert_eq!(owner.last().1, Request::Pids);
    });
}

/// A part of an answer is with the relay, which passes on whole ones only.
#[test]
fn an_answer_the_relay_has_no_room_for_is_left_whole() {
    run(async {
        let (owner, server) = served().await;
        let many = |pid| PidOf { pid, exec: None };
        owner.say(Ok(Answer::Pids((1..200_000).map(many).collect())));
        let mut it = behind(&server).await;
        it.relay
            .write_all(&request(1, "Pids", b"\x0a\x02c1"))
            .unwrap();
        asked(&owner, 1).await;
        // Some of it is there, and the rest never will.
        it.relay.read_exact(&mut [0; 1000]).unwrap();
        drop(it.relay);
        let left = left(&server);
        assert!(!left.broken && left.requests.is_empty());
        assert!(left.answers[0].len() > 400_000, "{}", left.answers[0].len());
    });
}

#[test]
fn a_connection_the_relay_has_ended_is_over() {
    run(async {
        let (_owner, server) = served().await;
        let it = behind(&server).await;
        it.own.shutdown(std::net::Shutdown::Both).unwrap();
        drop(it.relay);
        assert_eq!(stream_of(&it.client).await, None);
        until(|| Arc::strong_count(&it.own) == 1).await;
        assert!(server.end().is_empty());
    });
}

//! A connection whose relay dies: what had come through it counts, nothing is
//! asked or answered twice that matters, and no frame is torn.

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
use vigil_protocol::Server;

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
    server
        .add_relayed(7, Some(pair), own.clone())
        .await
        .unwrap();
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

#[test]
fn what_came_through_the_relay_is_served_first_and_then_the_client_itself() {
    run(async {
        let (owner, server) = served().await;
        let mut it = behind(&server).await;
        it.relay.write_all(&pause(1)).unwrap();
        assert_eq!(stream_of(&it.relay).await, Some(1));
        it.client.write_all(&pause(1)).unwrap();
        // Its answer is with nobody, and the next request is with both.
        let wait = request(3, "Wait", b"\x0a\x02c1");
        it.relay.write_all(&wait).unwrap();
        asked(&owner, 2).await;
        it.client.write_all(&pause(5)).unwrap();
        // What was taken is not there any more; of Pause 1 that is nothing.
        let mut first = vec![0; pause(1).len()];
        (&*it.own).read_exact(&mut first).unwrap();
        drop(it.relay);
        assert_eq!(stream_of(&it.client).await, Some(1), "said again");
        assert_eq!(stream_of(&it.client).await, Some(5));
        owner.ends.notify_waiters();
        assert_eq!(stream_of(&it.client).await, Some(3));
        assert_eq!(owner.asked.lock().unwrap().len(), 3);
        // The end is the client's.
        drop(it.client);
    });
}

#[test]
fn a_request_that_was_passed_on_and_not_taken_is_served_once() {
    run(async {
        let (owner, server) = served().await;
        let mut it = behind(&server).await;
        let both = pause(9);
        it.client.write_all(&both).unwrap();
        it.relay.write_all(&both).unwrap();
        drop(it.relay);
        assert_eq!(stream_of(&it.client).await, Some(9));
        it.client.write_all(&pause(11)).unwrap();
        assert_eq!(stream_of(&it.client).await, Some(11));
        assert_eq!(owner.asked.lock().unwrap().len(), 2);
    });
}

#[test]
fn half_a_request_that_was_taken_ends_the_connection() {
    run(async {
        for taken in [4, 12, 25] {
            let (owner, server) = served().await;
            let mut it = behind(&server).await;
            let whole = pause(1);
            it.client.write_all(&whole).unwrap();
            let mut part = vec![0; taken];
            (&*it.own).read_exact(&mut part).unwrap();
            drop(it.relay);
            assert_eq!(stream_of(&it.client).await, None, "{taken} bytes");
            assert!(owner.asked_nothing(), "{taken} bytes");
        }
    });
}

#[test]
fn half_a_request_that_was_passed_on_ends_the_connection() {
    run(async {
        let (owner, server) = served().await;
        let mut it = behind(&server).await;
        it.relay.write_all(&pause(1)[..15]).unwrap();
        drop(it.relay);
        assert_eq!(stream_of(&it.client).await, None);
        assert!(owner.asked_nothing());
    });
}

#[test]
fn a_long_answer_that_may_have_left_by_half_ends_the_connection() {
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
        assert_eq!(stream_of(&it.client).await, None);
        assert_eq!(owner.last().1, Request::Pids);
    });
}

/// A part of an answer is with the relay, which passes on whole ones only.
#[test]
fn an_answer_the_relay_has_no_room_for_leaves_whole_after_its_death() {
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
        let (stream, body) = answer(&it.client).await.unwrap();
        assert!(stream == 1 && body.len() > 400_000, "{}", body.len());
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
    });
}

#[test]
fn a_connection_without_a_relay_ends_for_everybody() {
    run(async {
        let (_owner, server) = served().await;
        let (mut client, own) = UnixStream::pair().unwrap();
        let own = Arc::new(own);
        server
            .add_relayed(1 << 31, None, own.clone())
            .await
            .unwrap();
        client.write_all(&pause(1)).unwrap();
        assert_eq!(stream_of(&client).await, Some(1));
        drop(server);
        assert_eq!(stream_of(&client).await, None);
        drop(own);
    });
}

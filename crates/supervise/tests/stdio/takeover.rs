//! What a later shim finds: streams continued from deposited descriptors lose
//! no byte and end as they would have.

use std::io::Write;
use std::time::Duration;

use vigil_host::stdio::SlotKind;
use vigil_model::Stdio;
use vigil_supervise::stdio::{Keeper, Streams};

use crate::support::*;

/// The shim is killed again and again while a process talks and listens; each
/// next one goes on with what the reaper held.
#[test]
fn the_death_of_a_shim_loses_no_byte_of_a_pipe() {
    run(async {
        let place = Place::new();
        let stdio = Stdio {
            stdin: place.fifo("in"),
            ..place.out()
        };
        let (fds, mut streams) = place.open(&stdio).await;
        let client = Client::reading(place.fifo("out"));
        let mut process = Process::spawn(sh("exec cat"), fds);
        streams.started().await.unwrap();
        let mut input = std::fs::OpenOptions::new()
            .write(true)
            .open(place.path("in"))
            .unwrap();
        let feeding = std::thread::spawn(move || input.write_all(&numbers(300_000)));
        let mut deaths = 0;
        while !feeding.is_finished() {
            drop(streams);
            deaths += 1;
            let held = place.keeper.hand_over();
            streams = Streams::resume(held, place.keeper.clone(), place.patience);
            streams.started().await.unwrap();
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        assert!(deaths > 3, "{deaths}");
        feeding.join().unwrap().unwrap();
        streams.close_stdin().await;
        assert!(process.ended().await.success());
        streams.process_gone().await;
        assert!(client.read().await.bytes == numbers(300_000));
        assert!(place.keeper.kinds().is_empty());
    });
}

#[test]
fn a_console_sent_before_the_death_is_taken_after_it() {
    a_console_is_taken_after_a_death(false);
}

#[test]
fn a_console_is_not_lost_between_accepting_and_receiving_it() {
    a_console_is_taken_after_a_death(true);
}

fn a_console_is_taken_after_a_death(accepted: bool) {
    run(async {
        let place = Place::new();
        let stdio = Stdio {
            terminal: true,
            ..place.out()
        };
        let (_fds, streams) = place.open(&stdio).await;
        let socket = streams.console_socket().unwrap().to_owned();
        let dir = socket.parent().unwrap().to_owned();
        let (master, slave) = vigil_sys::tty::open_pair().unwrap();
        let caller = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let lent = std::os::fd::AsFd::as_fd(&master);
        vigil_sys::scm::send(std::os::fd::AsFd::as_fd(&caller), b"x", &[lent]).unwrap();
        drop((master, caller));
        if accepted {
            let held = place.keeper.hand_over();
            let is_listener = |(_, kind, _): &&(_, SlotKind, _)| *kind == SlotKind::ConsoleListener;
            let listener = held.iter().find(is_listener).unwrap().0;
            let accepted = place.keeper.accept(listener, SlotKind::ConsoleCaller);
            drop(accepted.await.unwrap());
        }
        // As SIGKILL does: nothing is released, no directory removed.
        drop(streams);
        std::fs::create_dir_all(&dir).unwrap();
        let held = place.keeper.hand_over();
        let mut streams = Streams::resume(held, place.keeper.clone(), place.patience);
        let client = Client::reading(place.path("out"));
        let fds = vigil_host::stdio::ChildFds {
            stdin: slave.try_clone().unwrap(),
            stdout: slave.try_clone().unwrap(),
            stderr: slave,
        };
        let mut process = Process::spawn(sh("echo hi"), fds);
        streams.started().await.unwrap();
        assert!(!dir.exists());
        assert_eq!(place.keeper.kinds().len(), 2, "console and sink");
        process.ended().await;
        streams.process_gone().await;
        assert_eq!(client.read().await.bytes, b"hi\r\n");
    });
}

#[test]
fn last_words_survive_a_death_after_the_exit() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&place.out()).await;
        let mut process = Process::spawn(sh("seq 1 18000"), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        drop(streams);
        let held = place.keeper.hand_over();
        let mut streams = Streams::resume(held, place.keeper.clone(), place.patience);
        streams.started().await.unwrap();
        streams.process_gone().await;
        let client = Client::reading(place.path("out"));
        assert!(client.read().await.bytes == numbers(18_000));
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
    });
}

/// Issue 9, B2: who holds the pipe of an exec that has ended is heard by the
/// next shim too.
#[test]
fn a_process_left_behind_is_heard_after_a_death() {
    run(async {
        let mut place = Place::new();
        place.patience.silence = Duration::from_millis(50);
        place.patience.drain = Duration::from_millis(100);
        let go = place.path("go");
        let late = format!(
            "(until [ -e {} ]; do sleep 0.01; done; echo late) & echo hi",
            go.display()
        );
        let (fds, mut streams) = place.open(&place.out()).await;
        let client = Client::reading(place.path("out"));
        let mut process = Process::spawn(sh(&late), fds);
        streams.started().await.unwrap();
        process.ended().await;
        streams.process_gone().await;
        drop(streams);
        let held = place.keeper.hand_over();
        let mut streams = Streams::resume(held, place.keeper.clone(), place.patience);
        streams.started().await.unwrap();
        streams.process_gone().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        std::fs::write(go, "").unwrap();
        assert_eq!(client.read().await.bytes, b"hi\nlate\n");
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
    });
}

//! stdin of a process: copied from the client's fifo, ended by CloseIO and by
//! nothing else while the process lives.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::time::Duration;

use vigil_host::stdio::SlotKind;
use vigil_model::Stdio;

use crate::support::*;

fn stdio(place: &Place) -> Stdio {
    Stdio {
        stdin: place.fifo("in"),
        ..place.out()
    }
}

fn client_of(place: &Place) -> File {
    OpenOptions::new()
        .write(true)
        .open(place.fifo("in"))
        .unwrap()
}

async fn some(mut file: File) -> (File, Vec<u8>) {
    let reading = std::thread::spawn(move || {
        let mut some = [0; 4096];
        let count = file.read(&mut some).unwrap();
        (file, some[..count].to_vec())
    });
    poll_until("an echo", || reading.is_finished()).await;
    reading.join().unwrap()
}

#[test]
fn a_client_may_leave_and_come_back_and_closes_in_the_end() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&stdio(&place)).await;
        let out = reader(place.fifo("out"));
        let mut process = Process::spawn(sh("exec cat"), fds);
        streams.started().await.unwrap();
        let mut client = client_of(&place);
        client.write_all(b"one").unwrap();
        let (out, echo) = some(out).await;
        assert_eq!(echo, b"one");
        drop(client);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(process.running(), "a client that left is no end of file");

        let mut client = client_of(&place);
        client.write_all(b"two").unwrap();
        let (out, echo) = some(out).await;
        assert_eq!(echo, b"two");
        streams.close_stdin().await;
        assert!(!place.keeper.kinds().contains(&SlotKind::StdinWriter));
        client.write_all(b"three").unwrap();
        let (out, echo) = some(out).await;
        assert_eq!(echo, b"three", "CloseIO closes ours, not the client's");
        assert!(process.running());
        drop(client);
        assert!(process.ended().await.success());
        streams.process_gone().await;
        assert!(Client::of(out).read().await.bytes.is_empty());
        streams.close_stdin().await;
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
    });
}

#[test]
fn much_input_goes_through_whole() {
    run(async {
        let place = Place::new();
        let out = Client::reading(place.fifo("out"));
        let (fds, mut streams) = place.open(&stdio(&place)).await;
        let mut process = Process::spawn(sh("exec cat"), fds);
        streams.started().await.unwrap();
        let mut client = client_of(&place);
        let feeding = std::thread::spawn(move || client.write_all(&numbers(300_000)));
        poll_until("the feeding", || feeding.is_finished()).await;
        feeding.join().unwrap().unwrap();
        streams.close_stdin().await;
        assert!(process.ended().await.success());
        streams.process_gone().await;
        assert!(out.read().await.bytes == numbers(300_000));
    });
}

#[test]
fn a_process_that_stops_reading_is_an_error_for_the_client_not_for_us() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&stdio(&place)).await;
        let mut process = Process::spawn(sh("exec <&-; sleep 60"), fds);
        streams.started().await.unwrap();
        let mut client = client_of(&place);
        let feeding = std::thread::spawn(move || {
            let error =
                std::iter::repeat_with(|| client.write_all(&[b'x'; 4096])).find_map(Result::err);
            error.unwrap().kind()
        });
        poll_until("the client's error", || feeding.is_finished()).await;
        assert_eq!(feeding.join().unwrap(), std::io::ErrorKind::BrokenPipe);
        assert!(process.running());
        let kinds = [SlotKind::StdoutPipe, SlotKind::StdoutSink];
        assert_eq!(place.keeper.kinds(), kinds);
        process.signal(9);
        process.ended().await;
        streams.process_gone().await;
    });
}

#[test]
fn an_exit_closes_stdin_also_of_an_idle_client() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&stdio(&place)).await;
        let mut client = client_of(&place);
        let mut process = Process::spawn(sh("exit 3"), fds);
        streams.started().await.unwrap();
        assert_eq!(process.ended().await.code(), Some(3));
        streams.process_gone().await;
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
        let error = client.write_all(b"anybody?").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    });
}

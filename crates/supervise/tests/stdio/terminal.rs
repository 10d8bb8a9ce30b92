//! Terminals: the console arrives after runc has exited, is copied both ways,
//! resized, and gone with the process.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use vigil_host::stdio::{ChildFds, SlotKind};
use vigil_model::Stdio;
use vigil_supervise::stdio::{Error, Size};
use vigil_sys::{scm, tty};

use crate::support::*;

fn stdio(place: &Place) -> Stdio {
    Stdio {
        stdin: place.fifo("in"),
        terminal: true,
        ..place.out()
    }
}

/// What runc does: a pair, the slave to the process, the master to the socket.
fn as_runc(socket: &Path, script: &str) -> Process {
    let (master, slave) = tty::open_pair().unwrap();
    let mut command = Command::new("/bin/busybox");
    command.args(["setsid", "-c", "sh", "-c", script]);
    let fds = ChildFds {
        stdin: slave.try_clone().unwrap(),
        stdout: slave.try_clone().unwrap(),
        stderr: slave,
    };
    let process = Process::spawn_plain(command, fds);
    bring(socket, &master);
    process
}

fn bring(socket: &Path, fd: &OwnedFd) {
    let caller = UnixStream::connect(socket).unwrap();
    scm::send(caller.as_fd(), b"/dev/pts/9", &[fd.as_fd()]).unwrap();
}

#[test]
fn what_is_typed_is_answered_and_the_size_is_known() {
    run(async {
        let place = Place::new();
        let (fds, mut streams) = place.open(&stdio(&place)).await;
        let socket = streams.console_socket().unwrap().to_owned();
        let dir = socket.parent().unwrap().to_owned();
        let kinds = [
            SlotKind::StdinReader,
            SlotKind::StdinWriter,
            SlotKind::ConsoleListener,
            SlotKind::StdoutSink,
        ];
        assert_eq!(place.keeper.kinds(), kinds);
        streams
            .resize(Size {
                width: 1,
                height: 1,
            })
            .unwrap();
        let mut process = as_runc(
            &socket,
            "read line; echo got $line; stty size; read line; exit 5",
        );
        drop(fds);
        streams.started().await.unwrap();
        assert!(!dir.exists());
        assert!(place.keeper.kinds().contains(&SlotKind::Console));
        assert!(!place.keeper.kinds().contains(&SlotKind::ConsoleListener));
        streams
            .resize(Size {
                width: 123,
                height: 45,
            })
            .unwrap();

        let client = Client::reading(place.fifo("out"));
        let mut keys = OpenOptions::new()
            .write(true)
            .open(place.fifo("in"))
            .unwrap();
        keys.write_all(b"hello\n").unwrap();
        keys.write_all(b"\n").unwrap();
        assert_eq!(process.ended().await.code(), Some(5));
        let exited = Instant::now();
        streams.process_gone().await;
        let read = client.read().await;
        let text = String::from_utf8_lossy(&read.bytes).into_owned();
        assert!(text.contains("hello\r\n"), "echo: {text:?}");
        assert!(text.contains("got hello\r\n45 123\r\n"), "{text:?}");
        let after = read.at.saturating_duration_since(exited);
        assert!(after < Duration::from_secs(10), "end after {after:?}");
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
        streams
            .resize(Size {
                width: 2,
                height: 2,
            })
            .unwrap();
        streams.close_all(Duration::ZERO).await;
    });
}

#[test]
fn much_output_arrives_whole() {
    run(async {
        for _ in 0..10 {
            let place = Place::new();
            let (_fds, mut streams) = place.open(&stdio(&place)).await;
            let client = Client::reading(place.fifo("out"));
            let script = "stty -opost; seq 1 60000";
            let mut process = as_runc(streams.console_socket().unwrap(), script);
            streams.started().await.unwrap();
            process.ended().await;
            streams.process_gone().await;
            let read = client.read().await;
            assert_eq!(read.bytes.len(), numbers(60_000).len());
            assert!(read.bytes == numbers(60_000));
        }
    });
}

#[test]
fn much_input_arrives_whole_although_a_terminal_takes_little_at_once() {
    run(async {
        let place = Place::new();
        let (_fds, mut streams) = place.open(&stdio(&place)).await;
        let client = Client::reading(place.fifo("out"));
        let script = "stty raw -echo; echo ready; sleep 0.3; head -c 108894 | md5sum";
        let mut process = as_runc(streams.console_socket().unwrap(), script);
        streams.started().await.unwrap();
        let mut keys = OpenOptions::new()
            .write(true)
            .open(place.fifo("in"))
            .unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
        let typing = std::thread::spawn(move || keys.write_all(&numbers(20_000)).map(|()| keys));
        process.ended().await;
        let _keys = typing.join().unwrap().unwrap();
        streams.process_gone().await;
        let text = String::from_utf8(client.read().await.bytes).unwrap();
        let mut sum = std::process::Command::new("/bin/busybox")
            .arg("md5sum")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        sum.stdin
            .take()
            .unwrap()
            .write_all(&numbers(20_000))
            .unwrap();
        let mut expected = String::new();
        sum.stdout
            .take()
            .unwrap()
            .read_to_string(&mut expected)
            .unwrap();
        sum.wait().unwrap();
        assert_eq!(text.trim().lines().last().unwrap().trim(), expected.trim());
    });
}

#[test]
fn a_terminal_nobody_has_open_for_a_while_is_not_at_its_end_and_costs_little() {
    run(async {
        let place = Place::new();
        let (_fds, mut streams) = place.open(&stdio(&place)).await;
        let client = Client::reading(place.fifo("out"));
        // Closes its terminal, opens it again by its own name, and waits.
        let script = "t=$(tty); echo before; exec <&- >&- 2>&-; sleep 0.3; \
                      exec <$t >$t 2>&1; echo after; sleep 60";
        let mut process = as_runc(streams.console_socket().unwrap(), script);
        streams.started().await.unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_idle(5).await;
        process.signal(9);
        process.kill_group();
        process.ended().await;
        streams.process_gone().await;
        let text = String::from_utf8(client.read().await.bytes).unwrap();
        assert_eq!(text, "before\r\nafter\r\n");
    });
}

#[test]
fn without_an_output_nothing_blocks() {
    run(async {
        let place = Place::new();
        let silent = Stdio {
            terminal: true,
            ..Stdio::default()
        };
        let (_fds, mut streams) = place.open(&silent).await;
        let mut process = as_runc(streams.console_socket().unwrap(), "seq 1 100000");
        streams.started().await.unwrap();
        assert!(process.ended().await.success());
        streams.process_gone().await;
        poll_until("the release", || place.keeper.kinds().is_empty()).await;
    });
}

#[test]
fn a_process_left_behind_on_the_terminal_loses_it() {
    run(async {
        let place = Place::new();
        let (_fds, mut streams) = place.open(&stdio(&place)).await;
        let client = Client::reading(place.fifo("out"));
        let script = "trap '' HUP; (exec setsid sleep 60) & echo hi; sleep 0.2";
        let mut process = as_runc(streams.console_socket().unwrap(), script);
        streams.started().await.unwrap();
        process.ended().await;
        let exited = Instant::now();
        streams.process_gone().await;
        assert!(exited.elapsed() < Duration::from_secs(20));
        let read = client.read().await;
        assert_eq!(read.bytes, b"hi\r\n");
        assert!(read.at - exited < Duration::from_secs(20));
    });
}

#[test]
fn no_console_and_no_terminal_are_errors_that_leave_nothing() {
    run(async {
        let place = Place::new();
        let (_fds, mut streams) = place.open(&stdio(&place)).await;
        let dir = streams
            .console_socket()
            .unwrap()
            .parent()
            .unwrap()
            .to_owned();
        let error = streams.started().await.unwrap_err();
        assert!(matches!(error, Error::NoConsole { .. }), "{error}");
        streams.close_all(Duration::ZERO).await;
        assert!(!dir.exists());
        assert!(place.keeper.kinds().is_empty());

        let (_fds, mut streams) = place.open(&stdio(&place)).await;
        let (pipe, _w) = vigil_sys::fd::pipe().unwrap();
        bring(streams.console_socket().unwrap(), &pipe);
        let error = streams.started().await.unwrap_err();
        assert!(matches!(error, Error::Console { .. }), "{error}");
        streams.close_all(Duration::ZERO).await;
        assert!(place.keeper.kinds().is_empty());
    });
}

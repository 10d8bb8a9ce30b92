//! Cycles of every kind of stream leave no descriptor and no directory. Alone
//! in its process, so that the descriptors counted are its own.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "stdio/support.rs"]
#[allow(dead_code)]
mod support;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use support::*;
use vigil_host::stdio::ChildFds;
use vigil_model::Stdio;
use vigil_sys::{scm, tty};

fn open_now() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn consoles() -> usize {
    let below = std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_else(|| "/tmp".into());
    let dirs = std::fs::read_dir(below).unwrap().flatten();
    dirs.filter(|d| d.path().join("pty.sock").exists()).count()
}

async fn cycle(round: usize) {
    let place = Place::new();
    let fifos = Stdio {
        stdin: place.fifo("in"),
        stdout: place.fifo("out"),
        stderr: if round.is_multiple_of(2) {
            place.fifo("err")
        } else {
            String::new()
        },
        terminal: round.is_multiple_of(3),
    };
    let (fds, mut streams) = place.open(&fifos).await;
    let fds = if fifos.terminal {
        let (master, slave) = tty::open_pair().unwrap();
        let caller = UnixStream::connect(streams.console_socket().unwrap()).unwrap();
        scm::send(caller.as_fd(), b"x", &[master.as_fd()]).unwrap();
        ChildFds {
            stdin: slave.try_clone().unwrap(),
            stdout: slave.try_clone().unwrap(),
            stderr: slave,
        }
    } else {
        fds
    };
    if round.is_multiple_of(7) {
        // runc failed.
        return streams.close_all(Duration::ZERO).await;
    }
    let script = if round % 10 == 3 {
        "seq 1 100"
    } else {
        "cat </dev/null"
    };
    let mut process = Process::spawn(sh(script), fds);
    streams.started().await.unwrap();
    process.ended().await;
    streams.process_gone().await;
    if !round.is_multiple_of(5) {
        streams.close_all(Duration::ZERO).await;
        assert!(place.keeper.kinds().is_empty());
    }
    // Else as at the death of a shim: dropped.
}

#[test]
fn two_hundred_cycles_leave_nothing_open() {
    run(async {
        cycle(1).await;
        let consoles_before = consoles();
        let before = open_now();
        for round in 0..200 {
            cycle(round).await;
        }
        tokio::task::yield_now().await;
        poll_until("the runtime to drop its tasks", || open_now() <= before).await;
        // Others on this host have some too, for a moment.
        poll_until("no console to stay", || consoles() <= consoles_before).await;
    });
}

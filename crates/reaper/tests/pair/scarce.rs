//! A reaper that can open nothing more: it waits, without spinning, and forgets nobody.

use std::fs;
use std::path::Path;
use std::time::Duration;

use vigil_sys::{fd, fifo, pidfd, signal};

use super::{Pair, until};

impl Pair {
    /// How many descriptors the reaper may have.
    fn allow(&self, count: usize) {
        let (pid, limit) = (format!("--pid={}", self.pid), format!("--nofile={count}:"));
        let done = std::process::Command::new("prlimit")
            .args([pid, limit])
            .status();
        assert!(done.unwrap().success());
    }

    fn lowest_free(&self) -> usize {
        let taken = |n: &usize| Path::new(&format!("/proc/{}/fd/{n}", self.pid)).is_symlink();
        (0..1000).find(|n| !taken(n)).unwrap()
    }

    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
        fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
    }

    fn does_not_spin(&self) {
        let before = self.ticks();
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            self.ticks() - before < 10,
            "half a second of spinning would be 50 ticks"
        );
    }
}

/// With no descriptor to be had the reaper neither spins nor forgets anybody.
pub fn out_of_descriptors_it_waits() {
    let pair = Pair::serving();
    let mut client = pair.client();
    assert_eq!(client.call("echo x"), "x");
    let fifo = pair.path("fifo");
    fifo::make(&fifo, 0o600).unwrap();
    let _reader = fifo::open_reader(&fifo).unwrap();
    let deposit = format!("deposit 5 {}", fifo.display());
    pair.allow(pair.lowest_free());
    let mut late = pair.client();
    let stream = late.ask("echo late");
    assert!(
        !fd::wait_readable(&late.fd, Duration::from_millis(300)).unwrap(),
        "not accepted"
    );
    assert_eq!(client.call(&deposit), "Err(SlotsFull)");
    pair.does_not_spin();
    pair.allow(1024);
    assert_eq!(late.answer(stream).unwrap(), b"late");
    assert_eq!(client.call(&deposit), "Ok(0)");
}

/// A shim dies and no other can be started: the container is neither given up at once
/// nor left alone.
pub fn out_of_descriptors_a_successor_is_waited_for() {
    let pair = Pair::serving();
    let mut client = pair.client();
    assert_eq!(client.call("echo x"), "x");
    let shim = pair.shim_pid();
    // Nought, one and two are taken.
    pair.allow(3);
    let dying = pidfd::open(shim).unwrap();
    pidfd::send_signal(&dying, signal::KILL).unwrap();
    until("the shim dies", || pidfd::is_dead(&dying).unwrap());
    let stream = client.ask("echo y");
    pair.does_not_spin();
    assert!(!pidfd::is_dead(&pair.pidfd).unwrap(), "it has left");
    assert_eq!(pair.shim_pid(), shim, "nobody can have followed");
    pair.allow(1024);
    assert_eq!(client.answer(stream).unwrap(), b"y");
    assert_ne!(pair.shim_pid(), shim);
}

/// One that was accepted, and for which no pair could be had, was once forgotten when
/// another connection was closed before it was looked for again.
pub fn out_of_descriptors_a_connection_is_not_forgotten() {
    let pair = Pair::serving();
    let mut first = pair.client();
    assert_eq!(first.call("echo x"), "x");
    pair.allow(pair.lowest_free() + 1);
    let mut late = pair.client();
    let stream = late.ask("echo late");
    assert!(
        !fd::wait_readable(&late.fd, Duration::from_millis(300)).unwrap(),
        "a pair was had"
    );
    drop(first);
    assert_eq!(late.answer(stream).unwrap(), b"late");
}

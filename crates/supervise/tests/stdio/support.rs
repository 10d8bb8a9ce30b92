//! A stand-in for the reaper that really holds copies, children that are
//! killed whatever happens, and clients that read like containerd does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vigil_host::stdio::{ChildFds, Owner, SlotKind};
use vigil_model::{Namespace, Stdio, TaskId};
use vigil_supervise::SharedFd;
use vigil_supervise::stdio::{Asked, Keeper, Patience, SlotId, Streams};
use vigil_sys::{fifo, pidfd};

pub const LONG: Duration = Duration::from_secs(20);

/// Runs a test as the shim runs: one thread.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test)
}

#[derive(Debug, Default)]
pub struct Held {
    next: u32,
    pub slots: BTreeMap<SlotId, (SlotKind, OwnedFd)>,
    pub calls: u32,
}

/// Holds a duplicate of each end, as the reaper does.
#[derive(Debug, Clone, Default)]
pub struct Copies(pub Arc<Mutex<Held>>);

impl Copies {
    pub fn kinds(&self) -> Vec<SlotKind> {
        self.0
            .lock()
            .unwrap()
            .slots
            .values()
            .map(|(kind, _)| *kind)
            .collect()
    }

    /// What a new shim is given.
    pub fn hand_over(&self) -> Vec<(SlotId, SlotKind, SharedFd)> {
        let held = self.0.lock().unwrap();
        let copy = |(slot, (kind, fd)): (&SlotId, &(SlotKind, OwnedFd))| {
            (*slot, *kind, SharedFd::new(fd.try_clone().unwrap().into()))
        };
        held.slots.iter().map(copy).collect()
    }
}

impl Keeper for Copies {
    type Error = std::io::Error;

    async fn deposit(&self, ends: &[(SlotKind, SharedFd)]) -> Result<Vec<SlotId>, Self::Error> {
        let mut held = self.0.lock().unwrap();
        held.calls += 1;
        let mut slots = Vec::new();
        for (kind, fd) in ends {
            held.next += 1;
            let slot = SlotId(held.next);
            held.slots.insert(slot, (*kind, fd.try_clone()?.into()));
            slots.push(slot);
        }
        Ok(slots)
    }

    async fn ended(&self, slots: &[SlotId]) -> Result<(), Self::Error> {
        // The reaper takes a moment.
        tokio::task::yield_now().await;
        let mut held = self.0.lock().unwrap();
        held.calls += 1;
        for slot in slots {
            assert!(held.slots.remove(slot).is_some(), "{slot:?} ended twice");
        }
        Ok(())
    }

    async fn accept(&self, listener: SlotId, kind: SlotKind) -> Option<(SlotId, SharedFd)> {
        let mut held = self.0.lock().unwrap();
        let (_, listener) = held.slots.get(&listener)?;
        let called = vigil_sys::listen::accept(listener.as_fd()).ok()??;
        let copy = called.try_clone().ok()?;
        held.next += 1;
        let slot = SlotId(held.next);
        held.slots.insert(slot, (kind, called));
        Some((slot, SharedFd::new(copy.into())))
    }
}

/// A private directory with fifos, and what becomes of it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub keeper: Copies,
    pub patience: Patience,
}

impl Place {
    pub fn new() -> Place {
        Place {
            dir: tempfile::tempdir().unwrap(),
            keeper: Copies::default(),
            patience: Patience::default(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        if !path.exists() {
            fifo::make(&path, 0o700).unwrap();
        }
        path.to_str().unwrap().to_owned()
    }

    pub async fn open(&self, stdio: &Stdio) -> (ChildFds, Streams<Copies>) {
        self.try_open(stdio).await.unwrap()
    }

    pub async fn try_open(
        &self,
        stdio: &Stdio,
    ) -> vigil_supervise::stdio::Result<(ChildFds, Streams<Copies>)> {
        let asked = Asked {
            stdio,
            task: &TaskId::new("t1").unwrap(),
            namespace: &Namespace::new("n1").unwrap(),
            owner: Owner::default(),
        };
        Streams::open(&asked, self.keeper.clone(), self.patience).await
    }

    /// Only stdout.
    pub fn out(&self) -> Stdio {
        Stdio {
            stdout: self.fifo("out"),
            ..Stdio::default()
        }
    }
}

/// A process in a group of its own; the group is killed with it.
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
}

impl Process {
    pub fn spawn(mut command: Command, fds: ChildFds) -> Process {
        command
            .stdin(fds.stdin)
            .stdout(fds.stdout)
            .stderr(fds.stderr)
            .process_group(0);
        Self::start(&mut command)
    }

    /// In the group of its caller, so that it may lead a session.
    pub fn spawn_plain(mut command: Command, fds: ChildFds) -> Process {
        command
            .stdin(fds.stdin)
            .stdout(fds.stdout)
            .stderr(fds.stderr);
        Self::start(&mut command)
    }

    fn start(command: &mut Command) -> Process {
        let child = command.spawn().unwrap();
        let pidfd = pidfd::open(child.id()).unwrap();
        Process { child, pidfd }
    }

    pub fn signal(&self, number: i32) {
        pidfd::send_signal(&self.pidfd, number).unwrap();
    }

    pub fn kill_group(&self) {
        let _ = pidfd::send_signal_to_group(&self.pidfd, 9);
    }

    pub fn running(&self) -> bool {
        !pidfd::is_dead(&self.pidfd).unwrap()
    }

    /// Its end; the other tasks go on meanwhile.
    pub async fn ended(&mut self) -> ExitStatus {
        poll_until("the process to end", || {
            pidfd::is_dead(&self.pidfd).unwrap()
        })
        .await;
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn poll_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "no end of waiting for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", script]);
    command
}

/// What a client read, and when it came to the end.
pub struct Read2End {
    pub bytes: Vec<u8>,
    pub at: Instant,
}

/// A client that opens like containerd's fifo package (blocking, in the
/// background) and reads to the end.
pub struct Client(JoinHandle<Read2End>);

impl Client {
    pub fn reading(path: impl AsRef<Path>) -> Client {
        let path = path.as_ref().to_owned();
        Client(std::thread::spawn(move || {
            let mut bytes = Vec::new();
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            Read2End {
                bytes,
                at: Instant::now(),
            }
        }))
    }

    pub fn of(mut file: File) -> Client {
        Client(std::thread::spawn(move || {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            Read2End {
                bytes,
                at: Instant::now(),
            }
        }))
    }

    pub fn ended(&self) -> bool {
        self.0.is_finished()
    }

    pub async fn read(self) -> Read2End {
        poll_until("the client's end of file", || self.0.is_finished()).await;
        self.0.join().unwrap()
    }
}

/// A client that has the fifo open and reads when told to.
pub fn reader(path: impl AsRef<Path>) -> File {
    let fd = fifo::open_reader(path.as_ref()).unwrap();
    vigil_sys::fd::set_nonblocking(fd.as_fd(), false).unwrap();
    File::from(fd)
}

pub fn numbers(to: u32) -> Vec<u8> {
    (1..=to)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect()
}

/// Watches what this thread, and with it all copying, does for a second: it
/// may wake `wakes` times and use no more than 20 ms of a processor.
pub async fn assert_idle(wakes: u64) {
    let (woken, used) = cost();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (woken, used) = (cost().0 - woken, cost().1 - used);
    // Our own sleep wakes once.
    assert!(woken <= wakes + 1, "woke {woken} times");
    assert!(used < 20_000_000, "used {used} ns of processor");
}

/// Voluntary switches, and nanoseconds of processor.
fn cost() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status
        .lines()
        .find(|l| l.starts_with("voluntary_ctxt_switches"))
        .unwrap();
    let woken = line.split_whitespace().last().unwrap().parse().unwrap();
    let used = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    (
        woken,
        used.split_whitespace().next().unwrap().parse().unwrap(),
    )
}

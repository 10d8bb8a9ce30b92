//! Scarcity: a shim, a reaper or a `start` that may open no more. Nothing of that is the end of
//! a container, of the pair or of a connection; what cannot be done now is refused or waits.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vigil_hostile::scarcity::{allow_files as allow, exhaust_files, open_files};
use vigil_hostile::{Pair, fds, runc_options, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::process::alive;
use vigil_lab::task::V2;
use vigil_lab::{CallError, Kit, Spec, Task, by, until};

const RUNNING: i32 = 2;

/// As many as it has, so that not one more is to be had.
fn exhaust(pid: i32) -> Result<()> {
    exhaust_files(pid, 0)
}

fn still_runs(kit: &Kit, task: &Task, id: &str, pair: &Pair, pid: u32) -> Result<()> {
    let state = task.patient(30.0).state(id, "")?;
    ensure!(state.status.value() == RUNNING, "{state:?}");
    ensure!(
        alive(i32::try_from(pid)?) && alive(pair.reaper),
        "{}",
        kit.scratch.mark()
    );
    Ok(())
}

/// A shim at its limit once dropped the message that brings a connection; the reaper took that
/// for intent, the client saw the end, and a containerd that had just come back a dead shim:
/// it killed init. Now there are spare descriptors for it, and what was not taken is offered
/// again until it is.
#[test]
fn a_connection_waits_for_a_shim_without_descriptors() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let (id, pair) = (container.id.clone(), Pair::of(&container.shim)?);
        let (_, hard) = open_files(pair.shim)?;
        exhaust(pair.shim)?;
        let socket = container.shim.reply.socket.clone();
        let first = Task::connect(&socket, V2)?;
        still_runs(kit, &first, &id, &pair, container.pid).context("with the spares")?;
        // More than there are spares for: they wait, and none is hung up on.
        let late: Vec<_> = (0..20)
            .map(|_| {
                let (socket, id) = (socket.clone(), id.clone());
                std::thread::spawn(move || -> Result<(), CallError> {
                    let task = Task::connect(&socket, V2).unwrap().patient(60.0);
                    task.state(&id, "").map(drop)
                })
            })
            .collect();
        let mut many = 0;
        while many < 20 {
            still_runs(kit, container.task(), &id, &pair, container.pid)?;
            still_runs(kit, &first, &id, &pair, container.pid)?;
            many += 1;
        }
        ensure!(
            late.iter().any(|one| !one.is_finished()),
            "there was no shortage"
        );
        let exec = kit.exec(&container, "e1", &Spec::sh("exit 3"));
        if let Ok(_streams) = exec {
            let refused = container.task().patient(30.0).start(&id, "e1");
            ensure!(!matches!(refused, Err(CallError::Closed)), "{refused:?}");
        }
        allow(pair.shim, hard)?;
        for one in late {
            one.join()
                .unwrap()
                .context("a connection that had to wait")?;
        }
        ensure!(Pair::of(&container.shim)? == pair, "the shim died over it");
        let _streams = kit.exec(&container, "e2", &Spec::sh("exit 3"))?;
        container.task().start(&id, "e2")?;
        ensure!(container.task().wait(&id, "e2")?.exit_status == 3);
        Ok(())
    });
}

/// The same of the reaper, which accepts: who calls waits.
#[test]
fn a_connection_waits_for_a_reaper_without_descriptors() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let (id, pair) = (container.id.clone(), Pair::of(&container.shim)?);
        let (_, hard) = open_files(pair.reaper)?;
        exhaust(pair.reaper)?;
        let socket = container.shim.reply.socket.clone();
        let late = {
            let (socket, id) = (socket.clone(), id.clone());
            std::thread::spawn(move || {
                let task = Task::connect(&socket, V2).unwrap().patient(60.0);
                task.state(&id, "").map(drop)
            })
        };
        for _ in 0..20 {
            still_runs(kit, container.task(), &id, &pair, container.pid)?;
        }
        // A shim that dies now has no successor until there is room, and that is nobody's end.
        pair.signal(pair.shim, 9)?;
        let gone = || (!alive(pair.shim)).then_some(());
        until("the shim to die", by(20.0), gone)?;
        ensure!(alive(pair.reaper) && alive(i32::try_from(container.pid)?));
        allow(pair.reaper, hard)?;
        late.join()
            .unwrap()
            .context("a connection that had to wait")?;
        still_runs(
            kit,
            &container.task().patient(60.0),
            &id,
            &pair,
            container.pid,
        )
    });
}

/// containerd's own unit leaves a soft limit of 1,024, where the 121st living exec once failed.
/// Here it is a smaller one and fewer execs: reaper and shim raise their own, and runc, whose the
/// container's is, is given what containerd had (the runc of Debian 12 raises it again).
#[test]
fn a_small_soft_limit_is_raised_and_the_containers_own_is_left() {
    trial(240, |kit| {
        let own = i32::try_from(std::process::id())?;
        let (before, hard) = open_files(own)?;
        ensure!(hard >= 4096, "the limit of this machine is {hard}");
        let (runc, seen) = (kit.scratch.path("runc"), kit.scratch.path("seen"));
        let script = format!(
            "#!/bin/sh\nulimit -Sn >>{}\nexec runc \"$@\"\n",
            seen.display()
        );
        fs::write(&runc, script)?;
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755))?;
        allow(own, 200)?;
        let container = kit.prepared(&Spec::sleeper(), Stdio::Output);
        allow(own, before)?;
        let container = container?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc_options(&runc.to_string_lossy())).into();
        container.task().create(&request)?;
        container.start()?;
        let pair = Pair::of(&container.shim)?;
        ensure!(open_files(pair.reaper)? == (hard, hard));
        ensure!(open_files(pair.shim)? == (hard, hard));
        let counts = || Ok::<_, anyhow::Error>((fds(pair.reaper)?, fds(pair.shim)?));
        let (idle, task) = (counts()?, container.task().patient(60.0));
        let execs = std::env::var("VIGIL_TEST_EXECS").ok();
        let execs = execs.and_then(|n| n.parse().ok()).unwrap_or(60);
        let mut streams = Vec::new();
        for n in 0..execs {
            let exec = format!("e{n}");
            streams.push(kit.exec(&container, &exec, &Spec::sleeper())?);
            task.start(&container.id, &exec).with_context(|| exec)?;
        }
        let full = counts()?;
        let seen = fs::read_to_string(&seen)?;
        ensure!(seen.lines().count() > execs, "{seen}");
        ensure!(
            seen.lines().all(|soft| soft == "200"),
            "runc was given {seen}"
        );
        println!("descriptors: {idle:?} with init alone, {full:?} with {execs} execs");
        ensure!(full.0.max(full.1) > 200, "the limit would have done");
        // Of three streams, and a few of whatever else has grown.
        ensure!(
            full.0 - idle.0 <= 7 * execs + 8 && full.1 - idle.1 <= 8 * execs + 8,
            "an exec takes more descriptors than it did: {idle:?}, {full:?}"
        );
        for n in 0..execs {
            task.kill(&container.id, &format!("e{n}"), 9, false)?;
        }
        for n in 0..execs {
            let ended = task.wait(&container.id, &format!("e{n}"))?;
            ensure!(ended.exit_status == 137, "{ended:?}");
        }
        Ok(())
    });
}

/// For as long as this lives, the kernel adds nothing to any epoll set of a process: `ENOSPC`, as
/// at the end of `max_user_watches`. Told to one process by ptrace, since the limit itself is
/// the machine's.
struct NoMoreWatches {
    over: Arc<AtomicBool>,
    refused: Arc<AtomicU32>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl NoMoreWatches {
    fn of(pid: i32) -> Result<Self> {
        let (over, refused) = (Arc::default(), Arc::default());
        let (told, tells) = mpsc::channel();
        let theirs = (Arc::clone(&over), Arc::clone(&refused));
        let thread =
            std::thread::spawn(move || Self::stand_behind(pid, &theirs.0, &theirs.1, &told));
        tells.recv().context("tracing")?;
        let thread = Some(thread);
        Ok(Self {
            over,
            refused,
            thread,
        })
    }

    fn stand_behind(
        pid: i32,
        over: &AtomicBool,
        refused: &AtomicU32,
        told: &mpsc::Sender<()>,
    ) -> Result<()> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD)?;
        ptrace::interrupt(pid)?;
        let mut refusing = false;
        loop {
            let stopped = waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))?;
            match stopped {
                WaitStatus::StillAlive => {
                    if over.load(Ordering::Relaxed) {
                        // It may be in the middle of a wait without end.
                        let _ = ptrace::interrupt(pid);
                        waitpid(pid, Some(WaitPidFlag::__WALL))?;
                        return Ok(ptrace::detach(pid, None)?);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                WaitStatus::PtraceSyscall(_) => {
                    let mut all = ptrace::getregs(pid)?;
                    let add = libc::EPOLL_CTL_ADD.cast_unsigned();
                    if refusing {
                        all.rax = (-i64::from(libc::ENOSPC)).cast_unsigned();
                        ptrace::setregs(pid, all)?;
                        refusing = false;
                        refused.fetch_add(1, Ordering::Relaxed);
                    } else if all.orig_rax == libc::SYS_epoll_ctl.cast_unsigned()
                        && all.rsi == u64::from(add)
                        && all.rax == (-i64::from(libc::ENOSYS)).cast_unsigned()
                    {
                        all.orig_rax = u64::MAX;
                        ptrace::setregs(pid, all)?;
                        refusing = true;
                    }
                    ptrace::syscall(pid, None)?;
                }
                WaitStatus::Stopped(_, signal) => ptrace::syscall(pid, Some(signal))?,
                WaitStatus::PtraceEvent(..) => {
                    let _ = told.send(());
                    ptrace::syscall(pid, None)?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Whether it was refused something.
    fn hit(&self) -> Option<()> {
        (self.refused.load(Ordering::Relaxed) > 0).then_some(())
    }
}

impl Drop for NoMoreWatches {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn waits_for_a_watch(of: fn(&Pair) -> i32) {
    trial(120, move |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let (id, pair) = (container.id.clone(), Pair::of(&container.shim)?);
        let scarce = NoMoreWatches::of(of(&pair))?;
        let late = {
            let (socket, id) = (container.shim.reply.socket.clone(), id.clone());
            std::thread::spawn(move || {
                let task = Task::connect(&socket, V2).unwrap().patient(60.0);
                task.state(&id, "").map(drop)
            })
        };
        until("a refusal", by(20.0), || scarce.hit())?;
        for _ in 0..20 {
            still_runs(kit, container.task(), &id, &pair, container.pid)?;
        }
        ensure!(!late.is_finished(), "nothing was refused, or it was ended");
        drop(scarce);
        late.join()
            .unwrap()
            .context("a connection that had to wait")?;
        ensure!(Pair::of(&container.shim)? == pair, "one died over it");
        Ok(())
    });
}

/// The reaper had accepted a connection, could not wait for it, and dropped it: a containerd
/// that had just come back took that for a dead shim.
#[test]
fn a_connection_waits_for_a_reaper_that_can_watch_no_more() {
    waits_for_a_watch(|pair| pair.reaper);
}

/// The same of the shim, which had said that it has it.
#[test]
fn a_connection_waits_for_a_shim_that_can_watch_no_more() {
    waits_for_a_watch(|pair| pair.shim);
}

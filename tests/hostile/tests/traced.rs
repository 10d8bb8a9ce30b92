//! Processes whose end somebody keeps from their parent: who traces a process and never waits for
//! it hides it, dead, from the reaper's waitid(2) for as long as it likes. Such an exec was RUNNING
//! for ever, its Wait without an answer, its Delete refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use nix::sys::ptrace::{self, Options};
use nix::unistd::Pid;
use vigil_hostile::{Pair, succeeded, trial};
use vigil_lab::kit::Container;
use vigil_lab::{Spec, by, until};

const KILL: i32 = 9;
const STOPPED: i32 = 3;

/// Traces a process for as long as it lives, and never waits for it. To the kernel it is all the
/// same whether the tracer is in the container.
struct Tracer {
    over: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tracer {
    fn of(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?);
        let (over, ends) = mpsc::channel::<()>();
        let (told, tells) = mpsc::channel();
        // A process' tracer is a thread: what it traced is let go of when it ends.
        let thread = std::thread::spawn(move || {
            let _ = told.send(ptrace::seize(pid, Options::empty()));
            let _ = ends.recv();
        });
        tells.recv()?.context("tracing it")?;
        let (over, thread) = (Some(over), Some(thread));
        Ok(Self { over, thread })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.over.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A process that forks nothing (a tracer is told of each signal first) and exits with `code` when
/// the gate is opened.
fn waits_then(code: u32) -> Spec {
    Spec::sh(&format!("read x < /tmp/gate; exit {code}"))
}

/// Opens the gate for who waits there.
fn open_gate(container: &Container) -> Result<()> {
    let gate = format!("/proc/{}/root/tmp/gate", container.pid);
    let mut gate = OpenOptions::new().write(true).open(gate)?;
    Ok(gate.write_all(b"x\n")?)
}

fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|rest| rest.starts_with('Z'))
}

/// When a shim dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takeover {
    None,
    /// While it is traced and alive.
    Before,
    /// When it is dead, or about to be.
    After,
}

const ALL: [Takeover; 3] = [Takeover::None, Takeover::Before, Takeover::After];

fn kill_shim(container: &Container) -> Result<()> {
    let pair = Pair::of(&container.shim)?;
    pair.signal(pair.shim, KILL)
}

#[test]
fn an_exec_whose_end_a_tracer_hides_is_told_of() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sh("mkfifo /tmp/gate; sleep 999"))?;
        let (task, id) = (container.task().patient(30.0), container.id.as_str());
        let gate = format!("/proc/{}/root/tmp/gate", container.pid);
        until("the gate", by(20.0), || fs::metadata(&gate).ok())?;
        for (at, takeover) in ALL.into_iter().enumerate() {
            let (exec, code) = (format!("e{at}"), 40 + u32::try_from(at)?);
            let _streams = kit.exec(&container, &exec, &waits_then(code))?;
            let pid = task.start(id, &exec)?;
            let tracer = Tracer::of(pid)?;
            if takeover == Takeover::Before {
                kill_shim(&container)?;
            }
            open_gate(&container)?;
            if takeover == Takeover::After {
                kill_shim(&container)?;
            }
            let status = task
                .wait(id, &exec)
                .with_context(|| format!("{takeover:?}"));
            ensure!(status?.exit_status == code, "{takeover:?}");
            ensure!(is_zombie(pid), "{takeover:?}: the tracer hides nothing");
            let state = task.state(id, &exec)?.status.value();
            ensure!(state == STOPPED, "{takeover:?}: {state}");
            let deleted = task.delete(id, &exec)?;
            ensure!(deleted.exit_status == code, "{takeover:?}: {deleted:?}");
            // The reaper sees it at last: that is no news, of nobody.
            drop(tracer);
            until("the dead to be buried", by(20.0), || {
                (!is_zombie(pid)).then_some(())
            })?;
        }
        let _streams = kit.exec(&container, "last", &Spec::sh("exit 3"))?;
        task.start(id, "last")?;
        ensure!(task.wait(id, "last")?.exit_status == 3, "the last one");
        Ok(())
    });
}

/// One of the pair that is traced when it is killed: to the other it is dead all the same.
#[test]
fn one_of_the_pair_whose_end_a_tracer_hides_is_followed() {
    for half in ["shim", "reaper"] {
        trial(60, move |kit| {
            let container = kit.running(&Spec::sh("exec sleep 999"))?;
            let (task, id) = (container.task().patient(30.0), container.id.clone());
            let waiting = {
                let (task, id) = (task.clone(), id.clone());
                std::thread::spawn(move || task.wait(&id, ""))
            };
            let pair = Pair::of(&container.shim)?;
            let victim = if half == "shim" {
                pair.shim
            } else {
                pair.reaper
            };
            let tracer = Tracer::of(u32::try_from(victim)?)?;
            pair.signal(victim, KILL)?;
            let state = task.state(&id, "").context(half)?.status.value();
            ensure!(state == 2, "{half}: {state}");
            ensure!(
                is_zombie(u32::try_from(victim)?),
                "{half}: nothing is hidden"
            );
            let next = Pair::of(&container.shim)?;
            ensure!(next.shim != victim && next.reaper != victim, "{next:?}");
            drop(tracer);
            task.kill(&id, "", 9, false)?;
            ensure!(waiting.join().unwrap()?.exit_status == 137, "{half}");
            Ok(())
        });
    }
}

/// Nobody asks for its State here, which looks for itself.
#[test]
fn an_init_whose_end_a_tracer_hides_is_told_of() {
    for (own_pids, takeover) in [false, true]
        .into_iter()
        .flat_map(|own| ALL.map(|takeover| (own, takeover)))
    {
        trial(60, move |kit| {
            let spec = Spec {
                own_pids,
                ..Spec::sh("mkfifo /tmp/gate; read x < /tmp/gate; exit 7")
            };
            let container = kit.running(&spec)?;
            let (task, id) = (container.task().patient(30.0), container.id.as_str());
            let gate = format!("/proc/{}/root/tmp/gate", container.pid);
            until("the gate", by(20.0), || fs::metadata(&gate).ok())?;
            // mkfifo's end was told to init before it is traced.
            let tracer = until("init to wait", by(20.0), || {
                let children = format!("/proc/{0}/task/{0}/children", container.pid);
                let none = fs::read_to_string(children).is_ok_and(|all| all.is_empty());
                none.then(|| Tracer::of(container.pid).ok()).flatten()
            })?;
            let waiter = {
                let (task, id) = (task.clone(), id.to_owned());
                std::thread::spawn(move || task.wait(&id, ""))
            };
            if takeover == Takeover::Before {
                kill_shim(&container)?;
            }
            open_gate(&container)?;
            if takeover == Takeover::After {
                kill_shim(&container)?;
            }
            let told = || format!("own pids {own_pids}, {takeover:?}");
            let status = waiter.join().unwrap().with_context(told)?.exit_status;
            ensure!(status == 7, "{}: status {status}", told());
            ensure!(is_zombie(container.pid), "{}: nothing is hidden", told());
            let deleted = task.delete(id, "").with_context(told)?;
            ensure!(deleted.exit_status == 7, "{}: {deleted:?}", told());
            drop(tracer);
            Ok(())
        });
    }
}

/// A shim that took over looked once a second, for as long as the tracer lived, whether an end was
/// still to come that had been told long ago, and warned of it each time.
#[test]
fn an_end_that_was_told_is_not_looked_for_by_the_next_shim() {
    trial(60, |kit| {
        let container = kit.running(&Spec::sh("exec sleep 999"))?;
        let tracer = Tracer::of(container.pid)?;
        container.task().kill(&container.id, "", 9, false)?;
        ensure!(container.exit_status()? == 137);
        ensure!(is_zombie(container.pid), "the tracer hides nothing");
        let pair = Pair::of(&container.shim)?;
        succeeded(&container.shim, &pair)?;
        let state = container.task().patient(20.0).state(&container.id, "")?;
        ensure!(state.status.value() == STOPPED, "{state:?}");
        let _before = container.bundle.log_text();
        // Three looks and more.
        std::thread::sleep(std::time::Duration::from_millis(3500));
        let said = container.bundle.log_text();
        let more = said.matches("has not said so").count();
        drop(tracer);
        ensure!(more < 2, "warned of {more} times");
        Ok(())
    });
}

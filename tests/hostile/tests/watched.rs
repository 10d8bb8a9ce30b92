//! A shim that does not take what it is asked is replaced, one that is merely slow is left
//! alone, and while nobody asks for anything nobody wakes up.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vigil_hostile::{Armed, FaultyRunc, Pair, succeeded, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::{FifoReader, Kit, Spec, by, until};

const STOP: i32 = 19;
/// Asks for the state while the shim of `pair` is stuck, which it is for good: only another
/// can answer, and that is there by then. Nobody but a watch can have replaced it, since
/// nobody ends it.
fn asked(container: &Container, pair: &Pair) -> Result<()> {
    let began = Instant::now();
    let task = container.task().patient(60.0);
    task.state(&container.id, "").context("State")?;
    println!("answered after {:?}", began.elapsed());
    let now = Pair::of(&container.shim)?;
    ensure!(now.shim != pair.shim, "who is stuck has answered");
    ensure!(now.reaper == pair.reaper, "the reaper was replaced");
    Ok(())
}

#[test]
fn one_that_stands_still_is_replaced() {
    trial(120, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        for _ in 0..2 {
            let pair = Pair::of(&container.shim)?;
            pair.signal(pair.shim, STOP)?;
            asked(&container, &pair)?;
        }
        Ok(())
    });
}

/// In an endless loop, or deadlocked, in the middle of a turn.
fn stuck(how: &'static str) {
    trial(120, move |kit| {
        let armed = Armed::of(kit)?;
        let container = kit.running(&Spec::sleeper())?;
        for _ in 0..2 {
            let pair = Pair::of(&container.shim)?;
            armed.arm("P1", how)?;
            let pausing = {
                let (task, id) = (container.task().patient(40.0), container.id.clone());
                std::thread::spawn(move || task.pause(&id))
            };
            until("it to be stuck", by(20.0), || {
                armed.reached("P1").then_some(())
            })?;
            asked(&container, &pair)?;
            pausing.join().unwrap().context("Pause")?;
            container.task().resume(&container.id)?;
        }
        Ok(())
    });
}

#[test]
fn one_in_an_endless_loop_is_replaced() {
    stuck("spin");
}

#[test]
fn one_that_is_deadlocked_is_replaced() {
    stuck("block");
}

/// Lets a process run for a moment of each second, by ptrace(2): of the kernel's own ways,
/// a quota of processor time lets one that mostly sleeps run up debts of many seconds, and
/// whoever is frozen or stopped is seen to be.
struct Slow {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Slow {
    const HELD: Duration = Duration::from_millis(900);
    const LET_GO: Duration = Duration::from_millis(50);

    fn of(pid: i32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || Self::hold(Pid::from_raw(pid), &told));
        Self { over, thread }
    }

    /// A process has one tracer, and that is a thread.
    fn hold(pid: Pid, over: &AtomicBool) -> Result<()> {
        ptrace::seize(pid, Options::empty()).context("seizing it")?;
        loop {
            ptrace::interrupt(pid).context("holding it")?;
            loop {
                match waitpid(pid, Some(WaitPidFlag::__WALL)).context("waiting for it")? {
                    WaitStatus::PtraceEvent(..) => break,
                    // On its way to it: a signal, which it gets.
                    WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal)?,
                    other => bail!("it is gone: {other:?}"),
                }
            }
            if over.load(Ordering::Relaxed) {
                return ptrace::detach(pid, None).context("letting it go");
            }
            std::thread::sleep(Self::HELD);
            ptrace::cont(pid, None)?;
            std::thread::sleep(Self::LET_GO);
        }
    }

    fn end(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// It takes each request, only late.
#[test]
fn one_that_is_slow_is_left_alone() {
    trial(90, |kit| {
        let container = kit.running(&Spec::sleeper())?;
        let pair = Pair::of(&container.shim)?;
        let slow = Slow::of(pair.shim);
        let (task, id) = (container.task().patient(30.0), container.id.as_str());
        let mut late = 0;
        let end = Instant::now() + Duration::from_mins(1);
        while late < 6 && Instant::now() < end {
            let began = Instant::now();
            task.state(id, "")?;
            late += u32::from(began.elapsed() > Duration::from_millis(300));
        }
        slow.end()?;
        ensure!(late == 6, "only {late} were late");
        ensure!(Pair::of(&container.shim)? == pair, "it was replaced");
        Ok(())
    });
}

#[test]
fn one_with_a_slow_runtime_is_left_alone() {
    trial(90, |kit| {
        let runc = FaultyRunc::new(kit.scratch.dir(), "start", "waits-then-done")?;
        let container = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
        let mut request = container.bundle.create_request();
        request.options = Some(runc.options()).into();
        container.task().create(&request)?;
        let pair = Pair::of(&container.shim)?;
        let starting = {
            let (task, id) = (container.task().patient(30.0), container.id.clone());
            std::thread::spawn(move || task.start(&id, ""))
        };
        runc.waits()?;
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            container.task().state(&container.id, "")?;
            std::thread::sleep(Duration::from_millis(100));
        }
        runc.go()?;
        starting.join().unwrap()?;
        ensure!(Pair::of(&container.shim)? == pair, "it was replaced");
        Ok(())
    });
}

/// How often the threads of a process were put on a processor and taken off it.
fn switches(pid: i32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let counts = status
            .lines()
            .filter(|line| line.contains("_ctxt_switches:"));
        sum += counts
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>();
    }
    Ok(sum)
}

/// A container whose output waits, half a fifo of it, with a client that is connected and
/// another that waits for the end.
struct Idle {
    name: &'static str,
    container: Container,
    pair: Pair,
}

impl Idle {
    fn new(kit: &Kit, name: &'static str, script: &str) -> Result<Self> {
        let mut container = kit.prepared(&Spec::sh(script), Stdio::Output)?;
        container.stdout = None;
        container
            .task()
            .create(&container.bundle.create_request())?;
        container.start()?;
        let pair = Pair::of(&container.shim)?;
        Ok(Self {
            name,
            container,
            pair,
        })
    }

    fn unread(&self) -> Result<usize> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = &self.container.bundle.stdio[1];
        let both = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(0o4000)
            .open(path)?;
        Ok(vigil_sys::fd::readable_bytes(&both)?)
    }
}

/// None of these processes wakes up in fifteen seconds: what looks again and again does so
/// every ten at least. What was begun before comes to its end first; on a busy machine it may
/// take its time.
fn sleep_well(idle: &[Idle]) -> Result<()> {
    let all: Vec<(String, i32)> = idle
        .iter()
        .flat_map(|one| {
            let name = one.name;
            [
                (format!("reaper of the {name} one"), one.pair.reaper),
                (format!("shim of the {name} one"), one.pair.shim),
            ]
        })
        .collect();
    let count = || -> Result<Vec<u64>> { all.iter().map(|(_, pid)| switches(*pid)).collect() };
    // The longest of these waits is for what is left of an exit, or of a pipe: ten seconds.
    std::thread::sleep(Duration::from_secs(11));
    let mut before = count()?;
    until("a second in which nobody wakes up", by(30.0), || {
        std::thread::sleep(Duration::from_secs(1));
        let now = count().ok()?;
        (std::mem::replace(&mut before, now.clone()) == now).then_some(())
    })?;
    std::thread::sleep(Duration::from_secs(15));
    let after = count()?;
    for (((name, pid), had), has) in all.iter().zip(&before).zip(&after) {
        ensure!(had == has, "{name}, {pid}, woke up {} times", has - had);
    }
    Ok(())
}

#[test]
fn an_idle_pair_sleeps_before_and_after_a_takeover() {
    trial(240, |kit| {
        let words = "seq 1 6000";
        let running = format!("{words}; exec sleep 1000");
        // Two as they are, and two after a takeover, all at the same time.
        let mut idle = vec![
            Idle::new(kit, "running", &running)?,
            Idle::new(kit, "ended", words)?,
            Idle::new(kit, "running and taken over", &running)?,
            Idle::new(kit, "ended and taken over", words)?,
        ];
        let waiting: Vec<_> = idle
            .iter()
            .map(|one| {
                let (task, id) = (
                    one.container.task().patient(200.0),
                    one.container.id.clone(),
                );
                std::thread::spawn(move || task.wait(&id, ""))
            })
            .collect();
        for one in &idle {
            until("half a fifo", by(20.0), || {
                (one.unread().ok()? > 20_000).then_some(())
            })
            .context(one.name)?;
        }
        for one in &mut idle[2..] {
            one.pair = succeeded(&one.container.shim, &one.pair)?;
        }
        sleep_well(&idle)?;
        for one in &idle {
            let reader = FifoReader::open(one.container.bundle.stdio[1].as_ref())?;
            let _ = one.container.task().kill(&one.container.id, "", 9, false);
            let (bytes, _) = reader.to_end(by(20.0))?;
            ensure!(vigil_hostile::counts(&bytes)? == 6000, "{}", one.name);
        }
        for one in waiting {
            one.join().unwrap()?;
        }
        Ok(())
    });
}

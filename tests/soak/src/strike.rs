//! The blow: finds the two processes of a container and kills them as planned.
//!
//! Through descriptors opened and checked beforehand; it must never hit anybody else.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vigil_lab::process::{Process, signal_if};
use vigil_lab::{Task, by, until};
use vigil_sys::pidfd;

use crate::plan::{Blow, Victims};
use crate::story::Story;

/// One of a pair.
#[derive(Debug)]
struct Target {
    pid: i32,
    fd: OwnedFd,
}

/// For a shim to be there: one that was killed has a successor.
const SUCCESSION: f64 = 20.0;

/// Reaper and shim of one container.
#[derive(Debug)]
pub struct Pair {
    reaper: Target,
    shim: Target,
    /// The shim that was struck last: it may take its time to be gone.
    struck: AtomicI32,
}

/// The runtime's own processes for a container id, `start` among them and `delete` not.
#[must_use]
pub fn processes(id: &str) -> Vec<Process> {
    let word = format!("-id {id} ");
    let mut found = Process::marked(id);
    found.retain(|p| {
        p.cmdline.contains("containerd-shim")
            && format!("{} ", p.cmdline).contains(&word)
            && !p.cmdline.ends_with(" delete")
    });
    found
}

fn target(process: &Process) -> Option<Target> {
    let fd = pidfd::open(u32::try_from(process.pid).ok()?).ok()?;
    let now = Process::read(process.pid)?;
    (now.cmdline == process.cmdline).then_some(Target {
        pid: process.pid,
        fd,
    })
}

impl Pair {
    /// Finds out by Connect, which names the reaper; also before Create.
    pub fn of(task: &Task, id: &str) -> Result<Self> {
        let reaper = i32::try_from(task.connect_task(id)?.shim_pid)?;
        // One that is just being executed has no arguments to be found by, and one that
        // sleeps has others than a moment ago.
        let found = until("reaper and shim", by(5.0), || Self::below(reaper, id).ok());
        found.with_context(|| format!("there are {:?}", processes(id)))
    }

    fn below(reaper: i32, id: &str) -> Result<Self> {
        let found = processes(id);
        ensure!(found.len() == 2, "not two");
        let (mut reapers, mut shims): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|p| p.pid == reaper);
        let reaper = reapers.pop().context("Connect names a stranger")?;
        let shim = shims.pop().context("no shim beside its reaper")?;
        Ok(Self {
            reaper: target(&reaper).context("the reaper has gone")?,
            shim: target(&shim).context("the shim has gone")?,
            struck: AtomicI32::new(0),
        })
    }

    /// Whether any of those that are to be killed still lives.
    #[must_use]
    pub fn lives(&self, victims: Victims) -> bool {
        let lives = |target: &Target| !pidfd::is_dead(&target.fd).unwrap_or(true);
        match victims {
            Victims::Both => lives(&self.reaper) && lives(&self.shim),
            Victims::Shim => lives(&self.shim),
            Victims::Reaper => lives(&self.reaper),
        }
    }

    /// Kills; nothing is waited for.
    pub fn strike(&self, blow: &Blow, story: &Story) {
        let kill = |name: &str, target: &Target| {
            let sent = pidfd::send_signal(&target.fd, 9);
            story.add(format!("SIGKILL to the {name} {}: {sent:?}", target.pid));
        };
        match blow.victims {
            Victims::Shim => kill("shim", &self.shim),
            Victims::Reaper => kill("reaper", &self.reaper),
            Victims::Both => {
                let mut both = [("reaper", &self.reaper), ("shim", &self.shim)];
                if !blow.reaper_first {
                    both.reverse();
                }
                kill(both[0].0, both[0].1);
                pause(blow.gap_us);
                kill(both[1].0, both[1].1);
            }
        }
    }

    /// Pid of the reaper.
    #[must_use]
    pub fn reaper(&self) -> i32 {
        self.reaper.pid
    }

    /// Pid of the shim that serves now, or is about to.
    #[must_use]
    pub fn serving(&self) -> Option<i32> {
        let reaper = self.reaper.pid;
        let children = format!("/proc/{reaper}/task/{reaper}/children");
        let children = std::fs::read_to_string(children).ok()?;
        let children = children.split_ascii_whitespace();
        // What a dead shim has left to the reaper has another name: init, runc, a worker.
        let is_shim = |pid: &i32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.starts_with("containerd-shim")
                && Process::read(*pid).is_some_and(|p| p.state != 'Z')
        };
        children.filter_map(|pid| pid.parse().ok()).find(is_shim)
    }

    /// Kills the shim that serves now, or the one that takes over; gives the moment.
    /// `None` if there is none any more.
    pub fn strike_the_shim(&self, story: &Story) -> Option<Instant> {
        until("", by(SUCCESSION), || {
            if pidfd::is_dead(&self.reaper.fd).unwrap_or(true) {
                return Some(None);
            }
            let pid = self.serving()?;
            if pid == self.struck.load(Ordering::SeqCst) {
                return None;
            }
            let fd = pidfd::open(u32::try_from(pid).ok()?).ok()?;
            // Still this one's child: nobody else has got its number meanwhile.
            if self.serving() != Some(pid) {
                return None;
            }
            let at = Instant::now();
            let sent = pidfd::send_signal(&fd, 9);
            story.add(format!("SIGKILL to the shim {pid}: {sent:?}"));
            self.struck.store(pid, Ordering::SeqCst);
            sent.is_ok().then_some(Some(at))
        })
        .ok()
        .flatten()
    }

    /// Waits until both are gone.
    pub fn gone(&self) -> Result<()> {
        for (name, target) in [("reaper", &self.reaper), ("shim", &self.shim)] {
            until(&format!("the {name} {} to go", target.pid), by(5.0), || {
                pidfd::is_dead(&target.fd).ok()?.then_some(())
            })?;
        }
        Ok(())
    }
}

/// Kills everything that runs as the runtime for `id` until there is nothing: for a blow
/// while `start` still makes the pair. How many it has hit. With `spare_start` not `start`
/// itself: when that dies too, containerd runs no `delete`, and nobody is left to clean up.
pub fn all_of(id: &str, spare_start: bool, story: &Story) -> usize {
    let mut hit = 0;
    // What was being forked when we looked is found at the next look.
    for _ in 0..20 {
        let mut found = processes(id);
        found.retain(|p| !(spare_start && below_containerd(p)));
        if found.is_empty() {
            break;
        }
        for process in found {
            let sent = signal_if(process.pid, 9, |now| now.cmdline == process.cmdline);
            story.add(format!("SIGKILL to {}: {sent}", process.pid));
            hit += usize::from(sent);
        }
    }
    hit
}

/// Whether a process was run by containerd itself, as `start` is; reapers lose their parent.
fn below_containerd(process: &Process) -> bool {
    let parent = process.field("PPid").and_then(|pid| pid.parse().ok());
    parent
        .and_then(Process::read)
        .is_some_and(|p| p.cmdline.contains("containerd -c "))
}

/// Kills the runc that runs for `id`, if one does.
pub fn runc_of(id: &str, story: &Story) {
    for process in Process::marked(id) {
        let is_runc = |p: &Process| {
            p.cmdline.contains("runc ")
                && p.cmdline.contains(id)
                && !p.cmdline.contains("containerd-shim")
        };
        if is_runc(&process) {
            let sent = signal_if(process.pid, 9, is_runc);
            story.add(format!(
                "SIGKILL to runc {}: {sent} [{}]",
                process.pid, process.cmdline
            ));
        }
    }
}

/// A pause that is right to some microseconds.
pub fn pause(us: u64) {
    let end = Instant::now() + Duration::from_micros(us);
    if us > 2_000 {
        std::thread::sleep(Duration::from_micros(us - 1_000));
    }
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

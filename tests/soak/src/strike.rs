//! The blow: finds the two processes of a container and kills them as planned.
//!
//! Through descriptors opened and checked beforehand; it must never hit anybody else.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

/// So many looks must find nobody …
const LOOKS: u32 = 3;
/// … with this between two of them.
const LOOK_US: u64 = 3_000;

/// For a shim to be there: one that was killed has a successor.
const SUCCESSION: f64 = 20.0;

/// Reaper and shim of one container.
#[derive(Debug)]
pub struct Pair {
    id: String,
    now: Mutex<Arc<Two>>,
    /// The shim that was struck last: it may take its time to be gone.
    struck: AtomicI32,
}

/// As they were when they were looked at last.
#[derive(Debug)]
struct Two {
    reaper: Target,
    shim: Target,
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
        let two = Two {
            reaper: target(&reaper).context("the reaper has gone")?,
            shim: target(&shim).context("the shim has gone")?,
        };
        Ok(Self {
            id: id.to_owned(),
            now: Mutex::new(Arc::new(two)),
            struck: AtomicI32::new(0),
        })
    }

    fn now(&self) -> Arc<Two> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks for the two that are there now: whoever answers names a reaper that lives, and that
    /// has a shim that lives. Gives what is missing, if it is.
    pub fn renew(&self, task: &Task) -> Result<()> {
        let named = i32::try_from(task.connect_task(&self.id)?.shim_pid)?;
        let reaper = Process::read(named).and_then(|p| target(&p));
        let reaper = reaper.with_context(|| format!("the reaper {named} is not there"))?;
        let serving = shim_of(named).and_then(Process::read);
        let shim = serving.with_context(|| format!("the reaper {named} has no shim"))?;
        let word = format!("-id {} ", self.id);
        ensure!(
            format!("{} ", shim.cmdline).contains(&word),
            "{} is not its shim: {}",
            shim.pid,
            shim.cmdline
        );
        let shim = target(&shim).context("the shim has gone")?;
        for (name, one) in [("reaper", &reaper), ("shim", &shim)] {
            ensure!(!pidfd::is_dead(&one.fd)?, "the {name} {} is dead", one.pid);
        }
        let two = Arc::new(Two { reaper, shim });
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = two;
        Ok(())
    }

    /// Whether any of those that are to be killed still lives.
    #[must_use]
    pub fn lives(&self, victims: Victims) -> bool {
        let lives = |target: &Target| !pidfd::is_dead(&target.fd).unwrap_or(true);
        let now = self.now();
        match victims {
            Victims::Both => lives(&now.reaper) && lives(&now.shim),
            Victims::Shim => lives(&now.shim),
            Victims::Reaper | Victims::Alternating => lives(&now.reaper),
        }
    }

    /// Kills; nothing is waited for.
    pub fn strike(&self, blow: &Blow, story: &Story) {
        let kill = |name: &str, target: &Target| {
            let sent = pidfd::send_signal(&target.fd, 9);
            story.add(format!("SIGKILL to the {name} {}: {sent:?}", target.pid));
        };
        let now = self.now();
        match blow.victims {
            Victims::Shim => kill("shim", &now.shim),
            Victims::Reaper | Victims::Alternating => kill("reaper", &now.reaper),
            Victims::Both => {
                let mut both = [("reaper", &now.reaper), ("shim", &now.shim)];
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
        self.now().reaper.pid
    }

    /// Pid of the shim that serves now, or is about to.
    #[must_use]
    pub fn serving(&self) -> Option<i32> {
        shim_of(self.reaper())
    }

    /// Kills the reaper that there was at the last look; gives the moment. `None` if it has gone.
    pub fn strike_the_reaper(&self, story: &Story) -> Option<Instant> {
        let now = self.now();
        if pidfd::is_dead(&now.reaper.fd).unwrap_or(true) {
            return None;
        }
        let at = Instant::now();
        let sent = pidfd::send_signal(&now.reaper.fd, 9);
        story.add(format!(
            "SIGKILL to the reaper {}: {sent:?}",
            now.reaper.pid
        ));
        sent.is_ok().then_some(at)
    }

    /// Kills the shim that serves now, or the one that takes over; gives the moment.
    /// `None` if there is none any more.
    pub fn strike_the_shim(&self, story: &Story) -> Option<Instant> {
        until("", by(SUCCESSION), || {
            if pidfd::is_dead(&self.now().reaper.fd).unwrap_or(true) {
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
        let now = self.now();
        for (name, target) in [("reaper", &now.reaper), ("shim", &now.shim)] {
            until(&format!("the {name} {} to go", target.pid), by(5.0), || {
                pidfd::is_dead(&target.fd).ok()?.then_some(())
            })?;
        }
        Ok(())
    }
}

fn shim_of(reaper: i32) -> Option<i32> {
    let children = format!("/proc/{reaper}/task/{reaper}/children");
    let children = std::fs::read_to_string(children).ok()?;
    let children = children.split_ascii_whitespace();
    // What a dead shim has left to the reaper has another name: init, runc, a worker.
    let is_shim = |pid: &i32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.starts_with("containerd-shim") && Process::read(*pid).is_some_and(|p| p.state != 'Z')
    };
    children.filter_map(|pid| pid.parse().ok()).find(is_shim)
}

/// What may come of two deaths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nobody is left, and the connection has dropped.
    Gone,
    /// There are two again, and the connection stays.
    Healed,
}

/// Nothing between the two may last longer.
const BETWEEN: f64 = 5.0;

/// Waits for one of them, and says how long that took.
pub fn which_end(pair: &Pair, task: &Task, id: &str) -> Result<(End, Duration)> {
    let began = Instant::now();
    let asking = task.patient(BETWEEN);
    let mut missing = String::new();
    let (mut late, mut nobody) = (false, 0);
    let end = until("an end, or two again", by(20.0), || {
        let closed = task.client().closed();
        late |= began.elapsed().as_secs_f64() > BETWEEN;
        if closed {
            nobody = if processes(id).is_empty() {
                nobody + 1
            } else {
                0
            };
            return (nobody == LOOKS).then_some(End::Gone);
        }
        match pair.renew(&asking) {
            Ok(()) => Some(End::Healed),
            Err(error) => {
                missing = format!("{error:#}");
                None
            }
        }
    });
    let end = end.with_context(|| {
        let (closed, all) = (task.client().closed(), processes(id));
        format!("closed: {closed}; {missing}; there are {all:?}")
    })?;
    ensure!(!late, "{end:?} only after {:?}", began.elapsed());
    Ok((end, began.elapsed()))
}

/// Waits until nothing runs as the runtime for `id`, whoever it became.
pub fn nobody_left(id: &str) -> Result<()> {
    let mut nobody = 0;
    let gone = until("both to go", by(5.0), || {
        nobody = if processes(id).is_empty() {
            nobody + 1
        } else {
            0
        };
        (nobody == LOOKS).then_some(())
    });
    gone.with_context(|| format!("there are {:?}", processes(id)))
}

/// Kills everything that runs as the runtime for `id` until there is nothing: for a blow
/// while `start` still makes the pair. How many it has hit. With `spare_start` not `start`
/// itself: when that dies too, containerd runs no `delete`, and nobody is left to clean up.
pub fn all_of(id: &str, spare_start: bool, story: &Story) -> usize {
    let mut hit = 0;
    let mut nobody = 0;
    // What was being forked when we looked is found at the next look; and who is just being executed, as
    // a shim that becomes the reaper is, has no arguments to be found by.
    for _ in 0..40 {
        let mut found = processes(id);
        found.retain(|p| !(spare_start && below_containerd(p)));
        nobody = if found.is_empty() { nobody + 1 } else { 0 };
        if nobody == LOOKS {
            break;
        }
        if nobody > 0 {
            pause(LOOK_US);
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

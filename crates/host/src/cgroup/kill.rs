//! Signals to the whole container. Killing is a step called again until the
//! cgroup is empty: `cgroup.kill` where there is a v2 tree, else freeze so that
//! nothing forks away, SIGKILL to each through a pidfd whose membership was
//! checked again, thaw so that they can die.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use vigil_reconcile::Kin;
use vigil_sys::{Errno, pidfd};

use super::{Cgroup, Freeze, Mode, tree};
use crate::kin::Family;
use crate::{Error, Result, proc};

/// `SIGKILL`.
const KILL: i32 = 9;
/// Steps in which a freeze may complete before the signals are sent anyway: a
/// process in uninterruptible sleep keeps it from completing for ever.
const FREEZE_STEPS: u32 = 5;
/// Steps given to the killed to die before everything is sent again.
const DEATH_STEPS: u32 = 20;
/// Passes over the list when other signals are sent to all: a bound on the race
/// with a process that forks.
const PASSES: u32 = 5;

#[derive(Debug, Clone, Copy, Default)]
enum Stage {
    /// Nothing sent yet, or not to all.
    #[default]
    Begin,
    /// The freezer was asked, so many steps ago.
    Freezing(u32),
    /// Everyone was sent SIGKILL, so many steps ago.
    Sent(u32),
}

/// How far a kill has come; one per attempt to empty the cgroup.
#[derive(Debug, Default)]
pub struct Killing {
    stage: Stage,
    atomic_tried: bool,
}

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of ours runs.
    Empty,
    /// Something does; step again in a few milliseconds.
    Waiting,
}

/// Outcome of a signal to all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Processes it was delivered to.
    pub delivered: usize,
    /// Processes it was refused for, or that left the cgroup just then.
    pub left_out: usize,
}

impl Cgroup {
    /// One step towards an empty cgroup. Touches only what is ours; waits for
    /// nothing.
    pub fn kill_step(&self, killing: &mut Killing) -> Result<Progress> {
        if !self.populated()? {
            self.thaw_all()?;
            return Ok(Progress::Empty);
        }
        match killing.stage {
            Stage::Begin => {
                if !killing.atomic_tried {
                    killing.atomic_tried = true;
                    if self.kill_at_once()? {
                        self.thaw_all()?;
                        killing.stage = Stage::Sent(0);
                        return self.progress();
                    }
                }
                killing.stage = if self.freeze_for_kill()? {
                    Stage::Freezing(0)
                } else {
                    self.send_kill()?
                };
                self.advance(killing)
            }
            Stage::Freezing(_) => self.advance(killing),
            Stage::Sent(steps) => {
                killing.stage = if steps < DEATH_STEPS {
                    Stage::Sent(steps + 1)
                } else {
                    Stage::Begin
                };
                Ok(Progress::Waiting)
            }
        }
    }

    /// Steps until the cgroup is empty or the deadline passes. For callers
    /// that may block: `delete`, and workers.
    pub fn kill_until(&self, deadline: Instant) -> Result<Progress> {
        let mut killing = Killing::default();
        let mut pause = Duration::from_micros(200);
        loop {
            if self.kill_step(&mut killing)? == Progress::Empty {
                return Ok(Progress::Empty);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Dead or not, nothing of ours is left standing still.
                self.thaw_all()?;
                return Ok(Progress::Waiting);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// After a freeze was asked: sends once everyone stands still.
    fn advance(&self, killing: &mut Killing) -> Result<Progress> {
        if let Stage::Freezing(steps) = killing.stage {
            let still = self.freeze_state()? == Some(Freeze::Frozen);
            killing.stage = if still || steps >= FREEZE_STEPS {
                self.send_kill()?
            } else {
                Stage::Freezing(steps + 1)
            };
        }
        self.progress()
    }

    fn send_kill(&self) -> Result<Stage> {
        let sent = self.signal_each(KILL, &mut BTreeSet::new(), None);
        // Thaw whatever happened: a frozen container helps nobody.
        self.thaw_all()?;
        sent?;
        Ok(Stage::Sent(0))
    }

    fn progress(&self) -> Result<Progress> {
        Ok(if self.populated()? {
            Progress::Waiting
        } else {
            Progress::Empty
        })
    }

    /// `cgroup.kill` in a v2 tree of ours, also in the idle one of a hybrid
    /// host. `false` if there is none, or the kernel is older than 5.14.
    fn kill_at_once(&self) -> Result<bool> {
        for group in self.ours().filter(|g| g.hierarchy.is_empty()) {
            match tree::write(&group.dir, "cgroup.kill", "1") {
                Ok(written) => return Ok(written),
                // Threaded cgroups cannot be killed this way.
                Err(Error::File { source, .. })
                    if source.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    /// Whether a freeze is under way that a kill may wait for.
    fn freeze_for_kill(&self) -> Result<bool> {
        let freezer = self.with("freezer").is_some_and(|g| g.ours);
        // v2 kills what is frozen, and freezes no better than it kills.
        if freezer && self.mode == Mode::V1 && self.freeze_state()?.is_some() {
            self.request_freeze(true)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Sends a signal to every process of the container, passing over the list
    /// until it holds nobody new. A frozen one gets it when it is thawed.
    pub fn signal_all(&self, signal: i32) -> Result<Sent> {
        self.signal_but(signal, BTreeSet::new(), None)
    }

    /// The same for those of this family, and not for one who was sent it already: a second
    /// SIGTERM means something else to many programs than the first.
    pub fn signal_others(&self, signal: i32, told: u32, family: &Family) -> Result<Sent> {
        self.signal_but(signal, BTreeSet::from([told]), Some(family))
    }

    fn signal_but(
        &self,
        signal: i32,
        mut done: BTreeSet<u32>,
        family: Option<&Family>,
    ) -> Result<Sent> {
        let mut all = Sent::default();
        for _ in 0..PASSES {
            let sent = self.signal_each(signal, &mut done, family)?;
            all.delivered += sent.delivered;
            all.left_out += sent.left_out;
            if sent == Sent::default() {
                break;
            }
        }
        Ok(all)
    }

    /// One pass over those not in `done`. They are judged together before the first is sent
    /// anything: each line of ancestors is followed once, and whose parent the signal ends is
    /// known by it still.
    fn signal_each(
        &self,
        signal: i32,
        done: &mut BTreeSet<u32>,
        family: Option<&Family>,
    ) -> Result<Sent> {
        let mut sent = Sent::default();
        let judged = match family {
            Some(family) => {
                let pids = self.our_pids()?;
                if pids.iter().all(|pid| done.contains(pid)) {
                    return Ok(sent);
                }
                Some(family.dated(&pids)?)
            }
            None => None,
        };
        for group in self.ours() {
            for pid in tree::pids(&group.dir)? {
                if done.contains(&pid) {
                    continue;
                }
                if judged.as_ref().is_some_and(|all| !all.contains_key(&pid)) {
                    // It came just now: the next pass judges it.
                    sent.left_out += 1;
                    continue;
                }
                done.insert(pid);
                let fd = match pidfd::open(pid) {
                    Ok(fd) => fd,
                    Err(Errno::ESRCH) => continue,
                    Err(source) => {
                        return Err(Error::Kernel {
                            op: "open a pidfd of process",
                            what: pid.to_string(),
                            source,
                        });
                    }
                };
                // Asked after the descriptor was opened: if the number has
                // changed hands before that, the process it means now is
                // judged by its own cgroup; if after, the descriptor is dead.
                if !group.holds(pid)? || !is_ours(pid, judged.as_ref())? {
                    sent.left_out += 1;
                    continue;
                }
                match pidfd::send_signal(&fd, signal) {
                    Ok(()) => sent.delivered += 1,
                    Err(Errno::ESRCH) => {}
                    Err(Errno::EPERM) => sent.left_out += 1,
                    Err(source) => {
                        return Err(Error::Kernel {
                            op: "send a signal to process",
                            what: pid.to_string(),
                            source,
                        });
                    }
                }
            }
        }
        Ok(sent)
    }
}

/// Whether the process that has this number now is one that was judged to be the container's, if
/// they were judged.
fn is_ours(pid: u32, judged: Option<&BTreeMap<u32, (u64, Kin)>>) -> Result<bool> {
    let Some(judged) = judged else {
        return Ok(true);
    };
    let now = proc::stat(pid)?.map(|stat| (stat.start_ticks, Kin::Ours));
    Ok(now.is_some() && judged.get(&pid).copied() == now)
}

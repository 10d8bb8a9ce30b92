//! Ends of registered processes that are no children of ours: they were made while another was the
//! reaper. Each is told by the descriptor that was held of it since its start, and how it
//! ended by the kernel, or by `/proc` while it is somebody's zombie. Never makes a status up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use vigil_journal::exits::{Death, Slot, Way};
use vigil_relay::estate;
use vigil_relay::tokens::token_of_end;
use vigil_sys::epoll::{Epoll, Interest, Watched};
use vigil_sys::{Errno, pidfd, process};

use crate::renew::number;
use crate::turn::Reaper;

/// How long a dead process may lie about before nobody is expected to say any more how it died;
/// and between two looks at one.
const UNSAID: Duration = Duration::from_millis(400);
const LOOK: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ends(Vec<End>);

#[derive(Debug)]
struct End {
    pin: u32,
    /// Its number; whoever else is pinned there later is another.
    pid: u32,
    pidfd: Watched<OwnedFd>,
    /// When it was seen to be dead, and when it is looked at next.
    dead: Option<(Instant, Instant)>,
}

impl Ends {
    /// One more.
    pub(crate) fn add(&mut self, epoll: &Epoll, pin: u32, pid: u32, pidfd: OwnedFd) {
        let mut pidfd = Watched::not_yet(epoll, pidfd, token_of_end(pin));
        // What the kernel has no room to tell of is looked at all the same.
        let now = Instant::now();
        let dead = pidfd.want(Interest::READ).err().map(|_| (now, now));
        self.0.push(End {
            pin,
            pid,
            pidfd,
            dead,
        });
    }

    /// It has ended.
    pub(crate) fn is_over(&mut self, pin: u32) {
        let now = Instant::now();
        for end in self.0.iter_mut().filter(|end| end.pin == pin) {
            // Told of once; a zombie's descriptor stays readable.
            let _ = end.pidfd.want(Interest::default());
            end.dead.get_or_insert((now, now));
        }
    }

    /// What another program is to know of them.
    pub(crate) fn leave(&self) -> Vec<estate::End> {
        let all = self.0.iter();
        let end = |end: &End| estate::End {
            pin: end.pin,
            pidfd: number(&end.pidfd),
        };
        all.map(end).collect()
    }

    /// Their descriptors.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|end| end.pidfd.as_fd())
    }

    /// When to look next.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.0.iter().filter_map(|end| Some(end.dead?.1)).min()
    }
}

/// How a process ended, as far as anybody says.
enum Fate {
    Lives,
    Ended(i32, Way),
    /// It is dead, and who inherited it may have more to say.
    Unsaid,
    /// Nobody ever will.
    Gone,
}

fn fate(pidfd: &Watched<OwnedFd>, pid: u32, start_ticks: u64) -> Fate {
    if pidfd::is_dead(pidfd) != Ok(true) {
        return Fate::Lives;
    }
    // In this order: reaped between the two, the kernel is asked once more.
    let said = || pidfd::exit_status(pidfd).ok().flatten();
    let last = pidfd::send_signal(pidfd, 0) == Err(Errno::ESRCH);
    if let Some(status) = said() {
        return Fate::Ended(status, Way::Kept);
    }
    if let Ok(Some(status)) = process::zombie_status(pid, start_ticks) {
        return Fate::Ended(status, Way::Zombie);
    }
    match said() {
        Some(status) => Fate::Ended(status, Way::Kept),
        None if last => Fate::Gone,
        None => Fate::Unsaid,
    }
}

impl Reaper<'_> {
    /// Records those of which it is known how they ended, and, after a while, those of which it
    /// is not.
    pub(crate) fn learn_ends(&mut self) {
        let now = Instant::now();
        let mut told = false;
        let deaths = &mut self.deaths;
        self.ends.0.retain_mut(|end| {
            let Some((since, look)) = end.dead.filter(|(_, look)| *look <= now) else {
                return true;
            };
            let slot = usize::try_from(end.pin).ok();
            let slot = slot.and_then(|pin| deaths.exits().slot(pin));
            let Some(Slot::Waiting { pid, start_ticks }) = slot else {
                // Nobody waits for it any more, or it is recorded.
                return false;
            };
            if pid != end.pid {
                return false;
            }
            let fate = fate(&end.pidfd, pid, start_ticks);
            let (status, way) = match fate {
                Fate::Ended(status, way) => (status, way),
                Fate::Unsaid | Fate::Lives if now.duration_since(since) < UNSAID => {
                    end.dead = Some((since, look.max(now) + LOOK));
                    return true;
                }
                // One of which the kernel does not tell us.
                Fate::Lives => {
                    end.dead = Some((since, now + UNSAID));
                    return true;
                }
                Fate::Unsaid | Fate::Gone => (0, Way::Unseen),
            };
            let death = Death::seen_now(pid, start_ticks, status);
            deaths.record(Death { way, ..death });
            told = true;
            false
        });
        if told {
            let _ = self.bell.ring();
        }
    }
}

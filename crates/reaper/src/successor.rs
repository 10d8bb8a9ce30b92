//! What happens when the shim dies or makes no progress: another is started in
//! its place, within a budget. It finds the same listener, connections, slots
//! and exit records; requests that were not answered are the first it gets.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use vigil_relay::control::ToShim;
use vigil_sys::epoll::{Interest, Watched};
use vigil_sys::{fd, scm};

use crate::conn::Conn;
use crate::turn::{self, Reaper};
use crate::{Error, start_shim, step, write_pair};

/// Deaths in [`WINDOW`] after which no other shim is started: it would die too.
const DEATHS_MAX: usize = 5;
const WINDOW: Duration = Duration::from_mins(1);
/// A request the shim has lived with for so long is not what kills it.
const PROVEN: Duration = Duration::from_secs(5);
/// Between two looks at whether the shim takes what it is sent.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that saw no progress, after which it is stuck.
const LOOKS: u32 = 2;

/// When shims died.
#[derive(Debug, Default)]
pub(crate) struct Deaths([Option<Instant>; DEATHS_MAX]);

impl Deaths {
    /// Notes one more; `false` if they are too many.
    pub(crate) fn allow(&mut self, now: Instant) -> bool {
        self.0.rotate_left(1);
        self.0[DEATHS_MAX - 1] = Some(now);
        self.0[0].is_none_or(|first| now.duration_since(first) > WINDOW)
    }
}

/// Whether the shim takes what it is sent. Armed by a request alone: no
/// request, no timer.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    /// The next look.
    pub(crate) at: Option<Instant>,
    /// What had been taken by the last one.
    taken: u64,
    idle_looks: u32,
}

impl Reaper<'_> {
    /// Starts another shim in place of the one that died.
    pub(crate) fn succeed(&mut self) -> Result<(), Error> {
        let (control, theirs) = step("make a control socket", scm::pair_seqpacket())?;
        let ready = step("open /dev/null", fd::null())?;
        self.takeovers = self.takeovers.saturating_add(1);
        let shim = start_shim(self.config, &theirs, &self.bell, &ready, self.takeovers)?;
        self.shim = shim;
        self.shim_lives = true;
        self.serving = false;
        self.watchdog = Watchdog::default();
        let control = Watched::new(&self.epoll, control, turn::CONTROL, Interest::READ);
        self.control = Some(step("watch the control socket", control)?);
        write_pair(self.config, self.boot, &self.shim)?;
        Ok(())
    }

    /// Before the next shim: what the dead one wrote counts to its end, half an
    /// answer does not, and what it did not answer is kept for the next.
    pub(crate) fn keep_unanswered(&mut self) {
        let now = Instant::now();
        for conn in &mut self.conns {
            conn.shim_died(now, PROVEN);
        }
    }

    /// The shim serves from now on: it gets a pair for each connection that has
    /// none. One for which no descriptor is to be had is tried again later.
    pub(crate) fn hand_out(&mut self) {
        self.serving = true;
        for at in 0..self.conns.len() {
            if !self.conns[at].waits() {
                continue;
            }
            let number = self.conns[at].number;
            let handed = scm::pair_stream().and_then(|(pair, theirs)| {
                let conn = ToShim::Conn { conn: number };
                self.tell(&conn, &[theirs.as_fd(), self.conns[at].own()]);
                self.conns[at].give(&self.epoll, pair)
            });
            if handed.is_err() {
                self.rest();
                return;
            }
        }
        self.arm();
    }

    /// A request is with the shim, or on its way: it is looked at later whether
    /// it was taken.
    pub(crate) fn arm(&mut self) {
        if self.watchdog.at.is_none() && self.shim_lives && self.unread() {
            self.watchdog = Watchdog {
                at: Some(Instant::now() + LOOK),
                taken: self.progress,
                idle_looks: 0,
            };
        }
    }

    fn unread(&self) -> bool {
        self.conns.iter().any(Conn::unread_by_shim)
    }

    /// One look. A shim that has taken nothing of what waits for it, in all
    /// that time, is stuck (stopped, in an endless loop, deadlocked): it is
    /// ended, and its death does the rest.
    pub(crate) fn look_at_the_shim(&mut self) {
        if !self.shim_lives || !self.unread() {
            self.watchdog = Watchdog::default();
            return;
        }
        let dog = &mut self.watchdog;
        if dog.taken == self.progress {
            dog.idle_looks += 1;
        } else {
            dog.taken = self.progress;
            dog.idle_looks = 0;
        }
        if dog.idle_looks >= LOOKS {
            self.kill_shim();
            self.watchdog = Watchdog::default();
            return;
        }
        dog.at = Some(Instant::now() + LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_death_in_a_minute_is_the_last() {
        let begun = Instant::now();
        let at = |secs| begun + Duration::from_secs(secs);
        let mut deaths = Deaths::default();
        for second in [0, 10, 20, 30] {
            assert!(deaths.allow(at(second)));
        }
        assert!(!deaths.allow(at(40)));
        let mut deaths = Deaths::default();
        for second in [0, 10, 20, 30, 61, 80, 81] {
            assert!(deaths.allow(at(second)), "{second}");
        }
        assert!(!deaths.allow(at(82)));
    }
}

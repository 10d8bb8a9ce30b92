//! What happens when the shim dies or makes no progress: another is started in
//! its place, within a budget. It finds the same listener, connections, slots
//! and exit records; requests that were not answered are the first it gets.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use vigil_relay::control::ToShim;
use vigil_relay::succession::Watchdog;
use vigil_sys::epoll::{Interest, Watched};
use vigil_sys::{fd, process, scm};

use crate::conn::Conn;
use crate::turn::{self, Reaper};
use crate::{Error, start_shim, step, write_pair};

/// A successor has this long between two signs of life until it serves.
const READY: Duration = Duration::from_secs(10);
/// For a control socket, its end, a null, a pidfd and what spawning needs.
const SPARE: usize = 10;

pub(crate) fn ready_by() -> Instant {
    Instant::now() + READY
}

/// As many as can be had: with none left a dead shim would have no successor.
pub(crate) fn spare() -> Vec<OwnedFd> {
    (0..SPARE).map_while(|_| fd::null().ok()).collect()
}

impl Reaper<'_> {
    /// Starts another shim in place of the one that died.
    pub(crate) fn succeed(&mut self) -> Result<(), Error> {
        self.spare.clear();
        let (control, theirs) = step("make a control socket", scm::pair_seqpacket())?;
        let ready = step("open /dev/null", fd::null())?;
        let recent = self.shim_deaths.recent(Instant::now());
        let shim = start_shim(self.config, &theirs, &self.bell, &ready, recent)?;
        self.shim = shim;
        self.shim_lives = true;
        self.serving = false;
        self.watchdog = Watchdog::default();
        let control = Watched::new(&self.epoll, control, turn::CONTROL, Interest::READ);
        self.control = Some(step("watch the control socket", control)?);
        self.ready_by = Some(ready_by());
        write_pair(self.config, self.boot, &self.shim)?;
        drop((theirs, ready));
        self.spare = spare();
        Ok(())
    }

    /// Before the next shim: what the dead one wrote counts to its end, half an
    /// answer does not, and what it did not answer is kept for the next.
    pub(crate) fn keep_unanswered(&mut self) {
        let now = Instant::now();
        for conn in &mut self.conns {
            conn.shim_died(now);
        }
    }

    /// The shim serves from now on: it gets a pair for each connection that has
    /// none. One for which no descriptor is to be had is tried again later.
    pub(crate) fn hand_out(&mut self) {
        self.serving = true;
        self.ready_by = None;
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
        if self.shim_lives && self.unread() {
            self.watchdog.arm(Instant::now(), self.progress);
        }
    }

    fn unread(&self) -> bool {
        self.conns.iter().any(Conn::unread_by_shim)
    }

    /// One look. A stuck shim is ended, and its death does the rest.
    pub(crate) fn look_at_the_shim(&mut self) {
        let unread = self.shim_lives && self.unread();
        // One that waits for a disk (to read runc, say) would be no faster anew.
        if unread && process::sleeps_uninterruptibly(self.shim.pid) {
            self.progress += 1;
        }
        if self.watchdog.look(Instant::now(), self.progress, unread) {
            self.kill_shim();
        }
    }
}

//! What happens when the shim dies or makes no progress: another is started in
//! its place, within a budget. It finds the same listener, connections, slots
//! and exit records; requests that were not answered are the first it gets.

use std::os::fd::AsFd;
use std::time::Instant;

use vigil_relay::control::ToShim;
use vigil_relay::succession::{PROVEN, Watchdog};
use vigil_sys::epoll::{Interest, Watched};
use vigil_sys::{fd, scm};

use crate::conn::Conn;
use crate::turn::{self, Reaper};
use crate::{Error, start_shim, step, write_pair};

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
        if self.watchdog.look(Instant::now(), self.progress, unread) {
            self.kill_shim();
        }
    }
}

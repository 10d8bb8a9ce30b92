//! What happens when the shim dies or makes no progress: another is started in
//! its place, however often, if need be after a pause. It finds the same listener, connections, slots
//! and exit records; requests that were not answered are the first it gets.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use vigil_journal::names;
use vigil_relay::control::ToShim;
use vigil_relay::tokens::CONTROL;
use vigil_sys::epoll::{Interest, Watched};
use vigil_sys::{fd, process, scm, wait};

use crate::conn::Conn;
use crate::turn::{REST, Reaper};
use crate::{Result, start_shim, step, write_pair};

/// For a control socket, its end, a pipe, a pidfd and what spawning needs.
pub(crate) const SPARE: usize = 11;

impl Reaper<'_> {
    /// Starts another shim in place of the one that died, of another program if that was asked
    /// for, and of the one before it if that does not do; now, or after a pause.
    pub(crate) fn succeed(&mut self, status: i32) {
        let said = self.heard.take().map(|fd| scm::read_words(fd.as_fd()));
        let words = format!("{} {}", wait::describe(status), said.unwrap_or_default());
        self.follow(Some(status), words);
    }

    fn follow(&mut self, mut status: Option<i32>, mut words: String) {
        while self.shim.is_none() {
            if let Some(cause) = self.line.died(Instant::now(), status, &words) {
                self.takeovers.add(&cause.to_string());
                self.tell_takeovers();
            }
            if self.line.waits() {
                return;
            }
            match self.start_successor() {
                Ok(()) => return,
                Err(error) => (status, words) = (None, error.to_string()),
            }
        }
        // One that was started and is not known to `delete` is ended.
        self.line.unnamed();
        self.kill_shim();
    }

    /// The pause is over, or what stood in the way may have passed.
    pub(crate) fn try_again(&mut self) {
        if let Err(error) = self.start_successor() {
            self.follow(None, error.to_string());
        }
    }

    /// Nobody serves: what its clients would not wait for any longer is answered. When
    /// that is to be looked at again.
    pub(crate) fn answer_the_late(&mut self) -> Option<Instant> {
        if self.serving || self.conns.is_empty() {
            return None;
        }
        let (now, line) = (Instant::now(), &self.line);
        let late = |conn: &mut Box<Conn>| conn.expire(now, || line.why(now));
        self.conns.iter_mut().filter_map(late).min()
    }

    /// Somebody may have put a link to another program beside the journal.
    pub(crate) fn change_program(&mut self) {
        let next = self.config.bundle.join(names::NEXT);
        if self.line.changes() {
            return;
        }
        match fd::hold(&next) {
            Ok(program) if !self.departure.is_near() && (self.serving || self.mends()) => {
                self.line.change(Instant::now(), program);
                self.tell(&ToShim::Retire, &[]);
                // Nobody is to make room: at once, whatever the pause.
                if self.shim.is_none() {
                    self.follow(Some(0), String::new());
                }
            }
            // Nobody is served yet, or soon: whoever asked sees that it is gone.
            Ok(_) | Err(_) => drop(fs::remove_file(next)),
        }
    }

    /// Whether another program is wanted although none serves.
    fn mends(&self) -> bool {
        self.ready.is_none() && (self.shim.is_none() || self.line.loops(Instant::now()))
    }

    /// For people and the next shim; without room they are told less. Whoever asked for
    /// another program sees by the link's being gone that this has come to an end.
    pub(crate) fn tell_takeovers(&self) {
        let bundle = &self.config.bundle;
        let path = bundle.join(names::TAKEOVERS);
        let _ = self.takeovers.write(&path, &self.config.owner);
        if !self.line.changes() {
            let _ = fs::remove_file(bundle.join(names::NEXT));
        }
    }

    fn start_successor(&mut self) -> Result<()> {
        self.spare.clear();
        let (control, theirs) = step("make a control socket", scm::pair_seqpacket())?;
        let (heard, ready) = step("make a pipe", fd::pipe())?;
        let control = self.epoll.watch(control, CONTROL);
        let control = step("watch the control socket", control)?;
        let (program, recent) = (self.line.program(), self.line.recent(Instant::now()));
        let counts = (recent, self.conns.next());
        let shim = start_shim(self.config, program, &theirs, &self.bell, &ready, counts)?;
        let shim = self.shim.insert(shim);
        self.serving = false;
        (self.control, self.heard) = (Some(control), Some(heard));
        self.line.started(Instant::now());
        // Without its bundle it ends the container, and then us; nobody reads who it is.
        if self.config.bundle.exists() {
            write_pair(self.config, self.boot, shim)?;
        }
        drop((theirs, ready));
        self.spare = fd::spares(SPARE);
        Ok(())
    }

    /// Before the next shim: what the dead one wrote counts to its end, half an
    /// answer does not, and what it did not answer is kept for the next.
    pub(crate) fn keep_unanswered(&mut self, status: i32) {
        let (now, own_fault) = (Instant::now(), self.line.own_fault(status));
        for conn in self.conns.iter_mut() {
            conn.shim_died(now, own_fault);
            let _ = conn.settle();
        }
    }

    /// The shim has read what it was sent: its calls are read again, and it gets what waits.
    pub(crate) fn has_room(&mut self) {
        if let Some(control) = &mut self.control {
            let _ = control.want(Interest::READ);
        }
        if self.serving {
            self.hand_out();
        }
    }

    /// The shim serves from now on: it gets a pair for each connection that has
    /// none. One for which no descriptor is to be had is tried again later.
    pub(crate) fn hand_out(&mut self) {
        self.serving = true;
        self.heard = None;
        if self.line.serves(Instant::now()) {
            self.tell_takeovers();
        }
        let mut room = true;
        for at in 0..self.conns.len() {
            if !self.conns[at].waits() {
                continue;
            }
            // As many as there is room for beside the answers to its calls; then as it reads.
            room = self.control.as_ref().is_some_and(fd::has_room);
            if !room {
                break;
            }
            let handed = scm::pair_stream().and_then(|(pair, theirs)| {
                self.conns[at].give(&self.epoll, pair, self.silent)?;
                let conn = self.conns[at].number;
                let fds = [theirs.as_fd(), self.conns[at].own()];
                self.tell(&ToShim::Conn { conn }, &fds);
                self.conns[at].settle()
            });
            if handed.is_err() {
                self.listener.rest(REST);
                break;
            }
        }
        if let Some(control) = &mut self.control {
            let _ = control.want(Interest::of(true, !room));
        }
        self.arm();
    }

    /// A request is with the shim, or on its way: it is looked at later whether
    /// it was taken.
    pub(crate) fn arm(&mut self) {
        if self.shim.is_some() && !self.line.watches() && self.unread() {
            self.line.arm(Instant::now());
        }
    }

    fn unread(&self) -> bool {
        let full = |control: &Watched<OwnedFd>| !fd::has_room(control);
        self.control.as_ref().is_some_and(full) || self.conns.iter().any(|one| one.unread_by_shim())
    }

    /// One look. A stuck shim is ended, and its death does the rest.
    pub(crate) fn look_at_the_shim(&mut self) {
        let (now, unread) = (Instant::now(), self.shim.is_some() && self.unread());
        // One that waits for a disk (to read runc, or its own pages) would be no faster anew.
        let shim = self.shim.as_ref();
        if shim.is_some_and(|shim| process::sleeps_uninterruptibly(shim.pid)) {
            self.line.alive(now);
        }
        if self.line.look(now, unread, self.is_shim_stopped()) {
            self.kill_shim();
        }
    }
}

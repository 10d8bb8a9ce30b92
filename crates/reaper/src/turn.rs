//! The loop: wait, then do what has become possible, and decide when to go.
//! Deaths come first, because a peeked zombie hides all others until it is
//! reaped. Each wait for somebody has an end here; without one pending there
//! is no timer.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use vigil_journal::BootId;
use vigil_journal::exits::{Death, Recorder};
use vigil_journal::takeovers::Takeovers;
use vigil_relay::Budget;
use vigil_relay::conns::Conns;
use vigil_relay::control::ToShim;
use vigil_relay::departure::Departure;
use vigil_relay::slots::Slots;
use vigil_relay::succession::Succession;
use vigil_relay::tokens::{CONTROL, LISTENER, SIGNALS, end_of, owner_of};
use vigil_sys::epoll::{Epoll, Ready, Resting, Watched};
use vigil_sys::event::Doorbell;
use vigil_sys::map::release_heap;
use vigil_sys::points::{self, Point};
use vigil_sys::signal::{self, Signals};
use vigil_sys::spawn::Child;
use vigil_sys::{Result, fd, listen, pidfd, process, wait};

use crate::conn::Conn;
use crate::ends::Ends;
use crate::{Config, fail};

/// Deaths recorded in one turn.
const DEATHS_MAX: usize = 256;
/// How long the shim has to flush and go when we were told to go, and how long
/// containerd has to take what is left when the shim is gone.
const FLUSH: Duration = Duration::from_secs(1);
/// How long a shim may live that has announced its end.
pub(crate) const END: Duration = Duration::from_secs(5);
/// How long the listener rests when no descriptor could be had, or no room to wait for one.
pub(crate) const REST: Duration = Duration::from_secs(1);
/// After a turn that could not be made, and until somebody may have made room.
const BREATH: Duration = Duration::from_millis(100);
/// How long after a pair's end it is asked whether its shim lives and so meant it: a dying
/// process closes its descriptors, thousands it may be, before it can be waited for.
const DYING: Duration = Duration::from_millis(100);
/// A shim that has closed everything is waited for so long, before it is looked at otherwise.
const HIDDEN: Duration = Duration::from_millis(250);

/// All the reaper has.
pub(crate) struct Reaper<'c> {
    pub(crate) config: &'c Config,
    pub(crate) boot: BootId,
    pub(crate) epoll: Epoll,
    pub(crate) signals: Watched<Signals>,
    pub(crate) listener: Resting<&'c OwnedFd>,
    pub(crate) conns: Conns<Conn>,

    pub(crate) bell: Doorbell,
    pub(crate) deaths: Recorder<'static>,
    /// A child may have ended that was not looked for yet.
    pub(crate) deaths_due: bool,
    pub(crate) slots: Slots<OwnedFd>,
    /// Of those that are no children of ours.
    pub(crate) ends: Ends,

    /// `None` when the shim has closed its end.
    pub(crate) control: Option<Watched<OwnedFd>>,
    /// `None` while none lives.
    pub(crate) shim: Option<Child>,
    /// It has closed its end of everything: whether it is dead is looked at then, since a tracer
    /// hides from waitid(2) that it is.
    pub(crate) closed: Option<Instant>,
    /// It does not say what it has taken, since it is of an older version.
    pub(crate) silent: bool,
    /// Its program can become the reaper.
    pub(crate) reaps: bool,
    /// It has said that it serves: connections are handed to it.
    pub(crate) serving: bool,
    pub(crate) line: Succession<OwnedFd>,
    pub(crate) takeovers: Takeovers,
    /// Descriptors to be let go of when a successor is started.
    pub(crate) spare: Vec<OwnedFd>,
    pub(crate) ready: Option<OwnedFd>,
    /// Where a successor says why it cannot serve.
    pub(crate) heard: Option<OwnedFd>,

    /// If it is near, no other shim follows.
    pub(crate) departure: Departure,
}

fn is_due(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at <= Instant::now())
}

impl Reaper<'_> {
    /// Turns until it is time to go; the exit code.
    pub(crate) fn run(mut self) -> i32 {
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(code)) => return code,
                // For want of something; that is nobody's end.
                Err(_) => std::thread::sleep(BREATH),
            }
        }
    }

    /// One turn: wait, then everything that is possible. An exit code ends it.
    fn turn(&mut self) -> Result<Option<i32>> {
        let late = self.answer_the_late();
        let timeout = self.patience(late);
        for ready in self.epoll.wait::<32>(timeout)? {
            match ready.token {
                SIGNALS => {
                    if let Some(code) = self.take_signals()? {
                        return Ok(Some(code));
                    }
                }
                LISTENER => self.accept(),
                CONTROL => {
                    if ready.write {
                        self.has_room();
                    }
                    if ready.read && !self.serve_control() {
                        // Dead, or of no use without it; waitid will tell.
                        self.control = None;
                        self.kill_shim();
                        self.closed = Some(Instant::now() + HIDDEN);
                    }
                }
                token => match end_of(token) {
                    Some(pin) => self.ends.is_over(pin),
                    None => self.conn_ready(ready),
                },
            }
        }
        self.learn_ends();
        let status = self.bury().or_else(|| self.hidden());
        let code = status.and_then(|status| self.on_shim_death(status));
        if code.is_some() {
            return Ok(code);
        }
        self.look_at_the_clock();
        self.renew();
        let near = self.departure.is_near();
        let done = near && self.shim.is_none() && self.conns.iter().all(|conn| conn.flushed());
        let over = is_due(self.departure.until());
        Ok((done || over).then(|| self.leave()))
    }

    /// How long to wait; `None`, which is the rule, if nobody is waited for.
    fn patience(&self, late: Option<Instant>) -> Option<Duration> {
        if self.deaths_due {
            return Some(Duration::ZERO);
        }
        let cuts = self.conns.iter().filter_map(|conn| conn.cut_at);
        let cuts = cuts.filter(|_| self.control.is_some() && self.serving);
        let until = self.departure.until();
        let times = cuts.chain(until).chain(self.listener.until()).chain(late);
        let times = times.chain(self.ends.until()).chain(self.closed);
        let first = times.chain(self.line.next()).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    fn look_at_the_clock(&mut self) {
        if is_due(self.listener.until()) {
            self.listener.wake(REST);
            (0..self.conns.len()).for_each(|place| self.settle(place));
            if self.serving {
                self.hand_out();
            }
        }
        if self.line.tries(Instant::now()) {
            self.try_again();
        } else if is_due(self.line.next()) {
            self.look_at_the_shim();
        }
        // The shim lives on without these: it has closed them. One that is dying closes
        // everything before it can be waited for.
        while self.control.is_some() && self.serving {
            let Some(cut) = self.conns.iter().position(|conn| is_due(conn.cut_at)) else {
                break;
            };
            let dying = self.is_shim_dying();
            let conn = &mut self.conns[cut];
            conn.cut_at = None;
            match dying {
                Ok(true) => self.serving = false,
                // It may be seen later.
                Err(_) => conn.cut_at = Some(Instant::now() + DYING),
                Ok(false) if conn.relay.was_meant() => self.close_conn(cut),
                Ok(false) => self.hand_out(),
            }
        }
    }

    fn take_signals(&mut self) -> Result<Option<i32>> {
        while let Some(number) = self.signals.get().next()? {
            match number {
                signal::CHLD => {
                    self.deaths_due = true;
                    // Told of by the same signal.
                    let stopped = self.is_shim_stopped();
                    self.line.stopped(Instant::now(), stopped);
                }
                signal::TERM | signal::INT if self.departure.told() => {
                    self.departure.within(Instant::now(), FLUSH);
                    self.tell(&ToShim::Leave, &[]);
                }
                signal::USR1 => self.change_program(),
                signal::TERM | signal::INT | signal::USR2 => return Ok(Some(self.leave())),
                // Everything else kills neither of us and means nothing.
                _ => {}
            }
        }
        Ok(None)
    }

    /// Now: the shim goes with us, and what it had under way: nobody would be
    /// left to undo what a runc or a mount still makes. Containers and loggers
    /// have sessions of their own. Deaths that can be recorded still are.
    fn leave(&mut self) -> i32 {
        self.kill_shim();
        if let Some(shim) = &self.shim {
            let _ = fd::wait_readable(&shim.pidfd, DYING);
        }
        process::kill_errands();
        for _ in 0..16 {
            self.deaths_due = true;
            self.bury();
        }
        i32::from(!self.departure.is_near())
    }

    pub(crate) fn kill_shim(&self) {
        // What it dies of is its own affair if it is dying; where nobody can tell, it is not
        // to blame. Of one that is dead the descriptor leads nowhere.
        let Some(shim) = &self.shim else { return };
        self.line.ends(self.is_shim_dying() == Ok(false));
        let _ = pidfd::send_signal(&shim.pidfd, signal::KILL);
    }

    fn is_shim_dying(&self) -> Result<bool> {
        let shim = self.shim.as_ref();
        shim.map_or(Ok(true), |shim| process::is_exiting(shim.pid))
    }

    pub(crate) fn is_shim_stopped(&self) -> bool {
        self.shim
            .as_ref()
            .is_some_and(|shim| wait::is_stopped(shim.pid))
    }

    /// Records and reaps children that have ended, some of them if they are
    /// many. The shim's own status, if it is one of them.
    fn bury(&mut self) -> Option<i32> {
        if !self.deaths_due {
            return None;
        }
        let mut shim = None;
        for count in 0..DEATHS_MAX {
            let Ok(Some(ended)) = wait::peek_any() else {
                self.deaths_due = false;
                break;
            };
            // The shim's is recorded for `delete`, which alone can tell of a crash.
            let own = self.shim.as_ref().is_some_and(|shim| shim.pid == ended.pid);
            shim = shim.or(own.then_some(ended.status));
            if !own {
                points::reach(Point::DeathNotRecorded);
            }
            let start = process::start_ticks(ended.pid).unwrap_or(0);
            let death = Death::seen_now(ended.pid, start, ended.status);
            let told = self.deaths.record_nth(count, death);
            let _ = told.then(|| self.bell.ring());
            if !own {
                points::reach(Point::DeathNotReaped);
            }
            let _ = wait::reap(ended.pid);
        }
        self.deaths.say();
        shim
    }

    /// How the shim ended, if it is dead and nobody can wait for it: who traces it has not.
    fn hidden(&mut self) -> Option<i32> {
        let shim = self.shim.as_ref().filter(|_| is_due(self.closed))?;
        if pidfd::is_dead(&shim.pidfd) != Ok(true) {
            self.closed = Some(Instant::now() + HIDDEN);
            return None;
        }
        let started = process::start_ticks(shim.pid);
        let status = started.and_then(|started| process::zombie_status(shim.pid, started));
        // Whoever looks finds it as a zombie; where nobody may look, it was not its own fault.
        Some(status.ok().flatten().unwrap_or(signal::KILL))
    }

    /// The shim is dead and reaped. What it has written counts, to its end;
    /// then either this was the end, or another takes over, sooner or later. An exit
    /// code means "go".
    fn on_shim_death(&mut self, status: i32) -> Option<i32> {
        (self.shim, self.closed) = (None, None);
        self.serving = false;
        let _ = (0..64).all(|_| self.serve_control());
        self.control = None;
        self.keep_unanswered(status);
        if self.departure.is_near() {
            self.departure.within(Instant::now(), FLUSH);
            return None;
        }
        if let Some(ready) = self.ready.take() {
            let how = wait::describe(status);
            fail(&ready, &format!("shim ended before it was ready: {how}"));
            return Some(self.leave());
        }
        self.succeed(status);
        None
    }

    fn accept(&mut self) {
        if self.conns.is_full() {
            match self.conns.who_goes(Instant::now()) {
                Some(place) => self.close_conn(place),
                None => return self.listener.rest(BREATH),
            }
        }
        let own = match listen::accept(self.listener.as_fd()) {
            Ok(Some(own)) => own,
            Ok(None) => return,
            Err(_) => return self.listener.rest(REST),
        };
        let conn = |number, budget: &Budget| Conn::new(&self.epoll, number, own, budget);
        let place = self.conns.enter(Instant::now(), conn);
        // A shim that does not serve yet is given all of them when it does.
        if self.serving {
            self.hand_out();
        }
        self.settle(place);
    }

    fn conn_ready(&mut self, ready: Ready) {
        let (now, owner) = (Instant::now(), owner_of(ready.token));
        // One that was closed in this very turn may still be told of.
        let place = owner.and_then(|(number, _)| self.conns.find(now, number));
        let (Some(place), Some((_, is_pair))) = (place, owner) else {
            return;
        };
        let conn = &mut self.conns[place];
        if is_pair {
            self.line.alive(now);
            conn.pair_ready(ready, now + DYING);
        } else if !conn.own_ready(ready) {
            return self.close_conn(place);
        }
        self.settle(place);
        if self.conns[place].unread_by_shim() {
            self.arm();
        }
        if self.conns.keep_bounds() {
            release_heap();
        }
    }

    /// What is to be told of a connection is asked for; again in a while, if that cannot be.
    pub(crate) fn settle(&mut self, place: usize) {
        if self.conns[place].settle().is_err() {
            self.listener.rest(REST);
        }
    }

    fn close_conn(&mut self, place: usize) {
        self.conns.remove(place);
        // Its descriptors are free for one that had to do without a pair; nobody else
        // would look for it.
        if self.serving {
            self.hand_out();
        }
    }
}

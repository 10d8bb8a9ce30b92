//! The actions themselves. Each is safe to repeat and safe to be cut short;
//! what can sleep uninterruptibly runs in a worker.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use vigil_model::{Claim, Incarnation, Status};
use vigil_reconcile::{Action, Claimed, Group, Init, Present};
use vigil_sys::{Errno, fd, listen, pidfd};

use super::runtime::Hooks;
use super::{Left, Line, Report, Source, Stuck, Tombstone, status_of};
use crate::cgroup::Progress;
use crate::observe::{Below, Observed, Subject, said};
use crate::proc::{self, Checked};
use crate::rootfs::{Detached, Manner, unmount_below};
use crate::worker::{Outcome, Worker};

/// `SIGKILL`.
const KILL: i32 = 9;
/// Kept back for what comes after an action that uses all it may.
pub(super) const RESERVE: Duration = Duration::from_millis(400);
/// How long a plain unmount is tried before the mount is detached.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the kernel gets to tell the status of what its parent reaps.
const REAPED_IN: Duration = Duration::from_millis(50);
/// For seeing whether anybody listens.
const LISTENS: Duration = Duration::from_millis(50);
/// For one that dies to let go of its listener.
const LETS_GO: Duration = Duration::from_millis(200);

/// One plan being carried out.
pub(super) struct Work<'a> {
    pub(super) subject: &'a Subject,
    pub(super) deadline: Instant,
    pub(super) run: &'a Path,
    pub(super) seen: Observed,
    /// Init was alive, checked, when it was sent SIGKILL.
    pub(super) killed_alive: bool,
    /// Who is to run the poststop hooks still.
    pub(super) hooks: Hooks,
    pub(super) report: Report,
}

impl Work<'_> {
    pub(super) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Until when an action may take that others come after.
    fn share(&self) -> Instant {
        let left = self.remaining();
        Instant::now() + (left / 2).max(left.saturating_sub(RESERVE * 4))
    }

    /// Until when the slowest action may take; what comes after it is quick.
    fn last_moment(&self) -> Instant {
        Instant::now() + self.remaining().saturating_sub(RESERVE * 2)
    }

    pub(super) fn left(&mut self, left: Left) {
        self.report.left.push(left);
    }

    pub(super) fn holds_out(&self) -> bool {
        self.report
            .left
            .iter()
            .any(|left| matches!(left, Left::Process { .. }))
    }

    /// `true` if it was done, or there was nothing to do.
    pub(super) fn carry_out(&mut self, action: Action) -> bool {
        let before = self.report.left.len();
        let result = match action {
            Action::KillInit => self.kill_init(),
            Action::KillCgroup => self.kill_cgroup(),
            Action::KillBelow => self.kill_below(),
            Action::Thaw => match &self.seen.cgroup {
                Some(cgroup) => cgroup.thaw_all(),
                None => Ok(()),
            },
            Action::RuncDelete => self.runc_delete(),
            Action::Unmount => self.unmount(),
            Action::RemoveCgroups => self.remove_cgroups(),
            Action::RemoveRuncState => self.remove_runc_state(),
            Action::UnlinkSocket => {
                self.unlink_socket();
                Ok(())
            }
            Action::Tombstone => {
                // Nothing before it need have waited: a container without
                // cgroup and runc state is a killed process and no more.
                let waited = self.await_init();
                self.name_unproven();
                self.name_busy();
                self.tombstone();
                waited
            }
            Action::WriteHistory => {
                self.history();
                Ok(())
            }
            Action::AnswerExit => {
                self.answer_exit();
                Ok(())
            }
        };
        if let Err(e) = result {
            let why = said(&e);
            self.left(Left::Action { action, why });
        }
        self.report.left.len() == before
    }

    fn kill_init(&mut self) -> crate::Result<()> {
        let Some(init) = self.seen.init.clone() else {
            if self.seen.facts.init == Init::Unknown {
                self.left(Left::Action {
                    action: Action::KillInit,
                    why: "which process it is could not be read".to_owned(),
                });
            }
            return Ok(());
        };
        if self.seen.init_fd.is_none() {
            match proc::open_checked(&init)? {
                Checked::Same(fd) => self.seen.init_fd = Some(fd),
                Checked::Gone | Checked::Reused(_) | Checked::Elsewhere => return Ok(()),
            }
        }
        let Some(fd) = &self.seen.init_fd else {
            return Ok(());
        };
        // One that waits in exit(2) for its namespace's others has ended by itself.
        let alive = !is_dead(fd, &init)? && !proc::is_past_exit(init.pid)?;
        let sent = kill(fd, init.pid)?;
        self.killed_alive |= alive && sent;
        // Others may have to die first (a debugger, a pid namespace's
        // members), and they are killed next. Not waited for here.
        Ok(())
    }

    fn kill_cgroup(&mut self) -> crate::Result<()> {
        let until = self.share();
        let Some(cgroup) = &self.seen.cgroup else {
            self.left(unopened(Action::KillCgroup));
            return Ok(());
        };
        let mut progress = cgroup.kill_until(until)?;
        // Those who only wait in exit(2) for somebody else to reap a process get all the time.
        if progress == Progress::Waiting && all_exiting(&cgroup.holdouts()?) {
            progress = cgroup.kill_until(self.last_moment())?;
        }
        if progress == Progress::Waiting {
            let init = self.seen.init.as_ref().map(|init| init.pid);
            for holdout in cgroup.holdouts()? {
                let init = Some(holdout.pid) == init;
                self.report.left.push(Left::Process { holdout, init });
            }
        }
        Ok(())
    }

    /// Kills one by one, by descent and by name, looking again until nobody
    /// is found.
    fn kill_below(&mut self) -> crate::Result<()> {
        let until = self.share();
        let mut pause = Duration::from_micros(500);
        loop {
            let mut alive = self.kill_others()?;
            if let Some(below) = &self.subject.below {
                alive.extend(kill_descendants(below)?);
            }
            if alive.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                for pid in alive {
                    if let Some(holdout) = proc::holdout(pid)? {
                        let init = false;
                        self.left(Left::Process { holdout, init });
                    }
                }
                return Ok(());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Kills those that were named by a record or a mark; who was still there.
    fn kill_others(&mut self) -> crate::Result<Vec<u32>> {
        let mut alive = Vec::new();
        for other in &self.seen.others {
            if let Checked::Same(fd) = proc::open_checked(other)?
                && !is_dead(&fd, other)?
            {
                kill(&fd, other.pid)?;
                alive.push(other.pid);
            }
        }
        Ok(alive)
    }

    /// Waits for init to be gone before anything is removed below it.
    pub(super) fn await_init(&mut self) -> crate::Result<()> {
        let until = self.share();
        let (Some(init), Some(fd)) = (&self.seen.init, &self.seen.init_fd) else {
            return Ok(());
        };
        let wait = |until: Instant| {
            let left = until.saturating_duration_since(Instant::now());
            fd::wait_readable(fd, left).map_err(|source| crate::Error::Kernel {
                op: "wait for process",
                what: init.pid.to_string(),
                source,
            })
        };
        let mut gone = wait(until)?;
        if !gone && proc::is_past_exit(init.pid)? {
            // Dead but for somebody who is to reap a process of its pid namespace.
            gone = wait(self.last_moment())?;
        }
        let pid = init.pid;
        let named = self
            .report
            .left
            .iter()
            .any(|left| matches!(left, Left::Process { holdout, .. } if holdout.pid == pid));
        if !gone
            && !named
            && let Some(holdout) = proc::holdout(pid)?
        {
            let init = true;
            self.left(Left::Process { holdout, init });
        }
        Ok(())
    }

    fn unmount(&mut self) -> crate::Result<()> {
        let rootfs = self.subject.rootfs();
        let half = self.remaining().saturating_sub(RESERVE) / 2;
        let patient = Manner::Patient(PATIENCE.min(half / 2));
        match run_unmount(&rootfs, patient, half.max(RESERVE / 2))? {
            (Outcome::Done, detached) => {
                self.detached(detached);
                return Ok(());
            }
            (Outcome::Failed(why), detached) => {
                self.report.notes.push(why);
                self.detached(detached);
            }
            (Outcome::Overdue { pid, left, doing }, detached) => {
                self.detached(detached);
                if left {
                    self.left(Left::Worker { pid, doing });
                }
            }
        }
        // Something in there hangs: out of sight with all of it.
        match run_unmount(&rootfs, Manner::Detach, half.max(RESERVE / 2))? {
            (Outcome::Done, detached) => self.detached(detached),
            (Outcome::Failed(why), detached) => {
                self.detached(detached);
                self.left(Left::Mounts(why));
            }
            (Outcome::Overdue { pid, left, doing }, detached) => {
                self.detached(detached);
                self.left(Left::Mounts(format!("overdue at: {doing}")));
                if left {
                    self.left(Left::Worker { pid, doing });
                }
            }
        }
        Ok(())
    }

    fn detached(&mut self, mounts: Vec<Detached>) {
        self.report
            .left
            .extend(mounts.into_iter().map(Left::Detached));
    }

    fn remove_cgroups(&mut self) -> crate::Result<()> {
        self.await_init()?;
        let until = Instant::now() + self.remaining().saturating_sub(RESERVE);
        let Some(cgroup) = &self.seen.cgroup else {
            self.left(unopened(Action::RemoveCgroups));
            return Ok(());
        };
        // With processes in it, once is enough to know.
        let until = if self.holds_out() {
            Instant::now()
        } else {
            until
        };
        let removal = cgroup.remove_until(until)?;
        self.report
            .left
            .extend(removal.left.into_iter().map(Left::Cgroup));
        Ok(())
    }

    fn unlink_socket(&mut self) {
        let Some(path) = &self.subject.socket else {
            return;
        };
        // The pair is dead, unless it is at work itself: whoever listens is another, whose
        // address was found here.
        if self.subject.below.is_none() && is_listened_to(path) {
            let there = path.display();
            let note = format!("somebody listens on {there}: it is another's, and left alone");
            return self.report.notes.push(note);
        }
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                self.report
                    .notes
                    .push(format!("cannot remove {}: {e}", path.display()));
                self.report.left.push(Left::Socket(path.clone()));
            }
        }
    }

    /// Fills in how init ended, by whoever knows best.
    pub(super) fn answer_exit(&mut self) {
        if let Some(exit) = self.seen.exit {
            self.report.exit = exit;
            self.report.source = Source::Record;
            return;
        }
        if self.report.source != Source::Nobody {
            return;
        }
        let Some(fd) = &self.seen.init_fd else {
            return;
        };
        if fd::wait_readable(fd, Duration::ZERO) != Ok(true) {
            return;
        }
        // The kernel tells once its parent has reaped it, which is a matter
        // of moments; an older kernel never does.
        let until = Instant::now() + REAPED_IN.min(self.remaining());
        let known;
        loop {
            // In this order: reaped between the two, it is asked once more.
            let last = is_reaped(fd) || Instant::now() >= until;
            match pidfd::exit_status(fd) {
                Ok(Some(raw)) => {
                    known = status_of(raw);
                    break;
                }
                Ok(None) if !last => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) | Err(_) => {
                    // Whoever inherited it takes its time, or the kernel keeps nothing.
                    known = self.status_of_zombie();
                    break;
                }
            }
        }
        if let Some(status) = known {
            self.report.exit.status = status;
            self.report.source = Source::Kernel;
        } else if self.killed_alive {
            self.report.exit.status = Status::Signalled(9);
            self.report.source = Source::Killed;
        }
    }

    /// What a dead init's parent would be told, while it is not reaped.
    fn status_of_zombie(&self) -> Option<Status> {
        let init = self.seen.init.as_ref()?;
        proc::zombie_status(init).ok().flatten().and_then(status_of)
    }

    fn left_in_words(&self) -> Vec<String> {
        self.report.left.iter().map(Left::to_string).collect()
    }

    /// Says what is about to be done away with, for whoever comes if we die at it.
    pub(super) fn announce(&mut self) {
        let stone = Tombstone {
            exit: self.seen.exit,
            ..self.stone(Vec::new())
        };
        if let Err(e) = stone.announce(self.run, None) {
            self.report.notes.push(said(&e));
        }
    }

    /// What is there now.
    fn stone(&self, left: Vec<String>) -> Tombstone {
        Tombstone {
            init: self.seen.init.clone(),
            claims: self.claims_for_later(),
            private_pid_ns: Some(self.seen.private_pid_ns),
            pid_ns: self.seen.pid_ns,
            ..Tombstone::of(self.subject, left)
        }
    }

    fn tombstone(&mut self) {
        self.answer_exit();
        let stuck = self.stuck();
        let mut stone = Tombstone {
            exit: (self.report.source != Source::Nobody).then_some(self.report.exit),
            ..self.stone(self.left_in_words())
        };
        stone.stuck = stuck;
        stone.holdouts = self.holdouts();
        if let Some(before) = self.subject.stone {
            // Put up by a later life of the id while we worked: not ours to change.
            let now = Tombstone::read(&stone.path(self.run));
            if now.is_ok_and(|now| now.init != self.subject.init) {
                return;
            }
            stone.tries = before.tries.saturating_add(1);
            stone.runc_state = stone.runc_state.and(before.runc_state);
        }
        let result = if stone.left.is_empty() {
            stone.remove(self.run)
        } else {
            stone.write(self.run).map(drop)
        };
        if let Err(e) = result {
            self.report.notes.push(said(&e));
        }
    }

    /// What a stone claims is on record from then on: no guess about what others are in.
    fn claims_for_later(&self) -> Vec<Claim> {
        let proven = match self.seen.claimed {
            Claimed::Recorded => true,
            Claimed::Guessed | Claimed::Shared => match self.seen.facts.group {
                Group::Empty | Group::Populated => true,
                Group::Absent | Group::Foreign | Group::Unknown => false,
            },
        };
        if proven {
            Tombstone::narrow(&self.seen.claims)
        } else {
            Vec::new()
        }
    }

    /// Nobody was signalled for being in a cgroup that is the container's, or was; that they may
    /// be its own is not to be lost.
    fn name_unproven(&mut self) {
        for process in &self.seen.unproven {
            if let Ok(Checked::Same(_)) = proc::open_checked(process)
                && let Ok(Some(holdout)) = proc::holdout(process.pid)
            {
                self.report.left.push(Left::Unproven(holdout));
            }
        }
    }

    /// A cgroup that is the container's is to be removed by whoever comes when the last who is
    /// in it has gone.
    fn name_busy(&mut self) {
        for (cgroup, pid) in &self.seen.busy {
            if look(cgroup) != Present::No {
                let holdout = proc::holdout(*pid).ok().flatten();
                let cgroup = cgroup.clone();
                self.report.left.push(Left::Busy { cgroup, holdout });
            }
        }
    }

    /// The processes of the container that do not die.
    fn holdouts(&self) -> Vec<Incarnation> {
        let pids = self.report.left.iter().filter_map(|left| match left {
            Left::Process { holdout, .. } => Some(holdout.pid),
            // It is waited for by its cgroup: a name would make it the container's.
            Left::Unproven(_)
            | Left::Cgroup(_)
            | Left::Busy { .. }
            | Left::Detached(_)
            | Left::Mounts(_)
            | Left::Worker { .. }
            | Left::RuncState(_)
            | Left::Socket(_)
            | Left::Action { .. } => None,
        });
        pids.filter_map(|pid| proc::incarnation(pid).ok().flatten())
            .collect()
    }

    /// The workers that do not come back: those of this attempt, and those an
    /// earlier one named that are still there.
    fn stuck(&mut self) -> Vec<Stuck> {
        let mut stuck = Vec::new();
        for left in &self.report.left {
            if let Left::Worker { pid, doing } = left
                && let Ok(Some(worker)) = proc::incarnation(*pid)
            {
                let doing = doing.clone();
                stuck.push(Stuck { worker, doing });
            }
        }
        let path = Tombstone::of(self.subject, Vec::new()).path(self.run);
        let earlier = Tombstone::read(&path).map(|stone| stone.stuck);
        for before in earlier.unwrap_or_default() {
            let known = stuck.iter().any(|now| now.worker == before.worker);
            if !known && before.stands() {
                let (pid, doing) = (before.worker.pid, before.doing.clone());
                self.left(Left::Worker { pid, doing });
                stuck.push(before);
            }
        }
        stuck
    }

    fn history(&mut self) {
        // A sweeper or a waiter that got no further has nothing to tell.
        let again = self.subject.stone.is_some() || self.subject.again;
        if again && !self.report.left.is_empty() {
            return;
        }
        self.answer_exit();
        let line = Line {
            format: super::FORMAT,
            id: self.subject.id.to_string(),
            namespace: self.subject.namespace.to_string(),
            found: self.report.row.to_owned(),
            exit: Some(self.report.exit),
            done: self
                .report
                .done
                .iter()
                .map(|action| format!("{action:?}"))
                .collect(),
            left: self.left_in_words(),
            takeovers: self.subject.takeovers,
        };
        if let Err(e) = line.append(self.run) {
            self.report.notes.push(said(&e));
        }
    }
}

fn unopened(action: Action) -> Left {
    Left::Action {
        action,
        why: "the cgroups could not be opened".to_owned(),
    }
}

/// Whether somebody listens there, and goes on to: one that dies lets go of it a moment later.
fn is_listened_to(socket: &Path) -> bool {
    let until = Instant::now() + LETS_GO;
    while listen::connect(socket, LISTENS).is_ok() {
        if Instant::now() >= until {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Kills what descends from the reaper; who was there.
fn kill_descendants(below: &Below) -> crate::Result<Vec<u32>> {
    let pids = below.pids()?;
    // Descriptors first, then once more who descends: a number that changed
    // hands in between is no longer in the list, or is ours again.
    let mut opened = Vec::new();
    for &pid in &pids {
        opened.extend(proc::open_now(pid)?);
    }
    let still = below.pids()?;
    for (incarnation, fd) in &opened {
        if still.contains(&incarnation.pid) {
            kill(fd, incarnation.pid)?;
        }
    }
    Ok(pids)
}

/// `false` if it is gone by now, which is fine.
fn kill(fd: &OwnedFd, pid: u32) -> crate::Result<bool> {
    match pidfd::send_signal(fd, KILL) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(source) => Err(crate::Error::Kernel {
            op: "kill process",
            what: pid.to_string(),
            source,
        }),
    }
}

fn is_dead(fd: &OwnedFd, init: &Incarnation) -> crate::Result<bool> {
    pidfd::is_dead(fd).map_err(|source| crate::Error::Kernel {
        op: "ask for process",
        what: init.pid.to_string(),
        source,
    })
}

fn all_exiting(holdouts: &[proc::Holdout]) -> bool {
    holdouts
        .iter()
        .all(|holdout| proc::is_past_exit(holdout.pid).unwrap_or(false))
}

/// Whether a dead process was reaped: nothing more will be known of it then.
fn is_reaped(fd: &OwnedFd) -> bool {
    pidfd::send_signal(fd, 0) == Err(Errno::ESRCH)
}

pub(super) fn look(path: &Path) -> Present {
    match fs::symlink_metadata(path) {
        Ok(_) => Present::Yes,
        Err(e) if e.kind() == ErrorKind::NotFound => Present::No,
        Err(_) => Present::Unknown,
    }
}

/// Unmounts in a worker, and brings back what it could only detach.
fn run_unmount(
    rootfs: &Path,
    manner: Manner,
    timeout: Duration,
) -> crate::Result<(Outcome, Vec<Detached>)> {
    let at = rootfs.to_owned();
    let worker = Worker::start_noting("umount", move |notes| {
        unmount_below(&at, manner, notes)
            .map(drop)
            .map_err(|e| said(&e))
    })?;
    let outcome = worker.wait(timeout)?;
    Ok((outcome, worker.told()))
}

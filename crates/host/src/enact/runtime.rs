//! What of a plan goes through the runtime: `runc delete`, the hooks it owes,
//! and its state directory. While the directory is there the poststop hooks
//! have not run, and who removes it without them has lost them for good.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vigil_reconcile::{Group, Present};

use super::Left;
use super::hooks::Poststop;
use super::work::{RESERVE, Work, look};
use crate::cgroup::Cgroup;
use crate::observe::{Found, RuncState, said};
use crate::rootfs::{Manner, unmount_below};
use crate::runc::{Call, Invocation};
use crate::worker::{Outcome, Worker};

/// Between asking the runtime to leave off and killing it.
const GRACE: Duration = Duration::from_millis(100);
/// Less than this is not worth another attempt.
const ATTEMPT: Duration = Duration::from_millis(200);

/// Whose the hooks are to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hooks {
    /// Nobody's: the runtime was not to be called, or it did its work.
    NotOwed,
    /// The runtime's: it has failed, and its state is there.
    Runtimes,
    /// Ours: the runtime must not be called, or has nothing to call them by.
    Ours,
}

impl Work<'_> {
    pub(super) fn runc_delete(&mut self) -> crate::Result<()> {
        self.await_init()?;
        if self.holds_out() {
            // It would wait ten seconds for the same processes. Its state, and
            // with it the hooks, are kept for the sweeper.
            self.report
                .notes
                .push("runc delete is left for later: processes hold out".to_owned());
            return Ok(());
        }
        // It removes its state before it runs the hooks: while the directory is
        // there they have not run, once it is gone runc is not called again.
        if look(&self.subject.runc_dir()) == Present::No {
            return Ok(());
        }
        // runc writes its state down after the createRuntime hooks: cut short
        // between the two, it would remove the directory and run no other.
        if self.unfinished() {
            self.hooks = Hooks::Ours;
            return Ok(());
        }
        // Without a pid namespace of its own, runc kills whatever is in the
        // cgroup, strangers too.
        if self.shared() && !self.seen.private_pid_ns {
            self.hooks = Hooks::Ours;
            return Ok(());
        }
        self.hooks = Hooks::Runtimes;
        self.call_runc_delete();
        Ok(())
    }

    /// Whether strangers may be in a cgroup of the container's, also where none
    /// could be looked at.
    fn shared(&self) -> bool {
        let unseen = self.seen.facts.group == Group::Unknown && self.seen.claims.is_empty();
        unseen
            || self.seen.cgroup.as_ref().is_some_and(Cgroup::is_shared)
            || self.seen.facts.group != Group::Absent && self.seen.claims.iter().any(|c| !c.ours())
    }

    /// Whether runc began to make the container and got no further. Others keep
    /// their state under the name `status`.
    fn unfinished(&self) -> bool {
        let dir = self.subject.runc_dir();
        matches!(Found::from(RuncState::load(&dir)), Found::Nothing)
            && look(&dir.join("status")) == Present::No
    }

    fn call_runc_delete(&mut self) {
        // Once more at the last moment: it goes by the id alone.
        if !self.subject.owns_runc_dir() {
            return;
        }
        let deadline = self.remaining().saturating_sub(RESERVE + GRACE);
        if deadline.is_zero() {
            return;
        }
        let call = Call::Delete {
            id: self.subject.id.as_str(),
            force: true,
        };
        if let Err(failure) = Invocation::new(&self.subject.runtime, call).run(deadline, GRACE) {
            self.report.notes.push(failure.to_string());
        }
    }

    /// Once cgroups and mounts are gone, which may be what it failed for.
    pub(super) fn remove_runc_state(&mut self) -> crate::Result<()> {
        let dir = self.subject.runc_dir();
        if look(&dir) == Present::No || !self.subject.owns_runc_dir() {
            return Ok(());
        }
        if self.holds_out() {
            self.left(Left::RuncState(dir));
            return Ok(());
        }
        if self.hooks != Hooks::NotOwed && !self.settle_hooks(&dir) {
            self.report
                .notes
                .push("runc's state is kept: the poststop hooks have not run".to_owned());
            self.left(Left::RuncState(dir));
            return Ok(());
        }
        if look(&dir) == Present::No || !self.subject.owns_runc_dir() {
            return Ok(());
        }
        self.remove_tree(dir)
    }

    /// Whether no hook is owed any more; decided by what the state says now.
    fn settle_hooks(&mut self, dir: &Path) -> bool {
        match Found::from(RuncState::load(dir)) {
            Found::State(state) if !state.poststop => true,
            Found::State(_) if self.hooks == Hooks::Ours => {
                self.report
                    .notes
                    .push("runc delete left out: the cgroup is shared".to_owned());
                self.run_hooks()
            }
            Found::State(_) => {
                if self.remaining() > RESERVE + GRACE + ATTEMPT {
                    self.call_runc_delete();
                }
                look(dir) == Present::No
            }
            // The runtime can never be asked again.
            Found::Torn(_) => {
                self.report
                    .notes
                    .push("runc's state is torn, so runc cannot run the poststop hooks".to_owned());
                self.run_hooks()
            }
            Found::Nothing if self.hooks == Hooks::Ours => self.run_hooks(),
            // Whoever keeps its state under other names has had its chance.
            Found::Nothing => true,
            Found::Unread(error) => {
                self.report.notes.push(said(&error));
                false
            }
        }
    }

    /// Runs them in the runtime's place; `false` if they could not even be begun.
    fn run_hooks(&mut self) -> bool {
        let id = self.subject.id.as_str();
        let poststop = match Poststop::load(self.subject.files(), id) {
            Ok(poststop) if poststop.is_empty() => return true,
            Ok(poststop) => poststop,
            Err(error) => {
                // Nothing on this host names them any more.
                let why = format!("the poststop hooks are lost: {}", said(&error));
                self.report.notes.push(why);
                return true;
            }
        };
        let time = self.remaining().saturating_sub(RESERVE + GRACE);
        if time.is_zero() {
            return false;
        }
        let worker = Worker::start_noting("hooks", move |notes| {
            poststop.run(notes);
            Ok(())
        });
        let outcome = worker.and_then(|worker| Ok((worker.wait(time)?, worker.notes())));
        match outcome {
            Ok((outcome, notes)) => {
                self.report.notes.extend(notes);
                match outcome {
                    Outcome::Done => {}
                    Outcome::Failed(why) => self.report.notes.push(why),
                    Outcome::Overdue { pid, left, doing } => {
                        self.report.notes.push(format!("overdue: {doing}"));
                        if left {
                            self.left(Left::Worker { pid, doing });
                        }
                    }
                }
                true
            }
            Err(error) => {
                self.report.notes.push(said(&error));
                false
            }
        }
    }

    fn remove_tree(&mut self, dir: PathBuf) -> crate::Result<()> {
        let at = dir.clone();
        let worker = Worker::start_noting("rmdir", move |notes| {
            // A runc that was killed early leaves itself mounted there, read-only.
            let unmounted = unmount_below(&at, Manner::Patient(GRACE), notes);
            unmounted.map(drop).map_err(|e| said(&e))?;
            match fs::remove_dir_all(&at) {
                Ok(()) => Ok(()),
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                Err(e) => Err(format!("cannot remove {}: {e}", at.display())),
            }
        })?;
        match worker.wait(self.remaining().max(RESERVE / 2))? {
            Outcome::Done => {}
            Outcome::Failed(why) => {
                self.report.notes.push(why);
                self.left(Left::RuncState(dir));
            }
            Outcome::Overdue { pid, left, doing } => {
                self.left(Left::RuncState(dir));
                if left {
                    self.left(Left::Worker { pid, doing });
                }
            }
        }
        Ok(())
    }
}

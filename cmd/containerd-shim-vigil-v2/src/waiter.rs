//! The waiter: whoever cannot finish leaves one. A process of its own that sleeps until what
//! stands in the way of a container's end has gone (a process in uninterruptible sleep, a
//! mount, a busy cgroup) and then does the rest, so that nothing waits for a person. It keeps
//! its arguments, by which it is known in a process list.
//!
//! It holds no lock while it sleeps: a `delete`, a repair or a `start` of the same id is never
//! held up by it. It sleeps on pidfds and on the names that somebody else may remove; where
//! the kernel tells nothing, it looks again after growing pauses.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vigil_host::cgroup::{Cgroup, Hierarchies};
use vigil_host::enact::{Life, RUN, Stuck, Tombstone, reconcile_to_gone};
use vigil_host::observe::Subject;
use vigil_host::proc::{self, Checked};
use vigil_host::sweep;
use vigil_journal::pair::{self, Pair};
use vigil_journal::{Owner, lock, names};
use vigil_model::{Namespace, TaskId};
use vigil_protocol::Flags;
use vigil_sys::fd::{self, Watch};
use vigil_sys::fork::{self, Fork};
use vigil_sys::{inotify, pidfd, process, spawn};

use crate::{delete, leave};

/// For one try; nobody waits for it.
const TRY: Duration = Duration::from_secs(10);
/// The first pause where the kernel does not tell of the end of what is in the way.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// As good as for ever: nothing but an event ends it.
const NO_END: Duration = Duration::from_hours(24 * 365);
/// For containerd to remove a bundle after a `delete`, or a Shutdown, that went well.
const ABOUT_TO_GO: Duration = Duration::from_secs(10);
/// Processes slept on at once. When one of them has died it looks for others.
const WATCHED_MAX: usize = 64;
/// For the process between us and the waiter.
const BETWEEN: Duration = Duration::from_secs(1);
/// Where containerd's bundles and working directories are, by their last names but two.
const TASKS: &str = "io.containerd.runtime.v2.task";

/// A container that may have to be waited for. Made before anything is done about it, so that
/// it is known later which life was meant.
#[derive(Debug)]
pub struct Case<'a> {
    flags: &'a Flags,
    bundle: &'a Path,
    /// The bundle itself, whatever becomes of its name.
    dir: Option<File>,
    /// The reaper of this life.
    reaper: Option<pair::Incarnation>,
    /// The life, as far as its bundle said it.
    life: Owner,
    /// Who ran `delete`.
    asked_by: Option<OwnedFd>,
    /// It is told that this failed, and forgets the container and its bundle.
    forgotten: Cell<bool>,
    /// When it was looked at.
    begun: Instant,
}

/// What is at the bundle's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The bundle of this life.
    Bundle,
    /// The bundle of this life, of which somebody has removed a part, or nobody can see what.
    Unclear,
    /// Nothing.
    Free,
    /// Another life's.
    Taken,
}

impl<'a> Case<'a> {
    /// The life that has this bundle now.
    pub fn new(flags: &'a Flags, bundle: &'a Path) -> Self {
        Self {
            flags,
            bundle,
            dir: File::open(bundle).ok(),
            reaper: reaper(
                bundle,
                &Owner::of(flags.namespace.as_str(), flags.id.as_str()),
            ),
            life: Owner::of_bundle(bundle, flags.namespace.as_str(), flags.id.as_str()),
            asked_by: None,
            forgotten: Cell::new(false),
            begun: Instant::now(),
        }
    }

    /// As [`Case::new`], for `delete`: by whom it was run.
    pub fn asked(flags: &'a Flags, bundle: &'a Path) -> Self {
        Self {
            asked_by: asker(process::parent_pid()),
            ..Self::new(flags, bundle)
        }
    }

    /// `delete` fails. containerd knows nothing of the container from then on, and leaves the
    /// bundle to nobody.
    pub fn given_up(&self) {
        self.forgotten.set(true);
    }

    /// Whether another directory has the bundle's name by now.
    pub fn is_anothers(&self) -> bool {
        let now = std::fs::symlink_metadata(self.bundle).ok();
        now.and_then(|now| self.is_bundle(&now)) == Some(false)
    }

    /// An error if another life has the names of this one by now: another directory is in its
    /// place, or another `start` has been in it.
    pub fn is_meant(&self) -> Result<(), leave::Superseded> {
        let now = Pair::read_any(&self.bundle.join(names::PAIR));
        let of_another = now.is_ok_and(|(pair, owner)| match owner {
            Some(owner) if self.life.salt != 0 => {
                (&owner.namespace, &owner.id) == (&self.life.namespace, &self.life.id)
                    && owner.salt != self.life.salt
            }
            // Not known of both.
            _ => self.reaper.is_some_and(|reaper| reaper != pair.reaper),
        });
        if self.is_anothers() || of_another {
            return Err(leave::Superseded(self.bundle.to_owned()));
        }
        Ok(())
    }

    /// Whether this is the bundle that was held, if one was.
    fn is_bundle(&self, now: &Metadata) -> Option<bool> {
        let then = self.dir.as_ref()?.metadata().ok()?;
        Some((then.dev(), then.ino()) == (now.dev(), now.ino()))
    }

    /// Whether another life has its names and nothing is said to be left of this one.
    fn is_over(&self) -> bool {
        self.is_anothers() && matches!(self.stone(), Ok(None))
    }

    /// Leaves a waiter. It is nobody's child, leads a session of its own and has none of our
    /// descriptors, so that it outlives us and whoever started us and holds up neither.
    pub fn leave(&self) {
        let keep: Vec<BorrowedFd<'_>> = (self.dir.iter().map(AsFd::as_fd))
            .chain(self.asked_by.iter().map(AsFd::as_fd))
            .collect();
        let between = spawn::fork_worker(&keep, || match fork::fork() {
            Ok(Fork::Child) => {
                let _ = process::new_session();
                self.wait();
                0
            }
            Ok(Fork::Parent { .. }) => 0,
            Err(_) => 1,
        });
        match between {
            Ok(between) => {
                let _ = fd::wait_readable(&between.pidfd, BETWEEN);
                let _ = pidfd::wait(&between.pidfd);
            }
            // Then the next `start` or `delete` on the host looks again.
            Err(error) => eprintln!("warning: nobody waits for what is left: {error}"),
        }
    }

    /// Whether a tombstone says that something of it is left.
    pub fn is_entombed(&self) -> bool {
        matches!(self.stone(), Ok(Some(_)))
    }

    /// The waiter's whole life.
    fn wait(&self) {
        let _ = std::env::set_current_dir("/");
        // One for a life. A later one, of a later `delete`, sleeps until this one is done or
        // has been ended.
        if let Some(dir) = &self.dir
            && dir.lock().is_err()
        {
            return;
        }
        let mut pause = PAUSE_MIN;
        while !self.is_over() {
            if self.sleep(pause) {
                pause = PAUSE_MIN;
            } else {
                pause = (pause * 2).min(PAUSE_MAX);
            }
            if self.finish() {
                return;
            }
        }
    }

    /// Sleeps until there may be something to do; whether something has happened.
    fn sleep(&self, pause: Duration) -> bool {
        let mut before: Option<BTreeSet<u32>> = None;
        loop {
            let names = self.names();
            let names: Vec<&Path> = names.iter().map(PathBuf::as_path).collect();
            let told = inotify::watch_removal(&names).ok();
            let alive = self.in_the_way();
            let taken = self.place() == Place::Taken;
            let pids: BTreeSet<u32> = alive.iter().map(|(pid, _)| *pid).collect();
            if let Some(before) = &before {
                // All dead, or somebody new to be killed.
                if !pids.is_subset(before) || pids.is_empty() {
                    return true;
                }
            } else if pids.is_empty() && !taken {
                let mut watches: Vec<Watch<'_>> = told.iter().map(Watch::reading).collect();
                return fd::poll(&mut watches, pause).is_ok_and(|ready| ready > 0);
            }
            let mut watches: Vec<Watch<'_>> = told
                .iter()
                .chain(alive.iter().map(|(_, process)| process))
                .map(Watch::reading)
                .collect();
            // Without the one or the other there are only the pauses. Nobody tells of the removal
            // of a bundle that somebody holds open once its files are gone.
            let long = if told.is_some() && !taken {
                NO_END
            } else {
                PAUSE_MAX
            };
            if fd::poll(&mut watches, long).is_err() {
                std::thread::sleep(pause);
                return false;
            }
            if pids.is_empty() || watches[..told.iter().count()].iter().any(Watch::ready) {
                return true;
            }
            before = Some(pids);
        }
    }

    /// What may be removed by somebody else who finishes.
    fn names(&self) -> Vec<PathBuf> {
        let mut names = vec![self.bundle.to_owned(), self.bundle.join(names::JOURNAL)];
        let paths = Tombstone::paths(Path::new(RUN)).unwrap_or_default();
        names.extend(paths.into_iter().find(|path| self.is_ours(path)));
        names
    }

    fn is_ours(&self, stone: &Path) -> bool {
        Tombstone::read(stone).is_ok_and(|stone| self.is_of(&stone))
    }

    fn is_of(&self, stone: &Tombstone) -> bool {
        stone.id == self.flags.id.as_str() && stone.namespace == self.flags.namespace.as_str()
    }

    /// Its tombstone, if it stands; an error where that could not be seen.
    fn stone(&self) -> vigil_host::Result<Option<Tombstone>> {
        let all = Tombstone::all(Path::new(RUN))?;
        Ok(all.into_iter().flatten().find(|stone| self.is_of(stone)))
    }

    fn place(&self) -> Place {
        let now = match std::fs::symlink_metadata(self.bundle) {
            Ok(now) => now,
            Err(error) if error.kind() == ErrorKind::NotFound => return Place::Free,
            Err(_) => return Place::Unclear,
        };
        let same = self.is_bundle(&now) == Some(true);
        let owner = Owner::of(self.flags.namespace.as_str(), self.flags.id.as_str());
        if !same {
            Place::Taken
        } else if reaper(self.bundle, &owner) == self.reaper {
            Place::Bundle
        } else {
            Place::Unclear
        }
    }

    /// Living processes whose end has to be waited for: of the pair, of the container,
    /// workers.
    fn in_the_way(&self) -> Vec<(u32, OwnedFd)> {
        let place = self.place();
        let mut found = Vec::new();
        if place == Place::Bundle
            && let Ok(pair) = Pair::read(&self.bundle.join(names::PAIR), &self.owner())
        {
            let both = std::iter::once(pair.reaper).chain(pair.shim);
            found.extend(both.filter_map(|one| Some((one.pid, leave::open(&one).ok()??))));
        }
        let stone = self.stone().ok().flatten();
        let mut known = Vec::new();
        let mut claims = Vec::new();
        if let Some(stone) = stone {
            known.extend(stone.stuck.into_iter().map(|stuck| stuck.worker));
            known.extend(stone.at_work.map(|at_work| at_work.worker));
            known.extend(stone.holdouts);
            known.extend(stone.init);
            claims = stone.claims;
        } else if place == Place::Bundle {
            // Looked at only: a call of its pair may be at work.
            let (subject, _) = delete::recorded(self.flags, &self.owner(), self.bundle, None);
            known.extend(subject.init);
            known.extend(subject.execs);
            claims = subject.claims;
        }
        for process in known {
            if let Ok(Checked::Same(fd)) = proc::open_checked(&process) {
                found.push((process.pid, fd));
            }
        }
        let held = Hierarchies::read().and_then(|all| Cgroup::open(&all, &claims)?.holdouts());
        for holdout in held.unwrap_or_default() {
            if let Ok(Some((process, fd))) = proc::open_now(holdout.pid) {
                found.push((process.pid, fd));
            }
        }
        found.retain(|(_, process)| !pidfd::is_dead(process).unwrap_or(true));
        found.sort_by_key(|(pid, _)| *pid);
        found.dedup_by_key(|(pid, _)| *pid);
        found.truncate(WATCHED_MAX);
        found
    }

    /// Does the rest, if it can be done now; whether there is none any more.
    fn finish(&self) -> bool {
        match self.place() {
            // Whoever asked has had an answer and is about to remove it.
            Place::Bundle if !self.forgotten.get() && self.begun.elapsed() < ABOUT_TO_GO => false,
            Place::Bundle => self.finish_bundle(),
            Place::Free => self.finish_stone(),
            Place::Unclear | Place::Taken => false,
        }
    }

    /// What `delete` does, once more.
    fn finish_bundle(&self) -> bool {
        // Another `delete`, or a repair, may be at it; or whoever removes the bundle.
        let Ok(_lock) = lock::hold_existing(&self.bundle.join(names::LOCK)) else {
            return false;
        };
        if self.place() != Place::Bundle || self.pair_lives() {
            return false;
        }
        let socket = delete::socket(self.flags, self.bundle);
        let socket = socket.filter(|path| leave::is_deserted(path));
        let owner = self.owner();
        let announced = |subject: &Subject| {
            // A `start` of this id waits for us from here on.
            delete::announce(subject, &owner);
            Ok(self.is_meant()?)
        };
        let subject = delete::subject(self.flags, &owner, self.bundle, socket, announced);
        let Ok(subject) = subject else {
            delete::lift(self.flags, self.bundle);
            return false;
        };
        let subject = Subject {
            again: true,
            announces: true,
            ..subject
        };
        let report = reconcile_to_gone(&subject, Instant::now() + TRY);
        delete::lift(self.flags, self.bundle);
        if report.may_live() {
            return false;
        }
        if self.place() != Place::Bundle {
            return false;
        }
        delete::keep_end_of(self.bundle, &owner, &report);
        if !report.left.is_empty() {
            return false;
        }
        // One that has come back since knows of the bundle and asks for its end.
        let containerd = self.asked_by.as_ref();
        if self.forgotten.get() && containerd.is_some_and(|it| pidfd::is_dead(it) == Ok(false)) {
            self.remove();
        }
        true
    }

    /// Whose the files of the bundle are to be: those of the life that is meant.
    pub fn owner(&self) -> Owner {
        if self.life.salt != 0 {
            return self.life.clone();
        }
        let flags = self.flags;
        Owner::of_bundle(self.bundle, flags.namespace.as_str(), flags.id.as_str())
    }

    /// Removes the bundle as containerd does after a `delete` that succeeded. Whatever is in a
    /// directory of it is not touched, and keeps it: it may be a mount.
    fn remove(&self) {
        let is_containerds = |path: &Path| is_containerds(path, self.flags);
        if !is_containerds(self.bundle) {
            return;
        }
        let work = std::fs::read_link(self.bundle.join("work")).ok();
        // It cannot be told to whom: nobody waits for us.
        if self.remove_tree().is_ok()
            && let Some(work) = work.filter(|work| is_containerds(work))
        {
            let _ = std::fs::remove_dir(work);
        }
    }

    fn remove_tree(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(self.bundle)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir(entry.path())?;
            }
        }
        // By the name under which containerd does not take it for a container.
        let id = self.flags.id.as_str();
        let aside = self.bundle.with_file_name(format!(".{id}"));
        std::fs::rename(self.bundle, &aside)?;
        if self.is_bundle(&std::fs::symlink_metadata(&aside)?) != Some(true) {
            // Another life's, which came in between.
            return std::fs::rename(&aside, self.bundle).and(Err(ErrorKind::NotFound.into()));
        }
        for entry in std::fs::read_dir(&aside)? {
            std::fs::remove_file(entry?.path())?;
        }
        std::fs::remove_dir(&aside)
    }

    fn pair_lives(&self) -> bool {
        let Ok(pair) = Pair::read(&self.bundle.join(names::PAIR), &self.owner()) else {
            return false;
        };
        let mut both = std::iter::once(pair.reaper).chain(pair.shim);
        both.any(|one| !matches!(leave::open(&one), Ok(None)))
    }

    /// What a sweeper does, once more.
    fn finish_stone(&self) -> bool {
        let stone = match self.stone() {
            Ok(Some(stone)) => stone,
            Ok(None) => return true,
            Err(_) => return false,
        };
        let Ok(Some(_only)) = sweep::only(Path::new(RUN)) else {
            return false;
        };
        let busy = stone.worked_on().is_some() || stone.stuck.iter().any(Stuck::stands);
        if busy || self.place() != Place::Free {
            return false;
        }
        let report = sweep::take_up(Path::new(RUN), &stone, Instant::now() + TRY);
        report.is_ok_and(|report| report.left.is_empty() && !report.may_live())
    }
}

/// Who ran `delete`, by its parent: an orphan's is the host's first process, which asked for
/// nothing and never ends.
fn asker(parent: u32) -> Option<OwnedFd> {
    (parent > 1).then(|| pidfd::open(parent).ok())?
}

fn reaper(bundle: &Path, owner: &Owner) -> Option<pair::Incarnation> {
    let pair = Pair::read(&bundle.join(names::PAIR), owner).ok()?;
    Some(pair.reaper)
}

/// Which life a bundle's pair is of, if it names one.
pub(crate) fn life(bundle: &Path, owner: &Owner) -> Option<Life> {
    let (pair, found) = Pair::read_any(&bundle.join(names::PAIR)).ok()?;
    let salt = found.as_ref().map(|found| format!("{:016x}", found.salt));
    found.is_none_or(|found| owner.is(&found)).then(|| Life {
        reaper: leave::incarnation(&pair.reaper),
        salt,
    })
}

/// Whether a path ends as containerd's own for this container do.
fn is_containerds(path: &Path, flags: &Flags) -> bool {
    path.ends_with(
        Path::new(TASKS)
            .join(flags.namespace.as_str())
            .join(flags.id.as_str()),
    )
}

/// Bundles of dead pairs, for the sweeper.
#[derive(Debug, Clone, Copy)]
pub struct Dead;

impl sweep::Bundles for Dead {
    fn is_of(&self, stone: &Tombstone) -> bool {
        // What is not there is not ours to make.
        let lock = std::fs::symlink_metadata(stone.bundle.join(names::LOCK));
        let owner = Owner::of_bundle(&stone.bundle, &stone.namespace, &stone.id);
        let Some(life) = life(&stone.bundle, &owner).filter(|_| lock.is_ok()) else {
            return false;
        };
        if let Some(then) = &stone.life {
            let same = then.salt == life.salt || then.salt.is_none() || life.salt.is_none();
            return same && then.reaper.same(&life.reaper);
        }
        // An earlier version's.
        let named = delete::remembered(&stone.bundle, &owner)
            .ok()
            .and_then(|remembered| remembered.task.standing.phase.init().cloned());
        named.is_some() && named == stone.init
    }

    fn finish(&self, stone: &Tombstone) -> bool {
        let (Ok(namespace), Ok(id)) = (
            Namespace::new(stone.namespace.as_str()),
            TaskId::new(stone.id.as_str()),
        ) else {
            return false;
        };
        let flags = Flags {
            namespace,
            id,
            address: String::new(),
            publish_binary: String::new(),
            bundle: String::new(),
            debug: false,
            socket: String::new(),
            debug_socket: String::new(),
        };
        let case = Case::new(&flags, &stone.bundle);
        // Another life's may have come to be there since it was looked at.
        self.is_of(stone) && case.finish_bundle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `delete` outlived the containerd that ran it, another came, and asks for the bundle
    /// itself: the waiter took the host's first process for who had asked, which never ends, and
    /// removed the bundle.
    #[test]
    fn a_delete_without_a_parent_was_asked_by_nobody_who_lives() {
        assert!(asker(1).is_none());
        assert!(asker(std::process::id()).is_some());
    }
}

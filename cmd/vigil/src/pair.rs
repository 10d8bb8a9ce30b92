//! Whether a container's pair is alive: by the lock, which is free exactly
//! when both are gone, and by the processes `pair` names, whose incarnations
//! are checked, or, if it names none that lives, by the processes there are. Looks only; takes
//! no lock for longer than the look.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vigil_host::chain;
use vigil_host::proc::{self, Checked};
use vigil_host::strays;
use vigil_journal::lock::{self, LockError};
use vigil_journal::{names, pair};
use vigil_model::{BootId, Incarnation, Task};
use vigil_sys::pidfd;

use crate::place::Found;
use crate::{processes, program};

/// For a process that sleeps uninterruptibly and is to be asked for its arguments.
const ASKED: Duration = Duration::from_millis(500);

/// The pair, all in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// A process of it is there, or somebody holds the lock whom nobody can tell from one.
    Alive,
    /// Both are gone, and somebody else is at what they left: he has the lock.
    Ending,
    /// Both are gone.
    Gone,
    /// It could not be looked at.
    Unknown,
}

/// The lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Somebody has it.
    Held,
    /// Nobody does.
    Free,
    /// There is no such file.
    Missing,
    /// It could not be looked at.
    Unknown,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Half {
    /// Its pid.
    pub pid: u32,
    /// Whether it lives; `None`: it could not be looked at.
    pub alive: Option<bool>,
}

/// What is seen of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// All in all.
    pub life: Life,
    /// The lock.
    pub lock: Lock,
    /// The reaper.
    pub reaper: Option<Half>,
    /// The shim.
    pub shim: Option<Half>,
    /// One of the two lives and is stopped: by a signal, or by who traces it.
    pub stopped: bool,
}

impl Seen {
    /// Whether either of the two is seen alive.
    pub fn any_alive(&self) -> bool {
        let halves = [self.reaper, self.shim];
        halves.iter().flatten().any(|half| half.alive == Some(true))
    }
}

/// The two as they are on record, for who signals them.
#[derive(Debug)]
pub struct Halves {
    /// What is on record.
    pub pair: pair::Pair,
    /// The file does not say whose it is: version 1 did not. The processes do.
    anonymous: bool,
}

impl Halves {
    /// Reads them; what is another container's is an error.
    pub fn read(found: &Found) -> Result<Self, pair::PairError> {
        let path = found.bundle.join(names::PAIR);
        let (pair, owner) = pair::Pair::read_any(&path)?;
        let claimed = found.owner().claims(&path, owner.as_ref());
        claimed.map_err(|source| pair::PairError::NotOurs { source })?;
        Ok(Self {
            pair,
            anonymous: owner.is_none(),
        })
    }

    /// One of them, if it lives and is this bundle's.
    pub fn open(
        &self,
        found: &Found,
        half: &pair::Incarnation,
    ) -> vigil_host::Result<Option<OwnedFd>> {
        let Checked::Same(fd) = proc::open_checked(&incarnation(half))? else {
            return Ok(None);
        };
        let (namespace, id) = (found.namespace.as_str(), found.id.as_str());
        let until = Instant::now() + ASKED;
        // Of whom nobody can say whose it is, nobody else is ended.
        let ours =
            !self.anonymous || strays::is_pair_of(half.pid, namespace, id, until)?.unwrap_or(false);
        let ours = ours && elsewhere(found, half.pid).is_none();
        Ok((ours && pidfd::is_dead(&fd) == Ok(false)).then_some(fd))
    }
}

/// Where the container's bundle is, if this one is a copy of it: what is recorded here is of
/// processes that have nothing to do with this directory.
pub fn copy_of(
    found: &Found,
    recorded: Option<&pair::Pair>,
    task: Option<&Task>,
) -> Option<PathBuf> {
    if found.moved_from.is_some() {
        return None;
    }
    let halves = recorded.into_iter();
    let mut halves = halves.flat_map(|pair| std::iter::once(&pair.reaper).chain(&pair.shim));
    let works = halves.find_map(|half| match proc::open_checked(&incarnation(half)) {
        // Still the same once its directory was looked at.
        Ok(Checked::Same(fd)) => {
            elsewhere(found, half.pid).filter(|_| pidfd::is_dead(&fd) == Ok(false))
        }
        Ok(Checked::Gone | Checked::Reused(_) | Checked::Elsewhere) | Err(_) => None,
    });
    let planned = || {
        let planned = Path::new(&task?.plan.as_ref()?.create.bundle);
        let other = |there: &Metadata| there.is_dir() && !is_bundle(found, there);
        let there = fs::metadata(planned).ok().filter(other);
        there.map(|_| planned.to_owned())
    };
    works.or_else(planned)
}

/// Where a process of a pair works, if that is a directory, and not this bundle.
fn elsewhere(found: &Found, pid: u32) -> Option<PathBuf> {
    let cwd = format!("/proc/{pid}/cwd");
    let there = fs::metadata(&cwd).ok()?;
    // One that was removed is nobody's bundle any more.
    if there.nlink() == 0 || is_bundle(found, &there) {
        return None;
    }
    fs::read_link(&cwd).ok()
}

/// Whether this is the bundle; what cannot be looked at is not told apart.
fn is_bundle(found: &Found, there: &Metadata) -> bool {
    let here = fs::metadata(&found.bundle);
    here.map_or(true, |here| {
        (here.dev(), here.ino()) == (there.dev(), there.ino())
    })
}

/// Looks at both.
pub fn look(found: &Found, recorded: Option<&pair::Pair>, notes: &mut Vec<String>) -> Seen {
    let lock = match lock::is_held(&found.bundle.join(names::LOCK)) {
        Ok(true) => Lock::Held,
        Ok(false) => Lock::Free,
        Err(LockError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Lock::Missing,
        Err(e) => {
            notes.push(chain(&e));
            Lock::Unknown
        }
    };
    let mut reaper = recorded.map(|pair| half(&pair.reaper, notes));
    let mut shim = recorded
        .and_then(|pair| pair.shim.as_ref())
        .map(|shim| half(shim, notes));
    let seen = [reaper, shim];
    if !seen.iter().flatten().any(|half| half.alive == Some(true)) {
        match processes::of(found) {
            Ok(Some(pair)) => {
                let alive = |one: &Option<(Incarnation, OwnedFd)>| {
                    let pid = one.as_ref()?.0.pid;
                    let alive = Some(true);
                    Some(Half { pid, alive })
                };
                (reaper, shim) = (alive(&pair.reaper), alive(&pair.shim));
                notes.push("its pair lives, and `pair` does not name it".to_owned());
            }
            Ok(None) => {}
            Err(e) => notes.push(chain(e.as_ref())),
        }
    }
    let life = life(lock, [reaper, shim]);
    if life == Life::Alive && lock == Lock::Free {
        notes.push("the lock is free although a process of the pair lives".to_owned());
    }
    let lives = |half: Option<Half>, alive| half.is_some_and(|half| half.alive == Some(alive));
    if lives(reaper, false) && lives(shim, true) {
        notes.push("its reaper is dead; its shim becomes the reaper and starts another".to_owned());
    }
    // For a moment that is how every takeover looks.
    if lives(reaper, true) && lives(shim, false) {
        notes.push("its shim is dead and its reaper has started no other yet".to_owned());
    }
    let mut stopped = false;
    for (half, name) in [(reaper, "reaper"), (shim, "shim")] {
        if let Some(half) = half.filter(|half| half.alive == Some(true))
            && let Ok(Some(stat)) = proc::stat(half.pid)
            && matches!(stat.state, 'T' | 't')
        {
            let pid = half.pid;
            stopped = true;
            notes.push(format!(
                "its {name}, process {pid}, is stopped: nobody answers for it until SIGCONT"
            ));
        }
    }
    Seen {
        life,
        lock,
        reaper,
        shim,
        stopped,
    }
}

fn life(lock: Lock, halves: [Option<Half>; 2]) -> Life {
    let any = |alive| halves.iter().flatten().any(|half| half.alive == alive);
    match lock {
        _ if any(Some(true)) => Life::Alive,
        Lock::Held if halves[0].is_some() && !any(None) => Life::Ending,
        Lock::Held => Life::Alive,
        Lock::Missing | Lock::Unknown if any(None) => Life::Unknown,
        Lock::Free | Lock::Missing => Life::Gone,
        // Two processes seen dead are as good as a free lock.
        Lock::Unknown if halves[0].is_some() => Life::Gone,
        Lock::Unknown => Life::Unknown,
    }
}

/// The version of the program that a process of a pair runs, as that program
/// says it; whatever its name leads to by now.
pub fn version(recorded: &pair::Incarnation) -> Result<String, String> {
    match proc::open_checked(&incarnation(recorded)) {
        Ok(Checked::Same(_)) => {}
        Ok(Checked::Gone | Checked::Reused(_) | Checked::Elsewhere) => {
            return Err("it is gone".to_owned());
        }
        Err(e) => return Err(chain(&e)),
    }
    program::version_of(Path::new(&format!("/proc/{}/exe", recorded.pid)))
}

/// A recorded incarnation in the rules' words.
pub fn incarnation(recorded: &pair::Incarnation) -> Incarnation {
    Incarnation {
        pid: recorded.pid,
        start_ticks: recorded.start_ticks,
        pid_ns: recorded.pid_ns,
        boot: BootId(recorded.boot.to_string()),
        pidfd_inode: recorded.pidfd_inode,
    }
}

fn half(recorded: &pair::Incarnation, notes: &mut Vec<String>) -> Half {
    let alive = match proc::open_checked(&incarnation(recorded)) {
        // A zombie serves nobody.
        Ok(Checked::Same(fd)) => match pidfd::is_dead(&fd) {
            Ok(dead) => Some(!dead),
            Err(e) => {
                notes.push(format!("cannot ask for process {}: {e}", recorded.pid));
                None
            }
        },
        Ok(Checked::Gone | Checked::Reused(_) | Checked::Elsewhere) => Some(false),
        Err(e) => {
            notes.push(chain(&e));
            None
        }
    };
    Half {
        pid: recorded.pid,
        alive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_gone_only_if_nothing_speaks_for_it() {
        let half = |alive| Some(Half { pid: 1, alive });
        let (dead, alive, unseen) = (half(Some(false)), half(Some(true)), half(None));
        for (lock, halves, expected) in [
            (Lock::Free, [dead, dead], Life::Gone),
            (Lock::Free, [None, None], Life::Gone),
            (Lock::Free, [unseen, None], Life::Gone),
            (Lock::Free, [dead, alive], Life::Alive),
            (Lock::Held, [dead, dead], Life::Ending),
            (Lock::Held, [dead, None], Life::Ending),
            (Lock::Held, [dead, unseen], Life::Alive),
            (Lock::Held, [dead, alive], Life::Alive),
            (Lock::Held, [None, None], Life::Alive),
            (Lock::Missing, [None, None], Life::Gone),
            (Lock::Missing, [alive, None], Life::Alive),
            (Lock::Missing, [unseen, dead], Life::Unknown),
            (Lock::Unknown, [None, None], Life::Unknown),
            (Lock::Unknown, [dead, dead], Life::Gone),
            (Lock::Unknown, [unseen, dead], Life::Unknown),
        ] {
            assert_eq!(life(lock, halves), expected, "{lock:?} {halves:?}");
        }
    }
}

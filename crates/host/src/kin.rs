//! The evidence for [`vigil_reconcile::kin`]: what can be seen of the processes in a cgroup,
//! compared with the container they may be of. Asks nobody whose answer may not come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vigil_model::Incarnation;
use vigil_reconcile::{Above, Claimed, Init, Kin, PidNs, Ties, kin};
use vigil_sys::pidfd;

use crate::Result;
use crate::bundle::Spec;
use crate::cgroup::Cgroup;
use crate::proc;
use crate::rootfs::mountinfo;

/// Generations between a container's process and who looks after it.
const GENERATIONS: usize = 64;

/// Where the container's processes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// In the pid namespace that init made.
    Inits(u64),
    /// In none: init made one, and is dead.
    Nowhere,
    /// In the host's.
    Shared,
    /// In one that somebody else's container made.
    Joined(u64),
    Unknown,
}

/// A container, as far as its processes are known by it.
#[derive(Debug, Clone)]
pub struct Family {
    place: Where,
    /// The host's pid namespace.
    host: Option<u64>,
    /// The reaper, if it lives and is one.
    reaper: Option<u32>,
    /// Init, execs, the pair: they and what descends from them.
    named: BTreeSet<u32>,
    bundle: Option<PathBuf>,
}

/// What a container is known by.
#[derive(Debug)]
pub struct Known<'a> {
    /// Its first process and what is seen of it.
    pub init: Option<&'a Incarnation>,
    /// Whether it lives.
    pub init_is: Init,
    /// Whether it has a pid namespace of its own.
    pub private_pid_ns: bool,
    /// Its reaper, checked; `None` if that is dead.
    pub reaper: Option<u32>,
    /// Others that are known one by one, checked.
    pub named: Vec<u32>,
    /// Its bundle, in which its pair runs; `None` if no pair of its own can live.
    pub bundle: Option<PathBuf>,
}

impl Family {
    /// Looks at what is known.
    pub fn of(known: Known<'_>) -> Self {
        let init = known.init.map(|init| init.pid);
        let living = init.filter(|_| known.init_is == Init::Alive);
        let host = proc::pid_namespace().ok();
        let place = match (known.private_pid_ns, known.init_is) {
            (true, Init::Dead) => Where::Nowhere,
            // Its own is not everybody's; if it looks so, it was no init.
            (true, Init::Alive) => living
                .and_then(pid_ns)
                .filter(|ns| Some(*ns) != host)
                .map_or(Where::Unknown, Where::Inits),
            (false, _) => {
                let its = living.and_then(pid_ns).or_else(|| {
                    let bundle = known.bundle.as_deref()?;
                    let spec = Spec::load(bundle).ok()?;
                    match spec.namespaces.iter().find(|n| n.kind == "pid") {
                        None => host,
                        Some(joined) => fs::metadata(&joined.path).ok().map(|meta| meta.ino()),
                    }
                });
                match its {
                    Some(ns) if Some(ns) == host => Where::Shared,
                    Some(ns) => Where::Joined(ns),
                    None => Where::Unknown,
                }
            }
            (true, Init::Unnamed | Init::Unknown) => Where::Unknown,
        };
        Self {
            place,
            host,
            reaper: known.reaper,
            named: known.named.into_iter().chain(living).collect(),
            bundle: known.bundle,
        }
    }

    /// Another process that is the container's.
    pub fn add(&mut self, pid: u32) {
        self.named.insert(pid);
    }

    /// Whether somebody is in what is ours of this cgroup who is not the container's.
    pub fn shares(&self, cgroup: &Cgroup) -> Result<bool> {
        let judged = self.judge(&cgroup.our_pids()?, Claimed::Recorded)?;
        Ok(judged.values().any(|kin| *kin != Kin::Ours))
    }

    /// Whose each of these is, which are in a cgroup that is known by `claimed`. Those that
    /// have ended are left out.
    pub fn judge(&self, pids: &[u32], claimed: Claimed) -> Result<BTreeMap<u32, Kin>> {
        let mut seen = BTreeMap::new();
        let mut found = BTreeMap::new();
        // Only where it tells something: who looks at a root may have to wait for its device.
        let root = match claimed {
            Claimed::Guessed => self.bundle.as_deref().and_then(mounted_root),
            Claimed::Recorded | Claimed::Shared => None,
        };
        for &pid in pids {
            let Some(stat) = proc::stat(pid)? else {
                continue;
            };
            // One whose first thread alone has ended lives.
            if stat.ended() && pidfd::open(pid).is_ok_and(|fd| pidfd::is_dead(&fd) == Ok(true)) {
                continue;
            }
            let ties = Ties {
                named: self.named.contains(&pid),
                rooted: root.is_some() && root_of(pid) == root,
                above: self.above(pid, pids, &mut seen)?,
                pid_ns: self.pid_ns_of(pid),
                claimed,
            };
            found.insert(pid, kin(&ties));
        }
        Ok(found)
    }

    fn pid_ns_of(&self, pid: u32) -> PidNs {
        let Some(its) = pid_ns(pid) else {
            return PidNs::Unknown;
        };
        match self.place {
            Where::Inits(ns) if ns == its => PidNs::Inits,
            _ if self.host == Some(its) => PidNs::Hosts,
            Where::Joined(ns) if ns == its => PidNs::Joined,
            Where::Inits(_) | Where::Nowhere | Where::Shared | Where::Joined(_) => PidNs::Another,
            Where::Unknown => PidNs::Unknown,
        }
    }

    /// The first in its line of ancestors of whom something is known.
    fn above(&self, pid: u32, members: &[u32], seen: &mut BTreeMap<u32, Above>) -> Result<Above> {
        let mut line = Vec::new();
        let mut at = pid;
        let mut above = Above::Nobody;
        for _ in 0..GENERATIONS {
            let Some(stat) = proc::stat(at)? else {
                break;
            };
            if stat.parent <= 1 {
                break;
            }
            at = stat.parent;
            if let Some(known) = seen.get(&at) {
                above = *known;
                break;
            }
            line.push(at);
            if self.reaper == Some(at) || self.named.contains(&at) {
                above = Above::Ours;
                break;
            }
            if members.contains(&at) {
                continue;
            }
            // In a pod's pid namespace an orphan is the child of the pod's init, which made
            // it none of its own.
            if proc::is_first(at) {
                break;
            }
            if proc::looks_after(at).is_some() {
                let ours = fs::read_link(format!("/proc/{at}/cwd"));
                above = if ours.is_ok_and(|dir| Some(dir) == self.bundle) {
                    Above::Ours
                } else {
                    Above::Others
                };
                break;
            }
        }
        seen.extend(line.into_iter().map(|pid| (pid, above)));
        Ok(above)
    }
}

/// Inode of a process's pid namespace; `None` if it cannot be seen.
fn pid_ns(pid: u32) -> Option<u64> {
    let meta = fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?;
    Some(meta.ino())
}

/// Whether a process is the kernel's, or lives in the host's mount namespace or in this one's.
pub(crate) fn is_among_the_hosts(pid: u32) -> bool {
    // Of what runs the kernel alone runs no program.
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    if program.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return true;
    }
    let mounts = |pid: &str| {
        let meta = fs::metadata(format!("/proc/{pid}/ns/mnt")).ok()?;
        Some(meta.ino())
    };
    let its = mounts(&pid.to_string());
    its.is_some() && (its == mounts("1") || its == mounts("self"))
}

/// Device and inode of what is mounted as the root file system of this bundle.
fn mounted_root(bundle: &Path) -> Option<(u64, u64)> {
    let rootfs = bundle.join("rootfs");
    mountinfo::below(&mountinfo::as_shown(&rootfs))
        .is_ok_and(|found| !found.is_empty())
        .then(|| identity(&rootfs))?
}

fn root_of(pid: u32) -> Option<(u64, u64)> {
    identity(Path::new(&format!("/proc/{pid}/root/")))
}

fn identity(dir: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(dir).ok()?;
    Some((meta.dev(), meta.ino()))
}

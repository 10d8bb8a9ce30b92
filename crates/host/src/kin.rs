//! The evidence for [`vigil_reconcile::kin`]: what can be seen of the processes in a cgroup,
//! compared with the container they may be of. Asks nobody whose answer may not come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vigil_model::Incarnation;
use vigil_reconcile::{Above, Claimed, Init, Kin, Orphans, PidNs, Ties, kin};
use vigil_sys::pidfd;

use crate::Result;
use crate::bundle::Spec;
use crate::cgroup::Cgroup;
use crate::proc;
use crate::rootfs::mountinfo::{self, Mounted};

/// Times a line of ancestors is followed anew because one in it died meanwhile.
const TRIES: usize = 64;

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
    /// Whether it has a pid namespace of its own.
    private: bool,
    /// What it means that nobody is above a process.
    orphans: Orphans,
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
    /// Inode of the one that it lives in, where that is not its own and on record.
    pub pid_ns: Option<u64>,
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
                let its = living.and_then(pid_ns).or(known.pid_ns).or_else(|| {
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
        // One that took over from a dead reaper is not the leader of the pair's session; what
        // was there before it is below nobody.
        let first = known.reaper.is_some_and(leads_its_session);
        let orphans = match place {
            Where::Inits(_) | Where::Nowhere | Where::Shared if first => Orphans::Reapers,
            Where::Unknown if first && known.private_pid_ns => Orphans::Reapers,
            Where::Inits(_)
            | Where::Nowhere
            | Where::Shared
            | Where::Joined(_)
            | Where::Unknown => Orphans::Anybodys,
        };
        Self {
            place,
            private: known.private_pid_ns,
            orphans,
            host,
            reaper: known.reaper,
            named: known.named.into_iter().chain(living).collect(),
            bundle: known.bundle,
        }
    }

    /// Inode of the pid namespace that it lives in, if that is known and not its own.
    pub fn not_its_own(&self) -> Option<u64> {
        match self.place {
            Where::Shared => self.host,
            Where::Joined(ns) => Some(ns),
            Where::Inits(_) | Where::Nowhere | Where::Unknown => None,
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

    /// Whose each of these is, which are in a cgroup on record, and when it started. Where somebody
    /// else is among them, the record tells nothing of the others.
    pub fn dated(&self, pids: &[u32]) -> Result<BTreeMap<u32, (u64, Kin)>> {
        let mut started = BTreeMap::new();
        for &pid in pids {
            started.extend(proc::stat(pid)?.map(|stat| (pid, stat.start_ticks)));
        }
        let mut judged = self.judge(pids, Claimed::Recorded)?;
        if judged.values().any(|kin| kin.is_anothers()) {
            judged = self.judge(pids, Claimed::Shared)?;
        }
        let both = judged.into_iter();
        Ok(both
            .filter_map(|(pid, kin)| Some((pid, (*started.get(&pid)?, kin))))
            .collect())
    }

    /// Whose each of these is, which are in a cgroup that is known by `claimed`. Those that
    /// have ended are left out.
    pub fn judge(&self, pids: &[u32], claimed: Claimed) -> Result<BTreeMap<u32, Kin>> {
        let members: BTreeSet<u32> = pids.iter().copied().collect();
        let mut seen = BTreeMap::new();
        let mut found = BTreeMap::new();
        // By the tables of mounts: who looks at a root itself may have to wait for its device.
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
            let named = self.named.contains(&pid);
            let mut pid_ns = self.pid_ns_of(pid);
            let line = if named || pid_ns == PidNs::Inits {
                Line::default()
            } else {
                self.line(pid, &members, &mut seen)?
            };
            if pid_ns == PidNs::Another {
                pid_ns = line.made_in.unwrap_or(pid_ns);
            }
            let ties = Ties {
                named,
                rooted: root.is_some() && mountinfo::root_of(pid) == root,
                hosts: is_among_the_hosts(pid),
                above: line.above,
                orphans: self.orphans,
                pid_ns,
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
        let hosts = self.host == Some(its);
        match self.place {
            Where::Inits(ns) if ns == its => PidNs::Inits,
            Where::Inits(_) | Where::Nowhere => PidNs::Outside,
            Where::Joined(ns) if ns == its => PidNs::Joined,
            Where::Joined(_) if hosts => PidNs::Outside,
            Where::Unknown if hosts && self.private => PidNs::Outside,
            Where::Shared | Where::Unknown if hosts => PidNs::Hosts,
            Where::Shared | Where::Joined(_) => PidNs::Another,
            Where::Unknown => PidNs::Unknown,
        }
    }

    /// What a process's line of ancestors tells. Each in it is looked at once: `seen` is for all
    /// that are judged together.
    fn line(
        &self,
        pid: u32,
        members: &BTreeSet<u32>,
        seen: &mut BTreeMap<u32, Line>,
    ) -> Result<Line> {
        for _ in 0..TRIES {
            if let Some(line) = self.climb(pid, members, seen)? {
                return Ok(line);
            }
        }
        Ok(Line::default())
    }

    /// Up to the first of whom something is known; `None` if one died meanwhile, and its
    /// children are another's now.
    fn climb(
        &self,
        pid: u32,
        members: &BTreeSet<u32>,
        seen: &mut BTreeMap<u32, Line>,
    ) -> Result<Option<Line>> {
        let mut passed = Vec::new();
        let mut numbers = BTreeSet::from([pid]);
        let mut at = pid;
        let mut end = Line::default();
        loop {
            let Some(stat) = proc::stat(at)? else {
                // If it is the very one, nobody asks any more.
                return Ok((at == pid).then_some(end));
            };
            // Numbers that changed hands could make a circle.
            if stat.parent <= 1 || !numbers.insert(stat.parent) {
                break;
            }
            at = stat.parent;
            if let Some(known) = seen.get(&at) {
                end = *known;
                break;
            }
            passed.push(at);
            if self.reaper == Some(at) || self.named.contains(&at) {
                end.above = Above::Ours;
                break;
            }
            if members.contains(&at) {
                continue;
            }
            // In a pod's pid namespace an orphan is the child of the pod's init, which made
            // it none of its own.
            let pods = match self.place {
                Where::Joined(ns) => pid_ns(at) == Some(ns),
                Where::Unknown => true,
                Where::Inits(_) | Where::Nowhere | Where::Shared => false,
            };
            if pods && proc::is_first(at) {
                end.made_in = Some(self.pid_ns_of(at));
                break;
            }
            if proc::looks_after(at).is_some() {
                let ours = fs::read_link(format!("/proc/{at}/cwd"));
                end.above = if ours.is_ok_and(|dir| Some(dir) == self.bundle) {
                    Above::Ours
                } else {
                    Above::Others
                };
                break;
            }
        }
        // From the top down: the nearest one counts.
        let mut line = end;
        for at in passed.into_iter().rev() {
            if members.contains(&at) {
                let its = self.pid_ns_of(at);
                line.made_in = (its != PidNs::Another).then_some(its).or(line.made_in);
            }
            seen.insert(at, line);
        }
        Ok(Some(line))
    }
}

/// What a line of ancestors tells of those at its lower end.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// Who is at its top.
    above: Above,
    /// Where the nearest one lives that is in the cgroup, and in no namespace which one of the
    /// container's may have made.
    made_in: Option<PidNs>,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            above: Above::Nobody,
            made_in: None,
        }
    }
}

/// Whether a process lives whose session bears its number.
fn leads_its_session(pid: u32) -> bool {
    matches!(proc::stat(pid), Ok(Some(stat)) if stat.session == pid && !stat.ended())
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

/// What is mounted as the root file system of this bundle.
fn mounted_root(bundle: &Path) -> Option<Mounted> {
    mountinfo::mounted_at(&mountinfo::as_shown(&bundle.join("rootfs"))).ok()?
}

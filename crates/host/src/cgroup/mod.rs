//! The container's cgroup in every hierarchy: observed and forced, never made
//! or configured (runc does that). The handle is opened once, by descriptor;
//! what is not ours by its claim is read but never killed, frozen or removed.
//! No call here waits: what takes time is a step, called again by whoever has
//! the deadline.

mod freeze;
mod hierarchy;
mod kill;
mod oom;
mod place;
mod remove;
mod stats;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vigil_model::{Before, Claim};

pub use freeze::Freeze;
pub use hierarchy::{BASE, Hierarchies, Hierarchy, Mode};
pub use kill::{Killing, Progress, Sent};
pub use oom::{OomWatch, Wakes};
pub use place::{Placement, claims, named_for, place, systemd_host};
pub use remove::Removal;
pub use stats::stats;

use crate::{Error, Result, proc};

/// One hierarchy's directory.
#[derive(Debug)]
struct Group {
    /// Name of the hierarchy.
    hierarchy: String,
    /// Where it was when it was opened.
    path: PathBuf,
    /// The same as `/proc/PID/cgroup` writes it.
    cgroup: String,
    /// Its inode, then and now.
    inode: u64,
    /// Whether it may be killed, frozen and removed.
    ours: bool,
    /// Whether this very process is in it or below.
    holds_us: bool,
    /// Out-of-memory kills counted here before the container was.
    old_ooms: u64,
    dir: File,
}

impl Group {
    /// Whether a process is in it or below.
    fn holds(&self, pid: u32) -> Result<bool> {
        let Some(file) = proc::cgroup(pid)? else {
            return Ok(false);
        };
        Ok(hierarchy::path_in(&file, &self.hierarchy)
            .is_some_and(|path| Path::new(path).starts_with(&self.cgroup)))
    }

    fn has(&self, controller: &str) -> bool {
        self.hierarchy.split(',').any(|name| name == controller)
    }
}

/// The container's cgroups, held open.
#[derive(Debug)]
pub struct Cgroup {
    mode: Mode,
    groups: Vec<Group>,
}

impl Cgroup {
    /// Takes possession after `runc create`: notes each directory's inode in
    /// the claims and corrects what was resolved by what the kernel says of
    /// init. A directory other than the claimed one is not ours.
    pub fn take(hierarchies: &Hierarchies, claims: &mut [Claim], init: u32) -> Result<Self> {
        let file = proc::cgroup(init)?.unwrap_or_default();
        for claim in &mut *claims {
            let Some(hierarchy) = hierarchies.named(&claim.hierarchy) else {
                continue;
            };
            let actual = hierarchy::path_in(&file, &claim.hierarchy)
                .and_then(|cgroup| hierarchy.dir_of(cgroup));
            // Below the claimed one is fine: some runtimes make a child.
            match actual {
                Some(dir) if !dir.starts_with(&claim.path) => {
                    claim.path = dir.to_string_lossy().into_owned();
                    claim.before = Before::Unknown;
                }
                Some(_) | None => {}
            }
            claim.inode = fs::symlink_metadata(&claim.path).ok().map(|m| m.ino());
        }
        Self::open(hierarchies, claims)
    }

    /// Opens what the claims name. A directory whose inode is not the recorded
    /// one is another cgroup and is left out, and so is one that is not there.
    pub fn open(hierarchies: &Hierarchies, claims: &[Claim]) -> Result<Self> {
        let mut groups = Vec::new();
        for claim in claims {
            let Some(hierarchy) = hierarchies.named(&claim.hierarchy) else {
                continue;
            };
            let path = PathBuf::from(&claim.path);
            let Some(cgroup) = hierarchy.cgroup_of(&path) else {
                continue;
            };
            let dir = match File::open(&path) {
                Ok(dir) => dir,
                Err(e) if tree::is_absent(&e) => continue,
                Err(e) => return Err(tree::failed("open", &path, e)),
            };
            let inode = dir
                .metadata()
                .map_err(|e| tree::failed("look at", &path, e))?
                .ino();
            let expected = claim.inode.or(match claim.before {
                Before::Existed { inode, .. } => Some(inode),
                Before::Absent | Before::Unknown => None,
            });
            if expected.is_some_and(|expected| expected != inode) {
                continue;
            }
            // However it was claimed: what holds ourselves is not theirs.
            let holds_us = Path::new(&hierarchy.own).starts_with(&cgroup);
            groups.push(Group {
                hierarchy: claim.hierarchy.clone(),
                ours: claim.ours() && !holds_us && path != hierarchy.mount,
                holds_us: holds_us || path == hierarchy.mount,
                path,
                cgroup,
                inode,
                old_ooms: match claim.before {
                    Before::Existed { ooms, .. } => ooms,
                    Before::Absent | Before::Unknown => 0,
                },
                dir,
            });
        }
        Ok(Self {
            mode: hierarchies.mode,
            groups,
        })
    }

    /// How the host's hierarchies are arranged.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether nothing of it is there, ours or not.
    pub fn is_absent(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether any of it is ours.
    pub fn is_ours(&self) -> bool {
        self.ours().next().is_some()
    }

    /// Whether any of it is not ours.
    pub fn is_shared(&self) -> bool {
        self.groups.iter().any(|g| !g.ours)
    }

    fn ours(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|g| g.ours)
    }

    /// The group of a v1 controller, or the one there is on v2.
    fn with(&self, controller: &str) -> Option<&Group> {
        match self.mode {
            Mode::Unified => self.groups.first(),
            Mode::V1 => self.groups.iter().find(|g| g.has(controller)),
        }
    }

    /// The hierarchy in which processes are looked for first: the one that
    /// can stop them, else one every container has.
    fn primary(&self) -> Option<&Group> {
        ["freezer", "pids", "memory", "name=systemd"]
            .iter()
            .find_map(|name| self.with(name))
            .or_else(|| self.groups.first())
    }

    /// Every process of the container, nested cgroups included, ascending.
    /// Empty if the cgroup is gone; the caller knows whether init lives.
    pub fn pids(&self) -> Result<Vec<u32>> {
        match self.primary() {
            Some(group) => tree::pids(&group.dir),
            None => Ok(Vec::new()),
        }
    }

    /// Whether a process is in what is ours.
    pub fn populated(&self) -> Result<bool> {
        for group in self.ours() {
            if tree::populated(&group.dir)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Those that are in what is ours and have not ended, described.
    pub fn holdouts(&self) -> Result<Vec<proc::Holdout>> {
        let mut found = Vec::new();
        for pid in self.our_pids()? {
            found.extend(proc::holdout(pid)?);
        }
        Ok(found)
    }

    /// Processes in directories that are not ours, as far as those are a container's and not
    /// the host's.
    pub fn others_pids(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for group in self.groups.iter().filter(|g| !g.ours && !g.holds_us) {
            all.extend(tree::pids(&group.dir)?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Gives up what holds one of these: it is somebody else's too, and is neither killed,
    /// frozen nor removed any more. Returns each such directory, and one of them who is in it.
    pub fn share_with(&mut self, strangers: &BTreeSet<u32>) -> Result<Vec<(PathBuf, u32)>> {
        let mut given_up = Vec::new();
        for group in self.groups.iter_mut().filter(|g| g.ours) {
            let pids = tree::pids(&group.dir)?;
            if let Some(pid) = pids.into_iter().find(|pid| strangers.contains(pid)) {
                group.ours = false;
                given_up.push((group.path.clone(), pid));
            }
        }
        Ok(given_up)
    }

    /// Processes in any hierarchy's directory of ours: one that moved itself
    /// out of one is still in the others.
    pub fn our_pids(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for group in self.ours() {
            all.extend(tree::pids(&group.dir)?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// v2: hands every controller of the root down to the container's parent,
    /// as containerd's own shim does at create. Best effort; what is refused is
    /// what the host's owner did not delegate.
    pub fn enable_controllers(&self, hierarchies: &Hierarchies) -> Result<()> {
        let (Mode::Unified, Some(group), Some(hierarchy)) =
            (self.mode, self.groups.first(), hierarchies.named(""))
        else {
            return Ok(());
        };
        let all = tree::read_at(&hierarchy.mount.join("cgroup.controllers"))?.unwrap_or_default();
        let below = group
            .path
            .strip_prefix(&hierarchy.mount)
            .unwrap_or(Path::new(""));
        let mut dir = hierarchy.mount.clone();
        let mut first_refusal: Option<Error> = None;
        for part in below.components() {
            let file = dir.join("cgroup.subtree_control");
            let on = tree::read_at(&file)?.unwrap_or_default();
            let on: Vec<_> = on.split_ascii_whitespace().collect();
            for name in all.split_ascii_whitespace().filter(|n| !on.contains(n)) {
                // One at a time: one that is refused takes the others along.
                if let Err(e) = tree::write_at(&file, &format!("+{name}")) {
                    first_refusal.get_or_insert(e);
                }
            }
            dir.push(part);
        }
        first_refusal.map_or(Ok(()), Err)
    }
}

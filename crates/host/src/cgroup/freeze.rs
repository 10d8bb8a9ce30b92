//! Pause and resume through the freezer: a request, and what the kernel made
//! of it. Freezing takes as long as the slowest process needs to notice; a
//! process that sleeps uninterruptibly keeps it from completing, so nothing
//! here waits for it.

use super::{Cgroup, Mode, tree};
use crate::{Error, Result};

/// What the kernel says of a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// Running.
    Thawed,
    /// Asked to freeze, not there yet.
    Freezing,
    /// Every process stands still.
    Frozen,
}

impl Cgroup {
    /// Asks for all of the container to freeze, or to run on. What a workload
    /// froze by itself in a nested cgroup stays as it is.
    pub fn request_freeze(&self, frozen: bool) -> Result<()> {
        let Some(group) = self.with("freezer") else {
            return Err(self.no_freezer());
        };
        if !group.ours {
            return Err(Error::NotOurs {
                path: group.path.clone(),
            });
        }
        let (file, text) = match (self.mode, frozen) {
            (Mode::V1, true) => ("freezer.state", "FROZEN"),
            (Mode::V1, false) => ("freezer.state", "THAWED"),
            (Mode::Unified, true) => ("cgroup.freeze", "1"),
            (Mode::Unified, false) => ("cgroup.freeze", "0"),
        };
        if tree::write(&group.dir, file, text)? {
            Ok(())
        } else {
            Err(self.no_freezer())
        }
    }

    /// Where it stands, read back from the kernel; `None` if the cgroup is
    /// gone or has no freezer.
    pub fn freeze_state(&self) -> Result<Option<Freeze>> {
        let Some(group) = self.with("freezer") else {
            return Ok(None);
        };
        match self.mode {
            Mode::V1 => {
                let state = tree::read(&group.dir, "freezer.state")?;
                Ok(state.and_then(|state| match state.trim_end() {
                    "THAWED" => Some(Freeze::Thawed),
                    "FREEZING" => Some(Freeze::Freezing),
                    "FROZEN" => Some(Freeze::Frozen),
                    _ => None,
                }))
            }
            Mode::Unified => {
                let wanted = tree::read(&group.dir, "cgroup.freeze")?;
                let events = tree::read(&group.dir, "cgroup.events")?;
                let (Some(wanted), Some(events)) = (wanted, events) else {
                    return Ok(None);
                };
                // `frozen` also follows an ancestor's freeze.
                Ok(Some(
                    match (tree::value_of(&events, "frozen"), wanted.trim_end()) {
                        (Some(1), _) => Freeze::Frozen,
                        (_, "1") => Freeze::Freezing,
                        (_, _) => Freeze::Thawed,
                    },
                ))
            }
        }
    }

    /// Lets everything of ours run, nested cgroups too: what is to die must be
    /// able to. Best effort; what cannot be thawed shows as a holdout.
    pub fn thaw_all(&self) -> Result<()> {
        let Some(group) = self.with("freezer").filter(|g| g.ours) else {
            return Ok(());
        };
        let (file, text, at_rest) = match self.mode {
            Mode::V1 => ("freezer.state", "THAWED", "THAWED"),
            Mode::Unified => ("cgroup.freeze", "0", "0"),
        };
        for node in tree::subtree(&group.dir)? {
            let path = node.path(file);
            if tree::read_at(&path)?.is_some_and(|now| now.trim_end() != at_rest) {
                tree::write_at(&path, text)?;
            }
        }
        Ok(())
    }

    fn no_freezer(&self) -> Error {
        Error::Malformed {
            path: self
                .primary()
                .map_or_else(|| "/".into(), |group| group.path.clone()),
            problem: "this cgroup is gone or has no freezer".to_owned(),
        }
    }
}

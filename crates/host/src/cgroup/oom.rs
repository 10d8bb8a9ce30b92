//! Out-of-memory kills: a descriptor that wakes, and a counter that decides.
//! A wake-up alone is no kill (the descriptor also wakes when the cgroup is
//! removed), and a counter that vanished with its cgroup keeps its last value.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use vigil_sys::event::Doorbell;

use super::{Cgroup, Mode, tree};
use crate::{Error, Result};

/// What to wait for on the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wakes {
    /// Readable (v1: an eventfd).
    Readable,
    /// Priority or error (v2: the file itself; it is always readable).
    Priority,
}

/// A watch on the container's memory cgroup.
#[derive(Debug)]
pub struct OomWatch {
    /// v1: rung by the kernel; v2: nothing, the file itself wakes.
    bell: Option<Doorbell>,
    /// `memory.oom_control` or `memory.events`.
    file: File,
    last: Option<u64>,
    /// What the counter held before the container was there.
    old: u64,
}

/// The kernel's counter of out-of-memory kills in a directory, of v1's memory
/// hierarchy or of v2; zero where there is none.
pub(super) fn counted(dir: &File) -> u64 {
    ["memory.events", "memory.oom_control"]
        .iter()
        .find_map(|file| tree::value_of(&tree::read(dir, file).ok()??, "oom_kill"))
        .unwrap_or(0)
}

impl OomWatch {
    /// Begins to watch; `None` if there is no memory controller, or the cgroup
    /// is gone. Reads the counter once.
    pub fn open(cgroup: &Cgroup) -> Result<Option<Self>> {
        let Some(group) = cgroup.with("memory") else {
            return Ok(None);
        };
        let name = match cgroup.mode {
            Mode::V1 => "memory.oom_control",
            Mode::Unified => "memory.events",
        };
        let Some(file) = tree::open(&group.dir, name)? else {
            return Ok(None);
        };
        let bell = match cgroup.mode {
            Mode::Unified => None,
            Mode::V1 => {
                let bell = Doorbell::new().map_err(|source| Error::Kernel {
                    op: "make an eventfd for",
                    what: group.path.display().to_string(),
                    source,
                })?;
                let order = format!("{} {}", bell.as_fd().as_raw_fd(), file.as_raw_fd());
                if !tree::write(&group.dir, "cgroup.event_control", &order)? {
                    return Ok(None);
                }
                Some(bell)
            }
        };
        let mut watch = Self {
            bell,
            file,
            last: None,
            old: group.old_ooms,
        };
        watch.count();
        Ok(Some(watch))
    }

    /// What to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell
            .as_ref()
            .map_or_else(|| self.file.as_fd(), AsFd::as_fd)
    }

    /// What to wait for on it.
    pub fn wakes(&self) -> Wakes {
        match self.bell {
            Some(_) => Wakes::Readable,
            None => Wakes::Priority,
        }
    }

    /// Kills of this container so far, and arms the descriptor again. `None`: the kernel does
    /// not count them (v1 before Linux 4.13). Never falls, also not when the
    /// cgroup is gone.
    pub fn count(&mut self) -> Option<u64> {
        if let Some(bell) = &self.bell {
            // It is non-blocking; an error here would only wake us once more.
            let _ = bell.drain();
        }
        let mut text = [0; 512];
        if let Ok(len) = self.file.read_at(&mut text, 0) {
            let text = String::from_utf8_lossy(&text[..len]);
            self.last = self.last.max(tree::value_of(&text, "oom_kill"));
        }
        self.last.map(|all| all.saturating_sub(self.old))
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

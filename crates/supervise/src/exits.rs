//! The exit records as the shim sees them: mapped read-only, written by the
//! reaper alone. What stands here is what the kernel said.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use vigil_journal::Owner;
use vigil_journal::exits::{Death, Exits, ExitsError, Slot, Way};
use vigil_model::{Because, Exit, Moment, Status};
use vigil_sys::{map::SharedMap, wait};

use crate::Error;
use crate::watched::{SharedFd, shared};

/// A process by its number and its start in ticks.
pub(crate) type Process = (u32, u64);

/// See the module; clones share the mapping.
#[derive(Debug, Clone)]
pub struct ExitRecords(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    map: SharedMap,
    /// For the next reaper; what it is mapped from must not be looked for again then.
    file: SharedFd,
}

impl ExitRecords {
    /// Maps the file that was handed down, or the one at `path`; it must be this owner's.
    pub fn open(path: &Path, handed: Option<OwnedFd>, whose: &Owner) -> Result<Self, Error> {
        let file = match handed {
            Some(handed) => shared(handed),
            None => Arc::new(
                vigil_journal::exits::open(path).map_err(|source| Error::Exits { source })?,
            ),
        };
        let map = SharedMap::read_only(file.as_fd()).map_err(|source| {
            let what = path.display().to_string();
            Error::Host(vigil_host::Error::Kernel {
                op: "map",
                what,
                source,
            })
        })?;
        let records = Self(Arc::new(Shared { map, file }));
        let found = records.exits()?.owner();
        let claimed = whose.claims(path, found.as_ref());
        claimed.map_err(|source| Error::Exits {
            source: ExitsError::NotOurs { source },
        })?;
        Ok(records)
    }

    /// Whose they say they are; those of version 1 do not.
    pub(crate) fn owner(&self) -> Option<Owner> {
        self.exits().ok()?.owner()
    }

    /// What they are mapped from.
    pub(crate) fn file(&self) -> SharedFd {
        self.0.file.clone()
    }

    fn exits(&self) -> Result<Exits<'_>, Error> {
        Exits::new(self.0.map.words()).map_err(|source| Error::Exits { source })
    }

    /// The death of the process pinned at `index`, if it died.
    pub(crate) fn pinned(&self, index: usize) -> Option<Death> {
        self.exits().ok()?.pinned(index)
    }

    /// The death of that process, wherever it is recorded.
    pub(crate) fn find(&self, pid: u32, start_ticks: u64) -> Option<Death> {
        self.exits().ok()?.find(pid, start_ticks)
    }

    /// The one recorded death of a process that had this pid and is none of these
    /// others. `None` if there is none, or several.
    pub(crate) fn dead(&self, pid: u32, others: &[Process]) -> Option<Death> {
        let exits = self.exits().ok()?;
        let slots = exits.slots().filter_map(|(_, slot)| match slot {
            Slot::Dead(death) => Some(death),
            Slot::Waiting { .. } | Slot::Free => None,
        });
        // One that was in the ring when it was registered is there still.
        let all = slots.chain(exits.ring().map(|(_, death)| death));
        let is_other = |death: &Death| others.contains(&(pid, death.start_ticks));
        let mut found = all.filter(|death| death.pid == pid && !is_other(death));
        let one = found.next()?;
        found
            .all(|death| death.start_ticks == one.start_ticks)
            .then_some(one)
    }

    /// Slots in use, by index.
    pub(crate) fn in_use(&self) -> Vec<usize> {
        let Ok(exits) = self.exits() else {
            return Vec::new();
        };
        let used = exits.slots().filter(|(_, slot)| *slot != Slot::Free);
        used.map(|(index, _)| index).collect()
    }

    /// Place the next unpinned death will have; what died before it is not
    /// what is started after it.
    pub(crate) fn ring_seq(&self) -> u64 {
        self.exits().map_or(0, Exits::ring_seq)
    }
}

/// What a death says, in the rules' words.
pub fn exit_of(death: &Death) -> Exit {
    let status = match (wait::exited(death.status), wait::signalled(death.status)) {
        (Some(code), _) => Status::Exited(code),
        (None, Some(signal)) => Status::Signalled(u8::try_from(signal).unwrap_or(u8::MAX)),
        (None, None) => Status::Unknown(Because::NoRecord),
    };
    let status = match death.way {
        Way::Unseen => Status::Unknown(Because::ReaperGone),
        Way::Waited | Way::Kept | Way::Zombie => status,
    };
    Exit {
        status,
        at: Moment {
            secs: death.at_secs,
            nanos: death.at_nanos,
        },
    }
}

//! The exit records as the shim reads them: mapped read-only, written by the
//! reaper alone. What stands here is what the kernel said.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use vigil_journal::exits::{Death, Exits, Slot};
use vigil_model::{Because, Exit, Moment, Status};
use vigil_sys::{map::SharedMap, wait};

use crate::Error;

/// See the module; clones share the mapping.
#[derive(Debug, Clone)]
pub struct ExitRecords(Arc<SharedMap>);

impl ExitRecords {
    /// Maps the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = std::fs::File::open(path).map_err(|source| {
            Error::Host(vigil_host::Error::File {
                op: "open",
                path: path.to_owned(),
                source,
            })
        })?;
        let map = SharedMap::read_only(file.as_fd()).map_err(|source| {
            let what = path.display().to_string();
            Error::Host(vigil_host::Error::Kernel {
                op: "map",
                what,
                source,
            })
        })?;
        let records = Self(Arc::new(map));
        records.exits().map(drop)?;
        Ok(records)
    }

    fn exits(&self) -> Result<Exits<'_>, Error> {
        Exits::new(self.0.words()).map_err(|source| Error::Exits { source })
    }

    /// The death of the process pinned at `index`, if it died.
    pub(crate) fn pinned(&self, index: usize) -> Option<Death> {
        self.exits().ok()?.pinned(index)
    }

    /// The slot and the death of the one registered process that had this pid.
    pub(crate) fn registered(&self, pid: u32) -> Option<(usize, Death)> {
        let exits = self.exits().ok()?;
        let death = exits.registered(pid)?;
        let mut slots = exits.slots();
        let (index, _) = slots.find(|(_, slot)| matches!(slot, Slot::Dead(d) if *d == death))?;
        Some((index, death))
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
    Exit {
        status,
        at: Moment {
            secs: death.at_secs,
            nanos: death.at_nanos,
        },
    }
}

//! The exit records as the shim sees them: mapped read-only, written by the
//! reaper alone as long as it lives, and from its death on by the shim. What
//! stands here is what the kernel said.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vigil_journal::exits::{Death, Exits, ExitsError, PinError, Recorder, Slot};
use vigil_journal::{Owner, names};
use vigil_model::{Because, Exit, Moment, Status};
use vigil_relay::control::Denied;
use vigil_sys::{map::SharedMap, wait};

use crate::Error;

/// A process by its number and its start in ticks.
pub(crate) type Process = (u32, u64);

/// See the module; clones share the mapping.
#[derive(Debug, Clone)]
pub struct ExitRecords(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    map: SharedMap,
    /// For the time after the reaper; what it is mapped from must not be looked
    /// for again then.
    file: File,
    heir: Mutex<Option<Heir>>,
}

/// The writer after the reaper.
#[derive(Debug)]
struct Heir(Recorder<'static>);

impl ExitRecords {
    /// Maps the file that was handed down, or the one at `path`; it must be this owner's.
    pub fn open(path: &Path, handed: Option<OwnedFd>, whose: &Owner) -> Result<Self, Error> {
        let file = match handed {
            Some(handed) => File::from(handed),
            None => vigil_journal::exits::open(path).map_err(|source| Error::Exits { source })?,
        };
        let map = SharedMap::read_only(file.as_fd()).map_err(|source| {
            let what = path.display().to_string();
            Error::Host(vigil_host::Error::Kernel {
                op: "map",
                what,
                source,
            })
        })?;
        let heir = Mutex::default();
        let records = Self(Arc::new(Shared { map, file, heir }));
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

    /// The reaper is dead and will store nothing any more: from now on this
    /// process does.
    pub(crate) fn inherit(&self) -> Result<(), Error> {
        let map = SharedMap::read_write(self.0.file.as_fd());
        let map = map.map_err(|source| {
            Error::Host(vigil_host::Error::Kernel {
                op: "map",
                what: "the exit records for writing".to_owned(),
                source,
            })
        })?;
        // Leaked: needed until the process ends.
        let words = Box::leak(Box::new(map)).words();
        let recorder = Recorder::new(words).map_err(|source| Error::Exits { source });
        let mut recorder = recorder?;
        // In the bundle as it is, whatever has its name by now.
        if let Err(error) = recorder.keep_in(Path::new(names::EXITS)) {
            log::warn!("{}", vigil_host::chain(&error));
        }
        *self.heir() = Some(Heir(recorder));
        Ok(())
    }

    fn heir(&self) -> MutexGuard<'_, Option<Heir>> {
        self.0.heir.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins as the reaper would have; only after its death.
    pub(crate) fn pin(&self, pid: u32, start_ticks: u64, since: u64) -> Result<usize, Error> {
        let mut heir = self.heir();
        let Heir(recorder) = heir.as_mut().ok_or(Error::ReaperGone)?;
        let pinned = recorder.pin(pid, start_ticks, since);
        pinned.map_err(|error| Error::Denied {
            source: match error {
                PinError::Full => Denied::PinsFull,
                PinError::Ambiguous { .. } => Denied::Ambiguous,
            },
        })
    }

    /// Lets go of a pin; only after the reaper's death.
    pub(crate) fn unpin(&self, index: usize) {
        if let Some(Heir(recorder)) = self.heir().as_mut() {
            recorder.unpin(index);
        }
    }

    /// Records a death; only after the reaper's.
    pub(crate) fn record(&self, death: Death) {
        if let Some(Heir(recorder)) = self.heir().as_mut() {
            recorder.record(death);
        }
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

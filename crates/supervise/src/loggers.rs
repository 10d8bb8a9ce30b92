//! The loggers that run for this container. One that an earlier shim started is
//! a child of the reaper like everything of the container, and would be ended
//! with it; so who they are is known from the slots that hold them.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use vigil_host::proc;
use vigil_model::Incarnation;
use vigil_sys::pidfd;

use crate::stdio::SlotId;

/// See the module; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loggers(Arc<Mutex<BTreeMap<SlotId, Incarnation>>>);

impl Loggers {
    /// The process of this pidfd is one until its slot is released.
    pub(crate) fn note(&self, slot: SlotId, logger: BorrowedFd<'_>) {
        let found = match pidfd::pid(logger) {
            Ok(Some(pid)) => proc::incarnation(pid),
            // Dead: nothing to be spared.
            Ok(None) => return,
            Err(errno) => return log::warn!("a logger nobody knows: {errno}"),
        };
        match found {
            Ok(Some(process)) => {
                self.all().insert(slot, process);
            }
            Ok(None) => {}
            Err(error) => log::warn!("a logger nobody knows: {}", vigil_host::chain(&error)),
        }
    }

    /// Its slot is released.
    pub(crate) fn forget(&self, slot: SlotId) {
        self.all().remove(&slot);
    }

    /// Those that run, as far as the records go.
    pub(crate) fn running(&self) -> Vec<Incarnation> {
        self.all().values().cloned().collect()
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<SlotId, Incarnation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

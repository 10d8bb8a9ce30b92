//! The reaper as the keeper of stdio descriptors. A slot's number says whose
//! it is: the number of the set of streams, which the journal knows, and the
//! kind. So a later shim knows what belongs where, without a record of its own.

use std::os::fd::AsFd;

use vigil_host::stdio::SlotKind;
use vigil_relay::control::{DEPOSIT_MAX, Slot};

use crate::Error;
use crate::control::Control;
use crate::loggers::Loggers;
use crate::stdio::{Keeper, SlotId};
use crate::watched::SharedFd;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    control: Control,
    loggers: Loggers,
    streams: u32,
}

/// Kinds a set may have; their numbers are below.
const KINDS: u32 = 32;

/// The set of streams a slot belongs to.
pub(crate) fn streams_of(slot: SlotId) -> u32 {
    slot.0 / KINDS
}

impl Kept {
    /// For one set of streams.
    pub(crate) fn of(control: &Control, loggers: &Loggers, streams: u32) -> Self {
        Self {
            control: control.clone(),
            loggers: loggers.clone(),
            streams,
        }
    }

    fn slot(&self, kind: SlotKind) -> Slot {
        Slot {
            slot: self.streams * KINDS + u32::from(kind.code()),
            kind: kind.code(),
        }
    }
}

impl Keeper for Kept {
    type Error = Error;

    async fn deposit(&self, ends: &[(SlotKind, SharedFd)]) -> Result<Vec<SlotId>, Error> {
        let mut given = Vec::with_capacity(ends.len());
        for ends in ends.chunks(DEPOSIT_MAX) {
            let slots: Vec<Slot> = ends.iter().map(|(kind, _)| self.slot(*kind)).collect();
            let fds: Vec<SharedFd> = ends.iter().map(|(_, fd)| fd.clone()).collect();
            for ((kind, fd), slot) in ends.iter().zip(&slots) {
                if *kind == SlotKind::Logger {
                    self.loggers.note(SlotId(slot.slot), fd.as_fd());
                }
            }
            given.extend(slots.iter().map(|slot| SlotId(slot.slot)));
            self.control.deposit(slots, &fds).await?;
        }
        Ok(given)
    }

    async fn accept(&self, listener: SlotId, kind: SlotKind) -> Option<(SlotId, SharedFd)> {
        let slot = self.slot(kind);
        match self.control.accept(listener.0, slot).await {
            Ok(accepted) => accepted.map(|fd| (SlotId(slot.slot), fd)),
            Err(error) => {
                log::warn!("stdio: {}", vigil_host::chain(&error));
                None
            }
        }
    }

    async fn ended(&self, slots: &[SlotId]) -> Result<(), Error> {
        for slot in slots {
            self.loggers.forget(*slot);
        }
        self.control
            .ended(slots.iter().map(|slot| slot.0).collect())
            .await
    }
}

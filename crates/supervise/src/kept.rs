//! The reaper as the keeper of stdio descriptors: slots are numbered here, so
//! that what is deposited can be named before it is.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vigil_host::stdio::SlotKind;
use vigil_relay::control::{DEPOSIT_MAX, Slot};

use crate::Error;
use crate::control::Control;
use crate::stdio::{Keeper, SlotId};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    control: Control,
    next: Arc<AtomicU32>,
}

impl Kept {
    pub(crate) fn new(control: Control) -> Self {
        Self {
            control,
            next: Arc::new(AtomicU32::new(1)),
        }
    }
}

impl Keeper for Kept {
    type Error = Error;

    async fn deposit(&self, ends: &[(SlotKind, BorrowedFd<'_>)]) -> Result<Vec<SlotId>, Error> {
        let mut given = Vec::with_capacity(ends.len());
        for ends in ends.chunks(DEPOSIT_MAX) {
            let slots: Vec<Slot> = ends
                .iter()
                .map(|(kind, _)| Slot {
                    slot: self.next.fetch_add(1, Ordering::Relaxed),
                    kind: kind.code(),
                })
                .collect();
            let fds: Vec<BorrowedFd<'_>> = ends.iter().map(|(_, fd)| *fd).collect();
            given.extend(slots.iter().map(|slot| SlotId(slot.slot)));
            self.control.deposit(slots, &fds).await?;
        }
        Ok(given)
    }

    async fn ended(&self, slots: &[SlotId]) -> Result<(), Error> {
        self.control
            .ended(slots.iter().map(|slot| slot.0).collect())
            .await
    }
}

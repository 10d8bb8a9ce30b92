//! The input of a process, from its client's fifo to its pipe or terminal. The
//! shim holds a writer of the fifo, so that a client that detaches is no end
//! of file; after CloseIO closed that writer, the client's own close is one.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::copy::{Attempt, Mover};
use super::keeper::{Keeper, SlotId, Slots};
use super::output::{Life, reached};
use super::ready::{First, SharedFd, first};

/// Our writer of the client's stdin fifo; shared, as CloseIO and the end of
/// the copy both close it, whichever comes first.
#[derive(Debug, Clone, Default)]
pub(super) struct Writer(Arc<Mutex<Option<(SharedFd, SlotId)>>>);

impl Writer {
    pub(super) fn new(fd: SharedFd, slot: SlotId) -> Writer {
        Writer(Arc::new(Mutex::new(Some((fd, slot)))))
    }

    pub(super) fn take(&self) -> Option<(SharedFd, SlotId)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub(super) struct Input<K> {
    pub(super) mover: Mover,
    pub(super) writer: Writer,
    /// Of the fifo's reader and of the pipe.
    pub(super) own_slots: Vec<SlotId>,
    pub(super) slots: Arc<Slots<K>>,
    pub(super) life: watch::Receiver<Life>,
}

impl<K: Keeper> Input<K> {
    /// Runs until the client closed, the process stopped reading, or is gone.
    pub(super) async fn run(mut self) {
        loop {
            let gone = reached(&mut self.life, Life::Gone);
            match first(gone, self.mover.step(false)).await {
                First::Other(
                    Attempt::Bytes(_) | Attempt::SourceEmpty | Attempt::SinkFull | Attempt::HungUp,
                ) => {}
                // EPIPE: the process closed its end. Closing ours tells the
                // client, who would otherwise wait for room for ever.
                First::Other(Attempt::Ended | Attempt::Broken(_)) | First::One(()) => break,
            }
        }
        let writer = self.writer.take();
        self.own_slots.extend(writer.iter().map(|(_, slot)| *slot));
        self.slots.ended(&self.own_slots).await;
    }
}

//! Who else holds our descriptors. The reaper keeps a copy of each, so that a
//! shim's death loses no byte; it must hold them before the process that
//! depends on them is started, and let go of them before we do, or nobody
//! would ever see an end of file.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vigil_host::stdio::SlotKind;

use super::ready::SharedFd;

/// Longest wait for the keeper to let go; after it we close our copy all the
/// same. The keeper has a deadline of its own; this one is for one that lacks it.
const LET_GO: Duration = Duration::from_secs(6);

/// A place in the keeper's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// Holds copies of descriptors: the reaper, over its control socket.
pub trait Keeper: Send + Sync + 'static {
    /// Why it did not.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Keeps a copy of each. When this returns they are in its hands; one slot
    /// for each, in the same order.
    fn deposit(
        &self,
        ends: &[(SlotKind, SharedFd)],
    ) -> impl Future<Output = Result<Vec<SlotId>, Self::Error>> + Send;

    /// The copies through these have ended. When this returns, its own are
    /// closed and the slots free.
    fn ended(&self, slots: &[SlotId]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Accepts who calls on the listener it keeps there and keeps the connection, so
    /// that nobody's death loses what was sent on it. `None`: it does not.
    fn accept(
        &self,
        listener: SlotId,
        kind: SlotKind,
    ) -> impl Future<Output = Option<(SlotId, SharedFd)>> + Send;
}

/// Keeps nothing: for tests, and for a shim whose reaper is dead.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoKeeper;

impl Keeper for NoKeeper {
    type Error = std::convert::Infallible;

    async fn deposit(&self, ends: &[(SlotKind, SharedFd)]) -> Result<Vec<SlotId>, Self::Error> {
        Ok((0u32..).map(SlotId).take(ends.len()).collect())
    }

    async fn ended(&self, _slots: &[SlotId]) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn accept(&self, _listener: SlotId, _kind: SlotKind) -> Option<(SlotId, SharedFd)> {
        None
    }
}

/// The slots of one process that are not released yet.
pub(super) struct Slots<K> {
    keeper: K,
    live: Mutex<BTreeSet<SlotId>>,
}

impl<K: Keeper> Slots<K> {
    pub(super) fn new(keeper: K) -> Self {
        Slots {
            keeper,
            live: Mutex::default(),
        }
    }

    /// Slots an earlier shim deposited.
    pub(super) fn adopt(&self, slots: impl IntoIterator<Item = SlotId>) {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(slots);
    }

    pub(super) async fn deposit(
        &self,
        ends: &[(SlotKind, SharedFd)],
    ) -> Result<Vec<SlotId>, K::Error> {
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let slots = self.keeper.deposit(ends).await?;
        self.adopt(slots.iter().copied());
        Ok(slots)
    }

    /// Has the keeper let go. Whatever it answers, the caller closes its own
    /// copies next: a keeper that is gone holds nothing.
    pub(super) async fn ended(&self, slots: &[SlotId]) {
        if slots.is_empty() {
            return;
        }
        match tokio::time::timeout(LET_GO, self.keeper.ended(slots)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("stdio: ends not released: {error}"),
            Err(_) => log::warn!("stdio: ends not released: no answer in {LET_GO:?}"),
        }
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in slots {
            live.remove(slot);
        }
    }

    pub(super) async fn accept(
        &self,
        listener: SlotId,
        kind: SlotKind,
    ) -> Option<(SlotId, SharedFd)> {
        let accepted = self.keeper.accept(listener, kind).await?;
        self.adopt([accepted.0]);
        Some(accepted)
    }

    /// Has the keeper let go of all that is left, apart from these.
    pub(super) async fn ended_all_but(&self, these: &[SlotId]) {
        let left: Vec<SlotId> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            let live = live.iter().filter(|slot| !these.contains(slot));
            live.copied().collect()
        };
        self.ended(&left).await;
    }
}

impl<K> fmt::Debug for Slots<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots")
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

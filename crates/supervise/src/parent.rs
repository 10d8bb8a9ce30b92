//! Who is the parent of what the runtime makes: the reaper, and when that is
//! dead, this shim, for what is made from then on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// See the module; clones are the same one.
#[derive(Debug, Clone)]
pub struct Parent(Arc<AtomicU32>);

impl Parent {
    /// The reaper.
    pub fn reaper(pid: u32) -> Self {
        Self(Arc::new(AtomicU32::new(pid)))
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the reaper is dead.
    pub fn is_us(&self) -> bool {
        self.pid() == std::process::id()
    }

    /// The reaper is dead.
    pub(crate) fn orphaned(&self) {
        self.0.store(std::process::id(), Ordering::Relaxed);
    }
}

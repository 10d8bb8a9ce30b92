//! Effects that take time, each a task of its own that ends in exactly one
//! message to the owner. A job owns what it works with and decides nothing
//! about the container; nothing here is cancelled by a client going away.

pub(crate) mod clear;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod gone;
pub(crate) mod identify;
pub(crate) mod recover;
pub(crate) mod resume;
pub(crate) mod runc;
pub(crate) mod update;
pub(crate) mod verbs;
pub(crate) mod without;

use std::ffi::OsString;
use std::os::fd::AsFd;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use vigil_host::cgroup::Hierarchies;
use vigil_host::runc::{Deadlines, Runtime};
use vigil_host::stdio::SlotKind;
use vigil_model::{Driver, Kind, Plan, Refusal};
use vigil_relay::control::Denied;

use crate::control::Control;
use crate::exits::ExitRecords;
use crate::kept::Kept;
use crate::loggers::Loggers;
use crate::owner::Place;
use crate::stdio::{Patience, SlotId, Streams};
use crate::watched::SharedFd;

/// Descriptors the reaper held of one set of streams.
pub(crate) type Held = Vec<(SlotId, SlotKind, SharedFd)>;

/// What every job may use.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) place: Arc<Place>,
    pub(crate) control: Control,
    pub(crate) loggers: Loggers,
    pub(crate) exits: ExitRecords,
    pub(crate) hierarchies: HostCgroups,
    pub(crate) deadlines: Deadlines,
}

impl Tools {
    /// One set of streams of which nothing is open yet.
    pub(crate) fn streams(&self, number: u32) -> Streams<Kept> {
        self.held_streams(number, Vec::new())
    }

    /// One set of streams, with what a dead shim had deposited of it.
    pub(crate) fn held_streams(&self, number: u32, held: Held) -> Streams<Kept> {
        for (slot, kind, fd) in &held {
            if *kind == SlotKind::Logger {
                self.loggers.note(*slot, fd.as_fd());
            }
        }
        let keeper = Kept::of(&self.control, &self.loggers, number);
        Streams::resume(held, keeper, Patience::default())
    }
}

/// The host's cgroup hierarchies, read when the first container asks: `start`
/// waits for nothing it does not need.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostCgroups(Arc<OnceLock<Hierarchies>>);

impl HostCgroups {
    pub(crate) fn read(&self) -> vigil_host::Result<&Hierarchies> {
        if let Some(known) = self.0.get() {
            return Ok(known);
        }
        let read = Hierarchies::read()?;
        Ok(self.0.get_or_init(|| read))
    }
}

/// runc as this plan wants it.
pub(crate) fn runtime(plan: &Plan) -> Runtime {
    Runtime {
        program: OsString::from(&plan.runtime),
        root: PathBuf::from(&plan.runtime_root),
        systemd_cgroup: plan.driver == Driver::Systemd,
    }
}

/// A failure of the host or of our own machinery, for a client.
pub(crate) fn refusal(error: &(dyn std::error::Error + 'static)) -> Refusal {
    refusal_of(Kind::Unknown, error)
}

/// The same of another kind, unless a limit was reached: that is nobody's fault who asks, and
/// passes.
pub(crate) fn refusal_of(kind: Kind, error: &(dyn std::error::Error + 'static)) -> Refusal {
    let says = vigil_host::chain(error);
    match vigil_host::scarcity(error).or_else(|| of_the_reaper(error)) {
        Some(limit) => Refusal::new(Kind::ResourceExhausted, format!("{says}: {limit}")),
        None => Refusal::new(kind, says),
    }
}

/// What the reaper has too little of.
fn of_the_reaper(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    vigil_host::causes(error).find_map(|cause| match cause.downcast_ref::<Denied>() {
        Some(Denied::SlotsFull) => Some(
            "the reaper has as many open files as it may, or holds as many as it can; \
             the limit is RLIMIT_NOFILE of that process",
        ),
        Some(Denied::PinsFull) => Some("the reaper keeps as many processes as it can"),
        _ => None,
    })
}

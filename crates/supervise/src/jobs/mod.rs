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

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use vigil_host::cgroup::Hierarchies;
use vigil_host::runc::{Deadlines, Runtime};
use vigil_model::{Driver, Kind, Plan, Refusal};

use crate::control::Control;
use crate::exits::ExitRecords;
use crate::kept::Kept;
use crate::owner::Place;

/// What every job may use.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) place: Arc<Place>,
    pub(crate) control: Control,
    pub(crate) exits: ExitRecords,
    pub(crate) hierarchies: HostCgroups,
    pub(crate) deadlines: Deadlines,
}

impl Tools {
    /// The keeper of one set of streams.
    pub(crate) fn keeper(&self, streams: u32) -> Kept {
        Kept::of(&self.control, streams)
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
    Refusal::new(Kind::Unknown, vigil_host::chain(error))
}

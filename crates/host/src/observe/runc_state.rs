//! What runc wrote down about a container, for when our own record is lost.
//! Read, believed only as far as it can be checked, never changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use vigil_model::Incarnation;
use vigil_sys::pidfd;

use crate::proc::{self, Checked, read_bounded};
use crate::{Error, Result};

/// Largest `state.json` read; it repeats the container's whole configuration.
const STATE_LEN_MAX: u64 = 20 << 20;

#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(default)]
    init_process_pid: u32,
    #[serde(default)]
    init_process_start: u64,
    #[serde(default)]
    cgroup_paths: Option<BTreeMap<String, PathBuf>>,
    #[serde(default)]
    config: RawConfig,
}

#[derive(Debug, Default, Deserialize)]
struct RawConfig {
    #[serde(default)]
    labels: Option<Vec<String>>,
    #[serde(default, rename = "Hooks")]
    hooks: Option<RawHooks>,
}

#[derive(Debug, Default, Deserialize)]
struct RawHooks {
    #[serde(default)]
    poststop: Option<Vec<IgnoredAny>>,
}

/// `ROOT/ID/state.json`, as far as it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuncState {
    /// Init. runc notes pid and start time; the rest is ours to assume, since
    /// its root lies on a tmpfs.
    pub init: Option<Incarnation>,
    /// Directory by v1 controller, or by `""` on v2.
    pub cgroups: BTreeMap<String, PathBuf>,
    /// The bundle it was made from.
    pub bundle: Option<PathBuf>,
    /// Whether there are hooks that `runc delete` would run.
    pub poststop: bool,
}

/// What there is of it.
#[derive(Debug)]
pub enum Found {
    /// It.
    State(RuncState),
    /// No such file: runc has not come so far, or somebody else keeps its
    /// state under other names.
    Nothing,
    /// It is no state of runc's, and will not be one later: nothing can be
    /// learned from it, by runc neither.
    Torn(Error),
    /// It could not be looked at, this time.
    Unread(Error),
}

impl From<Result<Option<RuncState>>> for Found {
    fn from(loaded: Result<Option<RuncState>>) -> Self {
        match loaded {
            Ok(Some(state)) => Found::State(state),
            Ok(None) => Found::Nothing,
            Err(error @ Error::Malformed { .. }) => Found::Torn(error),
            Err(error) => Found::Unread(error),
        }
    }
}

impl RuncState {
    /// Reads it; `None` if there is none.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("state.json");
        let bytes = match read_bounded(&path, STATE_LEN_MAX) {
            Ok(bytes) => bytes,
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let raw: Raw = serde_json::from_slice(&bytes).map_err(|e| Error::Malformed {
            path,
            problem: format!("not a state of runc: {e}"),
        })?;
        let known = raw.init_process_pid != 0 && raw.init_process_start != 0;
        let init = if known {
            Some(Incarnation {
                pid: raw.init_process_pid,
                start_ticks: raw.init_process_start,
                pid_ns: proc::pid_namespace()?,
                boot: proc::boot_id()?,
                pidfd_inode: None,
            })
        } else {
            None
        };
        let poststop = raw.config.hooks.and_then(|hooks| hooks.poststop);
        Ok(Some(Self {
            init,
            poststop: poststop.is_some_and(|hooks| !hooks.is_empty()),
            cgroups: raw.cgroup_paths.unwrap_or_default(),
            bundle: raw
                .config
                .labels
                .unwrap_or_default()
                .iter()
                .find_map(|label| label.strip_prefix("bundle="))
                .map(PathBuf::from),
        }))
    }

    /// Whether it can be of the container in this bundle: an id may be taken
    /// by somebody else below the same root.
    pub fn may_be_of(&self, bundle: &Path) -> bool {
        self.bundle.is_none() || self.is_of(bundle)
    }

    /// Whether its init lives. Of one that is dead the cgroups may be somebody else's by now.
    pub fn lives(&self) -> bool {
        let init = self.init.as_ref().map(proc::open_checked);
        matches!(init, Some(Ok(Checked::Same(fd))) if pidfd::is_dead(&fd) == Ok(false))
    }

    /// Whether it says that it is of the container in this bundle.
    pub fn is_of(&self, bundle: &Path) -> bool {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        self.bundle
            .as_ref()
            .is_some_and(|theirs| theirs == bundle || real(theirs) == real(bundle))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_runc_wrote_is_read_and_what_is_torn_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(RuncState::load(dir.path()).unwrap(), None);
        let file = dir.path().join("state.json");
        std::fs::write(
            &file,
            r#"{"id":"x","init_process_pid":7,"init_process_start":11,
                "cgroup_paths":{"pids":"/sys/fs/cgroup/pids/x"},
                "config":{"labels":["a=b","bundle=/b/x"],"Hooks":{"prestart":null,"poststop":[{"path":"/x"}]}}}"#,
        )
        .unwrap();
        let state = RuncState::load(dir.path()).unwrap().unwrap();
        let init = state.init.as_ref().unwrap();
        assert_eq!((init.pid, init.start_ticks), (7, 11));
        assert!(state.may_be_of(Path::new("/b/x")));
        assert!(!state.may_be_of(Path::new("/b/y")));
        assert_eq!(state.cgroups.len(), 1);
        assert!(state.poststop);
        std::fs::write(&file, "{}").unwrap();
        let state = RuncState::load(dir.path()).unwrap().unwrap();
        assert!(!state.poststop && state.init.is_none() && state.may_be_of(Path::new("/any")));
        std::fs::write(&file, r#"{"init_process_pid":"#).unwrap();
        assert!(matches!(
            RuncState::load(dir.path()),
            Err(Error::Malformed { .. })
        ));
    }
}

//! What the operator configured for this runtime, whichever message carried it.

use serde::{Deserialize, Serialize};

/// The keys of `containerd.runc.v1.Options`, also accepted as TOML in
/// `runtimeoptions.v1.Options` under their Go names (`BinaryName`, `Root` …).
/// An empty string means *not given*.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// runc or a compatible program, by name or path; default `runc`.
    pub binary_name: String,
    /// runc's state root; default `/run/containerd/runc`. The containerd
    /// namespace is appended.
    pub root: String,
    /// `--systemd-cgroup`; `None` when nothing said so, then the form of
    /// `cgroupsPath` decides.
    pub systemd_cgroup: Option<bool>,
    /// `--no-pivot`.
    pub no_pivot_root: bool,
    /// `--no-new-keyring` on create.
    pub no_new_keyring: bool,
    /// Existing cgroup that the pair joins at `start`.
    pub shim_cgroup: String,
    /// Owner of the stdio pipes.
    pub io_uid: u32,
    /// Group of the stdio pipes.
    pub io_gid: u32,
    /// CRIU program, for runc < 1.2.
    pub criu_path: String,
    /// Checkpoint to restore from; containerd copies it into the Create request.
    pub criu_image_path: String,
    /// CRIU's work directory for a restore.
    pub criu_work_path: String,
}

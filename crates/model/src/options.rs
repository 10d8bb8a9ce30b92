//! What the operator configured for this runtime, whichever message carried it.

use serde::{Deserialize, Serialize};

/// The keys of `containerd.runc.v1.Options`, also accepted as TOML in
/// `runtimeoptions.v1.Options` under their Go names (`BinaryName`, `Root` …).
/// An empty string means *not given*.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// runc or a compatible program, by name or path; default `runc`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub binary_name: String,
    /// runc's state root; default `/run/containerd/runc`. The containerd
    /// namespace is appended.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// `--systemd-cgroup`; `None` when nothing said so, then the form of
    /// `cgroupsPath` decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub systemd_cgroup: Option<bool>,
    /// `--no-pivot`.
    #[serde(skip_serializing_if = "is_default")]
    pub no_pivot_root: bool,
    /// `--no-new-keyring` on create.
    #[serde(skip_serializing_if = "is_default")]
    pub no_new_keyring: bool,
    /// Existing cgroup that the pair joins at `start`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shim_cgroup: String,
    /// Owner of the stdio pipes.
    #[serde(skip_serializing_if = "is_default")]
    pub io_uid: u32,
    /// Group of the stdio pipes.
    #[serde(skip_serializing_if = "is_default")]
    pub io_gid: u32,
    /// CRIU program, for runc < 1.2.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub criu_path: String,
    /// Checkpoint to restore from; containerd copies it into the Create request.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub criu_image_path: String,
    /// CRIU's work directory for a restore.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub criu_work_path: String,
}

/// For fields that are not written when they say nothing.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

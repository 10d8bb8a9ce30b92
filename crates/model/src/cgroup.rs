//! What was known about the container's cgroups before runc ran.
//!
//! Ownership follows from it: absent before means what appears there is ours;
//! populated before means never ours, and it is neither killed nor removed.

use serde::{Deserialize, Serialize};

/// Who places the container into its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// runc makes the directories itself.
    Cgroupfs,
    /// systemd makes a scope; the path has the form `slice:prefix:name`.
    Systemd,
}

/// What stood at a cgroup path before `runc create`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// Nothing.
    Absent,
    /// A directory.
    Existed {
        /// Its inode, which is also the cgroup id on v2.
        inode: u64,
        /// Whether any process was in it or below it.
        populated: bool,
        /// Out-of-memory kills its counter held already: an earlier life's, or
        /// somebody else's, and no news of this container.
        #[serde(default, skip_serializing_if = "is_zero")]
        ooms: u64,
    },
    /// It could not be looked at.
    Unknown,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The container's cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The controllers of a v1 hierarchy as in `/proc/self/cgroup` (`"memory"`,
    /// `"cpu,cpuacct"`, `"name=systemd"`), or `""` for the unified one.
    pub hierarchy: String,
    /// Absolute path of the directory, mount point included.
    pub path: String,
    /// What was there before.
    pub before: Before,
    /// Inode of the directory after `runc create`, once seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

impl Claim {
    /// Whether the directory and what lives in it may be killed and removed.
    pub fn ours(&self) -> bool {
        match self.before {
            Before::Absent => true,
            Before::Existed { populated, .. } => !populated,
            Before::Unknown => false,
        }
    }
}

//! Names of things: containers, execs, namespaces and processes.
//!
//! A process is never a bare number here. An [`Incarnation`] says which
//! process with that pid was meant, on which boot and in which pid namespace,
//! so that a number read back from a file can be checked before it is used.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest id containerd accepts (`pkg/identifiers`: 76 characters).
pub const ID_LEN_MAX: usize = 76;

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("id is empty")]
    Empty,
    /// More than [`ID_LEN_MAX`] characters.
    #[error("id is {len} characters long, {ID_LEN_MAX} are allowed")]
    TooLong {
        /// How long it was.
        len: usize,
    },
    /// A character, or an order of characters, that containerd refuses too.
    #[error("id {id:?} must be alphanumerics with single '.', '_' or '-' between them")]
    Malformed {
        /// The text, cut to [`ID_LEN_MAX`].
        id: String,
    },
}

/// containerd's rule for identifiers: `^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$`.
fn check(id: &str) -> Result<(), IdError> {
    if id.is_empty() {
        return Err(IdError::Empty);
    }
    let len = id.chars().count();
    if len > ID_LEN_MAX {
        return Err(IdError::TooLong { len });
    }
    let mut separator_before = true;
    for c in id.chars() {
        let separator = matches!(c, '.' | '_' | '-');
        if !(separator || c.is_ascii_alphanumeric()) || separator && separator_before {
            return Err(IdError::Malformed { id: id.to_owned() });
        }
        separator_before = separator;
    }
    if separator_before {
        return Err(IdError::Malformed { id: id.to_owned() });
    }
    Ok(())
}

/// One request of containerd: a connection of the reaper's and a stream on it.
/// Neither number is used twice, so a request that was with a shim that died
/// is recognised when it is given to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Number of the connection.
    pub conn: u32,
    /// Number of the stream.
    pub stream: u32,
}

macro_rules! identifier {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text against containerd's rule for identifiers.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check(&text)?;
                Ok(Self(text))
            }

            /// The text, as containerd wrote it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(TaskId, "The id of a container and of its task.");
identifier!(ExecId, "The id of one exec of a task.");
identifier!(Namespace, "A containerd namespace.");

/// One process of a task: its init, or one of its execs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The container's first process.
    Init,
    /// A process added later.
    Exec(ExecId),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Init => f.write_str("init"),
            Who::Exec(id) => write!(f, "exec {id}"),
        }
    }
}

/// `/proc/sys/kernel/random/boot_id`: 36 characters, new at each boot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BootId(pub String);

/// Which process a pid meant.
///
/// Two incarnations are the same process only if every field known on both
/// sides agrees; see [`Incarnation::same`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// The pid, in the pid namespace `pid_ns`.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_ticks: u64,
    /// Inode of the pid namespace the number belongs to.
    pub pid_ns: u64,
    /// The boot it ran in.
    pub boot: BootId,
    /// Inode of its pidfd where pidfs exists (Linux 6.9), else `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidfd_inode: Option<u64>,
}

impl Incarnation {
    /// Whether both descriptions can only mean one process.
    pub fn same(&self, other: &Incarnation) -> bool {
        self.pid == other.pid
            && self.start_ticks == other.start_ticks
            && self.pid_ns == other.pid_ns
            && self.boot == other.boot
            && match (self.pidfd_inode, other.pidfd_inode) {
                (Some(a), Some(b)) => a == b,
                (Some(_) | None, None) | (None, Some(_)) => true,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_containerds_rule() {
        for good in ["a", "abc-1.2_3", &"x".repeat(76)] {
            assert!(TaskId::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a..b",
            "a/b",
            "..",
            "ä",
            "a b",
            &"x".repeat(77),
        ] {
            assert!(TaskId::new(bad).is_err(), "{bad}");
        }
    }
}

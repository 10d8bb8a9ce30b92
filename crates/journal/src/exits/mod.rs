//! The exit records: how each process below the reaper ended.
//!
//! Owns the layout of a memory the reaper shares with the shim, and of the file beside it, which
//! is for `delete`: recording is a handful of stores and cannot fail. It must
//! never map memory, allocate while recording, or let a reader see half a
//! record, wherever the reaper was killed.

mod kept;
mod read;
mod record;
mod snapshot;
mod spill;
#[cfg(test)]
mod tests;

pub use read::{Exits, Slot};
pub use record::{Kept, PinError, Recorder};
pub use snapshot::{Snapshot, open, read};

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

/// Slots for processes the shim has registered.
pub const PINNED: usize = 1016;
/// The same in version 1.
pub const PINNED_V1: usize = 1022;
/// Deaths of other processes that are remembered.
pub const RING: usize = 256;
/// Bytes of the memory and of the file: ten pages.
pub const BYTES: usize = WORDS * 8;

/// The layout in 64-bit words: head, slots, ring.
pub(crate) mod layout {
    use super::{PINNED, PINNED_V1, RING};

    /// [`MAGIC_VALUE`], stored last when the memory is formatted.
    pub(crate) const MAGIC: usize = 0;
    /// Version of the layout.
    pub(crate) const VERSION: usize = 1;
    /// Deaths that have gone to the ring so far.
    pub(crate) const RING_SEQ: usize = 2;
    /// The boot id's 36 bytes, then zeros.
    pub(crate) const BOOT: usize = 3;
    pub(crate) const BOOT_WORDS: usize = 5;
    /// Whose they are, from version 2 on: salt, two lengths, two names.
    pub(crate) const SALT: usize = BOOT + BOOT_WORDS;
    pub(crate) const NAME_LENS: usize = SALT + 1;
    pub(crate) const NAMESPACE: usize = NAME_LENS + 1;
    pub(crate) const NAME_WORDS: usize = 10;
    pub(crate) const ID: usize = NAMESPACE + NAME_WORDS;
    /// The pinned slots …
    pub(crate) const SLOTS: usize = 32;
    /// … and where version 1 has them.
    pub(crate) const SLOTS_V1: usize = BOOT + BOOT_WORDS;
    const _: () = assert!(ID + NAME_WORDS <= SLOTS);
    const _: () = assert!(SLOTS_V1 + PINNED_V1 * ENTRY == RING_START);
    /// The ring.
    pub(crate) const RING_START: usize = SLOTS + PINNED * ENTRY;
    /// Words of a slot and of a ring entry alike.
    pub(crate) const ENTRY: usize = 4;
    /// Words in all.
    pub(crate) const WORDS: usize = RING_START + RING * ENTRY;

    // Within an entry. The commit word decides whether the others mean anything.
    pub(crate) const COMMIT: usize = 0;
    pub(crate) const TICKS: usize = 1;
    /// Pid in the upper half, nanoseconds in the lower.
    pub(crate) const PID_NANOS: usize = 2;
    pub(crate) const SECS: usize = 3;

    pub(crate) const MAGIC_VALUE: u64 = u64::from_ne_bytes(*b"VIGILEX\n");
    pub(crate) const VERSION_VALUE: u64 = 2;

    // A slot's commit word: state (8 bits), turn (24), status (32). The turn
    // goes up with each change, so no value comes back while it is looked at.
    pub(crate) const FREE: u64 = 0;
    pub(crate) const WAITING: u64 = 1;
    pub(crate) const DEAD: u64 = 2;
    pub(crate) const STATE_SHIFT: u32 = 56;
    pub(crate) const TURN_SHIFT: u32 = 32;
    pub(crate) const TURN_MASK: u64 = 0xff_ffff;

    // A ring entry's commit word: taken (1 bit), the low 31 bits of the
    // sequence number, status (32).
    pub(crate) const TAKEN: u64 = 1 << 63;
    pub(crate) const SEQ_SHIFT: u32 = 32;
    pub(crate) const SEQ_BITS: u32 = 31;
    pub(crate) const SEQ_MASK: u64 = (1 << SEQ_BITS) - 1;
}

/// 64-bit words of the mapping.
pub const WORDS: usize = layout::WORDS;

const _: () = assert!(BYTES == 10 * 4096);

/// How a status was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The reaper waited for its child.
    Waited,
    /// The kernel had kept it (`PIDFD_GET_INFO`, Linux 6.15).
    Kept,
    /// `/proc` told it of somebody else's zombie.
    Zombie,
    /// It was not: the reaper whose child it was had died before. There is no status.
    Unseen,
}

impl Way {
    const ALL: [Way; 4] = [Way::Waited, Way::Kept, Way::Zombie, Way::Unseen];

    /// As it stands above a status: bits 16 to 23.
    const fn bits(self) -> u32 {
        (self as u32) << 16
    }

    /// One of a later version tells nothing that can be relied on.
    fn of(bits: u32) -> Way {
        let place = usize::try_from(bits >> 16).unwrap_or(usize::MAX);
        Way::ALL.get(place).copied().unwrap_or(Way::Unseen)
    }
}

/// What wait(2) never says of one that has ended: for readers that know of no [`Way`].
const NO_STATUS: i32 = 0x7f;

/// One process's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// Its pid, in the reaper's pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`, or 0 if that could not be read.
    pub start_ticks: u64,
    /// The status as `waitpid` gives it, undecoded.
    pub status: i32,
    /// When the reaper saw it: seconds after 1970 …
    pub at_secs: i64,
    /// … and nanoseconds.
    pub at_nanos: u32,
    /// How its status is known.
    pub way: Way,
}

impl Death {
    /// A death that is seen now.
    pub fn seen_now(pid: u32, start_ticks: u64, status: i32) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        Self {
            pid,
            start_ticks,
            status,
            at_secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            at_nanos: since.subsec_nanos(),
            way: Way::Waited,
        }
    }

    /// The word it is kept in: the way above the status.
    pub(crate) fn word(&self) -> u32 {
        let status = match self.way {
            Way::Unseen => NO_STATUS,
            Way::Waited | Way::Kept | Way::Zombie => self.status & 0xffff,
        };
        status.cast_unsigned() | self.way.bits()
    }

    /// Whether this can be the end of that process. 0 is an unknown start, on
    /// either side.
    pub fn is_of(&self, pid: u32, start_ticks: u64) -> bool {
        self.pid == pid && same_start(self.start_ticks, start_ticks)
    }
}

pub(crate) fn same_start(a: u64, b: u64) -> bool {
    a == b || a == 0 || b == 0
}

/// Why there are no exit records to be had.
#[derive(Debug, thiserror::Error)]
pub enum ExitsError {
    /// Not the one size they have.
    #[error("exit records of {len} bytes instead of {BYTES}")]
    Size {
        /// How many bytes there are.
        len: u64,
    },
    /// The memory was never formatted, or is another's.
    #[error("not exit records")]
    Foreign,
    /// Written by a later Vigil.
    #[error(
        "exit records of version {version}, versions up to {} are known here",
        layout::VERSION_VALUE
    )]
    Newer {
        /// That version.
        version: u64,
    },
    /// The head makes no sense.
    #[error("the exit records' head is damaged")]
    Damaged,
    /// They say that they are another container's, or of another life of this one.
    #[error(transparent)]
    NotOurs {
        /// Whose, and whose they were to be.
        source: crate::owner::NotOurs,
    },
    /// A directory, fifo, link or device has the name.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be made in full; nothing of it is left.
    #[error("{path}: cannot make the file of the exit records")]
    Create {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file could not be read.
    #[error("{path}: cannot read the exit records")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The reaper wrote whenever the file was read.
    #[error("{path}: the exit records did not hold still for two readings")]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

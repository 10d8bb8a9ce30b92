//! What can go wrong in the loop that is not a refusal to a client.

use vigil_relay::control::{ControlError, Denied};

/// A failure of the shim's own machinery.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The async runtime would not do something.
    #[error("cannot {op}")]
    Runtime {
        /// What.
        op: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A message for the reaper could not be written.
    #[error("cannot write a control message")]
    Control {
        /// Why.
        #[source]
        source: ControlError,
    },
    /// The reaper refused a call.
    #[error("the reaper refused")]
    Denied {
        /// Why.
        #[source]
        source: Denied,
    },
    /// The reaper is of a version that this shim cannot do with.
    #[error("the reaper speaks version {reaper} of the control protocol, {needed} is needed")]
    ReaperOld {
        /// Its version.
        reaper: u64,
        /// The oldest that would do.
        needed: u16,
    },
    /// The reaper is dead.
    #[error("the reaper is gone")]
    ReaperGone,
    /// The reaper did not answer.
    #[error("the reaper does not answer")]
    ReaperSilent,
    /// Not each descriptor that the reaper holds came here.
    #[error(
        "of {held} descriptors that the reaper holds {came} came: are there too few to be had?"
    )]
    SlotsLost {
        /// How many it sent.
        held: u64,
        /// How many of them came.
        came: u64,
    },
    /// The journal is damaged, and nobody has a copy of it.
    #[error(
        "{} is damaged at byte {at}, and the reaper has no copy: nobody can say what became of the container since; `vigil kill` ends it",
        path.display()
    )]
    JournalLost {
        /// Its path.
        path: std::path::PathBuf,
        /// Where.
        at: u64,
    },
    /// The journal could not be opened, written or read.
    #[error("the journal failed")]
    Journal {
        /// Why.
        #[source]
        source: vigil_journal::Error,
    },
    /// A record could not be encoded or decoded.
    #[error("a journal record is unreadable")]
    Codec {
        /// Why.
        #[source]
        source: vigil_model::CodecError,
    },
    /// The exit records are not what they should be.
    #[error("the exit records are unusable")]
    Exits {
        /// Why.
        #[source]
        source: vigil_journal::exits::ExitsError,
    },
    /// The kernel's boot id is not one.
    #[error("the boot id is malformed")]
    Boot {
        /// Why.
        #[source]
        source: vigil_journal::BootIdError,
    },
    /// Something on the host failed.
    #[error(transparent)]
    Host(#[from] vigil_host::Error),
}

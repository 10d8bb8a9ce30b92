//! What can go wrong with streams.

use std::io;
use std::path::PathBuf;

use vigil_host::stdio::PlanError;

/// A failure with the streams of a process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was asked for means nothing.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Something could not be opened.
    #[error(transparent)]
    Open(#[from] vigil_host::Error),
    /// The reaper did not take our descriptors.
    #[error("cannot deposit the ends of the streams")]
    Deposit(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The runtime did not take a descriptor.
    #[error("cannot watch {what}")]
    Watch {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A `binary-v2` logger ended without saying that it is ready.
    #[error("logger {program} ended before it was ready", program = program.display())]
    LoggerFailed {
        /// Which.
        program: PathBuf,
    },
    /// A logger said nothing.
    #[error("logger {program} was not ready within {after_s} s", program = program.display())]
    LoggerNotReady {
        /// Which.
        program: PathBuf,
        /// How long.
        after_s: u64,
    },
    /// runc exited and had not brought the terminal.
    #[error("runc brought no console within {after_ms} ms of its exit")]
    NoConsole {
        /// How long.
        after_ms: u128,
    },
    /// The terminal cannot be received, used or resized.
    #[error("cannot {op} the console")]
    Console {
        /// A verb.
        op: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

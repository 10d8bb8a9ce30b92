//! What can go wrong with a journal, one name for each.
//!
//! Owns no decision: whether a task may go on without a journal is its
//! caller's. Every variant that met the file system carries the path and the
//! kernel's answer as its source.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::frame::{FILE_BYTES_MAX, PAYLOAD_BYTES_MAX, VERSION};

/// The single act on the file system that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum During {
    /// Making the next generation's file under its side name.
    CreateSide,
    /// Writing the next generation.
    WriteSide,
    /// Syncing the next generation.
    SyncSide,
    /// Giving the next generation its name.
    Name,
    /// Syncing the directory after a name changed.
    SyncDirectory,
    /// Keeping a corrupt journal under a name of its own.
    KeepBad,
    /// Cutting a torn tail.
    Cut,
    /// Appending a record.
    Append,
}

impl fmt::Display for During {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            During::CreateSide => "making the side file",
            During::WriteSide => "writing the side file",
            During::SyncSide => "syncing the side file",
            During::Name => "giving it its name",
            During::SyncDirectory => "syncing the directory",
            During::KeepBad => "keeping the corrupt file",
            During::Cut => "cutting a torn tail",
            During::Append => "appending",
        })
    }
}

/// Every error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No journal could be created; nothing is left under its name.
    #[error("{path}: cannot create the journal, {during}")]
    Create {
        /// The journal.
        path: PathBuf,
        /// What was being done.
        during: During,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Something has the journal's name already; it was not touched.
    #[error("{path}: there is a file of this name already")]
    Exists {
        /// The journal.
        path: PathBuf,
    },
    /// The file could not be opened.
    #[error("{path}: cannot open the journal")]
    Open {
        /// The journal.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file could not be read to its end.
    #[error("{path}: cannot read the journal")]
    Read {
        /// The journal.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A directory, fifo, link or device has the journal's name.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// The journal.
        path: PathBuf,
    },
    /// Shorter than a header: no journal was ever completed here, or it was cut.
    #[error("{path}: {len} bytes are too few for a journal's header")]
    Short {
        /// The journal.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// It does not begin as a journal does.
    #[error("{path}: not a journal")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later Vigil.
    #[error("{path}: journal of version {version}, versions up to {VERSION} are known here")]
    Newer {
        /// The journal.
        path: PathBuf,
        /// The version in its header.
        version: u16,
    },
    /// A journal whose header fails its checksum or makes no sense.
    #[error("{path}: the journal's header is damaged")]
    Damaged {
        /// The journal.
        path: PathBuf,
    },
    /// Longer than any journal may be; it was not read.
    #[error("{path}: {len} bytes, a journal has at most {FILE_BYTES_MAX}")]
    TooBig {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// A payload above the bound. Nothing was written and nothing is latched.
    #[error("record of type {kind} has {len} bytes, {PAYLOAD_BYTES_MAX} are allowed")]
    PayloadTooBig {
        /// The record's type.
        kind: u16,
        /// Its length in bytes.
        len: usize,
    },
    /// The journal has reached its bound and must be compacted first. Nothing
    /// was written and nothing is latched.
    #[error("{path}: the journal is full at {used} bytes")]
    Full {
        /// The journal.
        path: PathBuf,
        /// Bytes in use.
        used: u64,
    },
    /// An append failed. The journal is latched from here on.
    #[error("{path}: cannot append record {seq}")]
    Append {
        /// The journal.
        path: PathBuf,
        /// The sequence number the record would have had.
        seq: u64,
        /// The kernel's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// An earlier error closed this journal; only opening it anew helps.
    #[error("{path}: the journal was closed by an earlier error, {during}")]
    Latched {
        /// The journal.
        path: PathBuf,
        /// What was being done then.
        during: During,
        /// The first error, as it was.
        #[source]
        cause: Arc<io::Error>,
    },
    /// A compaction failed. Before the new file has its name the old journal
    /// stays in use, untouched; after that ([`During::SyncDirectory`]) the
    /// journal is latched.
    #[error("{path}: cannot compact the journal, {during}")]
    Compact {
        /// The journal.
        path: PathBuf,
        /// What was being done.
        during: During,
        /// The kernel's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// It says that it is another container's, or of another life of this one.
    #[error(transparent)]
    NotOurs {
        /// Whose, and whose it was to be.
        source: crate::owner::NotOurs,
    },
    /// A file that cannot be read could not be moved out of the way.
    #[error("{path}: cannot set the file aside")]
    SetAside {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

//! The exit records as a file, read by `delete` and the tool.
//!
//! Owns the plain reading of what the reaper writes. It must never change
//! the file; `delete` reads it when the reaper is dead, the tool while it lives.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BYTES, Exits, ExitsError, WORDS};
use crate::file::{DiskFile, open_regular};
use crate::owner::Owner;
use crate::storage::Storage;

/// Pairs of readings before a living file is called busy.
const READINGS_MAX: usize = 16;

/// A copy of the exit records.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) words: Box<[AtomicU64]>,
}

impl Snapshot {
    /// Takes the bytes of the file. If the reaper may have been writing while
    /// they were read, two equal readings in a row are needed before they mean
    /// anything; [`read`] sees to that.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ExitsError> {
        let (words, rest) = bytes.as_chunks::<8>();
        if words.len() != WORDS || !rest.is_empty() {
            return Err(ExitsError::Size {
                len: bytes.len() as u64,
            });
        }
        let words = words
            .iter()
            .map(|word| AtomicU64::new(u64::from_ne_bytes(*word)))
            .collect();
        let snapshot = Snapshot { words };
        snapshot.checked()?;
        Ok(snapshot)
    }

    fn checked(&self) -> Result<Exits<'_>, ExitsError> {
        Exits::new(&self.words)
    }

    /// The records. Never fails on a snapshot that was made; the error exists
    /// so that nothing here can panic.
    pub fn exits(&self) -> Result<Exits<'_>, ExitsError> {
        self.checked()
    }

    /// The words as bytes again.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect()
    }
}

/// Opens the file at `path` for mapping: readable, writable, and of the one length, so that
/// no look at it can go beyond its end.
pub fn open(path: &Path) -> Result<File, ExitsError> {
    let file = regular(path, true)?;
    let failed = |source| ExitsError::Read {
        path: path.to_owned(),
        source,
    };
    match file.len().map_err(failed)? {
        len if len == BYTES as u64 => Ok(file.0),
        len => Err(ExitsError::Size { len }),
    }
}

fn regular(path: &Path, write: bool) -> Result<DiskFile, ExitsError> {
    open_regular(path, write).map_err(|error| match error {
        crate::Error::Open { path, source } => ExitsError::Read { path, source },
        _ => ExitsError::NotAFile {
            path: path.to_owned(),
        },
    })
}

/// Reads the file at `path`, twice and until both readings are equal: then no
/// record in it is half old and half new, whether or not the reaper lives. Those that say
/// that they are another's than `whose` are [`ExitsError::NotOurs`].
pub fn read(path: &Path, whose: &Owner) -> Result<Snapshot, ExitsError> {
    let file = regular(path, false)?;
    let failed = |source| ExitsError::Read {
        path: path.to_owned(),
        source,
    };
    let len = file.len().map_err(failed)?;
    if len != BYTES as u64 {
        return Err(ExitsError::Size { len });
    }
    let mut before = bytes_of(&file).map_err(failed)?;
    for _ in 0..READINGS_MAX {
        let after = bytes_of(&file).map_err(failed)?;
        if after == before {
            let snapshot = Snapshot::from_bytes(&after)?;
            let found = snapshot.exits()?.owner();
            whose
                .claims(path, found.as_ref())
                .map_err(|source| ExitsError::NotOurs { source })?;
            return Ok(snapshot);
        }
        before = after;
    }
    Err(ExitsError::Busy {
        path: path.to_owned(),
    })
}

fn bytes_of(file: &DiskFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; BYTES];
    file.0.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

//! A new generation of the journal: written beside the old one, then named.
//!
//! Owns the order side file, (sync), rename, (sync directory). The old file is
//! never written to here, so a crash or a full file system at any point leaves
//! either the old generation whole or the new one whole.

use std::io;
use std::sync::Arc;

use crate::error::{During, Error};
use crate::frame::{
    FILE_BYTES_MAX, FRAME_BYTES_MIN, HEADER_BYTES, Header, PAYLOAD_BYTES_MAX, encode,
};
use crate::names::SIDE_SUFFIX;
use crate::replay::Record;
use crate::storage::{Directory, Storage};
use crate::writer::{Journal, Settings};

/// Unit of the preallocation: what tmpfs and most others give at once.
const PAGE_BYTES: u64 = ZEROS.len() as u64;

static ZEROS: [u8; 4096] = [0; 4096];

/// A complete next generation that has no name yet but the side name.
pub(crate) struct Side<F> {
    pub(crate) file: F,
    pub(crate) end: u64,
}

/// What a journal's next generation is called until it takes the name.
pub(crate) fn side_name(name: &str) -> String {
    format!("{name}{SIDE_SUFFIX}")
}

/// Bytes to write in advance for a file that starts with `used` bytes of
/// records: what the settings say, or four times the start, so that a big
/// snapshot does not ask for the next compaction at once.
pub(crate) fn capacity_for(used: u64, settings: Settings) -> u32 {
    let start = HEADER_BYTES as u64 + used;
    let bytes = if used == 0 || start * 4 <= u64::from(settings.prealloc) {
        u64::from(settings.prealloc)
    } else {
        (start * 4).next_multiple_of(PAGE_BYTES)
    };
    let bytes = bytes.clamp(HEADER_BYTES as u64, FILE_BYTES_MAX);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Writes real zeros over `from..to`.
pub(crate) fn write_zeros(file: &mut impl Storage, mut from: u64, to: u64) -> io::Result<()> {
    while from < to {
        // To the next page boundary: later writes are then whole pages.
        let len = (PAGE_BYTES - from % PAGE_BYTES).min(to - from);
        let zeros = usize::try_from(len).map_or(&ZEROS[..], |len| &ZEROS[..len]);
        file.write_at(zeros, from)?;
        from += len;
    }
    Ok(())
}

/// Writes a whole generation under the side name. After an error the side
/// name is gone again, and its space with it.
pub(crate) fn write_side<D: Directory>(
    directory: &D,
    name: &str,
    header: &Header,
    records: &[(u64, u16, &[u8])],
    settings: Settings,
) -> Result<Side<D::File>, (During, io::Error)> {
    let mut image = header.encode();
    for (seq, kind, payload) in records {
        encode(&mut image, header.seed(), *seq, *kind, payload);
    }
    // A leftover is removed, never truncated: it may be another name of the journal.
    let side_name = side_name(name);
    let _ = directory.remove(&side_name);
    let mut file = directory
        .create(&side_name)
        .map_err(|error| (During::CreateSide, error))?;
    let end = image.len() as u64;
    let mut written = file
        .write_at(&image, 0)
        .and_then(|()| write_zeros(&mut file, end, u64::from(header.capacity)))
        .map_err(|error| (During::WriteSide, error));
    if written.is_ok() && settings.durable {
        written = file.sync().map_err(|error| (During::SyncSide, error));
    }
    match written {
        Ok(()) => Ok(Side { file, end }),
        Err(error) => {
            let _ = directory.remove(&side_name);
            Err(error)
        }
    }
}

impl<D: Directory> Journal<D> {
    /// Replaces everything by one record, the snapshot, in a file of the next
    /// generation; sequence numbers go on. Returns the snapshot's number.
    ///
    /// If this fails before the new file has its name (no space, say), the old
    /// journal stays in use, untouched and not latched: appends go on into the
    /// reserve, and the caller may try again later.
    pub fn compact(&mut self, kind: u16, snapshot: &[u8]) -> Result<u64, Error> {
        self.refuse_if_latched()?;
        if snapshot.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::PayloadTooBig {
                kind,
                len: snapshot.len(),
            });
        }
        let seq = self.next_seq;
        self.succeed(seq, &[(seq, kind, snapshot)])
            .map_err(|(during, error)| {
                let source = if during == During::SyncDirectory {
                    self.close(during, error)
                } else {
                    Arc::new(error)
                };
                Error::Compact {
                    path: self.path(),
                    during,
                    source,
                }
            })?;
        self.next_seq = seq + 1;
        Ok(seq)
    }

    /// Replaces a corrupt file by one with the records before the damage.
    pub(crate) fn replace(&mut self, records: &[Record]) -> Result<(), (During, io::Error)> {
        let records: Vec<_> = records
            .iter()
            .map(|record| (record.seq, record.kind, &record.payload[..]))
            .collect();
        self.succeed(self.header.start_seq, &records)
    }

    /// Writes the next generation and gives it the name. `self` changes only
    /// once it has the name.
    fn succeed(
        &mut self,
        start_seq: u64,
        records: &[(u64, u16, &[u8])],
    ) -> Result<(), (During, io::Error)> {
        let used = records
            .iter()
            .map(|(_, _, payload)| (FRAME_BYTES_MIN + payload.len()) as u64)
            .sum();
        let header = Header {
            // Also the version: a program before this one may be taken again.
            generation: self.header.generation.saturating_add(1),
            start_seq,
            capacity: capacity_for(used, self.settings),
            ..self.header.clone()
        };
        let side = write_side(&self.directory, &self.name, &header, records, self.settings)?;
        if let Err(error) = self.directory.rename(&side_name(&self.name), &self.name) {
            let _ = self.directory.remove(&side_name(&self.name));
            return Err((During::Name, error));
        }
        self.file = side.file;
        self.end = side.end;
        self.header = header;
        if self.settings.durable {
            self.directory
                .sync()
                .map_err(|error| (During::SyncDirectory, error))?;
        }
        Ok(())
    }
}

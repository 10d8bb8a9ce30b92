//! The journal once more, in memory that the reaper holds.
//!
//! Owns a plain image of header and records without room in advance, so that the next shim of
//! a living pair has what was acknowledged, whatever was done to the file in the bundle. It
//! has no names and no generations of its own: cutting it is writing it anew, and a death in
//! that moment leaves the file in the bundle, which has just been cut itself.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::error::Error;
use crate::file::DiskFile;
use crate::frame::{Header, encode};
use crate::owner::Owner;
use crate::replay::{Replayed, read};
use crate::storage::Storage;

/// See the module. The one writer is the shim that serves.
#[derive(Debug)]
pub struct Mirror {
    file: DiskFile,
    header: Header,
    end: u64,
    next_seq: u64,
}

impl Mirror {
    /// What such a memory holds; `None` if nothing was ever written there.
    pub fn read(memory: &File, whose: &Owner) -> Result<Option<Replayed>, Error> {
        let path = Path::new("the journal in the reaper's memory");
        let failed = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = DiskFile(memory.try_clone().map_err(failed)?);
        if file.len().map_err(failed)? == 0 {
            return Ok(None);
        }
        read(&file, path, whose).map(Some)
    }

    /// Writes it anew: this journal's header and these records, which begin with number
    /// `start_seq`.
    pub fn begin(
        memory: File,
        header: &Header,
        start_seq: u64,
        records: &[(u16, &[u8])],
    ) -> io::Result<Self> {
        let mut file = DiskFile(memory);
        let header = Header {
            start_seq,
            capacity: u32::try_from(header.bytes()).unwrap_or(0),
            ..header.clone()
        };
        let mut image = header.encode();
        let mut next_seq = start_seq;
        for (kind, payload) in records {
            encode(&mut image, header.seed(), next_seq, *kind, payload);
            next_seq += 1;
        }
        file.set_len(0)?;
        file.write_at(&image, 0)?;
        Ok(Self {
            file,
            header,
            end: image.len() as u64,
            next_seq,
        })
    }

    /// One record more.
    pub fn append(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::new();
        let seed = self.header.seed();
        encode(&mut frame, seed, self.next_seq, kind, payload);
        self.file.write_at(&frame, self.end)?;
        self.end += frame.len() as u64;
        self.next_seq += 1;
        Ok(())
    }

    /// Replaces all by one record, as the journal of this header was.
    pub fn cut(self, header: &Header, kind: u16, payload: &[u8]) -> io::Result<Self> {
        Self::begin(self.file.0, header, header.start_seq, &[(kind, payload)])
    }
}

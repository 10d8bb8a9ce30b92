//! From bytes back to records.
//!
//! Owns the judgement of a journal's end: clean, torn (normal, cut) or corrupt
//! (reported, kept). It must never write, never hand out a record behind a bad
//! one, and never call anything corrupt that a crash of the writer can leave.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::file::open_regular;
use crate::frame::{FILE_BYTES_MAX, FRAME_BYTES_MIN, Frame, Header, HeaderFault};
use crate::owner::Owner;
use crate::storage::Storage;

/// Generations to either side that a strange record is compared with.
const NEIGHBOURS: u64 = 8;
/// Bytes summed at most while looking for a record behind a bad one, so that a
/// crafted payload cannot keep `delete` busy.
const SEARCH_BYTES_MAX: usize = 64 << 20;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its sequence number: one more than the record's before it, over all generations.
    pub seq: u64,
    /// What the writer said it is; this crate does not know.
    pub kind: u16,
    /// The writer's bytes.
    pub payload: Vec<u8>,
}

/// A journal, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// What its head says. The boot id is the caller's to compare.
    pub header: Header,
    /// All good records, in order, up to the first bad one.
    pub records: Vec<Record>,
    /// How it ends.
    pub tail: Tail,
    /// Offset behind the last good record, in bytes.
    pub end: u64,
}

/// How a journal ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Tail {
    /// Nothing but zeros behind the last record.
    #[default]
    Clean,
    /// A record that was never completed, hence never acknowledged. Normal
    /// after a crash (or beside a living writer); cut when opened for writing.
    Torn {
        /// Offset of the first bad byte.
        at: u64,
        /// Bytes up to the last one that is not zero.
        dropped: u64,
    },
    /// Not what any crash of the writer leaves: records that were acknowledged
    /// may be missing. State must be rebuilt from observation.
    Corrupt {
        /// Offset of the first bad byte.
        at: u64,
        /// What shows it.
        damage: Damage,
        /// Where the bad file was kept, if it was opened for writing and that succeeded.
        kept: Option<PathBuf>,
    },
}

/// What shows that a journal is corrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A good record lies behind the bad bytes.
    Hole {
        /// Its offset.
        next_at: u64,
        /// Its sequence number.
        next_seq: u64,
    },
    /// A good record, but not the one whose turn it was.
    OutOfOrder {
        /// The number that was expected.
        expected: u64,
        /// The number that was found.
        found: u64,
    },
    /// The file is shorter than it was made.
    Cut {
        /// Its length in bytes when it was made.
        capacity: u32,
    },
    /// A good record of another generation of this journal.
    OtherGeneration {
        /// That generation.
        generation: u64,
    },
}

/// Reads a journal and changes nothing, not even a torn tail: for `delete` and
/// the operator's tool. A record being appended at this moment may show as
/// [`Tail::Torn`]. A file that says it is another's than `whose` is [`Error::NotOurs`].
pub fn replay(path: &Path, whose: &Owner) -> Result<Replayed, Error> {
    let file = open_regular(path, false)?;
    read(&file, path, whose)
}

/// Reads the whole of an open journal.
pub(crate) fn read(file: &impl Storage, path: &Path, whose: &Owner) -> Result<Replayed, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let len = file.len().map_err(failed)?;
    if len > FILE_BYTES_MAX {
        return Err(Error::TooBig {
            path: path.to_owned(),
            len,
        });
    }
    let bytes = read_all(file, len).map_err(failed)?;
    let replayed = scan(&bytes).map_err(|fault| {
        let path = path.to_owned();
        match fault {
            HeaderFault::Short => Error::Short {
                path,
                len: bytes.len(),
            },
            HeaderFault::Foreign => Error::Foreign { path },
            HeaderFault::Newer { version } => Error::Newer { path, version },
            HeaderFault::Damaged => Error::Damaged { path },
        }
    })?;
    whose
        .claims(path, replayed.header.owner.as_ref())
        .map_err(|source| Error::NotOurs { source })?;
    Ok(replayed)
}

/// At most `len` bytes; fewer if the file was cut meanwhile.
fn read_all(file: &impl Storage, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    let mut have = 0;
    while have < len {
        match file.read_at(&mut bytes[have..], have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

/// Judges the bytes of a journal. Pure; safe on any input.
pub fn scan(bytes: &[u8]) -> Result<Replayed, HeaderFault> {
    let header = Header::decode(bytes)?;
    let own = header.seed();
    let mut records = Vec::new();
    let mut end = header.bytes();
    let mut expected = header.start_seq;
    while let Some(frame) = Frame::shape(&bytes[end..]) {
        if frame.seq != expected || !frame.holds(own) {
            break;
        }
        records.push(Record {
            seq: frame.seq,
            kind: frame.kind,
            payload: frame.payload.to_vec(),
        });
        end += frame.bytes();
        let Some(next) = expected.checked_add(1) else {
            break;
        };
        expected = next;
    }
    let tail = match judge(bytes, &header, end, expected) {
        // Written in advance in full before it got its name, and never shortened since: some
        // of the records may have gone with the rest, and what is left may end with a whole one.
        Tail::Clean | Tail::Torn { .. } if (bytes.len() as u64) < u64::from(header.capacity) => {
            Tail::Corrupt {
                at: bytes.len() as u64,
                damage: Damage::Cut {
                    capacity: header.capacity,
                },
                kept: None,
            }
        }
        tail => tail,
    };
    Ok(Replayed {
        header,
        records,
        tail,
        end: end as u64,
    })
}

/// What the bytes from `end` on are, given that no record `expected` is there.
fn judge(bytes: &[u8], header: &Header, end: usize, expected: u64) -> Tail {
    let rest = &bytes[end..];
    let Some(last) = rest.iter().rposition(|byte| *byte != 0) else {
        return Tail::Clean;
    };
    let at = end as u64;
    let damage = whole_but_wrong(rest, header, expected)
        .or_else(|| good_record_behind(rest, header, end, expected));
    match damage {
        Some(damage) => Tail::Corrupt {
            at,
            damage,
            kept: None,
        },
        None => Tail::Torn {
            at,
            dropped: last as u64 + 1,
        },
    }
}

/// A complete record stands here, but not ours or not now.
fn whole_but_wrong(rest: &[u8], header: &Header, expected: u64) -> Option<Damage> {
    let frame = Frame::shape(rest)?;
    if frame.holds(header.seed()) {
        return Some(Damage::OutOfOrder {
            expected,
            found: frame.seq,
        });
    }
    let nearest = header.generation.saturating_sub(NEIGHBOURS).max(1);
    (nearest..=header.generation.saturating_add(NEIGHBOURS))
        .filter(|generation| *generation != header.generation)
        .find(|generation| frame.holds(header.seed_of(*generation)))
        .map(|generation| Damage::OtherGeneration { generation })
}

/// Looks at every offset, since the length of the bad record cannot be
/// trusted. Cheap fields first: the checksum is computed only where length and
/// number could be a later record's.
fn good_record_behind(rest: &[u8], header: &Header, end: usize, expected: u64) -> Option<Damage> {
    let own = header.seed();
    let furthest = expected.saturating_add((rest.len() / FRAME_BYTES_MIN) as u64);
    let mut budget = SEARCH_BYTES_MAX;
    (1..rest.len()).find_map(|offset| {
        let frame = Frame::shape(&rest[offset..])?;
        if !(expected..=furthest).contains(&frame.seq) {
            return None;
        }
        budget = budget.checked_sub(frame.bytes())?;
        frame.holds(own).then_some(Damage::Hole {
            next_at: (end + offset) as u64,
            next_seq: frame.seq,
        })
    })
}

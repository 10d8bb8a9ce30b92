//! The bytes of a journal: one header, then records.
//!
//! Owns the layout and nothing else; `FORMAT.md` is its prose. It must never
//! touch a file or trust a length before it is checked, because the bytes may
//! be anybody's.

use crate::boot::{BOOT_ID_BYTES, BootId};
use crate::crc32c::{crc32c, crc32c_append};
use crate::owner::{NAME_BYTES_MAX, Owner};

/// First bytes of every journal.
pub const MAGIC: [u8; 8] = *b"VIGILJN\n";
/// The version this code begins a journal with. One of version 1 is continued as such.
pub const VERSION: u16 = 2;
/// Bytes of the header, which is followed by the first record.
pub const HEADER_BYTES: usize = 256;
/// The same in version 1.
pub const HEADER_BYTES_V1: usize = 80;
/// Bytes of a record without payload.
pub const FRAME_BYTES_MIN: usize = 20;
/// Bytes a payload may have.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Bytes a journal may have; a longer file is not read.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

const FRAME_BYTES_MAX: usize = FRAME_BYTES_MIN + PAYLOAD_BYTES_MAX;

/// What the head of a journal says about all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Version of the format, 1 or more.
    pub version: u16,
    /// The boot it was created in.
    pub boot: BootId,
    /// Counts the files that have had this name, from 1.
    pub generation: u64,
    /// Sequence number of the first record in this file.
    pub start_seq: u64,
    /// Bytes written in advance, header included.
    pub capacity: u32,
    /// Whose it is; version 1 did not say.
    pub owner: Option<Owner>,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// Fewer bytes than a header has.
    Short,
    /// Another file's beginning.
    Foreign,
    /// A later version.
    Newer {
        /// That version.
        version: u16,
    },
    /// The checksum or a field is wrong.
    Damaged,
}

/// Where version 2 has what version 1 had not.
const SALT: usize = 68;
const NAME_LENS: usize = 76;
const NAMESPACE: usize = 80;
const ID: usize = NAMESPACE + NAME_BYTES_MAX;
const _: () = assert!(ID + NAME_BYTES_MAX + 4 <= HEADER_BYTES);

impl Header {
    /// Bytes it takes in its version.
    pub fn bytes(&self) -> usize {
        length_of(self.version)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let length = self.bytes();
        let mut bytes = vec![0; length];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &self.version.to_le_bytes());
        put(10, &u16::try_from(length).unwrap_or(0).to_le_bytes());
        put(12, &self.capacity.to_le_bytes());
        put(16, &self.generation.to_le_bytes());
        put(24, &self.start_seq.to_le_bytes());
        put(32, self.boot.as_bytes());
        if let Some(owner) = self.owner.as_ref().filter(|_| self.version > 1) {
            // Longer names than a header holds are cut when the owner is made.
            let byte = |len: usize| u8::try_from(len).unwrap_or(u8::MAX);
            put(SALT, &owner.salt.to_le_bytes());
            put(
                NAME_LENS,
                &[byte(owner.namespace.len()), byte(owner.id.len())],
            );
            put(NAMESPACE, owner.namespace.as_bytes());
            put(ID, owner.id.as_bytes());
        }
        let sum = crc32c(&bytes[..length - 4]);
        bytes[length - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
            return Err(HeaderFault::Foreign);
        }
        // A cut file is told apart from a stranger's as far as it goes. The version
        // comes before the checksum: where a later version keeps its checksum is not
        // known here.
        let mut cursor = Cursor(bytes.get(MAGIC.len()..).unwrap_or_default());
        let version = u16::from_le_bytes(cursor.take().ok_or(HeaderFault::Short)?);
        if version > VERSION {
            return Err(HeaderFault::Newer { version });
        }
        if version == 0 {
            return Err(HeaderFault::Damaged);
        }
        let length = length_of(version);
        let head = bytes.get(..length).ok_or(HeaderFault::Short)?;
        let (covered, sum) = head.split_at(length - 4);
        if crc32c(covered).to_le_bytes() != *sum {
            return Err(HeaderFault::Damaged);
        }
        Self::fields(version, cursor, covered).ok_or(HeaderFault::Damaged)
    }

    fn fields(version: u16, mut cursor: Cursor<'_>, covered: &[u8]) -> Option<Self> {
        let _header_len: [u8; 2] = cursor.take()?;
        let header = Header {
            version,
            capacity: u32::from_le_bytes(cursor.take()?),
            generation: u64::from_le_bytes(cursor.take()?),
            start_seq: u64::from_le_bytes(cursor.take()?),
            boot: BootId::from_bytes(&cursor.take::<BOOT_ID_BYTES>()?)?,
            owner: if version == 1 {
                None
            } else {
                Some(owner(covered)?)
            },
        };
        // No writer gets there; a reader that believed it could overflow, or
        // fill the disk with zeros.
        let possible = header.generation != 0
            && (1..=u64::MAX / 2).contains(&header.start_seq)
            && u64::from(header.capacity) <= FILE_BYTES_MAX;
        possible.then_some(header)
    }

    /// What the checksum of this generation's records starts from.
    pub(crate) fn seed(&self) -> u32 {
        self.seed_of(self.generation)
    }

    /// The same of another generation of this journal.
    pub(crate) fn seed_of(&self, generation: u64) -> u32 {
        seed(self.owner.as_ref(), generation)
    }
}

fn length_of(version: u16) -> usize {
    if version == 1 {
        HEADER_BYTES_V1
    } else {
        HEADER_BYTES
    }
}

/// Whose a header of version 2 says it is.
fn owner(head: &[u8]) -> Option<Owner> {
    let salt = u64::from_le_bytes(*head.get(SALT..)?.first_chunk()?);
    let [namespace_len, id_len] = *head.get(NAME_LENS..)?.first_chunk()?;
    let name = |at: usize, len: u8| {
        let len = usize::from(len);
        (len <= NAME_BYTES_MAX).then(|| head.get(at..at + len))?
    };
    Owner::checked(name(NAMESPACE, namespace_len)?, name(ID, id_len)?, salt)
}

/// The seed keeps records of an older generation, and another's, from passing as this one's.
pub(crate) fn seed(owner: Option<&Owner>, generation: u64) -> u32 {
    let generation = generation.to_le_bytes();
    owner.map_or_else(
        || crc32c(&generation),
        |owner| crc32c_append(owner.sum(), &generation),
    )
}

/// Takes fixed-size fields off the front.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

/// One record as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u16,
    pub(crate) seq: u64,
    pub(crate) payload: &'a [u8],
    covered: &'a [u8],
    sum: u32,
}

impl<'a> Frame<'a> {
    /// What a record at the start of `bytes` would be, its checksum not yet
    /// looked at. `None` if its length makes no sense here.
    pub(crate) fn shape(bytes: &'a [u8]) -> Option<Self> {
        let len = usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok()?;
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&len) {
            return None;
        }
        let (covered, sum) = bytes.get(..len)?.split_last_chunk::<4>()?;
        let (_len, rest) = covered.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (_flags, rest) = rest.split_first_chunk::<2>()?;
        let (seq, payload) = rest.split_first_chunk::<8>()?;
        Some(Frame {
            kind: u16::from_le_bytes(*kind),
            seq: u64::from_le_bytes(*seq),
            payload,
            covered,
            sum: u32::from_le_bytes(*sum),
        })
    }

    /// Whether the checksum holds under this seed.
    pub(crate) fn holds(&self, seed: u32) -> bool {
        crc32c_append(seed, self.covered) == self.sum
    }

    /// Bytes the whole record takes.
    pub(crate) fn bytes(&self) -> usize {
        self.covered.len() + 4
    }
}

/// Appends one record to `out`. The payload's length was checked by the caller.
pub(crate) fn encode(out: &mut Vec<u8>, seed: u32, seq: u64, kind: u16, payload: &[u8]) {
    let start = out.len();
    let len = u32::try_from(FRAME_BYTES_MIN + payload.len()).unwrap_or(u32::MAX);
    out.reserve_exact(FRAME_BYTES_MIN + payload.len());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&0_u16.to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(payload);
    let sum = crc32c_append(seed, &out[start..]);
    out.extend_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            boot: BootId::parse("0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d").unwrap(),
            generation: 7,
            start_seq: 41,
            capacity: 16384,
            owner: Some(Owner::with_salt("default", "web-1", 0x1234_5678_9abc_def0)),
        }
    }

    fn old() -> Header {
        Header {
            version: 1,
            owner: None,
            ..header()
        }
    }

    #[test]
    fn a_header_comes_back() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
        assert_eq!(Header::decode(&old().encode()), Ok(old()));
        let longest = "x".repeat(NAME_BYTES_MAX);
        let header = Header {
            owner: Some(Owner::with_salt(&longest, &longest, u64::MAX)),
            ..header()
        };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn no_flipped_bit_of_a_header_passes() {
        let good = header().encode();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let fault = Header::decode(&bad).unwrap_err();
                match at {
                    0..8 => assert_eq!(fault, HeaderFault::Foreign, "byte {at}"),
                    8..10 => assert!(
                        matches!(fault, HeaderFault::Newer { .. } | HeaderFault::Damaged),
                        "byte {at}"
                    ),
                    _ => assert_eq!(fault, HeaderFault::Damaged, "byte {at}"),
                }
            }
        }
    }

    #[test]
    fn a_cut_header_is_short_and_a_strangers_is_foreign() {
        let good = header().encode();
        for len in 0..good.len() {
            assert_eq!(Header::decode(&good[..len]), Err(HeaderFault::Short));
        }
        assert_eq!(Header::decode(b"{}"), Err(HeaderFault::Foreign));
        assert_eq!(Header::decode(&[0; 300]), Err(HeaderFault::Foreign));
    }

    #[test]
    fn a_record_comes_back_and_no_flipped_bit_or_other_seed_passes() {
        let mut bytes = Vec::new();
        encode(&mut bytes, seed(None, 3), 9, 5, b"payload");
        let frame = Frame::shape(&bytes).unwrap();
        assert_eq!(
            (frame.seq, frame.kind, frame.payload),
            (9, 5, &b"payload"[..])
        );
        assert_eq!(frame.bytes(), bytes.len());
        assert!(frame.holds(seed(None, 3)));
        assert!(!frame.holds(seed(None, 2)));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(!Frame::shape(&bad).is_some_and(|f| f.holds(seed(None, 3))));
            }
        }
    }
}

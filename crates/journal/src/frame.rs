//! The bytes of a journal: one header, then records.
//!
//! Owns the layout and nothing else; `FORMAT.md` is its prose. It must never
//! touch a file or trust a length before it is checked, because the bytes may
//! be anybody's.

use crate::boot::{BOOT_ID_BYTES, BootId};

/// First bytes of every journal.
pub const MAGIC: [u8; 8] = *b"VIGILJN\n";
/// The version this code writes.
pub const VERSION: u16 = 1;
/// Bytes of the header, which is followed by the first record.
pub const HEADER_BYTES: usize = 80;
/// Bytes of a record without payload.
pub const FRAME_BYTES_MIN: usize = 20;
/// Bytes a payload may have.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Bytes a journal may have; a longer file is not read.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

const FRAME_BYTES_MAX: usize = FRAME_BYTES_MIN + PAYLOAD_BYTES_MAX;

/// What the head of a journal says about all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&HEADER_LEN_FIELD.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.start_seq.to_le_bytes());
        bytes[32..32 + BOOT_ID_BYTES].copy_from_slice(self.boot.as_bytes());
        let sum = crate::crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            // A cut file is told apart from a stranger's as far as it goes.
            let ours = MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]);
            return Err(if ours {
                HeaderFault::Short
            } else {
                HeaderFault::Foreign
            });
        };
        let mut cursor = Cursor(head);
        if cursor.take::<8>() != MAGIC {
            return Err(HeaderFault::Foreign);
        }
        // The version comes before the checksum: where a later version keeps
        // its checksum is not known here.
        let version = u16::from_le_bytes(cursor.take());
        if version > VERSION {
            return Err(HeaderFault::Newer { version });
        }
        let (covered, sum) = head.split_at(HEADER_BYTES - 4);
        if version == 0 || crate::crc32c::crc32c(covered).to_le_bytes() != *sum {
            return Err(HeaderFault::Damaged);
        }
        let _header_len: [u8; 2] = cursor.take();
        let header = Header {
            version,
            capacity: u32::from_le_bytes(cursor.take()),
            generation: u64::from_le_bytes(cursor.take()),
            start_seq: u64::from_le_bytes(cursor.take()),
            boot: BootId::from_bytes(&cursor.take::<BOOT_ID_BYTES>())
                .ok_or(HeaderFault::Damaged)?,
        };
        // No writer gets there; a reader that believed it could overflow, or
        // fill the disk with zeros.
        let possible = header.generation != 0
            && (1..=u64::MAX / 2).contains(&header.start_seq)
            && u64::from(header.capacity) <= FILE_BYTES_MAX;
        if !possible {
            return Err(HeaderFault::Damaged);
        }
        Ok(header)
    }

    /// What the checksum of this generation's records starts from.
    pub(crate) fn seed(&self) -> u32 {
        seed(self.generation)
    }
}

/// A small, constant-length field; `HEADER_BYTES` fits by far.
#[expect(clippy::cast_possible_truncation, reason = "80 fits in 16 bits")]
const HEADER_LEN_FIELD: u16 = HEADER_BYTES as u16;

/// The seed keeps records of an older generation from passing as this one's.
pub(crate) fn seed(generation: u64) -> u32 {
    crate::crc32c::crc32c(&generation.to_le_bytes())
}

/// Takes fixed-size fields off the front of bytes known to be long enough.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
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
        crate::crc32c::crc32c_append(seed, self.covered) == self.sum
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
    let sum = crate::crc32c::crc32c_append(seed, &out[start..]);
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
        }
    }

    #[test]
    fn a_header_comes_back() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
    }

    #[test]
    fn no_flipped_bit_of_a_header_passes() {
        let good = header().encode();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good;
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
        assert_eq!(Header::decode(&[0; 200]), Err(HeaderFault::Foreign));
    }

    #[test]
    fn a_record_comes_back_and_no_flipped_bit_or_other_seed_passes() {
        let mut bytes = Vec::new();
        encode(&mut bytes, seed(3), 9, 5, b"payload");
        let frame = Frame::shape(&bytes).unwrap();
        assert_eq!(
            (frame.seq, frame.kind, frame.payload),
            (9, 5, &b"payload"[..])
        );
        assert_eq!(frame.bytes(), bytes.len());
        assert!(frame.holds(seed(3)));
        assert!(!frame.holds(seed(2)));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(!Frame::shape(&bad).is_some_and(|f| f.holds(seed(3))));
            }
        }
    }
}

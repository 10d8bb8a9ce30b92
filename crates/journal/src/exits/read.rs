//! Reading the exit records, beside a reaper that may write or be dead.
//!
//! Owns the reader's half of the protocol: commit word, fields, commit word
//! again; equal means the fields belong to it. Readers never store.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::layout::{
    BOOT, BOOT_WORDS, COMMIT, DEAD, ENTRY, ID, MAGIC, MAGIC_VALUE, NAME_LENS, NAME_WORDS,
    NAMESPACE, PID_NANOS, RING_SEQ, RING_START, SALT, SECS, SEQ_BITS, SEQ_MASK, SEQ_SHIFT, SLOTS,
    SLOTS_V1, STATE_SHIFT, TAKEN, TICKS, VERSION, VERSION_VALUE, WAITING,
};
use super::{Death, ExitsError, PINNED, PINNED_V1, RING, WORDS, Way, same_start};
use crate::boot::{BOOT_ID_BYTES, BootId};
use crate::owner::Owner;

/// Looks at one entry before a reader gives up; the writer is between two of
/// its stores for nanoseconds.
const LOOKS_MAX: usize = 64;

/// The exit records, for reading.
#[derive(Debug, Clone, Copy)]
pub struct Exits<'a> {
    words: &'a [AtomicU64; WORDS],
    /// Version 1 has its slots elsewhere.
    first: bool,
}

/// What a pinned slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Nothing.
    Free,
    /// A registered process that has not died yet.
    Waiting {
        /// Its pid.
        pid: u32,
        /// Its start, 0 if unknown.
        start_ticks: u64,
    },
    /// A registered process that died.
    Dead(Death),
}

impl<'a> Exits<'a> {
    /// Checks size, magic and version of the shared words.
    pub fn new(words: &'a [AtomicU64]) -> Result<Self, ExitsError> {
        let exits = Self::unchecked(words)?;
        if exits.load(MAGIC, Ordering::Acquire) != MAGIC_VALUE {
            return Err(ExitsError::Foreign);
        }
        let first = match exits.load(VERSION, Ordering::Relaxed) {
            0 => return Err(ExitsError::Damaged),
            version if version > VERSION_VALUE => return Err(ExitsError::Newer { version }),
            version => version == 1,
        };
        let exits = Exits { first, ..exits };
        let whole = exits.boot_id().is_some() && (first || exits.owner().is_some());
        whole.then_some(exits).ok_or(ExitsError::Damaged)
    }

    /// Checks the size alone.
    pub(super) fn unchecked(words: &'a [AtomicU64]) -> Result<Self, ExitsError> {
        let words = words.try_into().map_err(|_| ExitsError::Size {
            len: words.len() as u64 * 8,
        })?;
        Ok(Exits {
            words,
            first: false,
        })
    }

    /// Whose they are; version 1 does not say.
    pub fn owner(self) -> Option<Owner> {
        if self.first {
            return None;
        }
        let lens = self.load(NAME_LENS, Ordering::Relaxed).to_le_bytes();
        let name = |at: usize, len: u8| {
            let words = self.words[at..at + NAME_WORDS].iter();
            let bytes = words.flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
            bytes.take(usize::from(len)).collect::<Vec<u8>>()
        };
        let (namespace, id) = (name(NAMESPACE, lens[0]), name(ID, lens[1]));
        Owner::checked(&namespace, &id, self.load(SALT, Ordering::Relaxed))
    }

    /// How many processes can be registered.
    pub fn pins(self) -> usize {
        if self.first { PINNED_V1 } else { PINNED }
    }

    pub(super) fn slot_base(self, index: usize) -> Option<usize> {
        let slots = if self.first { SLOTS_V1 } else { SLOTS };
        (index < self.pins()).then_some(slots + index * ENTRY)
    }

    /// The boot the records belong to; `None` only if the head was damaged
    /// after it was checked.
    pub fn boot_id(self) -> Option<BootId> {
        let mut bytes = [0; BOOT_WORDS * 8];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(&self.words[BOOT..]) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        let (id, padding) = bytes.split_at(BOOT_ID_BYTES);
        BootId::from_bytes(id).filter(|_| padding.iter().all(|b| *b == 0))
    }

    /// What slot `index` holds. `None` if there is no such slot, or if it
    /// changed whenever it was looked at: ask again.
    pub fn slot(self, index: usize) -> Option<Slot> {
        let entry = self.settled(self.slot_base(index)?)?;
        Some(match entry[COMMIT] >> STATE_SHIFT {
            WAITING => Slot::Waiting {
                pid: upper(entry[PID_NANOS]),
                start_ticks: entry[TICKS],
            },
            DEAD => Slot::Dead(death(&entry)),
            _ => Slot::Free,
        })
    }

    /// All slots in order of their index. One that changed whenever it was
    /// looked at is left out.
    pub fn slots(self) -> impl Iterator<Item = (usize, Slot)> + use<'a> {
        (0..self.pins()).filter_map(move |index| Some((index, self.slot(index)?)))
    }

    /// The death slot `index` was pinned for, once it is recorded.
    pub fn pinned(self, index: usize) -> Option<Death> {
        match self.slot(index)? {
            Slot::Dead(death) => Some(death),
            Slot::Free | Slot::Waiting { .. } => None,
        }
    }

    /// The process slot `index` is pinned for, as long as its death is not recorded.
    pub fn awaited(self, index: usize) -> Option<u32> {
        match self.slot(index)? {
            Slot::Waiting { pid, .. } => Some(pid),
            Slot::Free | Slot::Dead(_) => None,
        }
    }

    /// Number of deaths that have gone to the ring: the sequence number the
    /// next one gets. Read it *before* a process is started and give it to
    /// [`Recorder::pin`](super::Recorder::pin) as `since`.
    pub fn ring_seq(self) -> u64 {
        self.load(RING_SEQ, Ordering::Acquire)
    }

    /// The deaths in the ring with their sequence numbers, oldest first.
    pub fn ring(self) -> impl Iterator<Item = (u64, Death)> + use<'a> {
        let next = self.ring_seq();
        // One more than counted, since the writer counts after it has
        // committed. First and last share a place: one of them is there.
        let oldest = next.saturating_sub(RING as u64);
        (oldest..=next).filter_map(move |seq| self.in_ring(seq))
    }

    /// The death with this number, if it is in the ring.
    pub(super) fn in_ring(self, seq: u64) -> Option<(u64, Death)> {
        let entry = self.settled(ring_base(seq))?;
        (entry[COMMIT] & !u64::from(u32::MAX) == ring_commit(seq, 0)).then(|| (seq, death(&entry)))
    }

    /// The death of that process, from slots and ring. An exact start wins
    /// over an unknown one; if only an unknown start fits and two deaths claim
    /// the pid, nobody can say which it was: `None`.
    pub fn find(self, pid: u32, start_ticks: u64) -> Option<Death> {
        let slots = self.slots().filter_map(|(_, slot)| match slot {
            Slot::Dead(death) => Some(death),
            Slot::Free | Slot::Waiting { .. } => None,
        });
        let all = slots.chain(self.ring().map(|(_, death)| death));
        choose(all, pid, start_ticks).ok().flatten()
    }

    /// The death of the one registered process that had this pid, for a reader
    /// who knows no start. The ring is not asked: any other child of the
    /// reaper may have died with that pid before. `None` if two were
    /// registered, or one that lives.
    pub fn registered(self, pid: u32) -> Option<Death> {
        let mut only = None;
        for (_, slot) in self.slots() {
            match slot {
                Slot::Dead(death) if death.pid == pid => {
                    if only.replace(death).is_some() {
                        return None;
                    }
                }
                Slot::Waiting { pid: waits, .. } if waits == pid => return None,
                Slot::Free | Slot::Waiting { .. } | Slot::Dead(_) => {}
            }
        }
        only
    }

    pub(super) fn load(self, index: usize, order: Ordering) -> u64 {
        self.words[index].load(order)
    }

    pub(super) fn words(self) -> &'a [AtomicU64] {
        self.words
    }

    pub(super) fn word(self, index: usize) -> &'a AtomicU64 {
        &self.words[index]
    }

    /// The words of one entry that belong together.
    fn settled(self, base: usize) -> Option<[u64; ENTRY]> {
        let words = self.words.get(base..base + ENTRY)?;
        for _ in 0..LOOKS_MAX {
            let mut entry = [0; ENTRY];
            entry[COMMIT] = words[COMMIT].load(Ordering::Acquire);
            for field in [TICKS, PID_NANOS, SECS] {
                entry[field] = words[field].load(Ordering::Relaxed);
            }
            // Pairs with the writer's fence before it touches the fields.
            fence(Ordering::Acquire);
            if words[COMMIT].load(Ordering::Relaxed) == entry[COMMIT] {
                return Some(entry);
            }
        }
        None
    }
}

/// Two deaths fit and nothing tells them apart.
pub(super) struct Ambiguous;

/// The one death that is of this process.
pub(super) fn choose(
    deaths: impl Iterator<Item = Death>,
    pid: u32,
    start_ticks: u64,
) -> Result<Option<Death>, Ambiguous> {
    let mut loose = None;
    let mut ambiguous = false;
    for death in deaths.filter(|death| death.is_of(pid, start_ticks)) {
        if start_ticks != 0 && death.start_ticks == start_ticks {
            return Ok(Some(death));
        }
        // The same death may stand in a slot and in the ring.
        ambiguous |= loose.is_some_and(|other| !same_death(&other, &death));
        loose = Some(death);
    }
    if ambiguous { Err(Ambiguous) } else { Ok(loose) }
}

/// One death told twice; the slot may know the start where the ring does not.
fn same_death(a: &Death, b: &Death) -> bool {
    let unstarted = |death: &Death| Death {
        start_ticks: 0,
        ..*death
    };
    unstarted(a) == unstarted(b) && same_start(a.start_ticks, b.start_ticks)
}

pub(super) fn ring_base(seq: u64) -> usize {
    let index = seq % RING as u64;
    RING_START + usize::try_from(index).unwrap_or(0) * ENTRY
}

pub(super) fn ring_commit(seq: u64, word: u32) -> u64 {
    const { assert!(SEQ_BITS + SEQ_SHIFT == 63) };
    TAKEN | (seq & SEQ_MASK) << SEQ_SHIFT | u64::from(word)
}

fn death(entry: &[u64; ENTRY]) -> Death {
    let word = lower(entry[COMMIT]);
    Death {
        way: Way::of(word),
        pid: upper(entry[PID_NANOS]),
        start_ticks: entry[TICKS],
        status: (word & 0xffff).cast_signed(),
        at_secs: entry[SECS].cast_signed(),
        at_nanos: lower(entry[PID_NANOS]),
    }
}

fn upper(word: u64) -> u32 {
    lower(word >> 32)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is wanted"
)]
fn lower(word: u64) -> u32 {
    word as u32
}

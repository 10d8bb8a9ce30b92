//! Writing the exit records: the reaper's half.
//!
//! Owns the order of the stores. Fields are touched only while the commit word
//! says that they mean nothing; the commit word is stored last. So whichever
//! store is the last one before a SIGKILL, each record is the old one or the
//! new one, in the memory and in the file that is kept beside it. Nothing here allocates,
//! waits or fails for want of anything.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::layout::{
    BOOT, BOOT_WORDS, COMMIT, DEAD, FREE, ID, MAGIC, MAGIC_VALUE, NAME_LENS, NAME_WORDS, NAMESPACE,
    PID_NANOS, RING_SEQ, RING_START, SALT, SECS, STATE_SHIFT, TICKS, TURN_MASK, TURN_SHIFT,
    VERSION, VERSION_VALUE, WAITING,
};
use super::read::{choose, ring_base, ring_commit};
use super::spill::Spill;
use super::{Death, Exits, ExitsError, PINNED, RING, Slot, WORDS, kept, same_start};
use crate::boot::BootId;
use crate::owner::Owner;

/// The one writer of the exit records. There must be no second one, in this
/// process or another.
#[derive(Debug)]
pub struct Recorder<'a> {
    pub(super) exits: Exits<'a>,
    pub(super) file: Option<kept::Kept>,
    /// What left the ring early.
    pub(super) spill: Spill,
    /// All slots from here on are free.
    pub(super) used: usize,
    /// The ring has deaths that the file has not.
    pub(super) unsaid: bool,
    /// Stores that still happen, so that a test can stop between any two.
    #[cfg(test)]
    pub(super) stores_left: Option<usize>,
}

/// After so many that come at once the others are many.
const FEW: usize = 16;

/// Where a death was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// In the slot pinned for it.
    Slot(usize),
    /// In the ring, under this sequence number.
    Ring(u64),
}

/// Why a process could not be pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// All slots are taken.
    #[error("all {PINNED} pinned slots are taken")]
    Full,
    /// Without its start time nobody can say which of several deaths was this
    /// process's: its exit is unknown.
    #[error("several processes with pid {pid} have died and the start of this one is unknown")]
    Ambiguous {
        /// The pid.
        pid: u32,
    },
}

impl<'a> Recorder<'a> {
    /// Formats fresh memory. Every word is stored to, so that every page is
    /// there before it is needed; the magic comes last.
    pub fn format(words: &'a [AtomicU64], boot: BootId, owner: &Owner) -> Result<Self, ExitsError> {
        let mut recorder = Recorder {
            exits: Exits::unchecked(words)?,
            file: None,
            spill: Spill::new(),
            used: 0,
            unsaid: false,
            #[cfg(test)]
            stores_left: None,
        };
        recorder.lay_out(boot, owner);
        Ok(recorder)
    }

    /// As [`Recorder::format`], and the file at `path` with it.
    pub fn begin(
        words: &'a [AtomicU64],
        boot: BootId,
        owner: &Owner,
        path: &Path,
    ) -> Result<Self, ExitsError> {
        let mut recorder = Self::format(words, boot, owner)?;
        recorder.keep_in(path)?;
        Ok(recorder)
    }

    pub(super) fn lay_out(&mut self, boot: BootId, owner: &Owner) {
        for index in 0..WORDS {
            self.store(index, 0, Ordering::Release);
        }
        let mut id = [0; BOOT_WORDS * 8];
        for (to, from) in id.iter_mut().zip(boot.as_bytes()) {
            *to = *from;
        }
        for (index, word) in id.as_chunks::<8>().0.iter().enumerate() {
            self.store(BOOT + index, u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
        let mut lens = [0; 8];
        for (at, len, name) in [(NAMESPACE, 0, &owner.namespace), (ID, 1, &owner.id)] {
            lens[len] = u8::try_from(name.len()).unwrap_or(u8::MAX);
            let mut bytes = [0; NAME_WORDS * 8];
            for (to, from) in bytes.iter_mut().zip(name.bytes()) {
                *to = from;
            }
            for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                self.store(at + index, u64::from_ne_bytes(*word), Ordering::Relaxed);
            }
        }
        self.store(NAME_LENS, u64::from_le_bytes(lens), Ordering::Relaxed);
        self.store(SALT, owner.salt, Ordering::Relaxed);
        self.store(VERSION, VERSION_VALUE, Ordering::Relaxed);
        self.store(MAGIC, MAGIC_VALUE, Ordering::Release);
    }

    /// Takes over memory that is formatted already.
    pub fn new(words: &'a [AtomicU64]) -> Result<Self, ExitsError> {
        let exits = Exits::new(words)?;
        let used = exits.slots().filter(|(_, slot)| *slot != Slot::Free).last();
        let mut recorder = Recorder {
            exits,
            file: None,
            spill: Spill::new(),
            used: used.map_or(0, |(index, _)| index + 1),
            unsaid: false,
            #[cfg(test)]
            stores_left: None,
        };
        // The writer before may have died between committing and counting.
        let next = recorder.exits.ring_seq();
        if recorder.exits.ring().any(|(seq, _)| seq == next) {
            recorder.store(RING_SEQ, next.wrapping_add(1), Ordering::Release);
        }
        Ok(recorder)
    }

    /// From now on also in a file at `path`, which says each thing before the memory does. One
    /// that is there and says what the memory says is gone on with. After an error it is tried
    /// again at each record.
    pub fn keep_in(&mut self, path: &Path) -> Result<(), ExitsError> {
        let file = self.file.insert(kept::Kept::new(path));
        let made = file.mend(self.exits.words());
        made.map_err(|source| ExitsError::Create {
            path: path.to_owned(),
            source,
        })
    }

    /// What somebody has done to the file meanwhile is made good.
    fn mend(&mut self) {
        self.say();
        if let Some(file) = &mut self.file {
            // The memory is what counts; the next record tries again.
            let _ = file.mend(self.exits.words());
        }
    }

    /// The same records, for reading.
    pub fn exits(&self) -> Exits<'a> {
        self.exits
    }

    /// Records a death: in the slot waiting for it, else in the ring, whose
    /// oldest entry it replaces. Cannot fail.
    pub fn record(&mut self, death: Death) -> Kept {
        self.mend();
        match self.waiting_for(&death) {
            Some(index) => {
                self.fill_slot(index, &death);
                Kept::Slot(index)
            }
            None => Kept::Ring(self.push(&death)),
        }
    }

    /// Records the death that is number `count` of those that came at once, after which the writer
    /// [says] them. Whether whoever waits for deaths is to be told of this one: of many only of
    /// those that are waited for.
    ///
    /// [says]: Recorder::say
    pub fn record_nth(&mut self, count: usize, death: Death) -> bool {
        if count < FEW {
            self.record(death);
            return true;
        }
        matches!(self.record_of_many(death), Kept::Slot(_))
    }

    /// As [`Recorder::record`], for one of many that come at once: a death that goes to the ring is
    /// in the file only after [`Recorder::say`], or with the next that is not one of many. Nobody
    /// waits for it by name.
    pub(super) fn record_of_many(&mut self, death: Death) -> Kept {
        if self.waiting_for(&death).is_some() {
            return self.record(death);
        }
        if !self.unsaid {
            self.mend();
            self.unsaid = true;
        }
        Kept::Ring(self.push(&death))
    }

    /// Has the file say what is in the memory of the ring, all at once.
    pub fn say(&mut self) {
        if std::mem::take(&mut self.unsaid)
            && let Some(file) = &mut self.file
        {
            let words = self.exits.words();
            file.copy(words, RING_START..WORDS);
            file.copy(words, RING_SEQ..RING_SEQ + 1);
        }
    }

    /// Registers a process and returns its slot. If it has died already, and
    /// its death went to the ring with a sequence number of `since` or more,
    /// the slot has it at once. `start_ticks` 0 is an unknown start.
    ///
    /// Pinning the same process again gives the same slot (a new shim does
    /// that); of a process that is dead this holds only if its start is known.
    pub fn pin(&mut self, pid: u32, start_ticks: u64, since: u64) -> Result<usize, PinError> {
        let known = self.exits.slots().find(|(_, slot)| match slot {
            Slot::Free => false,
            Slot::Waiting {
                pid: p,
                start_ticks: s,
            } => *p == pid && same_start(*s, start_ticks),
            Slot::Dead(death) => {
                start_ticks != 0 && death.pid == pid && death.start_ticks == start_ticks
            }
        });
        if let Some((index, _)) = known {
            return Ok(index);
        }
        self.mend();
        let ambiguous = PinError::Ambiguous { pid };
        let spilt = self.spill.find(pid, since).map_err(|_| ambiguous)?;
        let recent = self.exits.ring().filter(|(seq, _)| *seq >= since);
        let recent = recent.map(|(_, death)| death).chain(spilt);
        let death = choose(recent, pid, start_ticks).map_err(|_| ambiguous)?;
        let (index, _) = self
            .exits
            .slots()
            .find(|(_, slot)| *slot == Slot::Free)
            .ok_or(PinError::Full)?;
        self.used = self.used.max(index + 1);
        // The slot is free, hence its fields mean nothing until the commit.
        fence(Ordering::Release);
        if let Some(mut death) = death {
            if death.start_ticks == 0 {
                death.start_ticks = start_ticks;
            }
            self.fill_slot(index, &death);
        } else {
            let base = self.exits.slot_base(index).ok_or(PinError::Full)?;
            self.store(base + TICKS, start_ticks, Ordering::Relaxed);
            self.store(base + PID_NANOS, u64::from(pid) << 32, Ordering::Relaxed);
            self.commit_slot(base, WAITING, 0);
        }
        Ok(index)
    }

    /// Frees a slot. `false` if there is no such slot.
    pub fn unpin(&mut self, index: usize) -> bool {
        match self.exits.slot_base(index) {
            Some(base) => {
                self.commit_slot(base, FREE, 0);
                let is_free = |index| self.exits.slot(index) == Some(Slot::Free);
                while self.used.checked_sub(1).is_some_and(is_free) {
                    self.used -= 1;
                }
                true
            }
            None => false,
        }
    }

    /// The slot that waits for this death; an exact start wins over an unknown one.
    fn waiting_for(&self, death: &Death) -> Option<usize> {
        let mut loose = None;
        // Many die that nobody waits for: not all of the slots are looked at for each.
        for (index, slot) in self.exits.slots().take(self.used) {
            match slot {
                Slot::Waiting { pid, start_ticks } if death.is_of(pid, start_ticks) => {
                    if start_ticks != 0 && start_ticks == death.start_ticks {
                        return Some(index);
                    }
                    loose = loose.or(Some(index));
                }
                Slot::Free | Slot::Waiting { .. } | Slot::Dead(_) => {}
            }
        }
        loose
    }

    /// Fills a free or waiting slot. While it waits, pid and start mean
    /// something already: the pid is stored again as it is, and a start is
    /// stored only where it was unknown and is now known.
    fn fill_slot(&mut self, index: usize, death: &Death) {
        let Some(base) = self.exits.slot_base(index) else {
            return;
        };
        let waiting = self.exits.load(base + COMMIT, Ordering::Relaxed) >> STATE_SHIFT == WAITING;
        if !waiting || death.start_ticks != 0 {
            self.store(base + TICKS, death.start_ticks, Ordering::Relaxed);
        }
        self.store_rest(base, death);
        self.commit_slot(base, DEAD, death.word());
    }

    fn push(&mut self, death: &Death) -> u64 {
        let seq = self.exits.load(RING_SEQ, Ordering::Relaxed);
        let base = ring_base(seq);
        if let Some(oldest) = seq.checked_sub(RING as u64)
            && let Some((seq, left)) = self.exits.in_ring(oldest)
        {
            self.spill.take(seq, &left, death);
        }
        self.store(base + COMMIT, 0, Ordering::Relaxed);
        // Nobody may see the new fields under the old commit word.
        fence(Ordering::Release);
        self.store(base + TICKS, death.start_ticks, Ordering::Relaxed);
        self.store_rest(base, death);
        self.store(
            base + COMMIT,
            ring_commit(seq, death.word()),
            Ordering::Release,
        );
        self.store(RING_SEQ, seq.wrapping_add(1), Ordering::Release);
        seq
    }

    fn store_rest(&mut self, base: usize, death: &Death) {
        let pid_nanos = u64::from(death.pid) << 32 | u64::from(death.at_nanos);
        self.store(base + PID_NANOS, pid_nanos, Ordering::Relaxed);
        self.store(
            base + SECS,
            death.at_secs.cast_unsigned(),
            Ordering::Relaxed,
        );
    }

    fn commit_slot(&mut self, base: usize, state: u64, word: u32) {
        let turn = (self.exits.load(base + COMMIT, Ordering::Relaxed) >> TURN_SHIFT) + 1;
        let commit = state << STATE_SHIFT | (turn & TURN_MASK) << TURN_SHIFT | u64::from(word);
        self.store(base + COMMIT, commit, Ordering::Release);
    }

    /// The only store there is.
    fn store(&mut self, index: usize, value: u64, order: Ordering) {
        #[cfg(test)]
        match &mut self.stores_left {
            Some(0) => return,
            Some(left) => *left -= 1,
            None => {}
        }
        // The file first: what the memory tells is told, and must be found when all are dead.
        let of_many = self.unsaid && (index >= RING_START || index == RING_SEQ);
        if let Some(file) = self.file.as_mut().filter(|_| !of_many) {
            file.store(index, value);
        }
        self.exits.word(index).store(value, order);
    }
}

const _: () = assert!(
    RING.is_power_of_two(),
    "a sequence number's low bits name its place"
);

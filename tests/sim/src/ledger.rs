//! The shim's ledger over the real journal on the crashing disk, with the
//! shim's policy: after the first failure it goes on from memory.

use vigil_journal::crash::{CrashDisk, Loss};
use vigil_journal::{BootId, Error, Journal, Owner, Settings, names, scan};
use vigil_model::{KIND_RECORD, KIND_SNAPSHOT, Ledger, Record, Task};

/// The process died at this point; nothing it was about to do is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dead;

/// See the module.
#[derive(Debug)]
pub struct ShimLedger {
    journal: Journal<CrashDisk>,
    disk: CrashDisk,
    /// Nothing can be recorded any more.
    pub failed: bool,
    /// The record whose writing was begun last, while it is not known to be down.
    pub begun: Option<Record>,
    cut_failed_at: u64,
}

/// Whose the simulated files are.
pub fn owner() -> Owner {
    Owner::with_salt("default", "simulated", 7)
}

/// The task and boot that the journal on this disk tells of; `None` if it
/// cannot be read to the end.
pub fn remembered(disk: &CrashDisk) -> Option<(Task, String)> {
    let replayed = scan(&disk.bytes(names::JOURNAL)?).ok()?;
    if let vigil_journal::Tail::Corrupt { .. } = replayed.tail {
        return None;
    }
    let frames = replayed.records.iter();
    let task = Task::replay(frames.map(|record| (record.kind, &record.payload[..]))).ok()?;
    Some((task, replayed.header.boot.to_string()))
}

/// The disk as the next process finds it; a limit of space stays.
pub fn after_kill(disk: &CrashDisk, full: bool) -> CrashDisk {
    let next = disk.after(Loss::Process);
    if full {
        next.limit_space(Some(next.used()));
    }
    next
}

impl ShimLedger {
    /// Opens the journal, or makes it; what it remembers.
    pub fn open(disk: &CrashDisk, boot: BootId, settings: Settings) -> Result<(Self, Task), Error> {
        let (journal, task) =
            match Journal::create_in(disk.clone(), names::JOURNAL, (boot, &owner()), settings) {
                Ok(journal) => (journal, Task::default()),
                Err(Error::Exists { .. }) => {
                    let task = remembered(disk).map(|(task, _)| task).unwrap_or_default();
                    let file = disk.open(names::JOURNAL).ok_or_else(|| Error::NotAFile {
                        path: names::JOURNAL.into(),
                    })?;
                    let opened =
                        Journal::open_in(disk.clone(), names::JOURNAL, (file, &owner()), settings)?;
                    (opened.journal, task)
                }
                Err(error) => return Err(error),
            };
        let ledger = Self {
            journal,
            disk: disk.clone(),
            failed: false,
            begun: None,
            cut_failed_at: 0,
        };
        Ok((ledger, task))
    }

    /// The number the next record will have.
    pub fn next_seq(&self) -> u64 {
        self.journal.next_seq()
    }

    /// Replaces the journal by a snapshot once half of it is used.
    pub fn cut_if_due(&mut self, task: &Task) -> Result<(), Dead> {
        if self.failed
            || !self.journal.needs_compaction()
            || self.journal.used() <= self.cut_failed_at
        {
            return Ok(());
        }
        if let Ok(snapshot) = task.encode()
            && self.journal.compact(KIND_SNAPSHOT, &snapshot).is_err()
        {
            if self.disk.is_stopped() {
                return Err(Dead);
            }
            self.cut_failed_at = self.journal.used() + 1024;
        }
        Ok(())
    }
}

impl Ledger for ShimLedger {
    type Error = Dead;

    fn append(&mut self, record: &Record) -> Result<(), Dead> {
        if self.failed {
            return Ok(());
        }
        self.begun = Some(record.clone());
        let written = record
            .encode()
            .is_ok_and(|bytes| self.journal.append(KIND_RECORD, &bytes).is_ok());
        if self.disk.is_stopped() {
            return Err(Dead);
        }
        if written {
            self.begun = None;
        } else {
            self.failed = true;
        }
        Ok(())
    }
}

//! The reaper's half of the memory: the real exit records over plain memory,
//! which outlive the reaper as a mapped file does.

use std::sync::atomic::AtomicU64;

use vigil_journal::BootId;
use vigil_journal::exits::{Death, Exits, Recorder, Snapshot, WORDS};
use vigil_model::{Because, Exit, Moment, Status};

use crate::book::status_of;

/// See the module.
#[derive(Debug)]
pub struct Records {
    words: Vec<AtomicU64>,
    bytes: Vec<u8>,
}

impl Records {
    /// Formats them for a boot.
    pub fn new(boot: BootId) -> Self {
        let records = Self {
            words: (0..WORDS).map(|_| AtomicU64::new(0)).collect(),
            bytes: Vec::new(),
        };
        let _ = Recorder::format(&records.words, boot, &crate::ledger::owner());
        records
    }

    /// As the reaper writes them.
    pub fn write<T>(&mut self, with: impl FnOnce(&mut Recorder<'_>) -> T) -> Option<T> {
        let mut recorder = Recorder::new(&self.words).ok()?;
        Some(with(&mut recorder))
    }

    /// As the shim reads them.
    pub fn read(&self) -> Option<Exits<'_>> {
        Exits::new(&self.words).ok()
    }

    /// As `delete` finds one process's end, in the file.
    pub fn find(&mut self, pid: u32, ticks: u64) -> Option<Exit> {
        let death = self.snapshot()?.exits().ok()?.find(pid, ticks)?;
        Some(exit_of(&death))
    }

    /// The death of the one registered process of this pid, and its boot.
    pub fn registered(&mut self, pid: u32) -> Option<(Death, String)> {
        let snapshot = self.snapshot()?;
        let exits = snapshot.exits().ok()?;
        let death = exits.registered(pid).filter(|d| d.start_ticks != 0)?;
        Some((death, exits.boot_id()?.to_string()))
    }

    /// The death in the slot that is init's, and its boot.
    pub fn first(&mut self) -> Option<(Death, String)> {
        let snapshot = self.snapshot()?;
        let exits = snapshot.exits().ok()?;
        let death = exits.pinned(0).filter(|d| d.start_ticks != 0)?;
        Some((death, exits.boot_id()?.to_string()))
    }

    fn snapshot(&mut self) -> Option<Snapshot> {
        use std::sync::atomic::Ordering;
        self.bytes.clear();
        for word in &self.words {
            let word = word.load(Ordering::Relaxed);
            self.bytes.extend_from_slice(&word.to_ne_bytes());
        }
        Snapshot::from_bytes(&self.bytes).ok()
    }

    /// The end of the process pinned there.
    pub fn pinned(&self, slot: usize) -> Option<Death> {
        self.read()?.pinned(slot)
    }
}

/// What a death says, in the rules' words.
pub fn exit_of(death: &Death) -> Exit {
    Exit {
        status: status_of(death.status).unwrap_or(Status::Unknown(Because::NoRecord)),
        at: Moment {
            secs: death.at_secs,
            nanos: death.at_nanos,
        },
    }
}

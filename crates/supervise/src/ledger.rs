//! The model's ledger over the journal. Owns the only thing that appends.
//!
//! After the first failure it is closed, says so once, and the shim goes on
//! from memory: State, Wait, Kill and Delete work (the reaper still records
//! exits), what would begin something new is refused.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::Path;

use vigil_host::observe::planned_for;
use vigil_journal::{
    BootId, Journal, Mirror, Opened, Owner, PAYLOAD_BYTES_MAX, Replayed, Settings, Tail, VERSION,
};
use vigil_model::{KIND_RECORD, KIND_SNAPSHOT, Kind, Ledger, Record, Refusal, Step, Task};

use vigil_sys::points::pretended;

use crate::{Error, crash};

/// For tests: the newest version of the journal this shim can read.
const READS: &str = "VIGIL_PRETEND_JOURNAL";
/// For tests: the version of the journal that the first shim of a pair makes.
const WRITES: &str = "VIGIL_PRETEND_WRITES";

/// See the module.
#[derive(Debug)]
pub struct JournalLedger {
    journal: Journal,
    /// The second copy; `None`: no memory for it, or none that can be written.
    mirror: Option<Mirror>,
    failed: Option<String>,
    /// Bytes in use when cutting failed last; tried again only when more are.
    cut_failed_at: u64,
}

/// The task as the journal knows it.
#[derive(Debug, Default)]
pub struct Remembered {
    /// What replaying gave.
    pub task: Task,
    /// How the journal ended.
    pub tail: Tail,
    /// Its last records, each in a line.
    pub gist: Vec<String>,
}

impl JournalLedger {
    /// Opens the journal at `path`; gives back what it knows. The `first` shim of a pair makes
    /// it. One that takes over must not: with an empty one it would say that there is no
    /// task, and leave to nobody what is there. If it finds it damaged, cut, gone or another's,
    /// it is set aside and written anew from the second copy in the reaper's `memory`. Damaged
    /// and without a copy it is left as it is, and nobody serves by it: with what was lost of it
    /// the container would be denied.
    pub fn open(
        path: &Path,
        boot: BootId,
        owner: &Owner,
        first: bool,
        memory: Option<File>,
    ) -> Result<(Self, Remembered), Error> {
        let settings = Settings {
            version: pretended(WRITES).unwrap_or(VERSION),
            ..Settings::default()
        };
        let kept = memory.as_ref().filter(|_| !first);
        let kept = kept.and_then(|memory| Mirror::read(memory, owner).ok().flatten());
        if !first && kept.is_none() {
            is_whole(path, owner)?;
        }
        // First what is there: to make one takes room, and a shim that takes over on a
        // full file system needs none.
        let opened = match Journal::open(path, owner, settings) {
            Err(vigil_journal::Error::Open { source, .. })
                if first && source.kind() == io::ErrorKind::NotFound =>
            {
                let made = Journal::create(path, boot, owner, settings);
                let made = made.map_err(|source| Error::Journal { source })?;
                return Ok((Self::new(made, memory, &[]), Remembered::default()));
            }
            opened => opened,
        };
        if pretended(READS).is_some_and(|known| known < VERSION) {
            let newer = vigil_journal::Error::Newer {
                path: path.to_owned(),
                version: VERSION,
            };
            return Err(Error::Journal { source: newer });
        }
        let next = |replayed: &Replayed| replayed.header.start_seq + replayed.records.len() as u64;
        let own = |replayed: &Replayed| {
            let task = replay(replayed).ok()?;
            let planned = path.parent().map(|bundle| planned_for(&task, bundle));
            (replayed.header.owner.is_some() || !matches!(planned, Some(Err(_)))).then_some(task)
        };
        let sound = opened.as_ref().is_ok_and(|Opened { replayed, .. }| {
            let corrupt = matches!(replayed.tail, Tail::Corrupt { .. });
            let behind = kept
                .as_ref()
                .is_some_and(|kept| next(kept) > next(replayed));
            !corrupt && !behind && own(replayed).is_some()
        });
        match (opened, kept) {
            (opened, Some(kept)) if !sound => {
                Self::rebuild(path, (boot, owner), opened, &kept, memory)
            }
            (opened, _) => {
                let opened = opened.map_err(|source| Error::Journal { source })?;
                let Opened { journal, replayed } = opened;
                let task = replay(&replayed)?;
                if replayed.header.owner.is_none()
                    && let Some(bundle) = path.parent()
                {
                    planned_for(&task, bundle)?;
                }
                let gist = crash::gist(&replayed);
                let ledger = Self::new(journal, memory, &replayed.records);
                let tail = replayed.tail;
                Ok((ledger, Remembered { task, tail, gist }))
            }
        }
    }

    /// The journal anew, from what the reaper's memory has kept.
    fn rebuild(
        path: &Path,
        (boot, owner): (BootId, &Owner),
        found: Result<Opened, vigil_journal::Error>,
        kept: &Replayed,
        memory: Option<File>,
    ) -> Result<(Self, Remembered), Error> {
        let task = replay(kept)?;
        let why = match &found {
            Ok(found) => format!("it ends {:?}, and records are missing", found.replayed.tail),
            Err(error) => vigil_host::chain(error),
        };
        log::error!("the journal is set aside and written anew from the reaper's memory: {why}");
        let failed = |source| Error::Journal { source };
        let mut journal = match found {
            // What is bad of it was kept under another name when it was opened.
            Ok(found) if found.replayed.header.owner.is_some() => found.journal,
            Ok(_) | Err(_) => {
                if std::fs::symlink_metadata(path).is_ok() {
                    vigil_journal::set_aside(path).map_err(failed)?;
                }
                Journal::create(path, boot, owner, Settings::default()).map_err(failed)?
            }
        };
        let snapshot = task.encode().map_err(|source| Error::Codec { source })?;
        let seq = journal.compact(KIND_SNAPSHOT, &snapshot);
        let seq = seq.map_err(failed)?;
        let record = vigil_journal::Record {
            seq,
            kind: KIND_SNAPSHOT,
            payload: snapshot,
        };
        let remembered = Remembered {
            task,
            tail: Tail::Clean,
            gist: crash::gist(kept),
        };
        Ok((Self::new(journal, memory, &[record]), remembered))
    }

    /// With a second copy of these records, all that the journal has.
    fn new(journal: Journal, memory: Option<File>, records: &[vigil_journal::Record]) -> Self {
        let records: Vec<_> = records
            .iter()
            .map(|record| (record.kind, &record.payload[..]))
            .collect();
        let header = journal.header();
        let start = journal.next_seq() - records.len() as u64;
        let begun = memory.map(|memory| Mirror::begin(memory, header, start, &records));
        Self {
            mirror: begun.and_then(|begun| begun.inspect_err(unmirrored).ok()),
            journal,
            failed: None,
            cut_failed_at: 0,
        }
    }

    /// Whether an exec's spec and streams stand in the journal itself. A pair that a program
    /// of version 1 began may be served by that program again, which knows of no other place.
    pub(crate) fn keeps_specs(&self) -> bool {
        self.journal.header().version < 2
    }

    /// Refuses what begins something new once nothing can be recorded.
    pub(crate) fn takes_new_work(&self) -> Result<(), Refusal> {
        match &self.failed {
            None => Ok(()),
            Some(why) => Err(Refusal::new(
                Kind::Unavailable,
                format!(
                    "{} failed and takes no new work: {why}",
                    self.journal.path().display()
                ),
            )),
        }
    }

    /// Refuses a step whose record is longer than the journal takes: what is
    /// asked is too much, the journal is as good as before.
    pub(crate) fn takes(step: &Step) -> Result<(), Refusal> {
        let Some(Ok(bytes)) = step.record().map(Record::encode) else {
            return Ok(());
        };
        if bytes.len() <= PAYLOAD_BYTES_MAX {
            return Ok(());
        }
        Err(Refusal::new(
            Kind::ResourceExhausted,
            format!(
                "the request takes {} bytes in the journal, {PAYLOAD_BYTES_MAX} are allowed",
                bytes.len()
            ),
        ))
    }

    fn fail(&mut self, why: String) {
        if self.failed.is_none() {
            log::error!("going on from memory: {why}");
            self.failed = Some(why);
        }
    }

    /// Replaces the journal by a snapshot once half of it is used.
    pub(crate) fn cut_if_due(&mut self, task: &Task) {
        if self.failed.is_some()
            || !self.journal.needs_compaction()
            || self.journal.used() <= self.cut_failed_at
        {
            return;
        }
        let outcome = match task.encode() {
            Ok(snapshot) => self
                .journal
                .compact(KIND_SNAPSHOT, &snapshot)
                .map_err(|source| Error::Journal { source }),
            Err(source) => Err(Error::Codec { source }),
        };
        if let Err(error) = outcome {
            // The old journal stays in use; a full file system is the usual
            // reason, and another try costs as much as this one.
            log::warn!("cannot cut the journal: {}", vigil_host::chain(&error));
            self.cut_failed_at = self.journal.used() + 1024;
        } else if let Ok(snapshot) = task.encode() {
            let header = self.journal.header();
            let mirror = self.mirror.take();
            let cut = mirror.map(|mirror| mirror.cut(header, KIND_SNAPSHOT, &snapshot));
            self.mirror = cut.and_then(|cut| cut.inspect_err(unmirrored).ok());
        }
    }
}

impl Ledger for JournalLedger {
    type Error = Infallible;

    fn append(&mut self, record: &Record) -> Result<(), Infallible> {
        if self.failed.is_none() {
            let outcome = match record.encode() {
                Ok(bytes) => {
                    let appended = self.journal.append(KIND_RECORD, &bytes);
                    // After the file: one that is ahead of it shows what the file has lost.
                    if appended.is_ok()
                        && let Some(mirror) = &mut self.mirror
                        && let Err(error) = mirror.append(KIND_RECORD, &bytes)
                    {
                        unmirrored(&error);
                        self.mirror = None;
                    }
                    appended
                        .map(drop)
                        .map_err(|source| Error::Journal { source })
                }
                Err(source) => Err(Error::Codec { source }),
            };
            if let Err(error) = outcome {
                self.fail(vigil_host::chain(&error));
            }
        }
        Ok(())
    }
}

/// An error if records of this journal are lost: it is damaged in the middle, or nothing can be
/// read behind its header although the runtime has made a container here. Changes nothing.
fn is_whole(path: &Path, owner: &Owner) -> Result<(), Error> {
    // What else is wrong with it, opening it will tell.
    let Ok(Replayed {
        records, tail, end, ..
    }) = vigil_journal::replay(path, owner)
    else {
        return Ok(());
    };
    let made = || std::fs::symlink_metadata(path.with_file_name("init.pid")).is_ok();
    let at = match tail {
        Tail::Corrupt { at, .. } => at,
        Tail::Clean | Tail::Torn { .. } if records.is_empty() && made() => end,
        Tail::Clean | Tail::Torn { .. } => return Ok(()),
    };
    Err(Error::JournalLost {
        path: path.to_owned(),
        at,
    })
}

pub(crate) fn replay(replayed: &Replayed) -> Result<Task, Error> {
    let frames = replayed.records.iter();
    let frames = frames.map(|record| (record.kind, &record.payload[..]));
    Task::replay(frames).map_err(|source| Error::Codec { source })
}

/// Without the second copy all is well as long as nobody touches the first.
fn unmirrored(error: &io::Error) {
    log::warn!("no second copy of the journal is kept: {error}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// A pair that began before there was a second copy: its damaged journal was replaced by an
    /// empty one, the shim denied its running container, and `delete` then left it running.
    #[test]
    fn a_damaged_journal_without_a_copy_is_neither_replaced_nor_served_by() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let owner = Owner::with_salt("ns", "c1", 5);
        let boot = BootId::parse(&vigil_host::proc::boot_id().unwrap().0).unwrap();
        let settings = Settings::default();
        let mut made = Journal::create(&path, boot, &owner, settings).unwrap();
        for _ in 0..4 {
            made.append(KIND_RECORD, &[7; 64]).unwrap();
        }
        drop(made);
        std::fs::write(dir.path().join("init.pid"), "1").unwrap();
        let good = std::fs::read(&path).unwrap();
        let mut middle = good.clone();
        middle[good.iter().rposition(|byte| *byte != 0).unwrap() - 150] ^= 0xff;
        // Its header alone is left.
        let mut blind = good.clone();
        blind[256..].iter_mut().for_each(|byte| *byte = !*byte);
        let mut blank = good.clone();
        blank[256..].fill(0);
        for bytes in [middle, blind, blank] {
            std::fs::write(&path, &bytes).unwrap();
            let opened = JournalLedger::open(&path, boot, &owner, false, None);
            assert!(
                matches!(opened, Err(Error::JournalLost { .. })),
                "{opened:?}"
            );
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            let files = std::fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(files, 2, "something was put beside it");
        }
        // No container has been made yet: there is nothing to deny.
        std::fs::remove_file(dir.path().join("init.pid")).unwrap();
        JournalLedger::open(&path, boot, &owner, false, None).unwrap();
    }
}

//! The model's ledger over the journal. Owns the only thing that appends.
//!
//! After the first failure it is closed, says so once, and the shim goes on
//! from memory: State, Wait, Kill and Delete work (the reaper still records
//! exits), what would begin something new is refused.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use vigil_journal::{BootId, Journal, Opened, Owner, PAYLOAD_BYTES_MAX, Settings, Tail, VERSION};
use vigil_model::{KIND_RECORD, KIND_SNAPSHOT, Kind, Ledger, Record, Refusal, Step, Task};

use vigil_sys::points::pretended;

use crate::{Error, crash};

/// For tests: the newest version of the journal this shim can read.
const READS: &str = "VIGIL_PRETEND_JOURNAL";

/// See the module.
#[derive(Debug)]
pub struct JournalLedger {
    journal: Journal,
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
    /// task, and leave to nobody what is there.
    pub fn open(
        path: &Path,
        boot: BootId,
        owner: &Owner,
        first: bool,
    ) -> Result<(Self, Remembered), Error> {
        let settings = Settings::default();
        // First what is there: to make one takes room, and a shim that takes over on a
        // full file system needs none.
        let opened = match Journal::open(path, owner, settings) {
            Err(vigil_journal::Error::Open { source, .. })
                if first && source.kind() == io::ErrorKind::NotFound =>
            {
                let made = Journal::create(path, boot, owner, settings);
                let made = made.map_err(|source| Error::Journal { source })?;
                return Ok((Self::new(made), Remembered::default()));
            }
            opened => opened,
        };
        let opened = opened.and_then(|opened| match pretended(READS) {
            Some(known) if known < VERSION => Err(vigil_journal::Error::Newer {
                path: path.to_owned(),
                version: VERSION,
            }),
            Some(_) | None => Ok(opened),
        });
        let Opened { journal, replayed } = opened.map_err(|source| Error::Journal { source })?;
        let gist = crash::gist(&replayed);
        let frames = replayed.records.iter();
        let frames = frames.map(|record| (record.kind, &record.payload[..]));
        let task = Task::replay(frames).map_err(|source| Error::Codec { source })?;
        let tail = replayed.tail;
        Ok((Self::new(journal), Remembered { task, tail, gist }))
    }

    fn new(journal: Journal) -> Self {
        Self {
            journal,
            failed: None,
            cut_failed_at: 0,
        }
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
        }
    }
}

impl Ledger for JournalLedger {
    type Error = Infallible;

    fn append(&mut self, record: &Record) -> Result<(), Infallible> {
        if self.failed.is_none() {
            let outcome = match record.encode() {
                Ok(bytes) => self
                    .journal
                    .append(KIND_RECORD, &bytes)
                    .map(drop)
                    .map_err(|source| Error::Journal { source }),
                Err(source) => Err(Error::Codec { source }),
            };
            if let Err(error) = outcome {
                self.fail(vigil_host::chain(&error));
            }
        }
        Ok(())
    }
}

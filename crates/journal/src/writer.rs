//! The one writer of a journal: create, open, append.
//!
//! Owns the order "write, then say so": an append that returned is there after
//! any later crash. It must never write after an error (the latch), because
//! what a failed write left is known only by reading the file again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::boot::BootId;
use crate::compact::{self, Side};
use crate::error::{During, Error};
use crate::file::{Folder, open_regular};
use crate::frame::{FILE_BYTES_MAX, FRAME_BYTES_MIN, Header, PAYLOAD_BYTES_MAX, VERSION, encode};
use crate::names::{self, BAD_SUFFIX};
use crate::owner::Owner;
use crate::replay::{Replayed, Tail, read};
use crate::storage::{Directory, Storage};

/// Bytes written in advance unless the caller says otherwise.
pub const PREALLOC_BYTES: u32 = 16 * 1024;

/// Names tried for one bad journal before it is left where it is.
const BAD_NAMES_MAX: u32 = 16;

/// How a journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Bytes written in advance, header included. Half of it is the reserve
    /// for a full file system, see [`Journal::needs_compaction`].
    pub prealloc: u32,
    /// Sync each append and each new generation. Pointless on tmpfs, where a
    /// write outlives the process and nothing outlives the host.
    pub durable: bool,
    /// Version that a new one gets; one that is there keeps its own.
    pub version: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            prealloc: PREALLOC_BYTES,
            durable: false,
            version: VERSION,
        }
    }
}

/// A journal open for appending. Two at once destroy each other's records: the
/// pair's `lock` and the reaper's rule of one shim see to that, not this type.
#[derive(Debug)]
pub struct Journal<D: Directory = Folder> {
    pub(crate) directory: D,
    pub(crate) name: String,
    pub(crate) file: D::File,
    pub(crate) header: Header,
    pub(crate) settings: Settings,
    /// Where the next record goes.
    pub(crate) end: u64,
    pub(crate) next_seq: u64,
    pub(crate) latch: Option<Latch>,
}

/// The first error, kept.
#[derive(Debug, Clone)]
pub(crate) struct Latch {
    pub(crate) during: During,
    pub(crate) cause: Arc<io::Error>,
}

/// A journal open for appending, and what was in it.
#[derive(Debug)]
pub struct Opened<D: Directory = Folder> {
    /// Ready to append, or latched if a torn tail could not be cut or a
    /// corrupt file not replaced: then it can still be read, never written.
    pub journal: Journal<D>,
    /// What was found, before anything was mended.
    pub replayed: Replayed,
}

impl Journal {
    /// A new, empty journal at `path`, generation 1, its preallocation written
    /// with real zeros. Fails with [`Error::Exists`] if the name is taken;
    /// after any error or crash nothing has that name.
    pub fn create(
        path: &Path,
        boot: BootId,
        owner: &Owner,
        settings: Settings,
    ) -> Result<Self, Error> {
        let (folder, name) = place(path)?;
        Self::create_in(folder, name, (boot, owner), settings)
    }

    /// Opens for appending. A torn tail is cut; a corrupt file is kept as
    /// `<path>.bad-<generation>` and replaced by a new generation holding the
    /// records before the damage. A file that is no journal at all is an error
    /// and is not touched, see [`set_aside`]; nor is one of another owner.
    pub fn open(path: &Path, whose: &Owner, settings: Settings) -> Result<Opened, Error> {
        let (folder, name) = place(path)?;
        let file = open_regular(path, true)?;
        Self::open_in(folder, name, (file, whose), settings)
    }
}

/// The directory and the name in it.
fn place(path: &Path) -> Result<(Folder, &str), Error> {
    let named = || Some((path.parent()?, path.file_name()?.to_str()?));
    let (parent, name) = named().ok_or_else(|| Error::NotAFile {
        path: path.to_owned(),
    })?;
    // The parent of a bare name is the empty path, which cannot be opened.
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    Ok((Folder::new(parent), name))
}

impl<D: Directory> Journal<D> {
    #[doc(hidden)]
    pub fn create_in(
        directory: D,
        name: &str,
        (boot, owner): (BootId, &Owner),
        settings: Settings,
    ) -> Result<Self, Error> {
        let header = Header {
            version: settings.version,
            boot,
            generation: 1,
            start_seq: 1,
            capacity: compact::capacity_for(0, settings),
            // Version 1 does not say whose it is.
            owner: (settings.version > 1).then(|| owner.clone()),
        };
        let failed = |(during, source)| Error::Create {
            path: directory.path(name),
            during,
            source,
        };
        let side = compact::write_side(&directory, name, &header, &[], settings).map_err(failed)?;
        // A link, not a rename: it never replaces what somebody else put there.
        let side_name = compact::side_name(name);
        let named = directory.link(&side_name, name);
        let _ = directory.remove(&side_name);
        match named {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists {
                    path: directory.path(name),
                });
            }
            Err(source) => return Err(failed((During::Name, source))),
            Ok(()) => {}
        }
        if settings.durable
            && let Err(source) = directory.sync()
        {
            let _ = directory.remove(name);
            return Err(failed((During::SyncDirectory, source)));
        }
        let Side { file, end } = side;
        Ok(Journal {
            name: name.to_owned(),
            directory,
            file,
            header,
            settings,
            end,
            next_seq: 1,
            latch: None,
        })
    }

    #[doc(hidden)]
    pub fn open_in(
        directory: D,
        name: &str,
        (file, whose): (D::File, &Owner),
        settings: Settings,
    ) -> Result<Opened<D>, Error> {
        let mut replayed = read(&file, &directory.path(name), whose)?;
        // What a crash inside a compaction left; its space may be needed.
        let _ = directory.remove(&compact::side_name(name));
        let mut journal = Journal {
            name: name.to_owned(),
            next_seq: replayed.header.start_seq + replayed.records.len() as u64,
            end: replayed.end,
            header: replayed.header.clone(),
            directory,
            file,
            settings,
            latch: None,
        };
        match &mut replayed.tail {
            Tail::Clean => {}
            Tail::Torn { at, dropped } => {
                if let Err(cause) = journal.cut(*at, *dropped) {
                    journal.close(During::Cut, cause);
                }
            }
            Tail::Corrupt { kept, .. } => {
                match journal.keep_bad() {
                    Ok(name) => *kept = Some(journal.directory.path(&name)),
                    Err(cause) => {
                        journal.close(During::KeepBad, cause);
                    }
                }
                if journal.latch.is_none()
                    && let Err((during, cause)) = journal.replace(&replayed.records)
                {
                    journal.close(during, cause);
                }
            }
        }
        if journal.latch.is_none() {
            journal.restore_preallocation();
        }
        Ok(Opened { journal, replayed })
    }

    /// Appends one record, in one write, and returns its sequence number once
    /// it is there (and, if durable, synced). The first I/O error closes the
    /// journal: every later call answers [`Error::Latched`].
    pub fn append(&mut self, kind: u16, payload: &[u8]) -> Result<u64, Error> {
        self.refuse_if_latched()?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::PayloadTooBig {
                kind,
                len: payload.len(),
            });
        }
        let len = (FRAME_BYTES_MIN + payload.len()) as u64;
        if self.end + len > FILE_BYTES_MAX {
            return Err(Error::Full {
                path: self.path(),
                used: self.end,
            });
        }
        let seq = self.next_seq;
        let mut frame = Vec::new();
        encode(&mut frame, self.header.seed(), seq, kind, payload);
        let mut written = self.file.write_at(&frame, self.end);
        if written.is_ok() && self.settings.durable {
            written = self.file.sync();
        }
        if let Err(cause) = written {
            let source = self.close(During::Append, cause);
            return Err(Error::Append {
                path: self.path(),
                seq,
                source,
            });
        }
        self.end += len;
        self.next_seq += 1;
        Ok(seq)
    }

    /// Whether more than half of the preallocation is used. From then on the
    /// caller should [`compact`](Self::compact) at a quiet moment: the unused
    /// half is the reserve that takes the last records when the file system is
    /// full and compaction, which needs a second file, must fail.
    pub fn needs_compaction(&self) -> bool {
        self.end > u64::from(self.header.capacity) / 2
    }

    /// The file's head, as it is now.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Sequence number the next record will have.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Bytes in use, header included.
    pub fn used(&self) -> u64 {
        self.end
    }

    /// The first error, if there was one.
    pub fn latched(&self) -> Option<&io::Error> {
        self.latch.as_ref().map(|latch| &*latch.cause)
    }

    /// Where the journal lies.
    pub fn path(&self) -> PathBuf {
        self.directory.path(&self.name)
    }

    /// Sets the latch unless it is set; the first cause stays.
    pub(crate) fn close(&mut self, during: During, cause: io::Error) -> Arc<io::Error> {
        let latch = self.latch.get_or_insert_with(|| Latch {
            during,
            cause: Arc::new(cause),
        });
        Arc::clone(&latch.cause)
    }

    pub(crate) fn refuse_if_latched(&self) -> Result<(), Error> {
        match &self.latch {
            None => Ok(()),
            Some(latch) => Err(Error::Latched {
                path: self.path(),
                during: latch.during,
                cause: Arc::clone(&latch.cause),
            }),
        }
    }

    /// Overwrites a torn tail with zeros, so that the next scan sees no more
    /// of it. Stopped halfway it is still a torn tail.
    fn cut(&mut self, at: u64, dropped: u64) -> io::Result<()> {
        let reserved = u64::from(self.header.capacity);
        let torn_end = at + dropped;
        if torn_end > reserved {
            self.file.set_len(at.max(reserved))?;
        }
        compact::write_zeros(&mut self.file, at, torn_end.min(at.max(reserved)))?;
        if self.settings.durable {
            self.file.sync()?;
        }
        Ok(())
    }

    /// Gives the corrupt file a second name that nothing else has.
    fn keep_bad(&self) -> io::Result<String> {
        let base = format!("{}{BAD_SUFFIX}{}", self.name, self.header.generation);
        let mut taken = io::Error::from(io::ErrorKind::AlreadyExists);
        for attempt in 0..BAD_NAMES_MAX {
            let name = numbered(&base, attempt);
            match self.directory.link(&self.name, &name) {
                Ok(()) => return Ok(name),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = error,
                Err(error) => return Err(error),
            }
        }
        Err(taken)
    }

    /// Writes again what somebody cut off the preallocation. On a full file
    /// system there is none then: appends grow the file, or latch.
    fn restore_preallocation(&mut self) {
        if let Ok(len) = self.file.len()
            && len < u64::from(self.header.capacity)
        {
            let _ = compact::write_zeros(&mut self.file, len, u64::from(self.header.capacity));
        }
    }
}

fn numbered(base: &str, attempt: u32) -> String {
    if attempt == 0 {
        base.to_owned()
    } else {
        format!("{base}.{attempt}")
    }
}

/// Moves whatever is at `path` (a foreign file, a directory, a journal with a
/// damaged header) to `<path>.bad`, or `<path>.bad.1` and so on, and returns
/// that name. Nothing is deleted, but when all these names are taken one that was kept before
/// gives way. The caller holds the pair's lock.
pub fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let failed = |source| Error::SetAside {
        path: path.to_owned(),
        source,
    };
    let name = |attempt: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(numbered(names::BAD, attempt));
        PathBuf::from(name)
    };
    for name in (0..BAD_NAMES_MAX).map(name) {
        match fs::symlink_metadata(&name) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::rename(path, &name).map_err(failed)?;
                return Ok(name);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    // Enough are kept. Nobody reads them but people, and they the first and the last.
    for name in (1..BAD_NAMES_MAX).map(name) {
        if fs::rename(path, &name).is_ok() {
            return Ok(name);
        }
    }
    Err(failed(io::ErrorKind::AlreadyExists.into()))
}

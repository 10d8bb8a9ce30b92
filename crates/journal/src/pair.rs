//! The `pair` file: which two processes serve this container.
//!
//! Owned by the reaper, read by `delete`, which kills through pidfds checked
//! against it. It must never be believed in part: a file that is cut, mixed or
//! of another version yields an error, and then nobody is signalled.

use std::fmt::{self, Write as _};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::boot::BootId;
use crate::file::{DiskFile, make_way, open_regular};
use crate::names::SIDE_SUFFIX;
use crate::owner::{NotOurs, Owner};
use crate::storage::Storage;

/// Bytes of every `pair` file: the text, then newlines. One size, below a
/// page, so that it can be overwritten in place when the file system is full.
pub const PAIR_BYTES: usize = 512;

const TITLE: &str = "vigil-pair";
const VERSION: u16 = 3;
/// Of one whose reaper leads the session: earlier programs read it too.
const PLAIN: u16 = 2;

/// One process, as the kernel told it apart from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation {
    /// Its pid, in the pid namespace `pid_ns`.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_ticks: u64,
    /// Inode of that pid namespace.
    pub pid_ns: u64,
    /// The boot it ran in.
    pub boot: BootId,
    /// Inode of its pidfd where pidfs exists (Linux 6.9).
    pub pidfd_inode: Option<u64>,
}

/// The reaper, and the shim it has started last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The parent of everything.
    pub reaper: Incarnation,
    /// `None` between two shims.
    pub shim: Option<Incarnation>,
    /// The session of both, if its number is not the reaper's: that was a shim before.
    pub session: Option<u32>,
}

/// Why there is no pair to be had.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The file could not be opened or read.
    #[error("{path}: cannot read the pair")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A directory, fifo, link or device has its name.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be written; the old one is still there.
    #[error("{path}: cannot write the pair")]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It names another container's pair, or one of another life of this one.
    #[error(transparent)]
    NotOurs {
        /// Whose, and whose it was to be.
        source: NotOurs,
    },
    /// The bytes are no pair.
    #[error("{path}: not a pair")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ParseError,
    },
}

/// What is wrong with the bytes of a pair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not the one size a pair has: cut, or never ours.
    #[error("{len} bytes instead of {PAIR_BYTES}")]
    Size {
        /// How many there are.
        len: usize,
    },
    /// Does not begin as a pair does.
    #[error("no line `{TITLE} <version>` at its beginning")]
    Foreign,
    /// Written by a later Vigil.
    #[error("version {version}, versions up to {VERSION} are known here")]
    Newer {
        /// That version.
        version: u16,
    },
    /// The checksum in the last line does not fit: damaged, or mixed of two.
    #[error("the checksum does not fit")]
    Sum,
    /// A line is not what this version writes there.
    #[error("line {line} is malformed")]
    Line {
        /// Counted from 1.
        line: usize,
    },
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Incarnation {
            pid,
            start_ticks,
            pid_ns,
            boot,
            pidfd_inode,
        } = self;
        write!(
            f,
            "pid={pid} start={start_ticks} pidns={pid_ns} boot={boot}"
        )?;
        match pidfd_inode {
            Some(inode) => write!(f, " pidfd={inode}"),
            None => Ok(()),
        }
    }
}

impl Incarnation {
    /// Of this boot: pid, start, pid namespace, inode of the pidfd.
    pub fn new(
        boot: BootId,
        (pid, start_ticks, pid_ns, pidfd_inode): (u32, u64, u64, Option<u64>),
    ) -> Self {
        Self {
            pid,
            start_ticks,
            pid_ns,
            boot,
            pidfd_inode,
        }
    }

    /// The fields, all of them, in this order, once.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let mut field = |key: &str| fields.next()?.strip_prefix(key)?.strip_prefix('=');
        let incarnation = Incarnation {
            pid: number(field("pid")?)?,
            start_ticks: number(field("start")?)?,
            pid_ns: number(field("pidns")?)?,
            boot: BootId::from_bytes(field("boot")?.as_bytes())?,
            pidfd_inode: match fields.next() {
                None => None,
                Some(last) => Some(number(last.strip_prefix("pidfd=")?)?),
            },
        };
        (fields.next().is_none() && incarnation.pid != 0).then_some(incarnation)
    }
}

/// Digits only: `parse` alone would take a sign.
pub(crate) fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

impl Pair {
    /// The session of both, and of the calls of the runtime they make.
    pub fn session(&self) -> u32 {
        self.session.unwrap_or(self.reaper.pid)
    }

    /// The file's bytes.
    pub fn to_bytes(&self, owner: &Owner) -> [u8; PAIR_BYTES] {
        let mut text = String::with_capacity(PAIR_BYTES);
        // Writing to a String cannot fail.
        let version = if self.session.is_some() {
            VERSION
        } else {
            PLAIN
        };
        let _ = writeln!(text, "{TITLE} {version}");
        let _ = writeln!(text, "{}", owner.line());
        if let Some(session) = self.session {
            let _ = writeln!(text, "session {session}");
        }
        let _ = writeln!(text, "reaper {}", self.reaper);
        if let Some(shim) = &self.shim {
            let _ = writeln!(text, "shim {shim}");
        }
        let sum = crate::crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "sum {sum:08x}");
        let mut bytes = [b'\n'; PAIR_BYTES];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        bytes
    }

    /// Takes exactly what [`Pair::to_bytes`] gives, and says whose it is; version 1 did not.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Option<Owner>), ParseError> {
        // The title first: of a later version not even the size is known.
        let title_end = bytes
            .iter()
            .position(|b| *b == b'\n')
            .unwrap_or(bytes.len());
        let version = std::str::from_utf8(&bytes[..title_end])
            .ok()
            .and_then(|line| number(line.strip_prefix(TITLE)?.strip_prefix(' ')?))
            .ok_or(ParseError::Foreign)?;
        if version > VERSION {
            return Err(ParseError::Newer { version });
        }
        if version == 0 {
            return Err(ParseError::Foreign);
        }
        if bytes.len() != PAIR_BYTES {
            return Err(ParseError::Size { len: bytes.len() });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ParseError::Sum)?;
        let (body, sum) = text
            .trim_end_matches('\n')
            .rsplit_once("\nsum ")
            .ok_or(ParseError::Sum)?;
        // The sum covers the newline that the split took away.
        let covered = &bytes[..=body.len()];
        if sum != format!("{:08x}", crate::crc32c::crc32c(covered)) {
            return Err(ParseError::Sum);
        }
        let mut lines: Vec<&str> = body.split('\n').skip(1).collect();
        let mut before = 2;
        let mut owner = None;
        if version > 1 {
            let line = lines.first().and_then(|line| Owner::parse_line(line));
            owner = Some(line.ok_or(ParseError::Line { line: 2 })?);
            lines.remove(0);
            before = 3;
        }
        let mut session = None;
        if version > PLAIN {
            let line = lines
                .first()
                .and_then(|line| number(line.strip_prefix("session ")?));
            session = Some(line.ok_or(ParseError::Line { line: before })?);
            lines.remove(0);
            before += 1;
        }
        let who = |line: usize, role: &str| {
            lines
                .get(line)
                .and_then(|text| Incarnation::parse(text.strip_prefix(role)?.strip_prefix(' ')?))
                .ok_or(ParseError::Line {
                    line: line + before,
                })
        };
        let pair = Pair {
            reaper: who(0, "reaper")?,
            shim: (lines.len() > 1).then(|| who(1, "shim")).transpose()?,
            session,
        };
        if lines.len() > 2 {
            return Err(ParseError::Line { line: before + 2 });
        }
        Ok((pair, owner))
    }

    /// Replaces the file at `path`, by way of a side name and a rename. If the
    /// file system has no room for the side file, the old file is overwritten
    /// in place: same size, one write within a page, and the checksum tells a
    /// mixture apart.
    pub fn write(&self, path: &Path, owner: &Owner) -> Result<(), PairError> {
        let bytes = self.to_bytes(owner);
        let result = replace(path, &bytes).or_else(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                match open_regular(path, true) {
                    Ok(file) => file.0.write_all_at(&bytes, 0),
                    Err(_) => Err(error),
                }
            }
            _ => Err(error),
        });
        result.map_err(|source| PairError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads and checks the file at `path`, which must be this owner's: nobody is signalled
    /// by what was copied here from elsewhere.
    pub fn read(path: &Path, whose: &Owner) -> Result<Self, PairError> {
        let (pair, owner) = Self::read_any(path)?;
        whose
            .claims(path, owner.as_ref())
            .map_err(|source| PairError::NotOurs { source })?;
        Ok(pair)
    }

    /// Reads and checks the file at `path`, whosever it is, and says whose.
    pub fn read_any(path: &Path) -> Result<(Self, Option<Owner>), PairError> {
        let failed = |source| PairError::Read {
            path: path.to_owned(),
            source,
        };
        let file = open_regular(path, false).map_err(|error| match error {
            crate::Error::Open { path, source } => PairError::Read { path, source },
            _ => PairError::NotAFile {
                path: path.to_owned(),
            },
        })?;
        let parsed = match Pair::parse(&contents(&file).map_err(failed)?) {
            // Perhaps it was being overwritten in place: once more.
            Err(ParseError::Sum) => Pair::parse(&contents(&file).map_err(failed)?),
            other => other,
        };
        parsed.map_err(|source| PairError::Parse {
            path: path.to_owned(),
            source,
        })
    }
}

/// What is in the file, as far as it could be a pair.
fn contents(file: &DiskFile) -> io::Result<Vec<u8>> {
    // One byte more than there may be, to see that there are too many.
    let mut bytes = vec![0; PAIR_BYTES + 1];
    let mut have = 0;
    while have < bytes.len() {
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

/// Puts a file of these bytes in the place of another, by way of a side name
/// and a rename; the side file does not stay.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut side = path.as_os_str().to_owned();
    side.push(SIDE_SUFFIX);
    put(&PathBuf::from(side), path, bytes)
}

/// As [`replace`], by way of this side name.
pub(crate) fn put(side: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_way(path);
    let result = write_new(side, bytes).and_then(|()| fs::rename(side, path));
    if result.is_err() {
        let _ = fs::remove_file(side);
    }
    result
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_way(path);
    let _ = fs::remove_file(path);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all_at(bytes, 0)
}

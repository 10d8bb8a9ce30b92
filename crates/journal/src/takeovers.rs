//! The `takeovers` file: how often another shim has taken over in this pair,
//! and of the last of them when and why.
//!
//! Owned by the reaper, which alone knows; read by the next shim, by `delete`
//! and by the tool, for people. A cause is one line that is not interpreted
//! here. Nothing is decided by this file: it may be missing (there was none, or
//! there was no room for it), and one that is cut or of another version is
//! an error with a name.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::file::{Unread, read_if_there};
use crate::owner::{NotOurs, Owner};
use crate::pair::{ParseError, number, replace};

/// Most takeovers that are told of; the older ones are only counted.
pub const STORY_MAX: usize = 16;
/// Longest cause in bytes; the rest of it is cut off.
pub const CAUSE_BYTES_MAX: usize = 200;
/// Longest file read.
const FILE_BYTES_MAX: usize = 8 << 10;

const TITLE: &str = "vigil-takeovers";
const VERSION: u16 = 2;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takeover {
    /// When the shim before was seen to be dead, in seconds after 1970 …
    pub at_secs: i64,
    /// … and nanoseconds.
    pub at_nanos: u32,
    /// Why: one line of printable text.
    pub cause: String,
}

/// All of a pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takeovers {
    /// How many there were.
    pub count: u64,
    /// The last of them, [`STORY_MAX`] at most, oldest first.
    pub last: VecDeque<Takeover>,
}

/// Why there is nothing to be had.
#[derive(Debug, thiserror::Error)]
pub enum TakeoversError {
    /// The file could not be opened or read.
    #[error("{path}: cannot read the takeovers")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// They are of another container's pair, or of another life of this one.
    #[error(transparent)]
    NotOurs {
        /// Whose, and whose they were to be.
        source: NotOurs,
    },
    /// Something else has the name.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// It.
        path: PathBuf,
    },
    /// The bytes are no such file.
    #[error("{path}: not a file of takeovers")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ParseError,
    },
}

/// One line, printable, bounded, its words separated by one space.
fn plain(cause: &str) -> String {
    let mut line = String::new();
    for word in cause.split(|char: char| char.is_control() || char.is_whitespace()) {
        let room = CAUSE_BYTES_MAX.saturating_sub(line.len() + 1);
        let word = &word[..word.floor_char_boundary(room)];
        if !word.is_empty() {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    line
}

impl Takeovers {
    /// One more, now.
    pub fn add(&mut self, cause: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        self.count += 1;
        if self.last.len() == STORY_MAX {
            self.last.pop_front();
        }
        self.last.push_back(Takeover {
            at_secs: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            at_nanos: now.subsec_nanos(),
            cause: plain(cause),
        });
    }

    /// The file's bytes.
    pub fn to_bytes(&self, owner: &Owner) -> Vec<u8> {
        // Writing to a String cannot fail.
        let owner = owner.line();
        let mut text = format!("{TITLE} {VERSION}\n{owner}\ncount {}\n", self.count);
        for one in &self.last {
            let _ = writeln!(text, "{}.{:09} {}", one.at_secs, one.at_nanos, one.cause);
        }
        let sum = crate::crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "sum {sum:08x}");
        text.into_bytes()
    }

    /// Takes exactly what [`Takeovers::to_bytes`] gives, and says whose they are; version 1
    /// did not.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Option<Owner>), ParseError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ParseError::Sum)?;
        let title = text.split('\n').next().unwrap_or_default();
        let version = title.strip_prefix(TITLE).and_then(|v| v.strip_prefix(' '));
        let version = match version.and_then(number) {
            None | Some(0) => return Err(ParseError::Foreign),
            Some(version @ 1..=VERSION) => version,
            Some(version) => return Err(ParseError::Newer { version }),
        };
        let body = text
            .strip_suffix('\n')
            .and_then(|t| t.rsplit_once("\nsum "));
        let (body, sum) = body.ok_or(ParseError::Sum)?;
        // The sum covers the newline that the split took away.
        if sum != format!("{:08x}", crate::crc32c::crc32c(&bytes[..=body.len()])) {
            return Err(ParseError::Sum);
        }
        let malformed = |line: usize| ParseError::Line { line };
        let mut lines = body.split('\n').skip(1);
        let mut before = 2;
        let mut owner = None;
        if version > 1 {
            let line = lines.next().and_then(Owner::parse_line);
            owner = Some(line.ok_or(malformed(2))?);
            before = 3;
        }
        let count = lines.next().and_then(|line| line.strip_prefix("count "));
        let mut takeovers = Takeovers {
            count: count.and_then(number).ok_or(malformed(before))?,
            last: VecDeque::new(),
        };
        for (at, line) in lines.enumerate() {
            let one = Takeover::parse(line).ok_or(malformed(at + before + 1))?;
            takeovers.last.push_back(one);
        }
        if takeovers.last.len() > STORY_MAX {
            return Err(malformed(STORY_MAX + before + 1));
        }
        Ok((takeovers, owner))
    }

    /// Replaces the file at `path`, whole or not at all.
    pub fn write(&self, path: &Path, owner: &Owner) -> io::Result<()> {
        replace(path, &self.to_bytes(owner))
    }

    /// Reads and checks the file at `path`, which must be this owner's; none if there is no
    /// such file.
    pub fn read(path: &Path, whose: &Owner) -> Result<Self, TakeoversError> {
        let there = read_if_there(path, FILE_BYTES_MAX as u64).map_err(|unread| {
            let path = path.to_owned();
            match unread {
                Unread::NotAFile => TakeoversError::NotAFile { path },
                Unread::Io(source) => TakeoversError::Read { path, source },
            }
        })?;
        let Some(bytes) = there else {
            return Ok(Self::default());
        };
        let parsed = Takeovers::parse(&bytes).map_err(|source| TakeoversError::Parse {
            path: path.to_owned(),
            source,
        });
        let (takeovers, owner) = parsed?;
        whose
            .claims(path, owner.as_ref())
            .map_err(|source| TakeoversError::NotOurs { source })?;
        Ok(takeovers)
    }
}

impl Takeover {
    fn parse(line: &str) -> Option<Self> {
        let (at, cause) = line.split_once(' ')?;
        let (secs, nanos) = at.split_once('.')?;
        let whole = nanos.len() == 9 && cause == plain(cause);
        whole.then_some(Self {
            at_secs: number(secs)?,
            at_nanos: number(nanos)?,
            cause: cause.to_owned(),
        })
    }
}

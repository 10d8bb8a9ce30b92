//! The `panic` file: the last words of a shim that panicked.
//!
//! Owns its head, a title and whose it is; below it stands text for people. Written while the
//! process dies, so it has no checksum and may be cut anywhere. Nothing is decided by it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::file::{Unread, read_if_there};
use crate::owner::{NotOurs, Owner};

const TITLE: &str = "vigil-panic";
const VERSION: u16 = 1;
/// Longest file read, bytes.
const BYTES_MAX: u64 = 2048;

/// Why the words are not used.
#[derive(Debug, thiserror::Error)]
pub enum PanicError {
    /// The file could not be read.
    #[error("{path}: cannot read the last words")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Something else has the name.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// It.
        path: PathBuf,
    },
    /// Another container's, or another life's.
    #[error(transparent)]
    NotOurs {
        /// Whose, and whose they were to be.
        source: NotOurs,
    },
    /// Of a later Vigil.
    #[error("{path}: last words of version {version}, versions up to {VERSION} are known here")]
    Newer {
        /// The file.
        path: PathBuf,
        /// That version.
        version: u16,
    },
}

/// What stands above the words.
pub fn head(owner: &Owner) -> String {
    format!("{TITLE} {VERSION}\n{}\n", owner.line())
}

/// Leaves words there, in place of any that were.
pub fn leave(path: &Path, owner: &Owner, words: &str) -> io::Result<()> {
    // Whatever has the name: a file of our own is made, and nothing is followed.
    crate::file::make_way(path);
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(format!("{}{words}", head(owner)).as_bytes())
}

/// The words; `None` if there are none. Those of before this had no head, and are shown as
/// they are.
pub fn read(path: &Path, whose: &Owner) -> Result<Option<String>, PanicError> {
    let there = read_if_there(path, BYTES_MAX).map_err(|unread| {
        let path = path.to_owned();
        match unread {
            Unread::NotAFile => PanicError::NotAFile { path },
            Unread::Io(source) => PanicError::Read { path, source },
        }
    })?;
    let Some(bytes) = there else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let title = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix(TITLE));
    let words = match title.and_then(|line| line.strip_prefix(' ')?.parse::<u16>().ok()) {
        None => text.as_str(),
        Some(version) if version > VERSION => {
            return Err(PanicError::Newer {
                path: path.to_owned(),
                version,
            });
        }
        Some(_) => {
            let mut rest = text.splitn(3, '\n').skip(1);
            let owner = rest.next().and_then(Owner::parse_line);
            whose
                .claims(path, owner.as_ref())
                .map_err(|source| PanicError::NotOurs { source })?;
            rest.next().unwrap_or_default()
        }
    };
    let words = words.trim();
    Ok((!words.is_empty()).then(|| words.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The crash of another container, or of an earlier one of this id, was shown as this
    /// one's.
    #[test]
    fn only_the_words_of_this_life_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("panic");
        let own = Owner::with_salt("n", "c", 7);
        assert!(matches!(read(&path, &own), Ok(None)));
        std::fs::write(&path, format!("{}it broke\nhere", head(&own))).unwrap();
        assert_eq!(read(&path, &own).unwrap().unwrap(), "it broke\nhere");
        let other = Owner::with_salt("n", "c", 8);
        assert!(matches!(
            read(&path, &other),
            Err(PanicError::NotOurs { .. })
        ));
        std::fs::write(&path, "vigil-panic 2\n?").unwrap();
        assert!(matches!(read(&path, &own), Err(PanicError::Newer { .. })));
        std::fs::write(&path, "of before").unwrap();
        assert_eq!(read(&path, &own).unwrap().unwrap(), "of before");
    }
}

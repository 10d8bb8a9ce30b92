//! The `ended` file: what was told of a container's end where the journal could not keep it: it
//! is missing, corrupt, another's or another version's, or does not name init. Whoever is asked
//! again says the same.
//!
//! Owns its head, a title and whose it is; below it stands one line that is not interpreted
//! here. Replaced as a whole.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::file::{Unread, read_if_there};
use crate::names;
use crate::owner::{NotOurs, Owner};
use crate::pair::put;

const TITLE: &str = "vigil-ended";
const VERSION: u16 = 1;
/// Longest file read, bytes.
const BYTES_MAX: u64 = 4096;

/// Why what was told is not known.
#[derive(Debug, thiserror::Error)]
pub enum EndedError {
    /// The file could not be read.
    #[error("{path}: cannot read what was told of the end")]
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
        /// Whose, and whose it was to be.
        source: NotOurs,
    },
    /// Cut, damaged, or of a later Vigil.
    #[error("{path}: not what was told of an end, or of a later version")]
    NotIt {
        /// The file.
        path: PathBuf,
    },
}

/// Which life of the bundle it can be about, beside the owner's: a new one begins with a new
/// journal.
pub fn life(bundle: &Path) -> Option<u64> {
    let journal = fs::symlink_metadata(bundle.join(names::JOURNAL)).ok()?;
    Some(journal.ino())
}

/// The line; `None` if nothing was told. Before there was a version it stood alone.
pub fn read(bundle: &Path, whose: &Owner) -> Result<Option<String>, EndedError> {
    let path = bundle.join(names::ENDED);
    let bytes = match read_if_there(&path, BYTES_MAX + 1) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(Unread::NotAFile) => return Err(EndedError::NotAFile { path }),
        Err(Unread::Io(source)) => return Err(EndedError::Read { path, source }),
    };
    let not_it = || EndedError::NotIt { path: path.clone() };
    if bytes.len() as u64 > BYTES_MAX {
        return Err(not_it());
    }
    let text = String::from_utf8(bytes).map_err(|_| not_it())?;
    let Some(rest) = text.strip_prefix(TITLE) else {
        return Ok(Some(text));
    };
    let rest = rest.strip_prefix(&format!(" {VERSION}\n"));
    let (said, line) = rest
        .and_then(|rest| rest.split_once('\n'))
        .ok_or_else(not_it)?;
    let found = owner(said).ok_or_else(not_it)?;
    let own = whose.claims(&path, Some(&found));
    own.map_err(|source| EndedError::NotOurs { source })?;
    Ok(Some(line.to_owned()))
}

/// Who writes it may know no salt, and then writes none.
fn owner(line: &str) -> Option<Owner> {
    match line.strip_suffix(" 0000000000000000") {
        None => Owner::parse_line(line),
        Some(names) => {
            let (namespace, id) = names.strip_prefix("owner ")?.split_once('/')?;
            Some(Owner::of(namespace, id))
        }
    }
}

/// Keeps what is about to be told, whole or not at all.
pub fn write(bundle: &Path, owner: &Owner, line: &str) -> io::Result<()> {
    let text = format!("{TITLE} {VERSION}\n{}\n{line}", owner.line());
    // Two may be at it where there is no lock.
    let side = bundle.join(format!("{}.{}", names::ENDED, std::process::id()));
    put(&side, &bundle.join(names::ENDED), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_read_again_by_the_same_life_only() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let own = Owner::of("n", "c");
        assert_eq!(read(dir, &own).unwrap(), None);
        write(dir, &own, "[1]").unwrap();
        assert_eq!(read(dir, &own).unwrap().unwrap(), "[1]");
        let other = read(dir, &Owner::of("n", "d"));
        assert!(matches!(other, Err(EndedError::NotOurs { .. })));
        let salted = Owner::with_salt("n", "c", 7);
        write(dir, &salted, "[2]").unwrap();
        assert_eq!(read(dir, &own).unwrap().unwrap(), "[2]");
        let other = read(dir, &Owner::with_salt("n", "c", 8));
        assert!(matches!(other, Err(EndedError::NotOurs { .. })));
        fs::write(dir.join(names::ENDED), "[3]").unwrap();
        assert_eq!(read(dir, &own).unwrap().unwrap(), "[3]", "of before");
        for bad in ["vigil-ended 2\n", "vigil-ended 1\nown", "vigil-ended"] {
            fs::write(dir.join(names::ENDED), bad).unwrap();
            assert!(
                matches!(read(dir, &own), Err(EndedError::NotIt { .. })),
                "{bad}"
            );
        }
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "a side file");
    }

    /// Somebody's directory had the name, and whoever came again was told something else.
    #[test]
    fn a_directory_of_its_name_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        let own = Owner::of("n", "c");
        fs::create_dir(dir.path().join(names::ENDED)).unwrap();
        fs::write(dir.path().join("ended/inside"), "kept").unwrap();
        write(dir.path(), &own, "[1]").unwrap();
        assert_eq!(read(dir.path(), &own).unwrap().unwrap(), "[1]");
        let kept = fs::read(dir.path().join("ended.bad/inside")).unwrap();
        assert_eq!(kept, b"kept");
    }
}

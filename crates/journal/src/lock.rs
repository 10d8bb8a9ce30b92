//! The `lock` file: free exactly when both processes of a pair are gone.
//!
//! Owns how it is taken. The lock belongs to the open file description, which
//! `start` makes and which the reaper and every shim inherit; the kernel frees
//! it when the last copy is closed, however its holders died. It must never be
//! renamed, removed while held, or taken by opening the file a second time
//! (that would be another description, hence another lock).
//!
//! The descriptor is close-on-exec: it passes a `fork` (to the reaper) by
//! itself and an `exec` (to a shim) only where the spawn passes it on
//! explicitly. runc and the workers must not get it: a container's init that
//! inherits it would hold the lock as long as it lives.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::file::{NO_LINK, NO_WAIT};

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A process of a pair is alive and has it.
    #[error("{path}: held by a living pair")]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// The file could not be made, opened or locked.
    #[error("{path}: cannot take the lock")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Makes the file if there is none and takes the lock, or says at once that it
/// is held. The lock lasts as long as any copy of the returned descriptor.
pub fn hold(path: &Path) -> Result<File, LockError> {
    take(path, true)
}

/// As [`hold`], where there is such a file: whoever is about to remove the directory would find
/// it not empty.
pub fn hold_existing(path: &Path) -> Result<File, LockError> {
    take(path, false)
}

fn take(path: &Path, make: bool) -> Result<File, LockError> {
    let failed = |source| LockError::Io {
        path: path.to_owned(),
        source,
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(make)
        .truncate(false)
        .mode(0o600)
        .custom_flags(NO_LINK | NO_WAIT)
        .open(path);
    let file = match opened {
        // A file system that has become read-only: the lock needs no writing.
        // One that is not there cannot be made: that is what stands in the way.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            look_at(path).map_err(|_| error)
        }
        opened => opened,
    }
    .and_then(regular)
    .map_err(failed)?;
    match file.try_lock() {
        // Removed or replaced since it was opened: then this is not the lock any more, and
        // who made the new one has it.
        Ok(()) if !is_at(&file, path) => Err(LockError::Held {
            path: path.to_owned(),
        }),
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LockError::Held {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Opens for looking alone: not through a link, and without waiting for a fifo's writer.
fn look_at(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(NO_LINK | NO_WAIT)
        .open(path)
}

/// Something else that has the lock's name is no lock.
fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let says = "not a regular file";
        Err(io::Error::new(io::ErrorKind::InvalidInput, says))
    }
}

/// Whether the path still leads to this file.
fn is_at(file: &File, path: &Path) -> bool {
    let same =
        |ours: Metadata, there: Metadata| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
    file.metadata()
        .and_then(|ours| Ok(same(ours, fs::symlink_metadata(path)?)))
        .unwrap_or(false)
}

/// Whether somebody holds the lock, without making the file: for who only
/// looks. The look is a shared lock for a moment, which hinders no other look;
/// who takes the lock in that moment is told that it is held and tries again.
/// A missing file is [`LockError::Io`] with `NotFound`.
pub fn is_held(path: &Path) -> Result<bool, LockError> {
    let failed = |source| LockError::Io {
        path: path.to_owned(),
        source,
    };
    let file = look_at(path).and_then(regular).map_err(failed)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::LOCK;

    /// Takes the lock as soon as it is free: a process that another test is
    /// starting has copies of all our descriptors between its fork and exec.
    fn hold_soon(path: &Path) -> File {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            match hold(path) {
                Err(LockError::Held { .. }) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                other => return other.unwrap(),
            }
        }
    }

    #[test]
    fn the_lock_is_free_when_the_last_copy_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let first = hold(&path).unwrap();
        let copy = first.try_clone().unwrap();
        assert!(matches!(hold(&path), Err(LockError::Held { .. })));
        drop(first);
        assert!(matches!(hold(&path), Err(LockError::Held { .. })));
        drop(copy);
        drop(hold_soon(&path));
    }

    #[test]
    fn a_killed_holder_frees_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let held = hold(&path).unwrap();
        // The child gets the description as its stdin, as a shim gets its copy.
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(held)
            .spawn()
            .unwrap();
        let while_alive = hold(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(while_alive, Err(LockError::Held { .. })));
        hold_soon(&path);
    }

    #[test]
    fn a_look_takes_nothing_and_makes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let missing = is_held(&path).unwrap_err();
        assert!(matches!(missing, LockError::Io { source, .. }
            if source.kind() == io::ErrorKind::NotFound));
        assert!(!path.exists());
        let held = hold(&path).unwrap();
        assert!(is_held(&path).unwrap());
        drop(held);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_held(&path).unwrap() {
            assert!(std::time::Instant::now() < deadline, "held by nobody");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        drop(hold_soon(&path));
    }

    /// A waiter woke when the files of a bundle went, and made its lock anew: the directory could
    /// not be removed.
    #[test]
    fn a_lock_that_is_not_there_is_made_by_who_may_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let missing = hold_existing(&path).unwrap_err();
        assert!(matches!(missing, LockError::Io { source, .. }
            if source.kind() == io::ErrorKind::NotFound));
        assert!(!path.exists());
        let held = hold(&path).unwrap();
        assert!(matches!(hold_existing(&path), Err(LockError::Held { .. })));
        drop(held);
    }

    #[test]
    fn a_directory_or_a_missing_bundle_is_an_error_with_the_path() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("no/lock")] {
            let error = hold(&path).unwrap_err();
            assert!(matches!(&error, LockError::Io { path: p, .. } if *p == path));
        }
    }
}

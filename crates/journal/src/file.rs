//! The real file system behind the seam.
//!
//! Owns how files are opened: readable by root alone, close-on-exec (the
//! standard library's rule), never through a link, and only if it is a regular file. Opening a
//! fifo for reading would wait for its writer, so it is opened without waiting.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::storage::{Directory, Storage};
use crate::writer::set_aside;

/// `O_NOFOLLOW` and `O_NONBLOCK` of Linux. Written out, since only `sys` may use the C
/// library's; a test opens a link and a fifo by them.
pub(crate) const NO_LINK: i32 = if cfg!(any(target_arch = "aarch64", target_arch = "arm")) {
    0o100_000
} else {
    0o400_000
};
pub(crate) const NO_WAIT: i32 = 0o4000;

/// A file on a real file system.
#[derive(Debug)]
pub struct DiskFile(pub(crate) File);

impl Storage for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// A directory on a real file system, known by its path.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The directory at `path`; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Folder(path.into())
    }
}

impl Directory for Folder {
    type File = DiskFile;

    fn create(&self, name: &str) -> io::Result<DiskFile> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.0.join(name))
            .map(DiskFile)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        fs::hard_link(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        make_way(&self.0.join(name));
        fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// A directory that somebody put there is the only thing that no file can take the place of:
/// it is set aside. Where that fails, so does what comes after.
pub(crate) fn make_way(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|there| there.is_dir()) {
        let _ = set_aside(path);
    }
}

/// Why a file that may be there cannot be read.
pub(crate) enum Unread {
    /// Something else has the name.
    NotAFile,
    /// The kernel's answer.
    Io(io::Error),
}

/// The first `most` bytes of a regular file; `None` if there is none.
pub(crate) fn read_if_there(path: &Path, most: u64) -> Result<Option<Vec<u8>>, Unread> {
    let file = match open_regular(path, false) {
        Ok(file) => file.0,
        Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(Error::Open { source, .. }) => return Err(Unread::Io(source)),
        Err(_) => return Err(Unread::NotAFile),
    };
    let mut bytes = Vec::new();
    let read = file.take(most).read_to_end(&mut bytes);
    read.map_err(Unread::Io)?;
    Ok(Some(bytes))
}

/// Opens what must be a regular file, for reading and, if asked, writing: neither through a
/// link nor waiting for a fifo's other end, and looked at through the descriptor, so that
/// nobody can put something else in its place in between.
pub(crate) fn open_regular(path: &Path, write: bool) -> Result<DiskFile, Error> {
    let failed = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(NO_LINK | NO_WAIT)
        .open(path);
    let file = opened.map_err(|source| match fs::symlink_metadata(path) {
        // A link, a directory or a socket is refused at once.
        Ok(there) if !there.is_file() => Error::NotAFile {
            path: path.to_owned(),
        },
        Ok(_) | Err(_) => failed(source),
    })?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok(DiskFile(file))
}

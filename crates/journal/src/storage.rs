//! The seam between the journal and the file system.
//!
//! Two narrow traits: a file (five methods) and the directory it lies in.
//! Nothing above this page may reach around them, so that a test can stop at
//! the n-th act and rebuild what a crash would leave (`crash`).

use std::fmt;
use std::io;
use std::path::PathBuf;

/// One file, read and written at offsets.
#[expect(
    clippy::len_without_is_empty,
    reason = "nobody asks, and the seam stays at five methods"
)]
pub trait Storage: fmt::Debug {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills as much of `buf` as there is from `offset`; 0 is the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`. After an error any prefix of them may
    /// have been written.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file, or extends it with zeros that take no space yet.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Returns when everything written so far is on the medium.
    fn sync(&mut self) -> io::Result<()>;
}

/// One directory and the names in it. Each method is atomic: after a crash it
/// has happened or it has not.
pub trait Directory: fmt::Debug {
    /// Its files.
    type File: Storage;

    /// A new, empty file. Fails if the name is taken: truncating what has the
    /// name would truncate every other name of the same file.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Gives `to` the file named `from`, replacing what had that name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Gives the file named `from` a second name. Fails if that is taken.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns when the names as they are now are on the medium.
    fn sync(&self) -> io::Result<()>;

    /// Where a name lies, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

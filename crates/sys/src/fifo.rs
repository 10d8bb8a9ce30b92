//! Named pipes, and what may stand where one was expected. Never waits: not
//! for a peer to open the other end, not for a device. Descriptors of ours are
//! non-blocking; one meant for a container never is, because the flag belongs
//! to the open file description and the container would see it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};

use crate::{Errno, Result, fd};

/// What a path leads to, as far as streams care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A named pipe.
    Fifo,
    /// A regular file.
    File,
    /// A character device.
    Device,
    /// Nothing a stream can use (directory, socket, block device).
    Other,
}

/// Looks, follows links, opens nothing.
pub fn kind(path: &Path) -> Result<Kind> {
    Ok(kind_of(nix::sys::stat::stat(path)?.st_mode))
}

/// What is open.
pub fn kind_of_open(file: impl AsFd) -> Result<Kind> {
    Ok(kind_of(nix::sys::stat::fstat(file)?.st_mode))
}

fn kind_of(mode: u32) -> Kind {
    match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO => Kind::Fifo,
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFCHR => Kind::Device,
        _ => Kind::Other,
    }
}

/// Makes one; `EEXIST` if something is there.
pub fn make(path: &Path, mode: u32) -> Result<()> {
    nix::unistd::mkfifo(path, Mode::from_bits_truncate(mode))
}

/// One description that is reader and writer at once: whoever holds it keeps
/// writers from SIGPIPE and readers from end-of-file, and can ask how much is
/// unread. Non-blocking. `ENOSTR`: not a fifo.
pub fn open_both_ends(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_RDWR)
}

/// The reading end, at once, writer or not. Non-blocking. `ENOSTR`: not a fifo.
pub fn open_reader(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_RDONLY)
}

/// The writing end. Non-blocking. `ENXIO`: nobody has the reading end open.
/// `ENOSTR`: not a fifo.
pub fn open_writer(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_WRONLY)
}

/// The fifo's name and no end of it: neither reader nor writer, so nobody who
/// waits for either is woken. `ENOSTR`: not a fifo.
pub fn open_name(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_PATH)
}

/// Of these, what [`open_name`] gave becomes [`open_both_ends`] of that fifo,
/// whatever has its path by now; everything else stays what it is.
pub fn hold_named(fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>> {
    fds.into_iter().map(hold).collect()
}

fn hold(named: OwnedFd) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let flags = nix::fcntl::fcntl(&named, nix::fcntl::FcntlArg::F_GETFL)?;
    if !OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) {
        return Ok(named);
    }
    let own_name = format!("/proc/self/fd/{}", named.as_raw_fd());
    open_both_ends(Path::new(&own_name))
}

fn open(path: &Path, access: OFlag) -> Result<OwnedFd> {
    let quiet = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let opened = nix::fcntl::open(path, access | quiet, Mode::empty())?;
    match kind_of_open(&opened)? {
        Kind::Fifo => Ok(opened),
        Kind::File | Kind::Device | Kind::Other => Err(Errno::ENOSTR),
    }
}

/// What a container does with a file or device handed to it as a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Reads from where it begins.
    Read,
    /// Writes at the end, wherever that is at each write.
    Append,
}

/// Opens an existing file or device for a container: blocking, never our
/// controlling terminal. `ENOSTR`: neither file nor device.
pub fn open_plain(path: &Path, to: Use) -> Result<OwnedFd> {
    let access = match to {
        Use::Read => OFlag::O_RDONLY,
        Use::Append => OFlag::O_WRONLY | OFlag::O_APPEND,
    };
    // Non-blocking while opening: a tty waits for its carrier, a fifo that
    // was put there since somebody looked waits for its peer.
    let quiet = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let opened = nix::fcntl::open(path, access | quiet, Mode::empty())?;
    match kind_of_open(&opened)? {
        Kind::File | Kind::Device => {
            fd::set_nonblocking(&opened, false)?;
            Ok(opened)
        }
        Kind::Fifo | Kind::Other => Err(Errno::ENOSTR),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn no_open_waits_and_each_says_what_it_found() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        make(&fifo, 0o600).unwrap();
        assert_eq!(kind(&fifo).unwrap(), Kind::Fifo);
        assert_eq!(open_writer(&fifo).unwrap_err(), Errno::ENXIO);
        let reader = open_reader(&fifo).unwrap();
        let writer = open_writer(&fifo).unwrap();
        let both = open_both_ends(&fifo).unwrap();
        nix::unistd::write(&writer, b"12345").unwrap();
        assert_eq!(fd::readable_bytes(&both).unwrap(), 5);
        drop(reader);
        // Still a reader: ours.
        assert_eq!(nix::unistd::write(&writer, b"6").unwrap(), 1);
        assert_eq!(open_plain(&fifo, Use::Append).unwrap_err(), Errno::ENOSTR);
    }

    #[test]
    fn a_name_wakes_nobody_and_becomes_both_ends() {
        use nix::poll::{PollFd, PollFlags, PollTimeout};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        make(&path, 0o600).unwrap();
        let reader = open_reader(&path).unwrap();
        let hung_up = || {
            let mut one = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            nix::poll::poll(&mut one, PollTimeout::ZERO).unwrap();
            one[0].revents().unwrap().contains(PollFlags::POLLHUP)
        };
        drop(open_name(&path).unwrap());
        assert!(!hung_up(), "a name was taken for a writer");
        let named = open_name(&path).unwrap();
        assert_eq!(open_writer(dir.path()).unwrap_err(), Errno::EISDIR);
        std::fs::remove_file(&path).unwrap();
        let held = hold(named).unwrap();
        nix::unistd::write(&held, b"1").unwrap();
        assert_eq!(fd::readable_bytes(&reader).unwrap(), 1);
        let same = hold(held).unwrap();
        nix::unistd::read(&same, &mut [0]).unwrap();
        drop(same);
        assert!(hung_up(), "nobody holds it any more");
        assert_eq!(open_name(dir.path()).unwrap_err(), Errno::ENOSTR);
    }

    #[test]
    fn files_and_devices_are_opened_blocking_and_directories_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "a").unwrap();
        assert_eq!(open_both_ends(&file).unwrap_err(), Errno::ENOSTR);
        let opened = open_plain(&file, Use::Append).unwrap();
        nix::unistd::write(&opened, b"b").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"ab");
        let flags = nix::fcntl::fcntl(&opened, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        open_plain(Path::new("/dev/null"), Use::Read).unwrap();
        assert_eq!(kind(dir.path()).unwrap(), Kind::Other);
        assert_eq!(
            open_plain(dir.path(), Use::Read).unwrap_err(),
            Errno::ENOSTR
        );
        assert_eq!(
            open_plain(&dir.path().join("no"), Use::Read).unwrap_err(),
            Errno::ENOENT
        );
    }
}

//! Descriptors: making, duplicating, marking and waiting for them. Everything
//! made here is close-on-exec: what a program inherits is what [`crate::spawn`]
//! was told to hand over, never an accident. Waits are bounded and outlive
//! signals: `EINTR` is answered by waiting for what is left of the time.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag};
use nix::sys::memfd::MFdFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use crate::{Errno, Result};

/// A pipe: (read end, write end), both blocking.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC)
}

/// Turns `O_NONBLOCK` on or off. The flag belongs to the open file
/// description: everyone who holds a duplicate sees it change.
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> Result<()> {
    let old = OFlag::from_bits_retain(nix::fcntl::fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    let mut new = old;
    new.set(OFlag::O_NONBLOCK, on);
    if new != old {
        nix::fcntl::fcntl(fd.as_fd(), FcntlArg::F_SETFL(new))?;
    }
    Ok(())
}

/// Another descriptor of the same open file description.
pub fn duplicate(fd: impl AsFd) -> Result<OwnedFd> {
    duplicate_above(fd, 2)
}

/// A duplicate whose number is greater than `floor`.
pub fn duplicate_above(fd: impl AsFd, floor: i32) -> Result<OwnedFd> {
    let least = floor.checked_add(1).ok_or(Errno::EINVAL)?;
    let raw = nix::fcntl::fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: the kernel has just made `raw` for us; nobody else owns it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) })
}

/// Sets or clears close-on-exec of one descriptor. Not for others: who clears it lets
/// [`crate::fork::inherited`] take what has an owner.
pub(crate) fn set_close_on_exec(fd: impl AsFd, on: bool) -> Result<()> {
    let flag = if on {
        FdFlag::FD_CLOEXEC
    } else {
        FdFlag::empty()
    };
    nix::fcntl::fcntl(fd.as_fd(), FcntlArg::F_SETFD(flag)).map(drop)
}

/// Marks every descriptor with a number of `first` or more close-on-exec:
/// what is ours is so marked already, what was inherited may not be.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed, so no owner is
    // surprised; the call touches no memory.
    let answer =
        unsafe { libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    Errno::result(answer).map(drop)
}

/// For opening what anybody may have put there: neither through a link nor waiting for a
/// fifo's other end.
pub const NO_LINK_NO_WAIT: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// The latter alone.
pub const NO_WAIT: i32 = libc::O_NONBLOCK;

/// A new file at this name that its owner alone may read, open for writing: never what somebody
/// put there, which is removed, nor what a link there leads to.
pub fn create_private(path: &std::path::Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let _ = std::fs::remove_file(path);
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// One of which no use can be made (`EBADF`), to stand for another where that is given up.
pub(crate) fn dead() -> Result<OwnedFd> {
    nix::fcntl::open("/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// Whether this number is a descriptor of this process.
pub(crate) fn is_open(number: i32) -> bool {
    // SAFETY: takes integers; a number that is not open answers EBADF.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// An anonymous file in memory; `name` shows in `/proc/PID/fd` only.
pub fn memfd(name: &CStr) -> Result<OwnedFd> {
    nix::sys::memfd::memfd_create(name, MFdFlags::MFD_CLOEXEC)
}

/// An anonymous file that cannot hold more than `size` bytes, for what a
/// program prints: writing beyond is EPERM, and memory is used as it is filled.
/// Its length is `size` from the start; what was not written reads as zeroes.
/// Appending (`O_APPEND`) to it always fails.
pub fn memfd_capped(name: &CStr, size: usize) -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = nix::sys::memfd::memfd_create(name, flags)?;
    nix::unistd::ftruncate(&fd, i64::try_from(size).map_err(|_| Errno::EINVAL)?)?;
    let seals = nix::fcntl::SealFlag::F_SEAL_GROW | nix::fcntl::SealFlag::F_SEAL_SHRINK;
    nix::fcntl::fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

/// An anonymous file holding `content`, its offset at the start.
pub fn memfd_with(name: &CStr, content: &[u8]) -> Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd(name)?);
    file.write_all(content)
        .and_then(|()| std::io::Seek::rewind(&mut file))
        .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    Ok(file.into())
}

/// How many bytes can be read now: from a pipe, fifo, socket or terminal.
pub fn readable_bytes(fd: impl AsFd) -> Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int through the pointer, which is valid.
    let answer = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(answer)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Descriptors to be let go of when one is needed and none is to be had: as many of these as
/// can be had now.
pub fn spares(count: usize) -> Vec<OwnedFd> {
    (0..count).map_while(|_| null().ok()).collect()
}

/// How many bytes a pipe or fifo can hold; fewer if the writes are small.
pub fn pipe_capacity(fd: impl AsFd) -> Result<usize> {
    let size = nix::fcntl::fcntl(fd.as_fd(), FcntlArg::F_GETPIPE_SZ)?;
    Ok(usize::try_from(size).unwrap_or(0))
}

/// Changes owner and group of what is open.
pub fn chown(fd: impl AsFd, uid: u32, gid: u32) -> Result<()> {
    nix::unistd::fchown(
        fd.as_fd(),
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
    )
}

/// `/dev/null`, for reading and writing.
pub fn null() -> Result<OwnedFd> {
    nix::fcntl::open(
        c"/dev/null",
        OFlag::O_RDWR | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// What has this name, by whatever links, held without being opened: it stays
/// the same file whatever becomes of the name. To be started as [`held_path`].
pub fn hold(path: &std::path::Path) -> Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// A path, good as long as `fd` is open here, by which a child of ours, in
/// which it may be closed, finds the same file.
pub fn held_path(fd: impl AsFd) -> String {
    let (pid, fd) = (std::process::id(), fd.as_fd().as_raw_fd());
    format!("/proc/{pid}/fd/{fd}")
}

/// One descriptor to wait for, and what was found.
#[derive(Debug)]
pub struct Watch<'fd> {
    fd: BorrowedFd<'fd>,
    wanted: i16,
    found: i16,
}

impl<'fd> Watch<'fd> {
    /// Waits until there is something to read, or the other end is gone.
    pub fn reading(fd: &'fd impl AsFd) -> Self {
        Watch {
            fd: fd.as_fd(),
            wanted: libc::POLLIN,
            found: 0,
        }
    }

    /// Waits until there is room to write, or nobody reads.
    pub fn writing(fd: &'fd impl AsFd) -> Self {
        Watch {
            fd: fd.as_fd(),
            wanted: libc::POLLOUT,
            found: 0,
        }
    }

    /// Waits for exceptional conditions (`cgroup.events`, PSI).
    pub fn priority(fd: &'fd impl AsFd) -> Self {
        Watch {
            fd: fd.as_fd(),
            wanted: libc::POLLPRI,
            found: 0,
        }
    }

    /// Whether anything at all was found, hang-up and error included.
    pub fn ready(&self) -> bool {
        self.found != 0
    }

    /// Whether what was waited for can be done now.
    pub fn possible(&self) -> bool {
        self.found & self.wanted != 0
    }

    /// Whether the other end is gone (`POLLHUP`).
    pub fn hung_up(&self) -> bool {
        self.found & libc::POLLHUP != 0
    }

    /// Whether the descriptor is in error (`POLLERR`, `POLLNVAL`).
    pub fn failed(&self) -> bool {
        self.found & (libc::POLLERR | libc::POLLNVAL) != 0
    }
}

/// Whether so much room is left that a write of a few bytes will not fail for want of it.
pub fn has_room(fd: impl AsFd) -> bool {
    let mut watch = [Watch::writing(&fd)];
    poll(&mut watch, Duration::ZERO).is_ok() && watch[0].possible()
}

/// Waits until one of `watches` is ready or `timeout` has passed (rounded up
/// to a millisecond); returns how many are ready, 0 when the time is up.
pub fn poll(watches: &mut [Watch<'_>], timeout: Duration) -> Result<usize> {
    let mut raw: Vec<libc::pollfd> = watches
        .iter()
        .map(|w| libc::pollfd {
            fd: w.fd.as_raw_fd(),
            events: w.wanted,
            revents: 0,
        })
        .collect();
    let begun = Instant::now();
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        let millis = left.as_nanos().div_ceil(1_000_000);
        let millis = i32::try_from(millis).unwrap_or(i32::MAX);
        // SAFETY: the pointer and length are those of `raw`, which lives
        // until after the call.
        let answer = unsafe { libc::poll(raw.as_mut_ptr(), raw.len() as libc::nfds_t, millis) };
        match Errno::result(answer) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
            // A timeout longer than poll's argument can say.
            Ok(0) if begun.elapsed() < timeout => {}
            Ok(count) => {
                for (watch, answered) in watches.iter_mut().zip(&raw) {
                    watch.found = answered.revents;
                }
                return Ok(usize::try_from(count).unwrap_or(0));
            }
        }
    }
}

/// Waits until `fd` can be read (or has hung up) or `timeout` has passed:
/// true if it can.
pub fn wait_readable(fd: impl AsFd, timeout: Duration) -> Result<bool> {
    Ok(poll(&mut [Watch::reading(&fd)], timeout)? > 0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::io::Read;

    fn cloexec(fd: &impl AsFd) -> bool {
        let flags = nix::fcntl::fcntl(fd.as_fd(), FcntlArg::F_GETFD).unwrap();
        FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)
    }

    #[test]
    fn what_is_made_here_is_not_inherited() {
        let (r, w) = pipe().unwrap();
        let m = memfd(c"t").unwrap();
        let d = duplicate_above(&m, 100).unwrap();
        assert!(d.as_raw_fd() > 100);
        for fd in [&r, &w, &m, &d, &null().unwrap()] {
            assert!(cloexec(fd));
        }
        set_close_on_exec(&d, false).unwrap();
        assert!(!cloexec(&d));
        close_on_exec_from(d.as_raw_fd().cast_unsigned()).unwrap();
        assert!(cloexec(&d));
    }

    #[test]
    fn poll_ends_in_time_and_reports_who() {
        let (r, w) = pipe().unwrap();
        let (r2, _w2) = pipe().unwrap();
        let begun = Instant::now();
        assert!(!wait_readable(&r, Duration::from_millis(30)).unwrap());
        assert!(begun.elapsed() >= Duration::from_millis(30));
        assert_eq!(nix::unistd::write(&w, b"abc").unwrap(), 3);
        assert_eq!(readable_bytes(&r).unwrap(), 3);
        assert!(pipe_capacity(&r).unwrap() >= 4096);
        let mut both = [Watch::reading(&r2), Watch::reading(&r)];
        assert_eq!(poll(&mut both, Duration::from_secs(5)).unwrap(), 1);
        assert!(!both[0].ready());
        assert!(both[1].possible() && !both[1].hung_up());
        drop(w);
        poll(&mut both, Duration::from_secs(5)).unwrap();
        assert!(both[1].hung_up());
    }

    #[test]
    fn nonblocking_goes_on_and_off() {
        let (r, _w) = pipe().unwrap();
        set_nonblocking(&r, true).unwrap();
        assert_eq!(nix::unistd::read(&r, &mut [0; 1]), Err(Errno::EAGAIN));
        set_nonblocking(&r, false).unwrap();
        let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(&r, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_capped_memfd_takes_no_more() {
        let m = memfd_capped(c"t", 4).unwrap();
        assert_eq!(nix::unistd::write(&m, b"abc"), Ok(3));
        assert!(matches!(
            nix::unistd::write(&m, b"defg"),
            Err(Errno::EPERM) | Ok(1)
        ));
        assert_eq!(
            nix::unistd::lseek(&m, 0, nix::unistd::Whence::SeekEnd),
            Ok(4)
        );
    }

    #[test]
    fn memfd_holds_what_it_was_given() {
        let mut text = String::new();
        let mut file = std::fs::File::from(memfd_with(c"t", b"words").unwrap());
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "words");
    }
}

//! Being told that somebody opened or read a file. For fifos: a descriptor
//! that is reader and writer at once gets no edge when the other reader empties
//! it, so the inode is watched instead. Instances are few per user (128 by
//! default): make one only while waiting, and be ready to do without.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::signal::Signals;
use crate::{Errno, Result, fd};

/// A non-blocking descriptor that becomes readable at each open, read or
/// close by a reader of what `file` has open, also when its name is gone. What
/// happened before is not told: look after making it. `EMFILE`: no instance
/// left for this user.
pub fn watch_readers(file: impl AsFd) -> Result<OwnedFd> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    inotify.add_watch(
        path.as_str(),
        AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE_NOWRITE,
    )?;
    Ok(inotify.into())
}

/// A non-blocking descriptor that becomes readable when one of these names is removed, moved
/// or given to something else; those that are not there are not watched. A directory that
/// somebody holds open, or works in, does not tell of its removal: watch a file in it too.
pub fn watch_removal(paths: &[&Path]) -> Result<OwnedFd> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    for path in paths {
        let flags = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DONT_FOLLOW;
        match inotify.add_watch(*path, flags) {
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(inotify.into())
}

/// A directory in which the removal of a name is told by SIGIO, as long as it is held. By the
/// older interface, since an instance of the newer one for each container would leave none to
/// the host's others.
#[derive(Debug)]
pub struct Removals {
    signals: Signals,
    _directory: OwnedFd,
}

/// `struct f_owner_ex`, `F_SETOWN_EX` and `F_OWNER_TID` (fcntl(2)), which libc does not have.
#[repr(C)]
struct Owner {
    kind: libc::c_int,
    id: libc::pid_t,
}
const SET_OWNER: libc::c_int = 15;
const OWNER_THREAD: libc::c_int = 0;

impl Removals {
    /// Begins. SIGIO is blocked from now on.
    pub fn of(path: &Path) -> Result<Self> {
        let directory = std::fs::File::open(path).map_err(|error| {
            error
                .raw_os_error()
                .map_or(Errno::UnknownErrno, Errno::from_raw)
        })?;
        let directory = OwnedFd::from(directory);
        let signals = Signals::new(&[libc::SIGIO])?;
        // To this thread, where it is blocked: another that does not block it would die of it.
        let owner = Owner {
            kind: OWNER_THREAD,
            id: nix::unistd::gettid().as_raw(),
        };
        // SAFETY: reads one `struct f_owner_ex`, which `owner` is (fcntl(2)).
        let answer =
            unsafe { libc::fcntl(directory.as_raw_fd(), SET_OWNER, std::ptr::from_ref(&owner)) };
        Errno::result(answer)?;
        // DN_DELETE, DN_MULTISHOT
        let wanted: libc::c_uint = 0x8 | 0x8000_0000;
        // SAFETY: takes two integers beside the descriptor, which is open.
        let answer = unsafe {
            libc::fcntl(
                directory.as_raw_fd(),
                libc::F_NOTIFY,
                libc::c_ulong::from(wanted),
            )
        };
        Errno::result(answer)?;
        Ok(Self {
            signals,
            _directory: directory,
        })
    }

    /// Readable when something has been removed.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        fd::duplicate(&self.signals)
    }

    /// Takes what was told so far.
    pub fn take(&self) -> Result<()> {
        while self.signals.next()?.is_some() {}
        Ok(())
    }
}

/// Takes what is queued, so that the next event makes it readable again.
pub fn drain(watch: impl AsFd) -> Result<()> {
    let mut events = [0; 1024];
    loop {
        match nix::unistd::read(watch.as_fd(), &mut events) {
            Ok(0) | Err(Errno::EAGAIN) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fifo;
    use std::time::Duration;

    #[test]
    fn tells_of_a_removal_also_of_a_directory_that_is_held_open() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("place");
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("file"), "").unwrap();
        let _held = std::fs::File::open(&place).unwrap();
        let file = place.join("file");
        let told =
            |watch: &OwnedFd, long| fd::wait_readable(watch, Duration::from_millis(long)).unwrap();
        let watch = watch_removal(&[&place, &file, Path::new("/no/such")]).unwrap();
        assert!(!told(&watch, 0));
        let moved = dir.path().join(".place");
        std::fs::rename(&place, &moved).unwrap();
        assert!(told(&watch, 5000), "moved");
        let watch = watch_removal(&[&moved, &moved.join("file")]).unwrap();
        std::fs::remove_dir_all(&moved).unwrap();
        assert!(told(&watch, 5000), "removed");
    }

    #[test]
    fn tells_of_a_removal_in_a_directory_without_an_instance() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        // In a thread: blocked for it alone, and taken by it.
        let thread = std::thread::spawn(move || {
            let removals = Removals::of(dir.path()).unwrap();
            let told = removals.descriptor().unwrap();
            let long = Duration::from_secs(5);
            assert!(!fd::wait_readable(&told, Duration::ZERO).unwrap());
            std::fs::write(dir.path().join("another"), "").unwrap();
            assert!(!fd::wait_readable(&told, Duration::ZERO).unwrap());
            std::fs::remove_file(&file).unwrap();
            fd::wait_readable(&told, long).unwrap()
        });
        assert!(thread.join().unwrap());
    }

    #[test]
    fn tells_of_a_reader_of_a_fifo_also_without_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        fifo::make(&path, 0o600).unwrap();
        let held = fifo::open_both_ends(&path).unwrap();
        nix::unistd::write(&held, b"abc").unwrap();
        let watch = watch_readers(&held).unwrap();
        let told = |long| fd::wait_readable(&watch, Duration::from_millis(long)).unwrap();
        assert!(!told(0));
        let reader = fifo::open_reader(&path).unwrap();
        assert!(told(5000), "open");
        drain(&watch).unwrap();
        assert!(!told(0));
        std::fs::remove_file(&path).unwrap();
        drain(&watch).unwrap();
        nix::unistd::read(&reader, &mut [0; 8]).unwrap();
        assert!(told(5000), "read");
    }
}

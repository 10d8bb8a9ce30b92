//! fork, for a program of one thread: `start` becoming the reaper. Programs
//! are started by `spawn`. A fork of several threads may copy a lock that
//! nobody in the child will ever open, so it is refused, not only warned of.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use crate::{Errno, Result, fd};

/// Which of the two this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The caller; the child cannot be another process before it is reaped.
    Parent {
        /// Its pid.
        child: u32,
    },
    /// The new process: same memory, same descriptors, same signal mask, no
    /// record locks, no timers.
    Child,
}

/// Splits the process in two, if it has one thread; else `EINVAL` (the kernel is asked, one
/// system call).
pub fn fork() -> Result<Fork> {
    one_thread()?;
    // SAFETY: there is no other thread whose locks the child could inherit.
    let child = Errno::result(unsafe { libc::fork() })?;
    Ok(match u32::try_from(child) {
        Ok(0) | Err(_) => Fork::Child,
        Ok(child) => Fork::Parent { child },
    })
}

/// `EINVAL` if this process has several threads.
fn one_thread() -> Result<()> {
    // Without effect in a process of one thread, EINVAL in one of several.
    // SAFETY: takes a number, touches no memory.
    Errno::result(unsafe { libc::unshare(libc::CLONE_THREAD) }).map(drop)
}

/// As [`one_thread`], for a child that only works and leaves. A test's threads are let through:
/// libtest runs each test beside its main thread, and the programs, debug builds too, do all
/// they do on their main thread.
pub(crate) fn may_fork_worker() -> Result<()> {
    let of_a_test = cfg!(debug_assertions) && nix::unistd::gettid() != nix::unistd::getpid();
    if of_a_test { Ok(()) } else { one_thread() }
}

/// Puts `/dev/null` on 0, 1 and 2: a child that outlives its parent holds
/// none of the parent's ends then, whose readers wait for their last holder.
pub fn null_stdio() -> Result<()> {
    let null = fd::null()?;
    stdio(&null, &null)
}

/// As [`null_stdio`], with these two on 1 and 2.
pub fn stdio(out: impl AsFd, err: impl AsFd) -> Result<()> {
    nix::unistd::dup2_stdin(fd::null()?)?;
    nix::unistd::dup2_stdout(out)?;
    nix::unistd::dup2_stderr(err)
}

/// The descriptor `number` (3 or more) that was handed over the exec; makes it
/// close-on-exec and ours. `EBADF`: there is none, or it is
/// close-on-exec already: whoever opened or took it in this process owns it.
pub fn inherited(number: impl Into<u32>) -> Result<OwnedFd> {
    take(i32::try_from(number.into()).map_err(|_| Errno::EBADF)?)
}

/// Closes every descriptor of 3 or more that was handed over the exec: whoever reads the other
/// end of what a parent leaked would wait for us. What this
/// process opened itself stays. Reads `/proc/self/fd`.
pub fn close_inherited() -> std::io::Result<()> {
    // All of them first: closing while reading could pass some over.
    let names: Vec<_> = std::fs::read_dir("/proc/self/fd")?.collect::<std::io::Result<_>>()?;
    let numbers = names
        .iter()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for number in numbers {
        // EBADF: ours, or closed since.
        drop(take(number));
    }
    Ok(())
}

fn take(raw: i32) -> Result<OwnedFd> {
    // SAFETY: takes integers; a number that is not open answers EBADF.
    let flags = Errno::result(unsafe { libc::fcntl(raw, libc::F_GETFD) })?;
    if raw <= 2 || flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: open, and not opened in this process, where everything is made
    // close-on-exec; not taken before, as taking sets the flag too. So there is
    // no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    fd::set_close_on_exec(&fd, true)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn several_threads_are_refused() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv());
        assert_eq!(fork(), Err(Errno::EINVAL));
        drop(end);
        assert!(other.join().is_ok_and(|got| got.is_err()));
    }

    #[test]
    fn what_a_parent_leaked_is_closed_and_what_we_opened_is_not() {
        // In a process of its own: to it, what other tests hold is nobody's.
        const ALONE: &str = "VIGIL_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let name = "fork::tests::what_a_parent_leaked_is_closed_and_what_we_opened_is_not";
            again.args(["--exact", name]).env(ALONE, "1");
            let out = again.output().unwrap();
            assert!(out.status.success(), "{out:?}");
            assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
            return;
        }
        let own = fd::memfd(c"own").unwrap();
        // As one that came over the exec: open, not close-on-exec, and of no owner here.
        let leaked = nix::fcntl::fcntl(&own, nix::fcntl::FcntlArg::F_DUPFD(500)).unwrap();
        let link = |number: i32| std::fs::read_link(format!("/proc/self/fd/{number}"));
        assert!(link(leaked).is_ok());
        close_inherited().unwrap();
        assert!(link(leaked).is_err(), "it was left open");
        assert!(link(own.as_raw_fd()).is_ok(), "it was ours");
    }

    #[test]
    fn only_what_came_over_the_exec_is_inherited() {
        assert_eq!(
            inherited(2_u16).err(),
            Some(Errno::EBADF),
            "stdio has owners"
        );
        assert_eq!(inherited(u16::MAX).err(), Some(Errno::EBADF));
        let ours = fd::null().unwrap();
        let number = u32::try_from(ours.as_raw_fd()).unwrap();
        assert_eq!(inherited(number).err(), Some(Errno::EBADF), "it is ours");
    }
}

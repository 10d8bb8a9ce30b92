//! fork, for a program of one thread: `start` becoming the reaper. Programs
//! are started by `spawn`. A fork of several threads may copy a lock that
//! nobody in the child will ever open, so it is refused, not only warned of.

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

/// Splits the process in two. Contract: the process has one thread, else
/// `EINVAL` (checked with the kernel, one system call). The child must not
/// return into code that believes to be the parent: it leaves by exec or
/// `process::exit_now`.
pub fn fork() -> Result<Fork> {
    // Without effect in a process of one thread, EINVAL in one of several.
    // SAFETY: takes a number, touches no memory.
    Errno::result(unsafe { libc::unshare(libc::CLONE_THREAD) })?;
    // SAFETY: there is no other thread whose locks the child could inherit.
    let child = Errno::result(unsafe { libc::fork() })?;
    Ok(match u32::try_from(child) {
        Ok(0) | Err(_) => Fork::Child,
        Ok(child) => Fork::Parent { child },
    })
}

/// Puts `/dev/null` on 0, 1 and 2: a child that outlives its parent must not
/// hold the parent's ends, whoever reads them waits for their last holder.
pub fn null_stdio() -> Result<()> {
    let null = fd::null()?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_threads_are_refused() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv());
        assert_eq!(fork(), Err(Errno::EINVAL));
        drop(end);
        assert!(other.join().is_ok_and(|got| got.is_err()));
    }
}

//! Signals: which are blocked, read from a descriptor, or back to default
//! before an exec. Sends only to the process *group* of a child that is not
//! reaped yet; single processes are signalled through pidfds (`pidfd`).

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::{Errno, Result};

/// Hang-up.
pub const HUP: i32 = libc::SIGHUP;
/// Interrupt.
pub const INT: i32 = libc::SIGINT;
/// Kill.
pub const KILL: i32 = libc::SIGKILL;
/// User signal 1.
pub const USR1: i32 = libc::SIGUSR1;
/// User signal 2.
pub const USR2: i32 = libc::SIGUSR2;
/// Broken pipe.
pub const PIPE: i32 = libc::SIGPIPE;
/// Terminate.
pub const TERM: i32 = libc::SIGTERM;
/// A child has changed.
pub const CHLD: i32 = libc::SIGCHLD;

fn set(signals: &[i32]) -> Result<SigSet> {
    let mut set = SigSet::empty();
    for &number in signals {
        set.add(Signal::try_from(number)?);
    }
    Ok(set)
}

/// Adds signals to those blocked in this thread.
pub fn block(signals: &[i32]) -> Result<()> {
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set(signals)?), None)
}

/// Ignores a signal. The disposition survives exec, so a child needs
/// [`reset_for_exec`].
pub fn ignore(signal: i32) -> Result<()> {
    // SAFETY: SIG_IGN installs no handler of ours that could run at a bad moment.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(Errno::last());
    }
    Ok(())
}

/// Nothing blocked, nothing ignored or caught: what a program expects at its
/// start. Calls nothing that is not safe between fork and exec.
pub fn reset_for_exec() -> Result<()> {
    forget_dispositions();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn forget_dispositions() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL installs no handler. KILL, STOP and the numbers libc
        // keeps for itself answer EINVAL, which is right for them.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// What a reaper reads: that a child died; that it is told to go, or to look
/// for something; and what would end it otherwise and means nothing.
pub const OF_A_REAPER: &[i32] = &[CHLD, TERM, INT, USR2, USR1, HUP, PIPE];

/// Blocked signals, read as they come; non-blocking and close-on-exec.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals and opens the descriptor that tells them.
    pub fn new(signals: &[i32]) -> Result<Signals> {
        block(signals)?;
        Self::of_blocked(signals)
    }

    fn of_blocked(signals: &[i32]) -> Result<Signals> {
        SignalFd::with_flags(
            &set(signals)?,
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        )
        .map(Signals)
    }

    /// The same; nothing is ignored or caught from then on, and no other signal blocked. Those
    /// of these that are pending are told, others forgotten (what was blocked before an exec
    /// and sent, as SIGIO is, would end us): there is no moment between in which one could.
    pub fn alone(signals: &[i32]) -> Result<Signals> {
        block(signals)?;
        for number in (1..=64).filter(|number| !signals.contains(number)) {
            // SAFETY: SIG_IGN installs no handler; what is pending is forgotten (signal(7)).
            unsafe { libc::signal(number, libc::SIG_IGN) };
        }
        forget_dispositions();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set(signals)?), None)?;
        Self::of_blocked(signals)
    }

    /// The next pending signal, or `None`. Equal ones may have become one.
    pub fn next(&self) -> Result<Option<i32>> {
        loop {
            match self.0.read_signal() {
                Ok(read) => return Ok(read.and_then(|one| i32::try_from(one.ssi_signo).ok())),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a signal is in the blocked set of this thread.
pub fn is_blocked(signal: i32) -> Result<bool> {
    let mut now = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut now))?;
    Ok(now.contains(Signal::try_from(signal)?))
}

/// Whether a signal is ignored by this process.
pub fn is_ignored(signal: i32) -> Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given; the old one is written to `action`,
    // which is big enough and was zeroed.
    let action = unsafe {
        Errno::result(libc::sigaction(signal, ptr::null(), action.as_mut_ptr()))?;
        action.assume_init()
    };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A shim that becomes the reaper has SIGIO pending whenever its bundle has changed.
    #[test]
    fn what_is_pending_from_before_is_told_or_forgotten_and_ends_nobody() {
        block(&[libc::SIGIO, USR2]).unwrap();
        nix::sys::signal::raise(Signal::SIGIO).unwrap();
        nix::sys::signal::raise(Signal::SIGUSR2).unwrap();
        let signals = Signals::alone(&[USR2]).unwrap();
        assert_eq!(signals.next(), Ok(Some(USR2)));
        assert_eq!(is_blocked(libc::SIGIO), Ok(false));
    }

    // Blocking is per thread, and each test has its own thread.
    #[test]
    fn a_blocked_signal_is_read_from_the_descriptor() {
        let signals = Signals::new(&[USR1]).unwrap();
        assert_eq!(signals.next(), Ok(None));
        assert_eq!(is_blocked(USR1), Ok(true));
        nix::sys::signal::raise(Signal::SIGUSR1).unwrap();
        assert_eq!(signals.next(), Ok(Some(USR1)));
        assert_eq!(signals.next(), Ok(None));
    }
}

//! Children that have ended: look first, reap later. Peeking leaves the
//! zombie in place, so its pid cannot become another's and a crash before the
//! reap loses nothing. An unreaped first zombie hides all later ones, so each
//! peek must be followed by a reap before the next.

use crate::{Errno, Result};

/// A child that has ended and is still a zombie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peeked {
    /// Its pid.
    pub pid: u32,
    /// As wait(2) would give it: see [`exited`] and [`signalled`].
    pub status: i32,
}

fn waitid(kind: libc::idtype_t, id: u32, flags: i32) -> Result<Option<Peeked>> {
    let mut told = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let told = loop {
        // SAFETY: `told` is big enough for what waitid writes and was zeroed,
        // which is a valid value; si_pid and si_status are read only when the
        // call succeeded, where they are the fields SIGCHLD fills.
        let result = unsafe {
            Errno::result(libc::waitid(kind, id, told.as_mut_ptr(), flags))
                .map(|_| told.assume_init())
        };
        match result {
            Ok(told) => break told,
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    };
    // SAFETY: as above; with WNOHANG and nobody waiting the pid stays zero.
    let (pid, value) = unsafe { (told.si_pid(), told.si_status()) };
    let Some(pid) = u32::try_from(pid).ok().filter(|&pid| pid != 0) else {
        return Ok(None);
    };
    let status = match told.si_code {
        libc::CLD_EXITED => (value & 0xff) << 8,
        libc::CLD_DUMPED => (value & 0x7f) | 0x80,
        _ => value & 0x7f,
    };
    Ok(Some(Peeked { pid, status }))
}

/// Some child that has ended, left as it is; `None` if there is none.
pub fn peek_any() -> Result<Option<Peeked>> {
    waitid(
        libc::P_ALL,
        0,
        libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
    )
}

/// The child `pid` if it has ended, left as it is.
pub fn peek(pid: u32) -> Result<Option<Peeked>> {
    waitid(
        libc::P_PID,
        pid,
        libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
    )
}

/// Whether the child `pid` was stopped by a signal and not continued since.
pub fn is_stopped(pid: u32) -> bool {
    let flags = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    waitid(libc::P_PID, pid, flags).is_ok_and(|found| found.is_some())
}

/// Buries a child that has ended; `None` if it has not, or is none of ours.
pub fn reap(pid: u32) -> Result<Option<Peeked>> {
    waitid(libc::P_PID, pid, libc::WEXITED | libc::WNOHANG)
}

/// The exit code, if the process exited by itself.
pub const fn exited(status: i32) -> Option<u8> {
    match status & 0x7f {
        0 => Some(status.to_le_bytes()[1]),
        _ => None,
    }
}

/// The signal that ended it, if one did.
pub const fn signalled(status: i32) -> Option<i32> {
    match status & 0x7f {
        // 0x7f is "stopped", which a process that has ended is not.
        0 | 0x7f => None,
        signal => Some(signal),
    }
}

/// A status in words, for people.
pub fn describe(status: i32) -> String {
    match (exited(status), signalled(status)) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => format!("status word {status:#x}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn until_ended(pid: u32) -> Peeked {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(peeked) = peek(pid).unwrap() {
                return peeked;
            }
            assert!(Instant::now() < end, "child did not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_peeked_child_stays_until_reaped() {
        for (script, code, signal) in [
            ("exit 7", Some(7), None),
            ("exit 255", Some(255), None),
            ("kill -9 $$", None, Some(9)),
        ] {
            #[expect(clippy::zombie_processes, reason = "reaped below by its pid")]
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = child.id();
            let peeked = until_ended(pid);
            assert_eq!(peeked.pid, pid);
            assert_eq!(exited(peeked.status), code);
            assert_eq!(signalled(peeked.status), signal);
            assert_eq!(peek(pid), Ok(Some(peeked)), "peeking must not reap");
            assert_eq!(reap(pid), Ok(Some(peeked)));
            assert_eq!(reap(pid), Ok(None));
        }
    }

    #[test]
    fn status_words_are_those_of_wait() {
        assert_eq!(exited(0x0300), Some(3));
        assert_eq!(signalled(0x8b), Some(11), "with a core");
        assert_eq!((exited(0x8b), signalled(0)), (None, None));
    }
}

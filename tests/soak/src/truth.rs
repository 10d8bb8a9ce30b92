//! How init really ended: from the kernel, by a descriptor opened from outside while it
//! lived. No word of the runtime under test goes in here but the pid, and that is checked.

use std::os::fd::OwnedFd;

use vigil_lab::process::Process;
use vigil_lab::{by, until};
use vigil_sys::pidfd;

/// A witness of one process.
#[derive(Debug)]
pub struct Witness {
    /// The process, as long as it exists.
    pub pid: u32,
    fd: OwnedFd,
}

impl Witness {
    /// Of `pid` if that is alive and in a cgroup of `id`.
    #[must_use]
    pub fn of(pid: u32, id: &str) -> Option<Self> {
        let fd = pidfd::open(pid).ok()?;
        let process = Process::read(i32::try_from(pid).ok()?)?;
        (process.cgroup.contains(id) && !pidfd::is_dead(&fd).ok()?).then_some(Self { pid, fd })
    }

    /// Whether it has ended, seen or not.
    #[must_use]
    pub fn dead(&self) -> bool {
        pidfd::is_dead(&self.fd).unwrap_or(false)
    }

    /// Its status as the wire writes it, once it is reaped; `None` before, and on a kernel
    /// that does not keep it (before 6.15).
    #[must_use]
    pub fn status(&self) -> Option<u32> {
        let raw = pidfd::exit_status(&self.fd).ok()??;
        let (signal, code) = (raw & 0x7f, (raw >> 8) & 0xff);
        u32::try_from(if signal == 0 { code } else { 128 + signal }).ok()
    }

    /// The same, waited for: whoever inherits an orphan reaps it in its own time.
    #[must_use]
    pub fn final_status(&self) -> Option<u32> {
        until("", by(5.0), || self.status()).ok()
    }
}

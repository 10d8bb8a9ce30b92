//! eventfd as a doorbell: any number of rings before the listener looks are
//! one. It carries no content, so a lost or doubled ring does no harm.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{Errno, Result};

/// A doorbell; non-blocking and close-on-exec.
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

impl Doorbell {
    /// A new one, not rung.
    pub fn new() -> Result<Doorbell> {
        EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|event| Doorbell(event.into()))
    }

    /// Rings. A counter that is full already means "rung".
    pub fn ring(&self) -> Result<()> {
        loop {
            match nix::unistd::write(&self.0, &1u64.to_ne_bytes()) {
                Ok(_) | Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Takes the rings since the last time; 0 if there were none.
    pub fn drain(&self) -> Result<u64> {
        let mut count = [0; 8];
        loop {
            match nix::unistd::read(&self.0, &mut count) {
                Ok(_) => return Ok(u64::from_ne_bytes(count)),
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// For one that was inherited; the caller knows that it is an eventfd.
impl From<OwnedFd> for Doorbell {
    fn from(fd: OwnedFd) -> Doorbell {
        Doorbell(fd)
    }
}

/// For an event loop's registration.
impl std::os::fd::AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rings_add_up_and_never_block() {
        let bell = Doorbell::new().unwrap();
        assert_eq!(bell.drain(), Ok(0));
        bell.ring().unwrap();
        bell.ring().unwrap();
        assert_eq!(bell.drain(), Ok(2));
        nix::unistd::write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        bell.ring().unwrap();
        assert_eq!(bell.drain(), Ok(u64::MAX - 1));
    }
}

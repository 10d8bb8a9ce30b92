//! Descriptors the runtime watches. The one place where they are registered.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor the runtime watches; deregistered before it is closed.
pub(crate) type Watched = AsyncFd<File>;

/// Registers a descriptor that is already non-blocking, or that is only
/// waited for.
#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their descriptor; a File cannot"
)]
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    AsyncFd::with_interest(File::from(fd), interest)
}

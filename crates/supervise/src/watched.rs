//! Descriptors the runtime watches. The one place where they are registered.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor the runtime watches; deregistered before it is closed.
pub(crate) type Watched = AsyncFd<File>;

/// Registers a descriptor that is already non-blocking, or that is only
/// waited for.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    register(File::from(fd), interest)
}

/// Registers one that somebody else holds too.
pub(crate) fn watch_shared(fd: &Arc<File>, interest: Interest) -> io::Result<AsyncFd<Arc<File>>> {
    register(fd.clone(), interest)
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their descriptor; a File cannot"
)]
fn register<F: AsRawFd>(fd: F, interest: Interest) -> io::Result<AsyncFd<F>> {
    AsyncFd::with_interest(fd, interest)
}

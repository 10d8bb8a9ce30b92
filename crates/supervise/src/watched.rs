//! Descriptors the runtime watches. The one place where they are registered.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that others may hold too; the last of them closes it.
pub type SharedFd = Arc<File>;

/// A descriptor the runtime watches; deregistered before it is closed.
pub(crate) type Watched = AsyncFd<SharedFd>;

/// One that nobody else holds yet.
pub(crate) fn shared(fd: OwnedFd) -> SharedFd {
    Arc::new(File::from(fd))
}

/// Registers a descriptor that is already non-blocking, or that is only
/// waited for.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    watch_shared(&shared(fd), interest)
}

/// Registers one that somebody else holds too.
#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their descriptor; a File cannot"
)]
pub(crate) fn watch_shared(fd: &SharedFd, interest: Interest) -> io::Result<Watched> {
    AsyncFd::with_interest(fd.clone(), interest)
}

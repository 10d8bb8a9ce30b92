//! Unix sockets by path: bind without listening, listen, accept, probe. The
//! process that calls [`listen`] is the one peers see in `SO_PEERCRED`, which
//! is why bind and listen are two steps. Makes no directory and unlinks
//! nothing: the caller owns the path.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, connect as connect_to,
    getsockopt, listen as listen_on, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::time::TimeVal;

use crate::{Errno, Result};

/// Longest path of a socket in bytes: containerd's limit, one less than the
/// kernel's 107.
pub const PATH_MAX: usize = 106;

fn address(path: &Path) -> Result<UnixAddr> {
    if path.as_os_str().len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    UnixAddr::new(path)
}

/// A stream socket bound at `path` with mode 0600 (less the umask) from its
/// first instant; not listening, so a peer gets `ECONNREFUSED`. Non-blocking,
/// close-on-exec. `EADDRINUSE`: something is there. `ENAMETOOLONG`: more than
/// [`PATH_MAX`] bytes, and nothing else, since no part of such a path is too long.
pub fn bind(path: &Path) -> Result<OwnedFd> {
    let address = address(path)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    // bind(2) gives the file the mode the socket's own inode has.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind_to(fd.as_raw_fd(), &address)?;
    Ok(fd)
}

/// Begins to accept, in the name of this process.
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<()> {
    listen_on(&fd, Backlog::new(backlog)?)
}

/// The next connection, non-blocking and close-on-exec; `None` if there is
/// none now, or it went away while it waited.
pub fn accept(fd: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    loop {
        // SAFETY: null says that the peer's address is not wanted.
        let got = unsafe {
            libc::accept4(
                fd.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        };
        match Errno::result(got) {
            // SAFETY: accept4 just made this descriptor; nobody else has it.
            Ok(fd) => return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(Errno::EAGAIN | Errno::ECONNABORTED) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Who is at the other end of a connection: for a client, who listened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The process, in our pid namespace (0: not visible there). A number to
    /// show or to compare, not one to signal.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Who is at the other end.
pub fn peer(fd: BorrowedFd<'_>) -> Result<Peer> {
    let told = getsockopt(&fd, sockopt::PeerCredentials)?;
    Ok(Peer {
        pid: u32::try_from(told.pid()).unwrap_or(0),
        uid: told.uid(),
        gid: told.gid(),
    })
}

/// Connects, waiting at most `timeout` for room in the listener's queue
/// (`EAGAIN` if there was none). The socket blocks, and every later read and
/// write on it ends after `timeout` too. `ECONNREFUSED`: bound, but nobody
/// listens; `ENOENT`: nothing is there.
pub fn connect(path: &Path, timeout: Duration) -> Result<OwnedFd> {
    let address = address(path)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Zero would mean "no end" to the kernel.
    let micros = i64::try_from(timeout.as_micros())
        .unwrap_or(i64::MAX)
        .max(1);
    let limit = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
    connect_to(fd.as_raw_fd(), &address)?;
    Ok(fd)
}

/// Ends both directions of a connection for everybody who holds it.
pub fn shutdown(fd: BorrowedFd<'_>) -> Result<()> {
    match nix::sys::socket::shutdown(fd.as_raw_fd(), nix::sys::socket::Shutdown::Both) {
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Bytes written to a local socket that its peer has not read yet
/// (`SIOCOUTQ`; it counts whole buffers, so only zero is exact).
pub fn unread_by_peer(fd: impl AsFd) -> Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int to the pointer.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Whether this is a socket's file on which nobody listens. Nothing but a refusal says so: who is
/// busy, or could not be asked for want of a descriptor, may be there.
pub fn is_deserted(path: &Path, wait: Duration) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let is = std::fs::symlink_metadata(path);
    is.is_ok_and(|is| is.file_type().is_socket())
        && matches!(connect(path, wait), Err(Errno::ECONNREFUSED))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const SOON: Duration = Duration::from_millis(30);

    #[test]
    fn bound_then_listening_then_connected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(connect(&path, SOON).unwrap_err(), Errno::ENOENT);
        let listener = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(bind(&path).unwrap_err(), Errno::EADDRINUSE);
        assert_eq!(connect(&path, SOON).unwrap_err(), Errno::ECONNREFUSED);
        listen(listener.as_fd(), 1).unwrap();
        assert!(accept(listener.as_fd()).unwrap().is_none());
        let client = connect(&path, SOON).unwrap();
        assert_eq!(peer(client.as_fd()).unwrap().pid, std::process::id());
        let served = accept(listener.as_fd()).unwrap().unwrap();
        assert_eq!(unread_by_peer(&client), Ok(0));
        nix::unistd::write(&client, b"x").unwrap();
        assert_ne!(unread_by_peer(&client), Ok(0));
        shutdown(served.as_fd()).unwrap();
        assert_eq!(nix::unistd::read(&client, &mut [0; 4]), Ok(0));
    }

    #[test]
    fn a_full_queue_ends_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = bind(&path).unwrap();
        listen(listener.as_fd(), 0).unwrap();
        let mut held = Vec::new();
        let errno = loop {
            match connect(&path, SOON) {
                Ok(fd) => held.push(fd),
                Err(errno) => break errno,
            }
            assert!(held.len() < 10);
        };
        assert_eq!(errno, Errno::EAGAIN);
    }

    #[test]
    fn the_longest_path_is_106_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let len = dir.path().as_os_str().len() + 1;
        let path = |total: usize| dir.path().join("x".repeat(total - len));
        assert!(bind(&path(PATH_MAX)).is_ok());
        assert_eq!(bind(&path(PATH_MAX + 1)).unwrap_err(), Errno::ENAMETOOLONG);
        assert_eq!(
            connect(&path(PATH_MAX + 1), SOON).unwrap_err(),
            Errno::ENAMETOOLONG
        );
    }
}

//! The kernel: every system call Vigil makes, and the only `unsafe` in the
//! project. Functions take and return `OwnedFd`/`BorrowedFd`, never a raw
//! number with two owners, and report the bare [`Errno`]; the caller, who
//! knows the path or id, says what failed. Knows nothing of containers.

pub use nix::errno::Errno;

/// What every call of this crate returns.
pub type Result<T> = std::result::Result<T, Errno>;

pub mod epoll;
pub mod event;
pub mod fd;
pub mod fifo;
pub mod fork;
pub mod inotify;
pub mod listen;
pub mod map;
pub mod mount;
pub mod pidfd;
pub mod points;
pub mod process;
pub mod scm;
pub mod signal;
pub mod spawn;
pub mod splice;
pub mod tty;
pub mod wait;

//! Everything that can fail when looking at or changing the host.

use std::path::PathBuf;

use vigil_sys::Errno;

/// A failed look at, or change of, the host. Each variant names the operation
/// and what it was done to; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {op} {path}", path = path.display())]
    File {
        /// A verb: "read", "open", "create" …
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A system call failed.
    #[error("cannot {op} {what}")]
    Kernel {
        /// A verb phrase: "mount", "send signal 9 to" …
        op: &'static str,
        /// On what.
        what: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Something read from the host does not have the form it must have.
    #[error("{path}: {problem}", path = path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A cgroup that must not be touched.
    #[error("{path} is not this container's alone", path = path.display())]
    NotOurs {
        /// Its directory.
        path: PathBuf,
    },
    /// A file is larger than anything it may be.
    #[error("{path} is larger than {max} bytes", path = path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// What is allowed.
        max: u64,
    },
    /// A deadline of ours passed.
    #[error("{what} did not finish within {after_ms} ms")]
    Overdue {
        /// What was waited for.
        what: String,
        /// How long.
        after_ms: u64,
    },
    /// A mount that was asked for cannot be made as asked.
    #[error("mount {kind} from {from}: {problem}")]
    BadMount {
        /// File system type.
        kind: String,
        /// Its source.
        from: String,
        /// Why not.
        problem: String,
    },
}

/// An error with its causes, in one line: for logs, answers and a worker's words.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in error.source().into_iter().flat_map(causes) {
        text.push_str(": ");
        text.push_str(&cause.to_string());
    }
    text
}

/// An error and its causes, each after what it brought about.
pub fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Which limit was reached, if that is why: what there was too little of, whose it is, and what
/// to raise.
pub fn limit(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::EMFILE => {
            "the shim has as many open files as it may; the limit is RLIMIT_NOFILE of the process"
        }
        Errno::ENFILE => {
            "the host has as many open files as it may; the limit is the sysctl fs.file-max"
        }
        Errno::EAGAIN => {
            "no more processes may be started; the limit is pids.max of the shim's cgroup, \
             RLIMIT_NPROC or the sysctl kernel.pid_max"
        }
        Errno::ENOMEM | Errno::ENOBUFS => {
            "there is no more memory; the limit is that of the shim's cgroup, or the host's"
        }
        Errno::ENOSPC | Errno::EDQUOT => {
            "there is no more room; the limit is the file system's, or a quota"
        }
        _ => return None,
    })
}

/// The [`limit`] among the causes of an error.
pub fn scarcity(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    causes(error).find_map(|cause| {
        let kernel = cause.downcast_ref::<Errno>().copied();
        let errno = kernel.or_else(|| {
            let io = cause.downcast_ref::<std::io::Error>()?;
            io.raw_os_error().map(Errno::from_raw)
        });
        errno.and_then(limit)
    })
}

//! Moving bytes from one kernel pipe to another without ever holding them: a
//! process that dies between two calls loses nothing. Does not wait, and says
//! which of the two ends stopped it, which the system call itself does not.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::fcntl::SpliceFFlags;

use crate::{Errno, Result, fd};

/// What became of one attempt to move bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// So many, at least one.
    Bytes(usize),
    /// Nothing to move now.
    SourceEmpty,
    /// Something to move and no room for it.
    SinkFull,
    /// Nothing to move, and no writer left that could bring anything.
    Ended,
}

/// Moves up to `most` bytes between two of which one is a pipe or fifo (else `EINVAL`).
/// `EPIPE`: nobody can read the sink (SIGPIPE too, unless ignored). `EIO`: a
/// terminal that nobody has open. `EINVAL`: not this pair of files (a sink opened
/// with `O_APPEND`, a terminal before Linux 5.11).
pub fn splice(source: impl AsFd, sink: impl AsFd, most: usize) -> Result<Moved> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    match nix::fcntl::splice(source.as_fd(), None, sink.as_fd(), None, most, flags) {
        Ok(0) => Ok(Moved::Ended),
        Ok(count) => Ok(Moved::Bytes(count)),
        Err(Errno::EAGAIN) => why_not(source),
        Err(e) => Err(e),
    }
}

/// `EAGAIN` does not say whether the source is empty or the sink full, and a
/// full sink hides the end of the source.
fn why_not(source: impl AsFd) -> Result<Moved> {
    let mut watch = [fd::Watch::reading(&source)];
    fd::poll(&mut watch, Duration::ZERO)?;
    Ok(if watch[0].possible() {
        Moved::SinkFull
    } else if watch[0].hung_up() {
        Moved::Ended
    } else {
        Moved::SourceEmpty
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn moves_and_says_why_it_does_not() {
        const MOST: usize = 1 << 16;
        let (source, feed) = fd::pipe().unwrap();
        let (drain, sink) = fd::pipe().unwrap();
        assert_eq!(splice(&source, &sink, MOST), Ok(Moved::SourceEmpty));
        nix::unistd::write(&feed, b"words").unwrap();
        assert_eq!(splice(&source, &sink, MOST), Ok(Moved::Bytes(5)));
        let mut text = [0; 8];
        assert_eq!(nix::unistd::read(&drain, &mut text), Ok(5));
        assert_eq!(&text[..5], b"words");

        fd::set_nonblocking(&sink, true).unwrap();
        while nix::unistd::write(&sink, &[0; 4096]).is_ok() {}
        assert_eq!(splice(&source, &sink, MOST), Ok(Moved::SourceEmpty));
        nix::unistd::write(&feed, b"more").unwrap();
        assert_eq!(splice(&source, &sink, MOST), Ok(Moved::SinkFull));
        drop(feed);
        assert_eq!(splice(&source, &sink, MOST), Ok(Moved::SinkFull));
        assert_eq!(nix::unistd::read(&source, &mut text), Ok(4));
        // The kernel says EAGAIN here, as if something might come.
        assert_eq!(splice(&source, &sink, MOST), Ok(Moved::Ended));
        while nix::unistd::read(&drain, &mut [0; 4096]).unwrap() == 4096 {
            if fd::readable_bytes(&drain).unwrap() == 0 {
                break;
            }
        }
        assert_eq!(splice(&source, &sink, MOST), Ok(Moved::Ended));
    }
}

//! epoll: one set, tokens instead of pointers, a fixed array of answers. Level
//! triggered only. A descriptor must be removed before it is closed: with a
//! description that another process also holds, close alone leaves it in the
//! set and the set reports it for ever.

use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll as Set, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::{Errno, Result};

/// What to be told about one descriptor. Errors and hang-ups are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// Bytes, a connection or an end can be read.
    pub read: bool,
    /// Bytes can be written.
    pub write: bool,
    /// The peer has closed, or shut its writing side (`EPOLLRDHUP`).
    pub hangup: bool,
    /// Out-of-band news (`EPOLLPRI`): kernel files such as `cgroup.events`.
    pub priority: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Interest = Interest {
        read: true,
        write: false,
        hangup: false,
        priority: false,
    };

    /// Reading, writing, both or neither.
    pub const fn of(read: bool, write: bool) -> Interest {
        Interest {
            read,
            write,
            hangup: false,
            priority: false,
        }
    }

    fn flags(self) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, self.read);
        flags.set(EpollFlags::EPOLLOUT, self.write);
        flags.set(EpollFlags::EPOLLRDHUP, self.hangup);
        flags.set(EpollFlags::EPOLLPRI, self.priority);
        flags
    }
}

/// What one descriptor has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added with.
    pub token: u64,
    /// Something can be read; also set by an end or an error, so that the
    /// next read learns of it.
    pub read: bool,
    /// Something can be written.
    pub write: bool,
    /// The peer will send no more.
    pub hangup: bool,
    /// Both directions are over, or the descriptor is in error.
    pub dead: bool,
    /// Out-of-band news.
    pub priority: bool,
}

/// A set of descriptors to wait for; clones are the same set.
#[derive(Debug, Clone)]
pub struct Epoll(Rc<Set>);

impl Epoll {
    /// An empty set, close-on-exec.
    pub fn new() -> Result<Epoll> {
        Set::new(EpollCreateFlags::EPOLL_CLOEXEC).map(|set| Epoll(Rc::new(set)))
    }

    /// Adds a descriptor.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> Result<()> {
        self.0.add(fd, EpollEvent::new(interest.flags(), token))
    }

    /// Owns a descriptor and tells when it can be read.
    pub fn watch<F: AsFd>(&self, fd: F, token: u64) -> Result<Watched<F>> {
        Watched::new(self, fd, token, Interest::READ)
    }

    /// Changes what is told about a descriptor of the set.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> Result<()> {
        self.0
            .modify(fd, &mut EpollEvent::new(interest.flags(), token))
    }

    /// Takes a descriptor out of the set.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.0.delete(fd)
    }

    /// Waits until something is ready or the time is over (`None`: no end),
    /// and returns at most `N` answers; a signal ends the wait with none.
    /// Times are rounded up to whole milliseconds.
    pub fn wait<const N: usize>(
        &self,
        timeout: Option<Duration>,
    ) -> Result<impl Iterator<Item = Ready> + use<N>> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(time) => EpollTimeout::try_from(time.as_nanos().div_ceil(1_000_000))
                .unwrap_or(EpollTimeout::MAX),
        };
        let mut events = [EpollEvent::empty(); N];
        let count = match self.0.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno),
        };
        Ok(events.into_iter().take(count).map(|event| {
            let flags = event.events();
            let dead = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
            Ready {
                token: event.data(),
                read: dead || flags.contains(EpollFlags::EPOLLIN),
                write: flags.contains(EpollFlags::EPOLLOUT),
                hangup: dead || flags.contains(EpollFlags::EPOLLRDHUP),
                dead,
                priority: flags.contains(EpollFlags::EPOLLPRI),
            }
        }))
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// A descriptor that is in a set as long as this exists.
#[derive(Debug)]
pub struct Watched<F: AsFd> {
    epoll: Epoll,
    fd: F,
    token: u64,
    /// `None`: it is not in the set yet.
    interest: Option<Interest>,
}

impl<F: AsFd> Watched<F> {
    /// Puts it into the set.
    pub fn new(epoll: &Epoll, fd: F, token: u64, interest: Interest) -> Result<Watched<F>> {
        let mut watched = Watched::not_yet(epoll, fd, token);
        watched.want(interest)?;
        Ok(watched)
    }

    /// Owns it, and puts it into the set when something is wanted: the kernel may have
    /// no room for one more (`ENOSPC`, `ENOMEM`), and then it is not lost.
    pub fn not_yet(epoll: &Epoll, fd: F, token: u64) -> Watched<F> {
        Watched {
            epoll: epoll.clone(),
            fd,
            token,
            interest: None,
        }
    }

    /// Changes what is told; costs nothing if it is the same. What fails changes nothing.
    pub fn want(&mut self, interest: Interest) -> Result<()> {
        match self.interest {
            Some(now) if now == interest => return Ok(()),
            Some(_) => self.epoll.modify(self.fd.as_fd(), self.token, interest)?,
            None => self.epoll.add(self.fd.as_fd(), self.token, interest)?,
        }
        self.interest = Some(interest);
        Ok(())
    }

    /// What is watched.
    pub fn get(&self) -> &F {
        &self.fd
    }
}

impl<F: AsFd> AsFd for Watched<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<F: AsFd> Drop for Watched<F> {
    fn drop(&mut self) {
        if self.interest.is_some() {
            let _ = self.epoll.remove(self.fd.as_fd());
        }
    }
}

/// A descriptor that can be left alone for a while: with nothing to do it with, what can be
/// read would be told of for ever.
#[derive(Debug)]
pub struct Resting<F: AsFd> {
    watched: Watched<F>,
    until: Option<Instant>,
}

impl<F: AsFd> Resting<F> {
    /// Tells when it can be read.
    pub fn new(epoll: &Epoll, fd: F, token: u64) -> Result<Resting<F>> {
        let watched = epoll.watch(fd, token)?;
        Ok(Resting {
            watched,
            until: None,
        })
    }

    /// It is looked at again after this time, or sooner if that was said before.
    pub fn rest(&mut self, time: Duration) {
        let _ = self.watched.want(Interest::default());
        let at = Instant::now() + time;
        self.until = Some(self.until.map_or(at, |known| known.min(at)));
    }

    /// Until when it rests.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// It is looked at from now on; rests on if that cannot be.
    pub fn wake(&mut self, time: Duration) {
        self.until = None;
        if self.watched.want(Interest::READ).is_err() {
            self.rest(time);
        }
    }
}

impl<F: AsFd> AsFd for Resting<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::scm;

    #[test]
    fn tells_reads_writes_and_ends_by_token() {
        let (a, b) = scm::pair_stream().unwrap();
        let set = Epoll::new().unwrap();
        let reads = Interest {
            hangup: true,
            ..Interest::READ
        };
        set.add(a.as_fd(), 7, reads).unwrap();
        assert_eq!(set.wait::<4>(Some(Duration::ZERO)).unwrap().count(), 0);
        scm::send(b.as_fd(), b"x", &[]).unwrap();
        let got: Vec<_> = set.wait::<4>(None).unwrap().collect();
        assert_eq!(got.len(), 1);
        assert!(got[0].token == 7 && got[0].read && !got[0].write && !got[0].hangup);
        set.modify(
            a.as_fd(),
            8,
            Interest {
                write: true,
                ..Interest::default()
            },
        )
        .unwrap();
        let got: Vec<_> = set.wait::<4>(None).unwrap().collect();
        assert!(got[0].token == 8 && got[0].write && !got[0].read);
        set.modify(a.as_fd(), 7, reads).unwrap();
        drop(b);
        let got: Vec<_> = set.wait::<4>(None).unwrap().collect();
        assert!(got[0].hangup && got[0].dead);
        set.remove(a.as_fd()).unwrap();
        assert_eq!(set.wait::<4>(Some(Duration::ZERO)).unwrap().count(), 0);
    }

    #[test]
    fn what_is_dropped_is_told_of_no_more_though_a_duplicate_lives() {
        let (a, b) = scm::pair_stream().unwrap();
        let set = Epoll::new().unwrap();
        let duplicate = a.try_clone().unwrap();
        let mut watched = Watched::new(&set, a, 1, Interest::READ).unwrap();
        scm::send(b.as_fd(), b"x", &[]).unwrap();
        assert_eq!(set.wait::<4>(Some(Duration::ZERO)).unwrap().count(), 1);
        watched.want(Interest::default()).unwrap();
        assert_eq!(set.wait::<4>(Some(Duration::ZERO)).unwrap().count(), 0);
        watched.want(Interest::READ).unwrap();
        drop(watched);
        assert_eq!(set.wait::<4>(Some(Duration::ZERO)).unwrap().count(), 0);
        drop(duplicate);
    }
}

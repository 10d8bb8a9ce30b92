//! One connection of containerd: its own socket, the socketpair to the shim,
//! and the relay between them. Every frame passes here; none is understood.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use vigil_relay::conns::Connection;
use vigil_relay::tokens::token_of;
use vigil_relay::{Budget, Relay, estate};
use vigil_sys::epoll::{Epoll, Interest, Ready, Watched};
use vigil_sys::{Result, listen, scm};

use crate::renew::number;

/// Bytes read at once. On the stack, so no more than a page.
const CHUNK: usize = 4096;
/// A connection and what is under way on it.
pub(crate) struct Conn {
    pub(crate) number: u32,
    own: Watched<OwnedFd>,
    pair: Option<Watched<OwnedFd>>,
    pub(crate) relay: Relay,
    /// The shim closed its end, or is dying and all its ends close: if it is
    /// still alive at this time, it meant this connection.
    pub(crate) cut_at: Option<Instant>,
    /// Bytes that were looked at and stand in containerd's socket still.
    looked_at: usize,
}

impl Connection for Conn {
    fn number(&self) -> u32 {
        self.number
    }

    fn relay(&self) -> &Relay {
        &self.relay
    }

    fn relay_mut(&mut self) -> &mut Relay {
        &mut self.relay
    }
}

impl Conn {
    pub(crate) fn new(epoll: &Epoll, number: u32, own: OwnedFd, budget: &Budget) -> Conn {
        let peer = listen::peer(own.as_fd()).map_or(0, |peer| peer.pid);
        Conn {
            number,
            own: Watched::not_yet(epoll, own, token_of(number)),
            pair: None,
            relay: Relay::within(budget, peer),
            cut_at: None,
            looked_at: 0,
        }
    }

    /// One that another reaper had, with the pair to the shim that lives, if one does.
    pub(crate) fn go_on(
        epoll: &Epoll,
        left: estate::Conn,
        own: OwnedFd,
        pair: Option<OwnedFd>,
        budget: &Budget,
    ) -> Conn {
        let peer = listen::peer(own.as_fd()).map_or(0, |peer| peer.pid);
        let token = token_of(left.number);
        Conn {
            number: left.number,
            own: Watched::not_yet(epoll, own, token),
            pair: pair.map(|pair| Watched::not_yet(epoll, pair, token + 1)),
            relay: Relay::resume(budget, peer, left, Instant::now()),
            cut_at: None,
            looked_at: 0,
        }
    }

    /// Whether no frame is under way.
    pub(crate) fn is_between(&self) -> bool {
        self.relay.is_between() && self.cut_at.is_none()
    }

    /// What another program is to know of it.
    pub(crate) fn leave(&self, now: Instant) -> estate::Conn {
        let pair = self.pair.as_ref().map(number);
        self.relay.leave(now, self.number, number(&self.own), pair)
    }

    /// Its descriptors.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let pair = self.pair.as_ref().map(AsFd::as_fd);
        std::iter::once(self.own.as_fd()).chain(pair)
    }

    /// containerd's own connection.
    pub(crate) fn own(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }

    /// Whether it waits for a shim. Not one whose shim has closed its end.
    pub(crate) fn waits(&self) -> bool {
        self.pair.is_none() && self.cut_at.is_none()
    }

    /// A shim serves it from now on, with what is unanswered first.
    /// One that never says that it has taken it (`silent`) is believed to have.
    pub(crate) fn give(&mut self, epoll: &Epoll, pair: OwnedFd, silent: bool) -> Result<()> {
        self.pair = Some(epoll.watch(pair, token_of(self.number) + 1)?);
        self.cut_at = None;
        self.relay.be_taken(silent);
        Ok(())
    }

    /// Whether the shim has not read all it was sent.
    pub(crate) fn unread_by_shim(&self) -> bool {
        let Some(pair) = self.pair.as_ref().filter(|_| self.relay.unanswered() > 0) else {
            return false;
        };
        !self.relay.for_shim().is_empty() || listen::unread_by_peer(pair.as_fd()).unwrap_or(0) > 0
    }

    /// Something happened on containerd's side. `false`: it is over.
    pub(crate) fn own_ready(&mut self, ready: Ready) -> bool {
        // One request a turn, so that no connection starves another; after a
        // hang-up all that is left, which the socket's buffer bounds.
        while ready.read && (ready.dead || self.wants_own()) {
            if self.looked_at > 0 && self.take() == Some(0) {
                return false;
            }
            // It is looked at, passed on, and only then taken, all of it at once:
            // if we die, it is still there, or the shim has it, or both.
            let seen = scm::look_now(self.own(), |ahead| self.relay.takes(ahead));
            let Some(bytes) = seen else { break };
            self.looked_at = bytes.len();
            self.relay.from_containerd(&bytes);
            self.relay.stamp(Instant::now());
            if self.relay.is_broken() {
                return false;
            }
            self.write();
            if bytes.is_empty() {
                return false;
            }
            if !ready.dead {
                self.take_what_was_passed_on();
                break;
            }
        }
        true
    }

    /// Takes what was looked at, whoever has it.
    pub(crate) fn take(&mut self) -> Option<usize> {
        if self.looked_at == 0 {
            return None;
        }
        let mut bytes = vec![0; std::mem::take(&mut self.looked_at)];
        scm::read_now(self.own(), &mut bytes)
    }

    /// The same, unless a shim is there that has no room for it yet.
    fn take_what_was_passed_on(&mut self) {
        let passed_on = self.pair.is_none() || self.relay.for_shim().is_empty();
        if self.looked_at > 0 && passed_on {
            self.take();
        }
    }

    /// Whether bytes of containerd are welcome.
    fn wants_own(&self) -> bool {
        self.looked_at == 0 && self.relay.wants_containerd()
    }

    /// Something happened on the shim's side.
    pub(crate) fn pair_ready(&mut self, ready: Ready, cut_at: Instant) {
        let over = if ready.dead {
            // All it wrote counts, also what containerd has no room for yet.
            self.read_pair_to_end();
            true
        } else {
            ready.read && self.relay.wants_shim() && self.read_pair() == Some(0)
        };
        if over {
            self.pair = None;
            self.cut_at = Some(cut_at);
        }
    }

    /// The shim is dead: what it wrote is read to its end and, as far as
    /// containerd takes it at once, passed on. If it died by its own fault, what it
    /// has not lived with for long may be to blame.
    pub(crate) fn shim_died(&mut self, now: Instant, own_fault: bool) {
        self.read_pair_to_end();
        self.relay.lost_shim(now, own_fault);
        self.pair = None;
        self.cut_at = None;
    }

    /// Nobody serves: what would come too late is answered, and for that reason;
    /// when the next would.
    pub(crate) fn expire(&mut self, now: Instant, why: impl Fn() -> String) -> Option<Instant> {
        let next = self.relay.expire(now, why);
        let _ = self.settle();
        next
    }

    fn read_pair(&mut self) -> Option<usize> {
        let mut chunk = [0; CHUNK];
        let count = scm::read_now(self.pair.as_ref()?.as_fd(), &mut chunk)?;
        self.relay.from_shim(&chunk[..count]);
        Some(count)
    }

    /// The socket's buffer bounds what a dead shim can have left.
    fn read_pair_to_end(&mut self) {
        while self.read_pair().is_some_and(|count| count > 0) {}
    }

    /// Writes what either side takes now, and asks to be told about the rest. What the
    /// kernel has no room to tell of is to be asked for again, and nothing is lost.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.write();
        self.take_what_was_passed_on();
        let own = Interest::of(self.wants_own(), !self.flushed());
        let sends = !self.relay.for_shim().is_empty();
        let pair = Interest::of(self.relay.wants_shim(), sends);
        self.own.want(own)?;
        self.pair.as_mut().map_or(Ok(()), |fd| fd.want(pair))
    }

    fn write(&mut self) {
        let shim = |bytes: &[u8]| {
            let count = scm::send_now(self.pair.as_ref()?.as_fd(), bytes)?;
            Some((Instant::now(), count))
        };
        let containerd = |bytes: &[u8]| scm::send_now(self.own.as_fd(), bytes);
        self.relay.pass_on(containerd, shim);
    }

    /// Whether containerd has taken everything that is for it.
    pub(crate) fn flushed(&self) -> bool {
        self.relay.for_containerd().is_empty()
    }
}

/// containerd sees the end although the shim holds a duplicate.
impl Drop for Conn {
    fn drop(&mut self) {
        let _ = listen::shutdown(self.own.as_fd());
    }
}

//! What the shim asks of the reaper: hold, close, pin, end. Each call is
//! answered, one that cannot be read too. What a slot is for means nothing here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use vigil_journal::exits::PinError;
use vigil_relay::control::{
    ADOPT_MAX, Call, Denied, MESSAGE_MAX, OLDEST, REAPS, SAYS_TAKEN, ToReaper, ToShim, VERSION,
    number_of,
};
use vigil_sys::epoll::Interest;
use vigil_sys::{Errno, fd, fifo, listen, scm};

use crate::turn::{END, Reaper};

/// Messages read in one turn.
const BATCH: usize = 32;

impl Reaper<'_> {
    /// Reads and answers what the shim has sent, some of it if it is much, and none without room
    /// for the answer: a shim that has thousands of connections to take reads it later.
    /// `false`: nothing more will come.
    pub(crate) fn serve_control(&mut self) -> bool {
        let mut bytes = [0; MESSAGE_MAX];
        for _ in 0..BATCH {
            let Some(control) = &mut self.control else {
                return false;
            };
            // One that is dead reads nothing, and what it has sent counts.
            if self.shim.is_some() && !fd::has_room(&*control) {
                return control.want(Interest::of(false, true)).is_ok();
            }
            let mut fds = Vec::new();
            bytes[..8].fill(0);
            let received = scm::recv(control.as_fd(), &mut bytes, &mut fds);
            let answer = match received {
                // No descriptor of ours is free for those it brought.
                Err(Errno::ENOBUFS) => Err(Denied::SlotsFull),
                Err(Errno::EMSGSIZE) => Err(Denied::Malformed),
                Err(Errno::EAGAIN | Errno::ENOMEM) => return true,
                Ok(0) | Err(_) => return false,
                Ok(count) => match Call::decode(&bytes[..count]) {
                    Ok(Call { call: 0, .. }) => Err(Denied::ZeroCall),
                    Ok(Call { request, .. }) => self.perform(request, fds),
                    Err(error) => Err(error.denied()),
                },
            };
            self.line.alive(Instant::now());
            let call = number_of(&bytes);
            self.tell(&ToShim::Ack { call, answer }, &[]);
        }
        true
    }

    /// Sends one message. A shim that is gone is no error, its death is on the
    /// way; one that does not read what it is sent is stuck, and is ended.
    pub(crate) fn tell(&self, message: &ToShim, fds: &[BorrowedFd<'_>]) {
        let Some(control) = &self.control else { return };
        if let Err(Errno::EAGAIN) = scm::send(control.as_fd(), &message.encode(), fds) {
            self.kill_shim();
        }
    }

    fn perform(&mut self, request: ToReaper, fds: Vec<OwnedFd>) -> Result<u64, Denied> {
        match request {
            ToReaper::Hello { version } if version < OLDEST => Err(Denied::Version),
            // A newer shim learns our version and speaks it, or goes.
            ToReaper::Hello { version } => {
                (self.silent, self.reaps) = (version < SAYS_TAKEN, version >= REAPS);
                Ok(VERSION.into())
            }
            ToReaper::Taken { conn } => {
                self.conns.taken(conn);
                Ok(0)
            }
            ToReaper::Ready => {
                self.hand_out();
                if let Some(ready) = self.ready.take() {
                    // If `start` is gone, others have told its client so.
                    let _ = scm::write(ready.as_fd(), b"R");
                }
                Ok(0)
            }
            ToReaper::Deposit { slots } => {
                // Of what only names a fifo, both ends: a client who sees them sees no end
                // when the shim dies.
                let held = fifo::hold_named(fds).map_err(|_| Denied::SlotsFull)?;
                self.slots.deposit(&slots, held).map(|()| 0)
            }
            ToReaper::Ended { slots } => {
                self.slots.ended(&slots);
                Ok(0)
            }
            ToReaper::Register {
                pid,
                start_ticks,
                since,
            } => match self.deaths.pin(pid, start_ticks, since) {
                Ok(index) => Ok(index as u64),
                Err(PinError::Full) => Err(Denied::PinsFull),
                Err(PinError::Ambiguous { .. }) => Err(Denied::Ambiguous),
            },
            ToReaper::Unregister { index } => match usize::try_from(index) {
                Ok(index) if self.deaths.unpin(index) => Ok(0),
                Ok(_) | Err(_) => Err(Denied::NotPinned),
            },
            ToReaper::Adopt { after } => {
                let slots = self.slots.after(after, ADOPT_MAX);
                for (slot, held) in &slots {
                    self.tell(&ToShim::Slot(*slot), &[held.as_fd()]);
                }
                Ok(slots.len() as u64)
            }
            ToReaper::Accept { listener, slot } => {
                let called = self.slots.get(listener);
                let called = called.and_then(|held| listen::accept(held.as_fd()).ok()?);
                let Some(called) = called else { return Ok(0) };
                self.tell(&ToShim::Slot(slot), &[called.as_fd()]);
                self.slots.deposit(&[slot], vec![called]).map(|()| 1)
            }
            ToReaper::End => {
                self.departure.within(Instant::now(), END);
                Ok(0)
            }
        }
    }
}

//! One connection: what containerd asked and has not been answered, and what
//! is on its way to either side. The commit point is a complete response to a
//! kept request: only that is passed on, once; everything else a shim writes
//! is dropped and counted, so neither a dead nor a corrupt shim can confuse
//! containerd. An idle connection holds no memory.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::budget::{Budget, COST, Share, URGENT_MAX};
use crate::frame::{self, Cutter, Header, PAYLOAD_MAX, Piece};
use crate::glance::glance;
use crate::places::Guest;
use crate::succession::PROVEN;

/// Most requests of one connection that may be unanswered. The next one is
/// answered RESOURCE_EXHAUSTED rather than left unread: behind 1024 Waits
/// there must be room for the Kill that ends them.
/// ttrpc cannot call a request back, so each Wait that nobody waits for any more stays.
pub const KEPT_MAX: usize = 1 << 17;
/// Beyond that there is always room for so many that look at a container or get rid of it, of
/// so few bytes.
const RESERVE: usize = 1024;
/// So many of so few bytes each connection may have, whatever all of them hold together.
const FEW: usize = 4;
/// Most that the unanswered requests of one connection may cost; beyond, as above.
pub const KEPT_BYTES_MAX: usize = 16 << 20;
/// Bytes of requests not yet taken by the shim at which no more are read.
pub const UNSENT_MAX: usize = 1 << 20;
/// Bytes of answers not yet taken by containerd at which nothing more is read
/// from either side.
pub const QUEUE_MAX: usize = 256 << 10;
/// Deaths a request is allowed to have caused before it is answered with an error.
pub const ATTEMPTS_MAX: u8 = 3;
/// How long a request without a time-out of its own waits for a shim.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Every encoder begins a request with the name of the service.
const REQUEST_BEGINS: u8 = 0x0a;
/// An answer that is to come before its client gives up leaves so much earlier at most.
const EARLY: Duration = Duration::from_millis(500);

/// A request frame and its story.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) stream: u32,
    /// Shims that died with it in hand.
    pub(crate) attempts: u8,
    /// A shim has been seen to live with it: it is not what kills them.
    pub(crate) proven: bool,
    /// When it came, as far as that was told.
    pub(crate) came: Option<Instant>,
    pub(crate) frame: Box<[u8]>,
}

/// What a request costs the shim that has it.
pub(crate) fn cost(frame: &[u8]) -> usize {
    let seen = glance(frame);
    let light = seen.waits() && seen.timeout.is_none();
    frame.len() + if light { 0 } else { COST }
}

impl Kept {
    /// When it is to be answered without a shim, of which there has been none `since`. A Wait
    /// without a time-out has no end: who waits takes an error for the container's.
    fn until(&self, since: Option<Instant>) -> Option<Instant> {
        let seen = glance(&self.frame);
        let time = match seen.timeout {
            Some(timeout) => timeout.saturating_sub(EARLY.min(timeout / 4)),
            None if seen.waits() => return None,
            // However long a shim had worked on it: only what it waits for another counts.
            None => {
                let came = self.came?;
                return since
                    .map_or(came, |since| came.max(since))
                    .checked_add(WAIT_MAX);
            }
        };
        self.came?.checked_add(time)
    }
}

/// What was dropped, for the log. Each stops counting at its maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Complete answers to no kept request.
    pub unmatched: u32,
    /// Frames from containerd that are not requests. The Task service has no
    /// streams, so they mean nothing; they are dropped without an answer.
    pub foreign: u32,
    /// Requests the relay answered itself.
    pub refused: u32,
}

/// The relay of one connection. Bytes go in by [`Relay::from_containerd`] and
/// [`Relay::from_shim`]; after each, [`Relay::for_shim`] and
/// [`Relay::for_containerd`] show what is to be written.
#[derive(Debug, Default)]
pub struct Relay {
    pub(crate) requests: Cutter,
    pub(crate) answers: Cutter,
    /// In the order in which they came.
    pub(crate) kept: VecDeque<Kept>,
    pub(crate) kept_bytes: usize,
    /// What they cost in all, bytes included.
    pub(crate) cost: usize,
    /// `kept[..sent]` have been taken by the shim whole …
    pub(crate) sent: usize,
    /// … and so many bytes of `kept[sent]`.
    pub(crate) sent_part: usize,
    pub(crate) unsent_bytes: usize,
    /// Whole frames for containerd; of the first, `queue_part` bytes are gone.
    pub(crate) queue: VecDeque<Box<[u8]>>,
    pub(crate) queue_part: usize,
    queue_bytes: usize,
    counts: Counts,
    /// When the shim took something last.
    took_at: Option<Instant>,
    /// Since when the last shim is dead, until another takes something.
    pub(crate) unserved: Option<Instant>,
    /// The process that connected.
    peer: u32,
    /// It has no place: only what is urgent is passed on.
    guest: Option<Guest>,
    /// The shim has the connection: it said so, or has said something on it.
    pub(crate) taken: bool,
    /// The request the relay before passed on last: it may stand in the socket still. Until
    /// the first has come it is not sure that a request begins where we read.
    pub(crate) passed: Option<u32>,
    pub(crate) unsure: bool,
    /// Of the request on this stream the relay before had passed on a part.
    pub(crate) half_was: Option<u32>,
    broken: bool,
    /// When the request began to come that has not come whole.
    half_since: Option<Instant>,
    budget: Budget,
    /// What the budget knows of.
    share: Share,
}

impl Relay {
    /// A fresh connection that is alone.
    pub fn new() -> Relay {
        Relay::default()
    }

    /// A fresh connection of this process beside others.
    pub fn within(budget: &Budget, peer: u32) -> Relay {
        let mut relay = Relay::default();
        relay.budget = budget.clone();
        relay.peer = peer;
        relay
    }

    /// The process that connected.
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Whether it has no place.
    pub fn is_guest(&self) -> bool {
        self.guest.is_some()
    }

    /// Whether it has a place from now on.
    pub fn seat(&mut self, now: Instant, free: bool) {
        let guest = || self.guest.unwrap_or_else(|| Guest::new(now));
        self.guest = (!free).then(guest);
    }

    /// Whether it is a guest and makes room for another.
    pub fn gives_way(&self, now: Instant) -> bool {
        let told = self.queue.is_empty();
        self.guest
            .is_some_and(|guest| self.kept.is_empty() && guest.goes(now, told))
    }

    /// The shim lives on without the connection. `false`: it never had it, for want of
    /// something, and is to be offered it again, with all that was for it.
    pub fn was_meant(&mut self) -> bool {
        if !self.taken {
            self.shim_died(false);
        }
        self.taken
    }

    /// Whether the shim has it from now on.
    pub fn be_taken(&mut self, taken: bool) {
        self.taken = taken;
    }

    /// The budget is told what is held by now.
    pub(crate) fn account(&mut self) {
        let half = self.half();
        let all = self.held() + (self.cost - self.kept_bytes);
        let share = Share { all, half };
        self.budget
            .change(std::mem::replace(&mut self.share, share), share);
    }

    /// Memory of a request of which a part has come, if it may be given up: not
    /// what is so short that it may be urgent.
    pub fn half(&self) -> usize {
        let half = self.requests.half();
        half.filter(|(header, _)| usize::try_from(header.len).is_ok_and(|len| len > RESERVE))
            .map_or(0, |(_, memory)| memory)
    }

    /// Since when.
    pub(crate) fn half_since(&self) -> Option<Instant> {
        self.half_since
    }

    /// Forgets the part that has come of a request. It is refused when all of it
    /// has been sent: who is answered before takes the connection for broken.
    pub fn give_up_half(&mut self) {
        self.half_since = None;
        self.requests.give_up();
        self.account();
    }

    /// Takes all of `bytes`, read from containerd.
    pub fn from_containerd(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let piece = self.requests.next(&mut bytes);
            if self.unsure && self.was_had(piece.as_ref()) {
                continue;
            }
            match piece {
                Some(Piece::GivenUp(header)) if header.kind == frame::REQUEST => {
                    self.refuse_for_want_of_room(header.stream);
                }
                None => {}
                Some(Piece::Frame(header, frame)) if header.kind == frame::REQUEST => {
                    self.keep(header, frame);
                }
                Some(Piece::TooLong(header)) if header.kind == frame::REQUEST => {
                    let message = format!(
                        "request of {} bytes is longer than the {PAYLOAD_MAX} a message may have",
                        header.len
                    );
                    self.refuse(header.stream, frame::CODE_RESOURCE_EXHAUSTED, &message);
                }
                Some(Piece::Frame(..) | Piece::TooLong(_) | Piece::GivenUp(_)) => {
                    self.counts.foreign = self.counts.foreign.saturating_add(1);
                }
            }
        }
        self.account();
    }

    /// Of the first frame that comes: whether the relay before has passed it on already. What is
    /// no request is the rest of one that it had taken a part of, and breaks the connection.
    fn was_had(&mut self, piece: Option<&Piece>) -> bool {
        let (header, begin) = match piece {
            Some(Piece::Frame(header, frame)) => (*header, frame.get(frame::HEADER_LEN)),
            Some(Piece::TooLong(header) | Piece::GivenUp(header)) => (*header, None),
            None => match self.requests.half() {
                Some((header, _)) => (header, self.requests.body()),
                None => return false,
            },
        };
        let long = usize::try_from(header.len).is_ok_and(|len| len > PAYLOAD_MAX);
        let odd = header.kind == frame::REQUEST && header.stream % 2 == 1;
        let begins = begin.is_none_or(|byte| *byte == REQUEST_BEGINS);
        self.broken |= long || !odd || !begins;
        if piece.is_none() {
            return false;
        }
        self.unsure = false;
        // It is not the one that must come: that is lost, and whoever sent it waits.
        self.broken |= self
            .half_was
            .take()
            .is_some_and(|half| half != header.stream);
        self.passed.take() == Some(header.stream)
    }

    /// Where we read no request begins, or one is lost: the connection is to be ended.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn refuse_for_want_of_room(&mut self, stream: u32) {
        let message = format!(
            "the requests of all connections hold {} bytes already",
            self.budget.held()
        );
        self.refuse(stream, frame::CODE_RESOURCE_EXHAUSTED, &message);
    }

    /// How many bytes are to be taken at once, of those that containerd has
    /// sent next and that begin with `ahead`: up to the end of a request, so
    /// that one is taken whole or not at all; all there are if that is not known.
    pub fn takes(&self, ahead: &[u8]) -> usize {
        self.requests.to_end(ahead).unwrap_or(ahead.len())
    }

    fn keep(&mut self, header: Header, frame: Box<[u8]>) {
        let cost = cost(&frame);
        let small = frame.len() <= RESERVE;
        let urgent = small && glance(&frame).is_urgent();
        let (more, larger) = if urgent {
            (RESERVE, URGENT_MAX)
        } else {
            (0, 0)
        };
        if let Some(guest) = &mut self.guest {
            guest.asked = true;
        }
        if self.guest.is_some() && !urgent {
            let message = "too many connections are open: on this one a container can be \
                           looked at and got rid of, no more";
            return self.refuse(header.stream, frame::CODE_RESOURCE_EXHAUSTED, message);
        }
        if self.kept.len() >= KEPT_MAX + more || self.cost + cost > KEPT_BYTES_MAX + larger {
            let message = format!(
                "{} requests with {} bytes are unanswered on this connection",
                self.kept.len(),
                self.kept_bytes
            );
            return self.refuse(header.stream, frame::CODE_RESOURCE_EXHAUSTED, &message);
        }
        let few = small && self.kept.len() < FEW;
        // What has come of it since was its half until now.
        if !few && !self.budget.has_room(cost, larger) {
            return self.refuse_for_want_of_room(header.stream);
        }
        self.cost += cost;
        self.kept_bytes += frame.len();
        self.unsent_bytes += frame.len();
        self.kept.push_back(Kept {
            stream: header.stream,
            attempts: 0,
            proven: false,
            came: None,
            frame,
        });
    }

    /// What has come since this was called last came now.
    pub fn stamp(&mut self, now: Instant) {
        let new = self.kept.iter_mut().rev();
        for kept in new.take_while(|kept| kept.came.is_none()) {
            kept.came = Some(now);
        }
        let half = self.half() > 0;
        self.half_since = half.then(|| self.half_since.unwrap_or(now));
    }

    /// No shim serves. What would come too late for its client is answered
    /// UNAVAILABLE, for that reason; when the next would.
    pub fn expire(&mut self, now: Instant, why: impl Fn() -> String) -> Option<Instant> {
        let begun = self.sent + usize::from(self.sent_part > 0);
        let (mut place, mut late, mut next) = (0, Vec::new(), None::<Instant>);
        self.kept.retain(|kept| {
            let until = kept.until(self.unserved).filter(|_| place >= begun);
            place += 1;
            let goes = until.is_some_and(|until| until <= now);
            if goes {
                late.push((kept.stream, kept.frame.len(), cost(&kept.frame)));
            } else {
                next = next.into_iter().chain(until).min();
            }
            !goes
        });
        release(&mut self.kept);
        for (stream, len, cost) in late {
            self.cost -= cost;
            self.kept_bytes -= len;
            self.unsent_bytes -= len;
            self.refuse(stream, frame::CODE_UNAVAILABLE, &why());
        }
        self.account();
        next
    }

    fn refuse(&mut self, stream: u32, code: u8, message: &str) {
        self.counts.refused = self.counts.refused.saturating_add(1);
        self.enqueue(frame::refusal(stream, code, message));
    }

    pub(crate) fn enqueue(&mut self, frame: Box<[u8]>) {
        self.queue_bytes += frame.len();
        self.queue.push_back(frame);
    }

    /// Takes all of `bytes`, read from the shim.
    pub fn from_shim(&mut self, mut bytes: &[u8]) {
        self.taken |= !bytes.is_empty();
        while !bytes.is_empty() {
            let room = self.budget.answer();
            let Some(piece) = self.answers.next_within(&mut bytes, room) else {
                continue;
            };
            let header = match piece {
                Piece::Frame(header, _) | Piece::TooLong(header) | Piece::GivenUp(header) => header,
            };
            // A request that is not with the shim yet cannot have been answered.
            let asked = self.kept.iter().take(self.sent);
            let place = (header.kind == frame::RESPONSE)
                .then(|| {
                    asked
                        .into_iter()
                        .position(|one| one.stream == header.stream)
                })
                .flatten();
            let Some(place) = place else {
                self.counts.unmatched = self.counts.unmatched.saturating_add(1);
                continue;
            };
            self.forget(place);
            match piece {
                Piece::Frame(_, frame) => self.enqueue(frame),
                Piece::TooLong(_) | Piece::GivenUp(_) => {
                    let message = format!(
                        "the answer of {} bytes is longer than the {} there is room for",
                        header.len,
                        room.min(PAYLOAD_MAX)
                    );
                    self.refuse(header.stream, frame::CODE_RESOURCE_EXHAUSTED, &message);
                }
            }
            // Whoever answers a later request has lived with the earlier ones.
            for earlier in self.kept.iter_mut().take(place) {
                earlier.proven = true;
            }
        }
        self.account();
    }

    /// Drops one of `kept[..sent]`, keeping the order of the others.
    fn forget(&mut self, place: usize) {
        if let Some(kept) = self.kept.remove(place) {
            self.kept_bytes -= kept.frame.len();
            self.cost -= cost(&kept.frame);
            self.sent -= 1;
        }
        release(&mut self.kept);
    }

    /// What is to be written to the shim now; empty if nothing.
    pub fn for_shim(&self) -> &[u8] {
        let next = self.kept.get(self.sent);
        next.map_or(&[], |kept| &kept.frame[self.sent_part..])
    }

    /// The shim took the first `count` bytes of [`Relay::for_shim`].
    pub fn shim_took(&mut self, count: usize) {
        let Some(kept) = self.kept.get(self.sent) else {
            return;
        };
        let count = count.min(kept.frame.len() - self.sent_part);
        self.unserved = None;
        self.unsent_bytes -= count;
        self.sent_part += count;
        if self.sent_part == kept.frame.len() {
            self.sent += 1;
            self.sent_part = 0;
        }
    }

    /// What is to be written to containerd now; empty if nothing.
    pub fn for_containerd(&self) -> &[u8] {
        let next = self.queue.front();
        next.map_or(&[], |frame| &frame[self.queue_part..])
    }

    /// containerd took the first `count` bytes of [`Relay::for_containerd`].
    pub fn containerd_took(&mut self, count: usize) {
        let Some(frame) = self.queue.front() else {
            return;
        };
        let len = frame.len();
        let count = count.min(len - self.queue_part);
        self.queue_bytes -= count;
        self.queue_part += count;
        if self.queue_part == len {
            self.queue.pop_front();
            self.queue_part = 0;
            release(&mut self.queue);
        }
        self.account();
    }

    /// Gives either side what is for it for as long as it takes some: each says of the bytes
    /// how many it took.
    pub fn pass_on(
        &mut self,
        containerd: impl Fn(&[u8]) -> Option<usize>,
        shim: impl Fn(&[u8]) -> Option<(Instant, usize)>,
    ) {
        while let Some(count) = containerd(self.for_containerd()) {
            self.containerd_took(count);
        }
        while let Some((now, count)) = shim(self.for_shim()) {
            self.shim_took_at(now, count);
        }
    }

    /// Whether bytes of containerd are welcome. If not, what they would be put
    /// behind must be taken first, by the shim or by containerd itself.
    pub fn wants_containerd(&self) -> bool {
        // Without a shim all that is kept is unsent, and what is urgent may be behind it.
        let sent = self.unserved.is_some() || self.unsent_bytes < UNSENT_MAX;
        sent && self.wants_shim()
    }

    /// Whether bytes of the shim are welcome.
    pub fn wants_shim(&self) -> bool {
        self.queue_bytes < QUEUE_MAX && (self.queue_bytes == 0 || !self.budget.is_over())
    }

    /// The shim has been alive with everything it was given for so long that
    /// none of it is to blame for its death. How long is the caller's affair.
    pub fn prove(&mut self) {
        for kept in self.kept.iter_mut().take(self.sent) {
            kept.proven = true;
        }
    }

    /// What the shim has lived with for long by now is not what kills it.
    pub fn prove_lived(&mut self, now: Instant) {
        let lived = |at| now.duration_since(at) >= PROVEN;
        if self.took_at.is_none_or(lived) {
            self.prove();
        }
    }

    /// The same as [`Relay::shim_took`], at a known time.
    pub fn shim_took_at(&mut self, now: Instant, count: usize) {
        self.prove_lived(now);
        self.shim_took(count);
        self.took_at = Some(now);
    }

    /// The shim is dead and all it wrote has been given to [`Relay::from_shim`].
    /// A half answer is dropped. If it died by its own fault, what it was given
    /// whole, but a Wait, has one attempt more, unless proven harmless; at [`ATTEMPTS_MAX`] it
    /// is answered with an error. The rest will be the first the next shim gets,
    /// in the old order.
    pub fn shim_died(&mut self, own_fault: bool) {
        self.answers.reset();
        let sent = std::mem::take(&mut self.sent);
        self.sent_part = 0;
        let blamed = if own_fault { sent } else { 0 };
        for kept in self
            .kept
            .iter_mut()
            .take(blamed)
            .filter(|kept| !kept.proven)
        {
            // Who waits takes an error for the container's end, so a Wait is never to blame.
            kept.attempts += u8::from(!glance(&kept.frame).waits());
        }
        let mut fatal = Vec::new();
        self.kept.retain(|kept| {
            let goes = kept.attempts >= ATTEMPTS_MAX;
            if goes {
                fatal.push(kept.stream);
            }
            !goes
        });
        release(&mut self.kept);
        for stream in fatal {
            let message = format!("the shim died {ATTEMPTS_MAX} times while it did this");
            self.refuse(stream, frame::CODE_INTERNAL, &message);
        }
        self.kept_bytes = self.kept.iter().map(|kept| kept.frame.len()).sum();
        self.cost = self.kept.iter().map(|kept| cost(&kept.frame)).sum();
        self.unsent_bytes = self.kept_bytes;
        self.account();
    }

    /// The same at a known time: what that one had lived with for long is not to blame.
    pub fn lost_shim(&mut self, now: Instant, own_fault: bool) {
        self.prove_lived(now);
        self.shim_died(own_fault);
        self.unserved.get_or_insert(now);
    }

    /// Requests not answered yet.
    pub fn unanswered(&self) -> usize {
        self.kept.len()
    }

    /// Bytes of memory held for frames of either side; 0 when idle.
    pub fn held(&self) -> usize {
        let whole = self.queue_bytes + self.queue_part;
        let slots = self.kept.capacity() * size_of::<Kept>()
            + self.queue.capacity() * size_of::<Box<[u8]>>();
        self.requests.held() + self.answers.held() + self.kept_bytes + whole + slots
    }

    /// What was dropped so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.budget.change(self.share, Share::default());
    }
}

/// Gives back the room of a burst: all of it when empty.
fn release<T>(list: &mut VecDeque<T>) {
    if list.is_empty() {
        *list = VecDeque::new();
    } else if list.capacity() > 16 && list.capacity() > list.len() * 4 {
        list.shrink_to(list.len() * 2);
    }
}

/// Any bytes as a history of one connection, for `cargo fuzz` and for the
/// tests: never panics, keeps every bound, gives containerd whole frames only.
#[doc(hidden)]
pub fn fuzz_one(data: &[u8]) {
    let mut relay = Relay::new();
    let mut seen = Cutter::default();
    let mut rest = data;
    while let Some((&op, tail)) = rest.split_first() {
        let len = usize::from(op >> 3).min(tail.len());
        let (bytes, tail) = tail.split_at(len);
        rest = tail;
        match op & 7 {
            0 | 1 if relay.wants_containerd() => relay.from_containerd(bytes),
            2 | 3 if relay.wants_shim() => relay.from_shim(bytes),
            // Echo: a shim that answers what it was just given.
            4 => {
                let mut echo = relay.for_shim().to_vec();
                relay.shim_took(echo.len());
                if let Some(kind) = echo.get_mut(8) {
                    *kind = frame::RESPONSE;
                }
                relay.from_shim(&echo);
            }
            5 => relay.shim_took(len),
            6 => {
                let count = len.min(relay.for_containerd().len());
                let mut out = &relay.for_containerd()[..count];
                while let Some(piece) = seen.next(&mut out) {
                    assert!(matches!(piece, Piece::Frame(Header { kind, .. }, _)
                            if kind == frame::RESPONSE));
                }
                relay.containerd_took(count);
            }
            _ => relay.shim_died(len & 1 == 0),
        }
        assert!(relay.unanswered() <= KEPT_MAX + RESERVE);
        assert!(relay.cost <= KEPT_BYTES_MAX + URGENT_MAX);
        assert_eq!(
            relay.share.all,
            relay.held() + relay.cost - relay.kept_bytes
        );
        assert!(relay.sent <= relay.kept.len() && relay.unsent_bytes <= relay.kept_bytes);
    }
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;

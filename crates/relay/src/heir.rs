//! A relay that goes on in another process: what it leaves, and the one that begins with that.
//! Only between two frames of either side; whoever reads no more from containerd gets there.

use std::time::{Duration, Instant};

use crate::budget::Budget;
use crate::estate::{Conn, Fd, Pair, Request};
use crate::frame::Header;
use crate::switch::{Kept, Relay};

impl Relay {
    /// Whether no frame is under way from either side.
    pub fn is_between(&self) -> bool {
        self.requests.between() && self.answers.between()
    }

    /// What is under way, as connection `number` with its own descriptor; with `pair` as the
    /// shim that lives has it, without one for the next shim.
    pub fn leave(&self, now: Instant, number: u32, own: Fd, pair: Option<Fd>) -> Conn {
        let age = |came: Option<Instant>| came.map_or(0, |came| millis(now.duration_since(came)));
        let requests = self.kept.iter().map(|kept| Request {
            age_ms: age(kept.came),
            attempts: kept.attempts,
            proven: kept.proven,
            frame: kept.frame.clone(),
        });
        let short = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Conn {
            number,
            own,
            passed: self.passed.filter(|_| self.unsure),
            half: self.half_was.filter(|_| self.unsure),
            requests: requests.collect(),
            answers: self.queue.iter().cloned().collect(),
            left: short(self.queue_part),
            pair: pair.map(|fd| Pair {
                fd,
                sent: short(self.sent),
                part: short(self.sent_part),
                taken: self.taken,
            }),
        }
    }

    /// Goes on with what was left of a connection. What is not whole of it, or fits nothing, is
    /// left out: a client that waits for it has its own time-out.
    pub fn resume(budget: &Budget, peer: u32, left: Conn, now: Instant) -> Relay {
        let mut relay = Relay::within(budget, peer);
        // Whoever passes requests on as a reaper has none that it passed on and did not take, but
        // for those that the one before it had.
        relay.unsure = left.pair.is_none() || left.passed.is_some() || left.half.is_some();
        relay.passed = left.passed;
        relay.half_was = left.half;
        for request in left.requests {
            let whole = Header::read(&request.frame).filter(|header| header.fits(&request.frame));
            let Some(header) = whole else { continue };
            let age = Duration::from_millis(request.age_ms.into());
            relay.put(Kept {
                stream: header.stream,
                attempts: request.attempts,
                proven: request.proven,
                came: Some(now.checked_sub(age).unwrap_or(now)),
                frame: request.frame,
            });
        }
        let first = left.answers.first().map_or(0, |frame| frame.len());
        for answer in left.answers {
            let whole = Header::read(&answer).is_some_and(|header| header.fits(&answer));
            if whole {
                relay.enqueue(answer);
            }
        }
        let gone = usize::try_from(left.left).unwrap_or(0);
        if gone < first {
            relay.containerd_took(gone);
        }
        match left.pair {
            Some(Pair {
                sent, part, taken, ..
            }) => {
                relay.shim_has(
                    usize::try_from(sent).unwrap_or(0),
                    usize::try_from(part).unwrap_or(0),
                );
                relay.be_taken(taken);
            }
            None => relay.unserved = Some(now),
        }
        relay.account();
        relay
    }

    fn put(&mut self, kept: Kept) {
        self.cost += crate::switch::cost(&kept.frame);
        self.kept_bytes += kept.frame.len();
        self.unsent_bytes += kept.frame.len();
        self.kept.push_back(kept);
    }

    /// The shim has so many requests whole, and so many bytes of the next.
    fn shim_has(&mut self, sent: usize, part: usize) {
        for _ in 0..sent.min(self.kept.len()) {
            self.shim_took(self.for_shim().len());
        }
        if part < self.for_shim().len() {
            self.shim_took(part);
        }
    }
}

/// As many as fit.
pub fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "heir_tests.rs"]
mod tests;

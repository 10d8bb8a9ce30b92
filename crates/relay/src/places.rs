//! Who has a place, of all who connect. Nobody who has one is ever closed: a
//! containerd that came back takes that for a dead shim. A process that has many
//! leaves some to others. Who comes beyond that is a guest: what looks at the
//! container or gets rid of it is done, the rest is refused, and then a guest
//! makes room for the next. Pure: counts, times and verdicts.

use std::time::{Duration, Instant};

use crate::switch::Relay;

/// Most connections that have a place, however many files may be open.
const MOST: usize = 8192;
/// Fewest, however few.
const LEAST: usize = 64;
/// Files one connection holds in each of the pair, and its share of the rest.
const FILES: u64 = 3;
/// One part of so many is for processes that have few.
const OTHERS: usize = 8;
/// Few.
const FEW: usize = 16;
/// Most guests at a time.
const GUESTS_MAX: usize = 64;
/// A guest that has asked nothing for so long makes room too.
const SILENT: Duration = Duration::from_secs(10);

/// Most connections that have a place in a process that may open so many files.
pub fn most(open_files: u64) -> usize {
    let most = usize::try_from(open_files / FILES).unwrap_or(MOST);
    most.clamp(LEAST, MOST)
}

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places(usize);

impl Places {
    /// For a pair that may open so many files.
    pub(crate) fn within(open_files: u64) -> Places {
        Places(most(open_files))
    }

    /// Whether there is one for anybody when so many connections are there.
    fn plenty(self, connections: usize) -> bool {
        connections < self.0 - self.0 / OTHERS
    }

    /// Whether there is one beside so many that are taken, so many of them by the same process.
    fn free(self, taken: usize, same: usize) -> bool {
        self.plenty(taken) || taken < self.0 && same < FEW
    }

    /// Whether there is one for this process among so many connections, beside these.
    pub(crate) fn has_one<'r>(
        self,
        connections: usize,
        others: impl Iterator<Item = &'r Relay>,
        peer: u32,
    ) -> bool {
        if self.plenty(connections - 1) {
            return true;
        }
        let (mut taken, mut same) = (0, 0);
        for one in others.filter(|one| !one.is_guest()) {
            taken += 1;
            same += usize::from(one.peer() == peer);
        }
        self.free(taken, same)
    }

    /// Whether nobody can be let in, not even as a guest.
    pub(crate) fn full(self, connections: usize) -> bool {
        connections >= self.0 + GUESTS_MAX
    }
}

/// A connection without a place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest {
    since: Instant,
    /// It has asked something.
    pub(crate) asked: bool,
}

impl Guest {
    /// It came now.
    pub(crate) fn new(now: Instant) -> Guest {
        Guest {
            since: now,
            asked: false,
        }
    }

    /// Whether it makes room for another, now that nothing is under way for it: it has
    /// been told its answer, or has had time to ask or to listen.
    pub(crate) fn goes(self, now: Instant, told: bool) -> bool {
        let long = now.duration_since(self.since) >= SILENT;
        self.asked && told || long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_of_one_process_leave_places_to_others() {
        let places = Places::within(1024);
        let most = (0..1000).find(|taken| !places.free(*taken, *taken));
        let most = most.unwrap_or_default();
        assert_eq!(most, 341 - 42);
        assert!(places.plenty(most - 1) && !places.plenty(most));
        for taken in most..341 {
            assert!(places.free(taken, FEW - 1) && !places.free(taken, FEW));
        }
        assert!(!places.free(341, 0) && !places.full(341 + GUESTS_MAX - 1));
        assert!(places.full(341 + GUESTS_MAX));
    }

    #[test]
    fn there_are_as_many_as_files_allow_within_reason() {
        for (files, most) in [(0, 64), (20_000, 6666), (1 << 20, 8192), (u64::MAX, 8192)] {
            let places = Places::within(files);
            assert!(places.free(most - 1, 0) && !places.free(most, 0), "{files}");
        }
    }

    #[test]
    fn a_guest_goes_when_it_was_answered_or_stays_silent() {
        let now = Instant::now();
        let mut guest = Guest::new(now);
        assert!(!guest.goes(now, true) && guest.goes(now + SILENT, true));
        guest.asked = true;
        assert!(guest.goes(now, true) && !guest.goes(now, false));
    }
}

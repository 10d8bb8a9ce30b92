//! When a shim is replaced: how many deaths are too many, and when one that
//! lives is stuck. Pure: time comes in, nothing is waited for. Armed by a
//! request alone, so that an idle pair has no timer.

use std::time::{Duration, Instant};

/// Deaths in [`WINDOW`] after which no other shim is started: it would die too.
pub const DEATHS_MAX: usize = 5;
/// See [`DEATHS_MAX`].
pub const WINDOW: Duration = Duration::from_mins(1);
/// A request the shim has lived with for so long is not what kills it.
pub const PROVEN: Duration = Duration::from_secs(5);
/// Between two looks at whether the shim takes what it is sent.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that saw no progress, after which it is stuck.
const LOOKS: u32 = 2;

/// When shims died.
#[derive(Debug, Default)]
pub struct Deaths([Option<Instant>; DEATHS_MAX]);

impl Deaths {
    /// How many of them were in the last [`WINDOW`].
    pub fn recent(&self, now: Instant) -> u32 {
        let recent = self.0.iter().flatten();
        let recent = recent.filter(|at| now.duration_since(**at) <= WINDOW);
        u32::try_from(recent.count()).unwrap_or(u32::MAX)
    }

    /// Notes one more; `false` if they are too many.
    pub fn allow(&mut self, now: Instant) -> bool {
        self.0.rotate_left(1);
        self.0[DEATHS_MAX - 1] = Some(now);
        self.0[0].is_none_or(|first| now.duration_since(first) > WINDOW)
    }
}

/// Whether the shim takes what it is sent.
#[derive(Debug, Default)]
pub struct Watchdog {
    at: Option<Instant>,
    /// What had been done by the last look.
    progress: u64,
    idle_looks: u32,
}

impl Watchdog {
    /// When it is to look; `None`, which is the rule, if at nothing.
    pub fn next(&self) -> Option<Instant> {
        self.at
    }

    /// Something is with the shim that it has not taken. `progress` grows
    /// whenever the shim does anything.
    pub fn arm(&mut self, now: Instant, progress: u64) {
        if self.at.is_none() {
            *self = Watchdog {
                at: Some(now + LOOK),
                progress,
                idle_looks: 0,
            };
        }
    }

    /// One look; `unread`: something is still not taken. `true`: the shim has
    /// done nothing at all in several of them; it is stopped, in an endless
    /// loop or deadlocked. A slow one does something.
    pub fn look(&mut self, now: Instant, progress: u64, unread: bool) -> bool {
        if !unread {
            *self = Watchdog::default();
            return false;
        }
        if self.progress == progress {
            self.idle_looks += 1;
        } else {
            self.progress = progress;
            self.idle_looks = 0;
        }
        let stuck = self.idle_looks >= LOOKS;
        self.at = (!stuck).then_some(now + LOOK);
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_death_in_a_minute_is_the_last() {
        let begun = Instant::now();
        let at = |secs| begun + Duration::from_secs(secs);
        let mut deaths = Deaths::default();
        for second in [0, 10, 20, 30] {
            assert!(deaths.allow(at(second)));
        }
        assert!(!deaths.allow(at(40)));
        let mut deaths = Deaths::default();
        for second in [0, 10, 20, 30, 61, 80, 81] {
            assert!(deaths.allow(at(second)), "{second}");
        }
        assert!(!deaths.allow(at(82)));
    }

    #[test]
    fn only_one_that_does_nothing_is_stuck() {
        let now = Instant::now();
        let mut dog = Watchdog::default();
        assert_eq!(dog.next(), None);
        dog.arm(now, 7);
        dog.arm(now + LOOK / 2, 8);
        assert_eq!(dog.next(), Some(now + LOOK));
        // Slow, but alive.
        assert!(!dog.look(now + LOOK, 8, true));
        assert!(!dog.look(now + LOOK * 2, 8, true));
        assert!(!dog.look(now + LOOK * 3, 9, true));
        assert!(!dog.look(now + LOOK * 4, 9, true));
        assert!(dog.look(now + LOOK * 5, 9, true));
        assert_eq!(dog.next(), None);
        // Taken: nothing more to look at.
        dog.arm(now, 9);
        assert!(!dog.look(now + LOOK, 9, false));
        assert_eq!(dog.next(), None);
    }
}

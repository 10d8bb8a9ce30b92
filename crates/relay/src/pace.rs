//! How soon another shim is started after one has died. No number of deaths is
//! too many: those by the shim's own fault only grow the pause before the next,
//! those from outside not even that, but for a bound on what a loop of them
//! costs. Pure: time comes in.

use std::time::{Duration, Instant};

/// Deaths by own fault in a streak, after each of which another is started at once: a
/// request that kills three has been answered by then, and others are served.
pub const FREE: u32 = 4;
/// First and longest pause after them.
pub const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// See [`PAUSE_FIRST`].
pub const PAUSE_LONGEST: Duration = Duration::from_secs(30);
/// A streak is over when no shim has died by its own fault for so long.
pub const QUIET: Duration = Duration::from_mins(1);
/// Deaths from outside in a row after each of which another is started at once …
const BURST: u32 = 40;
/// … and the pause after more of them, and the time in which one is forgotten.
const BREATH: Duration = Duration::from_millis(250);

/// When shims died.
#[derive(Debug, Default)]
pub struct Pace {
    faults: u32,
    /// The streak is over then.
    until: Option<Instant>,
    blows: u32,
    blow_at: Option<Instant>,
}

impl Pace {
    /// Deaths by own fault in the streak that lasts.
    pub fn faults(&self, now: Instant) -> u32 {
        match self.until {
            Some(until) if now < until => self.faults,
            Some(_) | None => 0,
        }
    }

    /// One died by its own fault: the pause before the next.
    pub fn fault(&mut self, now: Instant) -> Duration {
        self.faults = self.faults(now).saturating_add(1);
        let beyond = self.faults.saturating_sub(FREE);
        let pause = match beyond.checked_sub(1) {
            None => Duration::ZERO,
            Some(doubled) => PAUSE_FIRST
                .saturating_mul(1 << doubled.min(8))
                .min(PAUSE_LONGEST),
        };
        self.until = Some(now + pause + QUIET);
        pause
    }

    /// One was killed from outside: the pause before the next.
    pub fn blow(&mut self, now: Instant) -> Duration {
        let passed = self.blow_at.map_or(QUIET, |at| now.duration_since(at));
        let forgotten = passed.as_millis() / BREATH.as_millis();
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        self.blows = self.blows.saturating_sub(forgotten) + 1;
        if forgotten > 0 || self.blow_at.is_none() {
            self.blow_at = Some(now);
        }
        if self.blows > BURST {
            self.blows = BURST;
            BREATH
        } else {
            Duration::ZERO
        }
    }

    /// Another program is tried: what the one before did is forgotten.
    pub fn forgive(&mut self) {
        *self = Pace::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_faults_grow_the_pause_and_quiet_ends_it() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        let mut pauses = Vec::new();
        for death in 1..=20 {
            let pause = pace.fault(now);
            pauses.push(pause.as_secs());
            now += pause + Duration::from_secs(10);
            assert_eq!(pace.faults(now), death, "it may take its time to begin");
        }
        assert_eq!(pauses[..10], [0, 0, 0, 0, 1, 2, 4, 8, 16, 30]);
        assert!(pauses[10..].iter().all(|pause| *pause == 30));
        now += QUIET;
        assert_eq!((pace.faults(now), pace.fault(now)), (0, Duration::ZERO));
        pace.fault(now);
        pace.forgive();
        assert_eq!(pace.faults(now), 0);
    }

    #[test]
    fn blows_from_outside_cost_nothing_unless_they_never_end() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        for _ in 0..BURST {
            assert_eq!(pace.blow(now), Duration::ZERO);
        }
        assert_eq!(pace.blow(now), BREATH);
        // One every half a second, for ever.
        now += Duration::from_secs(20);
        for _ in 0..1000 {
            now += Duration::from_millis(500);
            assert_eq!(pace.blow(now), Duration::ZERO);
        }
        // One the moment the shim lives, for ever.
        let mut waited = Duration::ZERO;
        for _ in 0..1000 {
            let pause = pace.blow(now);
            now += pause + Duration::from_millis(3);
            waited += pause;
        }
        assert!(waited > BREATH * 400, "{waited:?}");
        assert_eq!(pace.faults(now), 0);
    }
}

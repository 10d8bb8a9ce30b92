//! Whether and until when at the latest a reaper stays. Pure: time comes in.

use std::time::{Duration, Instant};

/// The end, once it is known that there is one.
#[derive(Debug, Default)]
pub struct Departure {
    told: bool,
    until: Option<Instant>,
}

impl Departure {
    /// No other shim is started, and everything ends in that time at the latest.
    pub fn within(&mut self, now: Instant, time: Duration) {
        let at = now + time;
        self.until = Some(self.until.map_or(at, |until| until.min(at)));
    }

    /// Whether the end is known: it was announced, or we were told to go.
    pub fn is_near(&self) -> bool {
        self.until.is_some()
    }

    /// We are told to go; `true` the first time.
    pub fn told(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }

    /// When nothing is waited for any longer.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_end_counts_and_who_is_told_twice_knows() {
        let now = Instant::now();
        let mut departure = Departure::default();
        assert!(!departure.is_near() && departure.told() && !departure.told());
        departure.within(now, Duration::from_secs(5));
        departure.within(now, Duration::from_secs(1));
        departure.within(now, Duration::from_secs(3));
        assert!(departure.is_near());
        assert_eq!(departure.until(), Some(now + Duration::from_secs(1)));
    }
}

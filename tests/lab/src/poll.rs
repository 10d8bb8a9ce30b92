//! Waiting with an end: a condition is polled until it holds or its time is up.
//!
//! Nothing in the tests sleeps for luck; whoever waits says for what and for how long,
//! and a wait that fails says both.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long whatever ends may take on a machine that is busy with other things. No test
/// judges speed: that is the bench's. A promise is judged by the order of events: the answer
/// came while what is in the way was still in the way, which lasts longer than this.
pub const GENEROUS: Duration = Duration::from_secs(20);

/// The same where the wait will be in vain.
const IN_VAIN: Duration = Duration::from_secs(5);

thread_local! {
    static GENEROSITY: Cell<Duration> = const { Cell::new(GENEROUS) };
}

/// The end of a wait that needs `seconds` on a quiet machine: that, or [`GENEROUS`].
#[must_use]
pub fn by(seconds: f64) -> Instant {
    Instant::now() + Duration::from_secs_f64(seconds).max(GENEROSITY.get())
}

/// Does what is known not to come to what it waits for: on this thread nobody waits long.
pub(crate) fn in_vain<T>(act: impl FnOnce() -> T) -> T {
    GENEROSITY.set(IN_VAIN);
    let done = act();
    GENEROSITY.set(GENEROUS);
    done
}

/// How long this thread waits.
pub(crate) fn generosity() -> Duration {
    GENEROSITY.get()
}

/// This thread waits as long as the one that has made it.
pub(crate) fn wait_as(other: Duration) {
    GENEROSITY.set(other);
}

/// The instant `seconds` from now, for a wait that is to be in vain.
#[must_use]
pub fn sharp(seconds: f64) -> Instant {
    Instant::now() + Duration::from_secs_f64(seconds)
}

/// What is left until `deadline`, never negative.
#[must_use]
pub fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Polls `condition` every few milliseconds until it gives a value.
///
/// Fails with `what` when `deadline` has passed; the condition is tried once more after
/// the deadline, so that a machine that stood still does not fail a test.
pub fn until<T>(
    what: &str,
    deadline: Instant,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let late = Instant::now() >= deadline;
        if let Some(value) = condition() {
            return Ok(value);
        }
        if late {
            bail!(
                "waited {:.1} s in vain: {what}",
                began.elapsed().as_secs_f64()
            );
        }
        std::thread::sleep(pause.min(left(deadline)));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

//! When a shim is replaced, by which program, and for what cause: after which
//! pause, when one that lives is stuck, when a new program does
//! not do and the one before it is taken again. Pure: time comes in, nothing is
//! waited for. Armed by a request alone, so that an idle pair has no timer.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::cause::{Cause, is_crash};
use crate::pace::{FREE, Pace};

/// A request the shim has lived with for so long is not what kills it.
pub const PROVEN: Duration = Duration::from_secs(5);
/// Between two looks at whether the shim takes what it is sent.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that saw no progress, after which it is stuck.
const LOOKS: u32 = 2;
/// From a signal that has stopped the shim to the look whether it goes on: it does nothing
/// until then, and a containerd that starts asks one shim after the other.
const LOOK_STOPPED: Duration = Duration::from_millis(50);

/// A shim that was asked to make room for another program has this long to
/// finish its turn.
pub const RETIRE: Duration = Duration::from_secs(1);
/// A successor has this long between two signs of life until it serves.
pub const READY: Duration = Duration::from_secs(10);
/// One of a new program has less, since requests wait for it and the program
/// before it would serve them: so long between two signs of life …
pub const TRIAL: Duration = Duration::from_secs(2);
/// … and so long in all.
pub const TRIAL_MAX: Duration = Duration::from_secs(5);
/// A shim of a new program that crashes within this time of serving is the
/// program's fault.
pub const PROBATION: Duration = Duration::from_mins(1);

/// First and longest pause before another try to start a shim.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// Nobody serves until another is started, which is to be then.
#[derive(Debug, Default)]
struct Retry {
    at: Option<Instant>,
    /// The pause before the last try, where a shim could not be started at all, for want of
    /// descriptors, memory or processes.
    pause: Option<Duration>,
    /// How the last one ended, or why there was none.
    why: String,
}

impl Retry {
    /// It could not be started. Never for the last time: what is wanting may come back.
    fn again(&mut self, now: Instant, words: &str) {
        let pause = self.pause.map_or(PAUSE_FIRST, |pause| pause * 2);
        let pause = pause.min(PAUSE_LONGEST);
        self.pause = Some(pause);
        self.wait(now + pause, words);
    }

    fn wait(&mut self, at: Instant, words: &str) {
        self.at = Some(at);
        words.clone_into(&mut self.why);
    }
}

/// How far the change to another program is.
#[derive(Debug, Clone, Copy)]
enum Trial {
    /// The shim of the old one finishes its turn, until then.
    Retiring(Instant),
    /// One of the new one has been started and must serve by then.
    Trying(Instant),
    /// It serves; if it crashes until then, it was a mistake.
    Proving(Instant),
}

/// Who comes after whom. `P` is whatever a shim is started from.
#[derive(Debug)]
pub struct Succession<P> {
    program: P,
    /// What was used before, or did not do.
    other: Option<P>,
    trial: Option<Trial>,
    pace: Pace,
    watchdog: Watchdog,
    /// Grows whenever the shim does anything.
    progress: u64,
    /// When a successor must have said that it serves, or something at least.
    ready_by: Option<Instant>,
    /// The shim is being ended because it did nothing.
    stuck: bool,
    /// The shim lived when it was ended, for whatever it did or did not do.
    ended: Cell<bool>,
    /// The shim is being ended because `delete` could not be told who it is.
    unnamed: bool,
    retry: Retry,
    /// Shims are started from another program than the reaper is of.
    differs: bool,
    /// The reaper is to become what its shims are, as soon as it can.
    renews: bool,
}

impl<P> Succession<P> {
    /// Before the first shim, which is started from `program`.
    pub fn new(program: P) -> Self {
        Self {
            program,
            other: None,
            trial: None,
            pace: Pace::default(),
            watchdog: Watchdog::default(),
            progress: 0,
            ready_by: None,
            stuck: false,
            ended: Cell::new(false),
            unnamed: false,
            retry: Retry::default(),
            differs: false,
            renews: false,
        }
    }

    /// What the next shim is started from.
    pub fn program(&self) -> &P {
        &self.program
    }

    /// Whether a change of program has begun and its outcome is not known.
    pub fn changes(&self) -> bool {
        matches!(self.trial, Some(Trial::Retiring(_) | Trial::Trying(_)))
    }

    /// The next shim is to be of another program, and is to come soon: the one
    /// that serves is asked to leave.
    pub fn change(&mut self, now: Instant, program: P) {
        self.other = Some(std::mem::replace(&mut self.program, program));
        self.differs = true;
        self.trial = Some(Trial::Retiring(now + RETIRE));
    }

    /// Whether the shim that has just ended like this died by its own fault, so that what was
    /// with it may be to blame. Not one that made room, or was killed from outside.
    pub fn own_fault(&self, status: i32) -> bool {
        let ended = self.stuck || self.ended.get();
        !self.changes() && !self.unnamed && (ended || is_crash(status))
    }

    /// What was used before this program, or did not do.
    pub fn before(&self) -> Option<&P> {
        self.other.as_ref()
    }

    /// Goes on in the program that shims are started from; the one `before` comes back if
    /// it does not do for so long.
    pub fn go_on(&mut self, now: Instant, before: Option<P>, proving: Duration) {
        self.other = before;
        if !proving.is_zero() {
            self.trial = Some(Trial::Proving(now + proving));
        }
    }

    /// How long a new program has still to prove that it does.
    pub fn proving(&self, now: Instant) -> Duration {
        match self.trial {
            Some(Trial::Proving(until)) => until.saturating_duration_since(now),
            Some(Trial::Retiring(_) | Trial::Trying(_)) | None => Duration::ZERO,
        }
    }

    /// Whether the reaper is to become the program that its shims are of.
    pub fn renews(&self) -> bool {
        self.renews
    }

    /// It could not, and does not try again.
    pub fn stays(&mut self) {
        self.renews = false;
    }

    /// The shim is dead, or could not be started (`status` is `None`); `words`
    /// say how. The cause of another's being started, now or, if this [waits], after
    /// a pause; `None` if it could not be started. Neither one that made room nor one
    /// of a program that does not do counts among those that died, and those that were
    /// killed from outside only if they never end.
    ///
    /// [waits]: Succession::waits
    pub fn died(&mut self, now: Instant, status: Option<i32>, words: &str) -> Option<Cause> {
        let status = status.filter(|_| !std::mem::take(&mut self.unnamed));
        let stuck = std::mem::take(&mut self.stuck);
        let ended = self.ended.take() || stuck;
        let serving = self.ready_by.take().is_none();
        self.watchdog = Watchdog::default();
        self.retry.at = None;
        let crashed = ended || status.is_none_or(is_crash);
        match self.trial {
            Some(Trial::Retiring(_)) => {
                self.trial = Some(Trial::Trying(now + TRIAL_MAX));
                self.pace.forgive();
                return Some(Cause::Upgrade);
            }
            Some(Trial::Trying(_)) => {
                self.fall_back();
                let words = if stuck {
                    "it did not serve in time"
                } else {
                    words
                };
                return Some(Cause::Refused(words.to_owned()));
            }
            Some(Trial::Proving(until)) if now < until && crashed => {
                self.fall_back();
                return Some(Cause::Refused(format!("it served and crashed: {words}")));
            }
            Some(Trial::Proving(_)) | None => {}
        }
        if !serving && crashed {
            // The journal may be one that only the other can read.
            self.fall_back();
        }
        let Some(status) = status else {
            // For want of something that may be had in a moment.
            self.retry.again(now, words);
            return None;
        };
        let pause = if crashed {
            self.pace.fault(now)
        } else {
            self.pace.blow(now)
        };
        if !pause.is_zero() {
            self.retry.wait(now + pause, words);
        }
        Some(match self.pace.faults(now) {
            times if crashed && times > FREE && stuck => Cause::Looping(times, "stuck".to_owned()),
            times if crashed && times > FREE => Cause::Looping(times, words.trim_end().to_owned()),
            _ if ended => Cause::Stuck,
            _ => Cause::of(status),
        })
    }

    fn fall_back(&mut self) {
        (self.trial, self.renews) = (None, false);
        if let Some(other) = &mut self.other {
            std::mem::swap(other, &mut self.program);
            self.differs = !self.differs;
        }
    }

    /// How many shims have died by their own fault in a row; at least 1, since what
    /// asks is one that takes over.
    pub fn recent(&self, now: Instant) -> u32 {
        self.pace.faults(now).max(1)
    }

    /// Whether so many have died by their own fault that the pauses grow.
    pub fn loops(&self, now: Instant) -> bool {
        self.pace.faults(now) > FREE
    }

    /// Nobody serves and nobody died: the reaper is new.
    pub fn inherits(&mut self, now: Instant) {
        self.pace.blow(now);
    }

    /// Whether the next shim is started later.
    pub fn waits(&self) -> bool {
        self.retry.at.is_some()
    }

    /// Whether it is to be started now.
    pub fn tries(&self, now: Instant) -> bool {
        self.retry.at.is_some_and(|at| at <= now)
    }

    /// Why nobody serves, for who waits for an answer.
    pub fn why(&self, now: Instant) -> String {
        let (faults, why) = (self.pace.faults(now), self.retry.why.trim_end());
        if self.retry.pause.is_some() {
            return format!("no shim can be started for this container ({why}); it is tried again");
        }
        if faults <= FREE {
            return "the shim of this container died and the next does not serve yet".to_owned();
        }
        format!(
            "the shim of this container crashes again and again ({faults} times, the last: {why}); \
             another is started after a pause, and `vigil upgrade` gives it another program"
        )
    }

    /// The shim that was started cannot be kept, since `delete` could not find it.
    pub fn unnamed(&mut self) {
        self.unnamed = true;
    }

    /// The shim is ended by its reaper; if it is not dying already, whatever its status will
    /// say, nobody else did it.
    pub fn ends(&self, lives: bool) {
        self.ended.set(self.ended.get() || lives);
    }

    /// A successor was started.
    pub fn started(&mut self, now: Instant) {
        (self.retry.at, self.retry.pause) = (None, None);
        self.ready_by = Some(now);
        self.alive(now);
    }

    /// The shim did something.
    pub fn alive(&mut self, now: Instant) {
        self.progress += 1;
        let by = match self.trial {
            Some(Trial::Trying(by)) => by.min(now + TRIAL),
            Some(Trial::Retiring(_) | Trial::Proving(_)) | None => now + READY,
        };
        self.ready_by = self.ready_by.map(|_| by);
    }

    /// The shim serves. `true`: a change of program has come to its good end.
    pub fn serves(&mut self, now: Instant) -> bool {
        self.ready_by = None;
        self.retry.why = String::new();
        let tried = matches!(self.trial, Some(Trial::Trying(_)));
        if tried {
            self.trial = Some(Trial::Proving(now + PROBATION));
        }
        self.renews = std::mem::take(&mut self.differs);
        tried
    }

    /// Whether a look at the shim is due already, so that it need not be asked for.
    pub fn watches(&self) -> bool {
        self.watchdog.at.is_some()
    }

    /// Something is with the shim that it has not taken.
    pub fn arm(&mut self, now: Instant) {
        self.watchdog.arm(now, self.progress);
    }

    /// A signal may have stopped the shim.
    pub fn stopped(&mut self, now: Instant, stopped: bool) {
        if stopped && !self.watchdog.stopped {
            self.watchdog = Watchdog {
                at: Some(now + LOOK_STOPPED),
                progress: self.progress,
                idle_looks: 0,
                stopped,
            };
        }
    }

    /// When to look; `None`, which is the rule, if at nothing.
    pub fn next(&self) -> Option<Instant> {
        let retired = match self.trial {
            Some(Trial::Retiring(by)) => Some(by),
            Some(Trial::Trying(_) | Trial::Proving(_)) | None => None,
        };
        let times = [self.watchdog.at, self.ready_by, retired, self.retry.at];
        times.into_iter().flatten().min()
    }

    /// The time has come; `unread`: something is still not taken. `true`: the
    /// shim has had its time, or does nothing, and is to be ended.
    pub fn look(&mut self, now: Instant, unread: bool, stopped: bool) -> bool {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(Trial::Retiring(by)) = &mut self.trial
            && *by <= now
        {
            // One that cannot even be killed is not ended in every turn.
            *by = now + RETIRE;
            return true;
        }
        let silent = due(self.ready_by);
        if silent {
            self.ready_by = Some(now + READY);
        }
        let dog = &mut self.watchdog;
        let stuck = due(dog.at) && dog.look(now, self.progress, unread, stopped);
        self.stuck |= silent || stuck;
        silent || stuck
    }
}

/// Whether the shim takes what it is sent.
#[derive(Debug, Default)]
struct Watchdog {
    at: Option<Instant>,
    /// What had been done by the last look.
    progress: u64,
    idle_looks: u32,
    /// It was stopped at the last look.
    stopped: bool,
}

impl Watchdog {
    /// Something is with the shim that it has not taken. `progress` grows
    /// whenever the shim does anything.
    fn arm(&mut self, now: Instant, progress: u64) {
        if self.at.is_none() {
            *self = Watchdog {
                at: Some(now + LOOK),
                progress,
                idle_looks: 0,
                stopped: false,
            };
        }
    }

    /// One look; `unread`: something is still not taken. `true`: the shim has
    /// done nothing at all in several of them, since it is in an endless loop or
    /// deadlocked; or in one, since it is stopped. A slow one does something.
    fn look(&mut self, now: Instant, progress: u64, unread: bool, stopped: bool) -> bool {
        if self.stopped && stopped {
            *self = Watchdog::default();
            return true;
        }
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
        self.stopped = false;
        let stuck = self.idle_looks >= LOOKS;
        self.at = (!stuck).then_some(now + LOOK);
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shortage is waited for without end, and never taken for the end.
    #[test]
    fn a_shim_that_cannot_be_started_is_tried_again_for_ever() {
        let begun = Instant::now();
        let mut line = Succession::new("old");
        let mut now = begun;
        let mut pauses = Vec::new();
        for _ in 0..100 {
            assert_eq!(line.died(now, None, "out of descriptors"), None);
            assert!(line.waits());
            let next = line.next().unwrap_or(now);
            assert!(!line.tries(now) && line.tries(next));
            pauses.push(next - now);
            now = next;
        }
        assert_eq!(pauses[..2], [PAUSE_FIRST, PAUSE_FIRST * 2]);
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_LONGEST));
        assert!(line.why(now).contains("out of descriptors"));
        line.started(now);
        assert!(!line.waits() && !line.tries(now + PAUSE_LONGEST));
        line.died(now, None, "once more");
        assert_eq!(line.next(), Some(now + PAUSE_FIRST), "begun anew");
    }

    /// Thirty kills in a minute, and a thousand, and each is followed at once; none of them
    /// counts when the shim crashes later.
    #[test]
    fn no_number_of_deaths_from_outside_is_too_many() {
        let mut line = Succession::new("only");
        for kill in 0..1000 {
            line.started(at(2 * kill));
            line.serves(at(2 * kill));
            let status = [9, 15, 2][usize::try_from(kill % 3).unwrap_or(0)];
            assert!(!line.own_fault(status));
            let cause = line.died(at(2 * kill + 1), Some(status), "killed");
            assert_eq!(cause, Some(Cause::of(status)));
            assert!(!line.waits(), "kill {kill}");
        }
        assert_eq!(line.recent(at(2000)), 1);
    }

    /// One that crashes again and again is started again and again, ever later, until another
    /// program is given to it, at once.
    #[test]
    fn own_faults_are_followed_after_growing_pauses() {
        let mut line = Succession::new("old");
        let (mut now, mut pauses) = (at(0), Vec::new());
        for death in 1..=12 {
            line.started(now);
            assert!(line.own_fault(11) && line.own_fault(1 << 8));
            let cause = line.died(now, SEGV, "killed by signal 11 ");
            let wanted = if death <= 4 {
                Cause::Died(11)
            } else {
                Cause::Looping(death, "killed by signal 11".to_owned())
            };
            assert_eq!(cause, Some(wanted));
            assert_eq!((line.waits(), line.loops(now)), (death > 4, death > 4));
            let next = line.next().unwrap_or(now);
            assert!(line.tries(next) || death <= 4);
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [0, 0, 0, 0, 1, 2, 4, 8, 16, 30, 30, 30]);
        let why = line.why(now);
        assert!(
            why.contains("12 times, the last: killed by signal 11)"),
            "{why}"
        );
        line.change(now, "new");
        assert_eq!(line.died(now, Some(0), ""), Some(Cause::Upgrade));
        assert!(!line.waits() && *line.program() == "new");
    }

    #[test]
    fn one_that_was_stuck_or_could_not_be_named_was_ended_by_us() {
        let mut line = Succession::new("old");
        line.serves(at(0));
        assert!(!line.own_fault(9) && line.own_fault(11));
        line.arm(at(1));
        while !line.look(line.next().unwrap_or_else(|| at(1)), true, false) {}
        assert!(line.own_fault(9), "it was stuck, and ended by us");
        line.change(at(100), "new");
        assert!(!line.own_fault(9), "it made room");
        let mut line = Succession::new("old");
        line.started(at(0));
        line.unnamed();
        assert!(!line.own_fault(9));
        assert_eq!(line.died(at(0), KILLED, "no space"), None);
        assert!(line.waits() && line.recent(at(0)) == 1);
    }

    #[test]
    fn one_that_is_stopped_is_stuck_unless_it_goes_on_at_once() {
        let now = Instant::now();
        let at = now + LOOK_STOPPED;
        let mut line = Succession::new("only");
        line.serves(now);
        // Nothing is asked of it; and then something is.
        line.stopped(now, true);
        assert_eq!(line.next(), Some(at));
        assert!(line.look(at, false, true));
        assert_eq!(line.next(), None);
        line.arm(now);
        line.stopped(now, true);
        assert!(!line.look(at, true, false), "goes on");
        assert_eq!(line.next(), Some(at + LOOK));
        line.stopped(now, true);
        assert!(!line.look(at, false, false), "goes on");
        assert_eq!(line.next(), None);
    }

    #[test]
    fn only_one_that_does_nothing_is_stuck() {
        let now = Instant::now();
        let mut dog = Watchdog::default();
        assert_eq!(dog.at, None);
        dog.arm(now, 7);
        dog.arm(now + LOOK / 2, 8);
        assert_eq!(dog.at, Some(now + LOOK));
        // Slow, but alive.
        assert!(!dog.look(now + LOOK, 8, true, false));
        assert!(!dog.look(now + LOOK * 2, 8, true, false));
        assert!(!dog.look(now + LOOK * 3, 9, true, false));
        assert!(!dog.look(now + LOOK * 4, 9, true, false));
        assert!(dog.look(now + LOOK * 5, 9, true, false));
        assert_eq!(dog.at, None);
        // Taken: nothing more to look at.
        dog.arm(now, 9);
        assert!(!dog.look(now + LOOK, 9, false, false));
        assert_eq!(dog.at, None);
    }

    /// One that lets go of its reaper and lives on is ended by SIGKILL, which is not from outside.
    #[test]
    fn whom_the_reaper_ends_died_by_its_own_fault() {
        let mut line = Succession::new("only");
        for death in 1..=5 {
            line.started(at(death));
            line.ends(true);
            line.ends(false);
            assert!(line.own_fault(9));
            let cause = line.died(at(death), KILLED, "killed by signal 9 no journal");
            let looping = Cause::Looping(5, "killed by signal 9 no journal".to_owned());
            let wanted = if death < 5 { Cause::Stuck } else { looping };
            assert_eq!(cause, Some(wanted));
        }
        assert!(line.waits());
        line.started(at(10));
        line.ends(false);
        assert!(!line.own_fault(9), "forgotten with it");
    }

    const KILLED: Option<i32> = Some(9);
    const SEGV: Option<i32> = Some(11);
    const FAILED: Option<i32> = Some(1 << 8);

    fn at(secs: u64) -> Instant {
        static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *BEGUN.get_or_init(Instant::now) + Duration::from_secs(secs)
    }

    /// One of "old" that serves, asked to make room for "new" at second 100.
    fn changing() -> Succession<&'static str> {
        let mut line = Succession::new("old");
        line.serves(at(0));
        line.change(at(100), "new");
        assert!(line.changes());
        line
    }

    #[test]
    fn a_new_program_takes_over_and_is_used_from_then_on() {
        let mut line = changing();
        assert_eq!(line.next(), Some(at(100) + RETIRE));
        assert!(!line.look(at(100), false, false));
        assert_eq!(line.died(at(100), Some(0), ""), Some(Cause::Upgrade));
        assert_eq!(*line.program(), "new");
        line.started(at(100));
        assert!(line.changes());
        assert!(line.serves(at(101)));
        assert!(!line.changes() && line.next().is_none());
        // Killed, by whomever: not its fault.
        assert_eq!(line.died(at(102), KILLED, ""), Some(Cause::Died(9)));
        assert_eq!(*line.program(), "new");
        line.started(at(102));
        assert!(!line.serves(at(103)), "told once");
        assert_eq!(line.died(at(200), SEGV, ""), Some(Cause::Died(11)));
        assert_eq!(*line.program(), "new", "long proven");
    }

    #[test]
    fn a_program_that_does_not_serve_is_not_used() {
        for status in [FAILED, KILLED, None] {
            let mut line = changing();
            assert!(line.died(at(100), Some(0), "").is_some());
            line.started(at(100));
            let refused = line.died(at(101), status, "no");
            assert_eq!(refused, Some(Cause::Refused("no".to_owned())));
            assert_eq!(*line.program(), "old");
            assert!(!line.changes());
        }
        let mut line = changing();
        line.died(at(100), Some(0), "");
        line.started(at(100));
        line.serves(at(101));
        let Some(Cause::Refused(words)) = line.died(at(102), SEGV, "killed by signal 11") else {
            panic!("it crashed at once and is used");
        };
        assert!(words.contains("served and crashed: killed by signal 11"));
        assert_eq!(*line.program(), "old");
    }

    #[test]
    fn neither_changes_nor_refusals_are_deaths() {
        let mut line = changing();
        for second in 100..120 {
            assert_eq!(line.died(at(second), Some(0), ""), Some(Cause::Upgrade));
            line.started(at(second));
            assert!(matches!(
                line.died(at(second), FAILED, ""),
                Some(Cause::Refused(_))
            ));
            line.started(at(second));
            line.serves(at(second));
            line.change(at(second), "new");
        }
        line.trial = None;
        for second in [130, 131, 132, 133] {
            assert_eq!(line.died(at(second), SEGV, ""), Some(Cause::Died(11)));
            assert!(!line.waits());
        }
        line.died(at(134), SEGV, "");
        assert!(line.waits());
    }

    #[test]
    fn a_stuck_shim_makes_room_in_time_and_a_silent_new_one_too() {
        let mut line = changing();
        assert!(line.look(at(101), true, false), "killed");
        assert!(!line.look(at(101), true, false), "once");
        assert_eq!(line.died(at(101), KILLED, ""), Some(Cause::Upgrade));
        line.started(at(101));
        assert_eq!(line.next(), Some(at(101) + TRIAL));
        // It shows signs of life for ever, and never serves.
        for tenth in 1..=50 {
            line.alive(at(101) + Duration::from_millis(100 * tenth));
        }
        assert_eq!(line.next(), Some(at(101) + TRIAL_MAX));
        assert!(line.look(at(106), false, false));
        let refused = line.died(at(106), KILLED, "killed by signal 9");
        let words = "it did not serve in time".to_owned();
        assert_eq!(refused, Some(Cause::Refused(words)));
    }

    #[test]
    fn without_a_change_a_silent_successor_has_longer_and_counts() {
        let mut line = Succession::new("only");
        line.serves(at(0));
        for round in 0..5 {
            let begun = 10 * (round + 1);
            line.started(at(begun));
            assert_eq!(line.next(), Some(at(begun) + READY));
            assert!(line.look(at(begun) + READY, false, false));
            let cause = line.died(at(begun) + READY, KILLED, "");
            let looping = Cause::Looping(5, "stuck".to_owned());
            let wanted = if round < 4 { Cause::Stuck } else { looping };
            assert_eq!(cause, Some(wanted), "{round}");
        }
        assert_eq!(*line.program(), "only");
    }

    #[test]
    fn one_that_cannot_begin_gives_way_to_the_other() {
        let mut line = changing();
        line.died(at(100), Some(0), "");
        line.started(at(100));
        line.serves(at(100));
        // Long afterwards its successor cannot: it may be the journal.
        assert!(line.died(at(500), KILLED, "").is_some());
        line.started(at(500));
        assert_eq!(line.died(at(500), FAILED, ""), Some(Cause::Died(1 << 8)));
        assert_eq!(*line.program(), "old");
    }
}

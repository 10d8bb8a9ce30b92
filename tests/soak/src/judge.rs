//! Judges what was said of a container against what was asked and what the kernel knows.
//! Pure: every rule of the soak is here, and has a test that breaks it.

use vigil_lab::{CallError, Code};

/// What kind of promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// A container that should run does not, or cannot be asked any more.
    Lost,
    /// An exit was not told, or untruly.
    Exit,
    /// Something was done or said twice.
    Doubled,
    /// Output is missing or wrong.
    Output,
    /// Something is left behind.
    Residue,
    /// Anything else.
    Other,
}

/// What a client has asked for and been told, at one moment of a life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Create was sent.
    pub create: bool,
    /// Create was answered.
    pub created: bool,
    /// Start was sent.
    pub start: bool,
    /// Start was answered.
    pub started: bool,
    /// A Pause was sent, ever.
    pub pause: bool,
    /// The last of Pause and Resume was a Pause, and was answered.
    pub paused: bool,
    /// Init may have ended: it does so by itself, or a signal was sent.
    pub may_end: bool,
    /// Somebody was told that it has.
    pub told: bool,
    /// The kernel says, for more than a second, that it is dead.
    pub long_dead: bool,
    /// Delete was sent.
    pub delete: bool,
    /// Delete was answered.
    pub deleted: bool,
    /// Shutdown was sent.
    pub shutdown: bool,
}

/// Task statuses of the wire.
const CREATED: i32 = 1;
const RUNNING: i32 = 2;
const STOPPED: i32 = 3;
const PAUSED: i32 = 4;
const PAUSING: i32 = 5;

/// Why `status`, asked for at `before` and answered at `after`, cannot be; `None` if it can.
#[must_use]
pub fn impossible(status: i32, before: &Asked, after: &Asked) -> Option<&'static str> {
    if before.deleted {
        return Some("it was deleted");
    }
    if before.told && status != STOPPED {
        return Some("its exit was told before");
    }
    if before.long_dead && status != STOPPED {
        return Some("init is dead for more than a second");
    }
    match status {
        CREATED if !after.create => Some("Create was not sent"),
        CREATED if before.started => Some("it was started"),
        RUNNING if !after.start => Some("Start was not sent"),
        RUNNING if before.paused && after.paused && !after.may_end => Some("it is paused"),
        STOPPED if !after.may_end => Some("nothing has ended it"),
        PAUSED | PAUSING if !after.pause => Some("Pause was not sent"),
        CREATED | RUNNING | STOPPED | PAUSED | PAUSING => None,
        _ => Some("no such status"),
    }
}

/// The same of an error instead of a status.
#[must_use]
pub fn impossible_error(
    error: &CallError,
    before: &Asked,
    after: &Asked,
    struck: bool,
) -> Option<&'static str> {
    match error {
        _ if struck => None,
        CallError::Deadline => Some("State must never block"),
        _ if after.shutdown => None,
        CallError::Closed => Some("nobody had killed the pair"),
        error if error.is(Code::NotFound) => {
            (before.created && !after.delete).then_some("it was created and not deleted")
        }
        CallError::Status { .. } | CallError::Encoding(_) => Some("no reason for this error"),
    }
}

/// What is known of init's end when `delete` has spoken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    /// A witness saw it die: the kernel's status.
    pub truth: Option<u32>,
    /// It was reaped, and therefore recorded, before the first blow.
    pub recorded: bool,
    /// It lived when `delete` began, and no signal of a client was on its way.
    pub for_delete: bool,
    /// What it exits with if it ends by itself.
    pub code: u32,
    /// Start was sent.
    pub start: bool,
}

/// What the wire says of a status nobody saw.
pub const UNKNOWN: u32 = 255;

/// Why `delete` (or an answer, or an event) must not say `status`; `None` if it may.
#[must_use]
pub fn wrong_status(status: u32, known: &Known) -> Option<String> {
    if status == UNKNOWN {
        if known.recorded {
            return Some("unknown, though init was reaped before the pair was killed".into());
        }
        if known.for_delete && known.truth == Some(137) {
            return Some("unknown, though `delete` itself has killed init".into());
        }
        return None;
    }
    match known.truth {
        Some(truth) => (status != truth).then(|| format!("the kernel says {truth}")),
        None if status == 137 || known.start && status == known.code => None,
        // runc's own init gives up like this when its runc dies: by itself, or by SIGHUP
        // when that held its terminal.
        None if !known.start && matches!(status, 1 | 2 | 129) => None,
        None => Some(format!("neither 137 nor its own {}", known.code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Asked {
        Asked {
            create: true,
            created: true,
            start: true,
            started: true,
            ..Asked::default()
        }
    }

    #[test]
    fn states_that_cannot_be() {
        let at = |change: fn(&mut Asked)| {
            let mut asked = running();
            change(&mut asked);
            asked
        };
        let plain = running();
        for (status, before, after) in [
            (CREATED, plain, plain),
            (STOPPED, plain, plain),
            (PAUSED, plain, plain),
            (RUNNING, at(|a| a.told = true), at(|a| a.told = true)),
            (RUNNING, at(|a| a.long_dead = true), plain),
            (RUNNING, at(|a| a.paused = true), at(|a| a.paused = true)),
            (STOPPED, at(|a| a.deleted = true), at(|a| a.deleted = true)),
            (CREATED, Asked::default(), Asked::default()),
            (0, plain, plain),
        ] {
            assert!(impossible(status, &before, &after).is_some(), "{status}");
        }
        let ending = at(|a| a.may_end = true);
        for (status, before, after) in [
            (RUNNING, plain, plain),
            (RUNNING, plain, ending),
            (STOPPED, plain, ending),
            (PAUSED, plain, at(|a| a.pause = true)),
            (RUNNING, at(|a| a.paused = true), plain),
        ] {
            assert_eq!(impossible(status, &before, &after), None, "{status}");
        }
    }

    #[test]
    fn errors_that_cannot_be() {
        let missing = CallError::Status {
            code: 5,
            message: String::new(),
        };
        let before = Asked::default();
        let all = running();
        assert!(impossible_error(&missing, &all, &all, false).is_some());
        assert_eq!(impossible_error(&missing, &before, &all, false), None);
        assert!(impossible_error(&CallError::Closed, &all, &all, false).is_some());
        assert_eq!(impossible_error(&CallError::Closed, &all, &all, true), None);
        assert!(impossible_error(&CallError::Deadline, &all, &all, false).is_some());
    }

    #[test]
    fn statuses_that_are_wrong() {
        let known = Known {
            truth: Some(7),
            code: 7,
            start: true,
            ..Known::default()
        };
        assert_eq!(wrong_status(7, &known), None);
        assert_eq!(wrong_status(255, &known), None);
        for wrong in [0, 137, 8] {
            assert!(wrong_status(wrong, &known).is_some(), "{wrong}");
        }
        let recorded = Known {
            recorded: true,
            ..known
        };
        assert!(wrong_status(255, &recorded).is_some());
        let killed = Known {
            truth: Some(137),
            for_delete: true,
            ..known
        };
        assert!(wrong_status(255, &killed).is_some());
        assert_eq!(wrong_status(137, &killed), None);
        let unseen = Known {
            truth: None,
            ..known
        };
        assert_eq!(wrong_status(7, &unseen), None);
        assert!(wrong_status(0, &unseen).is_some());
        let unstarted = Known {
            start: false,
            ..unseen
        };
        assert!(wrong_status(7, &unstarted).is_some());
        assert_eq!(wrong_status(137, &unstarted), None);
    }
}

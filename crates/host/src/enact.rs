//! The hands: carries out a plan of `reconcile`, each action by itself, each
//! with its share of one deadline. Decides nothing, and claims nothing it did
//! not see: after a kill it looks whether the process is gone, after a removal
//! whether the thing is. What will not go is named in the report.

mod ended;
mod hooks;
mod keepsakes;
mod report;
mod runtime;
#[cfg(test)]
mod tests;
mod work;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use vigil_model::{Because, Exit, Moment, Status};
use vigil_reconcile::{Goal, Said, Verdict, plan, row};

pub use ended::Ended;
pub(crate) use keepsakes::put_off;
pub use keepsakes::{AtWork, CrashNote, FORMAT, Life, Line, RUN, Stuck, Tombstone};
pub use report::{Left, Report, Source};

use crate::cgroup::Hierarchies;
use crate::observe::{Observed, Subject, observe, observe_with};
use work::Work;

/// Observes, decides and carries out, until nothing of the container is left
/// or the deadline is near: the whole of `delete` and of a repair. The caller
/// holds the container's lock. Blocks, at most a little beyond the deadline.
pub fn reconcile_to_gone(subject: &Subject, deadline: Instant) -> Report {
    reconcile(
        subject,
        observe(subject),
        Goal::Gone,
        Path::new(RUN),
        deadline,
    )
}

/// The same for any goal, with the hierarchies and the place for keepsakes
/// given.
pub fn reconcile_with(
    subject: &Subject,
    hierarchies: &Hierarchies,
    goal: Goal,
    run: &Path,
    deadline: Instant,
) -> Report {
    let seen = observe_with(subject, Some(hierarchies));
    reconcile(subject, seen, goal, run, deadline)
}

/// Decides on what was seen and carries it out.
pub fn reconcile(
    subject: &Subject,
    seen: Observed,
    goal: Goal,
    run: &Path,
    deadline: Instant,
) -> Report {
    let row = row(&seen.facts);
    let verdict = row.map_or(Verdict::Impossible, |row| row.verdict);
    let mut work = Work {
        subject,
        deadline,
        run,
        killed_alive: false,
        hooks: runtime::Hooks::NotOwed,
        report: Report {
            verdict,
            row: row.map_or("no row", |row| row.name),
            facts: seen.facts,
            exit: nobody(verdict, seen.facts.said),
            source: Source::Nobody,
            pid: seen
                .init
                .as_ref()
                .map(|init| init.pid)
                .or(subject.pid)
                .unwrap_or(0),
            done: Vec::new(),
            left: subject.left.clone(),
            notes: seen.notes.clone(),
        },
        seen,
    };
    let actions = plan(verdict, &work.seen.facts, goal);
    if subject.announces && actions.iter().any(|action| action.acts()) {
        work.announce();
    }
    for action in actions {
        if work.carry_out(action) {
            work.report.done.push(action);
        }
    }
    // Also when nothing was planned: what is recorded is true in any case.
    work.answer_exit();
    if work.report.pid == 0 {
        work.report.pid = work.seen.pid_file.filter(|pid| is_free(*pid)).unwrap_or(0);
    }
    work.report
}

/// Whether nobody lives by this number: the file it is from may be an older one's.
fn is_free(pid: u32) -> bool {
    crate::proc::stat(pid).is_ok_and(|stat| stat.is_none_or(|stat| stat.ended()))
}

/// What can be said of an end that nobody saw.
fn nobody(verdict: Verdict, said: Said) -> Exit {
    let because = match verdict {
        Verdict::OtherBoot => Because::OtherBoot,
        Verdict::HalfCreated | Verdict::NeverRan => Because::NeverRan,
        Verdict::DiedUnseen | Verdict::StillRunning | Verdict::Stragglers => match said {
            Said::Live | Said::Ended => Because::ReaperGone,
            Said::Unreadable | Said::Nothing | Said::Creating | Said::HalfMade | Said::Gone => {
                Because::NoRecord
            }
        },
        Verdict::Leftovers | Verdict::NothingLeft => match said {
            Said::Nothing => Because::NeverRan,
            Said::Unreadable
            | Said::Creating
            | Said::HalfMade
            | Said::Live
            | Said::Ended
            | Said::Gone => Because::NoRecord,
        },
        Verdict::ExitNotTold | Verdict::NotOurs | Verdict::Unclear | Verdict::Impossible => {
            Because::NoRecord
        }
    };
    Exit {
        status: Status::Unknown(because),
        at: now(),
    }
}

/// The wall clock, for display and for the wire.
pub fn now() -> Moment {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Moment {
        secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

/// A raw wait status as the model has it; `None` for one that ends nothing
/// (stopped, continued).
pub fn status_of(raw: i32) -> Option<Status> {
    let status = ExitStatus::from_raw(raw);
    let byte = |n: i32| u8::try_from(n).ok();
    status
        .code()
        .and_then(byte)
        .map(Status::Exited)
        .or_else(|| status.signal().and_then(byte).map(Status::Signalled))
}

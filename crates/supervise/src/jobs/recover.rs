//! The one recovery path from inside the shim: observe, decide, enact, as
//! `delete` and the operator's tool do it. It waits, kills and unmounts, so it
//! runs in a worker with a deadline; the shim only hears how it went. Used to
//! undo a Create, to finish a Delete that the runtime did not finish, to clear
//! what an earlier life left in the way, and to end what outlives its init.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vigil_host::enact::{self, Left, RUN, Tombstone};
use vigil_host::observe::{Below, Subject, observe};
use vigil_host::proc;
use vigil_host::worker::{Notes, Outcome, Worker};
use vigil_model::{Incarnation, Plan};
use vigil_reconcile::{Goal, Said};

use super::{Tools, gone, resume, runtime};

/// What the worker gets beyond the deadline it works to.
const BEYOND: Duration = Duration::from_millis(300);

/// How a recovery came out.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Nothing of the container is left, by a second look.
    pub(crate) whole: bool,
    /// Init lives on, in words.
    pub(crate) lives: Option<String>,
}

/// The container of this plan, as a recovery sees it; `said` is what is true
/// of it and not yet, or never, in the journal.
pub(crate) fn subject(tools: &Tools, plan: &Plan, said: Said) -> Subject {
    let place = &tools.place;
    let mut subject = Subject::unrecorded(
        place.id.clone(),
        place.namespace.clone(),
        place.bundle.clone(),
        Path::new(""),
    );
    subject.runtime = runtime(plan);
    subject.systemd_cgroup = Some(subject.runtime.systemd_cgroup);
    subject.said = said;
    // Unread, it is not known, and so it is to the rules.
    subject.boot = proc::boot_id().ok();
    subject.claims.clone_from(&plan.claims);
    subject.private_pid_ns = Some(plan.private_pid_ns);
    subject
}

/// Brings the container to the goal, as far as the time allows.
pub(crate) async fn recover(
    tools: &Tools,
    plan: &Plan,
    subject: Subject,
    goal: Goal,
    wait: Duration,
) -> Recovered {
    let begun = Instant::now();
    let words = ["delete", tools.place.id.as_str()];
    resume::calls_over(tools, plan, &words, wait / 2).await;
    let wait = wait.saturating_sub(begun.elapsed());
    let pair = (tools.place.reaper, std::process::id());
    let loggers = tools.loggers.running();
    let stone = Tombstone::of(&subject, Vec::new());
    // It kills what descends from the reaper and not from its own shim: the next shim
    // would be among that.
    let worker = Worker::start_bound("recover", move |notes| {
        let mut subject = subject;
        subject.below = below(pair, loggers);
        work(&subject, goal, Instant::now() + wait, notes)
    });
    let worker = match worker {
        Ok(worker) => worker,
        Err(error) => {
            // Out of processes or descriptors: nothing can be forked, and
            // what is left waits for who comes after us.
            let why = vigil_host::chain(&error);
            log::error!("no recovery: {why}");
            if goal == Goal::Gone {
                entomb(stone, why);
            }
            return Recovered {
                whole: false,
                lives: None,
            };
        }
    };
    let (outcome, said, told) = gone::worked_telling(worker, wait + BEYOND).await;
    for line in said {
        log::info!("recovery: {line}");
    }
    let mut left = Vec::new();
    let mut lives = None;
    for told in told {
        match told {
            Told::Left(what) => left.push(what),
            Told::Lives(who) => lives = Some(who),
        }
    }
    let whole = match outcome {
        Outcome::Done => true,
        Outcome::Failed(why) => {
            if left.is_empty() {
                left.push(why);
            }
            false
        }
        Outcome::Overdue {
            pid,
            doing,
            left: stuck,
        } => {
            let stuck = if stuck {
                ", sleeps uninterruptibly"
            } else {
                ""
            };
            let why = format!("worker {pid}{stuck}: {doing}");
            if goal == Goal::Gone {
                entomb(stone, why.clone());
            }
            left.push(why);
            false
        }
    };
    for what in &left {
        log::warn!("left over: {what}");
    }
    Recovered { whole, lives }
}

/// The worker could not: what is left is named without it.
fn entomb(mut stone: Tombstone, why: String) {
    stone.left.push(why);
    if let Err(error) = stone.write(Path::new(RUN)) {
        log::error!("no tombstone: {}", vigil_host::chain(&error));
    }
}

/// What the worker tells the shim.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    /// Something is left; what.
    Left(String),
    /// Init lives on; in which words.
    Lives(String),
}

/// The container's processes by descent: what hangs below the reaper and was
/// not started by the shim, or one before it. The shim's own children (a call of
/// the runtime, workers) end by their own deadlines; a logger, whoever started
/// it, when it has written the last words.
fn below((reaper, shim): (u32, u32), loggers: Vec<Incarnation>) -> Option<Below> {
    let reaper = proc::incarnation(reaper).ok().flatten()?;
    let mut spare = proc::descendants(shim).ok()?;
    spare.push(shim);
    Some(Below {
        reaper,
        spare,
        loggers,
    })
}

/// Runs in the worker.
fn work(subject: &Subject, goal: Goal, deadline: Instant, notes: &Notes) -> Result<(), String> {
    notes.doing("look at the container");
    let seen = observe(subject);
    notes.doing("bring the container to nothing");
    let report = enact::reconcile(subject, seen, goal, Path::new(RUN), deadline);
    notes.say(&format!("{}: {:?}", report.row, report.done));
    for note in &report.notes {
        notes.say(note);
    }
    for left in &report.left {
        notes.tell(&Told::Left(left.to_string()));
        if let Left::Process { init: true, .. } = left {
            notes.tell(&Told::Lives(left.to_string()));
        }
    }
    let gone = |left: &Left| matches!(left, Left::Detached(_));
    let again = observe(subject).facts;
    if report.left.iter().all(gone) && !again.residue() {
        return Ok(());
    }
    Err(format!(
        "{}: something is left of the container",
        report.row
    ))
}

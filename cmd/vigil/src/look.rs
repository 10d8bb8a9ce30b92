//! One task, looked at from every side: recorded, observed, published,
//! believed, judged. Reads only. Beside a living pair a fact may be old by the
//! time the next is seen; a look that finds something wrong is taken twice.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vigil_host::cgroup::Freeze;
use vigil_host::observe::{Observed, Subject, observe};
use vigil_host::{chain, proc};
use vigil_journal::names;
use vigil_journal::takeovers::Takeovers;
use vigil_model::{KIND_RECORD, Phase, Published, Record, Task, TaskEvent, Who};
use vigil_reconcile::{Init, Row, Said, Verdict, row};
use vigil_relay::cause::Cause;
use vigil_relay::pace;
use vigil_sys::{listen, signal};

use crate::ask::Belief;
use crate::holders;
use crate::judge::{Case, Judgement, is_bare, is_history, judge};
use crate::pair::{self, Life};
use crate::place::{self, Found};
use crate::recorded::Recorded;

/// containerd's own socket, in its state directory.
const SOCKET: &str = "containerd.sock";

/// Between two looks at a task that does not add up.
const SETTLE: Duration = Duration::from_millis(100);

/// For containerd to remove a bundle after its `delete`, or to ask once it has been started.
const ABOUT_TO_GO: Duration = Duration::from_secs(10);

/// For seeing whether containerd listens.
const CONNECT: Duration = Duration::from_millis(100);

/// What is known of a task.
#[derive(Debug)]
pub struct Look {
    /// Which.
    pub found: Found,
    /// Whether any file of Vigil's is in its bundle.
    pub ours: bool,
    /// What is on record.
    pub recorded: Recorded,
    /// The record, as the reconciler takes it.
    pub subject: Subject,
    /// What is on the host.
    pub seen: Observed,
    /// Its pair.
    pub pair: pair::Seen,
    /// The freezer; `None`: no cgroup, no freezer, or not to be read.
    pub frozen: Option<Freeze>,
    /// What containerd was told.
    pub published: Option<Telling>,
    /// What containerd says.
    pub belief: Belief,
    /// The reconciler's row.
    pub row: Option<&'static Row>,
    /// What there was to judge by.
    pub case: Case,
    /// What is true.
    pub judgement: Judgement,
    /// Where the container's bundle is, if this is only a copy of it.
    pub copy_of: Option<PathBuf>,
    /// Nothing of it is left but the bundle, which a containerd that runs does not remove.
    pub forgotten: bool,
    /// Everything that was noticed on the way.
    pub notes: Vec<String>,
}

/// What the journal says of the events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// Events so far.
    pub events: u64,
    /// Those containerd has not taken.
    pub waiting: usize,
    /// Those dropped.
    pub dropped: u64,
    /// The last one it has taken, if the journal still has it.
    pub last: Option<Published>,
}

impl Look {
    /// Looks, and looks again if what was seen does not add up: between two
    /// readings a living task may have moved on.
    pub fn at(found: &Found, runc_root: &Path, belief: &Belief) -> Self {
        let mut look = Self::once(found, runc_root, belief);
        if look.wrong().is_some() && matches!(look.pair.life, Life::Alive | Life::Ending) {
            std::thread::sleep(SETTLE);
            look = Self::once(found, runc_root, belief);
        }
        if look.pair.life == Life::Ending {
            let at_work = look.at_work();
            look.notes.push(at_work);
        }
        look
    }

    /// Who is at what a dead pair left, and what it waits for.
    pub fn at_work(&self) -> String {
        let list = |all: Vec<String>| all.join(" and ");
        let holders = holders::of(&self.found.bundle.join(names::LOCK));
        let who = match list(holders.iter().map(ToString::to_string).collect()) {
            who if who.is_empty() => "a process that cannot be seen".to_owned(),
            who => who,
        };
        let group = self.seen.cgroup.as_ref();
        let mut alive = group.map_or_else(Vec::new, |group| group.holdouts().unwrap_or_default());
        if let (Some(init), Init::Alive) = (&self.seen.init, self.seen.facts.init)
            && alive.iter().all(|holdout| holdout.pid != init.pid)
        {
            alive.extend(proc::holdout(init.pid).ok().flatten());
        }
        match list(alive.iter().map(ToString::to_string).collect()) {
            none if none.is_empty() => format!("{who} is at work on it"),
            alive => format!("{who} is at work on it, and waits for {alive}"),
        }
    }

    /// Looks.
    pub fn once(found: &Found, runc_root: &Path, belief: &Belief) -> Self {
        let recorded = Recorded::read(&found.bundle, &found.owner());
        let mut notes = recorded.notes.clone();
        let pair = pair::look(found, recorded.pair.as_ref(), &mut notes);
        let home = found.moved_from.as_ref();
        let mut subject = Subject::unrecorded(
            found.id.clone(),
            found.namespace.clone(),
            home.unwrap_or(&found.bundle).clone(),
            runc_root,
        );
        if let Some(home) = home {
            subject.moved = Some(found.bundle.clone());
            let (home, now) = (home.display(), found.bundle.display());
            notes.push(format!("its bundle was moved from {home} to {now}"));
        }
        recorded.fill(&mut subject);
        if pair.life == Life::Alive {
            // A living pair's socket is no leftover.
            subject.socket = None;
        }
        let seen = observe(&subject);
        notes.extend(seen.notes.iter().cloned());
        let frozen = seen.cgroup.as_ref().and_then(|cgroup| {
            cgroup
                .freeze_state()
                .map_err(|e| notes.push(chain(&e)))
                .ok()
                .flatten()
        });
        if let Belief::Unknown(why) = belief {
            notes.push(why.clone());
        }
        let row = row(&seen.facts);
        let (told, settling) = told(recorded.task.as_ref());
        let case = Case {
            verdict: row.map_or(Verdict::Impossible, |row| row.verdict),
            row: row.map_or("no row", |row| row.name),
            pair: pair.life,
            said: seen.facts.said,
            unreadable: recorded.task.is_none()
                && found.bundle.join(names::JOURNAL).symlink_metadata().is_ok(),
            residue: seen.facts.residue(),
            told,
            settling,
        };
        let mut judgement = judge(case);
        // If it could not be looked at, the notes say so.
        let ours = place::is_ours(&found.bundle).unwrap_or(true);
        if !ours {
            judgement = Judgement {
                words: "not known to be Vigil's",
                wrong: Some(
                    "no file of Vigil's is in its bundle: another runtime's, or all is lost",
                ),
            };
        }
        if pair.life == Life::Alive && ours && loops(&pair, recorded.takeovers.as_ref()) {
            judgement = Judgement {
                words: "crash-looping",
                wrong: Some(
                    "its shim crashes again and again, and is started after growing pauses; `vigil upgrade` gives it another program",
                ),
            };
        }
        if pair.life == Life::Alive && ours && pair.stopped {
            judgement = Judgement {
                words: "pair stopped",
                wrong: Some(
                    "a process of its pair is stopped, so nobody answers for it: SIGCONT lets it go on with nothing lost, `vigil kill` ends it all the same",
                ),
            };
        }
        if pair.life == Life::Alive && ours && found.moved_from.is_some() {
            judgement = Judgement {
                words: "moved away",
                wrong: Some(
                    "its bundle is not in its place: no containerd that comes back finds it, and its pair ends it when it sees that; `vigil kill` does so now",
                ),
            };
        }
        let copy_of = pair::copy_of(found, recorded.pair.as_ref(), recorded.task.as_ref());
        if let Some(original) = &copy_of {
            notes.push(format!("its container's bundle is {}", original.display()));
            judgement = Judgement {
                words: "a copy",
                wrong: Some("it is a copy of another directory, and nothing is done by it"),
            };
        }
        let killed = seen.init.as_ref().filter(|_| judgement.wrong.is_none());
        if killed.is_some_and(|init| seen.facts.init == Init::Alive && survives(init.pid)) {
            judgement.wrong = Some(
                "SIGKILL was sent to init and has not ended it: it sleeps uninterruptibly, or is frozen",
            );
        }
        let mut look = Self {
            forgotten: false,
            ours,
            copy_of,
            published: recorded.task.as_ref().map(|task| telling(task, &recorded)),
            found: found.clone(),
            recorded,
            subject,
            seen,
            pair,
            frozen,
            belief: belief.clone(),
            row,
            case,
            judgement,
            notes,
        };
        if look.ours && look.pair.life == Life::Gone && look.is_over() && is_forgotten(found) {
            look.forgotten = true;
            look.judgement.wrong = Some(
                "containerd runs and does not remove its bundle: it has forgotten it, and no container of this id can be made until that is removed",
            );
        }
        look
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        self.row.map_or(Verdict::Impossible, |row| row.verdict)
    }

    /// What is wrong, if anything: by the facts, or because containerd
    /// believes otherwise.
    pub fn wrong(&self) -> Option<&'static str> {
        self.judgement.wrong.or_else(|| self.belief.against(self))
    }

    /// Whether there is nothing to repair, and nothing to say of a repair.
    pub fn is_over(&self) -> bool {
        self.verdict() == Verdict::NothingLeft || is_history(self.case) || is_bare(self.case)
    }

    /// Whether init is seen to run.
    pub fn runs(&self) -> Option<bool> {
        match self.seen.facts.init {
            Init::Alive => Some(true),
            Init::Dead => Some(false),
            Init::Unnamed | Init::Unknown => None,
        }
    }

    /// Whether the journal has a container that is not deleted.
    pub fn has_task(&self) -> Option<bool> {
        match self.seen.facts.said {
            Said::Unreadable | Said::Creating => None,
            Said::Nothing | Said::Gone => Some(false),
            Said::HalfMade | Said::Live | Said::Ended => Some(true),
        }
    }
}

/// Whether a process was sent SIGKILL and lives on.
fn survives(pid: u32) -> bool {
    let asleep = |stat: proc::Stat| stat.state == 'D';
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |line: &str| {
        let mask = match line.split_once(':') {
            Some(("SigPnd" | "ShdPnd", mask)) => mask.trim(),
            Some(_) | None => return false,
        };
        u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & (1 << (signal::KILL - 1)) != 0)
    };
    proc::stat(pid).ok().flatten().is_some_and(asleep) && status.lines().any(pending)
}

/// Whether the containerd that this bundle is of runs, and has had the time to remove it.
fn is_forgotten(found: &Found) -> bool {
    let paths = [found.bundle.clone(), found.bundle.join(names::JOURNAL)];
    let young = paths.iter().any(|path| {
        let at = path.symlink_metadata().and_then(|meta| meta.modified());
        at.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < ABOUT_TO_GO))
    });
    let mut above = found.bundle.ancestors();
    let tasks = above.find(|above| above.file_name() == Some(OsStr::new(place::TASKS)));
    let socket = tasks.and_then(Path::parent).map(|state| state.join(SOCKET));
    !young && socket.is_some_and(|socket| listen::connect(&socket, CONNECT).is_ok())
}

/// Whether its shims die by their own fault, one after the other: the reaper said so of the
/// last, and either no other has followed yet, or not for long enough to be trusted.
fn loops(pair: &pair::Seen, told: Option<&Takeovers>) -> bool {
    let Some(last) = told.and_then(|told| told.last.back()) else {
        return false;
    };
    let Cause::Looping(..) = Cause::parse(&last.cause) else {
        return false;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    let age = now.saturating_sub(u64::try_from(last.at_secs).unwrap_or(0));
    let trusted = (pace::PAUSE_LONGEST + pace::QUIET).as_secs();
    pair.shim.is_none_or(|shim| shim.alive != Some(true)) || age < trusted
}

/// Whether containerd has taken init's end, and whether the shim is still at
/// the rest.
fn told(task: Option<&Task>) -> (bool, bool) {
    match task.map(|task| (&task.standing.phase, task.standing.rest_gone)) {
        Some((Phase::Stopped { told, .. }, rest_gone)) => {
            (*told && !task.is_some_and(exit_waits), !rest_gone)
        }
        Some((Phase::Running { .. } | Phase::Paused { .. } | Phase::Created { .. }, _)) => {
            (false, true)
        }
        Some((Phase::Empty | Phase::Creating | Phase::Deleted { .. }, _)) | None => (false, false),
    }
}

/// Whether the event of init's end is still in the outbox.
pub fn exit_waits(task: &Task) -> bool {
    let mut events = task.outbox.iter().map(|published| &published.event);
    events.any(|event| matches!(event, TaskEvent::Exit { who: Who::Init, .. }))
}

fn telling(task: &Task, recorded: &Recorded) -> Telling {
    let first_waiting = task.outbox.front().map(|first| first.seq);
    let taken = |event: &Published| first_waiting.is_none_or(|first| event.seq < first);
    let records = recorded.replayed.iter().flat_map(|r| &r.records);
    let last = records
        .rev()
        .filter(|record| record.kind == KIND_RECORD)
        .filter_map(|record| Record::decode(&record.payload).ok())
        .find_map(|record| record.publish.into_iter().rev().find(taken));
    Telling {
        events: task.next_seq.saturating_sub(1),
        waiting: task.outbox.len(),
        dropped: task.dropped,
        last,
    }
}

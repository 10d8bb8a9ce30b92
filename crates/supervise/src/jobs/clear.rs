//! What an earlier life of this id left in Create's way: runc's state, a
//! populated cgroup, a tombstone. Looked for before anything is recorded; what
//! nobody alive looks after is brought to nothing the way `delete` does it.
//! What a living shim looks after is never touched: the id is taken.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vigil_host::cgroup::{Cgroup, Hierarchies, named_for};
use vigil_host::enact::{self, RUN, Tombstone};
use vigil_host::kin::{Family, Known};
use vigil_host::observe::{Found, RuncState, Subject, observe};
use vigil_host::proc::{self, Checked};
use vigil_host::worker::{Notes, Outcome, Worker};
use vigil_model::{Before, Claim, Incarnation, Kind, Plan, Refusal};
use vigil_reconcile::{Claimed, Goal, Group, Init, Kin, Said};
use vigil_sys::pidfd;

use super::{Tools, gone, recover, resume};

/// For bringing an earlier life to nothing; its client waits for Create.
const WAIT: Duration = Duration::from_secs(10);
/// Generations between a container's process and the shim that looks after it.
const GENERATIONS: usize = 16;

/// Whether anything is to be looked at. A few looks at the file system; nothing
/// is in the way of nearly every Create.
pub(crate) fn in_the_way(tools: &Tools, plan: &Plan) -> bool {
    let subject = recover::subject(tools, plan, Said::Unreadable);
    let stone = Tombstone::of(&subject, Vec::new()).path(Path::new(RUN));
    gone::exists(&subject.runc_dir())
        || gone::exists(&stone)
        || plan.claims.iter().any(|claim| left_behind(claim, &subject))
}

/// A cgroup that carries this id in its name and holds processes: most likely an earlier life's.
/// That is to be looked at, and proves nothing.
fn left_behind(claim: &Claim, subject: &Subject) -> bool {
    let populated = matches!(
        claim.before,
        Before::Existed {
            populated: true,
            ..
        }
    );
    populated && named_for(Path::new(&claim.path), subject.id.as_str())
}

/// Clears the way, or says what stands in it.
pub(crate) async fn clear(tools: Tools, plan: Box<Plan>) -> Result<(), Refusal> {
    // Of one that died at this very work.
    let words = ["delete", tools.place.id.as_str()];
    resume::calls_over(&tools, &plan, &words, WAIT).await;
    let mut subject = recover::subject(&tools, &plan, Said::Unreadable);
    let behind =
        |claim: &&Claim| matches!(claim.before, Before::Absent) || left_behind(claim, &subject);
    let claims = plan.claims.iter().filter(behind).map(|claim| Claim {
        before: Before::Absent,
        ..claim.clone()
    });
    subject.claims = claims.collect();
    subject.claimed = Claimed::Guessed;
    let worker = Worker::start_bound("clear", move |notes| {
        work(subject, Instant::now() + WAIT, notes)
    })
    .map_err(|error| super::refusal(&error))?;
    let (outcome, said, told) = gone::worked_telling(worker, WAIT + WAIT / 10).await;
    for line in said {
        log::info!("an earlier life: {line}");
    }
    let taken = told.into_iter().map(|Told::Taken(by)| by).next_back();
    let id = &tools.place.id;
    match (outcome, taken) {
        (_, Some(by)) => Err(Refusal::new(
            Kind::AlreadyExists,
            format!("container {id} exists: {by}"),
        )),
        (Outcome::Done, None) => Ok(()),
        (Outcome::Failed(why), None) => Err(Refusal::new(
            Kind::Unknown,
            format!("an earlier container {id} is in the way: {why}"),
        )),
        (Outcome::Overdue { pid, doing, .. }, None) => Err(Refusal::new(
            Kind::DeadlineExceeded,
            format!("an earlier container {id} is in the way: worker {pid} is at: {doing}"),
        )),
    }
}

/// Runs in the worker.
fn work(mut subject: Subject, deadline: Instant, notes: &Notes) -> Result<(), String> {
    notes.doing("look at what an earlier life left");
    let dir = subject.runc_dir();
    let found = Found::from(RuncState::load(&dir));
    let stone = Tombstone::of(&subject, Vec::new()).path(Path::new(RUN));
    let stone = Tombstone::read(&stone).ok();
    if on_record(&subject, &found, stone.as_ref()) {
        subject.claimed = Claimed::Recorded;
    }
    match taken(&subject, &found, stone.as_ref())? {
        Way::Taken(by) => {
            notes.tell(&Told::Taken(by.clone()));
            return Err(by);
        }
        // Nobody in it is ours to end, nor is it to be removed.
        Way::Shared if !gone::exists(&dir) => return Ok(()),
        Way::Shared => {
            let why = "the cgroup is another container's, and the runtime has a state of this id";
            return Err(why.to_owned());
        }
        Way::Free => {}
    }
    // What it said of itself is better than what its id suggests, as far as it is of the same
    // runc and claims no other cgroups: those may be somebody else's by now.
    if let Some(Ok(known)) = stone.map(|stone| stone.subject())
        && known.runtime.root == subject.runtime.root
    {
        let before = std::mem::replace(&mut subject, known);
        subject.claims = before.claims;
        subject.claimed = before.claimed;
    }
    // Its rootfs lies where its bundle was.
    if let Found::State(RuncState {
        bundle: Some(bundle),
        ..
    }) = found
    {
        subject.bundle = bundle;
    }
    notes.doing("bring an earlier life to nothing");
    let seen = observe(&subject);
    let report = enact::reconcile(&subject, seen, Goal::Gone, Path::new(RUN), deadline);
    notes.say(&format!("{}: {:?}", report.row, report.done));
    for note in &report.notes {
        notes.say(note);
    }
    let left: Vec<String> = report.left.iter().map(ToString::to_string).collect();
    for what in &left {
        notes.say(&format!("left over: {what}"));
    }
    let again = observe(&subject).facts;
    let busy = matches!(again.group, Group::Populated | Group::Unknown);
    if busy || again.runc_state.possible() {
        return Err(format!("{}: {}", report.row, left.join("; ")));
    }
    Ok(())
}

/// What stands in the way.
#[derive(Debug)]
enum Way {
    /// Nothing that anybody looks after.
    Free,
    /// Somebody looks after a container of this very id; who.
    Taken(String),
    /// The cgroup has processes of somebody else's container.
    Shared,
}

/// What the worker tells the shim.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    /// The id is taken; by whom.
    Taken(String),
}

/// Who looks after a container of this id, if anybody does. Fails where that
/// cannot be known.
fn taken(subject: &Subject, found: &Found, stone: Option<&Tombstone>) -> Result<Way, String> {
    let chain = |error: vigil_host::Error| vigil_host::chain(&error);
    let state = match found {
        Found::State(state) => Some(state),
        Found::Nothing | Found::Torn(_) => None,
        // It may name somebody anywhere.
        Found::Unread(error) => {
            let why = vigil_host::chain(error);
            return Err(format!("nobody can say whose it is: {why}"));
        }
    };
    let mut pids = Vec::new();
    if let Some(init) = state.and_then(|state| state.init.as_ref())
        && let Checked::Same(fd) = proc::open_checked(init).map_err(chain)?
        && !pidfd::is_dead(&fd).unwrap_or(true)
    {
        if let Some(theirs) = state.and_then(|state| state.bundle.as_ref())
            && state.is_some_and(|state| !state.may_be_of(&subject.bundle))
        {
            let theirs = theirs.display();
            let by = format!("process {} runs it from {theirs}", init.pid);
            return Ok(Way::Taken(by));
        }
        pids.push(init.pid);
    }
    // One that is not running may be looked after all the same.
    if let Some(theirs) = state.and_then(|state| state.bundle.as_ref())
        && state.is_some_and(|state| !state.may_be_of(&subject.bundle))
        && std::fs::symlink_metadata(theirs).is_ok()
    {
        return Ok(Way::Taken(format!("its bundle is {}", theirs.display())));
    }
    for &pid in &pids {
        if let Some(by) = shim_above(pid).map_err(chain)? {
            return Ok(Way::Taken(format!("{by} looks after process {pid}")));
        }
    }
    let hierarchies = Hierarchies::read().map_err(chain)?;
    let cgroup = Cgroup::open(&hierarchies, &subject.claims).map_err(chain)?;
    let members = cgroup.pids().map_err(chain)?;
    let init = state.and_then(|state| state.init.as_ref());
    let named = stone.map_or_else(Vec::new, |stone| {
        let known = stone.init.iter().chain(&stone.holdouts);
        let same = |one: &&Incarnation| matches!(proc::open_checked(one), Ok(Checked::Same(_)));
        known.filter(same).map(|one| one.pid).collect()
    });
    let family = Family::of(Known {
        init,
        init_is: if pids.is_empty() {
            Init::Unnamed
        } else {
            Init::Alive
        },
        // Who was put into an earlier life's cgroup is not that life's.
        private_pid_ns: stone.and_then(|stone| stone.private_pid_ns) == Some(true),
        pid_ns: stone.and_then(|stone| stone.pid_ns),
        reaper: None,
        named,
        bundle: None,
    });
    let judged = family.judge(&members, subject.claimed).map_err(chain)?;
    let has = |whose: Kin| judged.iter().find(|(_, kin)| **kin == whose);
    // Another containerd's container of the same path is no reason to refuse this one.
    if has(Kin::Others).or(has(Kin::Stranger)).is_some() {
        return Ok(Way::Shared);
    }
    if let (Some((pid, _)), Found::Torn(error)) = (judged.iter().next(), found) {
        let why = vigil_host::chain(error);
        return Err(format!(
            "process {pid} runs, and nobody can say whose it is: {why}"
        ));
    }
    if has(Kin::Unproven).is_some() {
        return Ok(Way::Shared);
    }
    Ok(Way::Free)
}

/// Whether the cgroups are known by more than their names: the tombstone of the earlier life,
/// or what the runtime wrote down of it, names the very directories.
fn on_record(subject: &Subject, found: &Found, stone: Option<&Tombstone>) -> bool {
    let entombed = |claim: &Claim| {
        let now = std::fs::symlink_metadata(&claim.path)
            .ok()
            .map(|meta| meta.ino());
        let claims = stone.iter().flat_map(|stone| &stone.claims);
        let mut same = claims.filter(|there| there.path == claim.path);
        now.is_some() && same.any(|there| there.inode == now && there.ours())
    };
    let written = |claim: &Claim| match found {
        Found::State(state) if state.is_of(&subject.bundle) && state.lives() => {
            let mut paths = state.cgroups.values();
            paths.any(|path| path == Path::new(&claim.path))
        }
        Found::State(_) | Found::Nothing | Found::Torn(_) | Found::Unread(_) => false,
    };
    let mut there = subject
        .claims
        .iter()
        .filter(|c| gone::exists(Path::new(&c.path)));
    there.all(|claim| entombed(claim) || written(claim))
}

/// The living shim or monitor a process descends from.
fn shim_above(pid: u32) -> vigil_host::Result<Option<String>> {
    let mut pid = pid;
    for _ in 0..GENERATIONS {
        let Some(stat) = proc::stat(pid)? else {
            break;
        };
        if stat.parent <= 1 {
            break;
        }
        pid = stat.parent;
        if let Some(program) = proc::looks_after(pid) {
            return Ok(Some(format!("process {pid} ({program})")));
        }
    }
    Ok(None)
}

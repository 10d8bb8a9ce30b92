//! Taking a container away: `runc delete`, its cgroups, its mounts, and what
//! none of them finished through the one recovery path. Delete is answered in
//! seconds in every case; whatever takes longer is left to a tombstone.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio::io::Interest;
use vigil_host::cgroup::{Cgroup, Hierarchies, Killing, Progress};
use vigil_host::enact::Left;
use vigil_host::kin::{Family, Known};
use vigil_host::proc::{self, Checked};
use vigil_host::rootfs::{self, Manner};
use vigil_host::runc::{Call, Class, Failure, Invocation};
use vigil_host::strays;
use vigil_host::worker::{Outcome, Worker};
use vigil_model::{Claim, Exit, Incarnation, Kind, Phase, Plan, Refusal, Standing, Task};
use vigil_reconcile::{Goal, Init, RuncDelete, Said};

use vigil_sys::pidfd;
use vigil_sys::points::{self, Point};

use super::{Tools, recover, runc, runtime};
use crate::bundle::moved_to;
use crate::owner::Place;
use crate::watched::watch;

/// For mounting the rootfs: a loop or network device may be slow.
pub(crate) const MOUNT_WAIT: Duration = Duration::from_mins(1);
/// All of Delete: it is answered within 4 s.
pub(crate) const DELETE_WAIT: Duration = Duration::from_millis(3400);
/// Of that, kept back for finishing what `runc delete` did not.
const FINISH_WAIT: Duration = Duration::from_millis(1600);
/// For unmounting and removing cgroups before it is done the thorough way.
const CLEAN_WAIT: Duration = Duration::from_millis(1200);
/// For undoing a Create, `runc delete` and hooks included.
const UNDO_WAIT: Duration = Duration::from_secs(10);
/// For a busy mount before it is detached.
const BUSY_WAIT: Duration = Duration::from_millis(500);
/// For a cgroup whose last processes are dying.
const REMOVE_WAIT: Duration = Duration::from_millis(500);
/// Between SIGTERM and SIGKILL to an overdue `runc delete`.
const GRACE: Duration = Duration::from_millis(200);
/// Between two looks at a worker nobody tells us the end of.
const LOOK: Duration = Duration::from_millis(20);
/// For everything in the cgroup to die.
pub(crate) const KILL_WAIT: Duration = Duration::from_secs(2);

/// Waits for a worker without blocking; kills it when its time is up.
pub(crate) async fn worked(worker: Worker, wait: Duration) -> Outcome {
    worked_telling::<()>(worker, wait).await.0
}

/// As [`worked`], and what it said for people and told us.
pub(crate) async fn worked_telling<T: DeserializeOwned>(
    worker: Worker,
    wait: Duration,
) -> (Outcome, Vec<String>, Vec<T>) {
    let watched = worker
        .pidfd_owned()
        .ok()
        .and_then(|fd| watch(fd, Interest::READABLE).ok());
    let ended = async {
        match &watched {
            Some(pidfd) => drop(pidfd.readable().await),
            // Out of descriptors: the shim has others to answer meanwhile.
            None => {
                while pidfd::is_dead(worker.pidfd()) == Ok(false) {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    };
    tokio::pin!(ended);
    if tokio::time::timeout(wait, &mut ended).await.is_err() {
        let _ = worker.kill();
        let _ = tokio::time::timeout(Duration::from_millis(100), ended).await;
    }
    let outcome = worker.finish();
    (outcome, worker.notes(), worker.told())
}

/// Kills what lives in the container's cgroup, waiting for nothing but time;
/// true if nothing of ours is left.
pub(crate) async fn kill_all(cgroup: &Cgroup, wait: Duration) -> bool {
    let mut killing = Killing::default();
    let mut pause = Duration::from_micros(500);
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        match cgroup.kill_step(&mut killing) {
            Ok(Progress::Empty) => return true,
            Ok(Progress::Waiting) => {}
            Err(error) => {
                log::warn!("cgroup not emptied: {}", vigil_host::chain(&error));
                return false;
            }
        }
        if tokio::time::Instant::now() >= deadline {
            if let Err(error) = cgroup.thaw_all() {
                log::warn!("cgroup not thawed: {}", vigil_host::chain(&error));
            }
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// What is known of the container's processes, for who signals by its cgroup.
pub(crate) fn family(place: &Place, private_pid_ns: bool, init: Option<&Incarnation>) -> Family {
    let init_is = match init.map(proc::open_checked) {
        None => Init::Unnamed,
        Some(Ok(Checked::Same(fd))) if pidfd::is_dead(&fd) != Ok(true) => Init::Alive,
        Some(Ok(_)) => Init::Dead,
        Some(Err(_)) => Init::Unknown,
    };
    Family::of(Known {
        init,
        init_is,
        private_pid_ns,
        pid_ns: None,
        reaper: Some(place.reaper),
        named: Vec::new(),
        bundle: Some(place.bundle.clone()),
    })
}

/// Kills a container that was never started, and nobody else who is in its cgroup; true if
/// nothing of it is left.
pub(crate) async fn end_created(family: &Family, cgroup: &Cgroup, init: &Incarnation) -> bool {
    match family.shares(cgroup) {
        Ok(false) => return kill_all(cgroup, KILL_WAIT).await,
        Ok(true) => log::warn!("the cgroup is others' too: init alone is killed"),
        Err(error) => {
            log::warn!(
                "nobody can say who is in the cgroup: {}",
                vigil_host::chain(&error)
            );
        }
    }
    let Ok(Checked::Same(fd)) = proc::open_checked(init) else {
        return true;
    };
    let sent = pidfd::send_signal(&fd, 9);
    let deadline = tokio::time::Instant::now() + KILL_WAIT;
    while pidfd::is_dead(&fd) != Ok(true) {
        if sent.is_err() || tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    true
}

/// Undoes a Create, or a restore, that failed somewhere on its way: true if
/// nothing is left of it.
pub(crate) async fn undo(tools: &Tools, plan: &Plan) -> bool {
    let mut subject = recover::subject(tools, plan, Said::Creating);
    // A call that could not die may leave something yet, and nothing is whole before it does.
    let stuck = strays::asleep_below(std::process::id());
    subject.left.extend(stuck.into_iter().map(strays::left));
    let undone = recover::recover(tools, plan, subject, Goal::Keep, UNDO_WAIT).await;
    let _ = std::fs::remove_file(tools.place.bundle.join("init.pid"));
    undone.whole
}

/// Ends what lives on after its init: in a shared pid namespace the kernel
/// takes nobody down with it, and a process may have left the cgroup.
pub(crate) async fn end_rest(tools: &Tools, plan: &Plan, end: End) {
    let mut subject = recover::subject(tools, plan, Said::Ended);
    subject.init = end.init;
    subject.exit = end.exit;
    recover::recover(tools, plan, subject, Goal::Keep, KILL_WAIT).await;
}

/// What has to be ended once nobody will ask for it: a container, or what a Create that failed
/// has left of one.
pub(crate) fn owed(task: &Task) -> Option<&Plan> {
    match task.standing.phase {
        Phase::Empty if !task.standing.remains => None,
        Phase::Deleted { .. } => None,
        Phase::Empty
        | Phase::Creating
        | Phase::Created { .. }
        | Phase::Running { .. }
        | Phase::Paused { .. }
        | Phase::Stopped { .. } => task.plan.as_deref(),
    }
}

/// Ends the container whatever it is at, and removes all of it, also what is mounted in a bundle
/// that was moved away: nobody will ask for it.
pub(crate) async fn end_all(tools: &Tools, plan: &Plan, end: End) {
    let said = if end.remains {
        Said::HalfMade
    } else if end.exit.is_some() {
        Said::Ended
    } else {
        Said::Live
    };
    let mut subject = recover::subject(tools, plan, said);
    subject.init = end.init;
    subject.exit = end.exit;
    subject.moved = moved_to(&tools.place.bundle);
    recover::recover(tools, plan, subject, Goal::Gone, DELETE_WAIT).await;
}

/// What is known of init's end.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) init: Option<Incarnation>,
    pub(crate) exit: Option<Exit>,
    /// There was none: a Create failed, and something of it is left.
    pub(crate) remains: bool,
}

impl End {
    /// What this standing says of it.
    pub(crate) fn of(standing: &Standing) -> Self {
        Self {
            init: standing.phase.init().cloned(),
            exit: standing.phase.exit(),
            remains: standing.remains && standing.phase == Phase::Empty,
        }
    }
}

/// Deletes the container of a task that has ended or was never started; what
/// will not go by `until` is in a tombstone then.
pub(crate) async fn delete(
    tools: Tools,
    plan: Box<Plan>,
    end: End,
    until: Instant,
) -> Result<(), Refusal> {
    // Without a pid namespace of its own runc kills whoever is in the cgroup:
    // in one that is shared, strangers. Then nothing is asked of it.
    let finish_at = until.checked_sub(FINISH_WAIT).unwrap_or(until);
    let shared = !plan.private_pid_ns
        && (plan.claims.iter().any(|claim| !claim.ours()) || is_shared(&tools, &plan, &end));
    let ran = if shared {
        None
    } else {
        Some(runc_delete(&tools, &plan, finish_at).await)
    };
    points::reach(Point::RuncDeleteDone);
    let mut left = Vec::new();
    let done = match &ran {
        Some(Ok(())) => match clean(&tools, &plan).await {
            Ok(()) => true,
            Err((why, stuck)) => {
                log::warn!("clean-up: {why}");
                left.extend(stuck);
                false
            }
        },
        Some(Err(failure)) => {
            log::warn!("{failure}");
            false
        }
        None => false,
    };
    if !done {
        let said = match (&end.init, end.exit) {
            // A restore that failed may have made more than was recorded.
            (None, _) => Said::HalfMade,
            (Some(_), Some(_)) => Said::Ended,
            (Some(_), None) => Said::Live,
        };
        let mut subject = recover::subject(&tools, &plan, said);
        subject.init = end.init;
        subject.exit = end.exit;
        subject.left = left;
        subject.runc_delete = match ran {
            Some(Ok(())) => RuncDelete::Done,
            Some(Err(_)) => RuncDelete::Begun,
            None => RuncDelete::NotTried,
        };
        let wait = until.saturating_duration_since(Instant::now());
        let recovered = recover::recover(&tools, &plan, subject, Goal::Gone, wait).await;
        if let Some(who) = recovered.lives {
            return Err(Refusal::new(
                Kind::FailedPrecondition,
                format!("cannot delete a container that does not die: {who}"),
            ));
        }
    }
    let _ = std::fs::remove_file(tools.place.bundle.join("init.pid"));
    Ok(())
}

/// Whether somebody else is in the cgroup by now, or nobody can say.
fn is_shared(tools: &Tools, plan: &Plan, end: &End) -> bool {
    let family = family(&tools.place, plan.private_pid_ns, end.init.as_ref());
    let known = tools.hierarchies.read();
    let cgroup = known.and_then(|known| Cgroup::open(known, &plan.claims));
    match cgroup.and_then(|cgroup| family.shares(&cgroup)) {
        Ok(shared) => shared,
        Err(error) => {
            log::warn!(
                "who is in the cgroup is not known: {}",
                vigil_host::chain(&error)
            );
            true
        }
    }
}

/// `runc delete`, unless runc knows nothing of the container any more. One
/// that has removed its state by `until` and is at the hooks is not disturbed:
/// the container is gone, and the hooks shall run once.
async fn runc_delete(tools: &Tools, plan: &Plan, until: Instant) -> Result<(), Failure> {
    let runtime = runtime(plan);
    let id = tools.place.id.as_str();
    let state = runtime.root.join(id);
    if !exists(&state) {
        return Ok(());
    }
    let running = Invocation::new(&runtime, Call::Delete { id, force: false }).spawn()?;
    let wait = until.saturating_duration_since(Instant::now());
    let deadlines = tools.deadlines;
    let ended = runc::ends_within(&running, wait.min(deadlines.delete));
    if !ended.await && !exists(&state) {
        log::info!("runc delete is at the poststop hooks still, and is left to them");
        tokio::spawn(async move {
            if let (Err(failure), _) = runc::finish(running, &deadlines).await {
                log::warn!("{failure}");
            }
        });
        return Ok(());
    }
    let deadlines = vigil_host::runc::Deadlines {
        delete: Duration::ZERO,
        grace: deadlines.grace.min(GRACE),
        ..deadlines
    };
    match runc::finish(running, &deadlines).await.0 {
        Ok(()) => Ok(()),
        // Somebody else deleted it meanwhile: what was asked for is so.
        Err(failure) if failure.class != Class::Overdue && !exists(&state) => Ok(()),
        Err(failure) => Err(failure),
    }
}

pub(crate) fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// What runc leaves or never knew: cgroups and mounts. What hangs or was only
/// detached is named, so that it is in the tombstone.
async fn clean(tools: &Tools, plan: &Plan) -> Result<(), (String, Vec<Left>)> {
    let claims = plan.claims.clone();
    let left = claims
        .iter()
        .any(|claim| claim.ours() && exists(Path::new(&claim.path)));
    let mounted = !plan.create.rootfs.is_empty();
    if !left && !mounted {
        return Ok(());
    }
    let rootfs = tools.place.bundle.join("rootfs");
    let worker = Worker::start_bound("clean", move |notes| {
        if left {
            notes.doing("remove the container's cgroups");
            remove_cgroups(&claims)?;
        }
        if mounted {
            // What was only detached is in the notes.
            let _ = rootfs::unmount_below(&rootfs, Manner::Patient(BUSY_WAIT), notes)
                .map_err(|error| vigil_host::chain(&error))?;
        }
        Ok(())
    })
    .map_err(|error| (vigil_host::chain(&error), Vec::new()))?;
    let (outcome, said, detached) = worked_telling(worker, CLEAN_WAIT).await;
    for line in said {
        log::warn!("clean-up: {line}");
    }
    let mut stuck: Vec<Left> = detached.into_iter().map(Left::Detached).collect();
    let why = match outcome {
        Outcome::Done if stuck.is_empty() => return Ok(()),
        Outcome::Done => "a mount was busy".to_owned(),
        Outcome::Failed(why) => why,
        Outcome::Overdue { pid, doing, left } => {
            let why = format!("overdue at: {doing}");
            if left {
                stuck.push(Left::Worker { pid, doing });
            }
            why
        }
    };
    Err((why, stuck))
}

/// Runs in a worker.
fn remove_cgroups(claims: &[Claim]) -> Result<(), String> {
    let chain = |error: &vigil_host::Error| vigil_host::chain(error);
    let hierarchies = Hierarchies::read().map_err(|error| chain(&error))?;
    let cgroup = Cgroup::open(&hierarchies, claims).map_err(|error| chain(&error))?;
    let removal = cgroup
        .remove_until(Instant::now() + REMOVE_WAIT)
        .map_err(|error| chain(&error))?;
    match removal.left.first() {
        None => Ok(()),
        Some(path) => Err(format!("cgroup {} could not be removed", path.display())),
    }
}

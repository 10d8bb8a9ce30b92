//! Taking a container away: `runc delete`, its cgroups, its mounts. Used by
//! Delete and by the undoing of a failed Create; every part may be repeated.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use vigil_host::cgroup::{Cgroup, Hierarchies, Killing, Progress};
use vigil_host::observe::RuncState;
use vigil_host::rootfs::{self, Manner};
use vigil_host::runc::{Call, Invocation};
use vigil_host::worker::{Outcome, Worker};
use vigil_model::{Claim, Kind, Plan, Refusal};

use vigil_sys::pidfd;
use vigil_sys::points::{self, Point};

use super::{Tools, runc, runtime};
use crate::watched::watch;

/// For mounting the rootfs: a loop or network device may be slow.
pub(crate) const MOUNT_WAIT: Duration = Duration::from_mins(1);
/// For unmounting and removing cgroups; Delete is answered within it.
const CLEAN_WAIT: Duration = Duration::from_secs(3);
/// For a busy mount before it is detached.
const BUSY_WAIT: Duration = Duration::from_millis(500);
/// For a cgroup whose last processes are dying.
const REMOVE_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at a worker nobody tells us the end of.
const LOOK: Duration = Duration::from_millis(20);
/// For everything in the cgroup to die.
pub(crate) const KILL_WAIT: Duration = Duration::from_secs(2);

/// Waits for a worker without blocking; kills it when its time is up.
pub(crate) async fn worked(worker: Worker, wait: Duration) -> Outcome {
    worked_saying(worker, wait).await.0
}

/// As [`worked`], and what it said.
async fn worked_saying(worker: Worker, wait: Duration) -> (Outcome, Vec<String>) {
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
    (outcome, worker.notes())
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

/// Whether runc has a container of this id that is not known to be of this
/// bundle: made by somebody else below the same root. Creating ours will fail,
/// and undoing that must not take theirs away.
pub(crate) fn strangers(tools: &Tools, plan: &Plan) -> bool {
    let state = runtime(plan).root.join(tools.place.id.as_str());
    exists(&state)
        && !RuncState::load(&state)
            .ok()
            .flatten()
            .is_some_and(|known| known.bundle.is_some() && known.may_be_of(&tools.place.bundle))
}

/// Undoes a Create that failed somewhere on its way.
pub(crate) async fn undo(tools: &Tools, plan: &Plan, strangers: bool) {
    let mut claims = plan.claims.clone();
    let hierarchies = tools.hierarchies.read();
    match hierarchies.and_then(|known| Cgroup::open(known, &claims)) {
        Ok(cgroup) => {
            if !kill_all(&cgroup, KILL_WAIT).await {
                log::error!("a failed create leaves processes behind in its cgroup");
            }
        }
        Err(error) => log::warn!("cgroup not opened: {}", vigil_host::chain(&error)),
    }
    note_inodes(&mut claims);
    if strangers {
        log::warn!("what runc has under this id is not ours and is left alone");
    } else if let Err(refusal) = runc_delete(tools, plan, true).await {
        log::warn!("{refusal}");
    }
    if let Err(refusal) = clean(tools, plan, claims).await {
        log::error!("{refusal}");
    }
    let _ = std::fs::remove_file(tools.place.bundle.join("init.pid"));
}

/// What appeared where nothing was is ours; its inode says that it is still
/// the same when it is removed.
fn note_inodes(claims: &mut [Claim]) {
    use std::os::unix::fs::MetadataExt;
    for claim in claims.iter_mut().filter(|claim| claim.inode.is_none()) {
        claim.inode = std::fs::symlink_metadata(&claim.path)
            .ok()
            .map(|found| found.ino());
    }
}

/// Deletes the container of a task that has ended or was never started.
pub(crate) async fn delete(tools: Tools, plan: Box<Plan>) -> Result<(), Refusal> {
    runc_delete(&tools, &plan, false).await?;
    points::reach(Point::RuncDeleteDone);
    let claims = plan.claims.clone();
    clean(&tools, &plan, claims).await?;
    let _ = std::fs::remove_file(tools.place.bundle.join("init.pid"));
    Ok(())
}

/// `runc delete`, unless runc knows nothing of the container any more.
async fn runc_delete(tools: &Tools, plan: &Plan, force: bool) -> Result<(), Refusal> {
    let runtime = runtime(plan);
    let id = tools.place.id.as_str();
    let state = runtime.root.join(id);
    if !exists(&state) {
        return Ok(());
    }
    let running = Invocation::new(&runtime, Call::Delete { id, force }).spawn();
    let outcome = match running {
        Ok(running) => runc::finish(running, &tools.deadlines).await.0,
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => Ok(()),
        // Somebody else deleted it meanwhile: what was asked for is so.
        Err(_) if !exists(&state) => Ok(()),
        Err(failure) => Err(runc::refusal(&failure)),
    }
}

fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// What runc leaves or never knew: cgroups and mounts.
async fn clean(tools: &Tools, plan: &Plan, claims: Vec<Claim>) -> Result<(), Refusal> {
    let left = claims
        .iter()
        .any(|claim| claim.ours() && exists(Path::new(&claim.path)));
    let mounted = !plan.create.rootfs.is_empty();
    if !left && !mounted {
        return Ok(());
    }
    let rootfs = tools.place.bundle.join("rootfs");
    let worker = Worker::start_noting("clean", move |notes| {
        if left {
            notes.doing("remove the container's cgroups");
            remove_cgroups(&claims)?;
        }
        if mounted {
            let unmounted = rootfs::unmount_below(&rootfs, Manner::Patient(BUSY_WAIT), notes)
                .map_err(|error| vigil_host::chain(&error))?;
            for mount in unmounted.detached {
                notes.say(&format!(
                    "{} is busy and was only detached",
                    mount.path.display()
                ));
            }
        }
        Ok(())
    })
    .map_err(|error| super::refusal(&error))?;
    let (outcome, said) = worked_saying(worker, CLEAN_WAIT).await;
    for line in said {
        log::warn!("clean-up: {line}");
    }
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Failed(why) => Err(Refusal::new(Kind::Unknown, why)),
        Outcome::Overdue { pid, doing, left } => {
            let left = if left {
                format!(", left to process {pid}, which sleeps uninterruptibly")
            } else {
                String::new()
            };
            Err(Refusal::new(
                Kind::DeadlineExceeded,
                format!("clean-up is overdue: {doing}{left}"),
            ))
        }
    }
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

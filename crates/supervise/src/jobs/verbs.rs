//! The verbs on init that take time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vigil_host::cgroup::{Cgroup, Freeze};
use vigil_host::runc::{Call, Class, Failure, Invocation};
use vigil_host::worker::{Outcome, Worker};
use vigil_model::{Incarnation, Kind, Plan, Refusal, request};
use vigil_sys::points::{self, Point};

use super::update::Stop;
use super::{Tools, gone, runc, runtime, without};

/// For every process of the container to stand still, or to run again.
const FREEZE_WAIT: Duration = Duration::from_secs(10);
/// Looks at a freezer that does not get there before it is thawed for a moment.
const STUCK_LOOKS: u32 = 8;
/// For that moment: long enough for what holds it up to run on.
const STUCK_THAW: Duration = Duration::from_millis(2);

/// For what CRIU left in its work directory.
const WORK_WAIT: Duration = Duration::from_secs(5);

/// `runc start`.
pub(crate) async fn start(
    tools: Tools,
    plan: Box<Plan>,
    init: Option<Incarnation>,
) -> Result<(), Refusal> {
    let outcome = ended(&tools, &plan, |id| Call::Start { id }, init).await;
    outcome.or_else(|failure| match failure.class {
        // Killed half way: the host knows what it did. Init waits on this fifo
        // until it is started, and runc removes it then.
        Class::Died | Class::Overdue | Class::Unknown if started(&tools, &plan) => Ok(()),
        Class::Died
        | Class::Overdue
        | Class::Unknown
        | Class::NotFound
        | Class::NotExecutable
        | Class::NotStarted
        | Class::Refused => Err(runc::refusal(&failure)),
    })
}

/// Whether runc's state says that init was let run.
pub(crate) fn started(tools: &Tools, plan: &Plan) -> bool {
    let state = runtime(plan).root.join(tools.place.id.as_str());
    let there = |name: &str| std::fs::symlink_metadata(state.join(name)).is_ok();
    there("state.json") && !there("exec.fifo")
}

/// `runc update`; ended early when `stop` comes: its container goes.
pub(crate) async fn update(
    tools: Tools,
    plan: Box<Plan>,
    resources: Vec<u8>,
    stop: Stop,
) -> Result<(), Refusal> {
    let running = {
        let (runtime, id) = (runtime(&plan), tools.place.id.as_str());
        let resources = &resources;
        Invocation::new(&runtime, Call::Update { id, resources }).spawn()
    };
    let running = running.map_err(|failure| runc::refusal(&failure))?;
    let mut stopped = false;
    let unwanted = async {
        stop.await;
        stopped = true;
    };
    let outcome = runc::finish_unless(running, &tools.deadlines, unwanted)
        .await
        .0;
    outcome.map_err(|failure| {
        if stopped {
            let says = "cannot update a container that is being deleted";
            Refusal::new(Kind::FailedPrecondition, says)
        } else {
            runc::refusal(&failure)
        }
    })
}

/// `runc checkpoint`.
pub(crate) async fn checkpoint(
    tools: Tools,
    plan: Box<Plan>,
    how: Box<request::Checkpoint>,
) -> Result<(), Refusal> {
    let work = if how.work_path.is_empty() {
        tools.place.bundle.join("work").join("criu-work")
    } else {
        PathBuf::from(&how.work_path)
    };
    let outcome = call(&tools, &plan, |id| Call::Checkpoint {
        id,
        work: &work,
        how: &how,
    })
    .await;
    if how.work_path.is_empty() {
        let kept = tools.place.bundle.join("criu-dump.log");
        let log = outcome.is_err().then(|| kept.clone());
        let is_kept = clear_work(work, log).await;
        return outcome.map_err(|refusal| {
            let path = if is_kept {
                format!(" path= {}", kept.display())
            } else {
                String::new()
            };
            Refusal::new(refusal.kind, format!("{}{path}", refusal.says))
        });
    }
    outcome
}

/// Removes CRIU's work directory, and keeps its log if it is wanted; whether that could be
/// done. In a worker: what lies there is another program's, on any file system.
async fn clear_work(work: PathBuf, log: Option<PathBuf>) -> bool {
    let worker = Worker::start_bound("criu", move |notes| {
        if let Some(kept) = log {
            notes.doing("copy CRIU's log");
            notes.tell(&std::fs::copy(work.join("dump.log"), kept).is_ok());
        }
        notes.doing("remove CRIU's work directory");
        std::fs::remove_dir_all(&work).map_err(|error| error.to_string())
    });
    let worker = match worker {
        Ok(worker) => worker,
        Err(error) => {
            log::warn!("CRIU's work directory stays: {}", vigil_host::chain(&error));
            return false;
        }
    };
    let (outcome, _, kept) = gone::worked_telling::<bool>(worker, WORK_WAIT).await;
    if outcome != Outcome::Done {
        log::warn!("CRIU's work directory: {outcome:?}");
    }
    kept == [true]
}

async fn call<'a>(
    tools: &'a Tools,
    plan: &Plan,
    call: impl FnOnce(&'a str) -> Call<'a>,
) -> Result<(), Refusal> {
    let outcome = ended(tools, plan, call, None).await;
    outcome.map_err(|failure| runc::refusal(&failure))
}

async fn ended<'a>(
    tools: &'a Tools,
    plan: &Plan,
    call: impl FnOnce(&'a str) -> Call<'a>,
    init: Option<Incarnation>,
) -> Result<(), Failure> {
    let running = {
        let runtime = runtime(plan);
        Invocation::new(&runtime, call(tools.place.id.as_str())).spawn()
    };
    match running {
        Ok(running) => {
            let unwanted = without::unwanted(init, running.pid());
            runc::finish_unless(running, &tools.deadlines, unwanted)
                .await
                .0
        }
        Err(failure) => Err(failure),
    }
}

/// Freezes or thaws the container through its cgroup, without runc.
pub(crate) async fn freeze(cgroup: Arc<Cgroup>, frozen: bool) -> Result<(), Refusal> {
    let wanted = if frozen {
        Freeze::Frozen
    } else {
        Freeze::Thawed
    };
    let deadline = tokio::time::Instant::now() + FREEZE_WAIT;
    let mut pause = Duration::from_micros(200);
    let mut looks = 0;
    cgroup
        .request_freeze(frozen)
        .map_err(|error| super::refusal(&error))?;
    if !frozen {
        points::reach(Point::ThawAsked);
    }
    loop {
        match cgroup.freeze_state() {
            Ok(Some(now)) if now == wanted => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => {
                return Err(Refusal::new(
                    Kind::Unknown,
                    "the container's cgroup is gone",
                ));
            }
            Err(error) => return Err(super::refusal(&error)),
        }
        if tokio::time::Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(10));
        if frozen {
            // v1: a process that forked meanwhile may have slipped through,
            // and asking again makes the kernel look again; a freezer that is
            // stuck half way gets going only after a thaw.
            looks += 1;
            if looks % STUCK_LOOKS == 0 {
                let _ = cgroup.request_freeze(false);
                tokio::time::sleep(STUCK_THAW).await;
                pause = Duration::from_micros(200);
            }
            let _ = cgroup.request_freeze(true);
        }
    }
    if frozen {
        // A pause that failed always ends thawed.
        let _ = cgroup.request_freeze(false);
    }
    let holdouts = cgroup.holdouts().unwrap_or_default();
    let who = holdouts.first().map_or_else(String::new, |held| {
        format!(
            ": process {} ({}) is in {}",
            held.pid, held.comm, held.wchan
        )
    });
    let verb = if frozen { "pause" } else { "resume" };
    Err(Refusal::new(
        Kind::DeadlineExceeded,
        format!("{verb} did not end in time{who}"),
    ))
}

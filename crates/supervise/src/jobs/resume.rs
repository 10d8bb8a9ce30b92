//! What a shim that died had under way, taken up by the next one: its call of
//! the runtime is waited for, or ended at its deadline, and then the host says
//! how far it came. Each ends as the original would have: finished, or undone.

use std::time::Duration;

use tokio::io::Interest;
use vigil_host::observe::RuncState;
use vigil_host::proc;
use vigil_host::strays::{self, Errand};
use vigil_model::{ExecId, ExecPlan, Incarnation, Kind, Plan, Refusal};

use super::create::{Begun, Made, NotMade};
use super::exec::{Started, pid_file};
use super::identify::{self, Identified};
use super::update::Stop;
use super::{Tools, create, exec, gone, runtime, verbs};
use crate::kept::Kept;
use crate::stdio::{SlotId, Streams};
use crate::watched::watch;

/// After SIGKILL; one in D state is left behind.
const DYING: Duration = Duration::from_millis(500);
/// Between two looks at calls nobody can tell yet, the first time …
const LOOK: Duration = Duration::from_micros(200);
/// … and at most.
const LOOK_MAX: Duration = Duration::from_millis(10);
/// Deaths of shims in a minute after which what is under way is not begun anew:
/// it may be what kills them, and one death more is the last.
const ANEW_MAX: u32 = 3;

/// Waits for those calls a dead shim has left that have all of these `words`
/// among their arguments; at the deadline they are ended.
pub(crate) async fn calls_over(tools: &Tools, words: &[&str], deadline: Duration) {
    let calls = match settled(tools.place.reaper_pid, deadline).await {
        Ok(errands) => errands,
        Err(error) => {
            log::warn!("calls left behind: {}", vigil_host::chain(&error));
            return;
        }
    };
    let about = |call: &Errand| {
        // Who cannot be asked in all that time may be any of them.
        call.arguments.as_ref().is_none_or(|arguments| {
            let has = |word: &&str| arguments.lines().any(|argument| argument == *word);
            words.iter().all(has)
        })
    };
    for call in calls.into_iter().filter(about) {
        let ended = async {
            match call
                .pidfd
                .try_clone()
                .and_then(|fd| watch(fd, Interest::READABLE))
            {
                Ok(pidfd) => drop(pidfd.readable().await),
                Err(_) => tokio::time::sleep(deadline).await,
            }
        };
        tokio::pin!(ended);
        if tokio::time::timeout(deadline, &mut ended).await.is_err() {
            log::warn!(
                "process {} left by an earlier shim is overdue",
                call.process.pid
            );
            call.kill();
            let _ = tokio::time::timeout(DYING, ended).await;
        }
    }
}

/// Create: finished if runc has made the container, else undone, and begun
/// anew while that can be hoped to go better.
pub(crate) async fn create(
    tools: Tools,
    plan: Box<Plan>,
    streams: u32,
    mut held: Streams<Kept>,
) -> Result<Made, NotMade> {
    calls_over(&tools, &[tools.place.id.as_str()], tools.deadlines.create).await;
    match finish(&tools, &plan, &mut held).await {
        Some(Ok((identified, claims))) => {
            let mut claims = claims;
            let copying = held.started().await.map_err(|error| super::refusal(&error));
            let begun = create::own(&tools, &mut claims, identified, held, copying).await;
            match begun {
                Ok(begun) => Ok(Made {
                    begun: Some(begun),
                    claims,
                }),
                Err(why) => Err(undone(&tools, &plan, why).await),
            }
        }
        Some(Err(why)) => {
            held.close_all(Duration::ZERO).await;
            Err(undone(&tools, &plan, why).await)
        }
        None => {
            held.take_back().await;
            let why = Refusal::new(
                Kind::Unknown,
                "the shim died while it made the container; what was made is undone",
            );
            let not_made = undone(&tools, &plan, why).await;
            let made = if not_made.undone && tools.place.takeovers <= ANEW_MAX {
                create::create(tools, plan, streams).await
            } else {
                Err(not_made)
            };
            held.close_all(Duration::ZERO).await;
            made
        }
    }
}

/// The calls a dead shim has left, once each of them can be told from the others.
async fn settled(reaper: u32, deadline: Duration) -> vigil_host::Result<Vec<Errand>> {
    let until = tokio::time::Instant::now() + deadline;
    let mut pause = LOOK;
    loop {
        let mut calls = strays::errands(reaper)?;
        calls.retain(|call| !call.worker);
        let open = calls.iter().any(|call| call.arguments.is_none());
        if !open || tokio::time::Instant::now() >= until {
            return Ok(calls);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
}

async fn undone(tools: &Tools, plan: &Plan, why: Refusal) -> NotMade {
    let undone = gone::undo(tools, plan).await;
    NotMade { why, undone }
}

/// Init, if runc has made the container wholly: its state is written and names
/// the process that its pid file names. `None`: it has not.
async fn finish(
    tools: &Tools,
    plan: &Plan,
    _held: &mut Streams<Kept>,
) -> Option<Result<(Identified, Vec<vigil_model::Claim>), Refusal>> {
    if !plan.create.checkpoint.is_empty() {
        return None;
    }
    let place = &tools.place;
    let dir = runtime(plan).root.join(place.id.as_str());
    let state = RuncState::load(&dir).ok().flatten()?;
    let pid = identify::pid_in(&place.bundle.join("init.pid")).ok()?;
    let named = state.init.as_ref().is_some_and(|init| init.pid == pid);
    if !named || !state.may_be_of(&place.bundle) {
        return None;
    }
    let identified = again(tools, pid).await;
    Some(identified.map(|identified| (identified, plan.claims.clone())))
}

/// Start: done if init was let run, else done now.
pub(crate) async fn start(tools: Tools, plan: Box<Plan>) -> Result<(), Refusal> {
    let words = ["start", tools.place.id.as_str()];
    calls_over(&tools, &words, tools.deadlines.start).await;
    if verbs::started(&tools, &plan) {
        return Ok(());
    }
    verbs::start(tools, plan).await
}

/// An update: over, one way or the other. What it was asked with comes again
/// with its request, if it is to be done again.
pub(crate) async fn update(tools: &Tools, stop: Stop) -> Refusal {
    let words = ["update", tools.place.id.as_str()];
    tokio::select! {
        () = calls_over(tools, &words, tools.deadlines.update) => {}
        () = stop => calls_over(tools, &words, Duration::ZERO).await,
    }
    died_at_it()
}

/// A checkpoint, likewise.
pub(crate) async fn checkpoint(tools: &Tools) -> Refusal {
    let words = ["checkpoint", tools.place.id.as_str()];
    calls_over(tools, &words, tools.deadlines.checkpoint).await;
    died_at_it()
}

fn died_at_it() -> Refusal {
    Refusal::new(Kind::Unknown, "the shim died while it did this")
}

/// The start of a restore: what the runtime has made of it is undone.
pub(crate) async fn restore(tools: Tools, plan: Box<Plan>) -> Result<Option<Box<Begun>>, Refusal> {
    calls_over(&tools, &[tools.place.id.as_str()], tools.deadlines.restore).await;
    gone::undo(&tools, &plan).await;
    Err(Refusal::new(
        Kind::Unknown,
        "the shim died while it restored the container; what was made is undone",
    ))
}

/// The start of an exec: done if its process is there, else done now.
pub(crate) async fn exec(
    tools: Tools,
    plan: Box<Plan>,
    exec: ExecId,
    asked: ExecPlan,
    streams: u32,
    mut held: Streams<Kept>,
) -> Result<Started, Refusal> {
    let file = pid_file(&tools, &exec);
    calls_over(&tools, &[&file.to_string_lossy()], tools.deadlines.exec).await;
    let Ok(pid) = identify::pid_in(&file) else {
        held.take_back().await;
        let started = if tools.place.takeovers > ANEW_MAX {
            Err(Refusal::new(
                Kind::Unknown,
                format!("shims died while they started exec {exec}"),
            ))
        } else {
            exec::start(tools, plan, exec, asked, streams).await
        };
        held.close_all(Duration::ZERO).await;
        return started;
    };
    let found = match again(&tools, pid).await {
        Ok(found) => found,
        Err(refusal) => {
            held.close_all(Duration::ZERO).await;
            return Err(refusal);
        }
    };
    if let Err(error) = held.started().await {
        exec::discard(&tools, &found.process, Some(found.pin)).await;
        held.close_all(Duration::ZERO).await;
        return Err(super::refusal(&error));
    }
    Ok(Started {
        process: found.process,
        pin: found.pin,
        streams: held,
    })
}

/// The process an earlier shim's runtime wrote down. That shim may have pinned
/// it, and it may have ended since.
async fn again(tools: &Tools, pid: u32) -> Result<Identified, Refusal> {
    let below = proc::descends(pid, tools.place.reaper_pid);
    let below = below.map_err(|error| super::refusal(&error))?;
    if !below && let Some((pin, death)) = tools.exits.registered(pid) {
        let boot = proc::boot_id().map_err(|error| super::refusal(&error))?;
        let pid_ns = proc::pid_namespace().map_err(|error| super::refusal(&error))?;
        let process = Incarnation {
            pid,
            start_ticks: death.start_ticks,
            pid_ns,
            boot,
            pidfd_inode: None,
        };
        return Ok(Identified { process, pin });
    }
    // By its start: deaths of any age are on record, and one may have had its number.
    let seen = proc::incarnation(pid).map_err(|error| super::refusal(&error))?;
    let Some(process) = seen.filter(|_| below) else {
        return identify::identify(tools, pid, 0).await;
    };
    let pinned = tools.control.register(pid, process.start_ticks, 0).await;
    let pin = pinned.map_err(|error| super::refusal(&error))?;
    Ok(Identified { process, pin })
}

/// Descriptors a dead shim had deposited, as the set of streams they are.
pub(crate) fn streams(
    tools: &Tools,
    number: u32,
    held: Vec<(SlotId, vigil_host::stdio::SlotKind, std::os::fd::OwnedFd)>,
) -> Streams<Kept> {
    Streams::resume(
        held,
        tools.keeper(number),
        crate::stdio::Patience::default(),
    )
}

//! What a shim that died had under way, taken up by the next one: its call of
//! the runtime is waited for, or ended at its deadline, and then the host says
//! how far it came. Each ends as the original would have: finished, or undone.

use std::time::Duration;

use tokio::io::Interest;
use tokio::time::Instant;
use vigil_host::observe::RuncState;
use vigil_host::proc;
use vigil_host::strays::{self, Errand};
use vigil_model::{Claim, ExecId, Incarnation, Kind, Plan, Refusal};
use vigil_sys::pidfd;

use super::create::{Begun, Made, NotMade};
use super::exec::{Spec, Started, pid_file};
use super::identify::{self, Identified};
use super::update::Stop;
use super::{Tools, create, exec, gone, runtime, verbs, without};
use crate::exits::Process;
use crate::kept::Kept;
use crate::stdio::Streams;
use crate::watched::watch;

/// After SIGKILL; one in D state is left behind.
const DYING: Duration = Duration::from_millis(500);
/// From a death to its record.
const RECORDING: Duration = Duration::from_millis(200);
/// Between two looks at calls nobody can tell yet, the first time …
const LOOK: Duration = Duration::from_micros(200);
/// … and at most.
const LOOK_MAX: Duration = Duration::from_millis(10);
/// Shims that died by their own fault in a row, after which what is under way is not begun
/// anew: it may be what kills them.
const ANEW_MAX: u32 = 3;

/// How the calls that a dead shim had left came to their end.
#[derive(Debug, Default)]
pub(crate) struct Over {
    /// One ended well.
    pub(crate) well: bool,
    /// One had to be ended. How far it came nobody knows: what it was to run may run already.
    pub(crate) killed: bool,
}

/// Waits for those calls a dead shim, or a worker of its, has left that have all of
/// these `words` among their arguments. At the deadline they are ended, but for one
/// that has deleted the container and is at the hooks: they run once.
pub(crate) async fn calls_over(
    tools: &Tools,
    plan: &Plan,
    words: &[&str],
    deadline: Duration,
) -> Over {
    starts_over(tools, plan, words, deadline, None).await
}

/// The same of calls that start something in the container of this init, which are not waited
/// for in vain (`without`).
async fn starts_over(
    tools: &Tools,
    plan: &Plan,
    words: &[&str],
    deadline: Duration,
    init: Option<&Incarnation>,
) -> Over {
    let mut over = Over::default();
    if tools.place.takeovers == 0 {
        return over;
    }
    let calls = match settled(tools.place.reaper, deadline).await {
        Ok(errands) => errands,
        Err(error) => {
            log::warn!("calls left behind: {}", vigil_host::chain(&error));
            return over;
        }
    };
    let state = runtime(plan).root.join(tools.place.id.as_str());
    let until = Instant::now() + deadline;
    // Who cannot be asked in all that time may be any of them.
    let says = |call: &Errand, word: &str| {
        let arguments = call.arguments.as_ref();
        arguments.is_none_or(|arguments| arguments.lines().any(|said| said == word))
    };
    let about = |call: &Errand| words.iter().all(|word| says(call, word));
    for call in calls.into_iter().filter(about) {
        let ended = async {
            match call
                .pidfd
                .try_clone()
                .and_then(|fd| watch(fd, Interest::READABLE))
            {
                Ok(pidfd) => drop(pidfd.readable().await),
                Err(_) => tokio::time::sleep_until(until).await,
            }
        };
        tokio::pin!(ended);
        let pid = call.process.pid;
        let in_time = tokio::select! {
            in_time = tokio::time::timeout_at(until, &mut ended) => in_time.is_ok(),
            () = without::unwanted(init.cloned(), pid) => false,
        };
        if in_time {
            over.well |= status(tools, &call).await == Some(0);
            continue;
        }
        if says(&call, "delete") && !gone::exists(&state) {
            log::info!("process {pid} is at the poststop hooks still, and is left to them");
            continue;
        }
        log::warn!("process {pid} left by an earlier shim is waited for no longer");
        call.kill();
        over.killed = true;
        let _ = tokio::time::timeout(DYING, ended).await;
    }
    over
}

/// The raw status of a call that has ended; the reaper is about to record it, or, if it is not its
/// child since the one before has died, the kernel says it.
async fn status(tools: &Tools, call: &Errand) -> Option<i32> {
    let until = Instant::now() + RECORDING;
    let process = &call.process;
    loop {
        let death = tools.exits.find(process.pid, process.start_ticks);
        if let Some(death) = death {
            return Some(death.status);
        }
        if let Ok(Some(status)) = pidfd::exit_status(&call.pidfd) {
            return Some(status);
        }
        if let Ok(Some(status)) = proc::zombie_status(process) {
            return Some(status);
        }
        if Instant::now() >= until {
            return None;
        }
        tokio::time::sleep(RECORDING / 100).await;
    }
}

/// Create: finished if runc has made the container, else undone, and begun
/// anew while that can be hoped to go better.
pub(crate) async fn create(
    tools: Tools,
    plan: Box<Plan>,
    mut held: Streams<Kept>,
) -> Result<Made, NotMade> {
    let words = [tools.place.id.as_str()];
    // One that had to be ended is begun anew all the same: it is undone wholly before.
    calls_over(&tools, &plan, &words, tools.deadlines.create).await;
    match finish(&tools, &plan).await {
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
            let why = Refusal::new(
                Kind::Unknown,
                "the shim died while it made the container; what was made is undone",
            );
            let not_made = undone(&tools, &plan, why).await;
            if not_made.undone && tools.place.takeovers <= ANEW_MAX {
                create::create(tools, plan, held).await
            } else {
                held.close_all(Duration::ZERO).await;
                Err(not_made)
            }
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
async fn finish(tools: &Tools, plan: &Plan) -> Option<Result<(Identified, Vec<Claim>), Refusal>> {
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
    let identified = again(tools, &plan.claims, pid, &[]).await;
    Some(identified.map(|identified| (identified, plan.claims.clone())))
}

/// Start: done if init was let run, else done now.
pub(crate) async fn start(
    tools: Tools,
    plan: Box<Plan>,
    init: Option<Incarnation>,
) -> Result<(), Refusal> {
    let words = ["start", tools.place.id.as_str()];
    starts_over(&tools, &plan, &words, tools.deadlines.start, init.as_ref()).await;
    if verbs::started(&tools, &plan) {
        return Ok(());
    }
    verbs::start(tools, plan, init).await
}

/// An update: done if its call has ended well. If not, it is done with its request,
/// which comes again: limits are what they were set to last.
pub(crate) async fn update(tools: &Tools, plan: &Plan, stop: Stop) -> Result<(), Refusal> {
    let words = ["update", tools.place.id.as_str()];
    let over = tokio::select! {
        over = calls_over(tools, plan, &words, tools.deadlines.update) => over,
        () = stop => calls_over(tools, plan, &words, Duration::ZERO).await,
    };
    if over.well { Ok(()) } else { Err(died_at_it()) }
}

/// A checkpoint: done if its call has ended well. If not it is not done again:
/// the first may have ended the container.
pub(crate) async fn checkpoint(tools: &Tools, plan: &Plan) -> Result<(), Refusal> {
    let words = ["checkpoint", tools.place.id.as_str()];
    let over = calls_over(tools, plan, &words, tools.deadlines.checkpoint).await;
    if over.well { Ok(()) } else { Err(died_at_it()) }
}

/// As the shim that made the call would have said.
fn overdue(verb: &str) -> Refusal {
    let says = format!("runc {verb}, begun by a shim that died, did not end in its time");
    Refusal::new(Kind::DeadlineExceeded, says)
}

/// Nobody can say how it went.
pub(crate) fn died_at_it() -> Refusal {
    Refusal::new(
        Kind::Unknown,
        "the shim died while it did this; whether it was done is not known",
    )
}

/// The start of a restore: what the runtime has made of it is undone.
pub(crate) async fn restore(tools: Tools, plan: Box<Plan>) -> Result<Option<Box<Begun>>, Refusal> {
    calls_over(
        &tools,
        &plan,
        &[tools.place.id.as_str()],
        tools.deadlines.restore,
    )
    .await;
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
    asked: Spec,
    mut held: Streams<Kept>,
    others: Vec<Process>,
    init: Option<Incarnation>,
) -> Result<Started, Refusal> {
    let file = pid_file(&tools, &exec);
    let words = [&*file.to_string_lossy()];
    let deadline = tools.deadlines.exec;
    let over = starts_over(&tools, &plan, &words, deadline, init.as_ref()).await;
    let Ok(pid) = identify::pid_in(&file) else {
        if over.killed {
            held.close_all(Duration::ZERO).await;
            return Err(overdue("exec"));
        }
        if tools.place.takeovers > ANEW_MAX {
            held.close_all(Duration::ZERO).await;
            return Err(Refusal::new(
                Kind::Unknown,
                format!("shims died while they started exec {exec}"),
            ));
        }
        return exec::start(tools, plan, exec, asked, held, init).await;
    };
    let found = match again(&tools, &plan.claims, pid, &others).await {
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

/// The same, of one that died among so many that its death is in the reaper's own memory by
/// now, which is looked into for who is pinned.
async fn among_many(
    tools: &Tools,
    claims: &[Claim],
    pid: u32,
    others: &[Process],
) -> Result<Identified, Refusal> {
    let cannot = "named in the runtime's pid file, cannot be found";
    let found = identify::identify(tools, claims, pid, 0).await;
    let found = found.map_err(|mut refusal| {
        refusal.says = format!("process {pid}, {cannot}: {}", refusal.says);
        refusal
    })?;
    if others.contains(&(pid, found.process.start_ticks)) {
        // Its slot goes when nobody is looked for any more.
        let says = format!("process {pid}, {cannot}");
        return Err(Refusal::new(Kind::Unknown, says));
    }
    Ok(found)
}

/// The process an earlier shim's runtime wrote down. That shim may have pinned
/// it, and it may have ended since. `others` are on record for something else:
/// what had its number before is not it.
async fn again(
    tools: &Tools,
    claims: &[Claim],
    pid: u32,
    others: &[Process],
) -> Result<Identified, Refusal> {
    let below = identify::is_below(tools, claims, pid)?;
    let seen = proc::incarnation(pid).map_err(|error| super::refusal(&error))?;
    // Dead, it was recorded before it could not be seen any more.
    let dead = || {
        let start_ticks = tools.exits.dead(pid, others)?.start_ticks;
        let boot = proc::boot_id().ok()?;
        let pid_ns = proc::pid_namespace().ok()?;
        Some(Incarnation {
            pid,
            start_ticks,
            pid_ns,
            boot,
            pidfd_inode: None,
        })
    };
    let Some(process) = seen.filter(|_| below).or_else(dead) else {
        return among_many(tools, claims, pid, others).await;
    };
    // By its start: deaths of any age are on record, and one may have had its number.
    let pinned = tools.control.register(pid, process.start_ticks, 0).await;
    let pin = pinned.map_err(|error| super::refusal(&error))?;
    Ok(Identified { process, pin })
}

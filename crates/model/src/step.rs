//! The rules themselves: [`step`] decides what an event does to a task.
//!
//! One `match` over what happened; the functions it calls decide and write
//! their decision into a `Draft`. Nothing here changes a task: that is
//! [`Step::commit`], which records first.

use crate::draft::{Draft, exec_len};
use crate::event::{Event, What};
use crate::phase::{Exec, ExecPhase, ExecPlan, Phase, Plan, Signalling, Task, Verb};
use crate::record::{Change, Record};
use crate::{Because, Effect, ExecId, Exit, Incarnation, Kind, Refusal, Status, TaskEvent, Who};

/// Execs that may run at one time. Each needs an exit record of its own, of
/// which there are 1016: one that could not be had would be noticed only when
/// the process runs.
pub const EXECS_MAX: usize = 1000;
/// Bytes that all that were not deleted may take in a snapshot: room for some
/// 1,600 of them.
pub const EXECS_LEN_MAX: usize = 800 << 10;
/// Signals on their way at one time.
pub const SIGNALLING_MAX: usize = 64;

/// Where records go before anything is done.
pub trait Ledger {
    /// Why a record could not be written.
    type Error;
    /// Writes the record down; when this returns, a crash no longer loses it.
    fn append(&mut self, record: &Record) -> Result<(), Self::Error>;
}

/// One decision: what to remember, then what to do.
#[must_use = "a step does nothing until it is committed"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    record: Option<Record>,
    effects: Vec<Effect>,
}

impl Step {
    /// Records the step, lets the task take it over, and gives up the effects.
    pub fn commit<L: Ledger>(
        self,
        task: &mut Task,
        ledger: &mut L,
    ) -> Result<Vec<Effect>, L::Error> {
        if let Some(record) = &self.record {
            ledger.append(record)?;
            task.apply(record);
        }
        Ok(self.effects)
    }

    /// What would be remembered; for tables, tests and the auditor.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// What would be done; for tables and tests.
    pub fn intended(&self) -> &[Effect] {
        &self.effects
    }
}

/// Decides what the event does to the task.
pub fn step(task: &Task, event: Event) -> Result<Step, Refusal> {
    let mut draft = Draft::new(task, event.at, event.asked);
    match event.what {
        What::CreateAsked(plan) => create_asked(&mut draft, plan)?,
        What::CreateDone { init, claims } => create_done(&mut draft, init, claims),
        What::CreateFailed { undone } => create_failed(&mut draft, undone),
        What::Asked(verb) => verb_asked(&mut draft, verb)?,
        What::Done { verb, init } => verb_done(&mut draft, verb, init),
        What::Failed(verb) => verb_failed(&mut draft, verb),
        What::ExecAsked { exec, plan } => exec_asked(&mut draft, exec, plan)?,
        What::ExecStartAsked(exec) => exec_start_asked(&mut draft, exec)?,
        What::ExecStartDone { exec, process } => exec_start_done(&mut draft, exec, process),
        What::ExecStartFailed(exec) => exec_start_failed(&mut draft, exec),
        What::ExecDeleteAsked(exec) => exec_delete_asked(&mut draft, exec)?,
        What::KillAsked { who, signal, all } => kill_asked(&mut draft, who, signal, all)?,
        What::KillDone { who, signal } => draft.change(Change::Signalled { who, signal }),
        What::Exited {
            who: Who::Init,
            exit,
        } => init_exited(&mut draft, exit),
        What::Exited {
            who: Who::Exec(exec),
            exit,
        } => exec_exited(&mut draft, exec, exit),
        What::RestGone => rest_gone(&mut draft),
        What::Drained(who) => drained(&mut draft, who),
        What::Overdue => overdue(&mut draft),
        What::SeenFrozen(frozen) => seen_frozen(&mut draft, frozen),
        What::Oom { count } => oom(&mut draft, count),
        What::Acked { seq } => draft.change(Change::Acked { seq }),
        What::ShutdownAsked => shutdown_asked(&mut draft),
    }
    let (record, effects) = draft.finish();
    Ok(Step { record, effects })
}

pub(crate) fn not_created() -> Refusal {
    Refusal::new(Kind::NotFound, "container not created")
}

pub(crate) fn no_exec(exec: &ExecId) -> Refusal {
    Refusal::new(Kind::NotFound, format!("exec {exec} does not exist"))
}

fn exhausted(says: impl Into<String>) -> Refusal {
    Refusal::new(Kind::ResourceExhausted, says)
}

fn finished() -> Refusal {
    Refusal::new(Kind::NotFound, "process already finished")
}

fn later(verb: Verb) -> Refusal {
    Refusal::new(Kind::Later, format!("{verb} is under way"))
}

fn cannot(verb: Verb, phase: &str) -> Refusal {
    Refusal::new(Kind::Unknown, format!("cannot {verb} a {phase} container"))
}

// --- create ---------------------------------------------------------------

fn create_asked(draft: &mut Draft<'_>, plan: Box<Plan>) -> Result<(), Refusal> {
    match draft.now().phase {
        Phase::Empty if draft.now().ending => Err(Refusal::new(
            Kind::FailedPrecondition,
            "this shim was told to shut down",
        )),
        Phase::Empty if draft.now().remains => Err(Refusal::new(
            Kind::FailedPrecondition,
            "an earlier create failed and could not be undone: something of it is left",
        )),
        Phase::Empty => {
            draft.change(Change::Creating(plan.clone()));
            draft.effect(Effect::Create(plan));
            Ok(())
        }
        Phase::Creating
        | Phase::Created { .. }
        | Phase::Running { .. }
        | Phase::Paused { .. }
        | Phase::Stopped { .. }
        | Phase::Deleted { .. } => Err(Refusal::new(
            Kind::AlreadyExists,
            "this shim already has its container",
        )),
    }
}

fn create_done(draft: &mut Draft<'_>, init: Option<Incarnation>, claims: Vec<crate::Claim>) {
    if draft.now().phase != Phase::Creating {
        return;
    }
    let pid = init.as_ref().map_or(0, |init| init.pid);
    draft.change(Change::Created { init, claims });
    if let Some(plan) = draft.plan() {
        let create = plan.create.clone();
        draft.publish(TaskEvent::Create {
            bundle: create.bundle,
            rootfs: create.rootfs,
            stdio: create.stdio,
            checkpoint: create.checkpoint,
            pid,
        });
    }
    draft.effect(Effect::AnswerCreate);
}

fn create_failed(draft: &mut Draft<'_>, undone: bool) {
    let again = undone && draft.now().remains; // of one that failed before
    if draft.now().phase != Phase::Creating && !again {
        return;
    }
    draft.change(if undone {
        Change::CreateUndone
    } else {
        Change::CreateNotUndone
    });
    draft.effect(Effect::Release(Who::Init));
    draft.effect(Effect::AnswerCreate);
}

// --- verbs on init --------------------------------------------------------

fn verb_asked(draft: &mut Draft<'_>, verb: Verb) -> Result<(), Refusal> {
    if let Some(first) = in_front_of(verb, draft) {
        return Err(later(first));
    }
    let refused = match (&draft.now().phase, verb) {
        // Not *not found*: containerd takes that for the end of it and removes
        // the bundle, with all that says what is left. On any other error it
        // hangs up and runs `delete`, which finishes the undoing.
        (Phase::Empty, Verb::Delete) if draft.now().remains => Some(Refusal::new(
            Kind::Unknown,
            "create failed and could not be undone: something of it is left",
        )),
        // Whoever made it has given up on it; its end comes within a deadline.
        (Phase::Creating, Verb::Delete) => Some(Refusal::new(Kind::Later, "create is under way")),
        // For containerd a deleted one is not there any more.
        (Phase::Empty | Phase::Creating, _)
        | (
            Phase::Deleted { .. },
            Verb::Start | Verb::Pause | Verb::Resume | Verb::Update | Verb::Checkpoint,
        ) => Some(not_created()),

        (Phase::Created { .. }, Verb::Start | Verb::Update | Verb::Delete)
        | (Phase::Running { .. }, Verb::Pause | Verb::Update | Verb::Checkpoint)
        | (Phase::Paused { .. }, Verb::Resume | Verb::Update | Verb::Checkpoint)
        | (Phase::Stopped { told: true, .. }, Verb::Delete) => None,

        (Phase::Created { .. }, Verb::Pause | Verb::Resume | Verb::Checkpoint) => {
            Some(cannot(verb, "created"))
        }

        (Phase::Running { .. }, Verb::Start | Verb::Resume | Verb::Delete) => {
            Some(cannot(verb, "running"))
        }

        (Phase::Paused { .. }, Verb::Start | Verb::Pause | Verb::Delete) => {
            Some(cannot(verb, "paused"))
        }

        (Phase::Stopped { told: false, .. }, Verb::Delete) => {
            Some(Refusal::new(Kind::Later, "the end of init is being told"))
        }
        (
            Phase::Stopped { .. },
            Verb::Start | Verb::Pause | Verb::Resume | Verb::Update | Verb::Checkpoint,
        ) => Some(cannot(verb, "stopped")),

        // A repeated Delete answers the same; containerd asks again when an
        // answer came too late for it.
        (Phase::Deleted { .. }, Verb::Delete) => {
            draft.effect(Effect::AnswerVerb(Verb::Delete));
            return Ok(());
        }
    };
    if let Some(refusal) = refused {
        return Err(refusal);
    }
    draft.change(Change::Busy(verb));
    draft.effect(Effect::Run(verb));
    Ok(())
}

/// The verb under way that `verb` has to wait for.
fn in_front_of(verb: Verb, draft: &Draft<'_>) -> Option<Verb> {
    let now = draft.now();
    let update = now.updating.then_some(Verb::Update);
    match verb {
        // What these two would be told after a start or a delete, they are told
        // at once: State says the same now, and either may take its time. An
        // update takes its time too, and does without the freezer, or finds
        // it as they leave it. A checkpoint does not: CRIU freezes.
        Verb::Pause | Verb::Resume => now.busy.filter(|busy| match busy {
            Verb::Start | Verb::Delete => false,
            Verb::Pause | Verb::Resume | Verb::Update | Verb::Checkpoint => true,
        }),
        // Limits for a container that goes: the update is ended, as the first
        // part of the Delete.
        Verb::Delete => now.busy,
        // The runtime keeps one file of state, and they all write it.
        Verb::Start | Verb::Update | Verb::Checkpoint => now.busy.or(update),
    }
}

fn verb_done(draft: &mut Draft<'_>, verb: Verb, init: Option<Incarnation>) {
    if !draft.now().is_at(verb) {
        return;
    }
    match verb {
        Verb::Start => {
            draft.change(Change::Started { init });
            if let Some(pid) = draft.now().phase.init().map(|init| init.pid) {
                draft.publish(TaskEvent::Start { pid });
            }
        }
        Verb::Pause => {
            if matches!(draft.now().phase, Phase::Running { .. }) {
                draft.change(Change::Frozen);
                draft.publish(TaskEvent::Paused);
            }
        }
        Verb::Resume => {
            if matches!(draft.now().phase, Phase::Paused { .. }) {
                draft.change(Change::Thawed);
                draft.publish(TaskEvent::Resumed);
            }
        }
        Verb::Update | Verb::Checkpoint => {}
        Verb::Delete => {
            force_execs(draft);
            answer_unstarted(draft);
            draft.change(Change::Deleted);
            if let Phase::Deleted { pid, exit } = draft.now().phase {
                draft.publish(TaskEvent::Delete { pid, exit });
                draft.effect(Effect::AnswerWaiters(Who::Init));
            }
            draft.effect(Effect::Release(Who::Init));
        }
    }
    draft.change(over(verb));
    draft.effect(Effect::AnswerVerb(verb));
    tell_init(draft);
}

fn over(verb: Verb) -> Change {
    match verb {
        Verb::Update => Change::Updated,
        Verb::Start | Verb::Pause | Verb::Resume | Verb::Checkpoint | Verb::Delete => Change::Idle,
    }
}

fn verb_failed(draft: &mut Draft<'_>, verb: Verb) {
    if !draft.now().is_at(verb) {
        return;
    }
    draft.change(over(verb));
    draft.effect(Effect::AnswerVerb(verb));
    // A restore that failed leaves nothing that could ever end: it is stopped,
    // so that Wait returns and Delete is allowed.
    if verb == Verb::Start && draft.now().phase == (Phase::Created { init: None }) {
        let exit = Exit {
            status: Status::Unknown(Because::NeverRan),
            at: draft.at(),
        };
        draft.change(Change::Exited {
            who: Who::Init,
            exit,
        });
        draft.change(Change::Told(Who::Init));
        draft.effect(Effect::AnswerWaiters(Who::Init));
        return;
    }
    tell_init(draft);
}

// --- execs ----------------------------------------------------------------

/// Whether the container takes new execs, or why not.
fn takes_execs(draft: &Draft<'_>) -> Result<(), Refusal> {
    match &draft.now().phase {
        // For containerd a deleted one is not there any more.
        Phase::Empty | Phase::Creating | Phase::Deleted { .. } => Err(not_created()),
        Phase::Created { init: Some(_) } | Phase::Running { .. } => Ok(()),
        Phase::Created { init: None } => Err(Refusal::new(
            Kind::Unknown,
            "cannot exec in a container that is to be restored",
        )),
        Phase::Paused { .. } => Err(Refusal::new(
            Kind::Unknown,
            "cannot exec in a paused container",
        )),
        Phase::Stopped { .. } => Err(Refusal::new(
            Kind::FailedPrecondition,
            "cannot exec in a stopped container",
        )),
    }
}

fn exec_asked(draft: &mut Draft<'_>, exec: ExecId, plan: ExecPlan) -> Result<(), Refusal> {
    // As long as State says *running*; it will not be started.
    if !draft.now().lingers() {
        takes_execs(draft)?;
    }
    if draft.now().execs.contains_key(&exec) {
        return Err(Refusal::new(
            Kind::AlreadyExists,
            format!("exec {exec} already exists"),
        ));
    }
    // All of them go into a snapshot, which has a bound.
    if draft.execs_len() + exec_len(&exec, &plan) > EXECS_LEN_MAX {
        return Err(exhausted(format!(
            "the container has {} execs that were not deleted, and the journal no room for another",
            draft.now().execs.len()
        )));
    }
    draft.change(Change::ExecAdded {
        exec: exec.clone(),
        plan,
    });
    draft.publish(TaskEvent::ExecAdded { exec });
    Ok(())
}

fn exec_start_asked(draft: &mut Draft<'_>, exec: ExecId) -> Result<(), Refusal> {
    let Some(found) = draft.now().execs.get(&exec) else {
        // Which container it is matters more than which exec.
        takes_execs(draft)?;
        return Err(no_exec(&exec));
    };
    match &found.phase {
        ExecPhase::Added => {}
        ExecPhase::Failed => {
            return Err(Refusal::new(
                Kind::Unknown,
                format!("exec {exec} failed to start before"),
            ));
        }
        ExecPhase::Starting | ExecPhase::Running { .. } => {
            return Err(Refusal::new(
                Kind::Unknown,
                format!("cannot start a running exec {exec}"),
            ));
        }
        ExecPhase::Stopped { .. } => {
            return Err(Refusal::new(
                Kind::Unknown,
                format!("cannot start a stopped exec {exec}"),
            ));
        }
    }
    takes_execs(draft)?;
    if draft.now().execs_alive() >= EXECS_MAX {
        let says = format!("{EXECS_MAX} execs run in the container");
        return Err(exhausted(says));
    }
    draft.change(Change::ExecStarting(exec.clone()));
    draft.effect(Effect::StartExec(exec));
    Ok(())
}

fn exec_start_done(draft: &mut Draft<'_>, exec: ExecId, process: Incarnation) {
    if draft.exec_phase(&exec) != Some(&ExecPhase::Starting) {
        // Its container was told as ended while it was being started.
        let who = Who::Exec(exec.clone());
        draft.effect(Effect::Discard { exec, process });
        draft.effect(Effect::Release(who));
        return;
    }
    let pid = process.pid;
    draft.change(Change::ExecStarted {
        exec: exec.clone(),
        process: process.clone(),
    });
    draft.publish(TaskEvent::ExecStarted {
        exec: exec.clone(),
        pid,
    });
    draft.effect(Effect::AnswerExecStart(exec.clone()));
    if draft.now().ends() {
        // It came after the rest was killed, and the deadline may have gone by.
        draft.effect(Effect::Discard { exec, process });
        draft.effect(Effect::ArmOverdue);
    }
}

fn exec_start_failed(draft: &mut Draft<'_>, exec: ExecId) {
    if draft.exec_phase(&exec) == Some(&ExecPhase::Starting) {
        draft.change(Change::ExecFailed(exec.clone()));
    }
    draft.effect(Effect::Release(Who::Exec(exec.clone())));
    draft.effect(Effect::AnswerExecStart(exec.clone()));
    draft.effect(Effect::AnswerWaiters(Who::Exec(exec)));
    tell_init(draft);
}

fn exec_delete_asked(draft: &mut Draft<'_>, exec: ExecId) -> Result<(), Refusal> {
    let Some(found) = draft.now().execs.get(&exec) else {
        return Err(match draft.now().phase {
            Phase::Empty | Phase::Creating => not_created(),
            Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Stopped { .. }
            | Phase::Deleted { .. } => no_exec(&exec),
        });
    };
    match &found.phase {
        ExecPhase::Added | ExecPhase::Failed | ExecPhase::Stopped { told: true, .. } => {
            let unstarted = found.phase == ExecPhase::Added;
            draft.change(Change::ExecDeleted(exec.clone()));
            if unstarted {
                // Nobody else will ever answer them.
                draft.effect(Effect::AnswerWaiters(Who::Exec(exec.clone())));
            }
            draft.effect(Effect::Release(Who::Exec(exec)));
            Ok(())
        }
        ExecPhase::Stopped { told: false, .. } => Err(Refusal::new(
            Kind::Later,
            format!("the end of exec {exec} is being told"),
        )),
        ExecPhase::Starting => Err(Refusal::new(
            Kind::Later,
            format!("exec {exec} is being started"),
        )),
        ExecPhase::Running { .. } => Err(Refusal::new(
            Kind::Unknown,
            format!("cannot delete a running exec {exec}"),
        )),
    }
}

fn exec_exited(draft: &mut Draft<'_>, exec: ExecId, exit: Exit) {
    if !matches!(draft.exec_phase(&exec), Some(ExecPhase::Running { .. })) {
        return;
    }
    draft.change(Change::Exited {
        who: Who::Exec(exec.clone()),
        exit,
    });
    draft.effect(Effect::Drain(Who::Exec(exec)));
}

// --- signals --------------------------------------------------------------

fn kill_asked(draft: &mut Draft<'_>, who: Who, signal: u32, all: bool) -> Result<(), Refusal> {
    let process = match &who {
        Who::Init => match &draft.now().phase {
            Phase::Empty | Phase::Creating => return Err(not_created()),
            Phase::Created { init: None } => {
                return Err(Refusal::new(
                    Kind::FailedPrecondition,
                    "the container is not restored yet",
                ));
            }
            Phase::Created { init: Some(init) }
            | Phase::Running { init }
            | Phase::Paused { init } => init.clone(),
            Phase::Stopped { .. } | Phase::Deleted { .. } => return Err(finished()),
        },
        Who::Exec(exec) => match draft.exec_phase(exec) {
            None if matches!(draft.now().phase, Phase::Empty | Phase::Creating) => {
                return Err(not_created());
            }
            None => return Err(no_exec(exec)),
            Some(ExecPhase::Added | ExecPhase::Starting | ExecPhase::Failed) => {
                return Err(Refusal::new(
                    Kind::FailedPrecondition,
                    format!("exec {exec} has no process to signal"),
                ));
            }
            Some(ExecPhase::Running { process }) => process.clone(),
            Some(ExecPhase::Stopped { .. }) => return Err(finished()),
        },
    };
    if draft.now().signalling.len() >= SIGNALLING_MAX {
        return Err(exhausted("too many signals are on their way"));
    }
    let asked = draft.asked();
    draft.change(Change::Signalling(Signalling {
        who: who.clone(),
        signal,
        all,
        asked,
    }));
    draft.effect(Effect::Signal {
        who,
        process,
        signal,
        all,
    });
    Ok(())
}

// --- the end --------------------------------------------------------------

fn init_exited(draft: &mut Draft<'_>, exit: Exit) {
    if draft.now().phase.live_init().is_none() {
        return;
    }
    let never_started = matches!(draft.now().phase, Phase::Created { .. });
    let deleting = draft.now().busy == Some(Verb::Delete);
    draft.change(Change::Exited {
        who: Who::Init,
        exit: draft.dated(exit),
    });
    if never_started && deleting {
        // runc delete took down what was never started: its Delete event
        // says all there is to say.
        draft.change(Change::Told(Who::Init));
        draft.effect(Effect::AnswerWaiters(Who::Init));
        return;
    }
    draft.effect(Effect::KillRest);
    draft.effect(Effect::Drain(Who::Init));
    draft.effect(Effect::ArmOverdue);
}

fn rest_gone(draft: &mut Draft<'_>) {
    if !matches!(draft.now().phase, Phase::Stopped { .. }) || draft.now().rest_gone {
        return;
    }
    draft.change(Change::RestGone);
    tell_init(draft);
}

fn drained(draft: &mut Draft<'_>, who: Who) {
    match &who {
        Who::Init => {
            if !matches!(draft.now().phase, Phase::Stopped { .. }) || draft.now().drained {
                return;
            }
            draft.change(Change::Drained(who));
            tell_init(draft);
        }
        Who::Exec(exec) => {
            let exec = exec.clone();
            let stopped =
                |exec: &Exec| matches!(exec.phase, ExecPhase::Stopped { told: false, .. });
            if !draft.now().execs.get(&exec).is_some_and(stopped) {
                return;
            }
            draft.change(Change::Drained(who));
            tell_exec(draft, &exec);
            tell_init(draft);
        }
    }
}

/// Says that an exec has ended: to its waiters and to containerd.
fn tell_exec(draft: &mut Draft<'_>, exec: &ExecId) {
    let Some(ExecPhase::Stopped {
        process,
        exit,
        told: false,
    }) = draft.exec_phase(exec)
    else {
        return;
    };
    let (pid, exit) = (process.pid, *exit);
    let who = Who::Exec(exec.clone());
    draft.change(Change::Told(who.clone()));
    draft.publish(TaskEvent::Exit {
        who: who.clone(),
        pid,
        exit,
    });
    draft.effect(Effect::AnswerWaiters(who));
}

/// Says that init has ended, once nothing else of the container can still
/// have to be said before: the start event, every exec's exit, the rest of
/// the container gone, the output carried away.
fn tell_init(draft: &mut Draft<'_>) {
    let Phase::Stopped {
        init,
        exit,
        told: false,
    } = &draft.now().phase
    else {
        return;
    };
    if draft.now().busy == Some(Verb::Start)
        || !draft.now().rest_gone
        || !draft.now().drained
        || draft.now().owes_execs()
    {
        return;
    }
    let (pid, exit) = (init.as_ref().map_or(0, |init| init.pid), *exit);
    draft.change(Change::Told(Who::Init));
    draft.publish(TaskEvent::Exit {
        who: Who::Init,
        pid,
        exit,
    });
    draft.effect(Effect::AnswerWaiters(Who::Init));
}

/// Init's end has waited long enough: execs not seen to end are told as
/// unknown, and init's end is told. One that is being started still has a
/// deadline of its own, and what comes of it is told before.
fn overdue(draft: &mut Draft<'_>) {
    if !draft.now().ends() {
        return;
    }
    force_ends(draft);
    if !draft.now().rest_gone {
        draft.change(Change::RestGone);
    }
    if !draft.now().drained {
        draft.change(Change::Drained(Who::Init));
    }
    tell_init(draft);
}

/// Ends the story of every exec that is still open: nothing of the container
/// may be told after its own end.
fn force_execs(draft: &mut Draft<'_>) {
    for (exec, phase) in phases(draft) {
        if phase == ExecPhase::Starting {
            draft.change(Change::ExecFailed(exec.clone()));
            draft.effect(Effect::AnswerExecStart(exec.clone()));
            draft.effect(Effect::AnswerWaiters(Who::Exec(exec)));
        }
    }
    force_ends(draft);
}

fn phases(draft: &Draft<'_>) -> Vec<(ExecId, ExecPhase)> {
    let execs = draft.now().execs.iter();
    execs
        .map(|(id, exec)| (id.clone(), exec.phase.clone()))
        .collect()
}

/// Tells the end of every exec that ran.
fn force_ends(draft: &mut Draft<'_>) {
    for (exec, phase) in phases(draft) {
        match phase {
            ExecPhase::Running { .. } => {
                let status = Status::Unknown(Because::NotSeenInTime);
                let exit = Exit {
                    status,
                    at: draft.at(),
                };
                draft.change(Change::Exited {
                    who: Who::Exec(exec.clone()),
                    exit,
                });
                tell_exec(draft, &exec);
            }
            ExecPhase::Stopped { told: false, .. } => tell_exec(draft, &exec),
            ExecPhase::Added
            | ExecPhase::Starting
            | ExecPhase::Failed
            | ExecPhase::Stopped { told: true, .. } => {}
        }
    }
}

/// Execs that were never started end with their container: who waits for one
/// would wait for ever.
fn answer_unstarted(draft: &mut Draft<'_>) {
    let execs = draft.now().execs.iter();
    let unstarted: Vec<ExecId> = execs
        .filter(|(_, exec)| exec.phase == ExecPhase::Added)
        .map(|(id, _)| id.clone())
        .collect();
    for exec in unstarted {
        draft.effect(Effect::AnswerWaiters(Who::Exec(exec)));
    }
}

/// What is seen outranks what was done last: the container stands still by
/// somebody else's hand, or runs again by it. Not while a verb may be at it.
fn seen_frozen(draft: &mut Draft<'_>, frozen: bool) {
    if draft.now().verbs().next().is_some() {
        return;
    }
    match (&draft.now().phase, frozen) {
        (Phase::Running { .. }, true) => {
            draft.change(Change::Frozen);
            draft.publish(TaskEvent::Paused);
        }
        (Phase::Paused { .. }, false) => {
            draft.change(Change::Thawed);
            draft.publish(TaskEvent::Resumed);
        }
        (
            Phase::Empty
            | Phase::Creating
            | Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Stopped { .. }
            | Phase::Deleted { .. },
            _,
        ) => {}
    }
}

fn oom(draft: &mut Draft<'_>, count: u64) {
    if count <= draft.now().ooms {
        return;
    }
    let silent = match draft.now().phase {
        Phase::Empty | Phase::Creating | Phase::Deleted { .. } => return,
        Phase::Stopped { told, .. } => told,
        Phase::Created { .. } | Phase::Running { .. } | Phase::Paused { .. } => false,
    };
    draft.change(Change::Oom { count });
    if !silent {
        draft.publish(TaskEvent::Oom);
    }
}

fn shutdown_asked(draft: &mut Draft<'_>) {
    match draft.now().phase {
        Phase::Empty | Phase::Deleted { .. } => {
            if !draft.now().ending {
                draft.change(Change::Ending);
            }
            draft.effect(Effect::Leave);
        }
        // No-op while there is a container; containerd asks again.
        Phase::Creating
        | Phase::Created { .. }
        | Phase::Running { .. }
        | Phase::Paused { .. }
        | Phase::Stopped { .. } => {}
    }
}

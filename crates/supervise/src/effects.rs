//! What the rules ask for, done: the quick things at once, the rest as jobs.
//! Each job ends in one message, taken here, which first keeps the answer and
//! then lets the rules decide when it is due.

use std::time::Duration;

use vigil_host::cgroup::{Cgroup, Freeze};
use vigil_model::{
    Answer, Effect, ExecId, ExecPhase, Incarnation, Kind, Phase, Plan, Refusal, Request, Verb,
    What, Who, waited,
};
use vigil_sys::points::{self, Point};

use crate::desk::Reply;
use crate::exits::exit_of;
use crate::jobs::create::{Begun, Made, NotMade};
use crate::jobs::{self, exec::Started, gone, update::Updating, verbs};
use crate::owner::{Ending, Message, Owner};
use crate::{asked, clock, ooms};

/// How long init's exit waits for its execs' and for its output; above what
/// streams may take by themselves.
const OVERDUE: Duration = Duration::from_secs(3);
/// How long the events get at the end.
const FLUSH: Duration = Duration::from_secs(1);

/// What a copy gets at Delete to hand on what is in its pipe still, and what
/// closing all of them may take.
const LAST_BYTES: Duration = Duration::from_millis(100);
const CLOSING: Duration = Duration::from_millis(500);

/// A process that can die has died by then.
const DYING: Duration = Duration::from_secs(2);

/// Work ends with a pause of this length.
const QUIET: Duration = Duration::from_millis(200);

/// How Create ended.
pub(crate) type CreateOver = Result<Made, NotMade>;
/// How a verb ended; a restore brings what it made.
pub(crate) type VerbOver = Result<Option<Box<Begun>>, Refusal>;
/// How the start of an exec ended.
pub(crate) type ExecOver = Result<Started, Refusal>;

impl Owner {
    pub(crate) fn enact(&mut self, effect: Effect) {
        match effect {
            Effect::Create(plan) => {
                let number = self.streams_number(&Who::Init);
                let tools = self.hands.tools.clone();
                let streams = tools.streams(number);
                self.create_again(jobs::create::create(tools, plan, streams));
            }
            Effect::Run(verb) => self.run_verb(verb),
            Effect::StartExec(exec) => self.start_exec(exec),
            Effect::Signal {
                who,
                process,
                signal,
                all,
            } => {
                let private = self
                    .task
                    .plan
                    .as_ref()
                    .is_some_and(|plan| plan.private_pid_ns);
                points::reach(Point::SignalNotSent);
                self.hands.spend();
                let outcome = self.hands.signal(&who, &process, signal, all, private);
                self.hands.save();
                points::reach(Point::SignalSent);
                self.signal_outcome = Some(outcome);
            }
            Effect::Discard { exec: _, process } => {
                let tools = self.hands.tools.clone();
                tokio::spawn(async move {
                    jobs::exec::discard(&tools, &process, None).await;
                });
            }
            Effect::KillRest => self.kill_rest(),
            Effect::Drain(who) => match self.hands.streams.get(&who) {
                Some(streams) => {
                    let drained = streams.process_gone();
                    self.job(async {
                        drained.await;
                        Message::Happened(What::Drained(who))
                    });
                }
                None => self.soon(What::Drained(who)),
            },
            Effect::ArmOverdue => self.job(async {
                tokio::time::sleep(OVERDUE).await;
                Message::Happened(What::Overdue)
            }),
            Effect::Release(who) => self.hands.release(&who),
            Effect::AnswerCreate => self.replies.answer_create(),
            Effect::AnswerVerb(verb) => {
                if verb == Verb::Delete
                    && let Phase::Deleted { pid, exit } = self.task.standing.phase
                {
                    self.replies.verb_outcome(
                        verb,
                        Ok(Answer::Deleted {
                            pid,
                            exit: Some(exit),
                        }),
                    );
                }
                self.replies.answer_verb(verb);
            }
            Effect::AnswerExecStart(exec) => self.replies.answer_exec(&exec),
            Effect::AnswerWaiters(who) => {
                let outcome = match waited(&self.task, &who, clock::now()) {
                    Ok(Some(exit)) => Ok(Answer::Exit(exit)),
                    // Deleted before it was told: nobody will ever know more.
                    Ok(None) => Err(Refusal::new(Kind::Unknown, format!("{who} is gone"))),
                    Err(refusal) => Err(refusal),
                };
                self.replies.answer_waiters(&who, &outcome);
            }
            Effect::Publish => self.news.ring(),
            Effect::Leave => self.leave(Ending::Shutdown),
        }
    }

    /// Presents a request again when something is over; until then nothing of it is done.
    pub(crate) fn later(
        &self,
        over: impl Future<Output = ()> + Send + 'static,
        request: Request,
        reply: Reply,
    ) {
        let from = self.asking;
        self.job(async move {
            over.await;
            Message::Ask {
                request,
                from,
                reply,
            }
        });
    }

    /// Runs a job beside the owner; its message comes back through the desk.
    pub(crate) fn job(&self, job: impl Future<Output = Message> + Send + 'static) {
        let desk = self.desk.clone();
        tokio::spawn(async move {
            let message = job.await;
            // The owner is gone only when the pair leaves.
            let _ = desk.send(message).await;
        });
    }

    /// Something that happens after the present turn.
    fn soon(&self, what: What) {
        self.job(async { Message::Happened(what) });
    }

    pub(crate) fn leave(&mut self, ending: Ending) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(ending);
        self.job(async {
            tokio::time::sleep(FLUSH).await;
            Message::Flushed
        });
    }

    pub(crate) fn arm_idle(&mut self) {
        if std::mem::replace(&mut self.idle_armed, true) {
            return;
        }
        let idle = self.place.limits.idle;
        self.job(async move {
            tokio::time::sleep(idle).await;
            Message::Idle
        });
    }

    /// Looks once more, later, at an init that was killed.
    pub(crate) fn watch_it_die(&self) {
        self.job(async {
            tokio::time::sleep(DYING).await;
            Message::DeadByNow
        });
    }

    /// Clears Create's way; its message brings the request back.
    pub(crate) fn clear(&self, plan: Plan, reply: Reply) {
        let tools = self.hands.tools.clone();
        let from = self.asking;
        let plan = Box::new(plan);
        self.job(async move {
            let create = Box::new(plan.create.clone());
            let over = jobs::clear::clear(tools, plan).await;
            Message::Cleared {
                create,
                from,
                reply,
                over,
            }
        });
    }

    /// Undoes once more what a Create has left; its message brings the request back.
    pub(crate) fn undo(
        &mut self,
        plan: Box<Plan>,
        create: vigil_model::request::Create,
        reply: Reply,
    ) {
        self.undoing = true;
        let (tools, from) = (self.hands.tools.clone(), self.asking);
        self.job(async move {
            let undone = gone::undo(&tools, &plan).await;
            Message::Undone {
                create: Box::new(create),
                from,
                reply,
                undone,
            }
        });
    }

    /// There are many shims and each mostly waits: what work needed of memory
    /// is given back a moment after the last of it. One timer, and none while
    /// nothing happens.
    pub(crate) fn arm_quiet(&mut self) {
        if std::mem::take(&mut self.resting) {
            self.job(async {
                tokio::time::sleep(QUIET).await;
                Message::Quiet
            });
        }
    }

    fn run_verb(&mut self, verb: Verb) {
        let Some(plan) = self.task.plan.clone() else {
            return;
        };
        let tools = self.hands.tools.clone();
        let wish = self.hands.take_wish();
        let number = self.streams_number(&Who::Init);
        match verb {
            Verb::Start if self.task.standing.phase.init().is_none() => self.job(async move {
                let mut claims = plan.claims.clone();
                let streams = tools.streams(number);
                let over = jobs::create::begin(&tools, &plan, &mut claims, streams).await;
                if over.is_err() {
                    // The runtime may have restored it, wholly or partly.
                    gone::undo(&tools, &plan).await;
                }
                Message::VerbOver {
                    verb,
                    over: over.map(|begun| Some(Box::new(begun))),
                }
            }),
            Verb::Start => {
                let init = self.init();
                self.job(async move {
                    let over = verbs::start(tools, plan, init).await.map(|()| None);
                    Message::VerbOver { verb, over }
                });
            }
            Verb::Pause | Verb::Resume => {
                let cgroup = self.hands.cgroup.clone();
                self.job(async move {
                    let over = match cgroup {
                        Some(cgroup) => verbs::freeze(cgroup, verb == Verb::Pause).await,
                        None => Err(Refusal::new(
                            Kind::Unknown,
                            "the container's cgroup is not known",
                        )),
                    };
                    Message::VerbOver {
                        verb,
                        over: over.map(|()| None),
                    }
                });
            }
            Verb::Update => {
                let resources = match wish {
                    Some(Request::Update(resources)) => resources,
                    _ => Vec::new(),
                };
                let (update, stop, at_it) = Updating::begin();
                self.hands.keep_update(update);
                self.job(async move {
                    let over = verbs::update(tools, plan, resources, stop).await;
                    drop(at_it);
                    Message::VerbOver {
                        verb,
                        over: over.map(|()| None),
                    }
                });
            }
            Verb::Checkpoint => {
                let how = match wish {
                    Some(Request::Checkpoint(how)) => how,
                    _ => Box::default(),
                };
                self.job(async move {
                    let over = verbs::checkpoint(tools, plan, how).await;
                    Message::VerbOver {
                        verb,
                        over: over.map(|()| None),
                    }
                });
            }
            Verb::Delete => self.delete(),
        }
    }

    /// Deletes: what was never started is killed first; streams are closed
    /// before anything is answered, so that nothing of them outlives it.
    pub(crate) fn delete(&mut self) {
        let Some(plan) = self.task.plan.clone() else {
            return;
        };
        let tools = self.hands.tools.clone();
        let never_started = matches!(self.task.standing.phase, Phase::Created { .. });
        let end = self.end();
        let cgroup = self.hands.cgroup.clone();
        let streams = std::mem::take(&mut self.hands.streams);
        let pin = self.hands.pins.get(&Who::Init).copied();
        let update = self.hands.take_update();
        self.hands.spend();
        let until = std::time::Instant::now() + gone::DELETE_WAIT;
        self.job(async move {
            if let Some(update) = update {
                update.end().await;
            }
            if never_started
                && let Some(cgroup) = cgroup
                && let Some(init) = &end.init
            {
                let family = gone::family(&tools.place, plan.private_pid_ns, Some(init));
                if !gone::end_created(&family, &cgroup, init).await {
                    let held = holdouts(&cgroup);
                    return Message::VerbOver {
                        verb: Verb::Delete,
                        over: Err(Refusal::new(
                            Kind::FailedPrecondition,
                            format!("cannot delete a container that does not die: {held}"),
                        )),
                    };
                }
                if let Some(pin) = pin {
                    seen(&tools, pin).await;
                }
            }
            // All at once, whatever their number. A logger may take its time
            // to end; Delete does not.
            let closing: Vec<_> = streams
                .into_values()
                .map(|streams| tokio::spawn(streams.close_all(LAST_BYTES)))
                .collect();
            let closed = async {
                for one in closing {
                    // An error is a panic; its ends are closed then.
                    let _ = one.await;
                }
            };
            let _ = tokio::time::timeout(CLOSING, closed).await;
            points::reach(Point::DeleteDrained);
            let over = gone::delete(tools, plan, end, until).await;
            Message::VerbOver {
                verb: Verb::Delete,
                over: over.map(|()| None),
            }
        });
    }

    /// What is known of init's end.
    pub(crate) fn end(&self) -> gone::End {
        gone::End::of(&self.task.standing)
    }

    fn start_exec(&mut self, exec: ExecId) {
        let (Some(plan), Some(asked)) = (
            self.task.plan.clone(),
            self.task.exec_plans.get(&exec).cloned(),
        ) else {
            return;
        };
        let tools = self.hands.tools.clone();
        let number = self.streams_number(&Who::Exec(exec.clone()));
        let streams = tools.streams(number);
        let spec = asked::spec(&self.place, &exec, &asked);
        let asked = (asked.stdio, spec);
        let job = jobs::exec::start(tools, plan, exec.clone(), asked, streams, self.init());
        self.exec_again(exec, job);
    }

    /// Init, if there is one, dead or alive.
    pub(crate) fn init(&self) -> Option<Incarnation> {
        self.task.standing.phase.init().cloned()
    }

    /// Creates, or goes on doing so.
    pub(crate) fn create_again(&self, job: impl Future<Output = CreateOver> + Send + 'static) {
        self.job(async { Message::CreateOver(Box::new(job.await)) });
    }

    /// Starts an exec, or goes on doing so.
    pub(crate) fn exec_again(
        &self,
        exec: ExecId,
        job: impl Future<Output = ExecOver> + Send + 'static,
    ) {
        self.job(async move {
            let over = Box::new(job.await);
            Message::ExecOver { exec, over }
        });
    }

    /// A verb the shim before this one had under way.
    pub(crate) fn run_verb_again(&mut self, verb: Verb) {
        let Some(plan) = self.task.plan.clone() else {
            return;
        };
        let tools = self.hands.tools.clone();
        match verb {
            Verb::Start if self.task.standing.phase.init().is_none() => self.job(async move {
                let over = jobs::resume::restore(tools, plan).await;
                Message::VerbOver { verb, over }
            }),
            Verb::Start => {
                let init = self.init();
                self.job(async move {
                    let over = jobs::resume::start(tools, plan, init).await;
                    let over = over.map(|()| None);
                    Message::VerbOver { verb, over }
                });
            }
            // The kernel is asked the same again.
            Verb::Pause | Verb::Resume => self.run_verb(verb),
            Verb::Update => {
                let (update, stop, at_it) = Updating::begin();
                self.hands.keep_update(update);
                self.resumed = Some((verb, false));
                self.job(async move {
                    let over = jobs::resume::update(&tools, &plan, stop).await;
                    drop(at_it);
                    Message::VerbOver {
                        verb,
                        over: over.map(|()| None),
                    }
                });
            }
            Verb::Checkpoint => {
                self.resumed = Some((verb, false));
                self.job(async move {
                    let over = jobs::resume::checkpoint(&tools, &plan).await;
                    Message::VerbOver {
                        verb,
                        over: over.map(|()| None),
                    }
                });
            }
            Verb::Delete => {
                let deadline = gone::DELETE_WAIT / 2;
                self.job(async move {
                    let words = ["delete", tools.place.id.as_str()];
                    jobs::resume::calls_over(&tools, &plan, &words, deadline).await;
                    Message::DeleteAgain
                });
            }
        }
    }

    /// After init's end. In a pid namespace of its own the kernel has already
    /// taken everything else down; frozen leftovers are thawed all the same.
    fn kill_rest(&mut self) {
        let Some(plan) = self.task.plan.clone() else {
            return self.soon(What::RestGone);
        };
        if !plan.private_pid_ns {
            self.hands.spend();
            let (tools, end) = (self.hands.tools.clone(), self.end());
            return self.job(async move {
                gone::end_rest(&tools, &plan, end).await;
                Message::Happened(What::RestGone)
            });
        }
        if let Some(cgroup) = &self.hands.cgroup
            && let Err(error) = cgroup.thaw_all()
        {
            log::warn!("not thawed: {}", vigil_host::chain(&error));
        }
        self.soon(What::RestGone);
    }

    // --- jobs that ended ----------------------------------------------------

    pub(crate) fn create_over(&mut self, over: CreateOver) {
        match over {
            Ok(Made { begun, claims }) => {
                let init = begun.as_ref().map(|begun| begun.init.clone());
                let pid = init.as_ref().map_or(0, |init| init.pid);
                if let Some(begun) = begun {
                    self.possess(begun);
                }
                self.replies.create_outcome = Some(Ok(Answer::Pid(pid)));
                points::reach(Point::CreatedNotJournaled);
                self.happen(What::CreateDone { init, claims });
                points::reach(Point::CreatedNotTold);
                self.look_at_exits();
            }
            Err(NotMade { why, undone }) => {
                self.replies.create_outcome = Some(Err(why));
                self.happen(What::CreateFailed { undone });
                self.arm_idle();
            }
        }
    }

    fn possess(&mut self, begun: Begun) {
        self.hands.streams.insert(Who::Init, begun.streams);
        self.hands.pins.insert(Who::Init, begun.pin);
        self.know(&Who::Init, &begun.init);
        self.hands.cgroup = Some(begun.cgroup);
        if let Some(watch) = &begun.oom {
            ooms::listen(watch, self.desk.clone());
        }
        self.hands.oom = begun.oom;
    }

    pub(crate) fn verb_over(&mut self, verb: Verb, over: VerbOver) {
        if let Some((resumed, well)) = &mut self.resumed
            && *resumed == verb
        {
            *well = over.is_ok();
        }
        self.settle(verb, over);
        if verb == Verb::Update {
            self.pause_outlives_update();
        }
    }

    fn settle(&mut self, verb: Verb, over: VerbOver) {
        self.hands.save();
        if verb == Verb::Pause {
            self.hands.let_die();
        }
        match over {
            Ok(begun) => {
                let init = begun.as_ref().map(|begun| begun.init.clone());
                if let Some(begun) = begun {
                    self.possess(*begun);
                }
                if verb == Verb::Delete {
                    // What died of being deleted is told before.
                    self.look_at_exits();
                }
                let init_pid = self
                    .task
                    .standing
                    .phase
                    .init()
                    .or(init.as_ref())
                    .map(|init| init.pid);
                let answer = match (verb, init_pid) {
                    (Verb::Start, Some(pid)) => Answer::Pid(pid),
                    _ => Answer::Done,
                };
                self.replies.verb_outcome(verb, Ok(answer));
                match verb {
                    Verb::Start => points::reach(Point::StartedNotJournaled),
                    Verb::Pause => points::reach(Point::PausedNotJournaled),
                    Verb::Delete => points::reach(Point::DeletedNotJournaled),
                    Verb::Resume | Verb::Update | Verb::Checkpoint => {}
                }
                self.happen(What::Done { verb, init });
                if verb == Verb::Delete {
                    points::reach(Point::DeletedNotTold);
                    self.arm_idle();
                }
                self.look_at_exits();
            }
            Err(refusal) => {
                self.replies.verb_outcome(verb, Err(refusal));
                self.happen(What::Failed(verb));
                self.leave_nothing_frozen();
                // A runc that fails may have seen what we have not yet.
                self.look_at_exits();
            }
        }
    }

    pub(crate) fn exec_over(&mut self, exec: ExecId, over: ExecOver) {
        let pid_file = jobs::exec::pid_file(&self.hands.tools, &exec);
        let at = exec.clone();
        match over {
            Ok(started) => {
                let who = Who::Exec(exec.clone());
                let pid = started.process.pid;
                self.hands.streams.insert(who.clone(), started.streams);
                self.hands.pins.insert(who.clone(), started.pin);
                self.know(&who, &started.process);
                self.replies.exec_outcome(&exec, Ok(Answer::Pid(pid)));
                self.happen(What::ExecStartDone {
                    exec,
                    process: started.process,
                });
                points::reach(Point::ExecStartedNotTold);
                self.look_at_exits();
            }
            Err(refusal) => {
                self.replies.exec_outcome(&exec, Err(refusal));
                self.happen(What::ExecStartFailed(exec));
                self.leave_nothing_frozen();
            }
        }
        // Recorded now, one way or the other.
        asked::started(&self.place, &at, self.task.exec_plans.get(&at));
        vigil_host::runc::forget_pid_file(&pid_file);
    }

    /// A runtime that was killed, or gave up, may have frozen the container for
    /// a moment and not thawed it; nobody else would. Its own cgroup only:
    /// what is frozen below it, its workload froze.
    fn leave_nothing_frozen(&self) {
        if matches!(
            self.task.standing.phase,
            Phase::Created { .. } | Phase::Running { .. }
        ) && self.task.standing.verbs().next().is_none()
            && let Some(cgroup) = &self.hands.cgroup
            && let Err(error) = cgroup.request_freeze(false)
        {
            log::warn!("not thawed: {}", vigil_host::chain(&error));
        }
    }

    /// For some changes runc has the container stand still and lets it go then,
    /// also if it was paused meanwhile.
    fn pause_outlives_update(&self) {
        let now = &self.task.standing;
        if matches!(now.phase, Phase::Paused { .. })
            && now.verbs().next().is_none()
            && let Some(cgroup) = &self.hands.cgroup
            && let Err(error) = cgroup.request_freeze(true)
        {
            log::warn!("not frozen again: {}", vigil_host::chain(&error));
        }
    }

    // --- looking --------------------------------------------------------------

    /// Takes the deaths the reaper recorded: execs first, init last, and the
    /// OOM counter before init, whose cgroup may vanish with it.
    pub(crate) fn look_at_exits(&mut self) {
        let mut dead = Vec::new();
        let mut unrecorded = Vec::new();
        for (who, pin) in &self.hands.pins {
            match self.hands.tools.exits.pinned(*pin) {
                Some(death) => dead.push((who.clone(), exit_of(&death))),
                None => unrecorded.push(who.clone()),
            }
        }
        for who in unrecorded {
            if self.awaited(&who).is_none() {
                // Told, by a shim before this one: nobody waits for the reaper to see it too.
                self.hands.let_go(&who);
                continue;
            }
            let exit = self.unrecorded_end(&who);
            dead.extend(exit.map(|exit| (who, exit)));
        }
        dead.sort_by(|(a, _), (b, _)| b.cmp(a));
        for (who, exit) in dead {
            if self.awaited(&who).is_none() {
                continue;
            }
            if who == Who::Init {
                self.look_at_ooms();
            }
            let gate = match who {
                Who::Init => Point::ExitJournaled,
                Who::Exec(_) => Point::ExecExitJournaled,
            };
            self.happen(What::Exited {
                who: who.clone(),
                exit,
            });
            points::reach(gate);
            self.hands.let_go(&who);
            // On record: another process can have its place.
            if let Who::Exec(_) = who
                && self.ledger.takes_new_work().is_ok()
            {
                self.hands.unpin(&who);
            }
        }
    }

    /// Takes over what others have done to the container's cgroup.
    pub(crate) fn look_at_freezer(&mut self) {
        let still = match self.task.standing.phase {
            Phase::Running { .. } => false,
            Phase::Paused { .. } => true,
            Phase::Empty
            | Phase::Creating
            | Phase::Created { .. }
            | Phase::Stopped { .. }
            | Phase::Deleted { .. } => return,
        };
        if self.task.standing.verbs().next().is_some() {
            return;
        }
        let seen = self.hands.cgroup.as_ref().and_then(|cgroup| {
            let state = cgroup.freeze_state().ok()??;
            match state {
                Freeze::Frozen => Some(true),
                Freeze::Thawed => Some(false),
                Freeze::Freezing => None,
            }
        });
        if let Some(seen) = seen.filter(|seen| *seen != still) {
            self.happen(What::SeenFrozen(seen));
        }
    }

    /// The process, if its end is still news.
    pub(crate) fn awaited(&self, who: &Who) -> Option<Incarnation> {
        match who {
            Who::Init => self.task.standing.phase.live_init().cloned(),
            Who::Exec(exec) => match &self.task.standing.execs.get(exec)?.phase {
                ExecPhase::Running { process } => Some(process.clone()),
                ExecPhase::Added
                | ExecPhase::Starting
                | ExecPhase::Failed
                | ExecPhase::Stopped { .. } => None,
            },
        }
    }
}

/// Who does not die, in words.
fn holdouts(cgroup: &Cgroup) -> String {
    match cgroup.holdouts() {
        Ok(held) if held.is_empty() => "its cgroup does not get empty".to_owned(),
        Ok(held) => {
            let held: Vec<String> = held.iter().take(4).map(ToString::to_string).collect();
            held.join("; ")
        }
        Err(error) => vigil_host::chain(&error),
    }
}

/// Waits until the death of the process pinned there is recorded; bounded.
async fn seen(tools: &jobs::Tools, pin: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    let mut pause = Duration::from_micros(200);
    while tools.exits.pinned(pin).is_none() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

//! The shim as the supervisor crate has it, in miniature: one owner, a turn
//! for each thing that happens, effects done in order, the rest as jobs. It
//! may die at any point of a turn (`point`). The rules, the journal and the
//! records are the real ones.

use std::collections::{BTreeMap, VecDeque};

use vigil_model::request::Shown;
use vigil_model::{
    Claim, Effect, Event, ExecId, ExecPhase, Exit, Kind, Moment, Phase, Plan, Refusal, Step, Task,
    TaskEvent, Verb, What, Who, show, step, waited,
};

use crate::action::Ask;
use crate::book::{Book, Key};
use crate::host::{Host, Seen};
use crate::jobs::{Job, Work};
use crate::ledger::{Dead, ShimLedger};
use crate::records::{Records, exit_of};

/// A point at which the process may die.
pub type Alive<T = ()> = Result<T, Dead>;

/// What dies with the shim.
#[derive(Debug)]
pub struct Shim {
    /// What it knows.
    pub task: Task,
    /// Where that is recorded.
    pub ledger: ShimLedger,
    /// The task when recording failed: what a journal must still tell.
    pub kept: Option<Box<Task>>,
    /// What is under way.
    pub jobs: BTreeMap<u32, Job>,
    next_job: u32,
    /// Whose end is looked for in which slot.
    pub pins: BTreeMap<Who, usize>,
    /// The claims of the cgroup it has open.
    pub group: Option<Vec<Claim>>,
    /// Init was sent SIGKILL.
    pub killed: bool,
    /// Waits that are pending.
    pub waiting: BTreeMap<Who, u32>,
    /// Requests that are pending: Create, verbs, starts of execs.
    pub pending: BTreeMap<Pending, u32>,
    deferred: VecDeque<Ask>,
    /// `Some(true)`: the pair leaves for good; `Some(false)`: the reaper does.
    pub leaving: Option<bool>,
    /// The time for flushing is over.
    pub flushed: bool,
    /// The deadline of init's end has passed.
    pub overdue: bool,
}

/// What a pending request waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pending {
    /// Create.
    Create,
    /// A verb.
    Verb(Verb),
    /// The start of an exec.
    Exec(ExecId),
}

/// The shim at work, with all it can reach.
pub struct Turn<'w> {
    /// The shim.
    pub shim: &'w mut Shim,
    /// The host.
    pub host: &'w mut Host,
    /// The exit records.
    pub records: &'w mut Records,
    /// The auditor.
    pub book: &'w mut Book,
    /// What Create would set out to make.
    pub plan: &'w Plan,
    /// A Create is called undone also when it is not.
    pub forgetful: bool,
    /// Points until death.
    pub fuse: &'w mut Option<u32>,
    /// The time.
    pub now: Moment,
}

impl Shim {
    /// A shim with an open journal. A takeover would give it the task the
    /// journal tells of; today that is always the first one.
    pub fn new(ledger: ShimLedger, task: Task) -> Self {
        Self {
            task,
            ledger,
            kept: None,
            jobs: BTreeMap::new(),
            next_job: 0,
            pins: BTreeMap::new(),
            group: None,
            killed: false,
            waiting: BTreeMap::new(),
            pending: BTreeMap::new(),
            deferred: VecDeque::new(),
            leaving: None,
            flushed: false,
            overdue: false,
        }
    }

    /// Answered and gone: what is still pending when all has come to rest.
    pub fn unanswered(&self) -> Vec<String> {
        let pending = self.pending.keys().map(|p| format!("{p:?}"));
        let waiting = self.waiting.keys().map(|who| format!("Wait({who})"));
        let deferred = self.deferred.iter().map(|ask| format!("{ask:?}"));
        pending.chain(waiting).chain(deferred).collect()
    }
}

impl Turn<'_> {
    /// The process may die here.
    pub fn point(&mut self) -> Alive {
        match self.fuse {
            Some(0) => Err(Dead),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn decide(&self, what: What) -> Result<Step, Refusal> {
        let at = self.now;
        step(
            &self.shim.task,
            Event {
                at,
                asked: None,
                what,
            },
        )
    }

    fn carry(&mut self, step: Step) -> Alive {
        self.point()?;
        let before = (!self.shim.ledger.failed).then(|| Box::new(self.shim.task.clone()));
        self.note_ends(&step);
        let effects = step.commit(&mut self.shim.task, &mut self.shim.ledger)?;
        if self.shim.ledger.failed && self.shim.kept.is_none() {
            self.shim.kept = before;
        }
        for effect in effects {
            self.point()?;
            self.enact(effect);
        }
        self.point()?;
        self.shim.ledger.cut_if_due(&self.shim.task)
    }

    /// Remembers which process each exit event of the step is about.
    fn note_ends(&mut self, step: &Step) {
        for published in step.record().map_or(&[][..], |record| &record.publish) {
            let about = match &published.event {
                TaskEvent::Exit { who, .. } => self.process_of(who),
                TaskEvent::Delete { .. } => self.process_of(&Who::Init),
                _ => None,
            };
            if let TaskEvent::Exit { who: Who::Init, .. } = &published.event
                && self.owns_group()
                && !self.shim.overdue
                && self.host.populated()
                && self.host.alive(|p| p.inside && p.stuck).is_empty()
            {
                self.book
                    .wrong("I3: init's end is told, and others of it run");
            }
            if let Some(process) = about {
                self.book.subjects.insert(published.seq, process);
            }
        }
    }

    /// Which process is meant, as far as the task knows.
    pub fn process_of(&self, who: &Who) -> Option<Key> {
        let key = |p: &vigil_model::Incarnation| (p.pid, p.start_ticks);
        match who {
            Who::Init => match &self.shim.task.standing.phase {
                Phase::Deleted { pid, .. } if *pid != 0 => self.host.init,
                phase => phase.init().map(key),
            },
            Who::Exec(exec) => match &self.shim.task.standing.execs.get(exec)?.phase {
                ExecPhase::Running { process } | ExecPhase::Stopped { process, .. } => {
                    Some(key(process))
                }
                ExecPhase::Added | ExecPhase::Starting | ExecPhase::Failed => None,
            },
        }
    }

    /// A turn nobody waits for.
    pub fn happen(&mut self, what: What) -> Alive {
        match self.decide(what) {
            Ok(step) => self.carry(step),
            Err(_) => Ok(()),
        }
    }

    /// Begins something beside the owner.
    pub fn begin(&mut self, work: Work) {
        self.shim.next_job += 1;
        let job = Job {
            work,
            stage: 0,
            runc: None,
            since: 0,
            found: None,
        };
        self.shim.jobs.insert(self.shim.next_job, job);
    }

    fn enact(&mut self, effect: Effect) {
        match effect {
            Effect::Create(_) => self.begin(Work::Create),
            Effect::Run(verb) => self.begin(Work::Verb(verb)),
            Effect::StartExec(exec) => self.begin(Work::Exec(exec)),
            Effect::Signal {
                who,
                process,
                signal,
                all,
            } => self.signal(&who, &process, signal, all),
            Effect::Discard { process, .. } => self.begin(Work::Discard(process)),
            Effect::KillRest => self.begin(Work::KillRest),
            Effect::Drain(who) => self.begin(Work::Happen(What::Drained(who))),
            Effect::ArmOverdue => self.begin(Work::Timer),
            Effect::Release(who) => {
                // Init's slot is kept: with a journal that failed, it is all
                // `delete` will have.
                if let Some(slot) = self.shim.pins.remove(&who)
                    && who != Who::Init
                {
                    self.begin(Work::Unpin(slot));
                }
                if who == Who::Init {
                    self.shim.group = None;
                }
            }
            Effect::AnswerCreate => self.answered(&Pending::Create),
            Effect::AnswerVerb(verb) => {
                if verb == Verb::Delete
                    && let Phase::Deleted { exit, .. } = self.shim.task.standing.phase
                    && let Some(process) = self.process_of(&Who::Init)
                {
                    self.book.tell(self.host, process, &exit, "Delete");
                }
                self.answered(&Pending::Verb(verb));
            }
            Effect::AnswerExecStart(exec) => self.answered(&Pending::Exec(exec)),
            Effect::AnswerWaiters(who) => {
                if self.shim.waiting.remove(&who).is_some()
                    && let Ok(Some(exit)) = waited(&self.shim.task, &who, self.now)
                {
                    self.tell(&who, &exit, "Wait");
                }
            }
            Effect::Publish => {}
            Effect::Leave => self.leave(true),
        }
    }

    fn answered(&mut self, pending: &Pending) {
        self.shim.pending.remove(pending);
    }

    fn tell(&mut self, who: &Who, exit: &Exit, by: &str) {
        if let Some(process) = self.process_of(who) {
            self.book.tell(self.host, process, exit, by);
        }
    }

    /// The pair is to leave, once the events are flushed.
    pub fn leave(&mut self, for_good: bool) {
        if self.shim.leaving.is_none() {
            self.shim.leaving = Some(for_good);
            self.begin(Work::Flush);
        }
    }

    fn signal(&mut self, who: &Who, to: &vigil_model::Incarnation, number: u32, all: bool) {
        if self.host.look(to) == Seen::Gone {
            return;
        }
        let whole = *who == Who::Init && (all || number == 9 && !self.host.private);
        let number = i32::try_from(number).unwrap_or(0);
        self.host.signal(to.pid, number);
        if whole && self.owns_group() && number == crate::host::KILL {
            for pid in self.host.alive(|process| process.inside) {
                self.host.signal(pid, number);
            }
        }
        if number == crate::host::KILL && *who == Who::Init {
            self.shim.killed = true;
            self.thaw();
        }
    }

    /// Whether the cgroup it has open is there and its own.
    pub fn owns_group(&self) -> bool {
        let claims = self.shim.group.as_deref().unwrap_or_default();
        crate::recovery::ours(self.host, claims)
    }

    /// Thaws what is ours.
    pub fn thaw(&mut self) {
        if self.shim.group.is_some() {
            self.host.thaw();
        }
    }

    /// Takes the deaths that were recorded: execs first, init last.
    pub fn look_at_exits(&mut self) -> Alive {
        let pins: Vec<(Who, usize)> = self.shim.pins.clone().into_iter().rev().collect();
        for (who, slot) in pins {
            let standing = &self.shim.task.standing;
            let news = match &who {
                Who::Init => standing.phase.live_init().is_some(),
                Who::Exec(exec) => standing
                    .execs
                    .get(exec)
                    .is_some_and(|exec| matches!(exec.phase, ExecPhase::Running { .. })),
            };
            if news && let Some(death) = self.records.pinned(slot) {
                let exit = exit_of(&death);
                self.happen(What::Exited { who, exit })?;
            }
        }
        Ok(())
    }

    /// A request, then what was put off before it.
    pub fn ask(&mut self, ask: Ask) -> Alive {
        self.take(ask)?;
        self.present_deferred()
    }

    /// What was put off while a verb was under way is asked again.
    pub fn present_deferred(&mut self) -> Alive {
        for ask in std::mem::take(&mut self.shim.deferred) {
            self.take(ask)?;
        }
        Ok(())
    }

    fn takes_new_work(&self) -> bool {
        !self.shim.ledger.failed
    }

    fn take(&mut self, ask: Ask) -> Alive {
        match ask {
            Ask::Create => {
                if !self.takes_new_work() {
                    return Ok(());
                }
                let plan = Box::new(crate::recovery::planned(self.host, self.plan));
                self.request(What::CreateAsked(plan), Some(Pending::Create), Ask::Create)
            }
            Ask::Verb(verb) => {
                if verb == Verb::Delete {
                    self.look_at_exits()?;
                }
                if verb == Verb::Start && !self.takes_new_work() {
                    return Ok(());
                }
                let pending = Some(Pending::Verb(verb));
                self.request(What::Asked(verb), pending, Ask::Verb(verb))
            }
            Ask::Exec(exec) => {
                let plan = vigil_model::ExecPlan {
                    file: None,
                    stdio: vigil_model::Stdio::default(),
                    spec: "{}".to_owned(),
                };
                let what = What::ExecAsked {
                    exec: exec.clone(),
                    plan,
                };
                self.request(what, None, Ask::Exec(exec))
            }
            Ask::StartExec(exec) => {
                if !self.takes_new_work() {
                    return Ok(());
                }
                let what = What::ExecStartAsked(exec.clone());
                let pending = Some(Pending::Exec(exec.clone()));
                self.request(what, pending, Ask::StartExec(exec))
            }
            Ask::DeleteExec(exec) => {
                self.look_at_exits()?;
                let who = Who::Exec(exec.clone());
                let process = self.process_of(&who);
                let end = match self.shim.task.standing.execs.get(&exec).map(|e| &e.phase) {
                    Some(ExecPhase::Stopped { exit, .. }) => Some(*exit),
                    _ => None,
                };
                let step = self.decide(What::ExecDeleteAsked(exec.clone()));
                match step {
                    Ok(step) => {
                        self.carry(step)?;
                        if let (Some(process), Some(exit)) = (process, end) {
                            self.book.tell(self.host, process, &exit, "Delete of exec");
                        }
                    }
                    Err(refusal) if refusal.kind == Kind::Later => {
                        self.shim.deferred.push_back(Ask::DeleteExec(exec));
                    }
                    Err(_) => {}
                }
                Ok(())
            }
            Ask::Kill { who, signal, all } => {
                self.look_at_exits()?;
                let what = What::KillAsked {
                    who: who.clone(),
                    signal,
                    all,
                };
                if let Ok(step) = self.decide(what) {
                    self.carry(step)?;
                    self.point()?;
                    self.happen(What::KillDone { who, signal })?;
                }
                Ok(())
            }
            Ask::State(who) => self.state(&who),
            Ask::Wait(who) => {
                match waited(&self.shim.task, &who, self.now) {
                    Ok(Some(exit)) => self.tell(&who, &exit, "Wait"),
                    Ok(None) => *self.shim.waiting.entry(who).or_default() += 1,
                    Err(_) => {}
                }
                Ok(())
            }
            Ask::Shutdown => self.happen(What::ShutdownAsked),
        }
    }

    fn request(&mut self, what: What, pending: Option<Pending>, again: Ask) -> Alive {
        match self.decide(what) {
            Ok(step) => {
                if let Some(pending) = pending {
                    *self.shim.pending.entry(pending).or_default() += 1;
                }
                self.carry(step)
            }
            Err(refusal) => {
                if refusal.kind == Kind::Later {
                    self.shim.deferred.push_back(again);
                }
                Ok(())
            }
        }
    }

    /// State is true: what is recorded as dead is not shown as alive, but for an init that
    /// died while an exec was being started.
    fn state(&mut self, who: &Who) -> Alive {
        self.look_at_exits()?;
        let Ok(state) = show::state(&self.shim.task, "c", who) else {
            return Ok(());
        };
        if let Some(exit) = &state.exit {
            self.tell(who, exit, "State");
        }
        let lives = matches!(
            state.shown,
            Shown::Running | Shown::Paused | Shown::Pausing | Shown::Created
        );
        let lingers = *who == Who::Init && self.shim.task.standing.lingers();
        if lives
            && !lingers
            && state.pid != 0
            && let Some((pid, ticks)) = self.process_of(who)
            && let Some(exit) = self.records.find(pid, ticks)
        {
            self.book.wrong(format!(
                "I1: {who} is shown as {:?}, and {exit:?} is recorded",
                state.shown
            ));
        }
        Ok(())
    }
}

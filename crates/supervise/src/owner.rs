//! The owner of the container's state. Requests, exits, timers and finished
//! effects arrive as messages; each becomes one turn: decide, record, act.
//! Nothing else changes the task, and no lock guards it.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use vigil_host::stdio::SlotKind;
use vigil_model::{
    Answer, Because, Event, ExecId, ExecPlan, Exit, Kind, Namespace, Options, Phase, Published,
    Refusal, Request, RequestId, Status, Stdio, Step, Task, TaskId, Verb, What, Who, request, show,
    step, waited,
};

use crate::control::FromReaper;
use crate::desk::Reply;
use crate::effects::{CreateOver, ExecOver, VerbOver};
use crate::hands::Hands;
use crate::ledger::JournalLedger;
use crate::limits::Limits;
use crate::replies::{Outcome, Replies, answer};
use crate::stdio::{SlotId, Streams};
use crate::watched::SharedFd;
use crate::{asked, clock, outbox};
use vigil_sys::map;
use vigil_sys::points::{self, Point};

/// A turn that takes longer is followed by one of everybody else's.
const LONG_TURN: Duration = Duration::from_millis(5);

/// Where and for whom this shim works.
#[derive(Debug, Clone)]
pub struct Place {
    /// The container.
    pub id: TaskId,
    /// Its containerd namespace.
    pub namespace: Namespace,
    /// The bundle.
    pub bundle: PathBuf,
    /// The socket the pair is reached at; unlinked at the end.
    pub socket: PathBuf,
    /// The parent of the container's processes, which `Connect` names.
    pub reaper: u32,
    /// Options given at `start`; those of Create come on top.
    pub options: Options,
    /// How long it waits.
    pub limits: Limits,
    /// How many shims of this pair have died in the last minute; 0: this is the first.
    pub takeovers: u32,
}

/// What reaches the owner.
#[derive(Debug)]
pub(crate) enum Message {
    /// A request.
    Ask {
        request: Request,
        from: Option<RequestId>,
        reply: Reply,
    },
    /// What was in Create's way is not any more, or cannot be helped.
    Cleared {
        create: Box<request::Create>,
        from: Option<RequestId>,
        reply: Reply,
        over: Result<(), Refusal>,
    },
    /// What a Create left that could not be undone was tried once more.
    Undone {
        create: Box<request::Create>,
        from: Option<RequestId>,
        reply: Reply,
        undone: bool,
    },
    /// Something happened.
    Happened(What),
    /// Create came to an end.
    CreateOver(Box<CreateOver>),
    /// A verb came to an end.
    VerbOver { verb: Verb, over: VerbOver },
    /// The start of an exec came to an end.
    ExecOver { exec: ExecId, over: Box<ExecOver> },
    /// The reaper recorded deaths.
    Doorbell,
    /// It is dead, and the reaper has had the time to say so.
    Unheard(Who),
    /// The OOM counter may have moved.
    OomBell,
    /// The sender wants the oldest event.
    NextEvent(oneshot::Sender<Option<Published>>),
    /// A connection came: containerd's own end of it.
    Connected(Arc<UnixStream>),
    /// The reaper sent something unasked.
    FromReaper(FromReaper),
    /// Init was killed a while ago.
    DeadByNow,
    /// The Delete an earlier shim had under way can go on.
    DeleteAgain,
    /// No Create for too long.
    Idle,
    /// Somebody has removed the bundle.
    BundleGone,
    /// What the container of a removed bundle had is gone, as far as it went.
    BundleCleared,
    /// Events are flushed, or their time is up.
    Flushed,
    /// Nothing was asked for a while: memory used for work can be given back.
    Quiet,
}

/// What is known of the way of a Create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nobody has looked.
    Unseen,
    /// What an earlier life left there is gone.
    Cleared,
}

/// Why the owner stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Shutdown was asked, or nobody needs us: the pair leaves for good.
    Shutdown,
    /// The reaper asked us to leave.
    ReaperLeaves,
    /// Another shim takes over: everything stays as it is.
    Retires,
    /// The reaper is dead, and this process is to be the next: likewise.
    Succeeds,
}

impl Ending {
    /// Another shim answers who waits, and goes on with what is under way.
    fn stays(self) -> bool {
        matches!(self, Ending::Retires | Ending::Succeeds)
    }
}

/// What is left of an owner that has stopped.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Why it has.
    pub(crate) ending: Ending,
    /// Who still waits for an answer to Shutdown.
    pub(crate) replies: Vec<Reply>,
    /// For the next reaper.
    pub(crate) ends: Vec<(u32, SharedFd)>,
}

/// See the module.
pub(crate) struct Owner {
    pub(crate) place: Place,
    pub(crate) task: Task,
    pub(crate) ledger: JournalLedger,
    pub(crate) hands: Hands,
    pub(crate) replies: Replies,
    pub(crate) desk: mpsc::Sender<Message>,
    pub(crate) news: outbox::Bell,
    /// containerd's ends, to see who is there.
    pub(crate) connections: Vec<Weak<UnixStream>>,
    pub(crate) leaving: Option<Ending>,
    pub(crate) shutdown_replies: Vec<Reply>,
    pub(crate) signal_outcome: Option<Outcome>,
    /// Memory was given back and nothing happened since.
    pub(crate) resting: bool,
    /// Somebody asked for something since the last look at idleness.
    pub(crate) asked: bool,
    /// A look at idleness is to come.
    pub(crate) idle_armed: bool,
    /// Whoever watches the bundle looks at its place when this is rung.
    pub(crate) at_bundle: Arc<Notify>,
    /// How often what is under way is waited for still, once the bundle is gone.
    pub(crate) bundle_waits: u32,
    /// What a Create has left is being undone once more.
    pub(crate) undoing: bool,
    /// The request being decided on.
    pub(crate) asking: Option<RequestId>,
    /// The task is not what it was when what was put off was looked at.
    pub(crate) changed: bool,
    /// At a takeover: an update or a checkpoint that was under way, and whether its
    /// call is known to have ended well.
    pub(crate) resumed: Option<(Verb, bool)>,
    /// At a takeover: what was held for those that are being made.
    pub(crate) resuming: BTreeMap<Who, Vec<(SlotId, SlotKind, SharedFd)>>,
}

impl Owner {
    /// Works until the pair is to leave.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Message>) -> Ended {
        while let Some(message) = inbox.recv().await {
            let flushed = matches!(message, Message::Flushed);
            if let Message::Quiet = message {
                self.resting = true;
                map::release_heap();
                map::release_stack();
                self.at_bundle.notify_one();
                continue;
            }
            self.arm_quiet();
            let begun = Instant::now();
            self.receive(message);
            self.present_deferred();
            if begun.elapsed() >= LONG_TURN {
                // Whoever reads what is sent to us has a turn too, or we are taken for stuck.
                tokio::task::yield_now().await;
            }
            let over =
                self.leaving.is_some_and(Ending::stays) || flushed || self.task.outbox.is_empty();
            if self.leaving.is_some() && over {
                break;
            }
        }
        let ending = self.leaving.unwrap_or(Ending::ReaperLeaves);
        if ending.stays() {
            let (ends, replies) = (self.ends(), Vec::new());
            // Dropped, whoever waits would be told that the shim leaves: the next
            // one answers them.
            std::mem::forget((self, inbox));
            return Ended {
                ending,
                replies,
                ends,
            };
        }
        Ended {
            ending,
            replies: self.shutdown_replies,
            ends: Vec::new(),
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Ask {
                request,
                from,
                reply,
            } => {
                self.asked = true;
                self.present(request, from, reply);
            }
            Message::Cleared {
                create,
                from,
                reply,
                over,
            } => match over {
                Ok(()) => {
                    self.asking = from;
                    self.create(*create, reply, Way::Cleared);
                    self.asking = None;
                }
                Err(refusal) => answer(Some(reply), Err(refusal)),
            },
            Message::Undone {
                create,
                from,
                reply,
                undone,
            } => {
                self.undoing = false;
                if undone {
                    self.happen(What::CreateFailed { undone });
                }
                let way = if undone { Way::Unseen } else { Way::Cleared };
                self.asking = from;
                self.create(*create, reply, way);
                self.asking = None;
            }
            Message::Happened(what) => {
                if what == What::RestGone {
                    self.hands.save();
                }
                self.happen(what);
            }
            Message::CreateOver(over) => self.create_over(*over),
            Message::VerbOver { verb, over } => self.verb_over(verb, over),
            Message::ExecOver { exec, over } => self.exec_over(exec, *over),
            Message::Doorbell => self.look_at_exits(),
            Message::Unheard(who) => self.unheard(&who),
            Message::OomBell => self.look_at_ooms(),
            Message::NextEvent(reply) => {
                // The sender may be gone while we leave.
                let _ = reply.send(self.task.outbox.front().cloned());
            }
            Message::Connected(own) => {
                // Thousands may come at once: only before more room is made.
                if self.connections.len() == self.connections.capacity() {
                    self.connections.retain(|own| own.strong_count() > 0);
                }
                self.connections.push(Arc::downgrade(&own));
            }
            Message::FromReaper(FromReaper::Leave) => self.leave(Ending::ReaperLeaves),
            // Also one that leaves for good: who waits for that is answered by the next.
            Message::FromReaper(FromReaper::Gone) => self.leaving = Some(Ending::Succeeds),
            Message::FromReaper(FromReaper::Retire) => {
                // One that leaves for good needs no successor.
                self.leaving.get_or_insert(Ending::Retires);
            }
            Message::DeleteAgain => self.delete(),
            Message::DeadByNow => {
                self.look_at_exits();
                if self.task.standing.phase.live_init().is_some() {
                    self.hands.let_die();
                    if let Some(why) = self.hands.undying() {
                        log::warn!("a kill without a death: {why}");
                    }
                }
            }
            // Connections are served beside the owner; see `serve`.
            Message::FromReaper(FromReaper::Connection { .. })
            | Message::Flushed
            | Message::Quiet => {}
            Message::Idle => self.idle(),
            Message::BundleGone => self.bundle_gone(),
            Message::BundleCleared => self.leave(Ending::Shutdown),
        }
    }

    /// A pair without a container that nobody asks for anything is of no use,
    /// whoever stays connected: its client may have died between two requests,
    /// and a containerd that came back may hold on to it for ever. containerd
    /// then runs `delete`.
    fn idle(&mut self) {
        self.idle_armed = false;
        self.drop_ended_connections();
        match self.task.standing.phase {
            Phase::Empty | Phase::Deleted { .. } => {}
            Phase::Creating
            | Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. }
            | Phase::Stopped { .. } => return,
        }
        let asked = std::mem::take(&mut self.asked);
        let told = self.task.outbox.is_empty();
        if told && (self.connections.is_empty() || !asked) {
            log::info!("nobody comes: leaving");
            self.leave(Ending::Shutdown);
        } else {
            self.arm_idle();
        }
    }

    /// Ends whose peer hung up are of no use to anyone.
    fn drop_ended_connections(&mut self) {
        self.connections.retain(|own| {
            let Some(own) = own.upgrade() else {
                return false;
            };
            let mut watch = [vigil_sys::fd::Watch::reading(&*own)];
            match vigil_sys::fd::poll(&mut watch, Duration::ZERO) {
                Ok(_) => !watch[0].hung_up() && !watch[0].failed(),
                Err(_) => true,
            }
        });
    }

    // --- the turn ---------------------------------------------------------

    fn decide(&self, what: What) -> Result<Step, Refusal> {
        self.decide_for(what, self.asking)
    }

    fn decide_for(&self, what: What, asked: Option<RequestId>) -> Result<Step, Refusal> {
        step(
            &self.task,
            Event {
                at: clock::now(),
                asked,
                what,
            },
        )
    }

    /// Records the step, then does what it asks for.
    fn carry(&mut self, step: Step) {
        self.changed = true;
        let Ok(effects) = step.commit(&mut self.task, &mut self.ledger);
        for effect in effects {
            self.enact(effect);
        }
        self.ledger.cut_if_due(&self.task);
    }

    /// A turn nobody waits for.
    pub(crate) fn happen(&mut self, what: What) {
        match self.decide_for(what, None) {
            Ok(step) => self.carry(step),
            Err(refusal) => log::warn!("not taken: {refusal}"),
        }
    }

    /// What was put off while a verb was under way is asked again, in order, if anything
    /// can have become of it.
    fn present_deferred(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        for mut put_off in self.replies.take_deferred() {
            while let Some((from, reply)) = put_off.askers.pop_front() {
                if put_off.askers.is_empty() {
                    self.present(put_off.request, from, reply);
                    break;
                }
                self.present(put_off.request.clone(), from, reply);
                match self.replies.defer_with_first(put_off) {
                    Some(others) => put_off = others,
                    None => break,
                }
            }
        }
    }

    /// Takes a request up; one that an earlier shim had begun is recognised.
    fn present(&mut self, request: Request, from: Option<RequestId>, reply: Reply) {
        self.asking = from;
        match from.filter(|from| self.task.standing.took(*from)) {
            Some(from) => self.ask_again(request, from, reply),
            None => self.ask(request, reply),
        }
        self.asking = None;
    }

    // --- requests ---------------------------------------------------------

    pub(crate) fn ask(&mut self, request: Request, reply: Reply) {
        if reply.is_closed() && !mutates(&request) {
            return;
        }
        match request {
            Request::Create(create) => self.create(*create, reply, Way::Unseen),
            Request::Start(Who::Init) => self.ask_verb(Verb::Start, request, reply),
            Request::Start(Who::Exec(exec)) => self.ask_exec_start(exec, reply),
            Request::Exec { exec, stdio, spec } => {
                let outcome = self.ask_exec(&exec, stdio, &spec);
                answer(Some(reply), outcome);
            }
            Request::State(who) => {
                self.look_at_exits();
                self.look_at_freezer();
                let state = show::state(&self.task, self.place.id.as_str(), &who);
                answer(
                    Some(reply),
                    state.map(|state| Answer::State(Box::new(state))),
                );
            }
            Request::Pids => {
                let pids = self.pids();
                answer(Some(reply), pids);
            }
            Request::Wait(who) => match waited(&self.task, &who, clock::now()) {
                Ok(Some(exit)) => {
                    let read = self.hands.streams.get(&who).map(Streams::read);
                    tokio::spawn(async move {
                        if let Some(read) = read {
                            read.await;
                        }
                        answer(Some(reply), Ok(Answer::Exit(exit)));
                    });
                }
                Ok(None) => self.replies.wait(who, reply),
                Err(refusal) => answer(Some(reply), Err(refusal)),
            },
            Request::Kill { who, signal, all } => {
                self.look_at_exits();
                self.ask_kill(who, signal, all, reply);
            }
            Request::Pause => self.ask_verb(Verb::Pause, request, reply),
            Request::Resume => self.ask_verb(Verb::Resume, request, reply),
            Request::Update(_) => self.ask_verb(Verb::Update, request, reply),
            Request::Checkpoint(_) => self.ask_verb(Verb::Checkpoint, request, reply),
            Request::Delete(Who::Init) => {
                self.look_at_exits();
                self.ask_verb(Verb::Delete, request, reply);
            }
            Request::Delete(Who::Exec(ref exec)) => {
                self.look_at_exits();
                let exec = exec.clone();
                self.ask_exec_delete(&exec, request, reply);
            }
            Request::CloseStdin(who) => {
                let outcome = self.process(&who).map(|()| {
                    self.hands.close_stdin(&who);
                    Answer::Done
                });
                answer(Some(reply), outcome);
            }
            Request::Resize { who, width, height } => {
                let outcome = self.resize(&who, width, height);
                answer(Some(reply), outcome);
            }
            Request::Stats => {
                let outcome = self.stats();
                answer(Some(reply), outcome);
            }
            Request::Connect => {
                let task_pid = match &self.task.standing.phase {
                    Phase::Deleted { pid, .. } => *pid,
                    phase @ (Phase::Empty
                    | Phase::Creating
                    | Phase::Created { .. }
                    | Phase::Running { .. }
                    | Phase::Paused { .. }
                    | Phase::Stopped { .. }) => phase.init().map_or(0, |init| init.pid),
                };
                let shim_pid = self.place.reaper;
                answer(Some(reply), Ok(Answer::Connected { shim_pid, task_pid }));
            }
            Request::Shutdown => self.ask_shutdown(reply),
        }
    }

    fn ask_exec(&mut self, exec: &ExecId, stdio: Stdio, spec: &[u8]) -> Outcome {
        let text = std::str::from_utf8(spec).map_err(|_| {
            Refusal::new(
                Kind::InvalidArgument,
                format!("the process spec of exec {exec} is not UTF-8"),
            )
        })?;
        let file = if self.ledger.keeps_specs() {
            None
        } else {
            Some(asked::file(&self.place, exec, &stdio, spec)?)
        };
        let plan = ExecPlan {
            stdio,
            spec: file
                .as_ref()
                .map_or_else(|| text.to_owned(), |_| String::new()),
            file: file.as_ref().map(|file| file.sum),
        };
        let step = self.decide(What::ExecAsked {
            exec: exec.clone(),
            plan,
        })?;
        JournalLedger::takes(&step)?;
        // What the journal names is there.
        if let Some(file) = &file {
            asked::write(&self.place, exec, file)?;
        }
        self.carry(step);
        Ok(Answer::Done)
    }

    fn create(&mut self, create: request::Create, reply: Reply, way: Way) {
        points::reach(Point::BeforeCreate);
        if let Err(refusal) = self.ledger.takes_new_work() {
            return answer(Some(reply), Err(refusal));
        }
        // It may have been for want of something that there is now.
        let standing = &self.task.standing;
        if standing.remains
            && standing.phase == Phase::Empty
            && way == Way::Unseen
            && !self.undoing
            && let Some(plan) = self.task.plan.clone()
        {
            return self.undo(plan, create, reply);
        }
        let planned = self.hands.plan(&self.place, create).and_then(|plan| {
            let step = self.decide(What::CreateAsked(Box::new(plan.clone())))?;
            JournalLedger::takes(&step)?;
            Ok((plan, step))
        });
        match planned {
            Ok((plan, _)) if way == Way::Unseen && self.hands.in_the_way(&plan) => {
                self.clear(plan, reply);
            }
            Ok((_, step)) => {
                self.replies.create = Some(reply);
                self.carry(step);
            }
            Err(refusal) => answer(Some(reply), Err(refusal)),
        }
    }

    fn ask_verb(&mut self, verb: Verb, request: Request, reply: Reply) {
        if matches!(verb, Verb::Pause | Verb::Resume | Verb::Delete) {
            self.look_at_freezer();
        }
        if verb == Verb::Start
            && let Err(refusal) = self.ledger.takes_new_work()
        {
            return answer(Some(reply), Err(refusal));
        }
        match self.decide(What::Asked(verb)) {
            Ok(step) => {
                self.replies.expect_verb(verb, reply);
                self.hands.keep_wish(request);
                self.carry(step);
            }
            Err(refusal) if refusal.kind == Kind::Later => {
                self.replies.defer(request, self.asking, reply);
            }
            Err(mut refusal) => {
                if verb == Verb::Delete
                    && let Some(why) = self.hands.undying()
                {
                    refusal.kind = Kind::FailedPrecondition;
                    refusal.says = format!("{}: {why}", refusal.says);
                }
                answer(Some(reply), Err(refusal));
            }
        }
    }

    fn ask_exec_start(&mut self, exec: ExecId, reply: Reply) {
        if let Err(refusal) = self.ledger.takes_new_work() {
            return answer(Some(reply), Err(refusal));
        }
        match self.decide(What::ExecStartAsked(exec.clone())) {
            Ok(step) => {
                self.replies.expect_exec(exec, reply);
                self.carry(step);
            }
            Err(refusal) if refusal.kind == Kind::Later => {
                self.replies
                    .defer(Request::Start(Who::Exec(exec)), self.asking, reply);
            }
            Err(refusal) => answer(Some(reply), Err(refusal)),
        }
    }

    fn ask_exec_delete(&mut self, exec: &ExecId, request: Request, reply: Reply) {
        let now = clock::now();
        let never = Exit {
            status: Status::Unknown(Because::NeverRan),
            at: now,
        };
        let found = self.task.standing.execs.get(exec);
        let (pid, exit) = found.map_or((0, never), |found| found.deleted(now));
        let left = self.hands.streams.get(&Who::Exec(exec.clone()));
        let left = left.and_then(Streams::left_behind);
        match self.decide(What::ExecDeleteAsked(exec.clone())) {
            Ok(step) => {
                if let Some(over) = left {
                    return self.later(over, request, reply);
                }
                self.carry(step);
                asked::deleted(&self.place, exec);
                points::reach(Point::ExecDeletedNotTold);
                let exit = exit.of_a_life();
                answer(Some(reply), Ok(Answer::Deleted { pid, exit }));
            }
            Err(refusal) if refusal.kind == Kind::Later => {
                self.replies.defer(request, self.asking, reply);
            }
            Err(refusal) => answer(Some(reply), Err(refusal)),
        }
    }

    fn ask_kill(&mut self, who: Who, signal: u32, all: bool, reply: Reply) {
        match self.decide(What::KillAsked {
            who: who.clone(),
            signal,
            all,
        }) {
            Ok(step) => {
                self.carry(step);
                let outcome = self.signal_outcome.take().unwrap_or(Ok(Answer::Done));
                if signal == 9 && who == Who::Init {
                    self.watch_it_die();
                }
                self.happen(What::KillDone { who, signal });
                answer(Some(reply), outcome);
            }
            Err(refusal) => answer(Some(reply), Err(refusal)),
        }
    }

    fn ask_shutdown(&mut self, reply: Reply) {
        points::reach(Point::BeforeShutdown);
        match self.decide(What::ShutdownAsked) {
            Ok(step) => {
                let leaves = step.intended().contains(&vigil_model::Effect::Leave);
                if leaves {
                    self.shutdown_replies.push(reply);
                    self.carry(step);
                } else {
                    self.carry(step);
                    answer(Some(reply), Ok(Answer::Done));
                }
            }
            Err(refusal) => answer(Some(reply), Err(refusal)),
        }
    }

    /// Refuses a process the task does not have.
    fn process(&self, who: &Who) -> Result<(), Refusal> {
        show::state(&self.task, self.place.id.as_str(), who).map(drop)
    }

    fn resize(&mut self, who: &Who, width: u16, height: u16) -> Outcome {
        self.process(who)?;
        self.hands.resize(who, width, height)?;
        Ok(Answer::Done)
    }
}

/// Whether a request is worth carrying out for a client that went away.
fn mutates(request: &Request) -> bool {
    match request {
        Request::State(_)
        | Request::Pids
        | Request::Wait(_)
        | Request::Stats
        | Request::Connect => false,
        Request::Create(_)
        | Request::Start(_)
        | Request::Exec { .. }
        | Request::Kill { .. }
        | Request::Pause
        | Request::Resume
        | Request::Delete(_)
        | Request::CloseStdin(_)
        | Request::Resize { .. }
        | Request::Update(_)
        | Request::Checkpoint(_)
        | Request::Shutdown => true,
    }
}

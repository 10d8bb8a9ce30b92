//! What is remembered: the changes of one step and the events it publishes.
//!
//! Encoded as JSON so that an old record stays readable by newer code and a
//! person can read the journal with `strings`. Unknown *changes* are refused,
//! unknown *fields* are ignored.

use serde::{Deserialize, Serialize};

use crate::phase::{
    Exec, ExecPhase, ExecPlan, GONE_MAX, Milestone, Phase, Plan, STORY_MAX, Signalling, TAKEN_MAX,
    Task, Verb,
};
use crate::{Because, Claim, ExecId, Exit, Incarnation, Moment, Published, RequestId, Status, Who};

/// Journal frame type of a [`Record`].
pub const KIND_RECORD: u16 = 1;
/// Journal frame type of a whole [`Task`], written when the journal is cut.
pub const KIND_SNAPSHOT: u16 = 2;

/// One change of a task. Applying it is assignment, never a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Create's intent.
    Creating(Box<Plan>),
    /// The container is made.
    Created {
        /// Its init.
        init: Option<Incarnation>,
        /// The claims with inodes.
        claims: Vec<Claim>,
    },
    /// Create failed and was undone.
    CreateUndone,
    /// Create failed, and not all of it could be undone: the plan is kept, so
    /// that `delete` finds what is left.
    CreateNotUndone,
    /// A verb's intent.
    Busy(Verb),
    /// The verb is over; an update is not meant, unless there is nothing else.
    Idle,
    /// The update is over.
    Updated,
    /// Init was started.
    Started {
        /// Init, when a restore brought it about.
        init: Option<Incarnation>,
    },
    /// The container is frozen.
    Frozen,
    /// It is thawed.
    Thawed,
    /// An exec was added.
    ExecAdded {
        /// Its id.
        exec: ExecId,
        /// What it is to be.
        plan: ExecPlan,
    },
    /// An exec's start: intent.
    ExecStarting(ExecId),
    /// An exec runs.
    ExecStarted {
        /// Its id.
        exec: ExecId,
        /// Its process.
        process: Incarnation,
    },
    /// An exec could not be started.
    ExecFailed(ExecId),
    /// An exec was deleted.
    ExecDeleted(ExecId),
    /// A signal: intent.
    Signalling(Signalling),
    /// A signal: sent, or not to be sent any more.
    Signalled {
        /// To whom.
        who: Who,
        /// Its number.
        signal: u32,
    },
    /// A process ended.
    Exited {
        /// Which.
        who: Who,
        /// How.
        exit: Exit,
    },
    /// Nothing else of the container is left.
    RestGone,
    /// A process's streams are drained.
    Drained(Who),
    /// A process's end was told.
    Told(Who),
    /// The container is deleted.
    Deleted,
    /// It was brought to nothing without its shim.
    BroughtToNothing {
        /// Init's pid, 0 if there was none.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
    /// The OOM counter.
    Oom {
        /// Where it stands.
        count: u64,
    },
    /// Events up to this one are acknowledged.
    Acked {
        /// Its place.
        seq: u64,
    },
    /// An event was dropped because the outbox is full.
    EventDropped,
    /// Shutdown was accepted.
    Ending,
    /// This step comes from this request.
    Took(RequestId),
}

/// The changes and published events of one step, and when it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Moment,
    /// What changed.
    pub changes: Vec<Change>,
    /// What containerd is to be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Published>,
}

/// A record or snapshot that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes, or the value, are not what they should be.
    #[error("cannot {op} a journal record as JSON")]
    Json {
        /// "read" or "write".
        op: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A frame of a type this version does not know.
    #[error("journal frame of unknown type {kind}")]
    UnknownKind {
        /// The type.
        kind: u16,
    },
}

impl Record {
    /// Bytes for the journal.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        serde_json::to_vec(self).map_err(|source| CodecError::Json {
            op: "write",
            source,
        })
    }

    /// The record of these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        serde_json::from_slice(bytes).map_err(|source| CodecError::Json { op: "read", source })
    }

    /// The names of its changes, without what they hold, which may be anybody's
    /// secret.
    pub fn gist(&self) -> String {
        let names = self.changes.iter().map(|change| {
            let name = serde_json::to_value(change).unwrap_or_default();
            let object = name.as_object().and_then(|fields| fields.keys().next());
            let name = object.map(String::as_str).or(name.as_str());
            name.unwrap_or("?").to_owned()
        });
        let mut names: Vec<String> = names.collect();
        if !self.publish.is_empty() {
            names.push(format!("{} events", self.publish.len()));
        }
        names.join(", ")
    }
}

impl Record {
    /// What is written when a container was brought to nothing without its
    /// shim, by `delete` or a repair, so that whoever asks later is told the
    /// same exit. `None` if there is nothing to write: no container, or its
    /// deletion is recorded already.
    pub fn of_end(task: &Task, pid: u32, exit: Exit, at: Moment) -> Option<Self> {
        let mut changes = Vec::new();
        match task.standing.phase {
            Phase::Deleted { .. } => return None,
            Phase::Empty if !task.standing.remains => return None,
            Phase::Stopped { .. } => {}
            Phase::Empty
            | Phase::Creating
            | Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. } => {
                let who = Who::Init;
                changes.push(Change::Exited { who, exit });
            }
        }
        changes.push(Change::BroughtToNothing { pid, exit });
        Some(Self {
            at,
            changes,
            publish: Vec::new(),
        })
    }
}

impl Task {
    /// Bytes of a snapshot for the journal.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        serde_json::to_vec(self).map_err(|source| CodecError::Json {
            op: "write",
            source,
        })
    }

    /// The task of these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let read = serde_json::from_slice(bytes);
        let mut task: Self = read.map_err(|source| CodecError::Json { op: "read", source })?;
        // An update once was a verb like the others.
        let now = &mut task.standing;
        if now.busy == Some(Verb::Update) {
            now.busy = None;
            now.updating = true;
        }
        Ok(task)
    }

    /// The task that the frames of a journal tell of, a snapshot taking the
    /// place of all before it.
    pub fn replay<'a>(
        frames: impl IntoIterator<Item = (u16, &'a [u8])>,
    ) -> Result<Self, CodecError> {
        let mut task = Self::default();
        for (kind, payload) in frames {
            match kind {
                KIND_SNAPSHOT => task = Self::decode(payload)?,
                KIND_RECORD => task.apply(&Record::decode(payload)?),
                kind => return Err(CodecError::UnknownKind { kind }),
            }
        }
        Ok(task)
    }

    /// Takes a recorded step over.
    pub fn apply(&mut self, record: &Record) {
        for change in &record.changes {
            match change {
                Change::Creating(plan) => self.plan = Some(plan.clone()),
                Change::Created { claims, .. } => {
                    if let Some(plan) = &mut self.plan {
                        plan.claims.clone_from(claims);
                    }
                }
                Change::CreateUndone => self.plan = None,
                Change::ExecAdded { exec, plan } => {
                    self.exec_plans.insert(exec.clone(), plan.clone());
                }
                Change::ExecStarted { exec, .. } | Change::ExecFailed(exec) => {
                    if matches!(change, Change::ExecStarted { .. }) {
                        self.execs_started += 1;
                    }
                    if let Some(plan) = self.exec_plans.get_mut(exec) {
                        plan.spec = String::new();
                    }
                }
                Change::ExecDeleted(exec) => {
                    self.exec_plans.remove(exec);
                    if let Some(found) = self.standing.execs.get(exec) {
                        let (pid, exit) = found.deleted(record.at);
                        if self.gone.len() >= GONE_MAX {
                            self.gone.pop_front();
                        }
                        self.gone.push_back((exec.clone(), pid, exit));
                    }
                }
                Change::Acked { seq } => {
                    while self.outbox.front().is_some_and(|first| first.seq <= *seq) {
                        self.outbox.pop_front();
                    }
                }
                Change::EventDropped => self.dropped += 1,
                Change::CreateNotUndone
                | Change::Busy(_)
                | Change::Idle
                | Change::Updated
                | Change::Started { .. }
                | Change::Frozen
                | Change::Thawed
                | Change::ExecStarting(_)
                | Change::Signalling(_)
                | Change::Signalled { .. }
                | Change::Exited { .. }
                | Change::RestGone
                | Change::Drained(_)
                | Change::Told(_)
                | Change::Deleted
                | Change::BroughtToNothing { .. }
                | Change::Oom { .. }
                | Change::Took(_)
                | Change::Ending => {}
            }
            self.standing.apply(change, record.at);
            if let Some(milestone) = milestone(change) {
                if self.story.len() >= STORY_MAX {
                    self.story.pop_front();
                }
                self.story.push_back((record.at, milestone));
            }
        }
        for published in &record.publish {
            self.next_seq = published.seq + 1;
            self.outbox.push_back(published.clone());
        }
    }
}

impl Task {
    /// The end of init, not before its beginning: a wall clock may be set back in between,
    /// and clients take an end before the beginning for one of an earlier life. One that is
    /// on record stays what it is.
    #[must_use]
    pub fn dated(&self, exit: Exit) -> Exit {
        if let Phase::Stopped { .. } | Phase::Deleted { .. } = self.standing.phase {
            return exit;
        }
        let began = self.story.iter().filter_map(|(at, milestone)| {
            let is = matches!(milestone, Milestone::Created(_) | Milestone::Started);
            is.then_some(*at)
        });
        let at = began.fold(exit.at, Moment::max);
        Exit { at, ..exit }
    }
}

/// What of a change is worth remembering when the journal is cut.
fn milestone(change: &Change) -> Option<Milestone> {
    match change {
        Change::Creating(_) => Some(Milestone::Asked),
        Change::Created { init, .. } => {
            Some(Milestone::Created(init.as_ref().map_or(0, |init| init.pid)))
        }
        Change::Started { .. } => Some(Milestone::Started),
        Change::Frozen => Some(Milestone::Paused),
        Change::Thawed => Some(Milestone::Resumed),
        Change::Signalling(Signalling {
            who: Who::Init,
            signal,
            ..
        }) => Some(Milestone::Signalled(*signal)),
        Change::Oom { count } => Some(Milestone::Oom(*count)),
        Change::Exited {
            who: Who::Init,
            exit,
        } => Some(Milestone::Ended(*exit)),
        Change::CreateUndone
        | Change::CreateNotUndone
        | Change::Busy(_)
        | Change::Idle
        | Change::Updated
        | Change::ExecAdded { .. }
        | Change::ExecStarting(_)
        | Change::ExecStarted { .. }
        | Change::ExecFailed(_)
        | Change::ExecDeleted(_)
        | Change::Signalling(_)
        | Change::Signalled { .. }
        | Change::Exited { .. }
        | Change::RestGone
        | Change::Drained(_)
        | Change::Told(_)
        | Change::Deleted
        | Change::BroughtToNothing { .. }
        | Change::Acked { .. }
        | Change::EventDropped
        | Change::Took(_)
        | Change::Ending => None,
    }
}

impl crate::phase::Standing {
    /// Takes one change over.
    pub(crate) fn apply(&mut self, change: &Change, at: Moment) {
        match change {
            Change::Creating(_) => {
                self.phase = Phase::Creating;
                self.started = false;
                self.streams += 1;
                self.init_streams = self.streams;
            }
            Change::Created { init, .. } => self.phase = Phase::Created { init: init.clone() },
            Change::CreateUndone => {
                self.phase = Phase::Empty;
                self.remains = false;
            }
            Change::CreateNotUndone => {
                self.phase = Phase::Empty;
                self.remains = true;
            }
            Change::Busy(Verb::Update) => self.updating = true,
            Change::Busy(verb) => self.busy = Some(*verb),
            // A journal from the time when an update was the one verb under way
            // says so at its end too.
            Change::Idle => {
                if self.busy.take().is_none() {
                    self.updating = false;
                }
            }
            Change::Updated => self.updating = false,
            Change::Started { init } => {
                self.started = true;
                self.started(init.as_ref());
            }
            Change::Frozen => {
                if let Phase::Running { init } = &self.phase {
                    self.phase = Phase::Paused { init: init.clone() };
                }
            }
            Change::Thawed => {
                if let Phase::Paused { init } = &self.phase {
                    self.phase = Phase::Running { init: init.clone() };
                }
            }
            Change::ExecAdded { exec, .. } => {
                let added = Exec {
                    phase: ExecPhase::Added,
                    drained: false,
                    pid: 0,
                    streams: 0,
                };
                self.execs.insert(exec.clone(), added);
            }
            Change::ExecStarting(exec) => {
                self.exec_phase(exec, ExecPhase::Starting);
                self.streams += 1;
                if let Some(found) = self.execs.get_mut(exec) {
                    found.streams = self.streams;
                }
            }
            Change::ExecStarted { exec, process } => {
                if let Some(found) = self.execs.get_mut(exec) {
                    found.pid = process.pid;
                    found.phase = ExecPhase::Running {
                        process: process.clone(),
                    };
                }
            }
            Change::ExecFailed(exec) => self.exec_phase(exec, ExecPhase::Failed),
            Change::ExecDeleted(exec) => {
                self.execs.remove(exec);
            }
            Change::Signalling(signalling) => self.signalling.push(signalling.clone()),
            Change::Signalled { who, signal } => {
                // One at a time is sent: an older one of the kind is of a shim that died.
                let sent = |s: &Signalling| s.who == *who && s.signal == *signal;
                if let Some(index) = self.signalling.iter().rposition(sent) {
                    self.signalling.remove(index);
                }
            }
            Change::Exited { who, exit } => self.exited(who, *exit),
            Change::RestGone => self.rest_gone = true,
            Change::Drained(Who::Init) => self.drained = true,
            Change::Drained(Who::Exec(exec)) => {
                if let Some(found) = self.execs.get_mut(exec) {
                    found.drained = true;
                }
            }
            Change::Told(who) => self.tell(who),
            Change::Deleted => self.deleted(at),
            Change::BroughtToNothing { pid, exit } => {
                self.remains = false;
                self.phase = Phase::Deleted {
                    pid: *pid,
                    exit: *exit,
                }
            }
            Change::Oom { count } => self.ooms = *count,
            Change::Acked { .. } | Change::EventDropped => {}
            Change::Ending => self.ending = true,
            Change::Took(request) => {
                if self.taken.len() >= TAKEN_MAX {
                    self.taken.pop_front();
                }
                self.taken.push_back(*request);
            }
        }
    }

    fn started(&mut self, restored: Option<&Incarnation>) {
        match (&mut self.phase, restored) {
            (Phase::Created { init }, restored) => {
                if let Some(init) = restored.cloned().or_else(|| init.take()) {
                    self.phase = Phase::Running { init };
                }
            }
            // It ended before its start was recorded; keep who it was.
            (Phase::Stopped { init, .. }, Some(restored)) => *init = Some(restored.clone()),
            (
                Phase::Stopped { .. }
                | Phase::Empty
                | Phase::Creating
                | Phase::Running { .. }
                | Phase::Paused { .. }
                | Phase::Deleted { .. },
                _,
            ) => {}
        }
    }

    fn exec_phase(&mut self, exec: &ExecId, phase: ExecPhase) {
        if let Some(found) = self.execs.get_mut(exec) {
            found.phase = phase;
        }
    }

    fn exited(&mut self, who: &Who, exit: Exit) {
        match who {
            Who::Init => {
                let init = self.phase.live_init().cloned();
                self.phase = Phase::Stopped {
                    init,
                    exit,
                    told: false,
                };
            }
            Who::Exec(exec) => {
                if let Some(found) = self.execs.get_mut(exec)
                    && let ExecPhase::Running { process } = &found.phase
                {
                    found.phase = ExecPhase::Stopped {
                        process: process.clone(),
                        exit,
                        told: false,
                    };
                }
            }
        }
    }

    fn tell(&mut self, who: &Who) {
        match who {
            Who::Init => {
                if let Phase::Stopped { told, .. } = &mut self.phase {
                    *told = true;
                }
            }
            Who::Exec(exec) => {
                if let Some(found) = self.execs.get_mut(exec)
                    && let ExecPhase::Stopped { told, .. } = &mut found.phase
                {
                    *told = true;
                }
            }
        }
    }

    fn deleted(&mut self, at: Moment) {
        let pid = self.phase.init().map_or(0, |init| init.pid);
        let exit = match &self.phase {
            Phase::Stopped { exit, .. } | Phase::Deleted { exit, .. } => *exit,
            // Created, and runc said it was gone before we saw it go.
            Phase::Created { init: Some(_) } => Exit {
                status: Status::Unknown(Because::NotSeenInTime),
                at,
            },
            Phase::Created { init: None }
            | Phase::Empty
            | Phase::Creating
            | Phase::Running { .. }
            | Phase::Paused { .. } => Exit {
                status: Status::Unknown(Because::NeverRan),
                at,
            },
        };
        self.phase = Phase::Deleted { pid, exit };
    }
}

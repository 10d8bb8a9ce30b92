//! Where a task stands, and the data each standing carries.
//!
//! [`Task`] is the whole of what the shim knows of its container. It changes
//! only by [`Task::apply`] of a [`Record`](crate::Record), so replaying the
//! journal and living through it give the same value.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::request::Create;
use crate::{
    Because, Claim, Driver, ExecId, Exit, Incarnation, Moment, Published, RequestId, Status, Stdio,
    Who,
};

/// What `Create` set out to make; recorded before anything is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The request.
    pub create: Create,
    /// Who places the cgroup.
    pub driver: Driver,
    /// The container's cgroup in each hierarchy, as found before runc ran.
    pub claims: Vec<Claim>,
    /// Whether init gets a pid namespace of its own, so that the kernel takes
    /// everything in it down with init.
    pub private_pid_ns: bool,
    /// runc's state root, the namespace appended.
    pub runtime_root: String,
    /// runc or a compatible program.
    pub runtime: String,
}

/// A verb on init that takes time; one at a time, but for an update, which
/// keeps nobody waiting who does without the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// `runc start`, or `runc restore`.
    Start,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// `runc update`.
    Update,
    /// `runc checkpoint`.
    Checkpoint,
    /// `runc delete` and everything that goes with it.
    Delete,
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verb::Start => "start",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Update => "update",
            Verb::Checkpoint => "checkpoint",
            Verb::Delete => "delete",
        })
    }
}

/// The standing of the container, by its init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No Create yet, or one that failed; see [`Standing::remains`].
    Empty,
    /// The intent is recorded; runc may have run, wholly, partly or not.
    Creating,
    /// Made, not started. `init` is `None` for a checkpoint that Start restores.
    Created {
        /// The waiting `runc init`.
        init: Option<Incarnation>,
    },
    /// Started.
    Running {
        /// Init.
        init: Incarnation,
    },
    /// Frozen.
    Paused {
        /// Init.
        init: Incarnation,
    },
    /// Init is gone.
    Stopped {
        /// Init, unless it never came to be.
        init: Option<Incarnation>,
        /// How it ended.
        exit: Exit,
        /// Whether Wait and TaskExit have said so; see `step` for what that
        /// waits for.
        told: bool,
    },
    /// Nothing of it is left but this.
    Deleted {
        /// Init's pid.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
}

impl Phase {
    /// Init, where there is or was one.
    pub fn init(&self) -> Option<&Incarnation> {
        match self {
            Phase::Empty | Phase::Creating | Phase::Deleted { .. } => None,
            Phase::Created { init } | Phase::Stopped { init, .. } => init.as_ref(),
            Phase::Running { init } | Phase::Paused { init } => Some(init),
        }
    }

    /// How init ended, if that is recorded.
    pub fn exit(&self) -> Option<Exit> {
        match self {
            Phase::Stopped { exit, .. } | Phase::Deleted { exit, .. } => Some(*exit),
            Phase::Empty
            | Phase::Creating
            | Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Paused { .. } => None,
        }
    }

    /// Init, if it has not been seen to end.
    pub fn live_init(&self) -> Option<&Incarnation> {
        match self {
            Phase::Empty | Phase::Creating | Phase::Deleted { .. } | Phase::Stopped { .. } => None,
            Phase::Created { init } => init.as_ref(),
            Phase::Running { init } | Phase::Paused { init } => Some(init),
        }
    }
}

/// The standing of one exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecPhase {
    /// Added; nothing runs.
    Added,
    /// `runc exec` is under way.
    Starting,
    /// Its start failed; it never ran.
    Failed,
    /// Running.
    Running {
        /// Its process.
        process: Incarnation,
    },
    /// Ended.
    Stopped {
        /// Its process.
        process: Incarnation,
        /// How it ended.
        exit: Exit,
        /// Whether Wait and TaskExit have said so.
        told: bool,
    },
}

/// One exec: where it stands, and whether its output was carried away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Where it stands.
    pub phase: ExecPhase,
    /// Its streams were drained after its end.
    #[serde(default)]
    pub drained: bool,
    /// Its pid once it has one, for as long as it is not deleted.
    #[serde(default)]
    pub pid: u32,
    /// Number of its set of streams, 0 before it was to be started.
    #[serde(default)]
    pub streams: u32,
}

/// What `Exec` asked for. It may be long, and hold what nobody should find
/// later: with a `file` beside the journal that holds it, the journal has none of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "KeptPlan", into = "KeptPlan")]
pub struct ExecPlan {
    /// Its streams; read from the journal they are empty if there is a file.
    pub stdio: Stdio,
    /// JSON of an OCI `Process`, if it is not in the file; emptied once the
    /// exec runs.
    pub spec: String,
    /// Sum of the file that holds both.
    pub file: Option<u32>,
}

/// The same in the journal.
#[derive(Serialize, Deserialize)]
struct KeptPlan {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stdio: Option<Stdio>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spec: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<u32>,
}

impl From<KeptPlan> for ExecPlan {
    fn from(kept: KeptPlan) -> Self {
        Self {
            stdio: kept.stdio.unwrap_or_default(),
            spec: kept.spec.unwrap_or_default(),
            file: kept.file,
        }
    }
}

impl From<ExecPlan> for KeptPlan {
    fn from(plan: ExecPlan) -> Self {
        let ExecPlan { stdio, spec, file } = plan;
        let inside = file.is_none();
        Self {
            stdio: inside.then_some(stdio),
            spec: inside.then_some(spec),
            file,
        }
    }
}

impl ExecPlan {
    /// Bytes it takes in the journal, about, besides those that each exec takes.
    #[expect(clippy::len_without_is_empty, reason = "a size, not a collection")]
    pub fn len(&self) -> usize {
        if self.file.is_some() {
            return 0;
        }
        let stdio = &self.stdio;
        self.spec.len() + stdio.stdin.len() + stdio.stdout.len() + stdio.stderr.len()
    }
}

/// A signal whose sending was recorded and whose outcome was not, yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signalling {
    /// To whom.
    pub who: Who,
    /// Its number.
    pub signal: u32,
    /// To everything in the container.
    pub all: bool,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<RequestId>,
}

/// The part of a task that decisions are made on. Small, so that a step can
/// try its changes on a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The container.
    pub phase: Phase,
    /// The verb under way on init; never an update.
    pub busy: Option<Verb>,
    /// An update is under way, beside that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub updating: bool,
    /// The execs.
    pub execs: BTreeMap<ExecId, Exec>,
    /// After init's end: nothing else of the container is left, or its
    /// deadline passed.
    pub rest_gone: bool,
    /// After init's end: its streams were drained.
    pub drained: bool,
    /// OOM kills seen so far.
    pub ooms: u64,
    /// Signals sent without a recorded outcome.
    pub signalling: Vec<Signalling>,
    /// Shutdown was accepted.
    pub ending: bool,
    /// A Create failed and something of it is left, as far as anyone knows.
    #[serde(default)]
    pub remains: bool,
    /// Init was let run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub started: bool,
    /// Sets of streams begun so far: one for each Create and each exec's start.
    #[serde(default)]
    pub streams: u32,
    /// Number of init's.
    #[serde(default)]
    pub init_streams: u32,
    /// Requests that have begun something, the newest [`TAKEN_MAX`].
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub taken: VecDeque<RequestId>,
}

/// Everything the shim knows of its container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What decisions are made on.
    pub standing: Standing,
    /// What Create set out to make.
    pub plan: Option<Box<Plan>>,
    /// What each exec was asked to be.
    pub exec_plans: BTreeMap<ExecId, ExecPlan>,
    /// Events containerd has not acknowledged, oldest first.
    pub outbox: VecDeque<Published>,
    /// Place of the next event.
    pub next_seq: u64,
    /// Events dropped because the outbox was full.
    pub dropped: u64,
    /// The milestones of init's life, for people: they outlive the cutting of
    /// the journal. The newest [`STORY_MAX`].
    #[serde(default)]
    pub story: VecDeque<(Moment, Milestone)>,
    /// Execs that were started.
    #[serde(default)]
    pub execs_started: u64,
    /// Execs deleted last, with pid and end: a Delete whose answer was lost is
    /// answered the same. The newest [`GONE_MAX`].
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub gone: VecDeque<(ExecId, u32, Exit)>,
}

/// Requests remembered. More than are under way at one time, but for a crowd
/// whose shim dies in the midst of it.
pub const TAKEN_MAX: usize = 256;
/// Deleted execs remembered.
pub const GONE_MAX: usize = 32;

impl Exec {
    /// What its Delete is answered with: its pid, 0 if it never ran, and its
    /// end, unknown if there is none.
    pub fn deleted(&self, at: Moment) -> (u32, Exit) {
        match &self.phase {
            ExecPhase::Stopped { process, exit, .. } => (process.pid, *exit),
            ExecPhase::Added
            | ExecPhase::Starting
            | ExecPhase::Failed
            | ExecPhase::Running { .. } => {
                let status = Status::Unknown(Because::NeverRan);
                (self.pid, Exit { status, at })
            }
        }
    }
}

impl Standing {
    /// Whether this request has begun something already.
    pub fn took(&self, request: RequestId) -> bool {
        self.taken.contains(&request)
    }

    /// The verbs under way on init, at most two.
    pub fn verbs(&self) -> impl Iterator<Item = Verb> + use<> {
        let update = self.updating.then_some(Verb::Update);
        self.busy.into_iter().chain(update)
    }

    /// Whether this verb is under way.
    pub(crate) fn is_at(&self, verb: Verb) -> bool {
        self.verbs().any(|at| at == verb)
    }

    /// Whether init has ended while an exec is being started. Until that start
    /// is over the container counts as running, as the Go shim has it: nothing
    /// of init's end is told before.
    pub fn lingers(&self) -> bool {
        let starting = |exec: &Exec| exec.phase == ExecPhase::Starting;
        self.ends() && self.execs.values().any(starting)
    }

    /// Whether init has ended and that was not told yet.
    pub(crate) fn ends(&self) -> bool {
        matches!(self.phase, Phase::Stopped { told: false, .. })
    }

    /// Execs that run or are being started.
    pub(crate) fn execs_alive(&self) -> usize {
        let alive =
            |exec: &&Exec| matches!(exec.phase, ExecPhase::Starting | ExecPhase::Running { .. });
        self.execs.values().filter(alive).count()
    }

    /// Whether an exec's end, or the outcome of its start, has still to be told.
    pub(crate) fn owes_execs(&self) -> bool {
        self.execs.values().any(|exec| match exec.phase {
            ExecPhase::Added | ExecPhase::Failed | ExecPhase::Stopped { told: true, .. } => false,
            ExecPhase::Starting
            | ExecPhase::Running { .. }
            | ExecPhase::Stopped { told: false, .. } => true,
        })
    }

    /// Whether something was begun whose end is not recorded: after a crash a
    /// call of the runtime may still be at it.
    pub fn midway(&self) -> bool {
        let starting = |exec: &Exec| exec.phase == ExecPhase::Starting;
        self.phase == Phase::Creating
            || self.remains
            || self.verbs().next().is_some()
            || self.execs.values().any(starting)
    }
}

/// Milestones kept.
pub const STORY_MAX: usize = 32;

/// One step of init's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Milestone {
    /// Create was asked.
    Asked,
    /// Made; the pid of init, 0 for a restore.
    Created(u32),
    /// Started.
    Started,
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
    /// A signal was sent to it.
    Signalled(u32),
    /// Processes of it were killed for want of memory, so many by now.
    Oom(u64),
    /// It ended.
    Ended(Exit),
}

impl Default for Task {
    fn default() -> Self {
        Self {
            standing: Standing {
                phase: Phase::Empty,
                busy: None,
                updating: false,
                execs: BTreeMap::new(),
                rest_gone: false,
                drained: false,
                ooms: 0,
                signalling: Vec::new(),
                ending: false,
                remains: false,
                started: false,
                streams: 0,
                init_streams: 0,
                taken: VecDeque::new(),
            },
            plan: None,
            exec_plans: BTreeMap::new(),
            outbox: VecDeque::new(),
            next_seq: 1,
            dropped: 0,
            story: VecDeque::new(),
            execs_started: 0,
            gone: VecDeque::new(),
        }
    }
}

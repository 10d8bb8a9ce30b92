//! What can happen: concrete, so that a history can be written down and lived
//! through again, and drawn at random to fit what there is at the moment.

use serde::{Deserialize, Serialize};
use vigil_model::{ExecId, ExecPhase, Phase, Verb, Who};

use crate::host::{Parent, Role};
use crate::recovery::Trouble;
use crate::rng::Rng;
use crate::world::World;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Create.
    Create,
    /// A verb on init.
    Verb(Verb),
    /// Exec.
    Exec(ExecId),
    /// Start of an exec.
    StartExec(ExecId),
    /// Delete of an exec.
    DeleteExec(ExecId),
    /// Kill.
    Kill {
        /// Whom.
        who: Who,
        /// With what.
        signal: u32,
        /// And all others.
        all: bool,
    },
    /// State.
    State(Who),
    /// Wait.
    Wait(Who),
    /// Shutdown.
    Shutdown,
}

/// One thing that happens. What does not fit the moment does nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// containerd asks.
    Ask(Ask),
    /// A job of the shim goes on, well or badly.
    Job(u32, bool),
    /// A runc goes on, well or badly.
    Runc(u32, bool),
    /// A process ends with this wait status.
    Die(u32, i32),
    /// The container forks.
    Fork,
    /// So many orphans of a shared pid namespace end below the reaper.
    Orphans(u32),
    /// A stranger gets this pid.
    Stranger(u32),
    /// The next process gets this pid, if nothing has it.
    Wrap(u32),
    /// A stranger makes a cgroup where the container's was.
    TakePath,
    /// A process falls into uninterruptible sleep.
    Stick(u32),
    /// It wakes up.
    Wake(u32),
    /// The reaper records and reaps so many deaths.
    Bury(u32),
    /// The reaper dies between recording a death and reaping it.
    BuryHalf,
    /// The shim looks at the records.
    Doorbell,
    /// The OOM counter stands here.
    Oom(u64),
    /// The oldest event reaches containerd; its acknowledgement the shim, or not.
    Deliver(bool),
    /// containerd goes, or comes back.
    Containerd(bool),
    /// The disk is full, or free again.
    Full(bool),
    /// The wall clock jumps by so many seconds.
    Clock(i64),
    /// The shim will be killed so many points from now.
    Fuse(u32),
    /// The shim will be killed inside a write: which act on the disk from now,
    /// and after how many bytes of it.
    Torn(u32, u32),
    /// SIGKILL to the shim.
    KillShim,
    /// SIGKILL to the reaper.
    KillReaper,
    /// SIGKILL to both.
    KillPair,
    /// Who is left of a broken pair notices, and leaves.
    Leave,
    /// `delete`.
    Delete(Trouble),
    /// Somebody damages the journal of a dead pair.
    Meddle(u8),
    /// The host restarts.
    Reboot,
    /// Nothing goes wrong any more; the life comes to its end.
    Calm,
}

fn exec_id(n: u32) -> ExecId {
    let name = ["a", "b", "c"][n as usize % 3];
    ExecId::new(name).unwrap_or_else(|_| unreachable!("a letter is an id"))
}

fn who(rng: &mut Rng) -> Who {
    match rng.below(5) {
        0..3 => Who::Init,
        _ => Who::Exec(exec_id(rng.below(3))),
    }
}

fn status(rng: &mut Rng) -> i32 {
    let code = i32::try_from(rng.below(256)).unwrap_or(0);
    if rng.percent(70) {
        code << 8
    } else {
        [6, 9, 11, 15][rng.below(4) as usize]
    }
}

/// What a life is like: some are long and quiet, some short and full of deaths.
/// It only shapes the choice; a history does not need it.
#[derive(Debug, Clone, Copy)]
pub struct Mood {
    /// In so many of a hundred stages things go well.
    well: u32,
    /// How readily work goes on, requests come, processes do things, the
    /// records are looked at, events are taken, the surroundings change, and
    /// the pair dies.
    weights: [u32; 7],
    /// One in so many actions ends it.
    length: u32,
}

impl Mood {
    /// Draws one.
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            well: [80, 93, 98, 100][rng.below(4) as usize],
            weights: [
                10 + rng.below(40),
                10 + rng.below(30),
                4 + rng.below(20),
                2 + rng.below(16),
                2 + rng.below(8),
                rng.below(8),
                [0, 1, 1, 4][rng.below(4) as usize],
            ],
            length: 80 + rng.below(300),
        }
    }
}

/// Draws what happens next.
pub fn choose(world: &World, mood: &Mood, rng: &mut Rng) -> Action {
    if rng.below(mood.length) == 0 {
        return Action::Calm;
    }
    if world.shim.is_none() {
        return after_the_shim(world, rng);
    }
    match rng.weighted(&mood.weights) {
        0 => work(world, mood, rng),
        1 => Action::Ask(request(world, rng)),
        2 => kernel(world, rng),
        3 => reaper(world, rng),
        4 => Action::Deliver(rng.percent(90)),
        5 => surroundings(world, rng),
        _ => death_of_the_pair(world, rng),
    }
}

fn work(world: &World, mood: &Mood, rng: &mut Rng) -> Action {
    let well = rng.percent(mood.well);
    let runcs: Vec<u32> = world.host.runcs.keys().copied().collect();
    if rng.percent(50)
        && let Some(number) = rng.pick(&runcs)
    {
        return Action::Runc(number, well);
    }
    let jobs = world.shim.as_ref().map(|shim| &shim.jobs);
    let jobs: Vec<u32> = jobs.into_iter().flatten().map(|(n, _)| *n).collect();
    match rng.pick(&jobs) {
        // A timer is late more often than not.
        Some(number) if !world.is_timer(number) || rng.percent(15) => Action::Job(number, well),
        Some(_) | None => Action::Doorbell,
    }
}

fn request(world: &World, rng: &mut Rng) -> Ask {
    let phase = world.shim.as_ref().map(|shim| &shim.task.standing.phase);
    if rng.percent(35) {
        return any_request(rng);
    }
    match phase {
        Some(Phase::Empty) | None => Ask::Create,
        Some(Phase::Creating) => any_request(rng),
        Some(Phase::Created { .. }) => match rng.below(10) {
            0..6 => Ask::Verb(Verb::Start),
            6 => Ask::Verb(Verb::Delete),
            _ => exec_request(world, rng),
        },
        Some(Phase::Running { .. }) => match rng.below(10) {
            0..6 => exec_request(world, rng),
            6 => Ask::Verb(Verb::Pause),
            7 => Ask::Wait(who(rng)),
            _ => any_request(rng),
        },
        Some(Phase::Paused { .. }) => Ask::Verb(Verb::Resume),
        Some(Phase::Stopped { .. }) => Ask::Verb(Verb::Delete),
        Some(Phase::Deleted { .. }) => match rng.below(3) {
            0 => Ask::Shutdown,
            _ => any_request(rng),
        },
    }
}

fn exec_request(world: &World, rng: &mut Rng) -> Ask {
    let exec = exec_id(rng.below(3));
    let execs = world.shim.as_ref().map(|shim| &shim.task.standing.execs);
    match execs.and_then(|e| e.get(&exec)).map(|exec| &exec.phase) {
        None => Ask::Exec(exec),
        Some(ExecPhase::Added) => Ask::StartExec(exec),
        Some(ExecPhase::Starting | ExecPhase::Running { .. }) => match rng.below(3) {
            0 => Ask::Wait(Who::Exec(exec)),
            1 => Ask::State(Who::Exec(exec)),
            _ => Ask::Kill {
                who: Who::Exec(exec),
                signal: 9,
                all: false,
            },
        },
        Some(ExecPhase::Failed | ExecPhase::Stopped { .. }) => Ask::DeleteExec(exec),
    }
}

fn any_request(rng: &mut Rng) -> Ask {
    let exec = exec_id(rng.below(3));
    match rng.below(16) {
        0 => Ask::Create,
        1 => Ask::Verb(Verb::Start),
        2 => Ask::Verb(Verb::Pause),
        3 => Ask::Verb(Verb::Resume),
        4 => Ask::Verb(Verb::Update),
        5 => Ask::Verb(Verb::Checkpoint),
        6 => Ask::Verb(Verb::Delete),
        7 => Ask::Exec(exec),
        8 => Ask::StartExec(exec),
        9 => Ask::DeleteExec(exec),
        10 => Ask::Wait(who(rng)),
        11 => Ask::Shutdown,
        12 => Ask::Kill {
            who: Who::Init,
            signal: if rng.percent(30) { 9 } else { 15 },
            all: rng.percent(30),
        },
        13 => Ask::Kill {
            who: who(rng),
            signal: 15,
            all: false,
        },
        _ => Ask::State(who(rng)),
    }
}

fn kernel(world: &World, rng: &mut Rng) -> Action {
    let host = &world.host;
    let ours = host.alive(|process| process.role != Role::Stranger);
    let minor = host.alive(|process| matches!(process.role, Role::Exec(_) | Role::Rest));
    match rng.below(20) {
        0..8 => match rng.pick(&minor) {
            Some(pid) => Action::Die(pid, status(rng)),
            None => Action::Fork,
        },
        8..10 => match rng.pick(&ours) {
            Some(pid) => Action::Die(pid, status(rng)),
            None => Action::Doorbell,
        },
        10..13 => Action::Fork,
        13 => {
            let most = if rng.percent(10) { 280 } else { 4 };
            Action::Orphans(1 + rng.below(most))
        }
        14 => match rng.pick(&ours) {
            Some(pid) => Action::Stick(pid),
            None => Action::Fork,
        },
        15..17 => {
            let stuck = host.alive(|process| process.stuck);
            match rng.pick(&stuck) {
                Some(pid) => Action::Wake(pid),
                None => Action::Doorbell,
            }
        }
        17..19 => {
            let free: Vec<u32> = host
                .truth
                .keys()
                .map(|(pid, _)| *pid)
                .filter(|pid| !host.processes.contains_key(pid))
                .collect();
            match rng.pick(&free) {
                Some(pid) if rng.percent(50) => Action::Stranger(pid),
                Some(pid) => Action::Wrap(pid),
                None => Action::Fork,
            }
        }
        _ => Action::TakePath,
    }
}

fn reaper(world: &World, rng: &mut Rng) -> Action {
    let due = |p: &crate::host::Process| p.zombie.is_some() && p.parent == Parent::Reaper;
    if rng.percent(50) && world.host.processes.values().any(due) {
        Action::Bury(1 + rng.below(8))
    } else {
        Action::Doorbell
    }
}

fn surroundings(world: &World, rng: &mut Rng) -> Action {
    match rng.below(10) {
        0 => Action::Containerd(false),
        1..4 => Action::Containerd(true),
        4 => Action::Full(true),
        5..7 => Action::Full(false),
        7 => Action::Clock(i64::from(rng.below(7200)) - 3600),
        _ => Action::Oom(world.ooms() + u64::from(rng.below(2))),
    }
}

fn death_of_the_pair(world: &World, rng: &mut Rng) -> Action {
    if !world.host.reaper && rng.percent(60) {
        return Action::Leave;
    }
    match rng.below(24) {
        0..8 => Action::Fuse(rng.below(40)),
        8..12 => Action::Torn(rng.below(12), rng.below(400)),
        12..15 => Action::KillShim,
        15..17 => Action::KillReaper,
        17..19 => Action::KillPair,
        19 => Action::BuryHalf,
        20 => Action::Reboot,
        21 => delete(rng),
        _ => Action::Leave,
    }
}

fn delete(rng: &mut Rng) -> Action {
    let mut trouble = Trouble::default();
    if rng.percent(50) {
        trouble.fuse = Some(rng.below(16));
    }
    if rng.percent(15) {
        trouble.runc = u8::try_from(rng.below(4)).ok();
        if rng.percent(50) {
            trouble.runc_again = u8::try_from(rng.below(4)).ok();
        }
    }
    if rng.percent(20) {
        trouble.death = u8::try_from(rng.below(10)).ok();
    }
    if rng.percent(10) {
        trouble.blind = 1 << rng.below(6);
    }
    Action::Delete(trouble)
}

fn after_the_shim(world: &World, rng: &mut Rng) -> Action {
    let runcs: Vec<u32> = world.host.runcs.keys().copied().collect();
    match rng.below(20) {
        0..3 => match rng.pick(&runcs) {
            Some(number) => Action::Runc(number, rng.percent(70)),
            None => delete(rng),
        },
        3..6 => kernel(world, rng),
        6..8 if world.host.reaper => Action::Bury(1 + rng.below(8)),
        8 if world.host.reaper => Action::KillReaper,
        9..12 if world.host.reaper => Action::Leave,
        12 => surroundings(world, rng),
        13 if rng.percent(30) => Action::Meddle(u8::try_from(rng.below(4)).unwrap_or(0)),
        14 if rng.percent(10) => Action::Reboot,
        _ => delete(rng),
    }
}

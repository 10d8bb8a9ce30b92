//! What a shim does first that takes over from one that died: knows again what
//! the journal, the reaper's slots and the host hold of its container, and sets
//! going what was begun and not seen to end. Must be quick, since requests
//! wait; what takes time becomes jobs, as it would have for the one that died.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use vigil_host::cgroup::{Cgroup, OomWatch};
use vigil_host::stdio::SlotKind;
use vigil_host::strays;
use vigil_model::{
    Effect, ExecId, ExecPhase, Milestone, Phase, Signalling, What, Who, forgotten, outstanding,
};

use crate::control::Control;
use crate::exits::Process;
use crate::jobs::{self, Held};
use crate::kept::{Kept, streams_of};
use crate::ooms;
use crate::owner::Owner;
use crate::stdio::{SlotId, Streams};
use crate::{Error, asked};

/// For workers that are killed to be gone.
const WORKERS_WAIT: Duration = Duration::from_millis(500);
/// For those that all sleep uninterruptibly, and so may for as long as they like.
const WORKERS_DOZE: Duration = Duration::from_millis(50);
/// For a logger whose process is deleted to write the last words.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Between two looks at workers.
const WORKERS_LOOK: Duration = Duration::from_millis(1);

/// A reaper that is late, stopped or short of memory, may answer the next one; without
/// its answer a process would run on for ever that is dead. So may more come of what it holds,
/// which nobody else would copy. What it refuses, or cannot do since it is dead itself, is no
/// better later.
fn tolerable(what: &str, error: Error) -> Result<(), Error> {
    match error {
        Error::ReaperSilent | Error::SlotsLost { .. } => Err(error),
        error => {
            log::error!("{what}: {}", vigil_host::chain(&error));
            Ok(())
        }
    }
}

/// What was deposited, by set of streams.
pub(crate) async fn deposited(control: &Control) -> Result<BTreeMap<u32, Held>, Error> {
    let mut sets: BTreeMap<u32, Held> = BTreeMap::new();
    match control.adopt().await {
        Ok(slots) => {
            for (slot, fd) in slots {
                let id = SlotId(slot.slot);
                let set = sets.entry(streams_of(id)).or_default();
                match SlotKind::from_code(slot.kind) {
                    Some(kind) => set.push((id, kind, fd)),
                    None => log::warn!("slot {} is of a kind not known here", slot.slot),
                }
            }
        }
        Err(error) => tolerable("no streams", error)?,
    }
    Ok(sets)
}

impl Owner {
    /// Takes over; requests are served from its return on. One that could not learn what
    /// the reaper holds, or not have it tell of a process' end, must not serve: another
    /// tries.
    pub(crate) async fn take_over(&mut self) -> Result<(), Error> {
        log::warn!(
            "an earlier shim died: taking over, for the {}. time",
            self.place.takeovers
        );
        self.end_workers().await;
        self.forget_pid_files();
        asked::know_again(&self.place, &mut self.task);
        let mut held = deposited(&self.hands.tools.control).await?;
        self.know_again().await?;
        let undone = outstanding(&self.task);
        for who in self.processes() {
            let held = held.remove(&self.streams_number(&who)).unwrap_or_default();
            let under_way = match &who {
                Who::Init => self.task.standing.phase == Phase::Creating,
                Who::Exec(exec) => undone.contains(&Effect::StartExec(exec.clone())),
            };
            if under_way {
                self.resuming.insert(who, held);
            } else {
                self.copy_again(who, held).await;
            }
        }
        self.release_strangers(held);
        for effect in undone {
            self.enact_again(effect);
        }
        for Signalling { who, signal, .. } in forgotten(&self.task) {
            self.happen(What::KillDone { who, signal });
        }
        self.let_go_of_pins();
        self.look_at_exits();
        self.look_at_ooms();
        if matches!(
            self.task.standing.phase,
            Phase::Empty | Phase::Deleted { .. }
        ) {
            self.arm_idle();
        }
        Ok(())
    }

    /// Workers of the one that died work for nobody; what they were at is begun
    /// anew. A call of the runtime one of them had made is the reaper's then, and
    /// found as any other.
    async fn end_workers(&self) {
        let begun = tokio::time::Instant::now();
        loop {
            let workers = match strays::errands(self.place.reaper) {
                Ok(errands) => errands.into_iter().filter(|errand| errand.worker),
                Err(error) => {
                    log::warn!("left behind: {}", vigil_host::chain(&error));
                    return;
                }
            };
            let workers: Vec<_> = workers.collect();
            workers.iter().for_each(strays::Errand::kill);
            // One in uninterruptible sleep is left behind: requests wait, and it may
            // sleep as long as its device.
            let asleep = workers.iter().all(|worker| worker.arguments.is_none());
            let wait = if asleep { WORKERS_DOZE } else { WORKERS_WAIT };
            if workers.is_empty() || begun.elapsed() >= wait {
                return;
            }
            tokio::time::sleep(WORKERS_LOOK).await;
        }
    }

    /// Those of execs that are not being started tell of an earlier start.
    fn forget_pid_files(&self) {
        for (id, exec) in &self.task.standing.execs {
            if exec.phase != ExecPhase::Starting {
                let file = jobs::exec::pid_file(&self.hands.tools, id);
                vigil_host::runc::forget_pid_file(&file);
            }
        }
    }

    /// The cgroup, its counters, and the processes that are to be told of.
    async fn know_again(&mut self) -> Result<(), Error> {
        let Some(plan) = self.task.plan.clone() else {
            return Ok(());
        };
        if let Some(init) = self.task.standing.phase.init().cloned() {
            let known = self.hands.tools.hierarchies.read();
            match known.and_then(|known| Cgroup::open(known, &plan.claims)) {
                Ok(cgroup) => {
                    let oom = OomWatch::open(&cgroup).unwrap_or_else(|error| {
                        let why = vigil_host::chain(&error);
                        log::warn!("out-of-memory kills are not watched: {why}");
                        None
                    });
                    if let Some(watch) = &oom {
                        ooms::listen(watch, self.desk.clone());
                    }
                    self.hands.oom = oom;
                    self.hands.cgroup = Some(Arc::new(cgroup));
                }
                Err(error) => log::error!("no cgroup: {}", vigil_host::chain(&error)),
            }
            let killed = |(_, what): &(_, Milestone)| *what == Milestone::Signalled(9);
            if self.task.standing.phase.live_init().is_some() && self.task.story.iter().any(killed)
            {
                self.hands.was_killed();
                self.watch_it_die();
            }
            self.pin(Who::Init, &init).await?;
        }
        let running = self
            .task
            .standing
            .execs
            .iter()
            .filter_map(|(id, exec)| match &exec.phase {
                ExecPhase::Running { process } => Some((id.clone(), process.clone())),
                ExecPhase::Added
                | ExecPhase::Starting
                | ExecPhase::Failed
                | ExecPhase::Stopped { .. } => None,
            });
        let running: Vec<_> = running.collect();
        for (exec, process) in running {
            self.pin(Who::Exec(exec), &process).await?;
        }
        Ok(())
    }

    /// The same process pinned again has the same slot.
    async fn pin(&mut self, who: Who, process: &vigil_model::Incarnation) -> Result<(), Error> {
        let control = &self.hands.tools.control;
        match control.register(process.pid, process.start_ticks, 0).await {
            Ok(pin) => {
                self.know(&who, process);
                self.hands.pins.insert(who, pin);
                Ok(())
            }
            Err(error) => tolerable(&format!("{who} is not pinned"), error),
        }
    }

    /// Everybody who has, or may have, streams.
    fn processes(&self) -> Vec<Who> {
        let execs = self.task.standing.execs.keys().cloned().map(Who::Exec);
        std::iter::once(Who::Init).chain(execs).collect()
    }

    /// Processes that are on record by their start.
    fn recorded(&self) -> Vec<Process> {
        let now = &self.task.standing;
        let execs = now.execs.values().filter_map(|exec| match &exec.phase {
            ExecPhase::Running { process } | ExecPhase::Stopped { process, .. } => Some(process),
            ExecPhase::Added | ExecPhase::Starting | ExecPhase::Failed => None,
        });
        let all = now.phase.init().into_iter().chain(execs);
        all.map(|process| (process.pid, process.start_ticks))
            .collect()
    }

    pub(crate) fn streams_number(&self, who: &Who) -> u32 {
        let now = &self.task.standing;
        match who {
            Who::Init => now.init_streams,
            Who::Exec(exec) => now.execs.get(exec).map_or(0, |exec| exec.streams),
        }
    }

    /// Copying goes on where it stopped.
    async fn copy_again(&mut self, who: Who, held: Held) {
        if held.is_empty() {
            return;
        }
        let number = self.streams_number(&who);
        let mut streams = self.hands.tools.held_streams(number, held);
        if let Err(error) = streams.started().await {
            log::error!(
                "the streams of {who} stay still: {}",
                vigil_host::chain(&error)
            );
        }
        let ended = match &who {
            Who::Init => self.task.standing.phase.live_init().is_none(),
            Who::Exec(exec) => !matches!(
                self.task.standing.execs.get(exec).map(|exec| &exec.phase),
                Some(ExecPhase::Running { .. })
            ),
        };
        if ended {
            // Closed by rule from here on, whether anybody waits for it or not.
            tokio::spawn(streams.process_gone());
        }
        self.hands.streams.insert(who, streams);
    }

    /// Nobody is left whom these belong to.
    fn release_strangers(&self, sets: BTreeMap<u32, Held>) {
        for (number, held) in sets {
            let streams: Streams<Kept> = self.hands.tools.held_streams(number, held);
            tokio::spawn(streams.close_all(LAST_WORDS));
        }
    }

    /// Pins of processes that nobody will ever ask for: an earlier shim died
    /// between pinning one and recording it. Not while that is being found out.
    fn let_go_of_pins(&self) {
        if !self.resuming.is_empty() || self.task.standing.midway() {
            return;
        }
        let ours: Vec<usize> = self.hands.pins.values().copied().collect();
        let control = self.hands.tools.control.clone();
        let stray = self.hands.tools.exits.in_use().into_iter();
        // The first is init's own and kept as long as the pair lives.
        let stray: Vec<usize> = stray
            .filter(|pin| *pin != 0 && !ours.contains(pin))
            .collect();
        tokio::spawn(async move {
            for pin in stray {
                let _ = control.unregister(pin).await;
            }
        });
    }

    /// An effect the one that died was asked for: the host is asked first how
    /// far it came.
    fn enact_again(&mut self, effect: Effect) {
        let tools = self.hands.tools.clone();
        match effect {
            Effect::Create(plan) => {
                let number = self.streams_number(&Who::Init);
                let held = self.resuming.remove(&Who::Init).unwrap_or_default();
                let held = tools.held_streams(number, held);
                self.create_again(jobs::resume::create(tools, plan, held));
            }
            Effect::StartExec(exec) => self.start_exec_again(exec),
            Effect::Run(verb) => self.run_verb_again(verb),
            Effect::Signal {
                who,
                process,
                signal,
                all,
            } => {
                self.enact(Effect::Signal {
                    who: who.clone(),
                    process,
                    signal,
                    all,
                });
                // Whoever asked is answered when it asks again.
                self.signal_outcome = None;
                self.happen(What::KillDone { who, signal });
            }
            // Whoever asked for it asks again, and wants an answer; if nobody does,
            // idleness ends it.
            Effect::Leave => {}
            effect @ (Effect::Discard { .. }
            | Effect::KillRest
            | Effect::Drain(_)
            | Effect::ArmOverdue
            | Effect::Release(_)
            | Effect::AnswerCreate
            | Effect::AnswerVerb(_)
            | Effect::AnswerExecStart(_)
            | Effect::AnswerWaiters(_)
            | Effect::Publish) => self.enact(effect),
        }
    }

    fn start_exec_again(&mut self, exec: ExecId) {
        let who = Who::Exec(exec.clone());
        let (Some(plan), Some(asked)) = (
            self.task.plan.clone(),
            self.task.exec_plans.get(&exec).cloned(),
        ) else {
            return;
        };
        let tools = self.hands.tools.clone();
        let number = self.streams_number(&who);
        let held = self.resuming.remove(&who).unwrap_or_default();
        let held = tools.held_streams(number, held);
        let spec = asked::spec(&self.place, &exec, &asked);
        let asked = (asked.stdio, spec);
        let (others, init) = (self.recorded(), self.init());
        let job = jobs::resume::exec(tools, plan, exec.clone(), asked, held, others, init);
        self.exec_again(exec, job);
    }
}

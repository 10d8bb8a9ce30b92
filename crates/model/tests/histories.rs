//! Random lives of a task: whatever order things happen in, the invariants
//! hold, replaying the records gives the same task, and once the world calms
//! down every task ends and every end is told exactly once.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{Life, all_events, exec, exec_plan, exit, process};
use proptest::prelude::*;
use vigil_model::{
    Effect, ExecPhase, Kind, Phase, Published, Task, TaskEvent, Verb, What, Who, audit::audit,
};

/// What a sensible host would still let happen: the effects in flight, and
/// the processes alive.
#[derive(Default)]
struct World {
    life: Life,
    pending: Vec<Effect>,
    alive: BTreeMap<u32, Who>,
    next_pid: u32,
    told: Vec<Published>,
    seen: u64,
}

#[derive(Debug, Clone)]
enum Act {
    Ask(usize),
    AskExec(u8, u8),
    /// Let the n-th effect in flight end, well or badly.
    Finish(usize, bool),
    /// The n-th live process ends.
    Die(usize),
    Ack,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0usize..11).prop_map(Act::Ask),
        4 => (0u8..4, 0u8..4).prop_map(|(which, what)| Act::AskExec(which, what)),
        8 => (0usize..8, prop::bool::weighted(0.8)).prop_map(|(n, well)| Act::Finish(n, well)),
        3 => (0usize..4).prop_map(Act::Die),
        1 => Just(Act::Ack),
    ];
    prop::collection::vec(act, 0..120)
}

impl World {
    fn live(&mut self, what: What) -> Option<Kind> {
        let outcome = self.life.live(what);
        for published in &self.life.task.outbox {
            if published.seq > self.seen {
                self.seen = published.seq;
                self.told.push(published.clone());
            }
        }
        match outcome {
            Ok(effects) => {
                self.pending.extend(effects);
                None
            }
            Err(refusal) => Some(refusal.kind),
        }
    }

    fn pid(&mut self, who: Who) -> u32 {
        self.next_pid += 1;
        self.alive.insert(self.next_pid, who);
        self.next_pid
    }

    fn finish(&mut self, effect: &Effect, well: bool) {
        match effect {
            Effect::Create(_) if well => {
                let pid = self.pid(Who::Init);
                self.live(What::CreateDone {
                    init: Some(process(pid)),
                    claims: Vec::new(),
                });
            }
            Effect::Create(_) => {
                let undone = self.next_pid.is_multiple_of(2);
                self.live(What::CreateFailed { undone });
            }
            Effect::Run(verb) if well => {
                if *verb == Verb::Delete {
                    // runc delete takes everything down with it.
                    self.kill_all();
                }
                self.live(What::Done {
                    verb: *verb,
                    init: None,
                });
            }
            Effect::Run(verb) => {
                self.live(What::Failed(*verb));
            }
            Effect::StartExec(exec) if well => {
                let pid = self.pid(Who::Exec(exec.clone()));
                self.live(What::ExecStartDone {
                    exec: exec.clone(),
                    process: process(pid),
                });
            }
            Effect::StartExec(exec) => {
                self.live(What::ExecStartFailed(exec.clone()));
            }
            Effect::Signal {
                who,
                signal,
                process,
                ..
            } => {
                if *signal == 9 {
                    self.die(process.pid);
                }
                self.live(What::KillDone {
                    who: who.clone(),
                    signal: *signal,
                });
            }
            Effect::Discard { exec, process } => {
                let found = self.life.task.standing.execs.get(exec);
                let running = ExecPhase::Running {
                    process: process.clone(),
                };
                if found.is_some_and(|exec| exec.phase == running) {
                    self.die(process.pid);
                } else {
                    self.alive.remove(&process.pid);
                }
            }
            Effect::KillRest => {
                let rest: Vec<u32> = self.alive.keys().copied().collect();
                for pid in rest {
                    self.die(pid);
                }
                self.live(What::RestGone);
            }
            Effect::Drain(who) => {
                self.live(What::Drained(who.clone()));
            }
            Effect::ArmOverdue => {
                if !well {
                    self.live(What::Overdue);
                }
            }
            Effect::Release(_)
            | Effect::AnswerCreate
            | Effect::AnswerVerb(_)
            | Effect::AnswerExecStart(_)
            | Effect::AnswerWaiters(_)
            | Effect::Publish
            | Effect::Leave => {}
        }
    }

    fn die(&mut self, pid: u32) {
        if let Some(who) = self.alive.remove(&pid) {
            self.live(What::Exited {
                who,
                exit: exit(u8::try_from(pid % 200).unwrap()),
            });
        }
    }

    fn kill_all(&mut self) {
        let all: Vec<u32> = self.alive.keys().copied().collect();
        for pid in all {
            self.die(pid);
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Ask(n) => {
                let names = [
                    "create asked",
                    "start asked",
                    "pause asked",
                    "resume asked",
                    "update asked",
                    "checkpoint asked",
                    "delete asked",
                    "kill init asked",
                    "shutdown asked",
                    "oom",
                    "overdue",
                ];
                let what = all_events()
                    .into_iter()
                    .find(|(name, _)| *name == names[*n])
                    .unwrap()
                    .1;
                self.live(what);
            }
            Act::AskExec(which, what) => {
                let exec = exec(["a", "b", "c", "d"][usize::from(*which)]);
                self.live(match what {
                    0 => What::ExecAsked {
                        exec,
                        plan: exec_plan(),
                    },
                    1 => What::ExecStartAsked(exec),
                    2 => What::ExecDeleteAsked(exec),
                    _ => What::KillAsked {
                        who: Who::Exec(exec),
                        signal: 9,
                        all: false,
                    },
                });
            }
            Act::Finish(n, well) => {
                if !self.pending.is_empty() {
                    let effect = self.pending.remove(n % self.pending.len());
                    self.finish(&effect, *well);
                }
            }
            Act::Die(n) => {
                if let Some(pid) = self.alive.keys().nth(*n).copied() {
                    self.die(pid);
                }
            }
            Act::Ack => {
                if let Some(first) = self.life.task.outbox.front().map(|first| first.seq) {
                    self.live(What::Acked { seq: first });
                }
            }
        }
    }

    /// Everything in flight ends, in the order it was asked.
    fn calm(&mut self) {
        for _ in 0..1000 {
            if self.pending.is_empty() {
                return;
            }
            let effect = self.pending.remove(0);
            self.finish(&effect, true);
        }
        panic!("effects beget effects without end");
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let wrong = audit(&self.told);
        prop_assert!(wrong.is_empty(), "{:?}\n{:#?}", wrong, self.told);
        let mut replayed = Task::default();
        for record in &self.life.ledger.0 {
            replayed.apply(record);
        }
        prop_assert_eq!(&replayed, &self.life.task);
        let snapshot = Task::decode(&self.life.task.encode().unwrap()).unwrap();
        prop_assert_eq!(&snapshot, &self.life.task);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_story_is_true_and_ends(acts in acts()) {
        let mut world = World::default();
        for act in &acts {
            world.act(act);
            world.check()?;
        }
        // Calm: what is under way ends; then kill, wait, delete, shut down.
        world.calm();
        let created = !matches!(world.life.task.standing.phase, Phase::Empty | Phase::Deleted { .. });
        if created {
            if matches!(world.life.task.standing.phase, Phase::Paused { .. }) {
                world.live(What::Asked(Verb::Resume));
                world.calm();
            }
            world.kill_all();
            world.calm();
            let refused = world.live(What::Asked(Verb::Delete));
            prop_assert_eq!(refused, None, "{:?}", world.life.task.standing);
            world.calm();
        }
        for exec in world.life.task.standing.execs.values() {
            let ended = !matches!(
                exec.phase,
                ExecPhase::Starting | ExecPhase::Running { .. } | ExecPhase::Stopped { told: false, .. }
            );
            prop_assert!(ended, "{:?}", world.life.task.standing);
        }
        world.live(What::ShutdownAsked);
        prop_assert!(world.pending.contains(&Effect::Leave));
        world.check()?;
        // Every process that was started was told as ended, once.
        let count = |wanted: fn(&TaskEvent) -> bool| world.told.iter().filter(|p| wanted(&p.event)).count();
        let started = count(|e| matches!(e, TaskEvent::ExecStarted { .. }));
        let ended = count(|e| matches!(e, TaskEvent::Exit { who: Who::Exec(_), .. }));
        prop_assert_eq!(started, ended);
        let starts = count(|e| matches!(e, TaskEvent::Start { .. }));
        let ends = count(|e| matches!(e, TaskEvent::Exit { who: Who::Init, .. }));
        prop_assert!(starts <= ends && ends <= 1, "{} starts, {} ends", starts, ends);
    }
}

//! What the shim does beside its owner, stage by stage: each stage is one
//! thing that happens on the host, so that anything may come in between.

use vigil_reconcile::{Goal, RuncDelete, Said};

use vigil_model::{ExecId, Incarnation, Phase, Verb, What, Who};

use crate::host::{Host, Parent, Seen};
use crate::ledger::Dead;
use crate::recovery::{Delete, Hooks, Subject, Trouble, ours, remove_ours};
use crate::runc::Call;
use crate::shim::{Alive, Turn};

/// A piece of work.
#[derive(Debug, Clone)]
pub enum Work {
    /// Create.
    Create,
    /// A verb on init.
    Verb(Verb),
    /// The start of an exec.
    Exec(ExecId),
    /// Killing a process nobody will ask for.
    Discard(Incarnation),
    /// Killing what lives on without init.
    KillRest,
    /// Something that simply happens later.
    Happen(What),
    /// The deadline of init's end.
    Timer,
    /// Giving a slot back.
    Unpin(usize),
    /// The time the last events get.
    Flush,
}

/// A piece of work and how far it has come.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it is.
    pub work: Work,
    /// Its next stage.
    pub stage: u8,
    /// The runc it waits for.
    pub runc: Option<u32>,
    /// The place in the ring before that was started.
    pub since: u64,
    /// The process that came of it, and its slot.
    pub found: Option<(Incarnation, usize)>,
}

/// What became of a stage.
enum Over {
    /// There is another one.
    No,
    /// Nothing could be done yet.
    Waits,
    /// The job is over.
    Yes,
}

impl Turn<'_> {
    /// One stage of a job, well or badly. `false` if it could do nothing.
    pub fn advance(&mut self, number: u32, well: bool) -> Alive<bool> {
        let Some(mut job) = self.shim.jobs.remove(&number) else {
            return Ok(false);
        };
        self.point()?;
        let over = self.stage(&mut job, well)?;
        let moved = !matches!(over, Over::Waits);
        if !matches!(over, Over::Yes) {
            self.shim.jobs.insert(number, job);
        }
        if moved {
            self.present_deferred()?;
        }
        Ok(moved)
    }

    fn stage(&mut self, job: &mut Job, well: bool) -> Alive<Over> {
        match job.work.clone() {
            Work::Create => self.create(job, well),
            Work::Verb(Verb::Start) => self.start(job, well),
            Work::Verb(Verb::Delete) => self.delete(job, well),
            Work::Verb(verb) => self.verb(job, verb, well),
            Work::Exec(exec) => self.exec(job, &exec, well),
            Work::Discard(process) => {
                if self.host.look(&process) == Seen::Alive {
                    self.host.signal(process.pid, crate::host::KILL);
                }
                Ok(Over::Yes)
            }
            Work::KillRest => {
                if self.host.private {
                    self.thaw();
                } else {
                    if self.owns_group() {
                        self.host.kill_group();
                    }
                    self.host.kill_below();
                }
                self.over(What::RestGone)
            }
            Work::Happen(what) => self.over(what),
            Work::Timer => {
                self.shim.overdue = true;
                self.happen(What::Overdue)?;
                let standing = &self.shim.task.standing;
                let told = !matches!(standing.phase, Phase::Stopped { told: false, .. });
                // What is being started has a deadline of its own.
                if !told && standing.busy != Some(Verb::Start) && !standing.lingers() {
                    let standing = format!("liveness: overdue and not told: {standing:?}");
                    self.book.wrong(standing);
                }
                Ok(Over::Yes)
            }
            Work::Unpin(slot) => {
                if self.host.reaper {
                    self.records.write(|recorder| recorder.unpin(slot));
                }
                Ok(Over::Yes)
            }
            Work::Flush => {
                self.shim.flushed = true;
                Ok(Over::Yes)
            }
        }
    }

    fn over(&mut self, what: What) -> Alive<Over> {
        self.happen(what)?;
        Ok(Over::Yes)
    }

    /// Waits for the runc of the job; a deadline that passes kills it.
    fn finished(&mut self, job: &Job, well: bool) -> Option<bool> {
        let number = job.runc?;
        if !well {
            self.host.kill_runc(number);
        }
        let outcome = self.host.runcs.get(&number)?.outcome?;
        self.host.runcs.remove(&number);
        Some(outcome)
    }

    fn call(&mut self, job: &mut Job, call: Call) {
        job.since = self
            .records
            .read()
            .map_or(0, vigil_journal::exits::Exits::ring_seq);
        job.runc = Some(self.host.start_runc(call));
    }

    // --- create -------------------------------------------------------------

    fn create(&mut self, job: &mut Job, well: bool) -> Alive<Over> {
        let restore = !self.plan.create.checkpoint.is_empty();
        match job.stage {
            0 if !well => job.stage = UNDO,
            0 => {
                self.host.mounted = true;
                if restore {
                    let claims = self.planned();
                    return self.over(What::CreateDone { init: None, claims });
                }
                job.stage = 1;
            }
            1..UNDO => match self.bring_up(job, well, Call::Create) {
                Brought::NotYet => return Ok(Over::Waits),
                Brought::Further => {}
                Brought::Failed => job.stage = UNDO,
                Brought::Up => return self.brought_up(job, None),
            },
            _ => return self.undo(job, well),
        }
        Ok(Over::No)
    }

    /// Whether init runs, as far as the task knows which it is.
    fn live_init(&self) -> bool {
        let init = self.shim.task.standing.phase.init();
        init.is_some_and(|init| self.host.look(init) == Seen::Alive)
    }

    fn planned(&self) -> Vec<vigil_model::Claim> {
        self.shim
            .task
            .plan
            .as_ref()
            .map(|plan| plan.claims.clone())
            .unwrap_or_default()
    }

    /// runc, then its process found and its cgroup taken.
    fn bring_up(&mut self, job: &mut Job, well: bool, call: Call) -> Brought {
        match job.stage {
            1 => {
                self.host.pid_file = None;
                self.call(job, call);
            }
            2 => match self.finished(job, well) {
                None => return Brought::NotYet,
                Some(false) => return Brought::Failed,
                Some(true) => {}
            },
            3 => {
                let Some(pid) = self.host.pid_file else {
                    return Brought::Failed;
                };
                match self.pin(pid, job.since) {
                    Some(found) => job.found = Some(found),
                    None => return Brought::Failed,
                }
            }
            _ => {
                if well {
                    return Brought::Up;
                }
                self.unpin(job);
                return Brought::Failed;
            }
        }
        job.stage += 1;
        Brought::Further
    }

    fn brought_up(&mut self, job: &mut Job, verb: Option<Verb>) -> Alive<Over> {
        let Some((init, slot)) = job.found.clone() else {
            return Err(Dead);
        };
        let mut claims = self.planned();
        if let (Some(group), [claim]) = (&self.host.group, &mut claims[..]) {
            claim.inode = Some(group.inode);
        }
        self.shim.pins.insert(Who::Init, slot);
        self.shim.group = Some(claims.clone());
        let init = Some(init);
        match verb {
            None => self.happen(What::CreateDone { init, claims })?,
            Some(verb) => self.happen(What::Done { verb, init })?,
        }
        self.look_at_exits()?;
        Ok(Over::Yes)
    }

    /// From the number in a pid file to a process that is pinned.
    fn pin(&mut self, pid: u32, since: u64) -> Option<(Incarnation, usize)> {
        if !self.host.reaper {
            return None;
        }
        let slot = self
            .records
            .write(|recorder| recorder.pin(pid, 0, since))?
            .ok()?;
        let now = self.host.processes.get(&pid);
        let now = now.filter(|process| process.parent != Parent::Ancestor);
        // The number changed hands while runc ran: nobody can say whom it meant.
        if let (Some(death), Some(ticks)) = (self.records.pinned(slot), now.map(|p| p.ticks))
            && !death.is_of(pid, ticks)
        {
            self.records.write(|recorder| recorder.unpin(slot));
            return None;
        }
        if let Some(death) = self.records.pinned(slot) {
            return Some((self.host.named(pid, death.start_ticks), slot));
        }
        // What lives and is not below our reaper was never started by our runc.
        let process = self.host.processes.get(&pid);
        let below = process.is_some_and(|process| process.parent != Parent::Ancestor);
        let found = self.host.incarnation(pid).filter(|_| below);
        if found.is_none() {
            // Of two that had the pid nobody can say which it was.
            let dead: Vec<_> = self.host.truth.keys().filter(|(p, _)| *p == pid).collect();
            if let [&(pid, ticks)] = dead[..]
                && self.records.find(pid, ticks).is_some()
            {
                self.book.wrong(format!(
                    "I2: the recorded end of process {pid} is not found"
                ));
            }
            self.records.write(|recorder| recorder.unpin(slot));
        }
        Some((found?, slot))
    }

    fn unpin(&mut self, job: &mut Job) {
        if let Some((_, slot)) = job.found.take() {
            self.begin(Work::Unpin(slot));
        }
    }

    /// Takes back what a failed Create or restore did, by the one path there
    /// is; well: with as much patience as it needs, up to a bound.
    fn undo(&mut self, job: &mut Job, well: bool) -> Alive<Over> {
        let (undone, _) = self.recover(Said::Creating, Goal::Keep, well);
        if !undone && well && job.stage < UNDO_LAST {
            job.stage += 1;
            return Ok(Over::No);
        }
        self.host.pid_file = None;
        self.over(match job.work {
            Work::Verb(verb) => What::Failed(verb),
            _ => What::CreateFailed {
                undone: undone || self.forgetful,
            },
        })
    }

    /// The worker that brings the container to nothing, as `delete` would:
    /// whether nothing is left, and whether something would not die.
    fn recover(&mut self, said: Said, goal: Goal, well: bool) -> (bool, bool) {
        let phase = &self.shim.task.standing.phase;
        let subject = Subject {
            said,
            boot: Some(self.host.boot_id()),
            init: phase.init().cloned(),
            exit: match phase {
                Phase::Stopped { exit, .. } => Some(*exit),
                _ => None,
            },
            execs: Vec::new(),
            claims: self.planned(),
            private: self.host.private,
            runc_delete: RuncDelete::NotTried,
        };
        let mut worker = Delete {
            host: self.host,
            records: self.records,
            disk: None,
            book: self.book,
            spec: self.plan,
            kernel_tells: false,
            now: self.now,
            trouble: Trouble {
                runc: (!well).then_some(1),
                runc_again: (!well).then_some(2),
                ..Trouble::default()
            },
            held: false,
            hooks: Hooks::default(),
        };
        let whole = worker.recover(&subject, goal);
        (whole, worker.held)
    }

    // --- verbs ----------------------------------------------------------------

    fn start(&mut self, job: &mut Job, well: bool) -> Alive<Over> {
        let verb = Verb::Start;
        if job.stage == 0 && self.shim.task.standing.phase.init().is_none() {
            job.stage = 1;
        }
        if job.stage == 0 || job.stage == PLAIN {
            return self.plain(job, verb, Call::Start, well);
        }
        if job.stage >= UNDO {
            return self.undo(job, well);
        }
        match self.bring_up(job, well, Call::Restore) {
            Brought::NotYet => Ok(Over::Waits),
            Brought::Further => Ok(Over::No),
            Brought::Failed => {
                job.stage = UNDO;
                Ok(Over::No)
            }
            Brought::Up => self.brought_up(job, Some(verb)),
        }
    }

    fn verb(&mut self, job: &mut Job, verb: Verb, well: bool) -> Alive<Over> {
        match verb {
            Verb::Pause | Verb::Resume => {
                let freeze = verb == Verb::Pause && well;
                match &mut self.host.group {
                    Some(group) if freeze && !group.foreign => group.frozen = true,
                    Some(_) | None => self.thaw(),
                }
                if self.shim.killed {
                    self.thaw();
                }
                if well && self.host.group.is_some() {
                    self.over(What::Done { verb, init: None })
                } else {
                    self.over(What::Failed(verb))
                }
            }
            Verb::Start | Verb::Update | Verb::Checkpoint | Verb::Delete => {
                self.plain(job, verb, Call::Other, well)
            }
        }
    }

    /// A verb that is one runc.
    fn plain(&mut self, job: &mut Job, verb: Verb, call: Call, well: bool) -> Alive<Over> {
        if job.stage == 0 {
            self.call(job, call);
            job.stage = PLAIN;
            return Ok(Over::No);
        }
        match self.finished(job, well) {
            None => Ok(Over::Waits),
            Some(outcome) => {
                self.happen(if outcome {
                    What::Done { verb, init: None }
                } else {
                    What::Failed(verb)
                })?;
                self.look_at_exits()?;
                Ok(Over::Yes)
            }
        }
    }

    /// Limits are of no use to a container that goes.
    fn end_update(&mut self) {
        let jobs = self.shim.jobs.values();
        let at_it = jobs.filter(|job| matches!(job.work, Work::Verb(Verb::Update)));
        for runc in at_it.filter_map(|job| job.runc) {
            self.host.kill_runc(runc);
        }
    }

    fn delete(&mut self, job: &mut Job, well: bool) -> Alive<Over> {
        let verb = Verb::Delete;
        match job.stage {
            0 => {
                self.end_update();
                let created = matches!(self.shim.task.standing.phase, Phase::Created { .. });
                if created && self.owns_group() {
                    self.host.kill_group();
                }
            }
            // The end of what was killed is waited for, within bounds.
            1 => {}
            2 => {
                // Where runc would kill strangers nothing is asked of it.
                let foreign = self.host.group.as_ref().is_some_and(|group| group.foreign);
                let shared = foreign && !self.host.private;
                if self.host.runc_state.is_some() && !shared {
                    self.call(job, Call::Delete { force: false });
                } else {
                    job.stage += 1;
                }
            }
            3 => match self.finished(job, well) {
                None => return Ok(Over::Waits),
                // What holds out is named, and Delete refused.
                Some(false) if self.live_init() => {
                    self.happen(What::Failed(verb))?;
                    self.look_at_exits()?;
                    return Ok(Over::Yes);
                }
                Some(_) => {}
            },
            _ => {
                let claims = self.planned();
                self.look_at_exits()?;
                let cleaned =
                    self.host.runc_state.is_none() && well && remove_ours(self.host, &claims);
                if cleaned {
                    self.host.mounted = false;
                } else {
                    let said = Said::from(&self.shim.task.standing.phase);
                    let (_, held) = self.recover(said, Goal::Gone, well);
                    if held || self.live_init() || ours(self.host, &claims) {
                        self.happen(What::Failed(verb))?;
                        self.look_at_exits()?;
                        return Ok(Over::Yes);
                    }
                }
                self.host.pid_file = None;
                self.look_at_exits()?;
                self.point()?;
                return self.over(What::Done { verb, init: None });
            }
        }
        job.stage += 1;
        Ok(Over::No)
    }

    // --- execs ----------------------------------------------------------------

    fn exec(&mut self, job: &mut Job, exec: &ExecId, well: bool) -> Alive<Over> {
        match job.stage {
            0 => {
                self.host.exec_pid_files.remove(exec);
                self.call(job, Call::Exec(exec.clone()));
            }
            1 => match self.finished(job, well) {
                None => return Ok(Over::Waits),
                Some(outcome) => {
                    let pid = self.host.exec_pid_files.remove(exec);
                    job.found = pid.and_then(|pid| self.pin(pid, job.since));
                    if !outcome || job.found.is_none() {
                        if let Some((process, slot)) = job.found.take() {
                            self.begin(Work::Discard(process));
                            self.begin(Work::Unpin(slot));
                        }
                        return self.over(What::ExecStartFailed(exec.clone()));
                    }
                }
            },
            _ => {
                let Some((process, slot)) = job.found.take() else {
                    return Err(Dead);
                };
                if !well {
                    self.begin(Work::Discard(process));
                    self.begin(Work::Unpin(slot));
                    return self.over(What::ExecStartFailed(exec.clone()));
                }
                self.shim.pins.insert(Who::Exec(exec.clone()), slot);
                let exec = exec.clone();
                self.happen(What::ExecStartDone { exec, process })?;
                self.look_at_exits()?;
                return Ok(Over::Yes);
            }
        }
        job.stage += 1;
        Ok(Over::No)
    }
}

/// First attempt at taking a Create back.
const UNDO: u8 = 10;
/// The last one.
const UNDO_LAST: u8 = UNDO + 3;
/// The only runc of a plain verb is waited for.
const PLAIN: u8 = 20;

/// How far a container has come up.
enum Brought {
    NotYet,
    Further,
    Failed,
    Up,
}

/// Whether anything of the container is left on the host, and what.
pub fn residue(host: &Host) -> Vec<String> {
    let mut left = Vec::new();
    for (pid, process) in &host.processes {
        if process.role != crate::host::Role::Stranger {
            left.push(format!("process {pid}: {process:?}"));
        }
    }
    if let Some(group) = &host.group
        && !group.foreign
        && !group.before
    {
        left.push("its cgroup".to_owned());
    }
    if host.mounted {
        left.push("its rootfs, mounted".to_owned());
    }
    if host.socket {
        left.push("its socket".to_owned());
    }
    if host.runc_state.is_some() {
        left.push("runc's state".to_owned());
    }
    left
}

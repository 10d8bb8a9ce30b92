//! `delete` as a process of its own, on the fake host: replay, observe,
//! decide, plan, carry out one action after the other. It may die between any
//! two and is then run again. Judgement and journal are the real ones. The
//! shim comes here too, with what it knows in place of the journal.

use vigil_journal::crash::CrashDisk;
use vigil_journal::{Journal, Settings, names};
use vigil_model::{
    Because, Before, Claim, ExecPhase, Exit, Incarnation, KIND_RECORD, Moment, Phase, Plan, Record,
    Status, Task, Verb,
};
use vigil_reconcile::{
    Action, Boot, Exit as ExitFact, Facts, Goal, Group as GroupFact, Init, Present, RuncDelete,
    Said, Verdict, plan, row,
};

use crate::book::{Book, status_of};
use crate::host::{Host, KILL, Role, Seen};
use crate::ledger::{Dead, remembered};
use crate::records::Records;
use crate::runc::Call;
use crate::shim::Alive;

/// What goes wrong around one run of `delete`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Trouble {
    /// It dies at this point.
    #[serde(default)]
    pub fuse: Option<u32>,
    /// Its runc is killed after so many stages.
    #[serde(default)]
    pub runc: Option<u8>,
    /// And so is the second one.
    #[serde(default)]
    pub runc_again: Option<u8>,
    /// One process of the container dies by itself before this point.
    #[serde(default)]
    pub death: Option<u8>,
    /// What it cannot look at: bits for boot, init, cgroup, mounts, socket,
    /// runc's state.
    #[serde(default)]
    pub blind: u8,
}

/// What `delete` came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered; the bundle goes.
    Answered(Exit),
    /// It left with an error; it will be asked again.
    Failed(Verdict),
}

/// One run.
pub struct Delete<'w> {
    /// The host.
    pub host: &'w mut Host,
    /// The reaper's records.
    pub records: &'w mut Records,
    /// The bundle; `None` for the shim, which has it open.
    pub disk: Option<&'w CrashDisk>,
    /// The auditor.
    pub book: &'w mut Book,
    /// The bundle's config.json, for want of a record.
    pub spec: &'w Plan,
    /// Whether the kernel remembers the status of a reaped process.
    pub kernel_tells: bool,
    /// The time.
    pub now: Moment,
    /// What goes wrong.
    pub trouble: Trouble,
    /// Something would not die.
    pub held: bool,
    /// Who is to run the poststop hooks still.
    pub hooks: Hooks,
}

/// Whose the poststop hooks are to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hooks {
    /// Nobody's.
    #[default]
    NotOwed,
    /// runc's.
    Runtimes,
    /// Ours: runc must not be called, or has nothing to call them by.
    Ours,
}

/// What is known of the container.
pub struct Subject {
    /// What is on record.
    pub said: Said,
    /// The boot of the record.
    pub boot: Option<String>,
    /// Init.
    pub init: Option<Incarnation>,
    /// Its end.
    pub exit: Option<Exit>,
    /// Execs that were last seen running.
    pub execs: Vec<Incarnation>,
    /// The cgroup.
    pub claims: Vec<Claim>,
    /// Whether it has a pid namespace of its own.
    pub private: bool,
    /// How far `runc delete` came.
    pub runc_delete: RuncDelete,
}

/// What was seen, as the hands need it.
struct Eyes {
    facts: Facts,
    init: Option<Incarnation>,
    /// Init was there to be opened: alive or a zombie.
    opened: bool,
    claims: Vec<Claim>,
    /// Others that are known one by one.
    others: Vec<Incarnation>,
}

/// The claims as Create finds them.
pub fn planned(host: &Host, spec: &Plan) -> Plan {
    let mut plan = spec.clone();
    for claim in &mut plan.claims {
        claim.before = match &host.group {
            None => Before::Absent,
            Some(group) => Before::Existed {
                inode: group.inode,
                populated: host.populated(),
                ooms: 0,
            },
        };
    }
    plan
}

/// Whether the cgroup that is there is the container's own.
pub fn ours(host: &Host, claims: &[Claim]) -> bool {
    let Some(group) = &host.group else {
        return false;
    };
    claims
        .iter()
        .any(|claim| claim.ours() && claim.inode.is_none_or(|inode| inode == group.inode))
}

/// Removes the cgroup if it is the container's own; false if it stays.
pub fn remove_ours(host: &mut Host, claims: &[Claim]) -> bool {
    !ours(host, claims) || host.remove_group()
}

impl Delete<'_> {
    fn point(&mut self) -> Alive {
        if let Some(death) = &mut self.trouble.death {
            if *death == 0 {
                self.trouble.death = None;
                let frozen = self.host.group.as_ref().is_some_and(|group| group.frozen);
                let victims = self.host.alive(|p| {
                    let able = !(p.stuck || p.doomed || p.inside && frozen);
                    able && p.role != Role::Stranger
                });
                if let Some(pid) = victims.first() {
                    self.host.die(*pid, 3 << 8);
                }
            } else {
                *death -= 1;
            }
        }
        match &mut self.trouble.fuse {
            Some(0) => Err(Dead),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn blind(&self, bit: u8) -> bool {
        self.trouble.blind & (1 << bit) != 0
    }

    /// The whole of it.
    pub fn run(&mut self) -> Alive<Outcome> {
        self.point()?;
        let subject = self.subject();
        self.point()?;
        let (eyes, verdict, killed_alive) = self.act(&subject, Goal::Gone)?;
        self.point()?;
        let exit = self.answer(&subject, &eyes, verdict, killed_alive);
        let exit = match self.disk.and_then(remembered) {
            Some((task, _)) => task.dated(exit),
            None => exit,
        };
        if self.may_live(&eyes, verdict) {
            return Ok(Outcome::Failed(verdict));
        }
        self.point()?;
        self.remember_end(&exit);
        self.point()?;
        // Where no Create is on record there is no process whose end it could be.
        if let Some(process) = self.host.init
            && subject.said != Said::Nothing
        {
            self.book.tell(self.host, process, &exit, "delete");
        }
        Ok(Outcome::Answered(exit))
    }

    /// Observes, decides, carries out.
    fn act(&mut self, subject: &Subject, goal: Goal) -> Alive<(Eyes, Verdict, bool)> {
        let eyes = self.observe(subject);
        let verdict = row(&eyes.facts).map_or(Verdict::Impossible, |row| row.verdict);
        if verdict == Verdict::Impossible {
            let facts = &eyes.facts;
            self.book.wrong(format!("reconcile: impossible: {facts:?}"));
        }
        let mut killed_alive = false;
        for action in plan(verdict, &eyes.facts, goal) {
            self.point()?;
            self.carry_out(action, subject, &eyes, &mut killed_alive);
        }
        Ok((eyes, verdict, killed_alive))
    }

    /// What the shim's worker does; whether nothing is left, by a second look.
    pub fn recover(&mut self, subject: &Subject, goal: Goal) -> bool {
        if self.act(subject, goal).is_err() {
            return false;
        }
        let facts = self.observe(subject).facts;
        let socket = Present::No;
        !Facts { socket, ..facts }.residue()
    }

    /// What is on record, the exit records included.
    fn subject(&mut self) -> Subject {
        let mut subject = Subject {
            said: Said::Unreadable,
            boot: None,
            init: None,
            exit: None,
            execs: Vec::new(),
            claims: Vec::new(),
            private: self.host.private,
            runc_delete: RuncDelete::NotTried,
        };
        let mut midway = true;
        if let Some((task, boot)) = self.disk.and_then(remembered) {
            midway = task.standing.midway();
            recall(&mut subject, &task, boot);
        }
        if midway {
            // Calls that outlived their pair are ended first.
            for number in self.host.runcs.keys().copied().collect::<Vec<_>>() {
                self.host.kill_runc(number);
            }
        }
        if subject.exit.is_none()
            && let Some(init) = &subject.init
        {
            subject.exit = self.records.find(init.pid, init.start_ticks);
        }
        if subject.init.is_none()
            && subject.exit.is_none()
            && subject.said != Said::Nothing
            && let Some((init, exit)) = self.ended_init()
        {
            subject.init = Some(init);
            subject.exit = Some(exit);
        }
        subject
    }

    /// Init and its end where the journal does not name it: the number runc wrote down, if
    /// a registered process of that number has died; once a Delete has taken that away, the
    /// slot that is init's.
    fn ended_init(&mut self) -> Option<(Incarnation, Exit)> {
        let (death, boot) = match self.host.pid_file {
            Some(pid) => self.records.registered(pid)?,
            None => self.records.first()?,
        };
        let mut init = self.host.named(death.pid, death.start_ticks);
        init.boot.0 = boot;
        Some((init, crate::records::exit_of(&death)))
    }

    fn observe(&self, subject: &Subject) -> Eyes {
        let host = &*self.host;
        let present = |bit, there| match (self.blind(bit), there) {
            (true, _) => Present::Unknown,
            (false, true) => Present::Yes,
            (false, false) => Present::No,
        };
        let state = host.runc_state.as_ref().filter(|_| !self.blind(5));
        let claims = self.claims(subject);
        let group = if self.blind(2) {
            GroupFact::Unknown
        } else if ours(host, &claims) {
            if host.populated() {
                GroupFact::Populated
            } else {
                GroupFact::Empty
            }
        } else if host.group.is_some() && !claims.is_empty() {
            GroupFact::Foreign
        } else {
            GroupFact::Absent
        };
        let mut others = self.marked(subject, group);
        let init = subject
            .init
            .clone()
            .or_else(|| state.and_then(|state| state.init.clone()))
            .or_else(|| others.pop());
        others.retain(|other| Some(other) != init.as_ref());
        let execs = subject.execs.iter().cloned();
        others.extend(execs.filter(|exec| host.look(exec) == Seen::Alive));
        // Unread is not unwritten: runc's state may name one that lives where
        // nobody would look for it.
        let told = match group {
            GroupFact::Absent | GroupFact::Empty | GroupFact::Populated => true,
            GroupFact::Foreign | GroupFact::Unknown => subject.said == Said::Gone,
        };
        let other = subject.boot.as_ref().is_some_and(|b| *b != host.boot_id());
        let (boot, fact, opened) = match &init {
            _ if self.blind(0) => {
                let fact = init.as_ref().map_or(Init::Unnamed, |_| Init::Unknown);
                (Boot::Unknown, fact, false)
            }
            None if other => (Boot::Other, Init::Unnamed, false),
            None if self.blind(5) && host.runc_state.is_some() && !told => {
                (Boot::Same, Init::Unknown, false)
            }
            None => (Boot::Same, Init::Unnamed, false),
            Some(_) if other => (Boot::Other, Init::Dead, false),
            Some(_) if self.blind(1) => (Boot::Same, Init::Unknown, false),
            Some(init) => match host.look(init) {
                Seen::Alive => (Boot::Same, Init::Alive, true),
                Seen::Zombie => (Boot::Same, Init::Dead, true),
                Seen::Gone => (Boot::Same, Init::Dead, false),
            },
        };
        let below = host.reaper && !host.below().is_empty();
        let facts = Facts {
            boot,
            said: subject.said,
            init: fact,
            exit: if subject.exit.is_some() {
                ExitFact::Known
            } else {
                ExitFact::NotKnown
            },
            group,
            below: if below || !others.is_empty() {
                Present::Yes
            } else {
                Present::No
            },
            runc_delete: subject.runc_delete,
            runc_state: present(5, host.runc_state.is_some()),
            mounts: present(3, host.mounted),
            socket: present(4, host.socket),
        };
        Eyes {
            facts,
            init,
            opened,
            claims,
            others,
        }
    }

    /// What runc was making, found by its environment in a cgroup that is not
    /// ours alone.
    fn marked(&self, subject: &Subject, group: GroupFact) -> Vec<Incarnation> {
        if group != GroupFact::Foreign || matches!(subject.said, Said::Nothing | Said::Gone) {
            return Vec::new();
        }
        let marked = self.host.alive(|p| p.inside && p.marked);
        let named = marked.iter().filter_map(|pid| self.host.incarnation(*pid));
        named.collect()
    }

    /// The recorded claims, else what the spec says: a directory that carries
    /// the container's name is taken for its own.
    fn claims(&self, subject: &Subject) -> Vec<Claim> {
        if !subject.claims.is_empty() {
            return subject.claims.clone();
        }
        if subject.said == Said::Nothing && self.host.runc_state.is_none() {
            return Vec::new();
        }
        let mut claims = self.spec.claims.clone();
        for claim in &mut claims {
            claim.before = if claim.path.ends_with("/c") {
                Before::Absent
            } else {
                Before::Unknown
            };
            claim.inode = None;
        }
        claims
    }

    /// Once something held out, it counts as doing so to the end of the run.
    fn holds_out(&mut self, eyes: &Eyes) -> bool {
        let init = eyes.init.as_ref();
        let alive = init.is_some_and(|init| self.host.look(init) == Seen::Alive);
        let other = |other: &Incarnation| self.host.look(other) == Seen::Alive;
        let others = eyes.others.iter().any(other);
        self.held |= eyes.opened && alive || others;
        self.held
    }

    fn carry_out(&mut self, action: Action, subject: &Subject, eyes: &Eyes, killed: &mut bool) {
        let own = !self.blind(2) && ours(self.host, &eyes.claims);
        match action {
            Action::KillInit => {
                if let Some(init) = &eyes.init
                    && eyes.opened
                    && self.host.look(init) == Seen::Alive
                {
                    *killed = true;
                    self.host.signal(init.pid, KILL);
                }
            }
            Action::KillCgroup if own => self.held |= !self.host.kill_group(),
            Action::Thaw if own => self.host.thaw(),
            Action::KillBelow => {
                for other in &eyes.others {
                    if self.host.look(other) == Seen::Alive {
                        self.host.signal(other.pid, KILL);
                    }
                }
                self.host.kill_below();
            }
            Action::RuncDelete => self.runc_delete(subject, eyes),
            Action::Unmount => self.host.mounted = false,
            Action::RemoveCgroups if own => {
                self.host.remove_group();
            }
            Action::RemoveRuncState => self.remove_runc_state(eyes),
            Action::UnlinkSocket => self.host.socket = false,
            Action::Tombstone => {
                self.host.tombstone = self.host.runc_state.is_some() && !self.held;
            }
            Action::KillCgroup
            | Action::Thaw
            | Action::RemoveCgroups
            | Action::WriteHistory
            | Action::AnswerExit => {}
        }
    }

    fn runc_delete(&mut self, subject: &Subject, eyes: &Eyes) {
        if self.holds_out(eyes) {
            return;
        }
        let Some(state) = &self.host.runc_state else {
            return;
        };
        let foreign = eyes.facts.group == GroupFact::Foreign
            || eyes.facts.group == GroupFact::Unknown
                && (eyes.claims.is_empty() || eyes.claims.iter().any(|claim| !claim.ours()));
        let shared = foreign && !subject.private;
        if shared || state.init.is_none() {
            self.hooks = Hooks::Ours;
            return;
        }
        self.hooks = Hooks::Runtimes;
        let left = self.trouble.runc;
        self.call_runc_delete(left);
    }

    /// After everything else went, which may be what runc failed for.
    fn remove_runc_state(&mut self, eyes: &Eyes) {
        if self.holds_out(eyes) || self.host.runc_state.is_none() {
            return;
        }
        match self.hooks {
            Hooks::NotOwed => {}
            Hooks::Ours => self.host.hooks.poststop += 1,
            Hooks::Runtimes => {
                let left = self.trouble.runc_again;
                self.call_runc_delete(left);
                return;
            }
        }
        self.host.runc_state = None;
    }

    /// One that is killed after so many stages, or none.
    fn call_runc_delete(&mut self, mut left: Option<u8>) {
        let number = self.host.start_runc(Call::Delete { force: true });
        loop {
            if left == Some(0) {
                self.host.kill_runc(number);
            }
            left = left.map(|left| left.saturating_sub(1));
            if !self.host.advance_runc(number, true) {
                break;
            }
        }
        self.host.runcs.remove(&number);
    }

    /// How init ended, by whoever knows best.
    fn answer(&self, subject: &Subject, eyes: &Eyes, verdict: Verdict, killed: bool) -> Exit {
        if let Some(exit) = subject.exit {
            return exit;
        }
        let mut exit = Exit {
            status: Status::Unknown(because(verdict, subject.said)),
            at: self.now,
        };
        let Some(init) = eyes.init.as_ref().filter(|_| eyes.opened) else {
            return exit;
        };
        if self.host.look(init) == Seen::Alive {
            return exit;
        }
        let truth = self.host.truth.get(&(init.pid, init.start_ticks)).copied();
        if self.kernel_tells
            && let Some(status) = truth.and_then(status_of)
        {
            exit.status = status;
        } else if killed {
            exit.status = Status::Signalled(9);
        }
        exit
    }

    fn may_live(&mut self, eyes: &Eyes, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Impossible | Verdict::Unclear => true,
            Verdict::NotOurs => eyes.facts.boot != Boot::Same,
            Verdict::StillRunning
            | Verdict::ExitNotTold
            | Verdict::Stragglers
            | Verdict::DiedUnseen
            | Verdict::HalfCreated
            | Verdict::NeverRan
            | Verdict::Leftovers
            | Verdict::NothingLeft
            | Verdict::OtherBoot => {
                self.holds_out(eyes)
                    || eyes.facts.group == GroupFact::Unknown
                    || eyes.facts.init == Init::Unknown
            }
        }
    }

    /// Records what was found before it is told, so that a second run tells
    /// the same.
    fn remember_end(&mut self, exit: &Exit) {
        let recorded = (|| {
            let disk = self.disk?;
            let (task, _) = remembered(disk)?;
            let file = disk.open(names::JOURNAL)?;
            let settings = Settings::default();
            let opened = Journal::open_in(
                disk.clone(),
                names::JOURNAL,
                (file, &crate::ledger::owner()),
                settings,
            )
            .ok()?;
            let Some(record) = Record::of_end(&task, 0, *exit, self.now) else {
                return Some(());
            };
            let mut journal = opened.journal;
            journal
                .append(KIND_RECORD, &record.encode().ok()?)
                .ok()
                .map(drop)
        })();
        if recorded.is_none() {
            self.book.amnesia = true;
        }
    }
}

fn recall(subject: &mut Subject, task: &Task, boot: String) {
    let phase = &task.standing.phase;
    subject.said = if task.standing.remains && *phase == Phase::Empty {
        Said::HalfMade
    } else {
        Said::from(phase)
    };
    subject.boot = Some(boot);
    subject.init = phase.init().cloned();
    subject.exit = phase.exit();
    let execs = task.standing.execs.values();
    let running = execs.filter_map(|exec| match &exec.phase {
        ExecPhase::Running { process } => Some(process.clone()),
        ExecPhase::Added | ExecPhase::Starting | ExecPhase::Failed | ExecPhase::Stopped { .. } => {
            None
        }
    });
    subject.execs = running.collect();
    subject.runc_delete = match (phase, task.standing.busy) {
        (Phase::Deleted { .. }, _) | (_, Some(Verb::Delete)) => RuncDelete::Begun,
        (_, _) => RuncDelete::NotTried,
    };
    if let Some(plan) = &task.plan {
        subject.claims.clone_from(&plan.claims);
        subject.private = plan.private_pid_ns;
    }
}

/// Why nobody knows.
fn because(verdict: Verdict, said: Said) -> Because {
    match verdict {
        Verdict::OtherBoot => Because::OtherBoot,
        Verdict::HalfCreated | Verdict::NeverRan => Because::NeverRan,
        Verdict::DiedUnseen | Verdict::StillRunning | Verdict::Stragglers
            if matches!(said, Said::Live | Said::Ended) =>
        {
            Because::ReaperGone
        }
        Verdict::Leftovers | Verdict::NothingLeft if said == Said::Nothing => Because::NeverRan,
        Verdict::DiedUnseen
        | Verdict::StillRunning
        | Verdict::Stragglers
        | Verdict::Leftovers
        | Verdict::NothingLeft
        | Verdict::ExitNotTold
        | Verdict::NotOurs
        | Verdict::Unclear
        | Verdict::Impossible => Because::NoRecord,
    }
}

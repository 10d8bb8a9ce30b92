//! One life of one container: the pair, the host, the disk, the clock and
//! containerd. `apply` lets one action happen and audits; nothing else
//! changes anything. After a violation the life goes no further.

use serde::{Deserialize, Serialize};
use vigil_journal::crash::{CrashDisk, Stop};
use vigil_journal::{BootId, Directory, Settings, names};
use vigil_model::request::Create;
use vigil_model::{Before, Claim, Driver, Exit, Moment, Phase, Plan, Published, What};

use crate::action::Action;
use crate::book::Book;
use crate::host::{Group, Host, Parent, Role};
use crate::jobs::{Work, residue};
use crate::ledger::{Dead, ShimLedger, after_kill, remembered};
use crate::records::Records;
use crate::recovery::{Delete, Hooks, Outcome, Trouble};
use crate::rng::Rng;
use crate::shim::{Alive, Shim, Turn};

/// What stood at the container's cgroup path before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ground {
    /// Nothing.
    Bare,
    /// An empty directory.
    Empty,
    /// Somebody else's, in use.
    Shared,
}

/// What a life is lived with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// What stood at the cgroup path.
    pub ground: Ground,
    /// A pid namespace of its own.
    pub private: bool,
    /// Create restores a checkpoint.
    pub restore: bool,
    /// The kernel remembers the status of what was reaped (Linux 6.15).
    pub kernel_tells: bool,
    /// A Create is called undone also when something of it does not die: a
    /// defect, to show that it is found.
    #[serde(default)]
    pub forgetful: bool,
    /// Bytes the journal takes in advance; half of it is cut off when used.
    pub prealloc: u32,
    /// Where the search for pids begins.
    pub next_pid: u32,
    /// Where the count of starts begins.
    pub ticks: u64,
}

impl Life {
    /// Draws one. In a shared cgroup without a pid namespace of its own nobody
    /// can tell what the container forked from the strangers once the reaper
    /// is dead: there it forks nothing, and only what is on record is held
    /// against `delete`.
    pub fn draw(rng: &mut Rng, next_pid: u32, ticks: u64) -> Self {
        let ground = match rng.below(20) {
            0..14 => Ground::Bare,
            14..17 => Ground::Empty,
            _ => Ground::Shared,
        };
        Self {
            ground,
            private: rng.percent(60),
            restore: rng.percent(10),
            kernel_tells: rng.percent(50),
            prealloc: [2048, 4096, 16384][rng.below(3) as usize],
            forgetful: false,
            next_pid,
            ticks,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct World {
    /// What it is lived with.
    pub life: Life,
    /// The host.
    pub host: Host,
    /// The shim, while it lives.
    pub shim: Option<Shim>,
    /// The exit records.
    pub records: Records,
    /// The bundle.
    pub disk: CrashDisk,
    /// The auditor.
    pub book: Book,
    /// Nothing more will happen.
    pub over: bool,
    plan: Plan,
    pub(crate) full: bool,
    pub(crate) containerd: bool,
    pub(crate) fuse: Option<u32>,
    now: Moment,
    /// What the last `delete` that answered said.
    pub(crate) answered: Option<Exit>,
    checked_seq: u64,
}

fn boot_of(host: &Host) -> BootId {
    BootId::parse(&host.boot_id()).unwrap_or_else(|_| unreachable!("36 digits and dashes"))
}

impl World {
    /// A host with a pair that has just become ready.
    pub fn new(life: Life) -> Self {
        let mut host = Host::new(1, life.ticks, life.next_pid, life.private);
        let path = match life.ground {
            Ground::Bare | Ground::Empty => "/cgroup/n/c",
            Ground::Shared => "/cgroup/n/pod",
        };
        if life.ground != Ground::Bare {
            host.group = Some(Group {
                inode: 1,
                frozen: false,
                foreign: life.ground == Ground::Shared,
                before: true,
            });
        }
        host.spawn(Role::Stranger, false, Parent::Ancestor);
        if life.ground == Ground::Shared {
            host.spawn(Role::Stranger, true, Parent::Ancestor);
        }
        let disk = CrashDisk::default();
        let records = Records::new(boot_of(&host));
        let settings = Settings {
            prealloc: life.prealloc,
            durable: false,
            ..Settings::default()
        };
        let mut book = Book::default();
        let shim = match ShimLedger::open(&disk, boot_of(&host), settings) {
            Ok((ledger, task)) => Some(Shim::new(ledger, task)),
            Err(error) => {
                book.wrong(format!("journal: {error}"));
                None
            }
        };
        let plan = Plan {
            create: Create {
                bundle: "/b".to_owned(),
                checkpoint: if life.restore { "/cp" } else { "" }.to_owned(),
                ..Create::default()
            },
            driver: Driver::Cgroupfs,
            claims: vec![Claim {
                hierarchy: String::new(),
                path: path.to_owned(),
                before: Before::Unknown,
                inode: None,
            }],
            private_pid_ns: life.private,
            runtime_root: "/r".to_owned(),
            runtime: "runc".to_owned(),
        };
        Self {
            life,
            host,
            shim,
            records,
            disk,
            book,
            over: false,
            plan,
            full: false,
            containerd: true,
            fuse: None,
            now: Moment {
                secs: 1_000_000,
                nanos: 0,
            },
            answered: None,
            checked_seq: 0,
        }
    }

    /// Whether this job is the timer of init's end.
    pub fn is_timer(&self, number: u32) -> bool {
        let jobs = self.shim.as_ref().map(|shim| &shim.jobs);
        jobs.and_then(|jobs| jobs.get(&number))
            .is_some_and(|job| matches!(job.work, Work::Timer))
    }

    /// OOM kills the shim knows of.
    pub fn ooms(&self) -> u64 {
        self.shim.as_ref().map_or(0, |shim| shim.task.standing.ooms)
    }

    /// One action and the audit after it. `false` if nothing could happen.
    pub fn apply(&mut self, action: &Action) -> bool {
        if self.over {
            return false;
        }
        self.now.nanos += 1000;
        if self.now.nanos >= 1_000_000_000 {
            self.now.nanos = 0;
            self.now.secs += 1;
        }
        let happened = if *action == Action::Calm {
            self.calm();
            true
        } else {
            self.act(action)
        };
        if happened {
            self.check();
        }
        if !self.book.violations.is_empty() {
            self.over = true;
        }
        happened
    }

    fn act(&mut self, action: &Action) -> bool {
        match action.clone() {
            Action::Ask(ask) => self.turn(|turn| turn.ask(ask).map(|()| true)),
            Action::Job(number, well) => self.turn(|turn| turn.advance(number, well)),
            Action::Runc(number, well) => self.host.advance_runc(number, well),
            Action::Die(pid, status) => self.process_dies(pid, status),
            Action::Fork => self.fork(),
            Action::Orphans(count) => self.orphans(count),
            Action::Stranger(pid) => self.host.reuse(pid),
            Action::Wrap(pid) => self.host.wrap(pid),
            Action::TakePath => self.take_path(),
            Action::Stick(pid) => self.stick(pid),
            Action::Wake(pid) => {
                self.host.wake(pid);
                true
            }
            Action::Bury(count) => self.bury(count, false) > 0,
            Action::BuryHalf => self.bury(1, true) > 0,
            Action::Doorbell => self.turn(|turn| turn.look_at_exits().map(|()| true)),
            Action::Oom(count) => self.turn(|turn| turn.happen(What::Oom { count }).map(|()| true)),
            Action::Deliver(acked) => self.deliver(acked),
            Action::Containerd(up) => std::mem::replace(&mut self.containerd, up) != up,
            Action::Full(full) => {
                self.full = full;
                let limit = full.then(|| self.disk.used());
                self.disk.limit_space(limit);
                true
            }
            Action::Clock(secs) => {
                self.now.secs += secs;
                true
            }
            Action::Fuse(points) => {
                self.fuse = Some(points);
                self.shim.is_some()
            }
            Action::Torn(acts, bytes) => {
                self.disk.stop_at(Stop {
                    at: self.disk.acts() + acts as usize,
                    torn: bytes as usize,
                });
                self.shim.is_some()
            }
            Action::KillShim => self.shim_died(),
            Action::KillReaper => {
                let lived = self.host.reaper;
                self.host.reaper_died();
                lived
            }
            Action::KillPair => {
                self.host.reaper_died();
                self.shim_died()
            }
            Action::Leave => self.leave(),
            Action::Delete(trouble) => self.delete(trouble),
            Action::Meddle(how) => self.meddle(how),
            Action::Reboot => {
                self.shim_died();
                self.host.reboot();
                true
            }
            Action::Calm => false,
        }
    }

    // --- the shim -----------------------------------------------------------

    /// A turn of the shim, which may die in it, or be done after it.
    pub(crate) fn turn(&mut self, work: impl FnOnce(&mut Turn<'_>) -> Alive<bool>) -> bool {
        let Some(shim) = &mut self.shim else {
            return false;
        };
        let mut turn = Turn {
            shim,
            host: &mut self.host,
            records: &mut self.records,
            book: &mut self.book,
            plan: &self.plan,
            forgetful: self.life.forgetful,
            fuse: &mut self.fuse,
            now: self.now,
        };
        let outcome = work(&mut turn);
        let outcome = outcome.and_then(|moved| {
            if self.disk.is_stopped() {
                Err(Dead)
            } else {
                Ok(moved)
            }
        });
        match outcome {
            Ok(moved) => {
                self.end_if_due();
                moved
            }
            Err(Dead) => self.shim_died(),
        }
    }

    /// The shim is gone: what it had recorded must be what is found.
    fn shim_died(&mut self) -> bool {
        let Some(shim) = self.shim.take() else {
            return false;
        };
        self.fuse = None;
        self.disk = after_kill(&self.disk, self.full);
        self.book.late |= shim.kept.is_some();
        let lived = shim.kept.as_deref().unwrap_or(&shim.task);
        let Some((found, _)) = remembered(&self.disk) else {
            self.book.wrong("journal: unreadable after a SIGKILL");
            return true;
        };
        let mut with_begun = lived.clone();
        if let Some(begun) = &shim.ledger.begun {
            with_begun.apply(begun);
        }
        if found != *lived && found != with_begun {
            self.book.wrong(format!(
                "journal: lived {:?}\nfound {:?}",
                lived.standing, found.standing
            ));
        }
        true
    }

    fn end_if_due(&mut self) {
        let Some(shim) = &self.shim else {
            return;
        };
        let Some(for_good) = shim.leaving else {
            return;
        };
        if !shim.flushed && !shim.task.outbox.is_empty() {
            return;
        }
        if for_good {
            self.host.socket = false;
            if self.fuse == Some(0) {
                self.shim_died();
                return;
            }
        }
        self.shim_died();
        self.bury(u32::MAX, false);
        self.host.reaper_died();
    }

    /// The survivor of a broken pair leaves.
    pub(crate) fn leave(&mut self) -> bool {
        match (self.shim.is_some(), self.host.reaper) {
            (false, true) => {
                self.bury(u32::MAX, false);
                self.host.reaper_died();
                true
            }
            (true, false) => self.turn(|turn| {
                turn.leave(false);
                Ok(true)
            }),
            (true, true) | (false, false) => false,
        }
    }

    pub(crate) fn deliver(&mut self, acked: bool) -> bool {
        let next = self.shim.as_ref().and_then(|shim| shim.task.outbox.front());
        let Some(event) = next.cloned().filter(|_| self.containerd) else {
            return false;
        };
        let event: Published = event;
        self.book.hear(&self.host, &event);
        if acked {
            let seq = event.seq;
            self.turn(|turn| turn.happen(What::Acked { seq }).map(|()| true));
        }
        true
    }

    // --- the reaper -----------------------------------------------------------

    /// Records and reaps deaths; `half`: dies before it reaps.
    pub(crate) fn bury(&mut self, count: u32, half: bool) -> u32 {
        let mut buried = 0;
        while self.host.reaper && buried < count {
            let due = self.host.processes.iter().find_map(|(pid, process)| {
                let status = process.zombie?;
                (process.parent == Parent::Reaper).then_some((*pid, process.ticks, status))
            });
            let Some((pid, start_ticks, status)) = due else {
                break;
            };
            let death = vigil_journal::exits::Death {
                way: vigil_journal::exits::Way::Waited,
                pid,
                start_ticks,
                status,
                at_secs: self.now.secs,
                at_nanos: self.now.nanos,
            };
            self.records.write(|recorder| recorder.record(death));
            if half {
                self.host.reaper_died();
            } else {
                self.host.processes.remove(&pid);
            }
            buried += 1;
        }
        buried
    }

    // --- the host -----------------------------------------------------------

    fn process_dies(&mut self, pid: u32, status: i32) -> bool {
        let frozen = self.host.group.as_ref().is_some_and(|group| group.frozen);
        match self.host.processes.get(&pid) {
            Some(p) if !(p.zombie.is_some() || p.stuck || p.doomed || p.inside && frozen) => {
                self.host.die(pid, status);
                true
            }
            Some(_) | None => false,
        }
    }

    fn running_init(&self) -> bool {
        !self.host.alive(|p| p.role == Role::Init).is_empty()
    }

    fn fork(&mut self) -> bool {
        self.tells_apart()
            && self.running_init()
            && self.host.spawn(Role::Rest, true, Parent::Inside).is_some()
    }

    /// Whether the container's processes are told from strangers.
    fn tells_apart(&self) -> bool {
        self.life.private || self.life.ground != Ground::Shared
    }

    /// Double forks of a shared pid namespace: each becomes the reaper's child
    /// and ends.
    fn orphans(&mut self, count: u32) -> bool {
        if self.life.private || !self.tells_apart() || !self.running_init() {
            return false;
        }
        for n in 0..count {
            let parent = if self.host.reaper {
                Parent::Reaper
            } else {
                Parent::Ancestor
            };
            if let Some(pid) = self.host.spawn(Role::Rest, true, parent) {
                let code = i32::try_from(n % 256).unwrap_or(0);
                self.host.die(pid, code << 8);
            }
        }
        true
    }

    fn stick(&mut self, pid: u32) -> bool {
        let private = self.life.private;
        match self.host.processes.get_mut(&pid) {
            // In a private namespace the kernel lets init go last.
            Some(p) if p.zombie.is_none() && (p.role == Role::Init || !private) => {
                p.stuck = true;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Somebody else makes a cgroup of the same path once ours, whose inode
    /// was recorded, is gone. (Not while runc knows the path: it does not look
    /// at inodes.)
    fn take_path(&mut self) -> bool {
        let recorded = remembered(&self.disk)
            .and_then(|(task, _)| task.plan)
            .is_some_and(|plan| plan.claims.iter().any(|claim| claim.inode.is_some()));
        let runc_knows = self.host.runc_state.is_some();
        if self.host.group.is_some()
            || runc_knows
            || !recorded
            || self.life.ground == Ground::Shared
        {
            return false;
        }
        let inode = self.host.tick();
        self.host.group = Some(Group {
            inode,
            frozen: false,
            foreign: true,
            before: false,
        });
        self.host
            .spawn(Role::Stranger, true, Parent::Ancestor)
            .is_some()
    }

    fn meddle(&mut self, how: u8) -> bool {
        if self.shim.is_some() || self.host.reaper {
            return false;
        }
        // Without a record a cgroup of the container's name is taken for its own.
        if self.life.ground != Ground::Shared
            && self.host.group.as_ref().is_some_and(|group| group.foreign)
        {
            return false;
        }
        if remembered(&self.disk).is_none() {
            return false;
        }
        match how {
            0 => {
                let _ = self.disk.remove(names::JOURNAL);
            }
            1 => self.disk.meddle(names::JOURNAL, |bytes| {
                if let Some(byte) = bytes.get_mut(100) {
                    *byte ^= 0x40;
                }
            }),
            2 => self.disk.meddle(names::JOURNAL, |bytes| bytes.truncate(40)),
            _ => self.disk.meddle(names::JOURNAL, |bytes| {
                bytes[..8].copy_from_slice(b"foreign\n");
            }),
        }
        if remembered(&self.disk).is_some() {
            // A damaged last record is taken for one that was never finished;
            // nothing can tell. Undone, as not worth a word.
            self.disk.meddle(names::JOURNAL, |bytes| {
                if let Some(byte) = bytes.get_mut(100) {
                    *byte ^= 0x40;
                }
            });
            return false;
        }
        self.book.amnesia = true;
        true
    }

    // --- delete ---------------------------------------------------------------

    pub(crate) fn delete(&mut self, trouble: Trouble) -> bool {
        if !self.containerd {
            return false;
        }
        // The pair is made to leave before the lock is had.
        if self.host.reaper {
            self.bury(u32::MAX, false);
            self.host.reaper_died();
        }
        self.shim_died();
        if self.host.group.as_ref().is_some_and(|group| group.foreign)
            && self.life.ground != Ground::Shared
            && remembered(&self.disk).is_none()
        {
            // See `meddle`.
            return false;
        }
        let mut delete = Delete {
            host: &mut self.host,
            records: &mut self.records,
            disk: Some(&self.disk),
            book: &mut self.book,
            spec: &self.plan,
            kernel_tells: self.life.kernel_tells,
            now: self.now,
            trouble,
            held: false,
            hooks: Hooks::default(),
        };
        match delete.run() {
            Err(Dead) => {
                self.disk = after_kill(&self.disk, self.full);
            }
            Ok(Outcome::Failed(_)) => {}
            Ok(Outcome::Answered(exit)) => {
                self.answered = Some(exit);
                self.nothing_left(true);
            }
        }
        true
    }

    // --- the audit --------------------------------------------------------------

    fn check(&mut self) {
        if let Some(pid) = self.host.hurt.first() {
            let process = self.host.processes.get(pid);
            self.book
                .wrong(format!("I8: stranger {pid} was sent SIGKILL: {process:?}"));
        }
        let hooks = &self.host.hooks;
        if hooks.poststop > hooks.begun && !hooks.interrupted {
            self.book.wrong(format!("poststop twice: {hooks:?}"));
        }
        self.book.audit();
        if let Some(shim) = &self.shim {
            let standing = &shim.task.standing;
            if let Phase::Deleted { .. } = standing.phase {
                self.nothing_left(false);
            }
        }
        self.check_journal();
    }

    /// A live shim's journal tells what the shim knows.
    fn check_journal(&mut self) {
        let Some(shim) = self.shim.as_ref().filter(|shim| shim.kept.is_none()) else {
            return;
        };
        let seq = shim.ledger.next_seq();
        if std::mem::replace(&mut self.checked_seq, seq) == seq {
            return;
        }
        let found = remembered(&self.disk).map(|(task, _)| task);
        if found.as_ref() != Some(&shim.task) {
            let found = found.map(|task| task.standing);
            let lives = &shim.task.standing;
            self.book
                .wrong(format!("journal: lives {lives:?}\nreplayed {found:?}"));
        }
    }

    /// Whether this process is an exec the journal knows to have been started.
    fn on_record(&self, left: &str) -> bool {
        let task = remembered(&self.disk).map(|(task, _)| task);
        let execs = task.iter().flat_map(|task| task.standing.execs.values());
        let mut pids = execs.map(|exec| exec.pid);
        pids.any(|pid| left.starts_with(&format!("process {pid}:")))
    }

    /// I4.
    pub(crate) fn nothing_left(&mut self, socket_too: bool) {
        for left in residue(&self.host) {
            if self.host.tombstone && left == "runc's state" {
                continue;
            }
            if !self.tells_apart() && left.contains("role: Exec") && !self.on_record(&left) {
                continue;
            }
            let zombie = left.contains("zombie: Some");
            if (left != "its socket" || socket_too) && !zombie {
                self.book.wrong(format!("I4: {left} is left"));
            }
        }
    }
}

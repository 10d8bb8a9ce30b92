//! The fake kernel: processes with incarnations, zombies and their parents,
//! one cgroup, mounts, a socket. It knows the truth (how each process really
//! ended, whom a signal hit) and tells it to the auditor only.

use std::collections::BTreeMap;

use vigil_model::{BootId, ExecId, Incarnation};

use crate::runc::{Hooks, Runc, RuncState};

/// SIGKILL, as a number and as a wait status.
pub const KILL: i32 = 9;
/// The status of what ended with its boot: no claim about it can be right.
pub const NOBODY_SAW: i32 = -1;
/// The pids there are; which one is used again soon is decided by an action.
const PIDS: std::ops::Range<u32> = 100..1200;

/// What a process is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The container's first process.
    Init,
    /// An exec of it.
    Exec(ExecId),
    /// Another process of the container.
    Rest,
    /// None of our business.
    Stranger,
}

/// Who will be told of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// The reaper, by birth or as the sub-reaper.
    Reaper,
    /// Some ancestor outside: it reaps at once and tells nobody.
    Ancestor,
    /// A runc that still runs.
    Runc(u32),
    /// Another process of the container.
    Inside,
}

/// One process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its start; no two are alike.
    pub ticks: u64,
    /// What it is.
    pub role: Role,
    /// Whether it is in the container's cgroup.
    pub inside: bool,
    /// Its parent.
    pub parent: Parent,
    /// Its wait status, once it is dead and not reaped.
    pub zombie: Option<i32>,
    /// In uninterruptible sleep.
    pub stuck: bool,
    /// A SIGKILL waits for it to wake up.
    pub doomed: bool,
    /// Its environment is runc's: it has not become the user's program yet.
    pub marked: bool,
}

/// The container's cgroup.
#[derive(Debug, Clone)]
pub struct Group {
    /// Which directory of that name.
    pub inode: u64,
    /// Whether everything in it stands still.
    pub frozen: bool,
    /// Whether somebody else made it and uses it.
    pub foreign: bool,
    /// Whether it was there before the container: then it may stay.
    pub before: bool,
}

/// What was seen of a recorded incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It runs.
    Alive,
    /// It is dead and not reaped.
    Zombie,
    /// It is gone, or its number is somebody else's.
    Gone,
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    /// Which boot.
    pub boot: u32,
    /// Counts starts of processes, inodes and the like.
    pub ticks: u64,
    next_pid: u32,
    /// All processes but the pair and runc.
    pub processes: BTreeMap<u32, Process>,
    /// The cgroup at the container's path.
    pub group: Option<Group>,
    /// Whether the rootfs is mounted.
    pub mounted: bool,
    /// Whether the socket's file is there.
    pub socket: bool,
    /// runc's state directory.
    pub runc_state: Option<RuncState>,
    /// `init.pid`.
    pub pid_file: Option<u32>,
    /// The pid files of execs being started.
    pub exec_pid_files: BTreeMap<ExecId, u32>,
    /// runcs that run, or whose outcome nobody has taken.
    pub runcs: BTreeMap<u32, Runc>,
    /// Which hooks ran.
    pub hooks: Hooks,
    /// What is left is named in a tombstone.
    pub tombstone: bool,
    /// Whether the reaper lives.
    pub reaper: bool,
    /// Whether the container has a pid namespace of its own.
    pub private: bool,
    /// How each process of the container really ended.
    pub truth: BTreeMap<(u32, u64), i32>,
    /// The newest init.
    pub init: Option<(u32, u64)>,
    /// Whose death we caused and had no right to.
    pub hurt: Vec<u32>,
}

impl Host {
    /// An empty host.
    pub fn new(boot: u32, ticks: u64, next_pid: u32, private: bool) -> Self {
        Self {
            boot,
            ticks,
            next_pid: next_pid.clamp(PIDS.start, PIDS.end - 1),
            processes: BTreeMap::new(),
            group: None,
            mounted: false,
            socket: true,
            runc_state: None,
            pid_file: None,
            exec_pid_files: BTreeMap::new(),
            runcs: BTreeMap::new(),
            hooks: Hooks::default(),
            tombstone: false,
            reaper: true,
            private,
            truth: BTreeMap::new(),
            init: None,
            hurt: Vec::new(),
        }
    }

    /// The boot id as text.
    pub fn boot_id(&self) -> String {
        format!("{:08x}-0000-4000-8000-000000000000", self.boot)
    }

    /// A number nothing else has.
    pub fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }

    /// Where the search for a free pid goes on.
    pub fn next_pid(&self) -> u32 {
        self.next_pid
    }

    /// Makes a process; `None` if there are no pids.
    pub fn spawn(&mut self, role: Role, inside: bool, parent: Parent) -> Option<u32> {
        let ticks = self.tick();
        for _ in PIDS {
            let pid = self.next_pid;
            self.next_pid = if pid + 1 == PIDS.end {
                PIDS.start
            } else {
                pid + 1
            };
            if self.processes.contains_key(&pid) {
                continue;
            }
            if role == Role::Init {
                self.init = Some((pid, ticks));
            }
            let process = Process {
                ticks,
                role,
                inside,
                parent,
                zombie: None,
                stuck: false,
                doomed: false,
                marked: false,
            };
            self.processes.insert(pid, process);
            return Some(pid);
        }
        None
    }

    /// The search for a free pid begins here.
    pub fn wrap(&mut self, pid: u32) -> bool {
        let fits = PIDS.contains(&pid);
        if fits {
            self.next_pid = pid;
        }
        fits
    }

    /// A stranger gets this pid, if nothing has it.
    pub fn reuse(&mut self, pid: u32) -> bool {
        if self.processes.contains_key(&pid) || !PIDS.contains(&pid) {
            return false;
        }
        let next = std::mem::replace(&mut self.next_pid, pid);
        let spawned = self.spawn(Role::Stranger, false, Parent::Ancestor);
        self.next_pid = next;
        spawned.is_some()
    }

    /// Which process this pid is now.
    pub fn incarnation(&self, pid: u32) -> Option<Incarnation> {
        let ticks = self.processes.get(&pid)?.ticks;
        Some(self.named(pid, ticks))
    }

    /// The incarnation with this start.
    pub fn named(&self, pid: u32, ticks: u64) -> Incarnation {
        Incarnation {
            pid,
            start_ticks: ticks,
            pid_ns: 1,
            boot: BootId(self.boot_id()),
            pidfd_inode: None,
        }
    }

    /// Checks a recorded incarnation, as opening a pidfd does.
    pub fn look(&self, of: &Incarnation) -> Seen {
        if of.boot.0 != self.boot_id() {
            return Seen::Gone;
        }
        match self.processes.get(&of.pid) {
            Some(found) if found.ticks == of.start_ticks => {
                if found.zombie.is_some() {
                    Seen::Zombie
                } else {
                    Seen::Alive
                }
            }
            Some(_) | None => Seen::Gone,
        }
    }

    /// The pids that run and satisfy this.
    pub fn alive(&self, wanted: impl Fn(&Process) -> bool) -> Vec<u32> {
        self.processes
            .iter()
            .filter(|(_, process)| process.zombie.is_none() && wanted(process))
            .map(|(pid, _)| *pid)
            .collect()
    }

    /// Whether any process runs in the cgroup.
    pub fn populated(&self) -> bool {
        self.group.is_some() && !self.alive(|process| process.inside).is_empty()
    }

    /// Ends a process with this wait status. What follows from it follows: a
    /// private pid namespace goes down with its init, orphans get a parent.
    pub fn die(&mut self, pid: u32, status: i32) {
        let reaper = self.reaper;
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.zombie.is_some() {
            return;
        }
        process.zombie = Some(status);
        let (ticks, role, parent) = (process.ticks, process.role.clone(), process.parent);
        if role != Role::Stranger {
            self.truth.insert((pid, ticks), status);
        }
        if role == Role::Init {
            let others = self.alive(|p| matches!(p.role, Role::Exec(_) | Role::Rest));
            if self.private {
                for other in others {
                    self.die(other, KILL);
                }
            }
            let adopted = if reaper {
                Parent::Reaper
            } else {
                Parent::Ancestor
            };
            let private = self.private;
            for process in self.processes.values_mut() {
                if process.parent == Parent::Inside {
                    // Inside a private namespace the kernel reaps them.
                    process.parent = if private { Parent::Ancestor } else { adopted };
                }
            }
        }
        if parent == Parent::Inside {
            self.processes.remove(&pid);
        }
        self.reap_unwatched();
    }

    /// What has no parent that would want to know is reaped at once.
    pub fn reap_unwatched(&mut self) {
        self.processes
            .retain(|_, p| p.zombie.is_none() || p.parent != Parent::Ancestor);
    }

    /// Sends a signal; only SIGKILL is certain to do something. A stranger it
    /// hits is noted.
    pub fn signal(&mut self, pid: u32, number: i32) {
        let frozen = self.group.as_ref().is_some_and(|group| group.frozen);
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.zombie.is_some() || number != KILL {
            return;
        }
        if process.role == Role::Stranger {
            self.hurt.push(pid);
        }
        if process.stuck || process.inside && frozen {
            process.doomed = true;
        } else {
            self.die(pid, KILL);
        }
    }

    /// Kills what lives in the cgroup; true if nothing is left in it.
    pub fn kill_group(&mut self) -> bool {
        for pid in self.alive(|process| process.inside) {
            self.signal(pid, KILL);
        }
        self.thaw();
        !self.populated()
    }

    /// Kills what descends from the reaper, in whatever cgroup it is.
    pub fn kill_below(&mut self) {
        for pid in self.below() {
            self.signal(pid, KILL);
        }
    }

    /// What descends from the reaper and is not the pair's own.
    pub fn below(&self) -> Vec<u32> {
        self.alive(|process| process.parent == Parent::Reaper)
    }

    /// Lets everything in the cgroup run on, or die.
    pub fn thaw(&mut self) {
        if let Some(group) = &mut self.group {
            group.frozen = false;
        }
        for pid in self.alive(|process| process.inside && process.doomed && !process.stuck) {
            self.die(pid, KILL);
        }
    }

    /// Wakes a process from uninterruptible sleep.
    pub fn wake(&mut self, pid: u32) {
        let frozen = self.group.as_ref().is_some_and(|group| group.frozen);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.stuck = false;
            if process.doomed && !(process.inside && frozen) {
                self.die(pid, KILL);
            }
        }
    }

    /// Removes the cgroup if it is empty.
    pub fn remove_group(&mut self) -> bool {
        if self.populated() {
            return false;
        }
        self.group = None;
        true
    }

    /// The reaper is gone: an ancestor takes its children over.
    pub fn reaper_died(&mut self) {
        self.reaper = false;
        for process in self.processes.values_mut() {
            if process.parent == Parent::Reaper {
                process.parent = Parent::Ancestor;
            }
        }
        self.reap_unwatched();
    }

    /// Another boot: nothing runs, and what lived in memory is gone.
    pub fn reboot(&mut self) {
        let all: Vec<u32> = self.processes.keys().copied().collect();
        for pid in all {
            if let Some(gone) = self.processes.remove(&pid)
                && gone.zombie.is_none()
                && gone.role != Role::Stranger
            {
                self.truth.insert((pid, gone.ticks), NOBODY_SAW);
            }
        }
        self.boot += 1;
        self.runcs.clear();
        self.group = None;
        self.mounted = false;
        self.socket = false;
        self.reaper = false;
        // Hooks cannot run for what no longer knows of them.
        self.hooks.interrupted = true;
    }
}

//! The fake runc: each call is a process of its own that goes on stage by
//! stage, may be killed between any two, and leaves behind what runc 1.1
//! leaves there. It outlives whoever started it.

use vigil_model::{ExecId, Incarnation};

use crate::host::{Group, Host, KILL, Parent, Role};

/// runc's state directory of the container.
#[derive(Debug, Clone, Default)]
pub struct RuncState {
    /// Init, once `state.json` is written.
    pub init: Option<Incarnation>,
    /// Whether the user's program was started.
    pub started: bool,
}

/// Which hooks ran.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// createRuntime, so often.
    pub create: u32,
    /// poststop, so often.
    pub poststop: u32,
    /// Containers that were begun, so often. A runc killed inside create may
    /// have run the one kind of hooks or not; the other is run all the same.
    pub begun: u32,
    /// runc's state was lost with the host: then the hooks may never run.
    pub interrupted: bool,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `runc create`.
    Create,
    /// `runc restore`: create and start in one.
    Restore,
    /// `runc start`.
    Start,
    /// `runc exec`.
    Exec(ExecId),
    /// `runc update`, `runc checkpoint`: nothing that is modelled here.
    Other,
    /// `runc delete`.
    Delete {
        /// `--force`.
        force: bool,
    },
}

/// One call.
#[derive(Debug, Clone)]
pub struct Runc {
    /// What was called.
    pub call: Call,
    stage: u8,
    made_group: bool,
    /// Its exit: `Some(true)` is 0.
    pub outcome: Option<bool>,
}

impl Host {
    /// Starts a runc and returns its number.
    pub fn start_runc(&mut self, call: Call) -> u32 {
        let number = u32::try_from(self.tick()).unwrap_or(u32::MAX);
        let runc = Runc {
            call,
            stage: 0,
            made_group: false,
            outcome: None,
        };
        self.runcs.insert(number, runc);
        number
    }

    /// Lets a runc do its next thing, or fail at it. `false` if it has ended.
    pub fn advance_runc(&mut self, number: u32, well: bool) -> bool {
        let Some(mut runc) = self.runcs.remove(&number) else {
            return false;
        };
        let ended = runc.outcome.is_some();
        if !ended {
            let outcome = match runc.call.clone() {
                Call::Create => self.create(&mut runc, number, well, false),
                Call::Restore => self.create(&mut runc, number, well, true),
                Call::Start => Some(well && self.start()),
                Call::Exec(exec) => self.exec(&mut runc, number, well, &exec),
                Call::Other => Some(well && self.init_runs()),
                Call::Delete { force } => self.delete(&mut runc, well, force),
            };
            runc.stage += 1;
            runc.outcome = outcome;
        }
        let over = runc.outcome.is_some();
        self.runcs.insert(number, runc);
        if over {
            self.orphans_of(number);
        }
        !ended
    }

    /// SIGKILL to a runc.
    pub fn kill_runc(&mut self, number: u32) {
        if let Some(runc) = self.runcs.get_mut(&number)
            && runc.outcome.is_none()
        {
            runc.outcome = Some(false);
            self.orphans_of(number);
        }
    }

    fn orphans_of(&mut self, number: u32) {
        let adopted = if self.reaper {
            Parent::Reaper
        } else {
            Parent::Ancestor
        };
        for process in self.processes.values_mut() {
            if process.parent == Parent::Runc(number) {
                process.parent = adopted;
            }
        }
        self.reap_unwatched();
    }

    /// Init, if it runs.
    pub fn init_alive(&self) -> Option<u32> {
        self.alive(|process| process.role == Role::Init)
            .first()
            .copied()
    }

    fn init_runs(&self) -> bool {
        self.init_alive().is_some() && self.runc_state.as_ref().is_some_and(|state| state.started)
    }

    fn create(&mut self, runc: &mut Runc, number: u32, well: bool, restore: bool) -> Option<bool> {
        if !well || runc.stage > 1 && self.init_alive().is_none() {
            return Some(self.undo(runc));
        }
        match runc.stage {
            0 => {
                if self.runc_state.is_some() {
                    return Some(false);
                }
                self.runc_state = Some(RuncState::default());
                self.hooks.begun += 1;
            }
            1 => {
                if self.group.is_none() {
                    let inode = self.tick();
                    runc.made_group = true;
                    self.group = Some(Group {
                        inode,
                        frozen: false,
                        foreign: false,
                        before: false,
                    });
                }
                let Some(init) = self.spawn(Role::Init, true, Parent::Runc(number)) else {
                    return Some(self.undo(runc));
                };
                if let Some(init) = self.processes.get_mut(&init) {
                    init.marked = !restore;
                }
                if restore && self.group.as_ref().is_some_and(|group| group.foreign) {
                    // A known limit: in a cgroup that is not the container's,
                    // a restored init that nobody has written down is not found.
                    runc.stage += 2;
                    self.hooks.create += 1;
                    self.write_state(restore);
                }
            }
            2 => self.hooks.create += 1,
            3 => self.write_state(restore),
            _ => {
                self.pid_file = self.init_alive();
                return Some(true);
            }
        }
        None
    }

    fn write_state(&mut self, started: bool) {
        let init = self.init_alive().and_then(|pid| self.incarnation(pid));
        self.runc_state = Some(RuncState { init, started });
    }

    /// A create that fails takes back what it did; its poststop hooks run too.
    fn undo(&mut self, runc: &Runc) -> bool {
        if runc.stage == 0 {
            return false;
        }
        if let Some(init) = self.init_alive() {
            self.signal(init, KILL);
        }
        if self.init_alive().is_some() {
            // Killed and not gone: runc gives up, and leaves everything.
            return false;
        }
        if runc.made_group {
            self.remove_group();
        }
        if runc.stage > 2 {
            self.hooks.poststop += 1;
        }
        self.runc_state = None;
        false
    }

    fn start(&mut self) -> bool {
        let init = self.init_alive();
        match &mut self.runc_state {
            Some(state) if init.is_some() && state.init.is_some() && !state.started => {
                state.started = true;
                // From now on it is the user's program.
                let init = init.and_then(|pid| self.processes.get_mut(&pid));
                if let Some(init) = init {
                    init.marked = false;
                }
                true
            }
            Some(_) | None => false,
        }
    }

    fn exec(&mut self, runc: &mut Runc, number: u32, well: bool, exec: &ExecId) -> Option<bool> {
        let frozen = self.group.as_ref().is_some_and(|group| group.frozen);
        if self.init_alive().is_none() || frozen && runc.stage == 0 || !well {
            let ours = |p: &crate::host::Process| p.parent == Parent::Runc(number);
            for pid in self.alive(ours) {
                self.signal(pid, KILL);
            }
            return Some(false);
        }
        if runc.stage == 0 {
            let role = Role::Exec(exec.clone());
            let spawned = self.spawn(role, true, Parent::Runc(number));
            return spawned.is_none().then_some(false);
        }
        let mut processes = self.processes.iter();
        let mine = processes.find(|(_, p)| p.parent == Parent::Runc(number));
        let pid = mine.map(|(pid, _)| *pid)?;
        self.exec_pid_files.insert(exec.clone(), pid);
        Some(true)
    }

    fn delete(&mut self, runc: &mut Runc, well: bool, force: bool) -> Option<bool> {
        let Some(state) = self.runc_state.clone() else {
            return Some(false);
        };
        if !well {
            return Some(false);
        }
        match runc.stage {
            0 => {
                if state.init.is_none() {
                    // A create that never got to its state: force removes the
                    // directory and knows nothing of hooks.
                    if force {
                        self.runc_state = None;
                    }
                    return Some(force);
                }
                if let Some(init) = self.init_alive() {
                    if state.started && !force {
                        return Some(false);
                    }
                    self.signal(init, KILL);
                }
                if !self.private {
                    self.kill_group();
                }
                if self.init_alive().is_some() {
                    self.thaw();
                }
                if self.init_alive().is_some() {
                    return Some(false);
                }
            }
            1 => {
                let foreign = self.group.as_ref().is_some_and(|group| group.foreign);
                if !foreign && !self.remove_group() {
                    return Some(false);
                }
            }
            2 => self.runc_state = None,
            _ => unreachable!("the last stage is left from within the third"),
        }
        if runc.stage == 2 {
            // From here to the end of the hooks there is nothing left that
            // could be cut short and noticed.
            self.hooks.poststop += 1;
            return Some(true);
        }
        None
    }
}

//! A life through a real containerd whose shims are killed: `ctr` must notice nothing,
//! and containerd must tell the one true exit.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;

use anyhow::{Context, Result};
use vigil_lab::containerd::IMAGE;
use vigil_lab::task::V2;
use vigil_lab::{Task, by, until};

use crate::blows::Blows;
use crate::daemon::{Daemon, RUNTIME};
use crate::judge::{Harm, UNKNOWN};
use crate::life::Life;
use crate::plan::Step;
use crate::strike::{self, Pair};
use crate::tally::Outcome;

/// Time a step takes with `ctr`, about.
const STEP_US: u64 = 40_000;

impl Daemon {
    /// Lives it. An error is the soak's own trouble; what is wrong with the runtime is told to the life.
    pub fn live_on(&self, life: &Life) -> Result<Outcome> {
        let ends = life.plan.ends();
        life.note(|a| {
            (a.create, a.start, a.pause) = (true, true, true);
            (a.may_end, a.delete) = (ends, true);
        });
        let stop = AtomicBool::new(false);
        let (pair, blows) = (OnceLock::new(), OnceLock::new());
        std::thread::scope(|scope| {
            let client = scope.spawn(|| self.ask_on(life));
            let (stop, blows) = (&stop, &blows);
            let found = self
                .find(life)
                .map(|(found, task)| (pair.get_or_init(|| found), task));
            match found {
                Ok((pair, task)) => {
                    let blows = blows.get_or_init(|| Blows::new(life, pair, &task));
                    scope.spawn(move || life.ask_state(&task, stop, || false));
                    strike_all(life, blows, scope);
                }
                Err(error) => life.fault(format!("{error:#}")),
            }
            let made = client.join().ok().context("the client panicked")?;
            let ended = if made? {
                self.end(life, stop)
            } else {
                self.forget(life, stop)
            };
            stop.store(true, Ordering::SeqCst);
            ended
        })?;
        if pair.get().is_some()
            && let Err(error) = strike::nobody_left(&life.id)
        {
            life.wrong(Harm::Residue, format!("{error:#}"));
        }
        let known = life.known();
        let exits = self.exits(&life.id);
        life.story.add(format!("{known:?}; published: {exits:?}"));
        if exits.len() as u64 > 1 + life.kills.load(Ordering::SeqCst) {
            life.wrong(Harm::Doubled, format!("exits published: {exits:?}"));
        }
        for status in &exits {
            life.tell("TaskExit", *status);
        }
        life.judge_told(&known);
        self.expect_nothing(life);
        if !life.faults().is_empty() {
            life.story.add(self.log_of(&life.id));
        }
        let took = blows.get().map_or_else(Vec::new, Blows::took);
        Ok(Outcome {
            kills: life.kills.load(Ordering::SeqCst),
            took,
            made: life.asked().created,
            said: exits.last().copied(),
            unseen: exits.last() == Some(&UNKNOWN),
            truth: known.truth,
            daemon: Some(self.name),
            states: life.states.load(Ordering::Relaxed),
            ..Outcome::default()
        })
    }

    /// The pair, as soon as it can be asked.
    fn find(&self, life: &Life) -> Result<(Pair, Task)> {
        let socket = self.containerd.shim_socket(&life.id);
        let task = until("the socket to serve", by(30.0), || {
            Task::connect(&socket, V2).ok()
        })?;
        let pair = Pair::of(&task, &life.id)?;
        Ok((pair, task))
    }

    /// What containerd, and the shims through it, have logged of a container.
    fn log_of(&self, id: &str) -> String {
        let log = self.containerd.scratch.path("containerd.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let lines = log.lines().filter(|line| line.contains(id));
        lines.fold(String::from("log:"), |all, line| all + "\n    " + line)
    }

    /// `ctr` with these arguments, which must succeed, or give this status.
    fn must(&self, life: &Life, args: &[&str], status: i32) -> Result<()> {
        let ran = self.containerd.try_ctr(args)?;
        let words = String::from_utf8_lossy(&ran.stderr).into_owned();
        life.story.add(format!("{args:?}: {} {words}", ran.status));
        // A container that ends by itself may have ended.
        let fine = ran.status.code() == Some(status) || life.asked().may_end;
        if !fine {
            let what = format!("{args:?} gave {}, not {status}: {words}", ran.status);
            life.wrong(Harm::Other, what);
        }
        Ok(())
    }

    /// `false`: there is no container.
    fn ask_on(&self, life: &Life) -> Result<bool> {
        let (id, plan) = (life.id.as_str(), &life.plan);
        let script = plan.script.shell(plan.code);
        let args = [
            "run",
            "-d",
            "--runtime",
            RUNTIME,
            IMAGE,
            id,
            "sh",
            "-c",
            &script,
        ];
        let ran = self.containerd.try_ctr(&args)?;
        life.story.add(format!("ctr run: {}", ran.status));
        if !ran.status.success() {
            let words = String::from_utf8_lossy(&ran.stderr).into_owned();
            let _ = self.containerd.try_ctr(&["tasks", "rm", "-f", id])?;
            life.wrong(Harm::Lost, format!("ctr run: {}: {words}", ran.status));
            return Ok(false);
        }
        life.note(|a| (a.created, a.started) = (true, true));
        let mut execs = 0;
        for step in plan.steps.iter().skip(3) {
            match step {
                Step::Exec { code, .. } => {
                    execs += 1;
                    let (exec, script) = (format!("x{execs}"), format!("exit {code}"));
                    let args = ["tasks", "exec", "--exec-id", &exec, id, "sh", "-c", &script];
                    self.must(life, &args, i32::try_from(*code)?)?;
                }
                Step::Pause => self.must(life, &["tasks", "pause", id], 0)?,
                Step::Resume => self.must(life, &["tasks", "resume", id], 0)?,
                Step::Pids => self.must(life, &["tasks", "ps", id], 0)?,
                Step::Stats => self.must(life, &["tasks", "metrics", id], 0)?,
                Step::Idle(ms) => strike::pause(u64::from(*ms) * 1000),
                _ => {}
            }
        }
        Ok(true)
    }

    /// A container that was never made is known to nobody.
    fn forget(&self, life: &Life, stop: &AtomicBool) -> Result<()> {
        stop.store(true, Ordering::SeqCst);
        life.note(|a| (a.may_end, a.shutdown) = (true, true));
        // Not there when `ctr run` has taken it back.
        self.containerd.try_ctr(&["containers", "rm", &life.id])?;
        let status = self.containerd.task_status(&life.id)?;
        if status.is_some() {
            life.wrong(Harm::Residue, format!("never made, and {status:?}"));
        }
        Ok(())
    }

    /// Ends it, if it does not by itself, and takes it away.
    fn end(&self, life: &Life, stop: &AtomicBool) -> Result<()> {
        let id = life.id.as_str();
        // A signal may not be heard: the trap is not set yet, or it is paused.
        let signal = if life.plan.code.is_multiple_of(2) {
            "SIGTERM"
        } else {
            "SIGKILL"
        };
        for (signal, wait) in [("", 1.0), (signal, 2.0), ("SIGKILL", 30.0)] {
            if !signal.is_empty() {
                life.kill_is_sent();
                let ran = self
                    .containerd
                    .try_ctr(&["tasks", "kill", "-s", signal, id])?;
                life.story.add(format!("{signal}: {}", ran.status));
            } else if !life.plan.ends() {
                continue;
            }
            if until("", by(wait), || self.exits(id).first().copied()).is_ok() {
                break;
            }
        }
        if self.exits(id).is_empty() {
            life.wrong(Harm::Exit, "its exit was never published");
        }
        let stopped = until("", by(10.0), || {
            let status = self.containerd.task_status(id).ok().flatten();
            (status.as_deref() == Some("STOPPED")).then_some(())
        });
        if stopped.is_err() {
            let status = self.containerd.task_status(id);
            life.wrong(Harm::Lost, format!("not STOPPED: {status:?}"));
        }
        stop.store(true, Ordering::SeqCst);
        life.note(|a| a.shutdown = true);
        let removed = self.containerd.try_ctr(&["tasks", "rm", id])?;
        let words = String::from_utf8_lossy(&removed.stderr).into_owned();
        life.story
            .add(format!("tasks rm: {} {words}", removed.status));
        if !removed.status.success() {
            life.fault(format!("ctr tasks rm: {}: {words}", removed.status));
        }
        let removed = self.containerd.try_ctr(&["containers", "rm", id])?;
        if !removed.status.success() {
            life.wrong(
                Harm::Residue,
                format!("ctr containers rm: {}", removed.status),
            );
        }
        let bundle = self.containerd.bundle(id);
        if until("", by(8.0), || (!bundle.exists()).then_some(())).is_err() {
            life.wrong(Harm::Residue, "containerd has kept the bundle");
        }
        Ok(())
    }
}

fn strike_all<'scope>(life: &Life, blows: &'scope Blows<'scope>, scope: &'scope Scope<'scope, '_>) {
    let plan = &life.plan;
    // The first two steps are over when the socket serves.
    let first = plan.blow.step.saturating_sub(1);
    strike::pause(first as u64 * STEP_US + plan.blow.after_us);
    let mut hit = blows.strike(scope);
    let mut at = plan.blow.step;
    for again in &plan.more {
        if !hit {
            return;
        }
        strike::pause((again.step - at) as u64 * STEP_US + again.after_us);
        at = again.step;
        hit = blows.strike(scope);
    }
}

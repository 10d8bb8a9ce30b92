//! A life through a real containerd, which runs `start`, and `delete` when it loses the
//! connection, in its own time and with its own expectations.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio as Pipe};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vigil_lab::containerd::IMAGE;
use vigil_lab::task::V2;
use vigil_lab::{Containerd, Residue, ShimBinary, Task, Version, by, until};

use crate::judge::{Harm, UNKNOWN};
use crate::life::Life;
use crate::plan::Step;
use crate::strike::{self, End, Pair};
use crate::tally::Outcome;

/// Ours.
pub const RUNTIME: &str = "io.containerd.vigil.v2";

/// A containerd with our runtime, and what it publishes.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) name: &'static str,
    listener: Child,
    events: PathBuf,
    pub(crate) containerd: Containerd,
}

impl Daemon {
    /// Starts one of `version`.
    pub fn start(version: Version, shim: &ShimBinary) -> Result<Self> {
        let containerd = Containerd::start(version, Some(shim))?;
        let events = containerd.scratch.path("events");
        let mut listener = containerd.ctr_command(&["events"]);
        listener
            .stdout(fs::File::create(&events)?)
            .stderr(Pipe::null())
            .stdin(Pipe::null());
        let daemon = Self {
            name: version.number(),
            listener: listener.spawn().context("ctr events")?,
            events,
            containerd,
        };
        // An event of our own making shows that the listener listens.
        until("ctr events to listen", by(20.0), || {
            let namespace = daemon.containerd.namespace();
            let _ = daemon
                .containerd
                .ctr(&["namespaces", "label", namespace, "x=y"]);
            let text = fs::read_to_string(&daemon.events).unwrap_or_default();
            text.contains("/namespaces/update").then_some(())
        })?;
        Ok(daemon)
    }

    /// Exit statuses published for init of `id`.
    pub(crate) fn exits(&self, id: &str) -> Vec<u32> {
        let text = fs::read_to_string(&self.events).unwrap_or_default();
        let exits = text.lines().filter(|l| l.contains(" /tasks/exit "));
        let facts =
            exits.filter_map(|line| serde_json::from_str::<Value>(&line[line.find('{')?..]).ok());
        facts
            .filter(|fact| fact["container_id"] == id && fact["id"] == id)
            // A zero is left out.
            .filter_map(|fact| u32::try_from(fact["exit_status"].as_u64().unwrap_or(0)).ok())
            .collect()
    }

    fn run<'a>(&self, flags: &[&'a str], id: &'a str, script: &'a str) -> Result<bool> {
        let mut args = vec!["run", "--runtime", RUNTIME];
        args.extend(flags);
        args.extend([IMAGE, id, "sh", "-c", script]);
        Ok(self.containerd.try_ctr(&args)?.status.success())
    }

    /// Lives it. An error is the soak's own trouble; what is wrong with the runtime is told to the life.
    pub fn live(&self, life: &Life) -> Result<Outcome> {
        // A client beside containerd does not know what containerd has asked for.
        life.note(|a| {
            (a.create, a.start, a.pause) = (true, true, true);
            (a.may_end, a.delete, a.shutdown) = (true, true, true);
        });
        let stop = AtomicBool::new(false);
        let ran = OnceLock::new();
        let mut outcome = std::thread::scope(|scope| {
            let client = scope.spawn(|| self.ask(life, &ran));
            let struck = self.strike(life, &ran, |task| {
                let stop = &stop;
                scope.spawn(move || life.ask_state(&task, stop, || false));
            });
            stop.store(true, Ordering::SeqCst);
            client.join().ok().context("the client panicked")??;
            anyhow::Ok(struck)
        })?;
        outcome.made = ran.get() == Some(&true);
        self.judge(life, &mut outcome)?;
        outcome.daemon = Some(self.name);
        outcome.states = life.states.load(Ordering::Relaxed);
        if life.plan.again && life.faults().is_empty() {
            outcome.again = true;
            let args = ["run", "--rm", "--runtime", RUNTIME, IMAGE, &life.id];
            let args = [&args[..], &["sh", "-c", "exit 3"]].concat();
            let again = self.containerd.try_ctr(&args)?;
            if again.status.code() != Some(3) {
                let words = String::from_utf8_lossy(&again.stderr).into_owned();
                life.fault(format!("the same id, again: {}: {words}", again.status));
            }
            self.expect_nothing(life);
        }
        Ok(outcome)
    }

    /// What a client does with `ctr`, until the blow.
    fn ask(&self, life: &Life, ran: &OnceLock<bool>) -> Result<()> {
        let (id, plan) = (life.id.as_str(), &life.plan);
        let script = plan.script.shell(plan.code);
        let detached: &[&str] = if plan.code % 3 == 0 { &[] } else { &["-d"] };
        life.story.add(format!("ctr run {detached:?}"));
        let success = self.run(detached, id, &script)?;
        life.story.add(format!("ctr run: {success}"));
        // Attached, it gives the container's own status.
        let _ = ran.set(success && !detached.is_empty());
        let mut execs = 0;
        for step in plan.steps.iter().skip(3) {
            if life.is_struck() {
                break;
            }
            life.story.add(format!("{step:?}"));
            let ended = match step {
                Step::Exec { code, .. } => {
                    execs += 1;
                    let (exec, script) = (format!("x{execs}"), format!("exit {code}"));
                    let args = ["tasks", "exec", "--exec-id", &exec, id, "sh", "-c", &script];
                    self.containerd.try_ctr(&args)?
                }
                Step::Pause => self.containerd.try_ctr(&["tasks", "pause", id])?,
                Step::Resume => self.containerd.try_ctr(&["tasks", "resume", id])?,
                Step::Pids => self.containerd.try_ctr(&["tasks", "ps", id])?,
                Step::Stats => self.containerd.try_ctr(&["tasks", "metrics", id])?,
                Step::Kill(signal @ (9 | 15)) => {
                    life.kill_is_sent();
                    let name = if *signal == 9 { "SIGKILL" } else { "SIGTERM" };
                    self.containerd
                        .try_ctr(&["tasks", "kill", "-s", name, id])?
                }
                Step::Delete => self.containerd.try_ctr(&["tasks", "rm", id])?,
                _ => continue,
            };
            life.story.add(format!("{step:?}: {}", ended.status));
        }
        Ok(())
    }

    fn strike(&self, life: &Life, ran: &OnceLock<bool>, ask: impl FnOnce(Task)) -> Outcome {
        let (id, blow) = (life.id.as_str(), &life.plan.blow);
        let socket = self.containerd.shim_socket(id);
        let mut outcome = Outcome::default();
        // One look decides: a process that is just being executed has no arguments to be
        // found by, and a second look may miss what the first has seen.
        let came = until("the pair of a container to be made", by(30.0), || {
            // Or to have been and gone while we looked elsewhere.
            let seen = !strike::processes(id).is_empty();
            (seen || ran.get().is_some()).then_some(seen)
        });
        match came {
            Ok(true) => {}
            Ok(false) => {
                life.story.add("nobody to strike");
                return outcome;
            }
            Err(_) => {
                life.fault("containerd has started no shim in 30 s");
                return outcome;
            }
        }
        let mut pair = None;
        // The first blows fall while `start` works; the others find a pair that serves.
        if blow.step > 0 {
            let task = until("the socket to serve", by(5.0), || {
                Task::connect(&socket, V2).ok()
            });
            if let Ok(task) = task {
                pair = Pair::of(&task, id).ok().map(|pair| (pair, task.clone()));
                ask(task);
            }
            strike::pause(blow.step as u64 * 25_000);
        }
        strike::pause(blow.after_us);
        life.blow_begins();
        if blow.runc {
            strike::runc_of(id, &life.story);
        }
        match pair {
            Some((pair, task)) => {
                outcome.kills = u64::from(pair.lives(blow.victims));
                pair.strike(blow, &life.story);
                match strike::which_end(&pair, &task, id) {
                    Ok((end, took)) => {
                        life.story.add(format!("{end:?} after {took:?}"));
                        outcome.healed = end == End::Healed;
                        outcome.decided = Some(took);
                    }
                    Err(error) => life.wrong(Harm::Lost, format!("{error:#}")),
                }
                // Those who have taken over end with their container.
                strike::all_of(id, true, &life.story);
                if let Err(error) = strike::nobody_left(id) {
                    life.fault(format!("{error:#}"));
                }
            }
            None => outcome.kills = u64::from(strike::all_of(id, true, &life.story) > 0),
        }
        life.delete_begins();
        outcome
    }

    fn judge(&self, life: &Life, outcome: &mut Outcome) -> Result<()> {
        let id = life.id.as_str();
        let mut list = String::new();
        let forgotten = until("containerd to forget the task", by(15.0), || {
            list = self.containerd.ctr(&["tasks", "ls"]).ok()?;
            (!list.lines().any(|l| l.starts_with(id))).then_some(())
        });
        if forgotten.is_err() {
            // Stopped, and not deleted by the client because of the blow: it may be there, not running.
            life.fault(format!("the task is still listed: {list}"));
        }
        if outcome.made {
            let told = until("an exit to be published", by(10.0), || {
                self.exits(id).first().copied()
            });
            if told.is_err() {
                life.fault("its exit was never published");
            }
        }
        let known = life.known();
        outcome.truth = known.truth;
        let exits = self.exits(id);
        life.story.add(format!("{known:?}; published: {exits:?}"));
        for status in &exits {
            life.tell("delete", *status);
        }
        outcome.said = exits.last().copied();
        outcome.unseen = outcome.said == Some(UNKNOWN);
        life.judge_told(&known);
        // Not there when its creation failed.
        let _ = self.containerd.try_ctr(&["containers", "rm", id])?;
        self.expect_nothing(life);
        // 1.6 forgets a task before its `delete` has run.
        let bundle = self.containerd.bundle(id);
        if until("", by(8.0), || (!bundle.exists()).then_some(())).is_err() {
            life.fault(format!("containerd has kept the bundle of {id}"));
        }
        Ok(())
    }

    pub(crate) fn expect_nothing(&self, life: &Life) {
        if let Err(error) = Residue::expect_none(&life.id, by(6.0), |_| false) {
            let log = self.containerd.log_tail();
            life.wrong(Harm::Residue, format!("{error:#}\n{log}"));
            strike::all_of(&life.id, false, &life.story);
        }
        let socket = self.containerd.shim_socket(&life.id);
        if until("", by(5.0), || (!socket.exists()).then_some(())).is_err() {
            // Killed before containerd has connected: it then runs no `delete`, and nobody is
            // left who could. The next `start` of the id removes it.
            if self.has_cleaned_up(&life.id) {
                let what = format!("the socket {} is left", socket.display());
                life.wrong(Harm::Residue, what);
            }
            let _ = fs::remove_file(socket);
        }
    }

    /// Whether containerd says that it has lost the shim's connection and run `delete`.
    fn has_cleaned_up(&self, id: &str) -> bool {
        let log = self.containerd.scratch.path("containerd.log");
        let log = fs::read_to_string(log).unwrap_or_default();
        log.lines()
            .any(|line| line.contains(&format!("id={id}")) && line.contains("cleaning up"))
    }

    /// Fails if anything of it is left.
    pub fn finish(mut self) -> Result<()> {
        let _ = self.listener.kill();
        let _ = self.listener.wait();
        // What it asked for last may still be at work.
        std::thread::sleep(Duration::from_millis(100));
        self.containerd.expect_clean()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.listener.kill();
        let _ = self.listener.wait();
    }
}

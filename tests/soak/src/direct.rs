//! A life driven as containerd drives it, by the laboratory's own client: `start`, ttrpc,
//! and `delete` when the connection drops. Much faster than through a daemon, and its
//! moments can be chosen to the microsecond.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{DeleteResponse, ExecProcessRequest};
use vigil_lab::bundle::{Stdio, busybox_rootfs};
use vigil_lab::containerd::socket_of;
use vigil_lab::kit::exec_spec;
use vigil_lab::process::mkfifo;
use vigil_lab::shim::Caller;
use vigil_lab::task::V2;
use vigil_lab::{
    Bundle, CallError, Code, EventSink, Fact, FifoReader, Residue, Scratch, Shim, ShimBinary, Spec,
    Task, by, until,
};

use crate::judge::UNKNOWN;
use crate::life::Life;
use crate::plan::{Step, Victims};
use crate::strike::{self, Pair};
use crate::tally::Outcome;

/// One worker's own place.
#[derive(Debug)]
pub struct Place {
    caller: Caller,
    scratch: Scratch,
}

/// What a life has while it is lived.
struct Stage<'a> {
    life: &'a Life,
    caller: Caller,
    bundle: Bundle,
    sink: EventSink,
    outputs: Vec<FifoReader>,
    shim: OnceLock<Shim>,
    pair: OnceLock<Pair>,
}

/// How long after `delete` the kernel may take to show what it has done.
const SETTLE: f64 = 2.0;

impl Place {
    /// Makes one for `binary`.
    pub fn new(binary: &ShimBinary) -> Result<Self> {
        let scratch = Scratch::new()?;
        busybox_rootfs(&scratch.path("base"))?;
        let caller = Caller {
            binary: binary.path.clone(),
            namespace: scratch.mark().to_owned(),
            grpc: scratch.path("g.sock"),
            ttrpc: scratch.path("none"),
            dialect: binary.dialect,
            options: Vec::new(),
            env: Vec::new(),
        };
        Ok(Self { caller, scratch })
    }

    fn bundle(&self, id: &str, spec: &Spec, stdio: Stdio) -> Result<Bundle> {
        let (state, base) = (self.scratch.path("state"), self.scratch.path("base"));
        Bundle::make(&state, self.scratch.mark(), id, spec, stdio, &base)
    }

    /// Removes the client's own files of a life.
    fn tidy(&self, id: &str) {
        let state = self.scratch.path("state");
        let _ = fs::remove_dir_all(state.join("work").join(self.scratch.mark()).join(id));
        for entry in fs::read_dir(&state).into_iter().flatten().flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(&format!("{id}-"))
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Lives it. An error is the soak's own trouble; what is wrong with the runtime is told to the life.
    pub fn live(&self, life: &Life, number: u64) -> Result<Outcome> {
        let sink = EventSink::listen(&self.scratch.path(&format!("e{number}")))?;
        let caller = Caller {
            ttrpc: sink.address().to_owned(),
            ..self.caller.clone()
        };
        let bundle = self.bundle(&life.id, &life.plan.spec(), life.plan.stdio())?;
        let outputs = bundle.stdio[1..].iter().filter(|path| !path.is_empty());
        let outputs = outputs
            .map(|path| FifoReader::open(Path::new(path)))
            .collect::<Result<Vec<_>>>()?;
        let stage = Stage {
            life,
            caller,
            bundle,
            sink,
            outputs,
            shim: OnceLock::new(),
            pair: OnceLock::new(),
        };
        let mut outcome = stage.live();
        // Also after trouble: the next life must not find this one's things.
        let left = self.expect_nothing(life);
        life.story.add(format!("log: {}", stage.bundle.log_text()));
        let removed = stage.bundle.remove();
        drop(stage);
        self.tidy(&life.id);
        left?;
        removed?;
        if life.plan.again && life.faults().is_empty() {
            outcome.again = true;
            if let Err(error) = self.again(&life.id, number) {
                life.fault(format!("the same id, again: {error:#}"));
            }
            self.tidy(&life.id);
        }
        Ok(outcome)
    }

    fn expect_nothing(&self, life: &Life) -> Result<()> {
        if let Err(error) = Residue::expect_none(&life.id, by(SETTLE), |_| false) {
            life.fault(format!("{error:#}"));
            // Not to be found by the next life's judge too.
            strike::all_of(&life.id, false, &life.story);
        }
        let socket = socket_of(&self.caller.grpc, &self.caller.namespace, &life.id);
        if socket.exists() {
            life.fault(format!("the socket {} is left", socket.display()));
            fs::remove_file(socket)?;
        }
        Ok(())
    }

    /// A short life of the same id, whole.
    fn again(&self, id: &str, number: u64) -> Result<()> {
        let sink = EventSink::listen(&self.scratch.path(&format!("f{number}")))?;
        let caller = Caller {
            ttrpc: sink.address().to_owned(),
            ..self.caller.clone()
        };
        let bundle = self.bundle(id, &Spec::sh("exit 3"), Stdio::Empty)?;
        let shim = Shim::start(&caller, &bundle)?;
        let lived = (|| -> Result<()> {
            shim.task
                .create(&bundle.create_request())
                .context("Create")?;
            shim.task.start(id, "").context("Start")?;
            let status = shim.task.wait(id, "").context("Wait")?.exit_status;
            ensure!(status == 3, "Wait says {status}");
            let status = shim.task.delete(id, "").context("Delete")?.exit_status;
            ensure!(status == 3, "Delete says {status}");
            sink.expect("delete", by(5.0))?;
            shim.task.shutdown(id).context("Shutdown")?;
            Ok(())
        })();
        lived.with_context(|| bundle.log_text())?;
        let said = shim.delete()?.ok()?;
        ensure!(said.exit_status == 3, "`delete` says {}", said.exit_status);
        Residue::expect_none(id, by(SETTLE), |_| false)?;
        bundle.remove()
    }

    /// Fails if anything of it is left.
    pub fn finish(self) -> Result<()> {
        let mark = self.scratch.mark();
        let runc = format!("file /run/containerd/runc/{mark}");
        // The namespace's own cgroup and directory stay in containerd too; the scratch removes them.
        Residue::expect_none(mark, by(12.0), |line| {
            line == runc || line.starts_with("cgroup ") && line.ends_with(mark)
        })
    }
}

impl Stage<'_> {
    fn live(&self) -> Outcome {
        let (life, plan) = (self.life, &self.life.plan);
        let (reached, reports) = mpsc::channel();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            let mut driver = Some(scope.spawn(move || {
                let driven = self.drive(&reached, |task| {
                    scope.spawn(move || {
                        life.ask_state(&task, stop, || self.exit_published());
                    });
                });
                if let Err(error) = driven {
                    life.fault(format!("{error:#}"));
                }
            }));
            let mut came = None;
            while let Ok(step) = reports.recv_timeout(Duration::from_secs(90)) {
                if step == plan.blow.step {
                    came = Some(step);
                    break;
                }
            }
            life.story.add(format!("the blow's step: {came:?}"));
            strike::pause(plan.blow.after_us);
            let alone = plan.blow.victims == Victims::Shim && self.pair.get().is_some();
            let mut outcome = if alone {
                let mut outcome = self.strike_the_shim(came);
                // It goes on as if nothing had been.
                let _ = driver.take().map(ScopedJoinHandle::join);
                self.end(stop);
                self.delete(&mut outcome);
                outcome
            } else {
                self.strike_and_delete(came)
            };
            stop.store(true, Ordering::SeqCst);
            let _ = driver.take().map(ScopedJoinHandle::join);
            self.judge(&mut outcome);
            outcome
        })
    }

    fn strike_and_delete(&self, came: Option<usize>) -> Outcome {
        let (life, blow) = (self.life, &self.life.plan.blow);
        let mut outcome = Outcome {
            step: came.map(|at| self.life.plan.steps[at]),
            ..Outcome::default()
        };
        let Some(pair) = self.pair.get() else {
            // `start` has not answered yet.
            life.blow_begins();
            // Not before there is anything to hit: containerd runs no `delete` beside a `start`.
            let hit = until("", by(5.0), || {
                let hit = strike::all_of(&life.id, false, &life.story);
                (hit > 0).then_some(())
            });
            outcome.struck = hit.is_ok();
            self.delete(&mut outcome);
            // What `start` had not forked when the others were killed.
            strike::all_of(&life.id, false, &life.story);
            return outcome;
        };
        outcome.struck = pair.lives(blow.victims);
        life.blow_begins();
        if blow.runc {
            strike::runc_of(&life.id, &life.story);
        }
        pair.strike(blow, &life.story);
        if let Err(error) = pair.gone() {
            life.fault(format!("{error:#}"));
            strike::all_of(&life.id, false, &life.story);
        }
        if let Some(shim) = self.shim.get() {
            let closed = until("the connection to drop", by(5.0), || {
                shim.task.client().closed().then_some(())
            });
            if let Err(error) = closed {
                life.fault(format!("{error:#}"));
            }
        }
        std::thread::sleep(Duration::from_millis(blow.delete_after_ms));
        self.delete(&mut outcome);
        outcome
    }

    fn strike_the_shim(&self, came: Option<usize>) -> Outcome {
        let (life, blow) = (self.life, &self.life.plan.blow);
        let mut outcome = Outcome {
            step: came.map(|at| life.plan.steps[at]),
            ..Outcome::default()
        };
        if let Some(pair) = self.pair.get() {
            outcome.struck = pair.lives(blow.victims);
            pair.strike(blow, &life.story);
        }
        outcome
    }

    /// What is left to do after the steps: the container killed, if it lives, waited for,
    /// deleted; the pair told to go.
    fn end(&self, stop: &AtomicBool) {
        let (life, id) = (self.life, self.life.id.as_str());
        let (Some(shim), Some(pair)) = (self.shim.get(), self.pair.get()) else {
            return;
        };
        let asked = life.asked();
        let ended = (|| -> Result<(), CallError> {
            if asked.created && !asked.deleted {
                life.kill_is_sent();
                match shim.task.kill(id, "", 9, false) {
                    Err(error) if !error.is(Code::NotFound) => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                let waited = shim.task.wait(id, "")?;
                life.tell("Wait, in the end,", waited.exit_status);
                life.note(|a| a.delete = true);
                let deleted = shim.task.delete(id, "")?;
                life.note(|a| a.deleted = true);
                life.tell("Delete, in the end,", deleted.exit_status);
            }
            Ok(())
        })();
        if let Err(error) = ended {
            life.fault(format!("in the end: {error}"));
        }
        stop.store(true, Ordering::SeqCst);
        life.note(|a| a.shutdown = true);
        if !asked.shutdown
            && let Err(error) = shim.task.shutdown(id)
        {
            life.fault(format!("Shutdown, in the end: {error}"));
        }
        if let Err(error) = pair.gone() {
            life.fault(format!("{error:#}"));
            strike::all_of(id, false, &life.story);
        }
    }

    /// `delete` as containerd runs it, and once more.
    fn delete(&self, outcome: &mut Outcome) {
        let life = self.life;
        life.delete_begins();
        let mut said = Vec::<DeleteResponse>::new();
        for time in ["first", "second"] {
            let began = Instant::now();
            let ran = self.caller.delete(&life.id, &self.bundle.dir);
            let took = began.elapsed();
            let answer = ran.and_then(|deleted| {
                let words = String::from_utf8_lossy(&deleted.ran.stderr).into_owned();
                life.story.add(format!("the {time} delete: {words}"));
                deleted.ok()
            });
            match answer {
                Ok(answer) => {
                    life.story.add(format!("answers {answer}"));
                    said.push(answer);
                }
                Err(error) => life.fault(format!("the {time} delete: {error:#}")),
            }
            if time == "first" {
                outcome.delete_took = took;
                if life.init_dead() == Some(false) {
                    life.fault("init lives after `delete` has answered");
                }
            }
        }
        if let Some(first) = said.first() {
            outcome.said = Some(first.exit_status);
            // A time must be given: containerd would read 1970.
            if first.exited_at.is_none() {
                life.fault("`delete` names no time");
            }
            life.tell("delete", first.exit_status);
        }
        if let [first, second] = &said[..]
            && first != second
        {
            life.fault(format!("`delete` said {first}, then {second}"));
        }
    }

    fn judge(&self, outcome: &mut Outcome) {
        let life = self.life;
        let known = life.known();
        life.story.add(format!("{known:?}"));
        outcome.truth = known.truth;
        outcome.made = life.asked().created;
        outcome.states = life.states.load(Ordering::Relaxed);
        outcome.unseen = outcome.said == Some(UNKNOWN);
        for event in self.sink.all() {
            if let Fact::Exit(exit) = &event.fact
                && exit.id == exit.container_id
            {
                life.tell("TaskExit", exit.exit_status);
            }
        }
        life.judge_told(&known);
        self.judge_events();
        self.judge_output();
    }

    fn exit_published(&self) -> bool {
        let now = Instant::now();
        self.sink
            .wait("", now, |e| (e.short() == "exit").then_some(()))
            .is_ok()
    }

    fn judge_events(&self) {
        let order = ["create", "start", "paused", "resumed", "exit", "delete"];
        let story = self.sink.story();
        self.life.story.add(format!("events: {story:?}"));
        let at = |name: &str| -> Vec<usize> {
            let all = story.iter().enumerate();
            all.filter(|(_, e)| *e == name).map(|(at, _)| at).collect()
        };
        // A shim that died first had a successor for a moment: the one event whose
        // acknowledgement was on its way may come again, and its two connections be heard
        // in either order.
        let once = ["create", "start", "exit", "delete"];
        let again: usize = once
            .iter()
            .map(|name| at(name).len().saturating_sub(1))
            .sum();
        if again > 1 {
            self.life
                .fault(format!("more than one was published twice: {story:?}"));
        }
        for pair in [("create", "start"), ("start", "exit"), ("exit", "delete")] {
            if let (Some(first), Some(then)) = (at(pair.0).first(), at(pair.1).first())
                && first > then
            {
                self.life
                    .fault(format!("{pair:?} the wrong way round: {story:?}"));
            }
        }
        for other in story.iter().filter(|e| !e.contains(' ')) {
            if !order.contains(&other.as_str()) && other != "oom" {
                self.life.fault(format!("what event is {other}? {story:?}"));
            }
        }
    }

    fn judge_output(&self) {
        let (life, plan) = (self.life, &self.life.plan);
        let asked = life.asked();
        let words = plan.words();
        for (stream, reader) in ["stdout", "stderr"].iter().zip(&self.outputs) {
            let expected = if *stream == "stdout" {
                words.as_str()
            } else {
                ""
            };
            // Without Create nobody has opened the other end, and there is no end to see.
            if asked.created && reader.to_end(by(10.0)).is_err() {
                life.fault(format!("{stream} has no end after `delete`"));
            }
            let text = String::from_utf8_lossy(&reader.so_far()).replace('\r', "");
            let whole = *stream == "stdout"
                && plan.ends()
                && life.waited_for_own_code()
                && text != expected;
            // runc's own init complains there when its runc, create or start, is killed under it.
            let runcs = *stream == "stderr" && !(asked.created && asked.started);
            if whole || !runcs && !expected.starts_with(&text) {
                life.fault(format!("{stream} is {text:?}, not {expected:?}"));
            }
        }
    }

    /// Does the steps until the blow. `ask` starts the one who asks State.
    fn drive(&self, reached: &Sender<usize>, ask: impl FnOnce(Task)) -> Result<()> {
        let (life, id) = (self.life, self.life.id.as_str());
        let mut ask = Some(ask);
        let mut execs = 0;
        for (index, step) in life.plan.steps.iter().enumerate() {
            let _ = reached.send(index);
            if life.is_struck() {
                return Ok(());
            }
            life.story.add(format!("{step:?}"));
            if *step == Step::Bootstrap {
                match Shim::start(&self.caller, &self.bundle).and_then(|shim| {
                    let pair = Pair::of(&shim.task, id)?;
                    // A connection of its own, as a second client would have.
                    let second = Task::connect(&shim.reply.socket, V2)?;
                    Ok((shim, pair, second))
                }) {
                    Ok((shim, pair, second)) => {
                        let _ = self.pair.set(pair);
                        let _ = self.shim.set(shim);
                        if let Some(ask) = ask.take() {
                            ask(second);
                        }
                    }
                    Err(_) if life.is_struck() => return Ok(()),
                    // The blow and the answer of `start` may cross.
                    Err(error) => return Err(error.context("start")),
                }
                continue;
            }
            let Some(shim) = self.shim.get() else {
                return Ok(());
            };
            let done = self.step(&shim.task, *step, &mut execs);
            life.story.add(format!(
                "{step:?}: {}",
                match &done {
                    Ok(()) => "done".to_owned(),
                    Err(error) => error.to_string(),
                }
            ));
            let Err(error) = done else { continue };
            if life.is_struck() {
                return Ok(());
            }
            let asked = life.asked();
            let excused = match step {
                Step::Shutdown => true,
                // Their container may just have ended, or be frozen.
                Step::Exec { .. } | Step::Pause | Step::Resume | Step::Update => {
                    asked.may_end || asked.pause
                }
                // Whether a signal went out is not known of a shim that died over it.
                Step::Kill(_) if life.plan.blow.victims == Victims::Shim => true,
                Step::Kill(_) | Step::Stats | Step::Pids => asked.may_end,
                _ => false,
            };
            let refused = matches!(error, CallError::Status { .. });
            if !(excused && refused) {
                life.fault(format!("{step:?}: {error}"));
                return Ok(());
            }
        }
        Ok(())
    }

    fn step(&self, task: &Task, step: Step, execs: &mut u32) -> Result<(), CallError> {
        let (life, id) = (self.life, self.life.id.as_str());
        match step {
            Step::Bootstrap => Ok(()),
            Step::Create => {
                life.note(|a| a.create = true);
                let pid = task.create(&self.bundle.create_request())?.pid;
                life.watch(pid);
                life.note(|a| a.created = true);
                Ok(())
            }
            Step::Start => {
                let ends = life.plan.ends();
                life.note(|a| {
                    a.start = true;
                    a.may_end |= ends;
                });
                task.start(id, "")?;
                life.note(|a| a.started = true);
                Ok(())
            }
            Step::Exec { code, ms, wait } => {
                *execs += 1;
                self.exec(task, &format!("x{execs}"), code, ms, wait)
            }
            Step::Pause => {
                life.note(|a| a.pause = true);
                task.pause(id)?;
                life.note(|a| a.paused = true);
                Ok(())
            }
            Step::Resume => {
                life.note(|a| a.paused = false);
                task.resume(id)
            }
            Step::Update => task.update(id, &serde_json::json!({"pids": {"limit": 500}})),
            Step::Kill(signal) => {
                if signal == 9 || signal == 15 {
                    life.kill_is_sent();
                    // Kill also thaws.
                    life.note(|a| a.paused = false);
                }
                task.kill(id, "", signal, false)
            }
            Step::Stats => task.stats(id).map(drop),
            Step::Pids => task.pids(id).map(drop),
            Step::Idle(ms) => {
                std::thread::sleep(Duration::from_millis(u64::from(ms)));
                Ok(())
            }
            Step::Wait => {
                let waited = match task.patient(3.0).wait(id, "") {
                    // A signal that came before the shell had set its trap is ignored by an init.
                    // (The shim keeps the same time, and may say so first.)
                    Err(error)
                        if error == CallError::Deadline || error.is(Code::DeadlineExceeded) =>
                    {
                        life.kill_is_sent();
                        task.kill(id, "", 9, false)?;
                        task.wait(id, "")?
                    }
                    other => other?,
                };
                life.tell("Wait", waited.exit_status);
                life.waited(waited.exit_status);
                Ok(())
            }
            Step::Delete => {
                life.note(|a| a.delete = true);
                let deleted = task.delete(id, "")?;
                life.tell("Delete", deleted.exit_status);
                life.note(|a| a.deleted = true);
                Ok(())
            }
            Step::Shutdown => {
                life.note(|a| a.shutdown = true);
                task.shutdown(id)
            }
        }
    }

    fn exec(
        &self,
        task: &Task,
        exec: &str,
        code: u32,
        ms: u32,
        wait: bool,
    ) -> Result<(), CallError> {
        let (life, id) = (self.life, self.life.id.as_str());
        let spec = Spec::sh(&format!("echo said; sleep 0.{ms:03}; exit {code}"));
        let path = self.bundle.dir.with_file_name(format!("{id}-{exec}"));
        let reader = mkfifo(&path).and_then(|()| FifoReader::open(&path));
        let reader = reader.map_err(|e| CallError::Encoding(format!("{e:#}")))?;
        task.exec(&ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            stdout: path.to_string_lossy().into_owned(),
            spec: Some(exec_spec(&spec)).into(),
            ..Default::default()
        })?;
        task.start(id, exec)?;
        if !wait {
            return Ok(());
        }
        let status = task.wait(id, exec)?.exit_status;
        let may_end = life.asked().may_end;
        let text = String::from_utf8_lossy(&reader.so_far()).into_owned();
        if status == code {
            if text != "said\n" {
                life.fault(format!("{exec} ended with {code} and said {text:?}"));
            }
        } else if !(life.is_struck() || may_end && status == 137) {
            life.fault(format!("{exec} ended with {status}, not {code}"));
        }
        let deleted = task.delete(id, exec)?.exit_status;
        if deleted != status {
            life.fault(format!("{exec}: Wait said {status}, Delete {deleted}"));
        }
        Ok(())
    }
}

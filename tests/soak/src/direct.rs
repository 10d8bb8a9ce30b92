//! A life driven as containerd drives it, by the laboratory's own client: `start`, ttrpc,
//! and `delete` when the connection drops. Much faster than through a daemon, and its
//! moments can be chosen to the microsecond.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{DeleteResponse, ExecProcessRequest};
use vigil_lab::bundle::{Stdio, busybox_rootfs};
use vigil_lab::containerd::socket_of;
use vigil_lab::fifo::FifoWriter;
use vigil_lab::kit::exec_spec;
use vigil_lab::process::mkfifo;
use vigil_lab::shim::Caller;
use vigil_lab::task::V2;
use vigil_lab::{
    Bundle, CallError, Code, EventSink, Fact, FifoReader, Residue, Scratch, Shim, ShimBinary, Spec,
    Task, by, until,
};

use crate::blows::Blows;
use crate::elder::{self, Grown};
use crate::judge::{Harm, UNKNOWN};
use crate::life::Life;
use crate::plan::{How, Step, Victims};
use crate::story::Story;
use crate::story::lines_of;
use crate::strike::{self, End, Pair};
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
    /// Makes one for `binary`. `mute`: the kernel does not say how a process ended that was no
    /// child (a debug build alone can be made to believe so).
    pub fn new(binary: &ShimBinary, mute: bool) -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut env = Vec::new();
        if mute {
            let points = scratch.path("points");
            fs::create_dir(&points)?;
            fs::write(points.join("no-exit-status"), "")?;
            env.push(("VIGIL_POINTS".into(), points.display().to_string()));
        }
        busybox_rootfs(&scratch.path("base"))?;
        let caller = Caller {
            binary: binary.path.clone(),
            namespace: scratch.mark().to_owned(),
            grpc: scratch.path("g.sock"),
            ttrpc: scratch.path("none"),
            dialect: binary.dialect,
            options: Vec::new(),
            env,
        };
        Ok(Self { caller, scratch })
    }

    fn bundle(&self, id: &str, spec: &Spec, stdio: Stdio) -> Result<Bundle> {
        let (state, base) = (self.scratch.path("state"), self.scratch.path("base"));
        Bundle::make(&state, self.scratch.mark(), id, spec, stdio, &base)
    }

    /// A life as long as all the others together.
    pub fn grow_old(
        &self,
        number: u32,
        victims: Victims,
        stop: &AtomicBool,
        story: &Story,
    ) -> Result<Grown> {
        let sink = EventSink::listen(&self.scratch.path("elder"))?;
        let caller = Caller {
            ttrpc: sink.address().to_owned(),
            ..self.caller.clone()
        };
        let (state, base) = (self.scratch.path("state"), self.scratch.path("base"));
        let grown = elder::live(&caller, (&state, &base), (number, victims), stop, story)?;
        let told = sink.story();
        // One of each, and once more where the answer was on its way.
        let exits = told.iter().filter(|event| *event == "exit").count() as u64;
        ensure!(exits >= 1 && exits <= 1 + grown.kills, "events: {told:?}");
        Ok(grown)
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
            life.wrong(Harm::Residue, format!("{error:#}"));
            // Not to be found by the next life's judge too.
            strike::all_of(&life.id, false, &life.story);
        }
        let socket = socket_of(&self.caller.grpc, &self.caller.namespace, &life.id);
        if socket.exists() {
            life.wrong(
                Harm::Residue,
                format!("the socket {} is left", socket.display()),
            );
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
        let blows = OnceLock::new();
        std::thread::scope(|scope| {
            let (stop, blows) = (&stop, &blows);
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
            let pair = self.pair.get().zip(self.shim.get());
            let pair = pair.filter(|_| plan.blow.victims.one_lives_on());
            let mut outcome = if let Some((pair, shim)) = pair {
                let blows = blows.get_or_init(|| Blows::new(life, pair, &shim.task));
                self.strike_all(blows, scope, &reports, came);
                // It goes on as if nothing had been.
                let _ = driver.take().map(ScopedJoinHandle::join);
                self.end(stop);
                let mut outcome = Outcome {
                    step: came.map(|at| plan.steps[at]),
                    kills: life.kills.load(Ordering::SeqCst),
                    took: blows.took(),
                    ..Outcome::default()
                };
                self.delete(&mut outcome);
                outcome
            } else {
                let (mut outcome, end) = self.strike_both(came);
                if end == End::Healed {
                    outcome.healed = true;
                    life.lives_on();
                    // It goes on as if nothing had been, and ends in another way.
                    let _ = driver.take().map(ScopedJoinHandle::join);
                    self.end(stop);
                }
                self.delete(&mut outcome);
                if self.pair.get().is_none() {
                    // What `start` had not forked when the others were killed.
                    strike::all_of(&life.id, false, &life.story);
                }
                outcome
            };
            stop.store(true, Ordering::SeqCst);
            let _ = driver.take().map(ScopedJoinHandle::join);
            self.judge(&mut outcome);
            outcome
        })
    }

    /// Strikes both. Both are gone then, or there are two again; nothing else may last.
    fn strike_both(&self, came: Option<usize>) -> (Outcome, End) {
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
            outcome.kills = u64::from(hit.is_ok());
            return (outcome, End::Gone);
        };
        outcome.kills = u64::from(pair.lives(blow.victims));
        life.blow_begins();
        if blow.runc {
            strike::runc_of(&life.id, &life.story);
        }
        // Two deaths, each of which may have cost an acknowledgement.
        life.kills.store(2, Ordering::SeqCst);
        pair.strike(blow, &life.story);
        let Some(shim) = self.shim.get() else {
            return (outcome, End::Gone);
        };
        let came = strike::which_end(pair, &shim.task, &life.id);
        let (end, took) = came.unwrap_or_else(|error| {
            life.wrong(Harm::Lost, format!("{error:#}"));
            strike::all_of(&life.id, false, &life.story);
            (End::Gone, Duration::ZERO)
        });
        life.story.add(format!("{end:?} after {took:?}"));
        outcome.decided = Some(took);
        if end == End::Gone {
            std::thread::sleep(Duration::from_millis(blow.delete_after_ms));
        }
        (outcome, end)
    }

    /// Strikes one of the two, and those that come after it, each in its step.
    fn strike_all<'scope>(
        &self,
        blows: &'scope Blows<'scope>,
        scope: &'scope Scope<'scope, '_>,
        reports: &Receiver<usize>,
        came: Option<usize>,
    ) {
        let Some(mut at) = came else { return };
        blows.strike(scope);
        for again in &self.life.plan.more {
            while at < again.step {
                match reports.recv_timeout(Duration::from_secs(90)) {
                    Ok(step) => at = step,
                    Err(_) => return,
                }
            }
            strike::pause(again.after_us);
            if !blows.strike(scope) {
                return;
            }
        }
    }

    /// What is left to do after the steps: the container killed, if it lives, waited for,
    /// deleted; the pair told to go.
    fn end(&self, stop: &AtomicBool) {
        let (life, id) = (self.life, self.life.id.as_str());
        let Some(shim) = self.shim.get() else {
            return;
        };
        let asked = life.asked();
        let ended = (|| -> Result<(), CallError> {
            if asked.create && !asked.deleted {
                life.kill_is_sent();
                match shim.task.kill(id, "", 9, false) {
                    Err(error) if !error.is(Code::NotFound) => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                // Create failed.
                if !asked.created
                    && let Err(error) = shim.task.delete(id, "")
                {
                    return error.is(Code::NotFound).then_some(()).ok_or(error);
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
        if let Err(error) = strike::nobody_left(id) {
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
        let kills = self.life.kills.load(Ordering::SeqCst).max(1);
        if again as u64 > kills {
            let what = format!("more than one a death was published twice: {story:?}");
            self.life.wrong(Harm::Doubled, what);
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
                life.wrong(Harm::Output, format!("{stream} has no end after `delete`"));
            }
            let text = String::from_utf8_lossy(&reader.so_far()).replace('\r', "");
            let whole = *stream == "stdout"
                && plan.ends()
                && life.waited_for_own_code()
                && text != expected;
            // runc's own init complains there when its runc, create or start, is killed under it.
            let runcs = *stream == "stderr" && !(asked.created && asked.started);
            if whole || !runcs && !expected.starts_with(&text) {
                life.wrong(
                    Harm::Output,
                    format!("{stream} is {text:?}, not {expected:?}"),
                );
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
                    // One that was accepted and never heard of goes with the reaper that accepted it.
                    second.connect_task(id)?;
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
            let asked = life.asked();
            let excused = match step {
                Step::Shutdown => true,
                // Their container may just have ended, or be frozen.
                Step::Exec { .. } if asked.may_end || asked.pause => true,
                Step::Pause | Step::Resume | Step::Update => asked.may_end || asked.pause,
                // Whether a signal went out is not known of a shim that died over it.
                Step::Kill(_) if life.plan.blow.victims.one_lives_on() => true,
                Step::Kill(_) | Step::Stats | Step::Pids => asked.may_end,
                _ => false,
            };
            let refused = matches!(error, CallError::Status { .. });
            if !(excused && refused) {
                let harm = match (&error, step) {
                    (CallError::Closed, _) => Harm::Lost,
                    (CallError::Deadline, Step::Wait) => Harm::Exit,
                    _ => Harm::Other,
                };
                let what = format!("{step:?}: {error}");
                if !life.is_struck() {
                    life.wrong(harm, what);
                } else if !(life.plan.blow.runc && refused) {
                    life.doubt(harm, what);
                }
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
            Step::Exec {
                code,
                ms,
                wait,
                how,
            } => {
                *execs += 1;
                let exec = format!("x{execs}");
                self.exec(task, &exec, (code, ms), wait, how)
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
        (code, ms): (u32, u32),
        wait: bool,
        how: How,
    ) -> Result<(), CallError> {
        let (life, id) = (self.life, self.life.id.as_str());
        let odd = |error: anyhow::Error| CallError::Encoding(format!("{error:#}"));
        let path = self.bundle.dir.with_file_name(format!("{id}-{exec}"));
        let reader = mkfifo(&path).and_then(|()| FifoReader::open(&path));
        let reader = reader.map_err(odd)?;
        let mut spec = Spec::sh(&format!("echo said; sleep 0.{ms:03}; exit {code}"));
        let mut expected = "said\n".to_owned();
        let mut stdin = PathBuf::new();
        match how {
            How::Plain => {}
            How::Terminal => spec.terminal = true,
            How::Stdin(lines) => {
                spec = Spec::sh(&format!("cat; exit {code}"));
                expected = lines_of("line", 0..u64::from(lines));
                stdin = path.with_extension("in");
                mkfifo(&stdin).map_err(odd)?;
            }
        }
        task.exec(&ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            stdin: stdin.to_string_lossy().into_owned(),
            stdout: path.to_string_lossy().into_owned(),
            terminal: spec.terminal,
            spec: Some(exec_spec(&spec)).into(),
            ..Default::default()
        })?;
        task.start(id, exec)?;
        if let How::Stdin(_) = how {
            let writer = FifoWriter::open(&stdin, by(10.0));
            let written = writer.and_then(|mut writer| writer.write(&expected));
            if let Err(error) = written
                && !life.asked().may_end
            {
                life.wrong(Harm::Output, format!("the stdin of {exec}: {error:#}"));
            }
            task.close_io(id, exec)?;
        }
        if !wait {
            return Ok(());
        }
        let status = task.wait(id, exec)?.exit_status;
        let may_end = life.asked().may_end;
        let deleted = task.delete(id, exec)?.exit_status;
        if deleted != status {
            let what = format!("{exec}: Wait said {status}, Delete {deleted}");
            life.wrong(Harm::Exit, what);
        }
        // Not what was read when Wait was answered: on a busy machine our own reader comes later
        // than the shim waits for it.
        let ended = reader.to_end(by(10.0));
        let text = String::from_utf8_lossy(&reader.so_far()).replace('\r', "");
        if let Err(error) = ended {
            life.wrong(Harm::Output, format!("{exec} was deleted: {error:#}"));
        }
        if status == code {
            // What ends with its container may have to say so.
            if text != expected && !may_end {
                let twice = text.len() > expected.len();
                let harm = if twice { Harm::Doubled } else { Harm::Output };
                life.wrong(harm, format!("{exec} ended with {code} and said {text:?}"));
            }
        } else if !(life.is_struck() || may_end && status == 137 || life.mute && status == UNKNOWN)
        {
            let what = format!("{exec} ended with {status}, not {code}");
            life.wrong(Harm::Exit, what);
        }
        Ok(())
    }
}

//! One container with its client: asks, and holds every answer, byte and event against what
//! must be. It does not know that anybody is killed, and so cannot excuse anything by it;
//! the one thing that a death may leave unknown is in [`Stage::signal`].

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::{ExecProcessRequest, WaitResponse};
use vigil_hostile::Pair;
use vigil_lab::bundle::Stdio;
use vigil_lab::events::{Event, Fact};
use vigil_lab::fifo::FifoWriter;
use vigil_lab::kit::exec_spec;
use vigil_lab::order::container;
use vigil_lab::process::mkfifo;
use vigil_lab::task::V2;
use vigil_lab::{Bundle, CallError, Code, Kit, Residue, Shim, Spec, Task, by, until};

use crate::voice::Voice;

/// Seconds any request may take; the reaper's own limits are far below.
const PATIENCE: f64 = 30.0;
/// Lines init says when it is told to end: more than a pipe holds.
pub const LAST_WORDS: u32 = 20_000;
/// What init ends with.
pub const CODE: u32 = 7;

/// An answer of Wait that is on its way.
type Waiting = Receiver<Result<WaitResponse, CallError>>;

/// Somebody with streams: init or an exec.
#[derive(Debug)]
struct Speaker {
    pid: u32,
    stdin: Option<FifoWriter>,
    stdin_path: String,
    out: Option<Voice>,
    err: Option<Voice>,
    terminal: bool,
    /// Lines it was sent.
    lines: u32,
    waiting: Option<Waiting>,
}

/// See the module.
#[derive(Debug)]
pub struct Stage {
    kit: Arc<Kit>,
    /// Container id.
    pub id: String,
    bundle: Bundle,
    shim: Shim,
    /// The two processes as they were at the beginning.
    pub pair: Pair,
    /// By exec id; init has the empty one.
    speakers: BTreeMap<String, Speaker>,
    /// Events that must come, in this order.
    due: Vec<String>,
    /// A signal whose delivery the answer left open.
    pub unknown: u32,
    /// Connections that ended before anything was answered on them: accepted by somebody who died
    /// before the other knew of it.
    pub unheard: u32,
    /// The connection ended before Shutdown was answered.
    pub cut_off: bool,
    exit: u32,
}

/// Reads lines and says them again, numbered, on both outputs; `end` ends it.
fn parrot(last_words: u32, code: u32) -> Spec {
    Spec::sh(&format!(
        "i=0; while read l; do [ \"$l\" = end ] && break; i=$((i+1)); echo \"$i $l\"; \
         echo \"$i\" >&2; done; [ {last_words} = 0 ] || seq 1 {last_words}; exit {code}"
    ))
}

/// The same on a terminal, where lines come back by the program alone.
fn terminal_parrot(code: u32) -> Spec {
    let script = format!(
        "stty -echo; echo ready; i=0; while read l; do case $l in end) exit {code};; \
         size) stty size;; *) i=$((i+1)); echo \"$i $l\";; esac; done; exit 99"
    );
    Spec::sh(&script).on_terminal()
}

/// What an exec is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Says again what it hears.
    Parrot,
    /// The same on a terminal.
    Terminal,
    /// Says again what it hears until its stdin ends; then exits with 4.
    Cat,
    /// Says a word for each SIGUSR1.
    Listener,
}

impl Kind {
    fn spec(self) -> Spec {
        match self {
            Self::Parrot => parrot(0, 5),
            Self::Terminal => terminal_parrot(6),
            Self::Cat => Spec::sh("cat; exit 4"),
            Self::Listener => Spec::sh(
                "trap 'echo got' USR1; echo up; while :; do \
                 sleep 1000 </dev/null >/dev/null 2>&1 & wait $!; done",
            ),
        }
    }
}

fn wait_for(task: &Task, id: &str, exec: &str) -> Waiting {
    let (sender, answer) = mpsc::channel();
    let (task, id, exec) = (task.patient(120.0), id.to_owned(), exec.to_owned());
    std::thread::spawn(move || sender.send(task.wait(&id, &exec)));
    answer
}

impl Stage {
    /// Runs `start`; `id` must be found in nothing else on the machine.
    pub fn set(kit: &Arc<Kit>, id: &str, points: &Path) -> Result<Self> {
        let state = kit.scratch.path("state");
        let (mark, base) = (kit.scratch.mark(), kit.scratch.path("base"));
        let spec = parrot(LAST_WORDS, CODE);
        let bundle = Bundle::make(&state, mark, id, &spec, Stdio::All, &base)?;
        let voice = |at: usize, name: &str| Voice::of(name, bundle.stdio[at].as_ref());
        let (out, err) = (voice(1, "stdout")?, voice(2, "stderr")?);
        let mut caller = kit.caller.clone();
        caller
            .env
            .push(("VIGIL_POINTS".into(), points.display().to_string()));
        let mut shim = Shim::start(&caller, &bundle).context("start")?;
        shim.task.patience = PATIENCE;
        let pair = until("reaper and shim", by(10.0), || Pair::of(&shim).ok())?;
        let init = Speaker {
            pid: 0,
            stdin: None,
            stdin_path: bundle.stdio[0].clone(),
            out: Some(out),
            err: Some(err),
            terminal: false,
            lines: 0,
            waiting: None,
        };
        Ok(Self {
            kit: Arc::clone(kit),
            id: id.to_owned(),
            bundle,
            shim,
            pair,
            speakers: BTreeMap::from([(String::new(), init)]),
            due: Vec::new(),
            unknown: 0,
            unheard: 0,
            cut_off: false,
            exit: 0,
        })
    }

    fn task(&self) -> &Task {
        &self.shim.task
    }

    fn speaker(&mut self, who: &str) -> Result<&mut Speaker> {
        let found = self.speakers.get_mut(who);
        found.with_context(|| format!("nobody is called {who:?}"))
    }

    fn is_ours(&self, event: &Event) -> bool {
        container(event) == Some(self.id.as_str())
    }

    /// Waits for an event, which is the next one in the story.
    fn event(&mut self, short: &str) -> Result<Fact> {
        self.due.push(short.to_owned());
        self.kit.sink.wait(short, by(PATIENCE), |event| {
            (self.is_ours(event) && event.short() == short).then(|| event.fact.clone())
        })
    }

    fn status(&self, exec: &str, status: i32) -> Result<()> {
        let state = self.task().state(&self.id, exec).context("State")?;
        ensure!(
            state.status.value() == status,
            "State of {exec:?} says {:?}, not {status}",
            state.status
        );
        let pid = self.speakers.get(exec).map_or(0, |speaker| speaker.pid);
        ensure!(state.pid == pid, "State says pid {}, not {pid}", state.pid);
        Ok(())
    }

    /// Create.
    pub fn create(&mut self) -> Result<()> {
        let made = self.task().create(&self.bundle.create_request());
        let pid = made.context("Create")?.pid;
        self.speaker("")?.pid = pid;
        match self.event("create")? {
            Fact::Create(e) if e.pid == pid => {}
            other => bail!("pid {pid} is created, and told is {other:?}"),
        }
        let (task, id) = (self.task().clone(), self.id.clone());
        let init = self.speaker("")?;
        init.waiting = Some(wait_for(&task, &id, ""));
        init.stdin = Some(FifoWriter::open(init.stdin_path.as_ref(), by(PATIENCE))?);
        self.status("", 1)
    }

    /// Start of init or of an exec that was added.
    pub fn start(&mut self, who: &str) -> Result<()> {
        let pid = self.task().start(&self.id, who).context("Start")?;
        let known = self.speaker(who)?.pid;
        ensure!(
            !who.is_empty() || known == pid,
            "Start says {pid}, not {known}"
        );
        self.speaker(who)?.pid = pid;
        let short = if who.is_empty() {
            "start".to_owned()
        } else {
            format!("exec-started {who}")
        };
        match self.event(&short)? {
            Fact::Start(e) if e.pid == pid => {}
            Fact::ExecStarted(e) if e.pid == pid => {}
            other => bail!("pid {pid} is started, and told is {other:?}"),
        }
        if !who.is_empty() {
            let (task, id) = (self.task().clone(), self.id.clone());
            let exec = self.speaker(who)?;
            if !exec.stdin_path.is_empty() {
                exec.stdin = Some(FifoWriter::open(exec.stdin_path.as_ref(), by(PATIENCE))?);
            }
            exec.waiting = Some(wait_for(&task, &id, who));
        }
        self.status(who, 2)
    }

    /// Sends three lines, which must come back numbered.
    pub fn talk(&mut self, who: &str) -> Result<()> {
        self.say(who, 3)?;
        self.answered(who)
    }

    /// Sends lines.
    pub fn say(&mut self, who: &str, count: u32) -> Result<()> {
        let speaker = self.speaker(who)?;
        let end = if speaker.terminal { "\r\n" } else { "\n" };
        for _ in 0..count {
            speaker.lines += 1;
            let line = speaker.lines;
            let stdin = speaker.stdin.as_mut().context("no stdin")?;
            stdin.write(&format!("line {line}\n"))?;
            if let Some(out) = &mut speaker.out {
                out.owes(&format!("{line} line {line}{end}"));
            }
            if let Some(err) = &mut speaker.err {
                err.owes(&format!("{line}\n"));
            }
        }
        Ok(())
    }

    /// Waits until everything was said again.
    pub fn answered(&mut self, who: &str) -> Result<()> {
        let speaker = self.speaker(who)?;
        for voice in [&speaker.out, &speaker.err].into_iter().flatten() {
            voice.heard()?;
        }
        Ok(())
    }

    /// Whether nothing has come back of what was said since: the container is frozen.
    pub fn unanswered(&mut self) -> Result<()> {
        let init = self.speaker("")?;
        let last = format!("line {}\n", init.lines);
        let heard = init.out.as_ref().context("no stdout")?.so_far();
        ensure!(!heard.contains(&last), "a frozen container has spoken");
        Ok(())
    }

    /// Exec: registers one.
    pub fn add(&mut self, exec: &str, kind: Kind) -> Result<()> {
        let spec = kind.spec();
        let path = |name: &str| {
            let path = self
                .bundle
                .dir
                .with_file_name(format!("{}-{exec}-{name}", self.id));
            mkfifo(&path).map(|()| path)
        };
        let mut request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            terminal: spec.terminal,
            spec: Some(exec_spec(&spec)).into(),
            ..Default::default()
        };
        let stdout = path("out")?;
        request.stdout = stdout.to_string_lossy().into_owned();
        let mut out = Voice::of(&format!("{exec}'s stdout"), &stdout)?;
        match kind {
            Kind::Terminal => out.owes("ready\r\n"),
            Kind::Listener => out.owes("up\n"),
            Kind::Parrot | Kind::Cat => {}
        }
        let mut err = None;
        if kind == Kind::Parrot {
            let stderr = path("err")?;
            request.stderr = stderr.to_string_lossy().into_owned();
            err = Some(Voice::of(&format!("{exec}'s stderr"), &stderr)?);
        }
        if kind != Kind::Listener {
            request.stdin = path("in")?.to_string_lossy().into_owned();
        }
        self.task().exec(&request).context("Exec")?;
        let speaker = Speaker {
            pid: 0,
            stdin: None,
            stdin_path: request.stdin,
            out: Some(out),
            err,
            terminal: spec.terminal,
            lines: 0,
            waiting: None,
        };
        self.speakers.insert(exec.to_owned(), speaker);
        self.event(&format!("exec-added {exec}"))?;
        self.status(exec, 1)
    }

    /// ResizePty, and whether the terminal has that size.
    pub fn resize(&mut self, exec: &str, width: u32, height: u32) -> Result<()> {
        self.answered(exec)?;
        let resized = self.task().resize(&self.id, exec, width, height);
        resized.context("ResizePty")?;
        let speaker = self.speaker(exec)?;
        speaker
            .stdin
            .as_mut()
            .context("no stdin")?
            .write("size\n")?;
        if let Some(out) = &mut speaker.out {
            out.owes(&format!("{height} {width}\r\n"));
        }
        self.answered(exec)
    }

    /// CloseIO, after what was written.
    pub fn close(&mut self, exec: &str) -> Result<()> {
        let speaker = self.speaker(exec)?;
        let mut stdin = speaker.stdin.take().context("no stdin")?;
        stdin.write("one\ntwo\n")?;
        if let Some(out) = &mut speaker.out {
            out.owes("one\ntwo\n");
        }
        drop(stdin);
        self.task().close_io(&self.id, exec).context("CloseIO")
    }

    /// Everything that only reads.
    pub fn look(&mut self) -> Result<()> {
        let (task, id) = (self.task(), self.id.as_str());
        for (who, speaker) in &self.speakers {
            if speaker.pid != 0 {
                self.status(who, 2)?;
            }
        }
        let init = self.speakers[""].pid;
        let pids = task.pids(id).context("Pids")?;
        ensure!(
            pids.processes.iter().any(|process| process.pid == init),
            "Pids does not know init {init}: {pids:?}"
        );
        let stats = task.stats(id).context("Stats")?;
        ensure!(!stats.value.is_empty(), "Stats are empty");
        let connected = task.connect_task(id).context("Connect")?;
        // Who was the shim at the beginning is the reaper after that has died.
        let pair = [self.pair.reaper, self.pair.shim].map(i32::cast_unsigned);
        ensure!(
            pair.contains(&connected.shim_pid) && connected.task_pid == init,
            "Connect says {connected:?}"
        );
        Ok(())
    }

    /// Another client comes, asks, and goes.
    pub fn visit(&mut self) -> Result<()> {
        let socket = self.shim.reply.socket.clone();
        for _ in 0..2 {
            let mut task = Task::connect(&socket, V2).context("a second connection")?;
            task.patience = PATIENCE;
            match task.state(&self.id, "") {
                Err(CallError::Closed) => self.unheard += 1,
                answer => {
                    let state = answer.context("State, for a second client")?;
                    ensure!(state.status.value() == 2, "it is told {state:?}");
                    let known = task.connect_task(&self.id).context("Connect")?;
                    ensure!(known.task_pid == state.pid, "it is told {known:?}");
                    return Ok(());
                }
            }
        }
        bail!("two connections were lost")
    }

    /// Pause; one line is said to it then.
    pub fn pause(&mut self) -> Result<()> {
        self.task().pause(&self.id).context("Pause")?;
        self.event("paused")?;
        self.status("", 4)?;
        self.say("", 1)?;
        self.unanswered()
    }

    /// Resume; the line is answered.
    pub fn resume(&mut self) -> Result<()> {
        self.unanswered()?;
        self.task().resume(&self.id).context("Resume")?;
        self.event("resumed")?;
        self.status("", 2)?;
        self.answered("")
    }

    /// Update; the kernel must know of it.
    pub fn update(&mut self) -> Result<()> {
        let limit = serde_json::json!({"pids": {"limit": 517}});
        self.task().update(&self.id, &limit).context("Update")?;
        let place = format!("{}/{}/pids.max", self.kit.scratch.mark(), self.id);
        let found = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
            .iter()
            .find_map(|root| fs::read_to_string(Path::new(root).join(&place)).ok());
        let found = found.context("no pids.max")?;
        ensure!(found.trim() == "517", "pids.max is {found:?}");
        Ok(())
    }

    /// A signal that must not be sent twice. Of one that a shim died over the answer may be
    /// that nobody knows.
    pub fn signal(&mut self, exec: &str) -> Result<()> {
        self.answered(exec)?;
        let known = match self.task().kill(&self.id, exec, 10, false) {
            Ok(()) => true,
            Err(error) if error.is(Code::Unknown) => false,
            Err(error) => return Err(error).context("Kill with SIGUSR1"),
        };
        let out = self.speaker(exec)?.out.as_mut().context("no stdout")?;
        if known || out.so_far().contains("got") {
            out.owes("got\n");
            return out.heard();
        }
        out.may_owe("got\n");
        self.unknown += 1;
        Ok(())
    }

    /// SIGKILL of an exec, its exit, its end.
    pub fn kill(&mut self, who: &str) -> Result<()> {
        self.task().kill(&self.id, who, 9, false).context("Kill")?;
        self.ended(who, 137)
    }

    /// SIGKILL of init while an exec runs, whose end is told first.
    pub fn kill_with(&mut self, exec: &str) -> Result<()> {
        self.task().kill(&self.id, "", 9, false).context("Kill")?;
        self.ended(exec, 137)?;
        self.ended("", 137)
    }

    /// Tells it to end by itself.
    pub fn finish(&mut self, who: &str, code: u32) -> Result<()> {
        let speaker = self.speaker(who)?;
        speaker.stdin.as_mut().context("no stdin")?.write("end\n")?;
        if who.is_empty()
            && let Some(out) = &mut speaker.out
        {
            for line in 1..=LAST_WORDS {
                out.owes(&format!("{line}\n"));
            }
        }
        self.ended(who, code)
    }

    /// It has ended with `code`: Wait, the event and the end of its streams say so.
    pub fn ended(&mut self, who: &str, code: u32) -> Result<()> {
        let waiting = self.speaker(who)?.waiting.take().context("no Wait")?;
        let answer = waiting.recv_timeout(std::time::Duration::from_secs_f64(PATIENCE));
        let told = answer
            .with_context(|| format!("no answer to Wait of {who:?}"))?
            .context("Wait")?;
        ensure!(told.exit_status == code, "Wait says {}", told.exit_status);
        let short = if who.is_empty() {
            self.exit = code;
            "exit".to_owned()
        } else {
            format!("exit {who}")
        };
        let pid = self.speaker(who)?.pid;
        match self.event(&short)? {
            Fact::Exit(e) if e.pid == pid && e.exit_status == code => {
                ensure!(
                    e.exited_at == told.exited_at,
                    "Wait says {:?}, the event {:?}",
                    told.exited_at,
                    e.exited_at
                );
            }
            other => bail!("{pid} exited with {code}, and told is {other:?}"),
        }
        let speaker = self.speaker(who)?;
        let voices = [speaker.out.take(), speaker.err.take()];
        for voice in voices.into_iter().flatten() {
            voice.over()?;
        }
        self.status(who, 3)
    }

    /// Delete of an exec, and that nobody knows it any more.
    pub fn remove(&mut self, exec: &str, code: u32) -> Result<()> {
        let deleted = self.task().delete(&self.id, exec).context("Delete")?;
        let pid = self.speaker(exec)?.pid;
        ensure!(
            deleted.exit_status == code && deleted.pid == pid,
            "Delete says {deleted:?}"
        );
        match self.task().state(&self.id, exec) {
            Err(error) if error.is(Code::NotFound) => {}
            other => bail!("State of a deleted exec: {other:?}"),
        }
        self.speakers.remove(exec);
        Ok(())
    }

    /// Delete of the task.
    pub fn delete(&mut self) -> Result<()> {
        let deleted = self.task().delete(&self.id, "").context("Delete")?;
        let pid = self.speaker("")?.pid;
        ensure!(
            deleted.exit_status == self.exit && deleted.pid == pid,
            "Delete says {deleted:?}"
        );
        match self.event("delete")? {
            Fact::Delete(e) if e.pid == pid && e.exit_status == self.exit => Ok(()),
            other => bail!("{pid} is deleted, and told is {other:?}"),
        }
    }

    /// Shutdown. A shim that has told the reaper of the end has no successor, so where it
    /// is killed after that the end of the connection is the answer.
    pub fn shutdown(&mut self) -> Result<()> {
        match self.task().shutdown_answered(&self.id) {
            Ok(()) => {}
            Err(CallError::Closed) => self.cut_off = true,
            Err(error) => return Err(error).context("Shutdown"),
        }
        let closed = until("the connection to close", by(PATIENCE), || {
            self.task().client().closed().then_some(())
        });
        closed?;
        self.pair_gone()
    }

    fn pair_gone(&self) -> Result<()> {
        until("the pair to go", by(PATIENCE), || {
            self.shim.processes().is_empty().then_some(())
        })
    }

    /// What must hold of the events once all is over: each came, in order, and each
    /// death had at most one come again, the same: the one that was on its way.
    pub fn events(&self, deaths: u32) -> Result<()> {
        let all = self.kit.sink.all();
        let ours: Vec<&Event> = all.iter().filter(|event| self.is_ours(event)).collect();
        judge(&self.due, &ours, deaths)
    }

    /// After its end: `delete` as containerd may still run it, and nothing left.
    pub fn nothing_left(&self) -> Result<()> {
        let said = self.shim.delete()?.ok().context("delete")?;
        ensure!(
            said.exit_status == self.exit,
            "`delete` says {}, not {}",
            said.exit_status,
            self.exit
        );
        let socket = &self.shim.reply.socket;
        ensure!(!socket.exists(), "{} is left", socket.display());
        self.bundle.remove()?;
        Residue::expect_none(&self.id, by(10.0), |_| false)
    }

    /// What the shims have written to the log.
    #[must_use]
    pub fn log(&self) -> String {
        self.bundle.log_text()
    }
}

/// See [`Stage::events`].
fn judge(due: &[String], heard: &[&Event], deaths: u32) -> Result<()> {
    let mut firsts: Vec<&Event> = Vec::new();
    let mut again: Vec<String> = Vec::new();
    for event in heard {
        let short = event.short();
        match firsts.iter().find(|first| first.short() == short) {
            None => firsts.push(event),
            Some(first) => {
                let same = first.fact == event.fact
                    && first.timestamp == event.timestamp
                    && first.namespace == event.namespace;
                ensure!(same, "{short} came again as another: {first:?}, {event:?}");
                again.push(short);
            }
        }
    }
    let order: Vec<String> = firsts.iter().map(|event| event.short()).collect();
    ensure!(order == due, "events {order:?} instead of {due:?}");
    ensure!(
        again.len() <= usize::try_from(deaths)?,
        "{again:?} came again, with {deaths} deaths"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};

    use super::*;

    fn event(topic: &str, secs: i64) -> Event {
        let fact = match topic {
            "paused" => Fact::Paused(TaskPaused::default()),
            _ => Fact::Resumed(TaskResumed::default()),
        };
        let mut timestamp = vigil_lab::events::Timestamp::new();
        timestamp.seconds = secs;
        Event {
            topic: format!("/tasks/{topic}"),
            namespace: "n".to_owned(),
            timestamp: Some(timestamp),
            fact,
        }
    }

    #[test]
    fn events_that_are_wrong_are_seen() {
        let (paused, resumed) = (event("paused", 1), event("resumed", 2));
        let due = ["paused".to_owned(), "resumed".to_owned()];
        assert!(judge(&due, &[&paused, &resumed], 0).is_ok());
        assert!(judge(&due, &[&paused, &paused, &resumed], 1).is_ok());
        let later = event("paused", 3);
        for (wrong, deaths) in [
            (vec![&paused], 1),
            (vec![&resumed, &paused], 1),
            (vec![&paused, &paused, &resumed], 0),
            (vec![&paused, &paused, &paused, &resumed], 1),
            (vec![&paused, &later, &resumed], 1),
        ] {
            assert!(judge(&due, &wrong, deaths).is_err(), "{wrong:?}");
        }
    }
}

//! A container that lives as long as the soak does while one of its pair dies every
//! few seconds: what each takeover would leave behind adds up here and nowhere
//! else. Its output, its execs on a pipe and on a terminal, and three pending Waits go
//! through all of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use containerd_shim_protos::api::ExecProcessRequest;
use vigil_lab::bundle::Stdio;
use vigil_lab::fifo::FifoWriter;
use vigil_lab::kit::exec_spec;
use vigil_lab::process::mkfifo;
use vigil_lab::shim::Caller;
use vigil_lab::{Bundle, CallError, FifoReader, Residue, Shim, Spec, Task, by, until};

use crate::blows::{Gap, made_good};
use crate::plan::Victims;
use crate::standing::Standing;
use crate::story::{Story, lines_of};
use crate::strike::{self, Pair};

/// Between two blows of one.
const BETWEEN: Duration = Duration::from_millis(5_200);
/// What it exits with when it is asked to.
const CODE: u32 = 41;
/// For anything to happen on a machine that has much else to do.
const PATIENCE: f64 = 30.0;
/// Its work done, a shim gives memory back after 200 ms.
const REST: Duration = Duration::from_millis(600);

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Grown {
    /// Blows that hit.
    pub kills: u64,
    /// From each to the next answer.
    pub took: Vec<Gap>,
    /// The reaper at rest, after each takeover.
    pub reaper: Vec<Standing>,
    /// The shim, likewise.
    pub shim: Vec<Standing>,
}

impl Grown {
    /// How much more the last reading says than the first, or less.
    #[must_use]
    pub fn drift(readings: &[Standing], of: fn(&Standing) -> u64) -> i64 {
        let ends = readings.first().zip(readings.last());
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        ends.map_or(0, |(first, last)| signed(of(last)) - signed(of(first)))
    }
}

struct Exec {
    id: &'static str,
    terminal: bool,
    output: FifoReader,
    input: FifoWriter,
    said: u64,
}

/// One that lives.
struct Elder<'a> {
    caller: &'a Caller,
    story: &'a Story,
    bundle: Bundle,
    output: FifoReader,
    shim: Shim,
    pair: Pair,
    pid: u32,
    execs: Vec<Exec>,
    grown: Grown,
}

type Waits<'scope> = Vec<ScopedJoinHandle<'scope, Result<u32, CallError>>>;

/// Lives one until `stop`; `at` is the directory of its files, and it has `number`
/// among the others, so that not all are struck at once.
pub fn live(
    caller: &Caller,
    (at, base): (&Path, &Path),
    (number, victims): (u32, Victims),
    stop: &AtomicBool,
    story: &Story,
) -> Result<Grown> {
    let id = format!("s{}elder{number}e", std::process::id());
    let lived = std::thread::scope(|scope| {
        let (mut elder, waits) = Elder::begin(caller, at, base, &id, story, scope)?;
        let lived = elder.go_on(number, victims, stop);
        // Whatever went wrong, nobody shall wait for ever.
        let ended = elder.end(waits);
        let log = || elder.bundle.log_text();
        lived.and(ended).with_context(log)?;
        anyhow::Ok(elder.grown.clone())
    });
    if lived.is_err() {
        strike::all_of(&id, false, story);
    }
    lived
}

impl<'a> Elder<'a> {
    fn begin<'scope>(
        caller: &'a Caller,
        at: &Path,
        base: &Path,
        id: &str,
        story: &'a Story,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<(Self, Waits<'scope>)> {
        let script = format!(
            "trap 'exit {CODE}' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"
        );
        let spec = Spec::sh(&script);
        let bundle = Bundle::make(at, &caller.namespace, id, &spec, Stdio::Output, base)?;
        let output = FifoReader::open(Path::new(&bundle.stdio[1]))?;
        let shim = Shim::start(caller, &bundle)?;
        let pair = Pair::of(&shim.task, id)?;
        let task = shim.task.patient(PATIENCE);
        task.create(&bundle.create_request()).context("Create")?;
        let pid = task.start(id, "").context("Start")?;
        let execs = [("pipe", false), ("tty", true)]
            .into_iter()
            .map(|(exec, terminal)| Exec::begin(&task, at, id, exec, terminal))
            .collect::<Result<Vec<_>>>()?;
        let waits = ["", "pipe", "tty"].map(|exec| {
            let (task, id) = (task.patient(100_000.0), id.to_owned());
            scope.spawn(move || task.wait(&id, exec).map(|told| told.exit_status))
        });
        let elder = Self {
            caller,
            story,
            bundle,
            output,
            shim,
            pair,
            pid,
            execs,
            grown: Grown::default(),
        };
        Ok((elder, waits.into()))
    }

    fn go_on(&mut self, number: u32, victims: Victims, stop: &AtomicBool) -> Result<()> {
        let task = self.shim.task.patient(PATIENCE);
        self.hold(&task).context("before any blow")?;
        // Not all of them at one time.
        let mut next =
            Instant::now() + Duration::from_secs(6) + Duration::from_millis(1300) * number;
        while !stop.load(Ordering::SeqCst) {
            if Instant::now() < next {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            let kills = self.grown.kills;
            self.blow(&task, victims)
                .with_context(|| format!("blow {}", kills + 1))?;
            next = Instant::now().max(next + BETWEEN);
        }
        Ok(())
    }

    fn blow(&mut self, task: &Task, victims: Victims) -> Result<()> {
        // Something is on its way at that moment, every other time.
        if self.grown.kills.is_multiple_of(2) {
            for exec in &mut self.execs {
                exec.say()?;
            }
        }
        let reaper = victims.hits_the_reaper(self.grown.kills + 1);
        let struck = if reaper {
            self.pair.strike_the_reaper(self.story)
        } else {
            self.pair.strike_the_shim(self.story)
        };
        let at = struck.context("nobody to hit")?;
        let gap = made_good(&self.pair, task, &self.bundle.id, at).map_err(Error::msg)?;
        self.grown.took.push(Gap { reaper, ..gap });
        self.grown.kills += 1;
        self.hold(task)?;
        let (reaper, shim) = self.rest()?;
        if let Some(first) = self.grown.reaper.first().copied() {
            let fds = until("", by(20.0), || {
                let (reaper, shim) = self.rest().ok()?;
                let before = self.grown.shim.first()?;
                (reaper.fds == first.fds && shim.fds == before.fds).then_some((reaper, shim))
            });
            let (reaper, shim) = fds.with_context(|| {
                format!(
                    "descriptors do not come back: reaper {first}, now {reaper}; shim {:?}, now {shim}",
                    self.grown.shim.first()
                )
            })?;
            self.grown.reaper.push(reaper);
            self.grown.shim.push(shim);
            return Ok(());
        }
        self.grown.reaper.push(reaper);
        self.grown.shim.push(shim);
        Ok(())
    }

    /// Both at rest.
    fn rest(&self) -> Result<(Standing, Standing)> {
        std::thread::sleep(REST);
        let shim = self.pair.serving().context("no shim serves")?;
        Ok((Standing::of(self.pair.reaper())?, Standing::of(shim)?))
    }

    /// Everything about it is as it should be.
    fn hold(&mut self, task: &Task) -> Result<()> {
        let state = task.state(&self.bundle.id, "").context("State")?;
        ensure!(
            state.status.value() == 2 && state.pid == self.pid,
            "State says {:?} of {}, not RUNNING of {}",
            state.status,
            state.pid,
            self.pid
        );
        let before = self.output.so_far().len();
        until("more output", by(PATIENCE), || {
            (self.output.so_far().len() > before).then_some(())
        })?;
        for exec in &mut self.execs {
            exec.say()?;
            exec.heard()?;
        }
        Ok(())
    }

    fn end(&mut self, waits: Waits<'_>) -> Result<()> {
        let task = self.shim.task.patient(PATIENCE);
        let id = self.bundle.id.clone();
        task.kill(&id, "", 15, false).context("SIGTERM")?;
        for (wait, wanted) in waits.into_iter().zip([CODE, 137, 137]) {
            let told = wait
                .join()
                .ok()
                .context("a waiter panicked")?
                .context("Wait")?;
            ensure!(told == wanted, "Wait said {told}, not {wanted}");
        }
        let text = String::from_utf8_lossy(&self.output.to_end(by(PATIENCE))?.0).into_owned();
        for (at, line) in text.lines().enumerate() {
            ensure!(
                line.parse() == Ok(at),
                "line {at} of the output is {line:?}"
            );
        }
        for exec in &self.execs {
            task.delete(&id, exec.id).context("Delete of an exec")?;
        }
        let deleted = task.delete(&id, "").context("Delete")?.exit_status;
        ensure!(deleted == CODE, "Delete says {deleted}");
        task.shutdown(&id).context("Shutdown")?;
        let said = self.caller.delete(&id, &self.bundle.dir)?.ok()?.exit_status;
        ensure!(said == CODE, "`delete` says {said}");
        Residue::expect_none(&id, by(10.0), |_| false)?;
        self.bundle.remove()
    }
}

impl Exec {
    fn begin(task: &Task, at: &Path, id: &str, exec: &'static str, terminal: bool) -> Result<Self> {
        let path = |end: &str| -> Result<PathBuf> {
            let path = at.join(format!("{id}-{exec}.{end}"));
            mkfifo(&path)?;
            Ok(path)
        };
        let (stdin, stdout) = (path("in")?, path("out")?);
        let output = FifoReader::open(&stdout)?;
        let mut spec = Spec::sh("stty -echo 2>/dev/null; while read l; do echo got $l; done");
        spec.terminal = terminal;
        task.exec(&ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            terminal,
            stdin: stdin.to_string_lossy().into_owned(),
            stdout: stdout.to_string_lossy().into_owned(),
            spec: Some(exec_spec(&spec)).into(),
            ..Default::default()
        })?;
        task.start(id, exec).context("Start of an exec")?;
        let input = FifoWriter::open(&stdin, by(PATIENCE))?;
        Ok(Self {
            id: exec,
            terminal,
            output,
            input,
            said: 0,
        })
    }

    fn say(&mut self) -> Result<()> {
        self.said += 1;
        self.input.write(&format!("{}\n", self.said))
    }

    /// All that was said was given back, once and in order.
    fn heard(&self) -> Result<()> {
        let text = || String::from_utf8_lossy(&self.output.so_far()).replace('\r', "");
        let last = format!("got {}\n", self.said);
        until(
            &format!("{} to give back {}", self.id, self.said),
            by(PATIENCE),
            || text().ends_with(&last).then_some(()),
        )
        .with_context(|| format!("it gave {:?}", text()))?;
        let wanted = lines_of("got", 1..self.said + 1);
        let text = text();
        // A terminal echoes what comes before `stty`.
        let fine = if self.terminal {
            text.ends_with(&wanted)
        } else {
            text == wanted
        };
        ensure!(fine, "{} gave {text:?}", self.id);
        Ok(())
    }
}

//! One crash: the stage (daemon, bystanders, armed gate), the act, the deaths, the look.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vigil_lab::kit::repository;
use vigil_lab::place::kill_at_once;
use vigil_lab::process::{Process, alive, signal_if};
use vigil_lab::shim::Ran;
use vigil_lab::{Place, Scratch, ShimBinary, Version, by, held, until};
use vigil_sys::points::Point;

use super::ends::{self, Seen, Told};
use super::gates::{Act, Dies, Gate};
use super::journal::tear_last_record;
use super::{TooQuick, Variant};

/// The container that is hit.
const HIT: &str = "c";
/// A pair nobody needs leaves after this time.
const IDLE_MS: &str = "1000";

/// How long containerd is down when it comes back later.
const LATER: Duration = Duration::from_secs(10);

/// A process that must be alive in the end, and is ended then.
struct Bystander(Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `ctr events`, written to a file.
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// See the module. The fields end in this order.
pub struct Scene {
    gate: &'static Gate,
    variant: Variant,
    bystander: Bystander,
    listener: Listener,
    place: Place,
    /// Programs that stand before the shim and runc, and the points' directory.
    tools: Scratch,
}

impl Scene {
    /// Sets the stage, bystanders included.
    pub fn open(shim: &ShimBinary, gate: &'static Gate, variant: Variant) -> Result<Self> {
        let tools = Scratch::new()?;
        for directory in ["bin", "points"] {
            fs::create_dir(tools.path(directory))?;
        }
        let before = |name: &str, program: &str| -> Result<PathBuf> {
            let path = tools.path("bin").join(name);
            fs::copy(repository().join("tests/programs").join(program), &path)
                .with_context(|| format!("copying {program}"))?;
            Ok(path)
        };
        let path = before("containerd-shim-vigil-v2", "shim-twice")?;
        let real = fs::canonicalize(&shim.path)?;
        fs::write(path.with_extension("real"), format!("{}\n", real.display()))?;
        before("runc", "gated-runc")?;
        let points = tools.path("points");
        let points = points.to_str().context("a path that is not UTF-8")?;
        let mut env = vec![("VIGIL_POINTS", points), ("VIGIL_IDLE_MS", IDLE_MS)];
        if variant == Variant::OneAlone && gate.runc.is_some() {
            // Who takes over finds a runc that stands still, ends it and begins anew.
            env.push(("VIGIL_DEADLINE_CREATE_MS", "4000"));
        }
        let ours = ShimBinary {
            path,
            ..shim.clone()
        };
        let mut place = Place::start_with(Version::Debian, &ours, &env)?;
        if variant == Variant::StateFull {
            small_state(&mut place)?;
        }
        let others: &[&str] = if variant == Variant::OneOfThree {
            &["b", "d"]
        } else {
            &["b"]
        };
        for id in others {
            place.detached(id, &["sleep", "1000"])?;
        }
        let bystander = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()
            .context("sleep")?;
        let listener = listen(&place)?;
        Ok(Self {
            gate,
            variant,
            bystander: Bystander(bystander),
            listener,
            place,
            tools,
        })
    }

    /// The namespace.
    #[must_use]
    pub fn mark(&self) -> &str {
        self.place.containerd.namespace()
    }

    /// Everything, to the end.
    pub fn play(mut self) -> Result<()> {
        let outcome = self.crash_and_look();
        let words = fs::read_to_string(self.tools.path("bin/containerd-shim-vigil-v2.words"));
        outcome.map_err(|error| {
            if error.is::<TooQuick>() {
                return error;
            }
            anyhow::anyhow!(
                "{error:#}\nthe words of delete:\n{}{}",
                words.unwrap_or_default(),
                self.place.containerd.log_tail()
            )
        })
    }

    fn crash_and_look(&mut self) -> Result<()> {
        let others = self.others()?;
        let pairs = others.iter().flat_map(|(id, _)| self.place.shims(id));
        let held = held::all(pairs.map(|process| process.pid))?;
        let mut seen = Seen {
            heard: !self.variant.ends_containerd(),
            ..Seen::default()
        };
        self.prepare().context("before the gate")?;
        if matches!(
            self.gate.act,
            Act::Exit | Act::Remove | Act::Exec | Act::Pause | Act::Resume | Act::Kill | Act::Lose
        ) {
            seen.init = self.init();
        }
        self.arm()?;
        let client = self.act();
        self.at_the_gate()?;
        seen.init = seen.init.or_else(|| self.init());
        if self.variant == Variant::TornRecord {
            tear_last_record(&self.place.containerd.bundle(HIT).join("journal"))?;
        }
        if self.variant == Variant::StateFull {
            fill(&self.place)?;
        }
        let succeeded = self.deaths()?;
        let mut words = String::new();
        if let Some(client) = client {
            let ended = client.recv_timeout(Duration::from_secs(30));
            let ran = ended.context("the client hangs")??;
            // Whose shim had no successor may have heard that the exec ended with 4, and then
            // been refused.
            let exec_done = succeeded && self.gate.act == Act::Exec && ran.status.code() == Some(4);
            seen.client_ok = Some(exec_done || ran.status.success());
            words = format!("{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
        }
        if succeeded {
            let goes_on = self.goes_on(&seen).context("after the takeover");
            goes_on.with_context(|| format!("the client: {words}"))?;
        }
        self.calm().context("after the crash")?;
        ensure!(
            self.reached().exists(),
            "{:?} was never reached",
            self.gate.point
        );
        (seen.events, seen.deletes) = self.collect()?;
        let end = if succeeded {
            ends::as_if_nothing_had_been(&seen, self.ended_by_itself())
        } else {
            (self.gate.end)(&seen)
                .and_then(|()| ends::always(&seen, self.gate.dies == Dies::Delete))
        };
        end.with_context(|| format!("{seen:#?}"))?;
        // Nobody else was hurt.
        ensure!(
            self.others()? == others,
            "other containers: {others:?}, then {:?}",
            self.others()
        );
        ensure!(
            self.bystander.0.try_wait()?.is_none(),
            "a stranger was killed"
        );
        held::expect_back(&held).context("the pairs of the other containers")?;
        self.nothing_left().context("after the crash")?;
        self.again().context("the same id again")?;
        for id in others.iter().map(|(id, _)| id) {
            self.place
                .end(id)
                .with_context(|| format!("the end of {id}"))?;
        }
        self.listener.0.kill()?;
        if self.variant == Variant::StateFull {
            self.place.containerd.stop(15)?;
            nix::mount::umount(&self.place.containerd.scratch.path("state"))?;
        }
        self.place.containerd.expect_clean().context("in the end")
    }

    /// Ids and inits of the containers that must not notice.
    fn others(&self) -> Result<Vec<(String, i32)>> {
        let mut found = Vec::new();
        for id in ["b", "d"] {
            if self.place.containerd.task_status(id)?.as_deref() == Some("RUNNING") {
                found.push((id.to_owned(), self.place.pid(id)?));
            }
        }
        ensure!(!found.is_empty(), "no other container is running");
        Ok(found)
    }

    /// `ctr run` of a container that ends with 7 when it is let, see `end_init`.
    fn run_args(&self) -> Vec<&'static str> {
        let script = "while [ ! -e /go ]; do sleep 0.05; done; exit 7";
        let ends = matches!(self.gate.act, Act::Exit | Act::Remove | Act::Lose);
        let command = if ends {
            ["sh", "-c", script]
        } else {
            ["sh", "-c", "sleep 1000; true"]
        };
        self.place.run_args(&["-d", "--null-io"], HIT, &command)
    }

    fn prepare(&self) -> Result<()> {
        if self.gate.act == Act::Run {
            return Ok(());
        }
        self.place.containerd.ctr(&self.run_args())?;
        match self.gate.act {
            Act::Remove | Act::Lose => {
                let pid = self.place.pid(HIT)?;
                until("init to end", by(10.0), || {
                    self.end_init(pid);
                    (!alive(pid)).then_some(())
                })?;
                self.place.expect_status(HIT, "STOPPED")
            }
            Act::Resume => self
                .place
                .containerd
                .ctr(&["tasks", "pause", HIT])
                .map(drop),
            Act::Run | Act::Exit | Act::Exec | Act::Pause | Act::Kill => Ok(()),
        }
    }

    /// Init's number, from the file runc writes.
    fn init(&self) -> Option<u32> {
        let file = self.place.containerd.bundle(HIT).join("init.pid");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Lets init's script end.
    fn end_init(&self, pid: i32) {
        if Process::read(pid).is_some_and(|now| now.cgroup.contains(self.mark())) {
            let _ = fs::write(format!("/proc/{pid}/root/go"), "");
        }
    }

    fn arm(&self) -> Result<()> {
        let action = if self.gate.act == Act::Lose {
            "kill"
        } else {
            // A tester who is slow finds them as they were.
            "stop-pair"
        };
        fs::write(
            self.tools.path("points").join(self.gate.point.code()),
            action,
        )?;
        if let Some(instant) = self.gate.runc {
            let gate = self.tools.path("bin/runc.gate");
            fs::write(gate, format!("{instant} {HIT}\n"))?;
        }
        Ok(())
    }

    /// Does it; a client that waits for an answer runs on beside us.
    fn act(&self) -> Option<mpsc::Receiver<Result<Ran>>> {
        let args: Vec<&str> = match self.gate.act {
            Act::Run => self.run_args(),
            Act::Remove => vec!["tasks", "rm", HIT],
            Act::Exec => vec!["tasks", "exec", "--exec-id", "e", HIT, "sh", "-c", "exit 4"],
            Act::Pause => vec!["tasks", "pause", HIT],
            Act::Resume => vec!["tasks", "resume", HIT],
            Act::Kill => vec!["tasks", "kill", "-s", "SIGKILL", HIT],
            Act::Exit | Act::Lose => return None,
        };
        let mut command = self.place.containerd.ctr_command(&args);
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let ran = vigil_lab::shim::run(&mut command, &[], false, by(30.0));
            let _ = sender.send(ran);
        });
        Some(ended)
    }

    /// Waits until who is to stop there has stopped.
    fn at_the_gate(&self) -> Result<()> {
        if self.gate.act == Act::Lose {
            return Ok(());
        }
        let pid = match self.gate.act {
            Act::Exit => Some(self.place.pid(HIT)?),
            _ => None,
        };
        let reached = self.reached();
        until(
            &format!("{:?} to be reached", self.gate.point),
            by(15.0),
            || {
                if let Some(pid) = pid.filter(|_| !reached.exists()) {
                    self.end_init(pid);
                }
                Process::read(self.who_reached()?)
                    .filter(|p| p.state == 'T')
                    .map(drop)
            },
        )?;
        if self.gate.runc.is_some() {
            let reached = self.tools.path("bin/runc.reached");
            let said = until("runc to stop", by(15.0), || {
                fs::read_to_string(&reached)
                    .ok()
                    .filter(|t| t.ends_with('\n'))
            })?;
            ensure!(said.trim() != "missed", TooQuick);
        }
        Ok(())
    }

    /// There once the gate was reached.
    fn reached(&self) -> PathBuf {
        let point = self.tools.path("points").join(self.gate.point.code());
        point.with_extension("reached")
    }

    /// Who came to the point.
    fn who_reached(&self) -> Option<i32> {
        fs::read_to_string(self.reached()).ok()?.parse().ok()
    }

    /// Whether one of the two died alone, and so the other goes on, or its successor.
    fn deaths(&mut self) -> Result<bool> {
        // Before anyone dies: nothing that is stopped may lose its parent and be let run.
        if self.variant.ends_containerd() {
            self.place.containerd.freeze()?;
        }
        let mut doomed = self.place.shims(HIT);
        match self.gate.dies {
            Dies::StartToo => {}
            Dies::StartAlone => doomed.retain(is_start),
            Dies::Pair | Dies::Delete => doomed.retain(|p| !is_start(p)),
        }
        let at_it = self.who_reached();
        let mut stopped = doomed.clone();
        stopped.retain(|p| Some(p.pid) == at_it && p.state == 'T');
        match self.variant {
            Variant::OneAlone => doomed.retain(|p| Some(p.pid) == at_it && p.state == 'T'),
            Variant::ReaperAlone => doomed.retain(|p| !p.cmdline.ends_with(" serve")),
            _ => {}
        }
        let alone = matches!(self.variant, Variant::OneAlone | Variant::ReaperAlone);
        // While runc came to its own gate, the reaper may have found the shim stopped, and
        // killed it for that: it is dead at its gate, as it was to be.
        let ended = self.variant == Variant::OneAlone && self.gate.runc.is_some();
        ensure!(ended || !doomed.is_empty(), "nobody to kill");
        // One that is not ready yet fails its `start`.
        let succeeded = alone && self.gate.point != Point::PairNotReady;
        kill_at_once(&doomed)?;
        if self.variant == Variant::OneAlone {
            // Its reaper stopped with it.
            for other in self.place.shims(HIT) {
                signal_if(other.pid, 18, |p| p.cmdline == other.cmdline);
            }
        }
        if self.variant == Variant::ReaperAlone {
            ensure!(
                doomed.len() == 1 && stopped.len() == 1,
                "{doomed:?}, {stopped:?}"
            );
            // The kernel may have let it go on: nobody of its session is left above it.
            let shim = &stopped[0];
            signal_if(shim.pid, 18, |p| p.cmdline == shim.cmdline);
            // On a slow machine the reaper may have found it stuck, and ended it, before.
            let others = self.place.shims(HIT);
            let another = |p: &Process| p.pid != shim.pid && p.cmdline.ends_with(" serve");
            ensure!(!others.iter().any(another), TooQuick);
        }
        if self.variant.ends_containerd() {
            self.place.containerd.stop(9)?;
            if self.variant == Variant::ContainerdLater {
                std::thread::sleep(LATER);
            }
            self.place.containerd.launch()?;
        }
        Ok(succeeded)
    }

    /// Whether the container ends with 7 and is not killed.
    fn ended_by_itself(&self) -> bool {
        matches!(self.gate.act, Act::Exit | Act::Remove | Act::Lose)
    }

    /// The client got what it asked for, and the container is as it asked; then it is
    /// ended and removed as any other.
    fn goes_on(&self, seen: &Seen) -> Result<()> {
        ensure!(seen.client_ok != Some(false), "the client was refused");
        let status = match self.gate.act {
            Act::Remove => return Ok(()),
            Act::Exit | Act::Kill | Act::Lose => {
                self.place.expect_status(HIT, "STOPPED")?;
                return self.place.remove(HIT);
            }
            Act::Pause => "PAUSED",
            Act::Run | Act::Exec | Act::Resume => "RUNNING",
        };
        self.place.expect_status(HIT, status)?;
        if self.gate.act == Act::Pause {
            self.place.containerd.ctr(&["tasks", "resume", HIT])?;
        }
        self.place.end(HIT)
    }

    /// Waits until nothing works on `c` any more.
    fn calm(&self) -> Result<()> {
        until("containerd to forget the task", by(15.0), || {
            let status = self.place.containerd.task_status(HIT).ok()?;
            status.is_none().then_some(())
        })?;
        until("the runtime to be done", by(15.0), || {
            self.place.shims(HIT).is_empty().then_some(())
        })
        .with_context(|| format!("{:?}", self.place.shims(HIT)))
    }

    /// What was told and answered.
    fn collect(&self) -> Result<(Vec<Told>, Vec<Vec<ends::Run>>)> {
        if !self.variant.ends_containerd() && self.gate.tells_an_end() {
            let deleted = format!("/tasks/delete {{\"container_id\":\"{HIT}\"");
            // Whether it must is the row's affair.
            let _ = until("", by(5.0), || {
                self.heard().contains(&deleted).then_some(())
            });
        }
        // An event of our own making comes after all that came before.
        if !self.variant.ends_containerd() {
            let (namespace, value) = (self.mark().to_owned(), "done=yes");
            self.place
                .containerd
                .ctr(&["namespaces", "label", &namespace, value])?;
            until("the last event", by(10.0), || {
                self.heard().contains("\"done\":\"yes\"").then_some(())
            })?;
        }
        let mut events = Vec::new();
        for line in self.heard().lines() {
            let Some((head, content)) = line.split_once(" {") else {
                continue;
            };
            let topic = head.split(' ').find(|word| word.starts_with("/tasks/"));
            let content: serde_json::Value = serde_json::from_str(&format!("{{{content}"))?;
            if let Some(topic) = topic
                && content["container_id"] == HIT
            {
                let topic = topic.to_owned();
                events.push(Told { topic, content });
            }
        }
        let log = self.tools.path("bin/containerd-shim-vigil-v2.deletes");
        let deletes = fs::read_to_string(log).unwrap_or_default();
        let begun = fs::read_to_string(self.tools.path("bin/containerd-shim-vigil-v2.begun"));
        let begun = begun.unwrap_or_default().lines().count();
        ensure!(
            begun == deletes.lines().count(),
            "containerd called delete {begun} times; in time were: {deletes}"
        );
        let ours = deletes
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("{HIT} ")));
        Ok((events, ours.map(ends::runs).collect::<Result<_>>()?))
    }

    fn heard(&self) -> String {
        fs::read_to_string(self.place.containerd.scratch.path("events")).unwrap_or_default()
    }

    /// Nothing of `c`, though the others live.
    fn nothing_left(&self) -> Result<()> {
        let mark = self.mark();
        let bundle = self.place.containerd.bundle(HIT);
        let socket = self.place.containerd.shim_socket(HIT);
        // A cgroup, a state of runc and a bundle all end so.
        let (own, below) = (format!("/{mark}/{HIT}"), format!("/{mark}/{HIT}/"));
        let named = format!("-id {HIT} ");
        let is_ours = |line: &str| {
            line.ends_with(&own)
                || line.contains(&below)
                || line.contains(mark) && line.contains(&named)
                || line.contains(socket.to_str().unwrap_or("?"))
        };
        let mut left = Vec::new();
        let clean = until("", by(6.0), || {
            let all = vigil_lab::Residue::everything();
            left = all
                .lines()
                .filter(|l| is_ours(l))
                .map(str::to_owned)
                .collect();
            if self.gate.dies == Dies::StartToo && self.variant == Variant::Plain {
                left.retain(|line| !line.starts_with("file /run/containerd/s/"));
            }
            if fs::symlink_metadata(&bundle).is_ok() {
                left.push(format!("bundle {}", bundle.display()));
            }
            left.is_empty().then_some(())
        });
        clean.map_err(|_| anyhow::anyhow!("left behind:\n    {}", left.join("\n    ")))
    }

    /// The id can be used at once.
    fn again(&self) -> Result<()> {
        if self.variant == Variant::StateFull {
            fs::remove_file(self.place.containerd.scratch.path("state/filling"))?;
        }
        // `ctr run` that failed may or may not have made the container.
        let _ = self.place.containerd.try_ctr(&["containers", "rm", HIT])?;
        self.place.containerd.ctr(&self.run_args())?;
        self.place.expect_status(HIT, "RUNNING")?;
        self.place.end(HIT)
    }
}

/// The reaper is forked from `start` and keeps its arguments, but leads a session.
fn is_start(process: &Process) -> bool {
    let leads = process.field("NSsid") == Some(process.pid.to_string());
    process.cmdline.ends_with(" start") && !leads
}

fn listen(place: &Place) -> Result<Listener> {
    let path = place.containerd.scratch.path("events");
    let mut command = place.containerd.ctr_command(&["events"]);
    command
        .stdin(Stdio::null())
        .stdout(fs::File::create(&path)?)
        .stderr(Stdio::null());
    let listener = Listener(command.spawn().context("ctr events")?);
    // An event of our own making shows that it listens.
    until("ctr events to listen", by(10.0), || {
        let namespace = place.containerd.namespace();
        let _ = place
            .containerd
            .ctr(&["namespaces", "label", namespace, "x=y"]);
        let heard = fs::read_to_string(&path).unwrap_or_default();
        heard.contains("/namespaces/update").then_some(())
    })?;
    Ok(listener)
}

/// Puts containerd's state directory, still without tasks, on a small file system.
fn small_state(place: &mut Place) -> Result<()> {
    place.containerd.stop(15)?;
    let state = place.containerd.scratch.path("state");
    fs::create_dir_all(&state)?;
    nix::mount::mount(
        Some("lab"),
        &state,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=4m,mode=711"),
    )
    .context("a small tmpfs")?;
    place.containerd.launch()
}

/// Takes what is left of it.
fn fill(place: &Place) -> Result<()> {
    use std::io::Write;
    let mut filling = fs::File::create(place.containerd.scratch.path("state/filling"))?;
    let piece = [0_u8; 4096];
    loop {
        match filling.write(&piece) {
            Ok(1..) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => return Ok(()),
            Ok(0) | Err(_) => anyhow::bail!("the state directory does not fill up"),
        }
    }
}

//! Every verb under every scarcity, in shim and reaper separately. A row is a scarcity, whom it
//! hits, and a verb; a failure names its row.
//!
//! The promise of each: a shortage is nobody's end. The container lives and State tells the
//! truth, or the verb is refused in words that name the limit; when the shortage is over the
//! same verb works. No status is lost, and nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::{Cell, RefCell};
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vigil_hostile::scarcity::{Group, allow_files, exhaust_files, open_files, without, wrapped};
use vigil_hostile::{Pair, Trace, succeeded, trial};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::alive;
use vigil_lab::shim::Shim;
use vigil_lab::{Bundle, CallError, Kit, Spec, Task, by, until};

const RUNNING: i32 = 2;
const CONT: u32 = 18;
const PAUSED: i32 = 4;

/// Which of a pair is short of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Shim,
    Reaper,
    Both,
}

/// Of what.
#[derive(Debug)]
enum What {
    /// Open files: all that are left are `more`.
    Files { more: usize },
    /// Processes, by a pids cgroup.
    Tasks { group: Group, more: u64 },
    /// Memory, by a memory cgroup; more bytes than are used.
    Memory { group: Group, more: u64 },
}

/// One scarcity.
#[derive(Debug)]
struct Scarce {
    name: String,
    whose: Whose,
    what: What,
    /// The limit of open files to be given back.
    hard: u64,
}

/// What a refusal names, by scarcity.
const NAMED: [&str; 3] = ["open files", "processes", "memory"];

impl Scarce {
    fn files(whose: Whose, more: usize) -> Result<Self> {
        let (_, hard) = open_files(i32::try_from(std::process::id())?)?;
        let name = format!("{more} more open files, {whose:?}");
        Ok(Self {
            name,
            whose,
            what: What::Files { more },
            hard,
        })
    }

    /// `None` where the host has no such controller.
    fn of_group(
        kit: &Kit,
        controller: &'static str,
        whose: Whose,
        more: u64,
    ) -> Result<Option<Self>> {
        let Some(group) = Group::of(controller, kit.scratch.mark())? else {
            println!("this host has no {controller} controller");
            return Ok(None);
        };
        let name = format!("{more} more {controller}, {whose:?}");
        let what = match controller {
            "pids" => What::Tasks { group, more },
            _ => What::Memory { group, more },
        };
        Ok(Some(Self {
            name,
            whose,
            what,
            hard: 0,
        }))
    }

    fn hit(&self, pair: &Pair) -> Vec<i32> {
        match self.whose {
            Whose::Shim => vec![pair.shim],
            Whose::Reaper => vec![pair.reaper],
            Whose::Both => vec![pair.reaper, pair.shim],
        }
    }

    fn begin(&self, pair: &Pair) -> Result<()> {
        for pid in self.hit(pair) {
            match &self.what {
                What::Files { more } => exhaust_files(pid, *more)?,
                What::Tasks { group, .. } | What::Memory { group, .. } => group.take(pid)?,
            }
        }
        match &self.what {
            What::Tasks { group, more } | What::Memory { group, more } => group.exhaust(*more),
            What::Files { .. } => Ok(()),
        }
    }

    fn end(&self, pair: &Pair) -> Result<()> {
        match &self.what {
            What::Files { .. } => {
                // One that was followed by another has no limit to be given back.
                for pid in self.hit(pair).into_iter().filter(|pid| alive(*pid)) {
                    allow_files(pid, self.hard)?;
                }
                Ok(())
            }
            What::Tasks { group, .. } | What::Memory { group, .. } => group.relax(),
        }
    }

    /// Whether what was refused was refused for a reason that names the limit.
    fn names(&self, error: &CallError) -> bool {
        let CallError::Status { code, message } = error else {
            return false;
        };
        match &self.what {
            // The runtime in there has its own words for it.
            What::Tasks { more, .. } | What::Memory { more, .. } if *more > 0 && *code == 2 => true,
            // Nobody serves: the shim was killed for its memory.
            What::Memory { .. } if *code == 14 => true,
            _ => *code == 8 && NAMED.iter().any(|limit| message.contains(limit)),
        }
    }
}

/// A running container whose verbs are tried.
struct Life<'k> {
    kit: &'k Kit,
    c: Container,
    pair: RefCell<Pair>,
    execs: Cell<u32>,
    said: RefCell<Vec<String>>,
}

impl<'k> Life<'k> {
    fn of(kit: &'k Kit, c: Container) -> Result<Self> {
        let pair = RefCell::new(Pair::of(&c.shim)?);
        Ok(Self {
            kit,
            c,
            pair,
            execs: Cell::new(0),
            said: RefCell::default(),
        })
    }

    fn pair(&self) -> Pair {
        self.pair.borrow().clone()
    }

    fn task(&self) -> Task {
        self.c.task().patient(30.0)
    }

    fn fresh(&self) -> String {
        self.execs.set(self.execs.get() + 1);
        format!("x{}", self.execs.get())
    }

    /// A started exec.
    fn with(&self, spec: &Spec) -> Result<String> {
        let exec = self.fresh();
        let _streams = self.kit.exec(&self.c, &exec, spec)?;
        self.task().start(&self.c.id, &exec)?;
        Ok(exec)
    }

    fn state(&self) -> Result<i32> {
        let state = self.task().state(&self.c.id, "").context("State")?;
        Ok(state.status.value())
    }

    /// The container lives, and State says what is true.
    fn lives(&self, scarce: &Scarce, status: i32) -> Result<()> {
        let init = i32::try_from(self.c.pid)?;
        ensure!(alive(init), "init is dead");
        match self.task().state(&self.c.id, "") {
            Ok(state) => ensure!(state.status.value() == status, "State says {state:?}"),
            // A shim that has no memory to begin with serves nobody.
            Err(error) => ensure!(
                matches!(scarce.what, What::Memory { .. }) && scarce.names(&error),
                "State: {error}"
            ),
        }
        ensure!(alive(init), "init is dead");
        Ok(())
    }

    /// One row: the verb under the scarcity and, if it was refused then, again after it.
    /// `expect`: what State says once it was done (0: nobody asks); refused, nothing has changed.
    fn row(
        &self,
        scarce: &Scarce,
        verb: &str,
        expect: i32,
        act: impl Fn() -> Result<(), CallError>,
    ) -> Result<()> {
        let row = || format!("{} × {verb}", scarce.name);
        // Spare descriptors have been used and are held again: below the limit, as are all
        // descriptors of who comes to a limit that was there before.
        let _ = self.task().kill(&self.c.id, "", CONT, false);
        let before = self
            .task()
            .state(&self.c.id, "")
            .map(|state| state.status.value());
        self.pair.replace(Pair::of(&self.c.shim)?);
        let pair = self.pair();
        scarce.begin(&pair).with_context(row)?;
        let answer = act();
        let lived = match (&answer, before) {
            _ if expect == 0 => Ok(()),
            (Err(_), Ok(before)) => self.lives(scarce, before),
            _ => self.lives(scarce, expect),
        };
        scarce.end(&pair).with_context(row)?;
        lived.with_context(|| format!("{}, answered {answer:?}", row()))?;
        let said = match &answer {
            Ok(()) => "works".to_owned(),
            Err(error) => error.to_string(),
        };
        self.said.borrow_mut().push(format!("{}: {said}", row()));
        if let Err(error) = &answer {
            ensure!(scarce.names(error), "{}: {error}", row());
            act().with_context(|| format!("{}, after it", row()))?;
            ensure!(
                expect == 0 || self.state()? == expect,
                "{}, after it",
                row()
            );
        }
        Ok(())
    }

    /// Such a row that must not be refused: what ends a container, and what only reads of it.
    fn must(
        &self,
        scarce: &Scarce,
        verb: &str,
        expect: i32,
        act: impl Fn() -> Result<(), CallError>,
    ) -> Result<()> {
        self.row(scarce, verb, expect, act)?;
        let said = self.said.borrow();
        let last = said.last().context("no row")?;
        let served = !matches!(scarce.what, What::Memory { .. });
        ensure!(
            !served || last.ends_with(": works"),
            "it was refused: {last}"
        );
        Ok(())
    }
}

/// Every verb of a running container that does not end it.
fn verbs(life: &Life<'_>, scarce: &Scarce) -> Result<()> {
    let (task, id) = (life.task(), life.c.id.as_str());
    let terminal = life.with(&Spec::sh("sleep 1000").on_terminal())?;
    let reads = life.with(&Spec::sh("cat; exit 4"))?;
    let sleeps = life.with(&Spec::sleeper())?;
    let ended = life.with(&Spec::sh("exit 5"))?;
    ensure!(task.wait(id, &ended)?.exit_status == 5);
    life.must(scarce, "State", RUNNING, || task.state(id, "").map(drop))?;
    life.must(scarce, "State of an exec", RUNNING, || {
        task.state(id, &sleeps).map(drop)
    })?;
    life.must(scarce, "Connect", RUNNING, || {
        task.connect_task(id).map(drop)
    })?;
    life.row(scarce, "Pids", RUNNING, || task.pids(id).map(drop))?;
    life.row(scarce, "Stats", RUNNING, || task.stats(id).map(drop))?;
    life.must(scarce, "ResizePty", RUNNING, || {
        task.resize(id, &terminal, 80, 24)
    })?;
    life.must(scarce, "CloseIO", RUNNING, || task.close_io(id, &reads))?;
    ensure!(task.wait(id, &reads)?.exit_status == 4, "after CloseIO");
    let limit = json!({"pids": {"limit": 500}});
    life.row(scarce, "Update", RUNNING, || task.update(id, &limit))?;
    life.row(scarce, "Pause", PAUSED, || task.pause(id))?;
    life.row(scarce, "Resume", RUNNING, || task.resume(id))?;
    life.row(scarce, "Exec and its Start", RUNNING, || {
        let exec = life.fresh();
        let added = life.kit.exec(&life.c, &exec, &Spec::sh("exit 6"));
        if let Err(error) = added {
            return Err(error
                .downcast::<CallError>()
                .unwrap_or_else(|e| CallError::Encoding(format!("{e:#}"))));
        }
        let started = task.start(id, &exec);
        if started.is_ok() {
            let ended = task.wait(id, &exec)?;
            if ended.exit_status != 6 {
                return Err(CallError::Encoding(format!(
                    "the exec ended with {ended:?}"
                )));
            }
        }
        task.delete(id, &exec)?;
        started.map(drop)
    })?;
    life.must(scarce, "Delete of an exec", RUNNING, || {
        task.delete(id, &ended).map(drop)
    })?;
    life.must(scarce, "Kill of an exec", RUNNING, || {
        task.kill(id, &sleeps, 9, false)
    })?;
    ensure!(task.wait(id, &sleeps)?.exit_status == 137, "after Kill");
    life.must(scarce, "Wait", RUNNING, || task.wait(id, &sleeps).map(drop))?;
    Ok(())
}

/// Kill, Wait, Delete, Shutdown and the binary's `delete`.
fn ending(life: &Life<'_>, scarce: &Scarce) -> Result<()> {
    let (task, id) = (life.task(), life.c.id.as_str());
    life.must(scarce, "Kill", 0, || task.kill(id, "", 9, true))?;
    ensure!(task.wait(id, "")?.exit_status == 137, "after Kill");
    life.must(scarce, "Wait for init", 0, || task.wait(id, "").map(drop))?;
    let lost = Cell::new(None);
    life.row(scarce, "Delete", 0, || {
        let deleted = task.delete(id, "")?;
        lost.set(Some(deleted.exit_status));
        Ok(())
    })?;
    ensure!(lost.get() == Some(137), "Delete says {:?}", lost.get());
    let pair = Pair::of(&life.c.shim)?;
    scarce.begin(&pair)?;
    let down = task.shutdown(id);
    let left = until("the pair to leave", by(20.0), || {
        life.c.shim.processes().is_empty().then_some(())
    });
    scarce.end(&pair)?;
    down.with_context(|| format!("{} × Shutdown", scarce.name))?;
    left.with_context(|| format!("{} × Shutdown", scarce.name))?;
    Ok(())
}

/// Create and Start.
fn beginning<'k>(kit: &'k Kit, scarce: &Scarce) -> Result<Life<'k>> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut life = Life::of(kit, c)?;
    if let (What::Memory { group, .. }, Whose::Both) = (&scarce.what, scarce.whose) {
        // What a process has is counted where it was made: another shim is made in there.
        group.take(life.pair().reaper)?;
        succeeded(&life.c.shim, &life.pair())?;
    }
    let (task, id) = (life.task(), life.c.id.clone());
    let pid = Cell::new(0);
    life.row(scarce, "Create", 0, || {
        pid.set(task.create(&life.c.bundle.create_request())?.pid);
        Ok(())
    })?;
    life.c.pid = pid.get();
    life.row(scarce, "Start", RUNNING, || task.start(&id, "").map(drop))?;
    Ok(life)
}

/// The shim is killed in the middle of it; whoever comes next serves when it can.
fn takeover(life: &Life<'_>, scarce: &Scarce) -> Result<()> {
    let pair = Pair::of(&life.c.shim)?;
    scarce.begin(&pair)?;
    pair.signal(pair.shim, 9)?;
    let init = i32::try_from(life.c.pid)?;
    until("the shim to die", by(20.0), || {
        (!alive(pair.shim)).then_some(())
    })?;
    let late = life.c.task().patient(2.0).state(&life.c.id, "");
    ensure!(
        !matches!(late, Err(CallError::Closed)),
        "{}: hung up on",
        scarce.name
    );
    ensure!(
        alive(init) && alive(pair.reaper),
        "{}: who died?",
        scarce.name
    );
    scarce.end(&pair)?;
    let state = life.state();
    let state = state.with_context(|| format!("{} × takeover", scarce.name))?;
    ensure!(state == RUNNING, "{} × takeover: {state}", scarce.name);
    Ok(())
}

/// All of it for one scarcity.
fn whole(kit: &Kit, scarce: &Scarce) -> Result<()> {
    let life = beginning(kit, scarce)?;
    let done = verbs(&life, scarce)
        .and_then(|()| takeover(&life, scarce))
        .and_then(|()| ending(&life, scarce));
    for line in life.said.borrow().iter() {
        println!("{line}");
    }
    done.inspect_err(|_| println!("{}", life.c.bundle.log_text()))
}

#[test]
fn every_verb_of_a_shim_without_descriptors() {
    trial(120, |kit| whole(kit, &Scarce::files(Whose::Shim, 0)?));
}

#[test]
fn every_verb_of_a_shim_with_a_few_descriptors() {
    trial(240, |kit| {
        for more in [1, 3, 6, 10] {
            whole(kit, &Scarce::files(Whose::Shim, more)?)?;
        }
        Ok(())
    });
}

#[test]
fn every_verb_of_a_reaper_without_descriptors() {
    trial(120, |kit| whole(kit, &Scarce::files(Whose::Reaper, 0)?));
}

#[test]
fn every_verb_of_a_reaper_with_a_few_descriptors() {
    trial(240, |kit| {
        for more in [1, 4] {
            whole(kit, &Scarce::files(Whose::Reaper, more)?)?;
        }
        Ok(())
    });
}

fn in_groups(kit: &Kit, controller: &'static str, whose: Whose, more: &[u64]) -> Result<()> {
    let mut refused = 0;
    for more in more {
        let Some(scarce) = Scarce::of_group(kit, controller, whose, *more)? else {
            return Ok(());
        };
        whole(kit, &scarce)?;
        if let What::Tasks { group, .. } | What::Memory { group, .. } = &scarce.what {
            let times = group.refusals()?;
            println!(
                "{}: the kernel refused or killed {times} times",
                scarce.name
            );
            refused += times;
        }
    }
    ensure!(refused > 0, "there was no shortage of {controller}");
    Ok(())
}

#[test]
fn every_verb_of_a_shim_without_processes() {
    trial(240, |kit| in_groups(kit, "pids", Whose::Shim, &[0]));
}

#[test]
fn every_verb_of_a_shim_with_a_few_processes() {
    trial(240, |kit| in_groups(kit, "pids", Whose::Shim, &[1, 3, 6]));
}

#[test]
fn every_verb_of_a_reaper_without_processes() {
    trial(240, |kit| in_groups(kit, "pids", Whose::Reaper, &[0]));
}

#[test]
fn every_verb_of_a_pair_without_processes() {
    trial(240, |kit| in_groups(kit, "pids", Whose::Both, &[0, 2]));
}

/// The shim is killed for its memory, or what it starts, and others come; the reaper, which is
/// smaller, is not. Its container is in a cgroup of its own and hears nothing of it.
#[test]
fn every_verb_of_a_shim_in_a_cgroup_without_memory() {
    trial(240, |kit| {
        in_groups(kit, "memory", Whose::Shim, &[0, 512 << 10, 6 << 20])
    });
}

/// What containerd's slice is: both of the pair are in it.
#[test]
fn every_verb_of_a_pair_in_a_cgroup_without_memory() {
    trial(240, |kit| {
        in_groups(kit, "memory", Whose::Both, &[2 << 20, 5 << 19])
    });
}

/// `start` at each small limit of open files, soft and hard: it says what it lacks and leaves
/// nothing, or the pair it made lives a whole life, its shim's death included. With 22 there
/// once was a pair that could start no shim.
#[test]
fn start_with_hardly_any_descriptors() {
    trial(240, |kit| {
        let own = kit.caller.binary.clone();
        let (mut failed, mut worked) = (0, 0);
        for limit in (4..12).chain([16, 18, 20, 22, 24, 28, 32, 48, 63, 64, 80]) {
            let line = format!("ulimit -n {limit}");
            let row = || format!("start with {limit} open files");
            kit.caller.binary = wrapped(kit.scratch.dir(), "limited", &line, &own)?;
            let bundle = kit.bundle(&Spec::sh("exit 3"), Stdio::Output)?;
            let before = Trace::of(kit.scratch.mark(), &bundle.dir);
            let ran = kit.caller.run_start(&bundle.id, &bundle.dir);
            kit.caller.binary.clone_from(&own);
            let ran = ran.with_context(row)?;
            if ran.status.success() {
                let shim = kit.adopt(Shim::connect(&kit.caller, &bundle, ran)?)?;
                kit.read_all(&bundle)?;
                let whole = lifetime(&shim, &bundle);
                whole.with_context(|| format!("{}; {}", row(), bundle.log_text()))?;
                worked += 1;
            } else {
                let text = String::from_utf8_lossy(&ran.stdout).into_owned();
                ensure!(text.contains("open files"), "{}: {text:?}", row());
                before.expect_back().with_context(row)?;
                failed += 1;
            }
        }
        ensure!(failed > 0 && worked > 0, "{failed} failed, {worked} worked");
        Ok(())
    });
}

/// Create to Delete, by two shims.
fn lifetime(shim: &Shim, bundle: &Bundle) -> Result<()> {
    let task = shim.task.patient(30.0);
    task.create(&bundle.create_request()).context("Create")?;
    let pair = Pair::of(shim)?;
    succeeded(shim, &pair)?;
    task.start(&shim.id, "").context("Start")?;
    let ended = task.wait(&shim.id, "").context("Wait")?;
    ensure!(ended.exit_status == 3, "{ended:?}");
    let deleted = task.delete(&shim.id, "").context("Delete")?;
    ensure!(deleted.exit_status == 3, "{deleted:?}");
    Ok(())
}

/// The binary's `delete` at each small limit of open files, and in a cgroup that has room for
/// few processes: it fails and says why, or it does its work; the next one finishes, and the
/// status is the true one.
fn delete_with(kit: &mut Kit, line: &str) -> Result<bool> {
    let own = kit.caller.binary.clone();
    let c = kit.running(&Spec::sh("exit 7"))?;
    ensure!(c.exit_status()? == 7);
    c.shim.kill_all()?;
    let mut caller = kit.caller.clone();
    caller.binary = wrapped(kit.scratch.dir(), "limited", line, &own)?;
    let ran = caller.delete(&c.id, &c.bundle.dir)?;
    let told = ran.ran.status.success();
    if told {
        let said = ran.ok()?;
        ensure!(said.exit_status == 7, "{said:?}");
    } else {
        let text = String::from_utf8_lossy(&ran.ran.stderr).into_owned();
        ensure!(
            !text.is_empty() && ran.ran.status.code() == Some(1),
            "{ran:?}"
        );
    }
    let said = kit.caller.delete(&c.id, &c.bundle.dir)?.ok()?;
    ensure!(said.exit_status == 7, "the second says {said:?}");
    Ok(told)
}

#[test]
fn delete_with_hardly_any_descriptors() {
    trial(240, |kit| {
        let mut told = 0;
        let limits = [4, 5, 6, 8, 10, 12, 16, 20, 32, 64];
        for limit in limits {
            let line = format!("ulimit -n {limit}");
            let done = delete_with(kit, &line).with_context(|| format!("delete with {limit}"))?;
            told += u32::from(done);
        }
        ensure!(told > 0 && told < 10, "{told} of {} told", limits.len());
        Ok(())
    });
}

#[test]
fn delete_with_hardly_any_processes() {
    trial(240, |kit| {
        for more in [1, 2, 4, 8] {
            let Some(group) = Group::of("pids", kit.scratch.mark())? else {
                return Ok(());
            };
            group.allow(more)?;
            let row = || format!("delete with {more} processes");
            delete_with(kit, &group.join_line()).with_context(row)?;
            group.relax()?;
        }
        Ok(())
    });
}

/// A shim that takes over may open fewer files than there are streams to take over. It served with
/// none of them: nobody copied what the container said, and no later shim was asked to. Now another
/// tries, until it is killed from outside.
#[test]
fn a_shim_that_cannot_have_all_streams_does_not_serve_without() {
    trial(120, |kit| {
        let c = kit.running(&Spec::sh("while :; do echo tick; sleep 0.1; done"))?;
        let pair = Pair::of(&c.shim)?;
        let used = fs::read_dir(format!("/proc/{}/fd", pair.shim))?.count();
        let mut streams = Vec::new();
        for n in 0..16 {
            let exec = format!("x{n}");
            streams.push(kit.exec(&c, &exec, &Spec::sleeper())?);
            c.task().start(&c.id, &exec)?;
        }
        // Enough to come up, and too few for the streams of sixteen. The soft limit alone each
        // shim would raise.
        let limit = format!("--nofile={0}:{0}", used + 12);
        let set = std::process::Command::new("prlimit")
            .args([format!("--pid={}", pair.reaper), limit])
            .status()?;
        ensure!(set.success(), "prlimit of the reaper");
        pair.signal(pair.shim, 9)?;
        let says = "descriptors that the reaper holds";
        let mut said = String::new();
        until("two shims to try it", by(20.0), || {
            said.push_str(&c.bundle.log_text());
            (said.matches(says).count() > 1).then_some(())
        })?;
        let state = c.task().patient(2.0).state(&c.id, "");
        ensure!(state.is_err(), "it serves: {state:?}");
        ensure!(alive(i32::try_from(c.pid)?), "the container was ended");
        c.shim.kill_all()?;
        ensure!(c.shim.delete()?.ok()?.exit_status == 137);
        Ok(())
    });
}

/// All inotify instances or watches of the user are taken, or the kernel has none of the older
/// kind: a life goes on as ever, output that waited for a reader is delivered, a dead pair is
/// cleared away, and a removed bundle is seen.
#[test]
fn a_life_without_watches() {
    trial(240, |kit| {
        let own = kit.caller.binary.clone();
        let without = without(kit.scratch.dir())?;
        for missing in ["inotify", "watches", "inotify dnotify"] {
            let program = format!("{} {missing} --", without.display());
            let path = kit.scratch.path("containerd-shim-unwatched");
            fs::write(
                &path,
                format!("#!/bin/sh\nexec {program} {} \"$@\"\n", own.display()),
            )?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            kit.caller.binary = path;
            let lived = unwatched(kit);
            kit.caller.binary = own.clone();
            lived.with_context(|| format!("without {missing}"))?;
        }
        Ok(())
    });
}

fn unwatched(kit: &Kit) -> Result<()> {
    // More than a pipe holds, read late.
    let c = kit.created(&Spec::sh(
        "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; exit 9",
    ))?;
    c.start()?;
    ensure!(c.exit_status()? == 9);
    ensure!(c.task().delete(&c.id, "")?.exit_status == 9);
    // A dead pair.
    let c = kit.running(&Spec::sleeper())?;
    c.shim.kill_all()?;
    ensure!(c.shim.delete()?.ok()?.exit_status == 137);
    // A removed bundle.
    let c = kit.running(&Spec::sleeper())?;
    let init = i32::try_from(c.pid)?;
    // After the one look of a shim that gave up being told, 250 ms after it began.
    std::thread::sleep(std::time::Duration::from_secs(1));
    c.bundle.remove()?;
    until("a container without a bundle to end", by(40.0), || {
        (!alive(init)).then_some(())
    })?;
    until("its pair to leave", by(40.0), || {
        c.shim.processes().is_empty().then_some(())
    })
}

//! F08, whoever removes a container dies at it: containerd kills a `delete` after 5 s, a person or
//! the kernel may. containerd takes that for a failure, forgets the container and removes its
//! bundle: what is left then has nobody but us. The work is done by a process that goes on, and a
//! tombstone says from the beginning what there is, should that one be killed too.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as Streams};

use anyhow::{Context, Result, bail, ensure};
use vigil_lab::bundle::{Bundle, Stdio};
use vigil_lab::kit::Container;
use vigil_lab::process::{alive, signal_if};
use vigil_lab::{Kit, Spec, by, until};

use super::waited::{goes_by_itself, tombstone};
use crate::cases;
use crate::world::{nothing_left, pid, reaper_and_shim, scripted};

cases! {
    Kit Ours f08_delete_is_killed_container_runs "`delete` SIGKILLed at each of its steps, the bundle removed: all of it goes by itself";
    Kit Ours f08_delete_is_killed_half_created "The same, its pair killed while runc made the container";
    Kit Ours f08_delete_is_killed_in_runc "The same, while `delete` waits for a runc that fails";
    Kit Ours f08_delete_and_its_worker_are_killed "Both killed at each step: the next `start`, or a repair, finishes it";
    Kit Ours f08_delete_and_its_worker_are_killed_bundle_there "The same, and nobody removes the bundle, nor asks again: the next `start` finishes it, whether init is on record or not";
    Kit Ours f08_exec_stands_still "An exec's runc is stopped, and init waits in exit(2) for a child that it alone can reap: killed, or ended by itself, its end is told all the same";
    Kit Ours f08_delete_is_killed_and_the_id_used "The id used again at once: `start` and Create succeed, and what the killed `delete` left undone hurts nobody";
    Kit Ours f08_delete_is_held_up_and_the_id_used "`delete`'s own process is held up, before it has looked at anything or in the middle: the next container of this id is not touched by it";
    Kit Ours f08_delete_is_held_up_and_fails_in_time "The same: `delete` does not wait for it beyond what containerd waits, and all of it goes by itself, also if who is held up is killed then";
    Kit Ours f08_delete_is_held_up_and_asked_again "The same, and a later `delete` is asked: it ends who is held up, and does the work";
}

/// The crash points of `delete`, in their order.
const STEPS: [&str; 3] = ["D1", "D2", "D3"];
const CONT: i32 = 18;
const KILL: i32 = 9;

/// A `delete` that stands still at a step.
struct Stopped {
    /// Whom containerd runs, and kills.
    asked: Child,
    /// Who is at the step: the same, or who works for it.
    worker: i32,
}

impl Stopped {
    fn kill_asked(&mut self) -> Result<()> {
        self.asked.kill()?;
        self.asked.wait()?;
        Ok(())
    }

    fn worker_goes_on(&self) {
        signal_if(self.worker, CONT, |p| p.cmdline.ends_with(" delete"));
    }

    fn kill_both(&mut self) -> Result<()> {
        // One that notices the other's death does it once more.
        self.kill_asked()?;
        signal_if(self.worker, KILL, |p| p.cmdline.ends_with(" delete"));
        until("the worker to be dead", by(20.0), || {
            (!alive(self.worker)).then_some(())
        })
    }
}

fn run_delete(container: &Container, kit: &Kit, env: &[(&str, PathBuf)]) -> Result<Child> {
    let mut command: Command = kit.caller.command(&container.id, &container.bundle.dir);
    command.arg("-bundle").arg(&container.bundle.dir);
    command.arg("delete").envs(env.iter().cloned());
    command.stdin(Streams::null()).process_group(0);
    command.stdout(Streams::null()).stderr(Streams::null());
    Ok(command.spawn()?)
}

/// Runs `delete` until it stands at this step.
fn stopped_at(kit: &Kit, container: &Container, step: &str) -> Result<Stopped> {
    let points = kit.scratch.path(&format!("points-{}", container.id));
    fs::create_dir_all(&points)?;
    fs::write(points.join(step), "stop")?;
    let asked = run_delete(container, kit, &[("VIGIL_POINTS", points.clone())])?;
    let reached = points.join(step).with_extension("reached");
    let worker = until(step, by(20.0), || {
        fs::read_to_string(&reached).ok()?.parse().ok()
    })?;
    until("it to stand still", by(20.0), || {
        let it = vigil_lab::process::Process::read(worker)?;
        (it.state == 'T').then_some(())
    })?;
    Ok(Stopped { asked, worker })
}

/// A container whose pair was killed while runc was at its Create and had made init already.
fn half_created(kit: &Kit) -> Result<Container> {
    let name = format!("half-{}", kit.fresh_id());
    let body = "[ \"$verb\" = create ] && { runc \"$@\"; cat $pid_file >$dir/pid; sleep 60; }";
    let (dir, options) = scripted(kit, &name, body)?;
    let mut container = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut request = container.bundle.create_request();
    request.options = Some(options).into();
    let task = container.task().patient(40.0);
    std::thread::spawn(move || task.create(&request));
    container.pid = until("init", by(20.0), || {
        fs::read_to_string(dir.join("pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    })?;
    container.shim.kill_all()?;
    Ok(container)
}

fn killed_while_running(kit: &Kit) -> Result<Container> {
    let container = kit.running(&Spec::sleeper())?;
    container.shim.kill_all()?;
    Ok(container)
}

fn each_step(kit: &Kit, make: impl Fn(&Kit) -> Result<Container>) -> Result<()> {
    for step in STEPS {
        let container = make(kit)?;
        let mut delete = stopped_at(kit, &container, step)?;
        delete.kill_asked()?;
        container.bundle.remove()?;
        delete.worker_goes_on();
        goes_by_itself(kit, &container).context(step)?;
        ensure!(!alive(pid(&container)?), "{step}: init lives on");
    }
    Ok(())
}

fn f08_delete_is_killed_container_runs(kit: &Kit) -> Result<()> {
    each_step(kit, killed_while_running)
}

fn f08_delete_is_held_up_and_fails_in_time(kit: &Kit) -> Result<()> {
    for (step, killed) in [("D1", false), ("D1", true), ("D3", true)] {
        let container = killed_while_running(kit)?;
        let mut delete = stopped_at(kit, &container, step)?;
        let status = until("`delete` to end", by(20.0), || {
            delete.asked.try_wait().ok().flatten()
        })?;
        ensure!(!status.success(), "{step}: it said that all is gone");
        container.bundle.remove()?;
        if killed {
            delete.kill_both()?;
        } else {
            delete.worker_goes_on();
        }
        goes_by_itself(kit, &container).context(step)?;
        ensure!(!alive(pid(&container)?), "{step}: init lives on");
    }
    Ok(())
}

fn f08_delete_is_killed_half_created(kit: &Kit) -> Result<()> {
    each_step(kit, half_created)
}

fn f08_delete_is_killed_in_runc(kit: &Kit) -> Result<()> {
    let body = "[ \"$verb\" = delete ] && { echo x >$dir/begun; sleep 1; exit 1; }";
    let (dir, options) = scripted(kit, "slow", body)?;
    let container = crate::world::running_under(kit, &Spec::sleeper(), &options)?;
    container.shim.kill_all()?;
    let mut asked = run_delete(&container, kit, &[])?;
    let begun = dir.join("begun");
    until("runc delete", by(20.0), || begun.exists().then_some(()))?;
    asked.kill()?;
    asked.wait()?;
    container.bundle.remove()?;
    goes_by_itself(kit, &container)?;
    ensure!(!alive(pid(&container)?), "init lives on");
    Ok(())
}

fn f08_delete_and_its_worker_are_killed(kit: &Kit) -> Result<()> {
    for (step, half) in [("D1", false), ("D1", true), ("D2", false), ("D3", true)] {
        let what = || format!("{step}, {}", if half { "half-created" } else { "running" });
        let container = if half {
            half_created(kit)?
        } else {
            killed_while_running(kit)?
        };
        let mut delete = stopped_at(kit, &container, step)?;
        delete.kill_both()?;
        container.bundle.remove()?;
        if step != "D1" {
            // All of it was done; at most a word of it stands.
            goes_or_is_repaired(kit, &container).with_context(what)?;
            continue;
        }
        ensure!(
            tombstone(kit, &container.id).exists(),
            "{}: nobody knows of it",
            what()
        );
        if half {
            goes_or_is_repaired(kit, &container).with_context(what)?;
        } else {
            swept_by_a_start(kit, &container).with_context(what)?;
        }
        ensure!(!alive(pid(&container)?), "{}: init lives on", what());
    }
    Ok(())
}

/// Half-created, nothing names init, by which the sweeper knew whose the bundle was: it ran on until
/// somebody asked.
fn f08_delete_and_its_worker_are_killed_bundle_there(kit: &Kit) -> Result<()> {
    for half in [false, true] {
        let container = if half {
            half_created(kit)?
        } else {
            killed_while_running(kit)?
        };
        stopped_at(kit, &container, "D1")?.kill_both()?;
        swept_by_a_start(kit, &container).with_context(|| format!("half-created: {half}"))?;
        ensure!(!alive(pid(&container)?), "{half}: init lives on");
        ensure!(
            container.bundle.dir.exists(),
            "it is containerd's to remove"
        );
        crate::world::deleted(&container)?;
    }
    Ok(())
}

fn goes_or_is_repaired(kit: &Kit, container: &Container) -> Result<()> {
    let tool = kit.caller.binary.with_file_name("vigil");
    let mut repair = Command::new(tool);
    repair.args(["repair", &container.id, "--write", "-n"]);
    repair.arg(kit.scratch.mark());
    let said = repair.output()?;
    nothing_left(kit, &container.id).with_context(|| format!("{said:?}"))?;
    let stone = tombstone(kit, &container.id);
    ensure!(!stone.exists(), "the tombstone stands: {said:?}");
    Ok(())
}

/// The `start`, or the `delete`, of any other container. What either leaves at work bears that
/// one's arguments, and is not to be killed with its pair.
fn swept_by_a_start(kit: &Kit, container: &Container) -> Result<()> {
    let stone = tombstone(kit, &container.id);
    let is_gone = |seconds| {
        let gone = until("", vigil_lab::poll::sharp(seconds), || {
            (!stone.exists()).then_some(())
        });
        gone.is_ok()
    };
    for _ in 0..20 {
        let other = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
        let by_start = is_gone(4.0);
        other.shim.kill_all()?;
        crate::world::deleted(&other)?;
        if by_start || is_gone(1.0) {
            return nothing_left(kit, &container.id);
        }
    }
    bail!("still there: {}", fs::read_to_string(&stone)?)
}

/// Another container of this id, as containerd makes it: a bundle of the same name.
fn again(kit: &Kit, id: &str) -> Result<Container> {
    let (state, base) = (kit.scratch.path("state"), kit.scratch.path("base"));
    let mark = kit.scratch.mark();
    let bundle = Bundle::make(&state, mark, id, &Spec::sleeper(), Stdio::Empty, &base)?;
    let mut container = Container {
        id: id.to_owned(),
        shim: kit.shim(&bundle).context("start")?,
        bundle,
        stdout: None,
        stderr: None,
        pid: 0,
    };
    let request = container.bundle.create_request();
    container.pid = container.task().create(&request).context("Create")?.pid;
    container.start().context("Start")?;
    Ok(container)
}

fn f08_delete_is_killed_and_the_id_used(kit: &Kit) -> Result<()> {
    for both in [false, true] {
        let body = "[ \"$verb\" = delete ] && { echo x >$dir/begun; sleep 1; }";
        let (dir, options) = scripted(kit, &format!("slow-{both}"), body)?;
        let first = crate::world::running_under(kit, &Spec::sleeper(), &options)?;
        first.shim.kill_all()?;
        let mut asked = run_delete(&first, kit, &[])?;
        let begun = dir.join("begun");
        until("runc delete", by(20.0), || begun.exists().then_some(()))?;
        if both {
            for it in first.shim.processes() {
                signal_if(it.pid, KILL, |p| p.cmdline == it.cmdline);
            }
        } else {
            asked.kill()?;
        }
        asked.wait()?;
        let old = pid(&first)?;
        // As containerd: the same name, and another directory.
        first.bundle.remove()?;
        let again = again(kit, &first.id)?;
        ensure!(!alive(old), "init of before lives on");
        std::thread::sleep(std::time::Duration::from_secs(2));
        ensure!(alive(pid(&again)?), "the new init was killed");
        ensure!(
            crate::world::runc_state(kit, &again.id).exists(),
            "runc's state of the new one was removed"
        );
        crate::world::serves(&again)?;
        again.task().kill(&again.id, "", 9, true)?;
        ensure!(again.exit_status()? == 137);
        again.task().delete(&again.id, "")?;
        let _ = again.task().shutdown(&again.id);
        crate::world::deleted(&again)?;
        nothing_left(kit, &again.id)?;
    }
    Ok(())
}

/// It was stopped before it had the lock, its `delete` was killed at 5 s, the next one cleaned up,
/// and the id was used again: woken, it read lock, pair and journal by the bundle's name, killed
/// the new pair and ended the new container. Of one that is stopped with the lock in hand a
/// `start` waited for 4 s, and went on beside it.
fn f08_delete_is_held_up_and_the_id_used(kit: &Kit) -> Result<()> {
    for (step, ends) in [("D0", false), ("D1", true)] {
        let first = killed_while_running(kit)?;
        let mut delete = stopped_at(kit, &first, step)?;
        delete.kill_asked()?;
        if !ends {
            let second = first.shim.delete()?;
            ensure!(second.ok()?.exit_status == 137, "the second `delete`");
        }
        first.bundle.remove()?;
        let again = again(kit, &first.id).context(step)?;
        ensure!(alive(delete.worker) != ends, "{step}: who was held up");
        delete.worker_goes_on();
        until("who was held up to end", by(20.0), || {
            (!alive(delete.worker)).then_some(())
        })?;
        ensure!(!alive(pid(&first)?), "{step}: init of before lives on");
        ensure!(alive(pid(&again)?), "{step}: the new init was killed");
        crate::world::serves(&again).context(step)?;
        again.task().kill(&again.id, "", 9, true)?;
        ensure!(again.exit_status()? == 137);
        again.task().delete(&again.id, "")?;
        let _ = again.task().shutdown(&again.id);
        crate::world::deleted(&again)?;
        nothing_left(kit, &again.id).context(step)?;
        let stone = tombstone(kit, &again.id);
        ensure!(!stone.exists(), "{step}: the tombstone stands");
    }
    Ok(())
}

/// It was stopped with the lock in hand, its `delete` killed at 5 s, and no later `delete` (a
/// containerd started anew asks again) came to anything as long as it stood.
fn f08_delete_is_held_up_and_asked_again(kit: &Kit) -> Result<()> {
    let container = killed_while_running(kit)?;
    let mut delete = stopped_at(kit, &container, "D1")?;
    delete.kill_asked()?;
    let deleted = until("a later `delete`", by(40.0), || {
        let said = container.shim.delete().ok()?;
        said.ok().ok().filter(|said| said.exit_status == 137)
    });
    let held_up = alive(delete.worker);
    delete.worker_goes_on();
    deleted?;
    ensure!(!held_up, "it is held up still");
    ensure!(!alive(pid(&container)?), "init lives on");
    container.bundle.remove()?;
    goes_by_itself(kit, &container)
}

/// The call that stands still has a child in the container's pid namespace, as runc's exec has.
/// Whose shim is killed over it is waited for by the next one no longer: that one once took it
/// for a call like any other.
fn f08_exec_stands_still(kit: &Kit) -> Result<()> {
    let body = "[ \"$verb\" = exec ] && {\n\
         exec nsenter -t $(cat $dir/init) -p -F sh -c 'sleep 1000 & : >$0; kill -STOP $$' $dir/stands \"$@\"\n}";
    for (signal, status, succeeded) in [(9, 137, false), (15, 3, false), (9, 137, true)] {
        let name = format!("stands-{signal}-{succeeded}");
        let (dir, options) = scripted(kit, &name, body)?;
        let spec = Spec::sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
        let container = crate::world::running_under(kit, &spec, &options)?;
        container.out()?.expect("ready", by(20.0))?;
        fs::write(dir.join("init"), container.pid.to_string())?;
        let (task, id) = (container.task().patient(100.0), container.id.clone());
        kit.exec(&container, "e", &Spec::sleeper())?;
        let starting = task.clone();
        let start = std::thread::spawn(move || starting.start(&id, "e"));
        let stands = dir.join("stands");
        until("the call to stand", by(20.0), || {
            stands.exists().then_some(())
        })?;
        if succeeded {
            let (_, shim) = reaper_and_shim(&container)?;
            ensure!(signal_if(shim, KILL, |_| true), "nobody was killed");
        }
        container.task().kill(&container.id, "", signal, false)?;
        let at = std::time::Instant::now();
        let exit = task.wait(&container.id, "")?;
        // The exec's own deadline is a minute.
        ensure!(at.elapsed().as_secs() < 30, "told after {:?}", at.elapsed());
        ensure!(exit.exit_status == status, "{exit:?}");
        let started = start.join();
        ensure!(matches!(started, Ok(Err(_))), "the exec: {started:?}");
        task.delete(&container.id, "")?;
        let _ = task.shutdown(&container.id);
        crate::world::deleted(&container)?;
        nothing_left(kit, &container.id)?;
    }
    Ok(())
}

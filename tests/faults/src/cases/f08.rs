//! F08: a process in uninterruptible sleep. Nothing kills it; what can be asked for is the
//! truth, at once, and the end as soon as it ends.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive};
use vigil_lab::{CallError, Code, GENEROUS, Kit, Place, Spec, by, until};

use crate::cases;
use crate::ice::{Ice, Layer, sleeps};
use crate::rest::{due, nothing_but_the_pair};
use crate::watch::Watch;
use crate::world::{cgroups, nothing_left, pid, status};

cases! {
    Kit All  f08_init_in_d "Init in D: Kill answers, State says RUNNING, Delete names pid, command, wait channel, since when";
    Kit All  f08_ends_by_itself "Init in D, then not: it ends by itself, one exit, 137";
    Kit All  f08_exec_in_d "An exec in D: init is served, stops, ends; the exec is told of";
    Kit All  f08_grandchild_in_d "A grandchild in D in the container's own pid namespace: init is not gone before it is";
    Kit All  f08_leftover_in_d "A process left behind in D in the host's pid namespace: the exit is told, Delete does not lie";
    Kit All  f08_pair_killed_in_d "The pair killed while init is in D: `delete` is out in 5 s and does not say gone";
    Kit Ours f08_swept_after_d "The pair killed, D for good, then not: what is left goes at the next look";
    Kit Ours f08_swept_with_its_bundle "The pair and its waiter killed, the bundle still there: what is left goes at the next look";
    Daemon Ours f08_nothing_waits_for_a_person "The pair killed under containerd while init, or a child, is in D: out of D, all of it goes by itself";
    Daemon All f08_containerd_restarts_in_d "containerd restarts while init is in D: RUNNING then; out of D, it ends and goes";
}

/// At most so long in D, whatever becomes of the test.
const STALL: u32 = 40;

/// A container that sleeps in D as soon as /tmp/go is made: `script` has `STUCK` replaced
/// by the command that does it.
fn on_ice(kit: &Kit, ice: &Ice, script: &str, own_pids: bool) -> Result<Container> {
    let script = script.replace(
        "STUCK",
        "while ! [ -e /tmp/go ]; do sleep 0.02; done; echo x >/ice/x",
    );
    let plain = Spec {
        own_pids,
        ..Spec::sh(&script)
    };
    let mut mounts = plain.config("")["mounts"].take();
    if let Some(mounts) = mounts.as_array_mut() {
        mounts.push(ice.bound());
    }
    // The place to mount it: the root file system itself is read-only.
    fs::create_dir_all(kit.scratch.path("base/ice"))?;
    let spec = Spec {
        extra: json!({ "mounts": mounts }),
        ..plain
    };
    kit.created_with(&spec, Stdio::Output)
}

fn go(container: &Container) -> Result<()> {
    fs::write(format!("/proc/{}/root/tmp/go", container.pid), "").context("making /tmp/go")
}

/// Everybody of the container's in D.
fn asleep(kit: &Kit, id: &str) -> Vec<Process> {
    let group = format!("/{}/{id}", kit.scratch.mark());
    Process::all()
        .into_iter()
        .filter(|p| p.state == 'D' && p.cgroup.contains(&group))
        .collect()
}

/// One that stays asleep: a program that is being loaded is in D for a moment too.
fn one_asleep(kit: &Kit, id: &str) -> Result<i32> {
    let mut seen: Vec<(i32, Instant)> = Vec::new();
    until("one to sleep uninterruptibly", by(10.0), || {
        let now = asleep(kit, id);
        seen.retain(|(pid, _)| now.iter().any(|p| p.pid == *pid));
        for process in &now {
            if !seen.iter().any(|(pid, _)| *pid == process.pid) {
                seen.push((process.pid, Instant::now()));
            }
        }
        let lasting = |(_, since): &&(i32, Instant)| since.elapsed() > Duration::from_millis(150);
        seen.iter().find(lasting).map(|(pid, _)| *pid)
    })
}

/// The answer came within a second.
fn soon<T>(what: &str, call: impl FnOnce() -> T) -> Result<T> {
    let at = Instant::now();
    let answer = call();
    let took = at.elapsed();
    ensure!(took < GENEROUS, "{what} took {took:?}");
    Ok(answer)
}

/// Kill answers, well or with words; silence is no answer.
fn killed(container: &Container) -> Result<Option<String>> {
    let task = container.task().patient(8.0);
    match soon("Kill", || task.kill(&container.id, "", 9, true))? {
        Ok(()) => Ok(None),
        Err(CallError::Status { message, .. }) => Ok(Some(message)),
        Err(error) => bail!("Kill: {error}"),
    }
}

/// What Delete says of a container that cannot die: the reason, in 4 s.
fn refused_with_reason(container: &Container, stuck: i32) -> Result<()> {
    let at = Instant::now();
    let answer = container.task().patient(10.0).delete(&container.id, "");
    ensure!(at.elapsed() < GENEROUS, "Delete took {:?}", at.elapsed());
    let Err(error) = answer else {
        bail!("Delete of what lives: {answer:?}");
    };
    ensure!(error.is(Code::FailedPrecondition), "Delete: {error}");
    names(&error.to_string(), stuck)
}

/// Pid, command, wait channel and since when.
fn names(message: &str, stuck: i32) -> Result<()> {
    let comm = fs::read_to_string(format!("/proc/{stuck}/comm"))?;
    let wchan = fs::read_to_string(format!("/proc/{stuck}/wchan"))?;
    for part in [stuck.to_string().as_str(), comm.trim(), wchan.trim()] {
        ensure!(
            message.contains(part),
            "{part:?} is not named in: {message}"
        );
    }
    ensure!(
        message.contains("since") || message.contains(" for "),
        "not since when: {message}"
    );
    Ok(())
}

fn f08_init_in_d(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = on_ice(kit, &ice, "STUCK; exit 3", true)?;
    container.start()?;
    ice.freeze(Layer::Files, STALL)?;
    go(&container)?;
    sleeps(pid(&container)?)?;
    let watch = Watch::start(&container)?;
    killed(&container)?;
    let state = soon("State", || status(&container, ""))??;
    ensure!(state == Status::RUNNING, "{state:?} is not the truth");
    let listed = soon("Pids", || container.task().pids(&container.id))??;
    ensure!(
        listed.processes.iter().any(|p| p.pid == container.pid),
        "{listed:?}"
    );
    soon("Stats", || container.task().stats(&container.id))??;
    // A second SIGKILL, and a moment for the shim to see that the first does nothing.
    std::thread::sleep(Duration::from_millis(300));
    killed(&container)?;
    let told = refused_with_reason(&container, pid(&container)?);
    let story = kit.sink.story();
    let seen = watch.end()?;
    ice.thaw();
    told?;
    seen.calm()?;
    ensure!(story == ["create", "start"], "{story:?}");
    Ok(())
}

fn f08_ends_by_itself(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = on_ice(kit, &ice, "STUCK; exit 3", true)?;
    container.start()?;
    ice.freeze(Layer::Files, STALL)?;
    go(&container)?;
    sleeps(pid(&container)?)?;
    killed(&container)?;
    // Longer than any deadline of a kill: whoever gave up must look again.
    std::thread::sleep(Duration::from_secs(4));
    let state = status(&container, "")?;
    ensure!(state == Status::RUNNING, "{state:?} is not the truth");
    ice.thaw();
    let waited = container.task().wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    kit.sink.expect("exit", by(5.0))?;
    let deleted = container.task().delete(&container.id, "")?;
    ensure!(
        deleted.exit_status == 137 && deleted.exited_at == waited.exited_at,
        "{deleted:?} after {waited:?}"
    );
    kit.sink.expect("delete", by(5.0))?;
    let story = kit.sink.story();
    ensure!(story == ["create", "start", "exit", "delete"], "{story:?}");
    nothing_but_the_pair(kit, &container.id)
}

fn f08_exec_in_d(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = on_ice(kit, &ice, "exec sleep 1000", false)?;
    container.start()?;
    ice.freeze(Layer::Files, STALL)?;
    kit.exec(&container, "stuck", &Spec::sh("echo x >/ice/x"))?;
    let stuck = container.task().start(&container.id, "stuck")?;
    sleeps(i32::try_from(stuck)?)?;
    let watch = Watch::start(&container)?;
    soon("Kill", || {
        container.task().kill(&container.id, "stuck", 9, false)
    })??;
    let state = status(&container, "stuck")?;
    ensure!(state == Status::RUNNING, "the exec is {state:?}");
    // Others are served meanwhile.
    kit.exec(&container, "well", &Spec::sh("exit 4"))?;
    container.task().start(&container.id, "well")?;
    let well = container.task().patient(5.0).wait(&container.id, "well")?;
    ensure!(well.exit_status == 4, "{well:?}");
    soon("Kill", || {
        container.task().kill(&container.id, "", 9, false)
    })??;
    // Init's exit waits for the exec's, but not for ever.
    let waited = container.task().patient(15.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    watch.end()?.calm()?;
    let at = Instant::now();
    let deleted = container.task().patient(10.0).delete(&container.id, "");
    let took = at.elapsed();
    let lives = alive(i32::try_from(stuck)?);
    let stone = tombstone(kit, &container.id);
    ice.thaw();
    ensure!(lives, "the exec did not stay in D: nothing was tested");
    ensure!(took < GENEROUS, "Delete took {took:?}");
    truthful(deleted.map(drop), stone.as_deref(), i32::try_from(stuck)?)?;
    until("the exec to die", by(5.0), || {
        (!alive(i32::try_from(stuck).ok()?)).then_some(())
    })?;
    finished(kit, &container)
}

/// While a process of it lives, Delete is either refused with the reason or answered with
/// a tombstone that names the process.
fn truthful(answer: Result<(), CallError>, stone: Option<&str>, stuck: i32) -> Result<()> {
    match answer {
        Ok(()) => {
            let stone = stone.context("Delete says gone, and no tombstone says otherwise")?;
            ensure!(stone.contains(&stuck.to_string()), "{stuck}: {stone}");
            Ok(())
        }
        Err(CallError::Status { message, .. }) => {
            ensure!(message.contains(&stuck.to_string()), "{stuck}: {message}");
            Ok(())
        }
        Err(error) => bail!("Delete: {error}"),
    }
}

fn tombstone(kit: &Kit, id: &str) -> Option<String> {
    let name = format!("{}+{id}.json", kit.scratch.mark());
    fs::read_to_string(Path::new("/run/vigil/tombstones").join(name)).ok()
}

/// The tombstone is taken away; whoever does the rest does that last.
fn no_stone(kit: &Kit, id: &str) -> Result<()> {
    until("the tombstone to be taken away", by(10.0), || {
        tombstone(kit, id).is_none().then_some(())
    })
}

/// What is left goes with Delete, `delete` or a look of the sweeper's.
fn finished(kit: &Kit, container: &Container) -> Result<()> {
    let _ = container.task().delete(&container.id, "");
    container.task().shutdown(&container.id)?;
    container.shim.delete()?.ok()?;
    nothing_left(kit, &container.id)?;
    no_stone(kit, &container.id)
}

fn f08_grandchild_in_d(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = on_ice(kit, &ice, "(STUCK) & exec sleep 1000", true)?;
    container.start()?;
    ice.freeze(Layer::Files, STALL)?;
    go(&container)?;
    let stuck = one_asleep(kit, &container.id)?;
    ensure!(stuck != pid(&container)?);
    let watch = Watch::start(&container)?;
    killed(&container)?;
    // The kernel ends the namespace with init, and init only after everybody in it.
    std::thread::sleep(Duration::from_millis(500));
    let lives = alive(pid(&container)?);
    let state = status(&container, "")?;
    ensure!(
        (state == Status::RUNNING) == lives,
        "{state:?}, while init {}",
        if lives { "lives" } else { "does not" }
    );
    let seen = watch.end()?;
    let at = Instant::now();
    let answer = container.task().patient(10.0).delete(&container.id, "");
    let (took, stone) = (at.elapsed(), tombstone(kit, &container.id));
    ice.thaw();
    seen.calm()?;
    ensure!(took < GENEROUS, "Delete took {took:?}");
    truthful(answer.map(drop), stone.as_deref(), stuck)?;
    let waited = container.task().wait(&container.id, "")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    finished(kit, &container)
}

fn f08_leftover_in_d(kit: &Kit) -> Result<()> {
    let ice = Ice::make(kit.scratch.dir())?;
    let script = "(STUCK) & while ! [ -e /tmp/end ]; do sleep 0.02; done; exit 5";
    let container = on_ice(kit, &ice, script, false)?;
    container.start()?;
    ice.freeze(Layer::Files, STALL)?;
    go(&container)?;
    let stuck = one_asleep(kit, &container.id)?;
    let watch = Watch::start(&container)?;
    fs::write(format!("/proc/{}/root/tmp/end", container.pid), "")?;
    // Told after the rest is gone, or after a deadline; never RUNNING once init is gone.
    until("init to end", by(5.0), || {
        (!alive(i32::try_from(container.pid).ok()?)).then_some(())
    })?;
    until("State to say so", by(1.0), || {
        (status(&container, "").ok()? == Status::STOPPED).then_some(())
    })?;
    let waited = container.task().patient(15.0).wait(&container.id, "")?;
    ensure!(waited.exit_status == 5, "{waited:?}");
    watch.end()?.calm()?;
    let at = Instant::now();
    let answer = container.task().patient(10.0).delete(&container.id, "");
    let (took, stone) = (at.elapsed(), tombstone(kit, &container.id));
    let lives = alive(stuck);
    ice.thaw();
    ensure!(lives, "{stuck} did not stay in D: nothing was tested");
    ensure!(took < GENEROUS, "Delete took {took:?}");
    truthful(answer.map(drop), stone.as_deref(), stuck)?;
    until("the last to die", by(5.0), || (!alive(stuck)).then_some(()))?;
    finished(kit, &container)
}

/// A container in D whose pair is dead.
fn orphaned(kit: &Kit) -> Result<(Ice, Container)> {
    let ice = Ice::make(kit.scratch.dir())?;
    let container = on_ice(kit, &ice, "STUCK; exit 3", true)?;
    container.start()?;
    ice.freeze(Layer::Files, STALL)?;
    go(&container)?;
    sleeps(pid(&container)?)?;
    container.shim.kill_all()?;
    Ok((ice, container))
}

/// `delete` while init is in D: in time, and it does not say that the container is gone.
fn delete_in_d(kit: &Kit, container: &Container) -> Result<()> {
    let at = Instant::now();
    let said = container.shim.delete();
    let took = at.elapsed();
    ensure!(took < GENEROUS, "`delete` took {took:?}");
    let said = said?;
    ensure!(alive(pid(container)?), "init is not in D any more");
    if said.ran.status.success() {
        let stone = tombstone(kit, &container.id)
            .context("`delete` says gone, and no tombstone says otherwise")?;
        ensure!(stone.contains(&container.pid.to_string()), "{stone}");
    }
    let stderr = String::from_utf8_lossy(&said.ran.stderr);
    names(&stderr, pid(container)?).context("stderr of `delete`")
}

fn f08_pair_killed_in_d(kit: &Kit) -> Result<()> {
    let (ice, container) = orphaned(kit)?;
    let first = delete_in_d(kit, &container);
    let second = first.is_ok().then(|| delete_in_d(kit, &container));
    ice.thaw();
    first?;
    second.unwrap_or(Ok(())).context("`delete`, again")?;
    until("init to die", by(5.0), || {
        (!alive(i32::try_from(container.pid).ok()?)).then_some(())
    })?;
    let said = container.shim.delete()?.ok()?;
    // It was alive, checked, when it was killed (or nobody saw it end).
    ensure!(
        [137, 255].contains(&said.exit_status) && said.pid == container.pid,
        "{said:?}"
    );
    nothing_left(kit, &container.id)?;
    no_stone(kit, &container.id)
}

fn f08_swept_after_d(kit: &Kit) -> Result<()> {
    let other = kit.running(&Spec::sleeper())?;
    let (ice, container) = orphaned(kit)?;
    let said = delete_in_d(kit, &container);
    // As containerd, which forgets the container and its bundle when its patience ends.
    ice.thaw();
    said?;
    until("init to die", by(5.0), || {
        (!alive(i32::try_from(container.pid).ok()?)).then_some(())
    })?;
    container.bundle.remove()?;
    other.shim.kill_all()?;
    due(kit, &container.id)?;
    other.shim.delete()?.ok()?;
    until("the sweeper, which nobody waits for", by(10.0), || {
        tombstone(kit, &container.id).is_none().then_some(())
    })?;
    nothing_left(kit, &container.id)?;
    ensure!(
        tombstone(kit, &container.id).is_none(),
        "the tombstone stays: {:?}",
        tombstone(kit, &container.id)
    );
    Ok(())
}

/// The bundle stays after a `delete` that failed, and sweepers left alone whatever had one.
fn f08_swept_with_its_bundle(kit: &Kit) -> Result<()> {
    let other = kit.running(&Spec::sleeper())?;
    let (ice, container) = orphaned(kit)?;
    let said = delete_in_d(kit, &container);
    let argument = format!("-id {} ", container.id);
    let waits = |p: &Process| p.cmdline.contains(&argument) && p.cmdline.ends_with(" delete");
    let ended = until("its waiter to be there", by(5.0), || {
        let waiter = Process::marked(kit.scratch.mark())
            .into_iter()
            .find(waits)?;
        kill(Pid::from_raw(waiter.pid), Signal::SIGKILL).ok()
    });
    ice.thaw();
    said?;
    ended?;
    until("init to die", by(5.0), || {
        (!alive(i32::try_from(container.pid).ok()?)).then_some(())
    })?;
    due(kit, &container.id)?;
    other.shim.kill_all()?;
    other.shim.delete()?.ok()?;
    until("the sweeper, which nobody waits for", by(10.0), || {
        tombstone(kit, &container.id).is_none().then_some(())
    })?;
    nothing_left(kit, &container.id)?;
    let said = container.shim.delete()?.ok()?;
    ensure!(
        [137, 255].contains(&said.exit_status) && said.pid == container.pid,
        "{said:?}"
    );
    Ok(())
}

/// A container under containerd that is in D, and its init.
fn stuck(place: &Place, ice: &Ice, id: &str, script: &str) -> Result<i32> {
    let mount = format!(
        "type=bind,src={},dst=/ice,options=rbind:rw",
        ice.files().display()
    );
    let args = place.run_args(&["-d", "--mount", &mount], id, &["sh", "-c", script]);
    place.containerd.ctr(&args)?;
    let init = place.pid(id)?;
    ice.freeze(Layer::Files, STALL)?;
    fs::write(format!("/proc/{init}/root/tmp/go"), "")?;
    Ok(init)
}

/// `delete` could not finish and has answered; nobody asks again. Ten cgroups, runc's state
/// and the bundle stayed for ever, through the thaw and through the `start` and `delete` of
/// others, until somebody typed `vigil repair`.
fn f08_nothing_waits_for_a_person(place: &mut Place) -> Result<()> {
    for (id, script) in [
        (
            "c",
            "while ! [ -e /tmp/go ]; do sleep 0.02; done; echo x >/ice/x; exit 3",
        ),
        (
            "d",
            "(while ! [ -e /tmp/go ]; do sleep 0.02; done; echo x >/ice/x) & exec sleep 1000",
        ),
    ] {
        let ice = {
            let dir = place.containerd.scratch.path(id);
            fs::create_dir(&dir)?;
            Ice::make(&dir)?
        };
        let init = stuck(place, &ice, id, script)?;
        let mark = place.containerd.namespace().to_owned();
        let group = format!("/{mark}/{id}");
        until("one of it to be in D", by(10.0), || {
            Process::all()
                .into_iter()
                .find(|p| p.state == 'D' && p.cgroup.contains(&group))
        })?;
        let bundle = place.containerd.bundle(id);
        let argument = format!("-id {id} ");
        let ours = |p: &Process| {
            p.cmdline.contains("containerd-shim-vigil-v2")
                && p.cmdline.contains(&argument)
                && p.cmdline.contains(&mark)
        };
        // At once: who outlives the other makes itself another.
        let killed = place.kill_shims(id)?;
        ensure!(killed == 2, "{killed} are not a pair");
        let stone = Path::new("/run/vigil/tombstones").join(format!("{mark}+{id}.json"));
        until("`delete` to give up", by(10.0), || {
            stone.exists().then_some(())
        })?;
        let lives = alive(init);
        ice.thaw();
        ensure!(lives, "init was not in D: nothing was tested");
        let mut left = Vec::new();
        let gone = until("all of it to go by itself", by(15.0), || {
            left = cgroups(&mark, id);
            let runc = Path::new("/run/containerd/runc").join(&mark).join(id);
            left.extend([runc, stone.clone(), bundle.clone()]);
            left.retain(|path| path.exists());
            (left.is_empty() && !alive(init)).then_some(())
        });
        gone.with_context(|| format!("left of {id}: {left:?}"))?;
        until("the waiter to be gone too", by(5.0), || {
            (!Process::all().iter().any(ours)).then_some(())
        })?;
        // The id is usable at once.
        place.containerd.ctr(&["containers", "rm", id])?;
        let again = place.run(&[], id, &["sh", "-c", "exit 7"])?;
        ensure!(again.status.code() == Some(7), "{again:?}");
        place.containerd.ctr(&["containers", "rm", id])?;
    }
    Ok(())
}

fn f08_containerd_restarts_in_d(place: &mut Place) -> Result<()> {
    let ice = Ice::make(place.containerd.scratch.dir())?;
    let mount = format!(
        "type=bind,src={},dst=/ice,options=rbind:rw",
        ice.files().display()
    );
    let script = "while ! [ -e /tmp/go ]; do sleep 0.02; done; echo x >/ice/x; exit 3";
    let args = place.run_args(&["-d", "--mount", &mount], "c", &["sh", "-c", script]);
    place.containerd.ctr(&args)?;
    let init = place.pid("c")?;
    ice.freeze(Layer::Files, STALL)?;
    fs::write(format!("/proc/{init}/root/tmp/go"), "")?;
    sleeps(init)?;
    let _ = place
        .containerd
        .try_ctr(&["tasks", "kill", "-s", "SIGKILL", "c"])?;
    place.containerd.stop(9)?;
    place.containerd.launch()?;
    let truth = place.containerd.task_status("c")?;
    let lives = alive(init);
    ice.thaw();
    ensure!(lives, "init is not in D any more");
    ensure!(
        truth.as_deref() == Some("RUNNING"),
        "containerd says {truth:?} of what lives"
    );
    place.expect_status("c", "STOPPED")?;
    place.remove("c")?;
    ensure!(!alive(init), "init lives on");
    Ok(())
}

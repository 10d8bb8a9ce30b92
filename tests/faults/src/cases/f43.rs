//! F43 to F51, the rest: what Kill says against what State says, crun's words, pids at
//! every moment, nests of cgroups, crashes of the pair, idle cost, and a clock that jumps.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use vigil_hostile::runc_options;
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, alive, signal_if};
use vigil_lab::{Code, Fact, Kit, Place, Spec, by, until};

use crate::cases;
use crate::world::{
    answered, cgroups, deleted, nothing_left, pid, reaper_and_shim, running_under, scripted,
    serves, status, times, unified,
};

cases! {
    Kit    All  f43_not_found_means_stopped "Kill beside the exit: whenever it says NotFound, State says STOPPED and Wait has the code";
    Kit    All  f43_crun "The same life under crun, whose words are others";
    Kit    All  f43_reworded_runc "A runc that says everything in other words: no decision depends on them";
    Kit    All  f44_pids_at_every_moment "Pids while execs and nested cgroups come and go: never an error, never empty";
    Daemon All  f44_restart_with_nested_cgroups "containerd restarts while init lives in a nested cgroup: the task is RUNNING";
    Kit    All  f46_init_in_a_nested_cgroup "Init and all others moved into nested cgroups: Pids, Stats, Kill, Delete";
    Kit    All  f46_deep_and_wide "Twenty levels and a hundred siblings of cgroups: Delete removes them all";
    Kit    All  f46_deep_and_wide_after_sigkill "... and so does `delete`";
    Kit    All  f46_threaded "A threaded subtree, a depth limit (v2): Pids, Kill, Delete";
    Kit    All  f47_fatal_signals "SIGSEGV, SIGABRT, SIGBUS, SIGILL to each process of the pair: `delete` has the truth";
    Kit    All  f47_fatal_signals_under_load "... while execs run";
    Kit    All  f47_delete_beside_shutdown "Delete and Shutdown at the same moment, again and again: one end, nothing left";
    Kit    All  f50_reading_runs_no_runc "State, Pids, Stats, Connect, Wait: no runc is run for any";
    Kit    All  f50_idle_costs_nothing "A quiet container: the pair uses no processor time" alone;
    Kit    All  f51_clock_steps "The clock steps an hour back and forth between start, exit and delete (VIGIL_CLOCK=1, a machine of one's own)" alone;
}

fn f43_not_found_means_stopped(kit: &Kit) -> Result<()> {
    let mut seen = 0;
    for round in 0..times(25, 300) {
        let c = kit.running(&Spec::sh(&format!("sleep 0.0{}; exit 7", round % 8)))?;
        let mut told = false;
        for _ in 0..400 {
            match c.task().kill(&c.id, "", 18, false) {
                Ok(()) => {}
                Err(error) if error.is(Code::NotFound) => {
                    told = true;
                    break;
                }
                Err(error) => return Err(error).context("Kill"),
            }
        }
        if told {
            seen += 1;
            let now = status(&c, "")?;
            ensure!(
                now == Status::STOPPED,
                "round {round}: Kill says NotFound, State {now:?}"
            );
            let waited = c
                .task()
                .patient(1.0)
                .wait(&c.id, "")
                .context("Wait, at once")?;
            ensure!(waited.exit_status == 7, "{waited:?}");
        }
        ensure!(c.exit_status()? == 7);
        ensure!(c.task().delete(&c.id, "")?.exit_status == 7);
    }
    ensure!(
        seen > 0,
        "Kill never came after the exit: nothing was tested"
    );
    Ok(())
}

/// Create, exec, pause, kill, delete under another runtime, and `delete` after SIGKILL.
fn life_under(
    kit: &Kit,
    options: &containerd_shim_protos::protobuf::well_known_types::any::Any,
) -> Result<()> {
    let c = running_under(kit, &Spec::sh("exit 7"), options)?;
    ensure!(c.exit_status()? == 7);
    let killed = c.task().kill(&c.id, "", 9, false);
    ensure!(
        matches!(&killed, Err(e) if e.is(Code::NotFound)),
        "Kill after the exit: {killed:?}"
    );
    ensure!(c.task().delete(&c.id, "")?.exit_status == 7);
    let c = running_under(kit, &Spec::sleeper(), options)?;
    kit.exec(&c, "e1", &Spec::sh("exit 4"))?;
    c.task().start(&c.id, "e1")?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 4);
    kit.exec(&c, "e2", &Spec::args(&["/no/such/program"]))?;
    ensure!(c.task().start(&c.id, "e2").is_err());
    c.task().pause(&c.id)?;
    c.task().resume(&c.id)?;
    c.task().kill(&c.id, "", 9, true)?;
    ensure!(c.exit_status()? == 137);
    ensure!(c.task().delete(&c.id, "")?.exit_status == 137);
    let c = running_under(kit, &Spec::sleeper(), options)?;
    c.shim.kill_all()?;
    deleted(&c)?;
    nothing_left(kit, &c.id)
}

fn f43_crun(kit: &Kit) -> Result<()> {
    // crun takes no host on which v1 has the controllers and v2 is mounted beside it.
    if !unified() && PathBuf::from("/sys/fs/cgroup/unified").exists() {
        return Ok(());
    }
    let crun = ["/usr/bin/crun", "/usr/local/bin/crun"]
        .iter()
        .find(|p| PathBuf::from(p).exists());
    life_under(
        kit,
        &runc_options(crun.context("no crun: run scripts/setup")?),
    )
}

fn f43_reworded_runc(kit: &Kit) -> Result<()> {
    // Its errors are in another language; its deeds and exit codes are the same.
    let body = "runc \"$@\" 2>$dir/words; code=$?; [ $code = 0 ] || { test -n \"$log\" && echo '{\"level\":\"error\",\"msg\":\"das geht nicht\"}' >$log; echo 'das geht nicht' >&2; }; exit $code";
    let (_, options) = scripted(kit, "reworded", body)?;
    life_under(kit, &options)
}

fn f44_pids_at_every_moment(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec {
        own_pids: false,
        ..Spec::sleeper()
    })?;
    let (task, id, init) = (c.task().clone(), c.id.clone(), c.pid);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let asking = std::thread::spawn(move || -> Result<usize> {
        let mut asked = 0;
        while matches!(
            stopped.try_recv(),
            Err(std::sync::mpsc::TryRecvError::Empty)
        ) {
            let pids = task.patient(2.0).pids(&id).context("Pids")?.processes;
            ensure!(
                pids.iter().any(|p| p.pid == init),
                "without init {init}: {pids:?}"
            );
            asked += 1;
        }
        Ok(asked)
    });
    let places = cgroups(kit.scratch.mark(), &c.id);
    for round in 0..times(15, 200) {
        let id = format!("e{round}");
        kit.exec(&c, &id, &Spec::sh("exit 4"))?;
        c.task().start(&c.id, &id)?;
        for place in &places {
            let nested = place.join("nested");
            fs::create_dir(&nested)?;
            if fs::write(nested.join("cgroup.procs"), c.pid.to_string()).is_ok() {
                fs::write(place.join("cgroup.procs"), c.pid.to_string())?;
            }
            until("the nest to be removed", by(5.0), || {
                fs::remove_dir(&nested).is_ok().then_some(())
            })?;
        }
        ensure!(c.task().wait(&c.id, &id)?.exit_status == 4);
        c.task().delete(&c.id, &id)?;
    }
    let _ = stop.send(());
    let asked = asking.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(asked > 10, "asked {asked} times only");
    Ok(())
}

/// Moves a process below each of a container's cgroups.
fn nest(places: &[PathBuf], below: &str, pid: i32) -> Result<()> {
    for place in places {
        let nested = place.join(below);
        fs::create_dir_all(&nested)?;
        // A cpuset without processors takes nobody, nor do the upper ones of a path.
        let mut at = place.clone();
        for part in PathBuf::from(below).components() {
            let parent = at.clone();
            at = at.join(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = fs::read_to_string(parent.join(file)) {
                    let _ = fs::write(at.join(file), all);
                }
            }
        }
        fs::write(nested.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("entering {}", nested.display()))?;
    }
    Ok(())
}

fn f44_restart_with_nested_cgroups(place: &mut Place) -> Result<()> {
    place.detached("c", &["sleep", "1000"])?;
    place.expect_status("c", "RUNNING")?;
    let init = place.pid("c")?;
    let places = cgroups(place.containerd.namespace(), "c");
    ensure!(!places.is_empty(), "no cgroup of the container");
    nest(&places, "a/b", init)?;
    for signal in [9, 15] {
        place.containerd.stop(signal)?;
        place.containerd.launch()?;
        place.expect_status("c", "RUNNING")?;
        ensure!(place.pid("c")? == init, "another init");
    }
    place.end("c")
}

/// All processes of a container.
fn members(kit: &Kit, c: &Container) -> Vec<i32> {
    let name = format!("/{}/{}", kit.scratch.mark(), c.id);
    let all = Process::all().into_iter();
    all.filter(|p| p.state != 'Z' && p.cgroup.contains(&name))
        .map(|p| p.pid)
        .collect()
}

fn f46_init_in_a_nested_cgroup(kit: &Kit) -> Result<()> {
    for end in ["kill", "sigkill"] {
        let spec = Spec {
            own_pids: false,
            ..Spec::sh("sleep 1001 & sleep 1000 & echo ready; wait")
        };
        let c = kit.running(&spec)?;
        c.out()?.expect("ready\n", by(5.0))?;
        let places = cgroups(kit.scratch.mark(), &c.id);
        until("three members", by(5.0), || {
            (members(kit, &c).len() == 3).then_some(())
        })?;
        for (number, pid) in members(kit, &c).into_iter().enumerate() {
            nest(&places, &format!("n{number}/deep"), pid)?;
        }
        let pids = c.task().pids(&c.id)?.processes;
        ensure!(
            pids.len() == 3 && pids.iter().any(|p| p.pid == c.pid),
            "{pids:?}"
        );
        c.task().stats(&c.id).context("Stats")?;
        if end == "kill" {
            c.task().kill(&c.id, "", 9, true)?;
            ensure!(c.exit_status()? == 137);
            until("all to die", by(5.0), || {
                members(kit, &c).is_empty().then_some(())
            })?;
            c.task().delete(&c.id, "")?;
            ensure!(
                cgroups(kit.scratch.mark(), &c.id).is_empty(),
                "cgroups are left"
            );
        } else {
            c.shim.kill_all()?;
            ensure!(deleted(&c)?.exit_status == 137);
            nothing_left(kit, &c.id)?;
        }
    }
    Ok(())
}

/// A deep path and many siblings in each hierarchy, with a process at the bottom.
fn forest(kit: &Kit, c: &Container) -> Result<()> {
    let places = cgroups(kit.scratch.mark(), &c.id);
    let deep: Vec<String> = (0..20).map(|n| format!("d{n}")).collect();
    let child = until("a child", by(5.0), || {
        members(kit, c)
            .into_iter()
            .find(|p| u32::try_from(*p) != Ok(c.pid))
    })?;
    nest(&places, &deep.join("/"), child)?;
    for place in &places {
        for number in 0..100 {
            fs::create_dir_all(place.join(format!("w{number}/below")))?;
        }
    }
    Ok(())
}

fn f46_deep_and_wide(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec {
        own_pids: false,
        ..Spec::sh("sleep 1001 & sleep 1000 & wait")
    })?;
    forest(kit, &c)?;
    ensure!(c.task().pids(&c.id)?.processes.len() == 3);
    c.task().kill(&c.id, "", 9, true)?;
    ensure!(c.exit_status()? == 137);
    c.task().delete(&c.id, "")?;
    ensure!(
        cgroups(kit.scratch.mark(), &c.id).is_empty(),
        "cgroups are left after Delete"
    );
    Ok(())
}

fn f46_deep_and_wide_after_sigkill(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec {
        own_pids: false,
        ..Spec::sh("sleep 1001 & sleep 1000 & wait")
    })?;
    forest(kit, &c)?;
    c.shim.kill_all()?;
    ensure!(deleted(&c)?.exit_status == 137);
    nothing_left(kit, &c.id)
}

fn f46_threaded(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec {
        own_pids: false,
        ..Spec::sh("sleep 1001 & sleep 1000 & wait")
    })?;
    let places: Vec<PathBuf> = cgroups(kit.scratch.mark(), &c.id)
        .into_iter()
        .filter(|p| p.join("cgroup.type").exists())
        .collect();
    ensure!(
        !unified() || !places.is_empty(),
        "a v2 host without cgroup.type"
    );
    for place in &places {
        let below = place.join("threads");
        fs::create_dir(&below)?;
        // Refused where controllers are in the way; then it is an ordinary nest.
        let _ = fs::write(below.join("cgroup.type"), "threaded");
        let child = until("a child", by(5.0), || {
            members(kit, &c)
                .into_iter()
                .find(|p| u32::try_from(*p) != Ok(c.pid))
        })?;
        let _ = fs::write(below.join("cgroup.procs"), child.to_string());
        let _ = fs::write(below.join("cgroup.threads"), child.to_string());
        let _ = fs::write(place.join("cgroup.max.depth"), "1");
    }
    let pids = c.task().pids(&c.id)?.processes;
    ensure!(pids.iter().any(|p| p.pid == c.pid), "{pids:?}");
    c.task().kill(&c.id, "", 9, true)?;
    ensure!(c.exit_status()? == 137);
    until("all to die", by(5.0), || {
        members(kit, &c).is_empty().then_some(())
    })?;
    c.task().delete(&c.id, "")?;
    ensure!(
        cgroups(kit.scratch.mark(), &c.id).is_empty(),
        "cgroups are left"
    );
    Ok(())
}

/// The signals of a crash.
const FATAL: [i32; 4] = [11, 6, 7, 4];

/// Sends one of the pair a fatal signal. Either another takes its place and the truth goes
/// on being told, or the whole pair ends and `delete` tells it. `status`: init's, once it is over.
fn crashes(kit: &Kit, c: &Container, signal: i32, first: bool, status: u32) -> Result<()> {
    let (reaper, shim) = reaper_and_shim(c)?;
    let victim = if first { reaper } else { shim };
    let victim = Process::read(victim).context("no shim")?;
    until("it to end", by(5.0), || {
        // A handler that looks for stack overflows may let the first one pass that nobody's fault has sent.
        (!signal_if(victim.pid, signal, |p| p.cmdline == victim.cmdline)).then_some(())
    })?;
    let serves = until("another shim, or the pair to end", by(10.0), || {
        // On a busy machine one that lives may show no arguments for a moment.
        if c.shim.processes().is_empty() && ![reaper, shim].into_iter().any(alive) {
            return Some(false);
        }
        c.task()
            .patient(2.0)
            .state(&c.id, "")
            .is_ok()
            .then_some(true)
    })?;
    if serves {
        let _ = c.task().kill(&c.id, "", 9, false);
        let waited = c.task().wait(&c.id, "").context("Wait")?;
        ensure!(waited.exit_status == status, "Wait says {waited:?}");
        let told = c.task().delete(&c.id, "").context("Delete")?;
        ensure!(told.exit_status == status && told.pid == c.pid, "{told:?}");
        c.task().shutdown(&c.id)?;
        until("the pair to leave", by(10.0), || {
            c.shim.processes().is_empty().then_some(())
        })?;
    }
    let ran = c.shim.delete()?;
    let words = String::from_utf8_lossy(&ran.ran.stderr).into_owned();
    let said = ran.ok()?;
    // Nobody else is left to say what happened.
    ensure!(
        serves || !words.trim().is_empty(),
        "not a word of the crash"
    );
    ensure!(words.len() < 4096, "{} bytes of words", words.len());
    ensure!(said.exit_status == status, "{said:?}; {words}");
    ensure!(!alive(pid(c)?));
    nothing_left(kit, &c.id)?;
    ensure!(!c.shim.reply.socket.exists(), "the socket is left");
    let again = deleted(c)?.exit_status;
    ensure!(again == said.exit_status, "the second time: {again}");
    Ok(())
}

fn f47_fatal_signals(kit: &Kit) -> Result<()> {
    for signal in FATAL {
        for first in [true, false] {
            let what = || format!("signal {signal}, the first process: {first}");
            let c = kit.running(&Spec::sleeper())?;
            crashes(kit, &c, signal, first, 137).with_context(what)?;
            let c = kit.running(&Spec::sh("exit 7"))?;
            ensure!(c.exit_status()? == 7);
            crashes(kit, &c, signal, first, 7).with_context(what)?;
        }
    }
    Ok(())
}

fn f47_fatal_signals_under_load(kit: &Kit) -> Result<()> {
    for (round, signal) in FATAL.into_iter().enumerate() {
        let c = kit.running(&Spec::sleeper())?;
        std::thread::scope(|scope| -> Result<()> {
            let (c, kit) = (&c, kit);
            let load = scope.spawn(move || {
                for number in 0..200 {
                    let id = format!("e{number}");
                    if kit.exec(c, &id, &Spec::sh("exit 4")).is_err()
                        || c.task().start(&c.id, &id).is_err()
                    {
                        break;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(150 + 40 * round as u64));
            let outcome = crashes(kit, c, signal, round % 2 == 0, 137);
            let _ = load.join();
            outcome.with_context(|| format!("signal {signal}"))
        })?;
    }
    Ok(())
}

fn f47_delete_beside_shutdown(kit: &Kit) -> Result<()> {
    for round in 0..times(12, 600) {
        let c = kit.running(&Spec::sh("exit 3"))?;
        ensure!(c.exit_status()? == 3);
        let (task, id) = (c.task().clone(), c.id.clone());
        let leaving = std::thread::spawn(move || {
            (0..3)
                .map(|_| task.patient(5.0).shutdown(&id))
                .collect::<Vec<_>>()
        });
        let told = c.task().patient(5.0).delete(&c.id, "");
        let _ = leaving.join();
        if let Ok(told) = told {
            ensure!(told.exit_status == 3, "round {round}: {told:?}");
        }
        let _ = c.task().shutdown(&c.id);
        until("the pair to leave", by(10.0), || {
            c.shim.processes().is_empty().then_some(())
        })?;
        let said = deleted(&c)?;
        ensure!(said.exit_status == 3, "round {round}: {said:?}");
        nothing_left(kit, &c.id)?;
    }
    Ok(())
}

fn f50_reading_runs_no_runc(kit: &Kit) -> Result<()> {
    let (dir, options) = scripted(kit, "counting", "echo $verb >>$dir/calls")?;
    let c = running_under(kit, &Spec::sleeper(), &options)?;
    let calls = || fs::read_to_string(dir.join("calls")).unwrap_or_default();
    let before = calls();
    for _ in 0..50 {
        c.task().state(&c.id, "")?;
        c.task().pids(&c.id)?;
        c.task().stats(&c.id)?;
        c.task().connect_task(&c.id)?;
        let _ = c.task().patient(0.001).wait(&c.id, "");
    }
    ensure!(
        calls() == before,
        "runc was run: {}",
        calls().trim_start_matches(before.as_str())
    );
    Ok(())
}

/// Processor time a process has used, in ticks.
fn ticks(pid: i32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .context("a stat line")?
        .1
        .split(' ')
        .collect();
    let number = |at: usize| -> Result<u64> { Ok(fields.get(at).context("short")?.parse()?) };
    Ok(number(11)? + number(12)?)
}

fn f50_idle_costs_nothing(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::args(&["sleep", "1000"]))?;
    // What follows a start may take its moment.
    std::thread::sleep(Duration::from_secs(2));
    let ours: Vec<i32> = c.shim.processes().iter().map(|p| p.pid).collect();
    let used = || ours.iter().map(|p| ticks(*p)).sum::<Result<u64>>();
    let before = used()?;
    std::thread::sleep(Duration::from_secs(5));
    ensure!(used()? <= before + 1, "{before} ticks, then {}", used()?);
    serves(&c)
}

/// Steps the machine's clock by `seconds`.
fn step(seconds: i64) -> Result<()> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let ran = Command::new("date")
        .arg("-s")
        .arg(format!("@{}", now + seconds))
        .output()?;
    ensure!(
        ran.status.success(),
        "date: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(())
}

fn f51_clock_steps(kit: &Kit) -> Result<()> {
    // The clock is everybody's: only where somebody says that it is his.
    if std::env::var_os("VIGIL_CLOCK").is_none() {
        return Ok(());
    }
    let mut stepped = 0;
    let mut by_an_hour = |hours: i64| -> Result<()> {
        stepped += hours;
        step(hours * 3600)
    };
    let mut outcome = || -> Result<()> {
        for hours in [-1, 1] {
            let c = kit.running(&Spec::sh(
                "while ! test -e /tmp/go; do sleep 0.05; done; exit 7",
            ))?;
            let began = kit.sink.wait("start", by(5.0), |e| match &e.fact {
                Fact::Start(s) if s.container_id == c.id => e.timestamp.as_ref().map(|t| t.seconds),
                _ => None,
            })?;
            by_an_hour(hours)?;
            serves(&c)?;
            fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
            let waited = c.task().wait(&c.id, "")?;
            ensure!(waited.exit_status == 7);
            let at = waited.exited_at.clone().unwrap_or_default().seconds;
            ensure!(at >= began, "it began at {began} and ended at {at}");
            by_an_hour(-2 * hours)?;
            let deleted = c.task().delete(&c.id, "")?;
            ensure!(
                deleted.exit_status == 7 && deleted.exited_at == waited.exited_at,
                "{deleted:?} after {waited:?}"
            );
            by_an_hour(hours)?;
            answered(c.task().state(&c.id, ""), "State")?;
        }
        Ok(())
    };
    let result = outcome();
    if stepped != 0 {
        step(-stepped * 3600)?;
    }
    result
}

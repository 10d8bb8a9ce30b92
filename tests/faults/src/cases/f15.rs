//! F15: `delete`, the last word. With whatever is left of the bundle, many at once, from
//! nowhere, beside a pair that is at work, and with a runc that does not come back.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio as Pipe};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use serde_json::json;
use vigil_lab::bundle::Stdio;
use vigil_lab::process::alive;
use vigil_lab::shim::run;
use vigil_lab::{Kit, Spec, by, until};

use crate::cases;
use crate::world::{deleted, init_gone, nothing_left, pid, running_under, scripted, times};

cases! {
    Kit All  f15_any_subset_of_files "`delete` with any subset of the bundle's files, and again with what is left";
    Kit Ours f15_any_subset_beside_a_living_pair "... and with the pair alive: it is made to leave";
    Kit All  f15_fifty_at_once "50 at once, the pairs killed: all right, all in time";
    Kit All  f15_cwd_is_gone "`delete` whose cwd was removed; the container's -bundle too";
    Kit All  f15_beside_a_live_delete "`delete` beside a Delete that is under way in a living pair";
    Kit Ours f15_beside_a_live_create "`delete` beside a Create that is under way in a living pair";
    Kit All  f15_runc_is_of_no_help "runc that hangs, fails, prints to stdout or is missing in `delete`";
    Kit All  f15_poststop_once "poststop hooks: once in an ordinary life, `delete` afterwards included";
    Kit All  f15_poststop_once_after_sigkill "poststop hooks: once when the pair was killed, with four `delete`s at once and one after";
    Kit All  f15_poststop_for_each_create_runtime "poststop hooks: at least once for each createRuntime when killed in mid-create";
    Kit All  f15_poststop_after_death_in_delete "poststop hooks: at least once when killed inside `runc delete`";
    Kit All  f15_killed_and_repeated "`delete` SIGKILLed at any moment and run again: the same end, nothing left, poststop at least once";
    Kit All  f15_parallel_while_a_hook_hangs "A poststop hook that hangs, three `delete`s at once: all in time, one answer";
    Kit All  f15_poststop_that_hangs "poststop hooks that hang: `delete` is in time all the same";
}

/// A few numbers that are the same in every run: xorshift.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Everything in the bundle but the mount point, sorted.
fn files(bundle: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(bundle)?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "rootfs")
        .collect();
    names.sort();
    Ok(names)
}

fn f15_any_subset_of_files(kit: &Kit) -> Result<()> {
    let mut dice = Dice(0x5eed_0f15);
    for round in 0..times(16, 300) {
        let c = kit.running(&Spec::sleeper())?;
        c.shim.kill_all()?;
        // The first round takes all, the second none.
        let chosen = match round {
            0 => u64::MAX,
            1 => 0,
            _ => dice.next(),
        };
        let removed: Vec<String> = files(&c.bundle.dir)?
            .into_iter()
            .enumerate()
            .filter(|(at, _)| chosen >> at & 1 == 1)
            .map(|(_, name)| name)
            .collect();
        for name in &removed {
            fs::remove_file(c.bundle.dir.join(name))?;
        }
        let without = || format!("without {removed:?}");
        let said = deleted(&c).with_context(without)?;
        ensure!(!alive(pid(&c)?), "{}: init lives on", without());
        nothing_left(kit, &c.id).with_context(without)?;
        // We killed it, or it is not known who it was; never something else.
        ensure!(
            [137, 255].contains(&said.exit_status),
            "{}: {said:?}",
            without()
        );
        let again = deleted(&c).with_context(without)?;
        ensure!(
            again.exit_status == said.exit_status || !removed.is_empty(),
            "{}: first {said:?}, then {again:?}",
            without()
        );
        c.bundle.remove().with_context(without)?;
    }
    Ok(())
}

fn f15_any_subset_beside_a_living_pair(kit: &Kit) -> Result<()> {
    let mut dice = Dice(0x5eed_15f0);
    for round in 0..times(14, 200) {
        let c = kit.running(&Spec::sleeper())?;
        // One after the other, then some.
        let chosen = if round < 10 { 1 << round } else { dice.next() };
        let removed: Vec<String> = files(&c.bundle.dir)?
            .into_iter()
            .enumerate()
            .filter(|(at, _)| chosen >> at & 1 == 1)
            .map(|(_, name)| name)
            .collect();
        for name in &removed {
            fs::remove_file(c.bundle.dir.join(name))?;
        }
        let without = || format!("without {removed:?}");
        deleted(&c).with_context(without)?;
        ensure!(!alive(pid(&c)?), "{}: init lives on", without());
        nothing_left(kit, &c.id).with_context(without)?;
        let left = c.shim.processes();
        ensure!(left.is_empty(), "{}: {left:?}", without());
    }
    Ok(())
}

fn f15_fifty_at_once(kit: &Kit) -> Result<()> {
    let count = times(20, 50);
    let mut containers = Vec::new();
    for number in 0..count {
        // Half of them have a status of their own, which must come out.
        let spec = if number % 2 == 0 {
            Spec::sleeper()
        } else {
            Spec::sh("exit 7")
        };
        let c = kit.running(&spec)?;
        if number % 2 == 1 {
            ensure!(c.exit_status()? == 7);
        }
        containers.push(c);
    }
    for c in &containers {
        c.shim.kill_all()?;
    }
    let said: Vec<Result<DeleteResponse>> = std::thread::scope(|scope| {
        let runs: Vec<_> = containers
            .iter()
            .map(|c| scope.spawn(|| deleted(c)))
            .collect();
        runs.into_iter()
            .map(|r| {
                r.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))
            })
            .collect()
    });
    for (number, (said, c)) in said.into_iter().zip(&containers).enumerate() {
        let said = said.with_context(|| format!("number {number} of {count}"))?;
        let wanted = if number % 2 == 0 { 137 } else { 7 };
        ensure!(
            said.exit_status == wanted && said.pid == c.pid,
            "number {number}: {said:?}"
        );
        nothing_left(kit, &c.id)?;
    }
    Ok(())
}

fn f15_cwd_is_gone(kit: &Kit) -> Result<()> {
    for bundle_too in [false, true] {
        let c = kit.running(&Spec::sleeper())?;
        c.shim.kill_all()?;
        if bundle_too {
            c.bundle.remove()?;
        }
        let gone = kit.scratch.path("gone");
        fs::create_dir(&gone)?;
        let inner = kit.caller.command(&c.id, kit.scratch.dir());
        // The shell stays where it is when the directory goes; containerd's bundle may go like that.
        let mut command = Command::new("sh");
        command
            .args(["-c", "rmdir \"$PWD\" && exec \"$@\"", "sh"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .arg("-bundle")
            .arg(&c.bundle.dir)
            .arg("delete")
            .envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .current_dir(&gone);
        let ran = run(&mut command, &[], false, by(5.0))?;
        let words = String::from_utf8_lossy(&ran.stderr).into_owned();
        ensure!(!gone.exists(), "the cwd is still there");
        ensure!(ran.status.success(), "{}: {words}", ran.status);
        let said = DeleteResponse::parse_from_bytes(&ran.stdout)?;
        ensure!([137, 255].contains(&said.exit_status), "{said:?}");
        init_gone(&c, 1.0)?;
        nothing_left(kit, &c.id)?;
    }
    Ok(())
}

fn f15_beside_a_live_delete(kit: &Kit) -> Result<()> {
    let (dir, options) = scripted(
        kit,
        "slow",
        "[ $verb = delete ] && { : >$dir/begun; sleep 1; }",
    )?;
    let c = running_under(kit, &Spec::sh("exit 7"), &options)?;
    ensure!(c.exit_status()? == 7);
    let (task, id) = (c.task().patient(8.0), c.id.clone());
    let live = std::thread::spawn(move || task.delete(&id, ""));
    until("runc delete to be under way", by(5.0), || {
        dir.join("begun").exists().then_some(())
    })?;
    let said = deleted(&c)?;
    ensure!(said.exit_status == 7 && said.pid == c.pid, "{said:?}");
    // It may be answered, or the connection may have ended; it may not say something else.
    let told = live.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    if let Ok(told) = told {
        ensure!(told.exit_status == 7, "Delete said {told:?}");
    }
    nothing_left(kit, &c.id)?;
    ensure!(deleted(&c)?.exit_status == 7, "the second time");
    Ok(())
}

fn f15_beside_a_live_create(kit: &Kit) -> Result<()> {
    let (dir, options) = scripted(
        kit,
        "slow",
        "[ $verb = create ] && { : >$dir/begun; sleep 1; }",
    )?;
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut request = c.bundle.create_request();
    request.options = Some(options).into();
    let task = c.task().patient(8.0);
    let live = std::thread::spawn(move || task.create(&request));
    until("runc create to be under way", by(5.0), || {
        dir.join("begun").exists().then_some(())
    })?;
    c.shim.delete()?.ok()?;
    let told = live.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    ensure!(
        told.is_err(),
        "Create said {told:?} and `delete` had removed it"
    );
    // Longer than runc was asleep: nothing may come into being afterwards.
    std::thread::sleep(Duration::from_millis(1500));
    nothing_left(kit, &c.id)
}

fn f15_runc_is_of_no_help(kit: &Kit) -> Result<()> {
    for body in [
        "[ $verb = delete ] && while :; do sleep 0.2; done",
        "trap '' TERM; [ $verb = delete ] && while :; do sleep 0.2; done",
        "[ $verb = delete ] && { sleep 4.5; }",
        "[ $verb = delete ] && { echo 'device or resource busy' >&2; exit 1; }",
        "[ $verb = delete ] && { echo 'this is no protobuf'; head -c 100000 /dev/zero; }",
        "[ $verb = delete ] && { rm -f $0; exit 126; }",
    ] {
        let (dir, options) = scripted(kit, "useless", body)?;
        let c = running_under(kit, &Spec::sleeper(), &options).context(body)?;
        c.shim.kill_all()?;
        let said = deleted(&c).context(body)?;
        ensure!(
            said.exit_status == 137 && said.pid == c.pid,
            "{body}: {said:?}"
        );
        nothing_left(kit, &c.id).context(body)?;
        fs::remove_dir_all(dir)?;
        // Nor does a second one find more to do, though there is no runc at all now.
        ensure!(
            deleted(&c).context(body)?.exit_status == 137,
            "{body}: the second time"
        );
    }
    Ok(())
}

/// A spec whose createRuntime and poststop hooks write a line each; `hooked` reads them.
fn with_hooks(kit: &Kit, spec: Spec, create_runtime: &str, poststop: &str) -> Result<Spec> {
    let log = kit.scratch.path("hooks");
    fs::write(&log, "")?;
    let hook = |word: &str, more: &str| {
        // The hook reads the state runc writes to it, or runc may fail with EPIPE.
        let line = format!("cat >/dev/null; echo {word} >>{}; {more}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}])
    };
    Ok(Spec {
        extra: json!({"hooks": {
            "createRuntime": hook("createRuntime", create_runtime),
            "poststop": hook("poststop", poststop),
        }}),
        ..spec
    })
}

/// How often each of the two hooks has run.
fn hooked(kit: &Kit) -> Result<(usize, usize)> {
    let text = fs::read_to_string(kit.scratch.path("hooks"))?;
    let count = |word| text.lines().filter(|l| *l == word).count();
    Ok((count("createRuntime"), count("poststop")))
}

fn f15_poststop_once(kit: &Kit) -> Result<()> {
    let spec = with_hooks(kit, Spec::sh("exit 3"), "", "")?;
    let c = kit.running(&spec)?;
    ensure!(c.exit_status()? == 3);
    ensure!(hooked(kit)? == (1, 0), "{:?} before Delete", hooked(kit)?);
    c.task().delete(&c.id, "")?;
    ensure!(hooked(kit)? == (1, 1), "{:?} after Delete", hooked(kit)?);
    c.task().shutdown(&c.id)?;
    deleted(&c)?;
    deleted(&c)?;
    ensure!(hooked(kit)? == (1, 1), "{:?} after `delete`", hooked(kit)?);
    Ok(())
}

fn f15_poststop_once_after_sigkill(kit: &Kit) -> Result<()> {
    for stopped in [false, true] {
        let spec = if stopped {
            Spec::sh("exit 3")
        } else {
            Spec::sleeper()
        };
        let spec = with_hooks(kit, spec, "", "sleep 0.3")?;
        let c = kit.running(&spec)?;
        if stopped {
            ensure!(c.exit_status()? == 3);
        }
        c.shim.kill_all()?;
        let said: Vec<Result<DeleteResponse>> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| deleted(&c))).collect();
            runs.into_iter()
                .map(|r| {
                    r.join()
                        .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))
                })
                .collect()
        });
        let wanted = if stopped { 3 } else { 137 };
        for said in said {
            let said = said?;
            ensure!(said.exit_status == wanted, "{said:?}, not {wanted}");
        }
        deleted(&c)?;
        ensure!(
            hooked(kit)? == (1, 1),
            "stopped {stopped}: {:?}",
            hooked(kit)?
        );
        nothing_left(kit, &c.id)?;
    }
    Ok(())
}

fn f15_poststop_for_each_create_runtime(kit: &Kit) -> Result<()> {
    // The pair is killed while the hook runs, and after runc has finished.
    for finish in [false, true] {
        let spec = with_hooks(
            kit,
            Spec::sleeper(),
            if finish { "" } else { "sleep 3" },
            "",
        )?;
        let body = "[ $verb = create ] && { runc \"$@\"; : >$dir/done; sleep 3; exit 0; }";
        let (dir, options) = scripted(kit, "late", body)?;
        let c = kit.prepared(&spec, Stdio::Output)?;
        let mut request = c.bundle.create_request();
        request.options = Some(options).into();
        let task = c.task().patient(8.0);
        let asked = std::thread::spawn(move || task.create(&request).map(drop));
        until("the hook to run", by(5.0), || {
            let ready = hooked(kit).is_ok_and(|(made, _)| made == 1);
            (ready && (!finish || dir.join("done").exists())).then_some(())
        })?;
        c.shim.kill_all()?;
        c.shim.delete()?.ok()?;
        let _ = asked.join();
        c.shim.delete()?.ok()?;
        nothing_left(kit, &c.id)?;
        let (made, stopped) = hooked(kit)?;
        ensure!(
            made == 1 && stopped >= 1,
            "{made} createRuntime, {stopped} poststop; finished: {finish}"
        );
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn f15_poststop_after_death_in_delete(kit: &Kit) -> Result<()> {
    let spec = with_hooks(kit, Spec::sh("exit 3"), "", "sleep 1")?;
    let c = kit.running(&spec)?;
    ensure!(c.exit_status()? == 3);
    let (task, id) = (c.task().patient(8.0), c.id.clone());
    let asked = std::thread::spawn(move || task.delete(&id, "").map(drop));
    until("the hook to run", by(5.0), || {
        (hooked(kit).ok()?.1 == 1).then_some(())
    })?;
    c.shim.kill_all()?;
    let said = deleted(&c)?;
    ensure!(said.exit_status == 3, "{said:?}");
    let _ = asked.join();
    let (_, stopped) = hooked(kit)?;
    ensure!((1..=2).contains(&stopped), "{stopped} poststop");
    deleted(&c)?;
    ensure!(hooked(kit)?.1 == stopped, "a second `delete` ran it again");
    nothing_left(kit, &c.id)
}

fn f15_parallel_while_a_hook_hangs(kit: &Kit) -> Result<()> {
    let spec = with_hooks(kit, Spec::sh("exit 3"), "", "exec sleep 20")?;
    let c = kit.running(&spec)?;
    ensure!(c.exit_status()? == 3);
    c.shim.kill_all()?;
    let said: Vec<Result<DeleteResponse>> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| deleted(&c))).collect();
        runs.into_iter()
            .map(|r| {
                r.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))
            })
            .collect()
    });
    for said in said {
        let said = said?;
        ensure!(said.exit_status == 3 && said.pid == c.pid, "{said:?}");
    }
    nothing_left(kit, &c.id)?;
    ensure!(hooked(kit)? == (1, 1), "{:?}", hooked(kit)?);
    Ok(())
}

fn f15_poststop_that_hangs(kit: &Kit) -> Result<()> {
    let spec = with_hooks(kit, Spec::sleeper(), "", "exec sleep 20")?;
    let c = kit.running(&spec)?;
    c.shim.kill_all()?;
    let said = deleted(&c)?;
    ensure!(said.exit_status == 137, "{said:?}");
    nothing_left(kit, &c.id)?;
    ensure!(hooked(kit)? == (1, 1), "{:?}", hooked(kit)?);
    deleted(&c)?;
    Ok(())
}

fn f15_killed_and_repeated(kit: &Kit) -> Result<()> {
    let mut repeated = 0;
    for round in 0..times(15, 150) {
        let stopped = round % 2 == 1;
        let spec = if stopped {
            Spec::sh("exit 3")
        } else {
            Spec::sleeper()
        };
        let spec = with_hooks(kit, spec, "", "sleep 0.02")?;
        let c = kit.running(&spec)?;
        if stopped {
            ensure!(c.exit_status()? == 3);
        }
        c.shim.kill_all()?;
        let mut command = kit.caller.command(&c.id, &c.bundle.dir);
        command.arg("-bundle").arg(&c.bundle.dir).arg("delete");
        command.stdin(Pipe::null());
        command.stdout(Pipe::null()).stderr(Pipe::null());
        let mut first = command.spawn()?;
        std::thread::sleep(Duration::from_millis(round as u64 * 7 % 97));
        // As containerd does after its five seconds.
        if first.try_wait()?.is_none() {
            repeated += 1;
            first.kill()?;
        }
        first.wait()?;
        let what = || format!("round {round}, {} ms", round * 7 % 97);
        let said = deleted(&c).with_context(what)?;
        // Who was killed by a `delete` that could not say so any more died unseen.
        let wanted: &[u32] = if stopped { &[3] } else { &[137, 255] };
        ensure!(wanted.contains(&said.exit_status), "{}: {said:?}", what());
        nothing_left(kit, &c.id).with_context(what)?;
        // A runc that was orphaned in the middle goes on by itself.
        until("poststop to run", by(5.0), || {
            (hooked(kit).ok()?.1 > 0).then_some(())
        })
        .with_context(what)?;
        let (made, over) = hooked(kit)?;
        ensure!(
            made == 1 && (1..=2).contains(&over),
            "{}: {over} poststop",
            what()
        );
        ensure!(
            deleted(&c)?.exit_status == said.exit_status,
            "{}: the third time",
            what()
        );
        ensure!(hooked(kit)?.1 == over, "{}: poststop again", what());
    }
    ensure!(repeated > 2, "`delete` was killed {repeated} times only");
    Ok(())
}

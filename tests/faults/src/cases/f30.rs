//! F30 and F48: numbers and names that have come to mean somebody else. Whatever a file,
//! a pid or a cgroup's path says, only what is surely the container's is touched.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Status;
use serde_json::{Value, json};
use vigil_lab::kit::Container;
use vigil_lab::process::{Process, signal_if};
use vigil_lab::{Code, Kit, Spec, by, until};

use crate::cases;
use crate::cases::f26::made_again;
use crate::world::{
    Stranger, cgroups, deleted, init_gone, nothing_left, pid, runc_state, running_under, scripted,
    status, times, unified, with_pid,
};

cases! {
    Kit All  f30_stranger_with_inits_pid "A stranger has init's pid: State, Kill, Delete of the stopped container";
    Kit All  f30_delete_with_inits_pid_taken "A stranger has init's pid: `delete` after its exit, known and unknown";
    Kit All  f30_stranger_with_an_execs_pid "A stranger has an exec's pid: Kill, State, Delete of the exec";
    Kit All  f30_exec_with_an_ended_execs_pid "An exec gets the pid of one that has ended and is not deleted: each has its own status" alone;
    Kit All  f30_exec_pid_file_names_a_stranger "An exec's pid file is stale, or runc writes a stranger's pid: refused, nobody hurt, the container goes on";
    Kit All  f30_init_pid_names_a_stranger "init.pid names a living stranger, beside each other file missing";
    Kit Ours f30_pair_names_strangers "`pair` names living strangers as reaper and shim";
    Kit All  f30_state_json_names_a_stranger "runc's state.json names a stranger";
    Kit All  f30_recreated_cgroup "The cgroup's path is another cgroup with a stranger in it; runc's state gone or there";
    Kit All  f48_update_of_a_dying_container "Update while init dies, and after: no other cgroup's limits change";
    Kit All  f48_stats_with_the_pid_taken "Stats, Pids and Update with init's pid taken by a stranger";
}

fn refused<T: std::fmt::Debug>(
    answer: Result<T, vigil_lab::CallError>,
    code: Code,
    what: &str,
) -> Result<()> {
    match answer {
        Err(error) if error.is(code) => Ok(()),
        other => anyhow::bail!("{what}: {code:?} expected, got {other:?}"),
    }
}

fn f30_stranger_with_inits_pid(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 7"))?;
    ensure!(c.exit_status()? == 7);
    let mut stranger = with_pid(c.pid)?;
    ensure!(status(&c, "")? == Status::STOPPED, "{:?}", status(&c, "")?);
    for all in [false, true] {
        let killed = c.task().kill(&c.id, "", 9, all);
        ensure!(
            all || killed.is_err(),
            "Kill of a stopped container was done"
        );
        stranger.unhurt()?;
    }
    ensure!(c.task().delete(&c.id, "")?.exit_status == 7);
    stranger.unhurt()?;
    c.task().shutdown(&c.id)?;
    deleted(&c)?;
    stranger.unhurt()
}

fn f30_delete_with_inits_pid_taken(kit: &Kit) -> Result<()> {
    for known in [true, false] {
        let c = kit.running(&Spec::sh(
            "while ! test -e /tmp/go; do sleep 0.05; done; exit 7",
        ))?;
        if !known {
            c.shim.kill_all()?;
        }
        fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
        if known {
            ensure!(c.exit_status()? == 7);
            c.shim.kill_all()?;
        } else {
            init_gone(&c, 5.0)?;
        }
        let mut stranger = with_pid(c.pid)?;
        let said = deleted(&c)?;
        stranger
            .unhurt()
            .with_context(|| format!("known {known}"))?;
        let wanted = if known { 7 } else { 255 };
        ensure!(said.exit_status == wanted, "known {known}: {said:?}");
        nothing_left(kit, &c.id)?;
        deleted(&c)?;
        stranger.unhurt()?;
    }
    Ok(())
}

fn f30_stranger_with_an_execs_pid(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "e1", &Spec::sh("exit 5"))?;
    let number = c.task().start(&c.id, "e1")?;
    ensure!(c.task().wait(&c.id, "e1")?.exit_status == 5);
    let mut stranger = with_pid(number)?;
    refused(
        c.task().kill(&c.id, "e1", 9, false),
        Code::NotFound,
        "Kill of the exec",
    )?;
    stranger.unhurt()?;
    ensure!(status(&c, "e1")? == Status::STOPPED);
    // Another exec under the same id, while the number is taken, is its own.
    ensure!(c.task().delete(&c.id, "e1")?.exit_status == 5);
    kit.exec(&c, "e2", &Spec::sh("exit 6"))?;
    c.task().start(&c.id, "e2")?;
    ensure!(c.task().wait(&c.id, "e2")?.exit_status == 6);
    c.task().kill(&c.id, "", 9, true)?;
    ensure!(c.exit_status()? == 137);
    stranger.unhurt()
}

fn f30_exec_with_an_ended_execs_pid(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    kit.exec(&c, "old", &Spec::sh("exit 5"))?;
    let number = c.task().start(&c.id, "old")?;
    ensure!(c.task().wait(&c.id, "old")?.exit_status == 5);
    // runc itself takes some numbers before the exec gets its own; how many differs.
    for attempt in 0..times(600, 1500) {
        let id = format!("e{attempt}");
        kit.exec(&c, &id, &Spec::sh("read word; exit 6"))?;
        let before = number - 3 - u32::try_from(attempt % 60)?;
        fs::write("/proc/sys/kernel/ns_last_pid", before.to_string())?;
        let got = c.task().start(&c.id, &id)?;
        if got == number {
            ensure!(status(&c, "old")? == Status::STOPPED);
            ensure!(status(&c, &id)? == Status::RUNNING);
            refused(
                c.task().kill(&c.id, "old", 9, false),
                Code::NotFound,
                "Kill of the ended exec",
            )?;
            ensure!(status(&c, &id)? == Status::RUNNING, "the new exec was hit");
            ensure!(c.task().delete(&c.id, "old")?.exit_status == 5);
            ensure!(status(&c, &id)? == Status::RUNNING);
            c.task().kill(&c.id, &id, 9, false)?;
            ensure!(c.task().wait(&c.id, &id)?.exit_status == 137);
            return Ok(());
        }
        c.task().kill(&c.id, &id, 9, false)?;
        ensure!(c.task().wait(&c.id, &id)?.exit_status == 137);
        c.task().delete(&c.id, &id)?;
    }
    bail!("no exec got pid {number}: nothing was tested")
}

fn f30_exec_pid_file_names_a_stranger(kit: &Kit) -> Result<()> {
    for body in [
        // runc says that all is well and has written nothing: what is there is of another day.
        "[ $verb = exec ] && exit 0",
        "[ $verb = exec ] && { cat $dir/stranger >$pid_file; exit 0; }",
        "[ $verb = exec ] && { runc \"$@\"; cat $dir/stranger >$pid_file; exit 0; }",
    ] {
        let (dir, options) = scripted(kit, "forging", body)?;
        let c = running_under(kit, &Spec::sleeper(), &options)?;
        let mut stranger = Stranger::new()?;
        let number = stranger.pid().to_string();
        fs::write(dir.join("stranger"), &number)?;
        for name in ["e1.pid", ".e1.pid", "e1"] {
            fs::write(c.bundle.dir.join(name), &number)?;
        }
        kit.exec(&c, "e1", &Spec::args(&["sleep", "1003"]))?;
        let started = c.task().start(&c.id, "e1");
        ensure!(started.is_err(), "{body}: {started:?}");
        let _ = c.task().kill(&c.id, "e1", 9, false);
        let _ = c.task().delete(&c.id, "e1");
        stranger.unhurt().context(body)?;
        ensure!(status(&c, "")? == Status::RUNNING, "{body}");
        c.task().kill(&c.id, "", 9, true)?;
        ensure!(c.exit_status()? == 137);
        c.task().delete(&c.id, "")?;
        stranger.unhurt().context(body)?;
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn f30_init_pid_names_a_stranger(kit: &Kit) -> Result<()> {
    for also in ["nothing", "journal", "exits", "pair", "state.json", "all"] {
        let c = kit.running(&Spec::sleeper())?;
        c.shim.kill_all()?;
        let mut stranger = Stranger::new()?;
        fs::write(c.bundle.dir.join("init.pid"), stranger.pid().to_string())?;
        for name in ["journal", "exits", "pair", "state.json"] {
            if also == name || also == "all" {
                let path = match name {
                    "state.json" => runc_state(kit, &c.id).join(name),
                    _ => c.bundle.dir.join(name),
                };
                let _ = fs::remove_file(path);
            }
        }
        let said = deleted(&c).with_context(|| format!("without {also}"))?;
        stranger
            .unhurt()
            .with_context(|| format!("without {also}"))?;
        ensure!(
            said.pid != stranger.pid(),
            "without {also}: {said:?} is a stranger"
        );
        init_gone(&c, 1.0).with_context(|| format!("without {also}"))?;
        nothing_left(kit, &c.id).with_context(|| format!("without {also}"))?;
        c.bundle.remove()?;
    }
    Ok(())
}

fn f30_pair_names_strangers(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let path = c.bundle.dir.join("pair");
    let text = fs::read_to_string(&path)
        .context("only ours has a `pair`, so that nothing of it can be wrong elsewhere")?;
    c.shim.kill_all()?;
    let mut strangers = [Stranger::new()?, Stranger::new()?];
    let (body, _) = text.split_once("sum ").context("no sum")?;
    let mut lines = String::new();
    for (line, stranger) in body
        .lines()
        .zip(std::iter::once(None).chain(strangers.iter().map(Some)))
    {
        let words: Vec<String> = line
            .split(' ')
            .filter(|w| !w.starts_with("pidfd="))
            .map(|w| match stranger {
                Some(stranger) if w.starts_with("pid=") => format!("pid={}", stranger.pid()),
                _ => w.to_owned(),
            })
            .collect();
        lines.push_str(&words.join(" "));
        lines.push('\n');
    }
    let mut bytes = format!(
        "{lines}sum {:08x}\n",
        crate::cases::f26::crc32c(lines.as_bytes())
    )
    .into_bytes();
    bytes.resize(512, b'\n');
    fs::write(&path, bytes)?;
    // Somebody holds the lock, so that `delete` would have the pair leave.
    let lock = fs::File::open(c.bundle.dir.join("lock"))?;
    lock.lock()?;
    let _ = c.shim.delete();
    for stranger in &mut strangers {
        stranger.unhurt().context("while the lock is held")?;
    }
    drop(lock);
    let said = deleted(&c)?;
    for stranger in &mut strangers {
        stranger.unhurt()?;
    }
    ensure!(said.exit_status == 137, "{said:?}");
    nothing_left(kit, &c.id)
}

fn f30_state_json_names_a_stranger(kit: &Kit) -> Result<()> {
    for end in ["rpc", "delete", "delete without a journal"] {
        let c = kit.running(&Spec::sleeper())?;
        let path = runc_state(kit, &c.id).join("state.json");
        let mut stranger = Stranger::new()?;
        let mut state: Value = serde_json::from_slice(&fs::read(&path)?)?;
        state["init_process_pid"] = json!(stranger.pid());
        fs::write(&path, serde_json::to_vec(&state)?)?;
        if end == "rpc" {
            c.task().kill(&c.id, "", 9, true)?;
            ensure!(c.exit_status()? == 137);
            c.task().delete(&c.id, "")?;
            c.task().shutdown(&c.id)?;
            deleted(&c).context(end)?;
        } else {
            c.shim.kill_all()?;
            if end != "delete" {
                fs::remove_file(c.bundle.dir.join("journal"))?;
            }
            let said = deleted(&c).context(end)?;
            ensure!([137, 255].contains(&said.exit_status), "{end}: {said:?}");
        }
        stranger.unhurt().context(end)?;
        nothing_left(kit, &c.id).context(end)?;
    }
    Ok(())
}

fn f30_recreated_cgroup(kit: &Kit) -> Result<()> {
    for with_state in [false, true] {
        let c = kit.running(&Spec::sleeper())?;
        c.shim.kill_all()?;
        let mark = kit.scratch.mark();
        for process in Process::marked(&format!("{mark}/{}", c.id)) {
            signal_if(process.pid, 9, |now| now.cgroup == process.cgroup);
        }
        init_gone(&c, 5.0)?;
        until("the cgroups to be empty", by(5.0), || {
            cgroups(mark, &c.id)
                .iter()
                .all(|d| fs::remove_dir(d).is_ok())
                .then_some(())
        })?;
        if !with_state {
            fs::remove_dir_all(runc_state(kit, &c.id))?;
        }
        let places = made_again(kit, &c)?;
        let mut stranger = Stranger::new()?;
        stranger.enter(places.iter().map(PathBuf::as_path))?;
        let said = deleted(&c)?;
        stranger
            .unhurt()
            .with_context(|| format!("runc's state there: {with_state}"))?;
        let gone: Vec<_> = places.iter().filter(|p| !p.is_dir()).collect();
        ensure!(gone.is_empty(), "a stranger's {gone:?} was removed");
        // Unknown, unless the kernel still remembers: whoever inherits orphans may reap late.
        ensure!([137, 255].contains(&said.exit_status), "{said:?}");
        drop(stranger);
        until("the stranger's cgroups to go", by(5.0), || {
            places
                .iter()
                .all(|p| fs::remove_dir(p).is_ok() || !p.exists())
                .then_some(())
        })?;
        deleted(&c)?;
        nothing_left(kit, &c.id)?;
    }
    Ok(())
}

/// Every memory limit that is not the container's own, as far up as there is one.
fn limits(kit: &Kit) -> Vec<(PathBuf, String)> {
    let base: PathBuf = if unified() {
        "/sys/fs/cgroup".into()
    } else {
        "/sys/fs/cgroup/memory".into()
    };
    let file = if unified() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    let places = [base.join(file), base.join(kit.scratch.mark()).join(file)];
    let read = |p: PathBuf| Some((p.clone(), fs::read_to_string(&p).ok()?));
    places.into_iter().filter_map(read).collect()
}

fn f48_update_of_a_dying_container(kit: &Kit) -> Result<()> {
    for round in 0..times(10, 200) {
        let c = kit.running(&Spec::sleeper())?;
        let before = limits(kit);
        let (task, id) = (c.task().clone(), c.id.clone());
        let limit = json!({"memory": {"limit": 64 << 20}});
        let asked = limit.clone();
        let updates = std::thread::spawn(move || {
            (0..3).map(|_| task.update(&id, &asked)).collect::<Vec<_>>()
        });
        std::thread::sleep(std::time::Duration::from_millis(5 * (round % 8) as u64));
        signal_if(pid(&c)?, 9, |p| p.cgroup.contains(&c.id));
        let told = updates.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        for answer in &told {
            ensure!(
                matches!(answer, Ok(()) | Err(vigil_lab::CallError::Status { .. })),
                "Update: {answer:?}"
            );
        }
        ensure!(c.exit_status()? == 137);
        // Unknown is what clients know (contract §3.2); that nothing is done is what counts.
        let after = c.task().update(&c.id, &limit);
        let told = matches!(after, Err(vigil_lab::CallError::Status { .. }));
        ensure!(told, "Update after the exit: {after:?}");
        ensure!(
            limits(kit) == before,
            "before {before:?}, after {:?}",
            limits(kit)
        );
        c.task().delete(&c.id, "")?;
        refused(
            c.task().update(&c.id, &limit),
            Code::NotFound,
            "Update after Delete",
        )?;
    }
    Ok(())
}

/// The container's exit, its number given to a stranger in a cgroup of its own.
fn replaced(kit: &Kit) -> Result<(Container, Stranger, PathBuf)> {
    let c = kit.running(&Spec::sh("exit 7"))?;
    ensure!(c.exit_status()? == 7);
    let stranger = with_pid(c.pid)?;
    let home = made_home(kit)?;
    stranger.enter([home.as_path()])?;
    Ok((c, stranger, home))
}

/// A memory cgroup for strangers.
fn made_home(kit: &Kit) -> Result<PathBuf> {
    let base = if unified() {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/memory"
    };
    let home = PathBuf::from(base).join(kit.scratch.mark()).join("home");
    fs::create_dir_all(&home)?;
    Ok(home)
}

fn f48_stats_with_the_pid_taken(kit: &Kit) -> Result<()> {
    let (c, mut stranger, home) = replaced(kit)?;
    let file = home.join(if unified() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    });
    let before = fs::read_to_string(&file)?;
    let limit = json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 1}});
    ensure!(
        c.task().update(&c.id, &limit).is_err(),
        "Update of a stopped container was done"
    );
    ensure!(
        fs::read_to_string(&file)? == before,
        "a stranger's limit was changed"
    );
    for _ in 0..3 {
        // An answer, and a stranger's numbers in none.
        let stats = c.task().patient(2.0).stats(&c.id);
        ensure!(
            matches!(stats, Ok(_) | Err(vigil_lab::CallError::Status { .. })),
            "Stats: {stats:?}"
        );
    }
    let log = c.bundle.log_text();
    ensure!(
        log.matches("level=error").count() <= 1,
        "Stats of a stopped container fill the log: {log}"
    );
    stranger.unhurt()?;
    drop(stranger);
    until("the home to go", by(5.0), || {
        fs::remove_dir(&home).is_ok().then_some(())
    })
}

//! F28: no room. A failing probe must not take the room, and without any room, inode or
//! writable file system the container can still be killed and deleted, with its true end.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::ExecProcessRequest;
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::{Container, exec_spec};
use vigil_lab::process::{Process, signal_if};
use vigil_lab::task::any;
use vigil_lab::{CallError, Code, Kit, Spec, by, until};

use crate::cases;
use crate::world::{
    Medium, SmallRun, answered, deleted, in_small_run, init_gone, pid, reaper_and_shim, runc_state,
    serves, times, weight,
};

cases! {
    Kit All  f28_failing_execs_leave_no_log "Failing execs leave nothing that grows: no log, no file";
    Kit All  f28_full_while_running "/run full while running: Kill, exit, Delete; the true status";
    Kit All  f28_full_and_the_pair_killed "/run full while running, the pair killed: `delete` finds the true exit";
    Kit Ours f28_full_and_the_shim_killed "/run full or without inodes while running, the shim killed: another serves, the true status";
    Kit All  f28_full_and_delete_kills "/run full while running and the exit unseen: `delete` kills and cleans";
    Kit All  f28_full_before_create "/run full before Create: it fails with a name, and works once there is room";
    Kit All  f28_full_at_each_moment "/run fills up at some moment of the life: at each a definite end";
    Kit All  f28_no_inodes "No inode left while running: exec refused, Kill, Delete, `delete`";
    Kit Ours f28_read_only_at_each_moment "/run becomes read-only at some moment of a life with an exec: at each a definite end";
    Kit Ours f28_full_at_each_moment_of_an_exec "/run fills up at some moment of an exec: at each a definite end, the container runs on";
    Kit Ours f28_full_when_a_long_exec_is_asked "/run full when an exec is asked that must spill to it: RESOURCE_EXHAUSTED, all else unharmed; it works once there is room";
    Kit Ours f28_history_and_tombstones_cannot_be_kept "/run/vigil is a plain file: a life, a SIGKILL and `delete` all the same";
    Kit All  f28_empty_run "An empty /run: `start` and runc make what they need";
    Kit All  f28_read_only "/run becomes read-only while running: Kill, exit, Delete, `delete`";
}

/// The end every case here must come to: killed, its exit known, deleted, nothing there.
fn ends(c: &Container, status: u32) -> Result<()> {
    c.task().kill(&c.id, "", 9, true).context("Kill")?;
    let waited = c.task().wait(&c.id, "").context("Wait")?;
    ensure!(waited.exit_status == status, "Wait says {waited:?}");
    let deleted = c.task().delete(&c.id, "").context("Delete")?;
    ensure!(deleted.exit_status == status, "Delete says {deleted:?}");
    Ok(())
}

/// In this mount namespace: no mount, cgroup or process of the container.
fn gone_here(kit: &Kit, c: &Container) -> Result<()> {
    let name = format!("{}/{}", kit.scratch.mark(), c.id);
    until(&format!("{name} to be gone"), by(5.0), || {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").ok()?;
        let living = Process::marked(&name)
            .iter()
            .any(|p| p.cgroup.contains(&name));
        (!mounts.contains(&format!("{name}/rootfs"))
            && !living
            && crate::world::cgroups(kit.scratch.mark(), &c.id).is_empty())
        .then_some(())
    })
}

/// What containerd does at the end: Shutdown, `delete`, the bundle removed.
fn taken_away(kit: &Kit, c: &Container) -> Result<()> {
    c.task().shutdown(&c.id)?;
    until("the pair to leave", by(10.0), || {
        c.shim.processes().is_empty().then_some(())
    })?;
    deleted(c)?;
    gone_here(kit, c)?;
    ensure!(!c.shim.reply.socket.exists(), "the socket is left");
    ensure!(!runc_state(kit, &c.id).exists(), "runc's state is left");
    c.bundle.remove()
}

fn f28_failing_execs_leave_no_log(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    let (runc, state) = (runc_state(kit, &c.id), kit.scratch.path("state/work"));
    let fails = |number: usize| -> Result<()> {
        let id = format!("e{number}");
        kit.exec(&c, &id, &Spec::args(&["/no/such/probe"]))?;
        ensure!(
            c.task().start(&c.id, &id).is_err(),
            "/no/such/probe was started"
        );
        c.task().delete(&c.id, &id)?;
        for name in ["stdin", "stdout", "stderr"] {
            let fifo = kit
                .scratch
                .path("state")
                .join(format!("{}-{id}.{name}", c.id));
            let _ = fs::remove_file(fifo);
        }
        Ok(())
    };
    for number in 0..10 {
        fails(number)?;
    }
    let places: [&Path; 3] = [&c.bundle.dir, &runc, &state];
    let before = weight(&places);
    let rounds = times(100, 1000);
    for number in 0..rounds {
        fails(10 + number)?;
    }
    let after = weight(&places);
    // The journal is as long as it was made; it may have been made anew and longer, once.
    ensure!(
        after.0 <= before.0 + 20 * rounds as u64 && after.1 <= before.1 + 1,
        "bytes and files: {before:?}, after {rounds} failing execs {after:?}"
    );
    if let Ok(journal) = fs::metadata(c.bundle.dir.join("journal")) {
        let long = journal.len();
        ensure!(long <= 256 << 10, "{long} bytes of journal");
    }
    Ok(())
}

fn f28_full_while_running(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=512k"), |small| {
        let c = kit.running(&Spec::sleeper())?;
        small.fill()?;
        serves(&c)?;
        ensure!(!c.task().pids(&c.id)?.processes.is_empty());
        c.task().pause(&c.id).context("Pause")?;
        c.task().resume(&c.id).context("Resume")?;
        ends(&c, 137)?;
        small.free();
        taken_away(kit, &c)
    })
}

fn f28_full_and_the_pair_killed(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=512k"), |small| {
        for seen in [true, false] {
            let c = kit.running(&Spec::sh(
                "while ! test -e /tmp/go; do sleep 0.05; done; exit 7",
            ))?;
            small.fill()?;
            fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
            if seen {
                ensure!(c.exit_status()? == 7);
            } else {
                // The reaper has it at once, the shim may or may not have heard.
                init_gone(&c, 5.0)?;
            }
            c.shim.kill_all()?;
            let said = deleted(&c)?;
            ensure!(said.exit_status == 7, "seen {seen}: {said:?}");
            ensure!(deleted(&c)?.exit_status == 7, "the second time");
            gone_here(kit, &c)?;
            small.free();
            c.bundle.remove()?;
        }
        Ok(())
    })
}

/// A successor needs no room: it once made a new journal to find that there was one.
fn f28_full_and_the_shim_killed(kit: &Kit) -> Result<()> {
    let room = Medium::Tmpfs("size=512k");
    let inodes = Medium::Tmpfs("size=8m,nr_inodes=200");
    for (medium, what) in [(room, "room"), (inodes, "inodes")] {
        in_small_run(kit, medium, |small| {
            let c = kit.running(&Spec::sh(
                "while ! test -e /tmp/go; do sleep 0.05; done; exit 7",
            ))?;
            match what {
                "room" => small.fill()?,
                _ => small.fill_inodes()?,
            }
            for _ in 0..2 {
                let (_, shim) = reaper_and_shim(&c)?;
                ensure!(signal_if(shim, 9, |_| true), "nobody was killed");
                serves(&c)?;
            }
            ensure!(!c.task().pids(&c.id)?.processes.is_empty());
            fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
            ensure!(c.exit_status()? == 7);
            ensure!(c.task().delete(&c.id, "").context("Delete")?.exit_status == 7);
            small.free();
            taken_away(kit, &c)
        })
        .with_context(|| format!("no {what}"))?;
    }
    Ok(())
}

fn f28_full_and_delete_kills(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=512k"), |small| {
        let c = kit.running(&Spec::sleeper())?;
        small.fill()?;
        c.shim.kill_all()?;
        let said = deleted(&c)?;
        ensure!(said.exit_status == 137 && said.pid == c.pid, "{said:?}");
        ensure!(deleted(&c)?.exit_status == 137, "the second time");
        gone_here(kit, &c)?;
        small.free();
        c.bundle.remove()
    })
}

fn f28_full_before_create(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=512k"), |small| {
        let c = kit.prepared(&Spec::sh("exit 3"), Stdio::Output)?;
        small.fill()?;
        let made = answered(c.task().create(&c.bundle.create_request()), "Create")?;
        if made.is_none() {
            gone_here(kit, &c)?;
            ensure!(!runc_state(kit, &c.id).exists(), "runc's state is left");
            small.free();
            c.task()
                .create(&c.bundle.create_request())
                .context("Create, with room")?;
        }
        small.free();
        c.start()?;
        ensure!(c.exit_status()? == 3);
        ensure!(c.task().delete(&c.id, "")?.exit_status == 3);
        taken_away(kit, &c)?;
        // Before `start` already.
        let bundle = kit.bundle(&Spec::sh("exit 3"), Stdio::Output)?;
        small.fill()?;
        let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
        ensure!(
            !ran.status.success(),
            "`start` succeeded without room for its files"
        );
        ensure!(!ran.stdout.is_empty(), "`start` failed without a word");
        small.free();
        until("nothing of it to run", by(5.0), || {
            let arguments = format!("-id {} ", bundle.id);
            let all = Process::marked(kit.scratch.mark());
            (!all
                .iter()
                .any(|p| format!("{} ", p.cmdline).contains(&arguments)))
            .then_some(())
        })?;
        bundle.remove()
    })
}

/// A life with no room from step `full` on; every answer is definite, and the end is an end.
fn life_with(kit: &Kit, small: &SmallRun, full: usize) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let (task, id) = (c.task(), &c.id);
    // The fifos of an exec are the client's own files: they must be there before.
    kit.exec(&c, "e0", &Spec::sh("exit 5"))
        .err()
        .context("an exec before Create")?;
    let mut running = false;
    for step in 0..6 {
        if step == full {
            small.fill()?;
        }
        match step {
            0 => {
                let made = answered(task.create(&c.bundle.create_request()), "Create")?;
                if made.is_none() {
                    break;
                }
            }
            1 => running = answered(task.start(id, ""), "Start")?.is_some(),
            2 => drop(answered(task.pause(id), "Pause")?),
            3 => drop(answered(task.resume(id), "Resume")?),
            4 => drop(answered(
                task.update(id, &serde_json::json!({"pids": {"limit": 50}})),
                "Update",
            )?),
            _ => {
                answered(task.kill(id, "", 9, true), "Kill")?.context("Kill was refused")?;
                let status = task.wait(id, "").context("Wait")?.exit_status;
                ensure!(status == 137, "{status}; it ran: {running}");
                ensure!(task.delete(id, "").context("Delete")?.exit_status == 137);
            }
        }
    }
    small.free();
    taken_away(kit, &c)
}

fn f28_full_at_each_moment(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=512k"), |small| {
        for full in 0..6 {
            life_with(kit, small, full).with_context(|| format!("full from step {full}"))?;
        }
        Ok(())
    })
}

fn f28_no_inodes(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=8m,nr_inodes=200"), |small| {
        for end in ["rpc", "delete"] {
            let c = kit.running(&Spec::sleeper())?;
            kit.exec(&c, "e1", &Spec::sh("exit 5"))?;
            small.fill_inodes()?;
            // It works or it is refused; it may not hang, nor may it hurt.
            if answered(c.task().start(&c.id, "e1"), "Start of an exec")?.is_some() {
                ensure!(c.task().wait(&c.id, "e1")?.exit_status == 5);
            }
            serves(&c)?;
            if end == "rpc" {
                ends(&c, 137)?;
                small.free();
                taken_away(kit, &c)?;
            } else {
                c.shim.kill_all()?;
                let said = deleted(&c)?;
                ensure!(said.exit_status == 137, "{said:?}");
                gone_here(kit, &c)?;
                small.free();
                c.bundle.remove()?;
            }
        }
        Ok(())
    })
}

fn f28_read_only(kit: &Kit) -> Result<()> {
    for end in ["rpc", "exit and delete", "delete"] {
        in_small_run(kit, Medium::Ext4, |small| {
            let c = kit.running(&Spec::sh(
                "while ! test -e /tmp/go; do sleep 0.05; done; exit 7",
            ))?;
            // What was written is on its way to the disk when the disk gives up.
            nix::unistd::sync();
            small.break_ext4()?;
            serves(&c)?;
            let status = match end {
                "rpc" => {
                    ends(&c, 137)?;
                    c.shim.kill_all()?;
                    137
                }
                "delete" => {
                    c.shim.kill_all()?;
                    137
                }
                _ => {
                    fs::write(format!("/proc/{}/root/tmp/go", c.pid), "")?;
                    ensure!(c.exit_status()? == 7);
                    c.shim.kill_all()?;
                    7
                }
            };
            // Nothing could be written, so what is on the disk may know nothing of the end.
            let said = deleted(&c)?;
            ensure!([status, 255].contains(&said.exit_status), "{end}: {said:?}");
            gone_here(kit, &c)?;
            ensure!(!vigil_lab::process::alive(pid(&c)?));
            // The loop device lets go when nobody has a file of it.
            Ok(())
        })
        .context(end)?;
    }
    Ok(())
}

/// An exec without streams: its fifos would be files on the file system that is full.
fn bare_exec(c: &Container, id: &str) -> Result<Option<()>> {
    let request = ExecProcessRequest {
        id: c.id.clone(),
        exec_id: id.into(),
        spec: Some(exec_spec(&Spec::sh("exit 5"))).into(),
        ..ExecProcessRequest::default()
    };
    answered(c.task().exec(&request), "Exec")
}

/// Exec, its Start and end, its Delete; nothing or everything of it may be refused.
/// `before` is called with the number of each step.
fn exec_with(c: &Container, mut before: impl FnMut(usize) -> Result<()>) -> Result<()> {
    before(0)?;
    if bare_exec(c, "e1")?.is_none() {
        return Ok(());
    }
    before(1)?;
    if answered(c.task().start(&c.id, "e1"), "Start of an exec")?.is_some() {
        let status = c.task().wait(&c.id, "e1")?.exit_status;
        ensure!(status == 5, "the exec ended with {status}");
    }
    before(2)?;
    answered(c.task().delete(&c.id, "e1"), "Delete of an exec")?;
    serves(c)
}

fn f28_full_at_each_moment_of_an_exec(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=512k"), |small| {
        for full in 0..3 {
            let c = kit.running(&Spec::sleeper())?;
            let fill = |step| if step == full { small.fill() } else { Ok(()) };
            exec_with(&c, fill).with_context(|| format!("full from step {full}"))?;
            ends(&c, 137)?;
            small.free();
            taken_away(kit, &c)?;
        }
        Ok(())
    })
}

/// An exec whose environment is so long, without streams.
fn long_exec(c: &Container, exec: &str, bytes: usize) -> Result<(), CallError> {
    let mut process = Spec::sh("exit 5").process();
    let env = (0..bytes / 1000).map(|n| format!("V{n:06}={}", "x".repeat(988)));
    process["env"] = std::iter::once("PATH=/bin".to_owned()).chain(env).collect();
    process["rlimits"] =
        serde_json::json!([{"type": "RLIMIT_STACK", "hard": 64 << 20, "soft": 64 << 20}]);
    let kind = "types.containerd.io/opencontainers/runtime-spec/1/Process";
    let request = ExecProcessRequest {
        id: c.id.clone(),
        exec_id: exec.into(),
        spec: Some(any(kind, process.to_string())).into(),
        ..ExecProcessRequest::default()
    };
    c.task().patient(30.0).exec(&request).map(drop)
}

/// What was said of A6 by code alone: an exec too long for the journal goes to a file of its own,
/// and where there is no room for one it is refused by that name, and nothing else is.
fn f28_full_when_a_long_exec_is_asked(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=4m"), |small| {
        let c = kit.running(&Spec::sleeper())?;
        // One that was asked for while there was room, and is started when there is none.
        long_exec(&c, "before", 100_000)?;
        small.fill()?;
        for bytes in [1_500_000, 100_000] {
            let Err(error) = long_exec(&c, "long", bytes) else {
                bail!("{bytes} bytes were taken on a full /run");
            };
            ensure!(error.is(Code::ResourceExhausted), "{error}");
            let says = error.to_string();
            for part in ["long", "No space left", "needs more room"] {
                ensure!(says.contains(part), "{part:?} is not in: {says}");
            }
            // Nothing of it is left, on the disk or in mind.
            let Err(error) = c.task().state(&c.id, "long") else {
                bail!("a refused exec is known");
            };
            ensure!(error.is(Code::NotFound), "{error}");
            let left = c.bundle.dir.join("exec-long.asked");
            ensure!(!left.exists(), "{} is left", left.display());
        }
        serves(&c)?;
        c.task().pids(&c.id).context("Pids")?;
        c.task().pause(&c.id).context("Pause")?;
        c.task().resume(&c.id).context("Resume")?;
        c.task()
            .delete(&c.id, "before")
            .context("Delete of one that was asked before")?;
        small.free();
        long_exec(&c, "long", 1_500_000).context("with room again")?;
        c.task().start(&c.id, "long")?;
        let status = c.task().wait(&c.id, "long")?.exit_status;
        ensure!(status == 5, "the exec ended with {status}");
        c.task().delete(&c.id, "long")?;
        ends(&c, 137)?;
        taken_away(kit, &c)
    })
}

fn f28_read_only_at_each_moment(kit: &Kit) -> Result<()> {
    for broken in 0..8 {
        in_small_run(kit, Medium::Ext4, |small| {
            let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
            let (task, id) = (c.task(), &c.id);
            let moment = |step| {
                if step == broken {
                    nix::unistd::sync();
                    small.break_ext4()?;
                }
                Ok(())
            };
            moment(0)?;
            let made = answered(task.create(&c.bundle.create_request()), "Create")?;
            if made.is_some() {
                moment(1)?;
                answered(task.start(id, ""), "Start")?;
                exec_with(&c, |step| moment(step + 2))?;
                moment(5)?;
                let update = serde_json::json!({"pids": {"limit": 50}});
                answered(task.update(id, &update), "Update")?;
                moment(6)?;
                answered(task.kill(id, "", 9, true), "Kill")?.context("Kill was refused")?;
                let status = task.wait(id, "").context("Wait")?.exit_status;
                ensure!(status == 137, "{status}");
                moment(7)?;
                let deleted = task.delete(id, "").context("Delete")?;
                ensure!(deleted.exit_status == 137, "{deleted:?}");
            }
            task.shutdown(id)?;
            until("the pair to leave", by(10.0), || {
                c.shim.processes().is_empty().then_some(())
            })?;
            deleted(&c)?;
            gone_here(kit, &c)
        })
        .with_context(|| format!("read-only from step {broken}"))?;
    }
    Ok(())
}

fn f28_history_and_tombstones_cannot_be_kept(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=8m"), |_| {
        fs::write("/run/vigil", "in the way")?;
        let c = kit.running(&Spec::sleeper())?;
        ends(&c, 137)?;
        taken_away(kit, &c)?;
        let c = kit.running(&Spec::sleeper())?;
        c.shim.kill_all()?;
        let said = deleted(&c)?;
        ensure!(said.exit_status == 137, "{said:?}");
        ensure!(deleted(&c)?.exit_status == 137, "the second time");
        gone_here(kit, &c)?;
        ensure!(fs::read("/run/vigil")? == b"in the way", "it was changed");
        c.bundle.remove()
    })
}

fn f28_empty_run(kit: &Kit) -> Result<()> {
    in_small_run(kit, Medium::Tmpfs("size=8m"), |_| {
        for directory in ["/run/containerd", "/run/lock", "/run/vigil"] {
            let _ = fs::remove_dir_all(directory);
        }
        let c = kit.running(&Spec::sleeper())?;
        ends(&c, 137)?;
        taken_away(kit, &c)
    })
}

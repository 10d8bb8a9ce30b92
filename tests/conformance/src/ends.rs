//! The ends nobody planned: shims killed, bundles broken, `delete` as the last word.

use std::fs;

use anyhow::{Result, ensure};
use vigil_lab::bundle::Stdio;
use vigil_lab::kit::Container;
use vigil_lab::{Kit, Residue, Shim, Spec, by, process, until};

use crate::behaviour::not_done;

crate::behaviours! {
    "§2.4 delete prints pid, 137 and now for a container it had to kill." delete_after_kill_reports;
    "§8.3 delete leaves no process, mount, cgroup or runc state." delete_after_kill_cleans;
    "§8.3.3 delete is idempotent." delete_twice;
    "§2.4 delete runs after every ordinary removal too, and says something parseable." delete_after_ordinary_end;
    "§8.3.7 delete reports the true status of a container that exited before." delete_reports_the_true_status;
    "§8.4 No socket file is left after SIGKILL and delete." delete_removes_the_socket;
    "§8.3.2 delete works in a bundle in which nothing was created." delete_of_nothing;
    "§8.3.2 delete after the death in the created state." delete_of_created;
    "§8.3 delete of a paused container." delete_of_paused;
    "§8.3 delete with execs running." delete_with_execs;
    "§8.1 Processes in the host's pid namespace die in delete too." delete_with_host_pids;
    "§2.4 stdout of delete is protobuf and nothing else, stderr is for warnings." delete_prints_only_protobuf;
    "§3.4 Create failure: unmounted, nothing left; a missing config.json." config_missing;
    "§3.4 Create failure: a truncated config.json." config_truncated;
    "§3.4 Create failure: init's program does not exist, and the error says so." program_missing;
    "§3.4 Create failure: a rootfs mount that fails is named." mount_source_missing;
    "§1.1 A missing bundle directory is an error." bundle_missing;
}

fn killed(kit: &Kit, spec: &Spec) -> Result<Container> {
    let c = kit.running(spec)?;
    c.shim.kill_all()?;
    Ok(c)
}

/// Nothing of `c` is left but its bundle.
pub(crate) fn nothing_left(kit: &Kit, c: &Container) -> Result<()> {
    let id = format!("{}/{}", kit.scratch.mark(), c.id);
    let rootfs = format!("mount {}", c.bundle.dir.join("rootfs").display());
    let arguments = format!("-id {}", c.id);
    let mut left = Vec::new();
    let clean = until("", by(3.0), || {
        let found = Residue::marked(kit.scratch.mark());
        left = found
            .lines()
            .filter(|l| {
                l.starts_with(&rootfs)
                    || l.starts_with("process ") && (l.contains(&arguments) || l.contains(&id))
                    || (l.starts_with("cgroup ") || l.starts_with("file ")) && l.ends_with(&id)
            })
            .map(str::to_owned)
            .collect();
        left.is_empty().then_some(())
    });
    ensure!(clean.is_ok(), "left: {left:?}");
    ensure!(
        !process::alive(i32::try_from(c.pid)?),
        "init {} lives",
        c.pid
    );
    Ok(())
}

fn delete_after_kill_reports(kit: &Kit) -> Result<()> {
    let c = killed(kit, &Spec::sleeper())?;
    let said = c.shim.delete()?.ok()?;
    ensure!(
        said.pid == c.pid && said.exit_status == 137,
        "{said:?}, init was {}",
        c.pid
    );
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    let at = said.exited_at.unwrap_or_default().seconds;
    ensure!(
        u64::try_from(at).is_ok_and(|at| at.abs_diff(now) <= 5),
        "exited_at {at}, now {now}"
    );
    Ok(())
}

fn delete_after_kill_cleans(kit: &Kit) -> Result<()> {
    let c = killed(kit, &Spec::sh("sleep 1000 & sleep 1000 & wait"))?;
    c.shim.delete()?.ok()?;
    nothing_left(kit, &c)
}

fn delete_twice(kit: &Kit) -> Result<()> {
    let c = killed(kit, &Spec::sleeper())?;
    c.shim.delete()?.ok()?;
    let again = c.shim.delete()?.ok()?;
    ensure!(again.exit_status == 137, "{again:?}");
    nothing_left(kit, &c)
}

fn delete_after_ordinary_end(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 3"))?;
    c.exit_status()?;
    c.task().delete(&c.id, "")?;
    c.task().shutdown(&c.id)?;
    let said = c.shim.delete()?.ok()?;
    ensure!(said.exited_at.is_some(), "{said:?}");
    nothing_left(kit, &c)
}

fn delete_reports_the_true_status(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sh("exit 7"))?;
    let waited = c.task().wait(&c.id, "")?;
    c.shim.kill_all()?;
    let said = c.shim.delete()?.ok()?;
    ensure!(
        said.exit_status == 7 && said.exited_at == waited.exited_at,
        "{said:?} after {waited:?}"
    );
    Ok(())
}

fn delete_removes_the_socket(kit: &Kit) -> Result<()> {
    let c = killed(kit, &Spec::sleeper())?;
    c.shim.delete()?.ok()?;
    ensure!(
        !c.shim.reply.socket.exists(),
        "{} is left",
        c.shim.reply.socket.display()
    );
    Ok(())
}

fn delete_of_nothing(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    c.shim.kill_all()?;
    c.shim.delete()?.ok().map(drop)
}

fn delete_of_created(kit: &Kit) -> Result<()> {
    let c = kit.created(&Spec::sleeper())?;
    c.shim.kill_all()?;
    c.shim.delete()?.ok()?;
    nothing_left(kit, &c)
}

fn delete_of_paused(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    c.task().pause(&c.id)?;
    c.shim.kill_all()?;
    c.shim.delete()?.ok()?;
    nothing_left(kit, &c)
}

fn delete_with_execs(kit: &Kit) -> Result<()> {
    let c = kit.running(&Spec::sleeper())?;
    for id in ["e1", "e2"] {
        kit.exec(&c, id, &Spec::args(&["sleep", "1000"]))?;
        c.task().start(&c.id, id)?;
    }
    c.shim.kill_all()?;
    c.shim.delete()?.ok()?;
    nothing_left(kit, &c)
}

fn delete_with_host_pids(kit: &Kit) -> Result<()> {
    let spec = Spec {
        own_pids: false,
        ..Spec::sh("(setsid sleep 1000 &); sleep 1000 & echo ready; wait")
    };
    let c = kit.running(&spec)?;
    c.out()?.expect("ready\n", by(5.0))?;
    c.shim.kill_all()?;
    c.shim.delete()?.ok()?;
    nothing_left(kit, &c)
}

fn delete_prints_only_protobuf(kit: &Kit) -> Result<()> {
    let c = killed(kit, &Spec::sleeper())?;
    let deleted = c.shim.delete()?;
    // pid = 1 and exit_status = 2 as varints, exited_at = 3 as bytes; nothing before or after.
    let bytes = deleted.ran.stdout.clone();
    ensure!(bytes.first() == Some(&0x08), "{bytes:?}");
    let said = deleted.ok()?;
    let again = containerd_shim_protos::protobuf::Message::write_to_bytes(&said)?;
    ensure!(
        again.len() == bytes.len() && said.special_fields.unknown_fields().iter().next().is_none(),
        "{bytes:?}"
    );
    Ok(())
}

/// Tries `start` and Create in a bundle `spoil` has spoiled; one of them must fail, with words.
fn spoiled(
    kit: &Kit,
    spec: &Spec,
    spoil: impl FnOnce(&vigil_lab::Bundle) -> Result<()>,
) -> Result<String> {
    let bundle = kit.bundle(spec, Stdio::Output)?;
    spoil(&bundle)?;
    let ran = kit.caller.run_start(&bundle.id, &bundle.dir)?;
    if !ran.status.success() {
        ensure!(!ran.stdout.is_empty(), "start failed without words");
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let shim = kit.adopt(Shim::connect(&kit.caller, &bundle, ran)?)?;
    kit.read_all(&bundle)?;
    let answer = shim.task.create(&bundle.create_request());
    let words = answer
        .as_ref()
        .err()
        .map(ToString::to_string)
        .unwrap_or_default();
    not_done(answer, "Create")?;
    let rootfs = bundle.dir.join("rootfs").to_string_lossy().into_owned();
    until("the rootfs to be unmounted", by(3.0), || {
        (!vigil_lab::residue::mount_points().contains(&rootfs)).then_some(())
    })?;
    Ok(words)
}

fn config_missing(kit: &Kit) -> Result<()> {
    let words = spoiled(kit, &Spec::sleeper(), |b| {
        Ok(fs::remove_file(b.dir.join("config.json"))?)
    })?;
    ensure!(words.contains("config.json"), "{words}");
    Ok(())
}

fn config_truncated(kit: &Kit) -> Result<()> {
    spoiled(kit, &Spec::sleeper(), |b| {
        let text = fs::read(b.dir.join("config.json"))?;
        Ok(fs::write(
            b.dir.join("config.json"),
            &text[..text.len() / 2],
        )?)
    })
    .map(drop)
}

fn program_missing(kit: &Kit) -> Result<()> {
    let words = spoiled(kit, &Spec::args(&["/no/such/program"]), |_| Ok(()))?;
    ensure!(words.contains("/no/such/program"), "{words}");
    Ok(())
}

fn mount_source_missing(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut request = c.bundle.create_request();
    request.rootfs[0].source = "/no/such/source".into();
    not_done(c.task().create(&request), "Create with a mount that fails")?;
    let rootfs = c.bundle.dir.join("rootfs").to_string_lossy().into_owned();
    ensure!(
        !vigil_lab::residue::mount_points().contains(&rootfs),
        "{rootfs} is mounted"
    );
    Ok(())
}

fn bundle_missing(kit: &Kit) -> Result<()> {
    let c = kit.prepared(&Spec::sleeper(), Stdio::Output)?;
    let mut request = c.bundle.create_request();
    request.bundle = "/no/such/bundle".into();
    not_done(
        c.task().create(&request),
        "Create in a bundle that is not there",
    )
}

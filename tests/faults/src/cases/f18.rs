//! F18: an earlier life left something behind under the same id: any subset of what there
//! is to leave, with and without a live process. Create of the id works all the same,
//! unless the owner lives; then nothing of the owner's is touched.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Status;
use vigil_lab::bundle::{Bundle, Stdio};
use vigil_lab::kit::Container;
use vigil_lab::process::{alive, signal_if};
use vigil_lab::residue::mount_points;
use vigil_lab::{Code, Kit, Shim, Spec, by, until};

use crate::cases;
use crate::rest::{members, move_out, nothing_but_the_pair};
use crate::world::{cgroups, nothing_left, runc_state, status};

cases! {
    Kit All f18_every_subset_left "Every subset of what a dead life leaves: Create of the same id works, nothing is left after it";
    Kit All f18_every_subset_left_alive "Every subset with its processes alive in the cgroup: killed, and Create works";
    Kit All f18_alive_without_cgroup "A live init that was moved out of its cgroup, which is gone: Create works, init is gone";
    Kit All f18_alive_and_frozen "A live, frozen leftover: killed, and Create works";
    Kit All f18_owned_by_a_live_shim "The id is a live shim's: ALREADY_EXISTS, and nothing of it is touched, by `delete` neither";
}

/// What a life leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    RuncState,
    Cgroup,
    /// Every file in the bundle that is not containerd's, but the journal.
    Files,
    Mount,
    Socket,
    Journal,
}

const PARTS: [Part; 6] = [
    Part::RuncState,
    Part::Cgroup,
    Part::Files,
    Part::Mount,
    Part::Socket,
    Part::Journal,
];

/// Files of a bundle that containerd or the lab makes.
const CONTAINERDS: [&str; 4] = ["config.json", "rootfs", "work", "log"];

/// A life that ended with the death of its runtime: all parts are left, init is alive.
fn earlier(kit: &Kit) -> Result<Container> {
    let container = kit.running(&Spec::sh("sleep 1000 & exec sleep 1000"))?;
    until("both to run", by(5.0), || {
        (members(kit, &container.id).len() == 2).then_some(())
    })?;
    container.shim.kill_all()?;
    Ok(container)
}

/// Ends everybody in its cgroup.
fn end_all(kit: &Kit, id: &str) -> Result<()> {
    until("its processes to die", by(5.0), || {
        let left = members(kit, id);
        for process in &left {
            signal_if(process.pid, 9, |now| now.cgroup == process.cgroup);
        }
        left.is_empty().then_some(())
    })
}

/// Takes away one part.
fn remove(kit: &Kit, container: &Container, part: Part) -> Result<()> {
    let dir = &container.bundle.dir;
    match part {
        Part::RuncState => fs::remove_dir_all(runc_state(kit, &container.id))?,
        Part::Cgroup => {
            for group in cgroups(kit.scratch.mark(), &container.id) {
                until("the cgroup to be removable", by(5.0), || {
                    fs::remove_dir(&group).ok()
                })
                .with_context(|| group.display().to_string())?;
            }
        }
        Part::Files => {
            for entry in fs::read_dir(dir)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name != "journal" && !CONTAINERDS.contains(&name.as_str()) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Part::Mount => {
            nix::mount::umount2(&dir.join("rootfs"), nix::mount::MntFlags::MNT_DETACH)?;
        }
        Part::Socket => fs::remove_file(&container.shim.reply.socket)?,
        // Go's shims have none.
        Part::Journal => {
            let _ = fs::remove_file(dir.join("journal"));
        }
    }
    Ok(())
}

/// Start, Create, Start, Kill, Wait, Delete, Shutdown, `delete` of the same id in the same bundle.
fn lives_again(kit: &Kit, container: &Container) -> Result<()> {
    let (bundle, id) = (&container.bundle, &container.id);
    kit.read_all(bundle)?;
    let shim = kit
        .adopt(Shim::start(&kit.caller, bundle)?)
        .context("start")?;
    let task = &shim.task;
    let pid = task
        .create(&bundle.create_request())
        .with_context(|| format!("Create; log: {}", bundle.log_text()))?
        .pid;
    ensure!(pid != container.pid, "the same pid {pid}");
    task.start(id, "").context("Start")?;
    let state = task.state(id, "")?.status.enum_value();
    ensure!(state == Ok(Status::RUNNING), "{state:?}");
    task.kill(id, "", 9, true).context("Kill")?;
    let waited = task.wait(id, "").context("Wait")?;
    ensure!(waited.exit_status == 137, "{waited:?}");
    let deleted = task.delete(id, "").context("Delete")?;
    ensure!(
        deleted.exit_status == 137 && deleted.pid == pid,
        "{deleted:?}"
    );
    task.shutdown(id).context("Shutdown")?;
    shim.delete()?.ok()?;
    Ok(())
}

/// Leaves exactly `subset` behind, with or without life in it, and lives again.
fn after(kit: &Kit, subset: &[Part], alive_too: bool) -> Result<()> {
    let container = earlier(kit)?;
    let before = members(kit, &container.id);
    if !alive_too {
        end_all(kit, &container.id)?;
    }
    for part in PARTS {
        if !subset.contains(&part) {
            remove(kit, &container, part).with_context(|| format!("removing {part:?}"))?;
        }
    }
    let outcome = lives_again(kit, &container);
    // By what the runtime wrote down a living leftover is known to be ours. A journal of an
    // earlier life is set aside by `start`, and the name of a cgroup tells nobody from somebody
    // else's container: Create works beside those, and nobody hurts them.
    let known = subset.contains(&Part::RuncState);
    let outcome = outcome.and_then(|()| {
        if alive_too && !known {
            let living = before.iter().filter(|p| alive(p.pid)).count();
            ensure!(
                living == 0 || living == before.len(),
                "{living} of {} are hurt",
                before.len()
            );
            end_all(kit, &container.id)?;
            return Ok(());
        }
        for process in &before {
            ensure!(!alive(process.pid), "process {} lives on", process.pid);
        }
        nothing_left(kit, &container.id)
    });
    // Whatever came of it, the next one finds a tidy host.
    for shim in container.shim.processes() {
        signal_if(shim.pid, 9, |now| now.cmdline == shim.cmdline);
    }
    end_all(kit, &container.id)?;
    let _ = container.shim.delete();
    for group in cgroups(kit.scratch.mark(), &container.id) {
        let _ = fs::remove_dir(group);
    }
    let _ = fs::remove_dir_all(runc_state(kit, &container.id));
    let _ = fs::remove_file(&container.shim.reply.socket);
    container.bundle.remove()?;
    outcome
}

fn subsets(of: &[Part]) -> Vec<Vec<Part>> {
    (0..1_u32 << of.len())
        .map(|bits| {
            let chosen = of.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0);
            chosen.map(|(_, part)| *part).collect()
        })
        .collect()
}

/// Tries all; the error names every one that went wrong.
fn each(subsets: Vec<Vec<Part>>, attempt: impl Fn(&[Part]) -> Result<()>) -> Result<()> {
    let all = subsets.len();
    let mut wrong = Vec::new();
    for subset in subsets {
        if let Err(error) = attempt(&subset) {
            wrong.push(format!("{subset:?}: {error:#}"));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {all} subsets, the first:\n    {}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n    ")
    );
    Ok(())
}

fn f18_every_subset_left(kit: &Kit) -> Result<()> {
    each(subsets(&PARTS), |subset| after(kit, subset, false))
}

fn f18_every_subset_left_alive(kit: &Kit) -> Result<()> {
    let rest: Vec<Part> = PARTS.into_iter().filter(|p| *p != Part::Cgroup).collect();
    let mut all = subsets(&rest);
    for subset in &mut all {
        subset.push(Part::Cgroup);
    }
    each(all, |subset| after(kit, subset, true))
}

fn f18_alive_without_cgroup(kit: &Kit) -> Result<()> {
    let container = earlier(kit)?;
    let before = members(kit, &container.id);
    for process in &before {
        move_out(process.pid)?;
    }
    remove(kit, &container, Part::Cgroup)?;
    let outcome = lives_again(kit, &container);
    let living: Vec<_> = before.iter().filter(|p| alive(p.pid)).collect();
    let left = format!("{living:?}");
    for process in &living {
        signal_if(process.pid, 9, |now| now.cmdline == process.cmdline);
    }
    outcome?;
    ensure!(living.is_empty(), "live on: {left}");
    nothing_left(kit, &container.id)
}

fn f18_alive_and_frozen(kit: &Kit) -> Result<()> {
    let container = kit.running(&Spec::sleeper())?;
    container.task().pause(&container.id)?;
    container.shim.kill_all()?;
    let before = members(kit, &container.id);
    ensure!(!before.is_empty());
    lives_again(kit, &container)?;
    for process in &before {
        ensure!(!alive(process.pid), "{process:?} lives on");
    }
    nothing_left(kit, &container.id)
}

fn f18_owned_by_a_live_shim(kit: &Kit) -> Result<()> {
    let owner = kit.running(&Spec::sleeper())?;
    // The same id and namespace, as another containerd of the machine would have them.
    let state = kit.scratch.path("state2");
    let base = kit.scratch.path("base");
    let (mark, spec) = (kit.scratch.mark(), Spec::sleeper());
    let bundle = Bundle::make(&state, mark, &owner.id, &spec, Stdio::Empty, &base)?;
    let mut caller = kit.caller.clone();
    caller.grpc = kit.scratch.path("other.sock");
    let shim = Shim::start(&caller, &bundle)?;
    ensure!(shim.reply.socket != owner.shim.reply.socket);
    let unhurt = |when: &str| -> Result<()> {
        ensure!(
            status(&owner, "")? == Status::RUNNING,
            "{when}: not RUNNING"
        );
        ensure!(alive(i32::try_from(owner.pid)?), "{when}: init is gone");
        let rootfs = owner.bundle.dir.join("rootfs").display().to_string();
        ensure!(mount_points().contains(&rootfs), "{when}: unmounted");
        ensure!(!cgroups(mark, &owner.id).is_empty(), "{when}: no cgroup");
        ensure!(runc_state(kit, &owner.id).exists(), "{when}: no state");
        let exec = format!("after-{}", when.len());
        kit.exec(&owner, &exec, &Spec::sh("exit 4"))?;
        owner.task().start(&owner.id, &exec)?;
        let ended = owner.task().wait(&owner.id, &exec)?;
        ensure!(ended.exit_status == 4, "{when}: {ended:?}");
        Ok(())
    };
    match shim.task.create(&bundle.create_request()) {
        Err(error) => ensure!(error.is(Code::AlreadyExists), "Create: {error}"),
        Ok(made) => bail!("Create: {made:?}"),
    }
    unhurt("after the refused Create")?;
    shim.task.shutdown(&shim.id)?;
    shim.delete()?;
    unhurt("after `delete` of the refused one")?;
    bundle.remove()?;
    owner.task().kill(&owner.id, "", 9, true)?;
    ensure!(owner.exit_status()? == 137);
    owner.task().delete(&owner.id, "")?;
    nothing_but_the_pair(kit, &owner.id)
}
